package sshlink

import (
	"context"
	"errors"
	"sync"
)

// jumps are the connections to jump hosts, one for each however many targets lie behind it. A connection lasts as long as somebody
// holds it: the connections through it, and the next jump host of a chain.
type jumps struct {
	mu   sync.Mutex
	open map[string]*jumpShare // by all that says which connection it is
}

// jumpShare is one connection, or the attempt to make it.
type jumpShare struct {
	key    string
	refs   int // guarded by jumps.mu
	cancel context.CancelCauseFunc
	done   chan struct{} // closed once the attempt is over
	t      *transport
	err    error
}

// jumpHost is one holder's hold on a jump host's connection.
type jumpHost struct {
	pool      *jumps
	share     *jumpShare
	transport *transport
	once      sync.Once
}

var errNobodyWaits = errors.New("nobody waits for this jump host any more")

// acquire holds the connection of that key, made by dial if there is none that lives. Who comes meanwhile waits for the same attempt.
func (j *jumps) acquire(ctx context.Context, key string, dial func(context.Context) (*transport, error)) (*jumpHost, error) {
	j.mu.Lock()
	s := j.open[key]
	if s == nil || s.over() {
		s = j.begin(ctx, key, dial)
	}
	s.refs++
	j.mu.Unlock()
	h := &jumpHost{pool: j, share: s}
	select {
	case <-s.done:
	case <-ctx.Done():
		_ = h.Close()
		return nil, context.Cause(ctx)
	}
	if s.err != nil {
		_ = h.Close()
		return nil, s.err
	}
	h.transport = s.t
	return h, nil
}

// begin starts the attempt; j.mu is held. It does not end with the first who asked, but with the last who waits.
func (j *jumps) begin(ctx context.Context, key string, dial func(context.Context) (*transport, error)) *jumpShare {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s := &jumpShare{key: key, cancel: cancel, done: make(chan struct{})}
	if j.open == nil {
		j.open = map[string]*jumpShare{}
	}
	j.open[key] = s
	go func() {
		defer close(s.done)
		s.t, s.err = dial(ctx)
	}()
	return s
}

// over reports whether there is nothing to share any more.
func (s *jumpShare) over() bool {
	select {
	case <-s.done:
		return s.err != nil || !s.t.alive()
	default:
		return false
	}
}

// share is one more hold on what h holds.
func (j *jumps) share(h *jumpHost) *jumpHost {
	j.mu.Lock()
	defer j.mu.Unlock()
	h.share.refs++
	return &jumpHost{pool: j, share: h.share, transport: h.transport}
}

// Close gives the hold back; the last one ends the connection, or the attempt, and waits for its end.
func (h *jumpHost) Close() error {
	var err error
	h.once.Do(func() {
		j, s := h.pool, h.share
		j.mu.Lock()
		s.refs--
		last := s.refs == 0
		if last && j.open[s.key] == s {
			delete(j.open, s.key)
		}
		j.mu.Unlock()
		if !last {
			return
		}
		s.cancel(errNobodyWaits)
		<-s.done
		if s.t != nil {
			err = s.t.Close()
		}
	})
	return err
}
