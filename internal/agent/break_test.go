package agent_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

var errBroken = errors.New("the wire broke")

// brittle is a Conn that fails after so many bytes in one direction, and reads at most piece bytes at a time.
type brittle struct {
	net.Conn
	piece             int
	readable, written atomic.Int64 // what is left
}

func newBrittle(conn net.Conn, piece int, read, write int64) *brittle {
	b := &brittle{Conn: conn, piece: piece}
	b.readable.Store(read)
	b.written.Store(write)
	return b
}

func (b *brittle) Read(p []byte) (int, error) {
	left := b.readable.Load()
	if left == 0 {
		return 0, errBroken
	}
	n, err := b.Conn.Read(p[:min(int64(len(p)), int64(b.piece), left)])
	b.readable.Add(-int64(n))
	return n, err
}

func (b *brittle) Write(p []byte) (int, error) {
	left := b.written.Load()
	if int64(len(p)) <= left {
		b.written.Add(-int64(len(p)))
		return b.Conn.Write(p)
	}
	b.written.Store(0)
	n, _ := b.Conn.Write(p[:left])
	return n, errBroken
}

// honest answers everything as an agent would.
func honest(f *agenttest.Fake) {
	f.Boot()
	kinds := map[uint32]agent.Request{}
	for {
		frame := f.Next()
		switch frame.Type {
		case agent.TypePing:
			f.Send(agent.TypePong, 0, frame.Payload)
		case agent.TypeOpen:
			r, err := agent.DecodeRequest(frame.Payload)
			if err != nil {
				return
			}
			kinds[frame.Stream] = r
			if _, ok := r.(agent.Get); ok {
				f.Send(agent.TypeData, frame.Stream, []byte("content"))
				f.Send(agent.TypeEnd, frame.Stream, nil)
				f.Result(frame.Stream, agent.Result{Size: 7})
			}
		case agent.TypeData:
			if _, ok := kinds[frame.Stream].(agent.Command); ok {
				f.Send(agent.TypeErr, frame.Stream, frame.Payload)
			}
		case agent.TypeEnd:
			f.Result(frame.Stream, agent.Result{})
		}
	}
}

// exchange does a little of everything and returns the first error.
func exchange(ctx context.Context, l *agent.Link) error {
	cache := blobcache.New(1 << 20)
	if _, err := l.SendBlobs(ctx, []blobcache.Digest{cache.Put([]byte("a blob"))}, cache); err != nil {
		return err
	}
	for _, r := range []agent.Request{agent.Get{Source: []byte("/x")}, agent.Command{Argv: argv("cat")}} {
		s, err := l.Open(ctx, r)
		if err != nil {
			return err
		}
		defer s.Close()
		if _, ok := r.(agent.Command); ok {
			if err := errors.Join(s.Send(ctx, []byte("input")), s.CloseSend()); err != nil {
				return err
			}
		}
		for {
			_, err := s.Recv(ctx)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	if _, err := l.Hello(ctx); err != nil {
		return err
	}
	return l.Ping(ctx)
}

const unbroken = 1 << 40

// attempt connects over a brittle conn and exchanges; it reports how much was left of each direction.
func attempt(ctx context.Context, t *testing.T, piece int, read, write int64) (readLeft, writeLeft int64, err error) {
	t.Helper()
	ours, theirs := net.Pipe()
	played := make(chan struct{})
	go func() {
		defer close(played)
		agenttest.Play(t, theirs, honest)
	}()
	conn := newBrittle(ours, piece, read, write)
	l, err := agent.Connect(ctx, conn, agent.Options{})
	if err == nil {
		err = exchange(ctx, l)
		if err != nil {
			<-l.Done() // an error of the exchange is one of the link
			if fault.KindOf(l.Err()) != fault.AgentDied || !errors.Is(l.Err(), errBroken) {
				t.Errorf("the link ended with %v", l.Err())
			}
		}
		must(t, l.Close())
	}
	_ = ours.Close()
	<-played
	return conn.readable.Load(), conn.written.Load(), err
}

// TestEveryBreak breaks the wire after every byte of a short exchange, in each direction: it always ends, with a typed error.
func TestEveryBreak(t *testing.T) {
	ctx := within(t)
	read, write, err := attempt(ctx, t, 1<<20, unbroken, unbroken)
	must(t, err)
	reads, writes := unbroken-read, unbroken-write
	broken := func(t *testing.T, err error, at int64) {
		t.Helper()
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.AgentDied || !errors.Is(err, errBroken) {
			t.Errorf("broken after %d: %v", at, err)
		}
	}
	t.Run("reading", func(t *testing.T) {
		for n := range reads - 1 {
			_, _, err := attempt(ctx, t, 1<<20, n, unbroken)
			broken(t, err, n)
		}
	})
	t.Run("writing", func(t *testing.T) {
		source := int64(len(agent.Source())) + 4
		for n := int64(0); n < writes-1; n++ {
			_, _, err := attempt(ctx, t, 1<<20, unbroken, n)
			broken(t, err, n)
			if n > 10 && n < source-10 { // one place in the source is like another
				n = min(n+997, source-10)
			}
		}
	})
}

// TestShortReads: how the wire cuts the bytes changes nothing.
func TestShortReads(t *testing.T) {
	ctx := within(t)
	for _, piece := range []int{1, 2, 3, 8, 9, 10, 13} {
		t.Run(strconv.Itoa(piece), func(t *testing.T) {
			_, _, err := attempt(ctx, t, piece, unbroken, unbroken)
			must(t, err)
		})
	}
}

// TestAgentEnds: EOF between frames and within one, with requests under way.
func TestAgentEnds(t *testing.T) {
	for name, last := range map[string]string{"between frames": "", "in a header": "\x00\x00\x00", "in a payload": "\x00\x00\x00\x05\x03\x00\x00\x00\x01ab"} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t)
			l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
				f.Boot()
				id, _ := f.Open()
				f.Send(agent.TypeData, id, []byte("before"))
				f.Raw([]byte(last))
			})
			s := open(ctx, t, l, agent.Get{})
			e, err := s.Recv(ctx)
			must(t, err)
			if string(e.Data) != "before" {
				t.Errorf("what came before the end is %q", e.Data)
			}
			if _, err = s.Recv(ctx); fault.KindOf(err) != fault.AgentDied {
				t.Errorf("got %v", err)
			}
			if err := s.CloseSend(); err != nil {
				t.Errorf("CloseSend: %v", err)
			}
			<-l.Done()
			if st := l.Stats(); st.Jobs != 0 {
				t.Errorf("%+v", st)
			}
			if _, err := l.Open(ctx, agent.Get{}); fault.KindOf(err) != fault.AgentDied {
				t.Errorf("Open: %v", err)
			}
			s.Cancel()
			s.Close()
		})
	}
}

// TestErrorsAreCopies: who is given an error may write the hop into it.
func TestErrorsAreCopies(t *testing.T) {
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) { f.Boot() })
	<-l.Done()
	e, ok := errors.AsType[*fault.Error](l.Err())
	if !ok {
		t.Fatal("no *fault.Error")
	}
	e.HopName = "changed"
	if again, _ := errors.AsType[*fault.Error](l.Err()); again.HopName != "" {
		t.Error("two callers share an error")
	}
}

// TestCloseSendsCancels: the CANCEL of a stream that was closed just before leaves; what was not asked for yet is not asked any more.
func TestCloseSendsCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		var got []agent.FrameType
		l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
			f.Boot()
			f.Open()
			<-goOn
			for {
				got = append(got, f.Next().Type)
			}
		})
		ctx := t.Context()
		running := open(ctx, t, l, agent.Module{})
		_, err := l.Hello(ctx)
		must(t, err)
		synctest.Wait()
		blocker := make(chan error, 1)
		go func() { blocker <- l.Ping(ctx) }() // the writer is stuck with it
		synctest.Wait()
		open(ctx, t, l, agent.Module{})
		running.Close()
		closed := make(chan error, 1)
		go func() { closed <- l.Close() }()
		synctest.Wait()
		close(goOn)
		must(t, <-closed)
		if !errors.Is(<-blocker, agent.ErrClosed) {
			t.Error("a waiting caller did not hear of Close")
		}
		synctest.Wait()
		if !equal(got, []agent.FrameType{agent.TypePing, agent.TypeCancel}) {
			t.Errorf("the agent heard %v", got)
		}
	})
}

// TestCloseOfAStuckLink: an agent that reads nothing holds nobody up.
func TestCloseOfAStuckLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		defer close(never)
		l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
			f.Boot()
			<-never
		})
		s := open(t.Context(), t, l, agent.Module{})
		synctest.Wait() // the writer is stuck with it
		start := time.Now()
		must(t, l.Close())
		if waited := time.Since(start); waited <= 0 || waited > 10*time.Second { // of the bubble's clock
			t.Errorf("Close took %v", waited)
		}
		if _, err := s.Recv(t.Context()); !errors.Is(err, agent.ErrClosed) || fault.KindOf(err) != fault.Cancelled {
			t.Errorf("got %v", err)
		}
		must(t, l.Close())
	})
}
