package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

// passedModel is an agent that keeps what the page says, next to a link that must know what it keeps.
type passedModel struct {
	l       *Link
	over    context.Context // has ended: what cannot be done at once is not done
	streams []*passedStream
	kept    map[uint32][]byte
	last    uint32
	bytes   int
}

// passedStream is one of the accounts behind the agent.
type passedStream struct {
	s             *Stream
	sent, arrived []byte
	owed          int // bytes that arrived and were not given credit for
	gone          bool
}

// parts are what is shared: few, so that they come again.
var parts = func() (all [][]byte) {
	for i, size := range []int{leastPassed, 5000, 70_000, MaxPayload, MaxPayload, MaxPayload} {
		all = append(all, bytes.Repeat([]byte{byte(i)}, size))
	}
	return all
}()

const passedLimit = 300_000

func (m *passedModel) any(t *rapid.T) *passedStream {
	return m.streams[rapid.IntRange(0, len(m.streams)-1).Draw(t, "stream")]
}

func (m *passedModel) share(t *rapid.T) {
	a, p := m.any(t), parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")]
	if err := a.s.share(m.over, p); err == nil {
		a.sent = append(a.sent, p...)
	}
}

func (m *passedModel) send(t *rapid.T) {
	a, p := m.any(t), []byte("literal")
	if err := a.s.Send(m.over, p); err == nil {
		a.sent = append(a.sent, p...)
	}
}

func (m *passedModel) cancel(t *rapid.T) {
	if a := m.any(t); rapid.IntRange(0, 9).Draw(t, "seldom") == 0 {
		a.s.Cancel()
		a.gone = true
	}
}

func (m *passedModel) credit(t *rapid.T) {
	a := m.any(t)
	if a.owed == 0 || a.gone {
		return
	}
	n := rapid.IntRange(1, a.owed).Draw(t, "credit")
	if err := m.l.accept(&Frame{TypeCredit, a.s.id, binary.BigEndian.AppendUint32(nil, uint32(n))}); err != nil {
		t.Fatalf("CREDIT of %d for %d: %v", n, a.owed, err)
	}
	a.owed -= n
}

// write is the agent's part: it keeps, gives again and forgets.
func (m *passedModel) write(t *rapid.T) {
	for _, f := range m.l.take(t) {
		var a *passedStream
		for _, other := range m.streams {
			if other.s.id == f.Stream {
				a = other
			}
		}
		p := f.Payload
		switch f.Type {
		case TypeKeep:
			for number, other := range m.kept {
				if bytes.Equal(p, other) {
					t.Fatalf("what is kept as number %d crosses again", number)
				}
			}
			m.last++
			m.kept[m.last] = p
			m.bytes += len(p)
		case TypeKept:
			var ok bool
			if p, ok = m.kept[binary.BigEndian.Uint32(p)]; !ok {
				t.Fatalf("the agent does not keep number %d", binary.BigEndian.Uint32(f.Payload))
			}
		case TypeForget:
			last := binary.BigEndian.Uint32(p)
			if m.kept[last] == nil {
				t.Fatalf("the agent shall forget number %d, which it does not keep", last)
			}
			for number, other := range m.kept {
				if number <= last {
					m.bytes -= len(other)
					delete(m.kept, number)
				}
			}
			continue
		case TypeData:
		default:
			continue
		}
		a.arrived = append(a.arrived, p...)
		a.owed += len(p)
	}
}

func (m *passedModel) check(t *rapid.T) {
	for i, a := range m.streams {
		if !bytes.HasPrefix(a.sent, a.arrived) {
			t.Fatalf("other bytes arrived on stream %d than were sent", i)
		}
		if a.owed > a.s.window {
			t.Fatalf("%d bytes on a window of %d", a.owed, a.s.window)
		}
	}
	// What is to be forgotten is told with the next Write; what waits for its turn may not be.
	if m.bytes > passedLimit+2*MaxPayload+len(m.streams)*maxOut {
		t.Fatalf("%d bytes are kept", m.bytes)
	}
}

// TestPassedModel: whatever is shared, cancelled and forgotten in whatever order, every account gets its bytes, nothing that the agent
// keeps crosses again, nothing is named that it does not keep, and it keeps no more than it should.
func TestPassedModel(t *testing.T) {
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("now or never"))
	rapid.Check(t, func(t *rapid.T) {
		m := &passedModel{l: still(), over: over, kept: map[uint32][]byte{}}
		m.l.o.KeepLimit = passedLimit
		for range 3 {
			s, err := m.l.Open(context.Background(), Spawn{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(over); err == nil { // lets OPEN go
				t.Fatal("received something")
			}
			m.streams = append(m.streams, &passedStream{s: s})
		}
		m.write(t)
		t.Repeat(map[string]func(*rapid.T){
			"share": m.share, "share more": m.share, "send": m.send, "write": m.write, "credit": m.credit, "cancel": m.cancel,
			"forget": func(*rapid.T) { m.l.forgetPassed() }, "": m.check,
		})
		for range 4 * maxOut / leastPassed {
			m.write(t)
		}
		for i, a := range m.streams {
			if !a.gone && len(a.arrived) != len(a.sent) {
				t.Fatalf("%d of %d bytes arrived on stream %d", len(a.arrived), len(a.sent), i)
			}
		}
		if m.bytes > passedLimit {
			t.Fatalf("%d bytes are kept at the end", m.bytes)
		}
	})
}

// TestKeepLimit: an agent keeps a part of the memory that its system can give, and no more than there is sense in.
func TestKeepLimit(t *testing.T) {
	for name, c := range map[string]struct {
		option int64
		spare  uint64 // KiB
		want   int64
	}{
		"not known":     {0, 0, passedIfUnknown},
		"little":        {0, 1 << 10, 256 << 10},
		"much":          {0, 1 << 30, mostPassed},
		"more than all": {0, maxCount, mostPassed},
		"told":          {5, 1 << 30, 5},
	} {
		l := still()
		l.o.KeepLimit, l.hello.SpareKiB = c.option, c.spare
		if got := l.keepLimit(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestWaitsForWhatIsAboutToLeave: two who send the same at once do not both send it, also if the first one gives up.
func TestWaitsForWhatIsAboutToLeave(t *testing.T) {
	for _, givesUp := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := still()
			var streams [2]*Stream
			for i := range streams {
				s, err := l.Open(t.Context(), Spawn{})
				if err != nil {
					t.Fatal(err)
				}
				l.mu.Lock()
				s.release()
				l.mu.Unlock()
				streams[i] = s
			}
			l.take(t)
			if err := streams[0].share(t.Context(), parts[3]); err != nil {
				t.Fatal(err)
			}
			second := make(chan error, 1)
			go func() { second <- streams[1].share(t.Context(), parts[3]) }()
			synctest.Wait()
			if len(second) > 0 {
				t.Fatal("it did not wait")
			}
			want := []FrameType{TypeKeep, TypeKept}
			if givesUp {
				streams[0].Cancel()
				want = []FrameType{TypeCancel, TypeKeep}
			}
			var got []FrameType
			for range 3 {
				for _, f := range l.take(t) {
					got = append(got, f.Type)
				}
				synctest.Wait()
			}
			if err := <-second; err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
		})
	}
}

// TestUnusedIsForgotten: a target's memory is lent for a while.
func TestUnusedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := still()
		s, err := l.Open(t.Context(), Spawn{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.share(t.Context(), parts[3]); err != nil {
			t.Fatal(err)
		}
		l.take(t)
		if l.Stats().BlobBytes != int64(len(parts[3])) {
			t.Errorf("%d bytes are kept", l.Stats().BlobBytes)
		}
		began := time.Now()
		<-l.passed.unused.C
		if waited := time.Since(began); waited != unusedPassed {
			t.Errorf("after %v", waited)
		}
		l.forgetPassed()
		if frames := l.take(t); len(frames) != 1 || frames[0].Type != TypeForget || l.Stats().BlobBytes != 0 {
			t.Errorf("%v, %d bytes are kept", frames, l.Stats().BlobBytes)
		}
		if len(l.passed.parts) != 0 || l.passed.parts[blobcache.Sum(parts[3])] != nil {
			t.Error("the link still knows it")
		}
	})
}
