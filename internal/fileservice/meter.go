package fileservice

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// progressEvery is how often a large file's Progress is told.
const progressEvery = 5 * time.Second

// Progress is how far a transfer has come.
type Progress struct {
	Done, Total uint64 // Total is 0 if it is not known
	Elapsed     time.Duration
}

// Transfer is a file that is being moved.
type Transfer struct {
	Host string
	Path string // on the node
	Up   bool   // it goes to the node
	Progress
}

// Transfers lists what is being moved, what began first first.
func (s *Service) Transfers() []Transfer { return s.meters.list() }

// meters are those of the transfers under way.
type meters struct {
	mu  sync.Mutex
	all map[*meter]bool
}

// meter knows how far a transfer has come, and tells it now and then.
type meter struct {
	meters  *meters
	tell    func(Progress) // may be nil
	what    Transfer
	started time.Time
	told    time.Time
}

// begin returns a meter of a transfer; end it.
func (s *meters) begin(what Transfer, tell func(Progress)) *meter {
	now := time.Now()
	m := &meter{meters: s, tell: tell, what: what, started: now, told: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*meter]bool{}
	}
	s.all[m] = true
	return m
}

func (m *meter) end() {
	m.meters.mu.Lock()
	defer m.meters.mu.Unlock()
	delete(m.meters.all, m)
}

// done is how many bytes have been moved. Only who moves them may ask.
func (m *meter) done() uint64 { return m.what.Done }

func (m *meter) add(n int) {
	m.meters.mu.Lock()
	m.what.Done += uint64(n)
	m.meters.mu.Unlock()
	if m.tell == nil {
		return
	}
	if now := time.Now(); now.Sub(m.told) >= progressEvery {
		m.told = now
		m.tell(m.progress(now))
	}
}

func (m *meter) progress(now time.Time) Progress {
	return Progress{Done: m.what.Done, Total: m.what.Total, Elapsed: now.Sub(m.started)}
}

func (s *meters) list() []Transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*meter, 0, len(s.all))
	for m := range s.all {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *meter) int { return cmp.Compare(a.started.UnixNano(), b.started.UnixNano()) })
	now, out := time.Now(), make([]Transfer, 0, len(all))
	for _, m := range all {
		transfer := m.what
		transfer.Progress = m.progress(now)
		out = append(out, transfer)
	}
	return out
}
