package agent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// recorder is a Conn that remembers each Write.
type recorder struct {
	net.Conn
	mu     sync.Mutex
	writes [][]byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.writes = append(r.writes, append([]byte(nil), p...))
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// since returns the frame types of the writes after the first n.
func (r *recorder) since(t *testing.T, n int) [][]agent.FrameType {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var out [][]agent.FrameType
	for _, w := range r.writes[n:] {
		var types []agent.FrameType
		for in := bytes.NewReader(w); in.Len() > 0; {
			f, err := agent.ReadDown(in)
			if err != nil {
				t.Fatalf("a Write is not made of whole frames: %v", err)
			}
			types = append(types, f.Type)
		}
		out = append(out, types)
	}
	return out
}

// TestSmallRequestIsOneWrite: OPEN, DATA and END of a small request leave together, and so do requests that wait together.
func TestSmallRequestIsOneWrite(t *testing.T) {
	type types = []agent.FrameType
	for name, c := range map[string]struct {
		do   func(ctx context.Context, t *testing.T, l *agent.Link)
		want []types
	}{
		"module": {func(ctx context.Context, t *testing.T, l *agent.Link) {
			open(ctx, t, l, agent.Module{Params: []byte("{}")})
		}, []types{{agent.TypeOpen}}},
		"command without input": {func(ctx context.Context, t *testing.T, l *agent.Link) {
			must(t, open(ctx, t, l, agent.Command{}).CloseSend())
		}, []types{{agent.TypeOpen, agent.TypeEnd}}},
		"put": {func(ctx context.Context, t *testing.T, l *agent.Link) {
			s := open(ctx, t, l, agent.Put{Size: 32 << 10})
			synctest.Wait()
			must(t, s.Send(ctx, make([]byte, 16<<10)))
			synctest.Wait()
			must(t, s.Send(ctx, make([]byte, 16<<10)))
			synctest.Wait()
			must(t, s.CloseSend())
		}, []types{{agent.TypeOpen, agent.TypeData, agent.TypeEnd}}},
		"input on its way": {func(ctx context.Context, t *testing.T, l *agent.Link) {
			s := open(ctx, t, l, agent.Spawn{})
			must(t, s.Send(ctx, []byte("x")))
			soon, cancel := context.WithTimeoutCause(ctx, time.Second, errors.New("nothing yet"))
			defer cancel()
			_, err := s.Recv(soon) // lets it go
			if err == nil {
				t.Error("received something")
			}
		}, []types{{agent.TypeOpen, agent.TypeData}}},
		"cancelled before it left": {func(ctx context.Context, t *testing.T, l *agent.Link) {
			s := open(ctx, t, l, agent.Command{})
			must(t, s.Send(ctx, []byte("x")))
			s.Cancel()
			if g := gather(ctx, t, s); g.result.Failure != agent.FailCancelled {
				t.Errorf("got %+v", g.result)
			}
			if err := s.Send(ctx, []byte("x")); !errors.Is(err, agent.ErrEnded) {
				t.Errorf("Send: %v", err)
			}
			must(t, l.Ping(ctx))
		}, []types{{agent.TypePing}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				agenttest.Script(t, theirs, func(f *agenttest.Fake) {
					f.Boot()
					for {
						if frame := f.Next(); frame.Type == agent.TypePing {
							f.Send(agent.TypePong, 0, frame.Payload)
						}
					}
				})
				conn := &recorder{Conn: ours}
				l, err := agent.Connect(t.Context(), conn, agent.Options{})
				must(t, err)
				_, err = l.Hello(t.Context())
				must(t, err)
				synctest.Wait()
				before := len(conn.writes)
				c.do(t.Context(), t, l)
				synctest.Wait()
				got := conn.since(t, before)
				if len(got) != len(c.want) {
					t.Fatalf("writes are %v, want %v", got, c.want)
				}
				for i := range got {
					if !equal(got[i], c.want[i]) {
						t.Errorf("writes are %v, want %v", got, c.want)
					}
				}
				must(t, l.Close())
			})
		})
	}
}

func equal(a, b []agent.FrameType) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestPriority: what comes while bulk data waits passes all of it but the chunk that is being written, and streams take turns.
func TestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		goOn := make(chan struct{})
		var order []agent.Frame
		l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
			f.Boot()
			f.Open() // the chunk that left with it is being written from now on
			for range 12 {
				<-goOn
				frame := f.Next()
				frame.Payload = nil
				order = append(order, frame)
			}
			f.Drain()
		})
		_, err := l.Hello(ctx)
		must(t, err)
		sending, stop := context.WithCancelCause(ctx)
		var wg sync.WaitGroup
		for range 2 {
			s := open(ctx, t, l, agent.Put{Size: 1 << 30})
			wg.Go(func() {
				for s.Send(sending, make([]byte, 1<<20)) == nil { // until its credit is used up
				}
			})
			synctest.Wait()
		}
		open(ctx, t, l, agent.Module{})
		small := open(ctx, t, l, agent.Command{})
		must(t, small.Send(ctx, []byte("x")))
		must(t, small.CloseSend())
		for range 12 {
			goOn <- struct{}{}
			synctest.Wait() // whoever has more to send has said so before the next frame leaves
		}
		want := []agent.Frame{
			{Type: agent.TypeData, Stream: 1},
			{Type: agent.TypeOpen, Stream: 2},
			{Type: agent.TypeOpen, Stream: 3},
			{Type: agent.TypeOpen, Stream: 4},
			{Type: agent.TypeData, Stream: 1},
			{Type: agent.TypeData, Stream: 2},
			{Type: agent.TypeData, Stream: 4},
			{Type: agent.TypeEnd, Stream: 4},
			{Type: agent.TypeData, Stream: 1},
			{Type: agent.TypeData, Stream: 2},
			{Type: agent.TypeData, Stream: 1},
			{Type: agent.TypeData, Stream: 2},
		}
		if !reflect.DeepEqual(order, want) {
			t.Errorf("the frames left as\n%v, want\n%v", order, want)
		}
		stop(errors.New("enough"))
		wg.Wait()
		must(t, l.Close())
	})
}

// heap returns what is in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

const bulk = 100 << 20

// TestBulkUpIsBounded: a sender that has credit for a window sends a window and no more until somebody receives; 100 MB pass in
// bounded memory.
func TestBulkUpIsBounded(t *testing.T) {
	ctx := within(t)
	window, inFlight, most := agent.Window, 0, 0
	chunk := bytes.Repeat([]byte("x"), agent.MaxPayload)
	stuck := make(chan struct{})
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		for sent := 0; sent < bulk; sent += len(chunk) {
			if window-inFlight < len(chunk) && stuck != nil {
				close(stuck)
				stuck = nil
			}
			for window-inFlight < len(chunk) {
				inFlight -= f.Credit(&window)
			}
			f.Send(agent.TypeData, id, chunk)
			inFlight += len(chunk)
			most = max(most, inFlight)
		}
		f.Send(agent.TypeEnd, id, nil)
		f.Result(id, agent.Result{Size: bulk})
		f.Drain()
	})
	full := stuck
	before := heap()
	s := open(ctx, t, l, agent.Get{})
	<-full
	if held := heap() - before; held > 8<<20 {
		t.Errorf("%d bytes are held for a window of %d", held, agent.Window)
	}
	var got, frames int
	for {
		e, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		got += len(e.Data)
		frames++
		if len(e.Data) > agent.MaxPayload {
			t.Fatalf("an event of %d bytes", len(e.Data))
		}
		if frames%200 == 0 {
			if held := heap() - before; held > 16<<20 {
				t.Fatalf("%d bytes are held after %d", held, got)
			}
		}
	}
	if got != bulk || most > window {
		t.Errorf("received %d; at most %d were under way", got, most)
	}
	if st := l.Stats(); st.SentBytes > int64(len(agent.Source()))+4+bulk/(128<<10)*13+200 {
		t.Errorf("credit cost too much: %+v", st)
	}
}

// TestBulkDownIsBounded: Send waits for credit and for the writer, whatever it is given.
func TestBulkDownIsBounded(t *testing.T) {
	ctx := within(t)
	var over bool
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		var got, owed int
		for {
			frame := f.Next()
			if frame.Type == agent.TypeEnd {
				break
			}
			got += len(frame.Payload)
			owed += len(frame.Payload)
			over = over || owed > agent.Window
			if owed >= 128<<10 { // the latest that is allowed
				f.Send(agent.TypeCredit, id, number(uint32(owed)))
				owed = 0
			}
		}
		f.Result(id, agent.Result{Size: uint64(got)})
		f.Drain()
	})
	s := open(ctx, t, l, agent.Put{Size: bulk})
	piece := make([]byte, 1<<20)
	before := heap()
	for i := range bulk / len(piece) {
		must(t, s.Send(ctx, piece))
		if i%20 == 0 {
			if held := heap() - before; held > 8<<20 {
				t.Fatalf("%d bytes are held", held)
			}
		}
	}
	must(t, s.CloseSend())
	if g := gather(ctx, t, s); g.result.Size != bulk || over {
		t.Errorf("%d bytes came, beyond the credit: %v", g.result.Size, over)
	}
}

// TestResultEndsSending: an agent that has refused a file need not read it.
func TestResultEndsSending(t *testing.T) {
	ctx := within(t)
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		f.Expect(agent.TypeData)
		f.Result(id, agent.Result{Failed: true, Failure: agent.FailNotFound, Text: "no such directory"})
		f.Drain()
	})
	s := open(ctx, t, l, agent.Put{Size: 8 << 20})
	if err := s.Send(ctx, make([]byte, 8<<20)); !errors.Is(err, agent.ErrEnded) {
		t.Errorf("Send: %v", err)
	}
	must(t, s.CloseSend())
	if g := gather(ctx, t, s); fault.KindOf(g.result.Err()) != fault.FileNotFound {
		t.Errorf("got %+v", g.result)
	}
}

// TestClosedStreamIsHeardToItsEnd: after Close output is thrown away with its credit given back, until RESULT, and the link lives.
func TestClosedStreamIsHeardToItsEnd(t *testing.T) {
	ctx := within(t)
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		f.Send(agent.TypeData, id, make([]byte, 1000)) // received
		f.Expect(agent.TypeCancel)
		window, inFlight := agent.Window, 1000
		ping := f.Expect(agent.TypePing)
		for sent := 0; sent < 4<<20; sent += agent.MaxPayload {
			for window-inFlight < agent.MaxPayload {
				inFlight -= f.Credit(&window)
			}
			f.Send(agent.TypeData, id, make([]byte, agent.MaxPayload))
			inFlight += agent.MaxPayload
		}
		f.Result(id, agent.Result{Failed: true, Failure: agent.FailCancelled})
		f.Send(agent.TypePong, 0, ping.Payload)
		f.Drain()
	})
	s := open(ctx, t, l, agent.Get{})
	_, err := s.Recv(ctx)
	must(t, err)
	if st := l.Stats(); st.Jobs != 1 {
		t.Errorf("%+v", st)
	}
	s.Close()
	s.Close()
	if _, err := s.Recv(ctx); !errors.Is(err, agent.ErrStreamClosed) {
		t.Errorf("Recv: %v", err)
	}
	must(t, l.Ping(ctx))
	if st := l.Stats(); st.Jobs != 0 {
		t.Errorf("%+v", st)
	}
}

// TestWrongUse: what a stream's kind does not take is refused here, not on the target.
func TestWrongUse(t *testing.T) {
	ctx := within(t)
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		f.Drain()
	})
	get := open(ctx, t, l, agent.Get{})
	if get.Send(ctx, []byte("x")) == nil || get.CloseSend() != nil {
		t.Error("a get took input")
	}
	spawn := open(ctx, t, l, agent.Spawn{})
	if spawn.SendTTY(ctx, []byte("x")) == nil {
		t.Error("a process without terminal was typed to")
	}
	must(t, spawn.CloseSend())
	must(t, spawn.CloseSend())
	if spawn.Send(ctx, []byte("x")) == nil {
		t.Error("sent after the end")
	}
	if _, err := l.Open(ctx, &agent.Command{Argv: [][]byte{make([]byte, agent.MaxPayload)}}); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("a long command line: %v", err)
	}
	if _, err := l.Open(ctx, agent.Module{Environ: [][]byte{make([]byte, agent.MaxPayload)}, Params: []byte("{}")}); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("a long environment: %v", err)
	}
	over, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("enough"))
	if _, err := l.Open(over, agent.Get{}); fault.KindOf(err) != fault.Cancelled {
		t.Errorf("with a context that has ended: %v", err)
	}
	must(t, l.Close())
	if _, err := l.Open(ctx, agent.Get{}); !errors.Is(err, agent.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := get.Recv(ctx); !errors.Is(err, agent.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestRestOfARequestIsNoRoundTrip: what a request still has to send when another one is answered waits for nothing, but for credit.
func TestRestOfARequestIsNoRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		credit := make(chan struct{})
		l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
			f.Boot()
			go func() {
				<-credit
				f.Send(agent.TypeCredit, 1, binary.BigEndian.AppendUint32(nil, 1<<10))
			}()
			for {
				frame := f.Next()
				if frame.Type == agent.TypeOpen && agent.Kind(frame.Payload[0]) == agent.KindFolder {
					f.Result(frame.Stream, agent.Result{})
				}
			}
		})
		_, err := l.Hello(ctx)
		must(t, err)
		before := l.Stats().RoundTrips
		trips := func(want int64) {
			t.Helper()
			synctest.Wait()
			if got := l.Stats().RoundTrips - before; got != want {
				t.Errorf("%d round trips, want %d", got, want)
			}
		}
		file := open(ctx, t, l, agent.Put{Size: 2 << 20})
		must(t, file.Send(ctx, make([]byte, 200<<10)))
		trips(1)
		open(ctx, t, l, agent.Folder{Path: []byte("/a")})
		trips(1)
		must(t, file.Send(ctx, make([]byte, agent.Window-200<<10)))
		trips(1)
		open(ctx, t, l, agent.Folder{Path: []byte("/b")})
		trips(2)
		go func() { _ = file.Send(ctx, make([]byte, 1<<10)) }()
		trips(2)
		close(credit)
		trips(3)
		must(t, l.Close())
	})
}
