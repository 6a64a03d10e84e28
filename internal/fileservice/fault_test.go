package fileservice

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// wire is the Conn of a link to a real agent, which strikes at one frame of one direction. It counts frames once it is armed.
type wire struct {
	*agenttest.Process
	strike func(*wire, []byte) error // gets the frame's header and payload, to change in place
	at     int
	up     bool // the agent's frames, not ours

	mu     sync.Mutex
	armed  bool
	frames int // seen since
	closed chan struct{}
	once   sync.Once
	rest   []byte // read, not yet handed on
	early  bool   // the magic has been read
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Process.Close()
}

// inspect walks over b, which begins with a frame, and strikes at the one whose turn it is. It returns how much of b comes before it.
func (w *wire) inspect(b []byte, up bool) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for at := 0; at < len(b) && w.armed && up == w.up; {
		end := at + 9 + int(binary.BigEndian.Uint32(b[at:]))
		if w.frames++; w.frames == w.at {
			w.mu.Unlock()
			err := w.strike(w, b[at:end])
			w.mu.Lock()
			return at, err
		}
		at = end
	}
	return len(b), nil
}

// Write gets whole frames, for that is how a link writes.
func (w *wire) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	if n, err := w.inspect(b, false); err != nil {
		_, _ = w.Process.Write(b[:n])
		return n, err
	}
	return w.Process.Write(b)
}

// Read makes whole frames of what comes.
func (w *wire) Read(p []byte) (int, error) {
	for len(w.rest) == 0 {
		if !w.early {
			n, err := w.Process.Read(p)
			w.early = bytes.Contains(p[:n], []byte(agenttest.Magic)) // HELLO comes only after the source
			return n, err
		}
		frame := make([]byte, 9)
		if _, err := readFull(w.Process, frame); err != nil {
			return 0, err
		}
		frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame))...)
		if _, err := readFull(w.Process, frame[9:]); err != nil {
			return 0, err
		}
		if _, err := w.inspect(frame, true); err != nil {
			return 0, err
		}
		w.rest = frame
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func readFull(p *agenttest.Process, b []byte) (int, error) {
	for n := 0; n < len(b); {
		got, err := p.Read(b[n:])
		if n += got; err != nil {
			return n, err
		}
	}
	return len(b), nil
}

var errCut = errors.New("the wire was cut")

// The faults.
var strikes = map[string]func(w *wire, frame []byte) error{
	"cut":   func(w *wire, _ []byte) error { _ = w.Close(); return errCut },
	"stall": func(w *wire, _ []byte) error { <-w.closed; return errCut },
	"corrupt": func(_ *wire, frame []byte) error {
		if agent.FrameType(frame[4]) == agent.TypeData {
			frame[len(frame)-1] ^= 0x20 // content or trailer
		} else {
			frame[4] = 0xee // what a record says must not be changed to another path: no link without MAC is used
		}
		return nil
	},
	"kill agent": func(w *wire, _ []byte) error { return syscall.Kill(w.PID(), syscall.SIGTERM) },
}

// Whatever happens at whatever frame of a transfer of three chunks: the destination is the old file or the new one, whole, the error has
// a kind, and no temporary file is left.
func TestFaultAtEachFrame(t *testing.T) {
	const size = 2*chunkSize + chunkSize/2
	for direction, transfer := range map[string]func(context.Context, Caller, string, string) error{
		"put": func(ctx context.Context, c Caller, from, to string) error {
			_, err := New().Put(ctx, c, &PutRequest{Path: from, Dest: []byte(to)})
			return err
		},
		"get": func(ctx context.Context, c Caller, from, to string) error {
			_, err := New().Get(ctx, c, &GetRequest{Source: []byte(from), Path: to})
			return err
		},
	} {
		for name, strike := range strikes {
			for _, up := range []bool{false, true} {
				way := map[bool]string{false: "down", true: "up"}[up]
				// The last round strikes at no frame: then there are as many as were tried.
				for at, struck := 1, true; struck; at++ {
					t.Run(fmt.Sprintf("%s, %s %s %d", direction, name, way, at), func(t *testing.T) {
						struck = faultAt(t, transfer, size, name, &wire{strike: strike, at: at, up: up, closed: make(chan struct{})})
					})
					if t.Failed() {
						return
					}
				}
			}
		}
	}
}

// faultAt reports whether the transfer had the frame to strike at.
func faultAt(t *testing.T, transfer func(context.Context, Caller, string, string) error, size int, name string, w *wire) bool {
	dir := t.TempDir()
	t.Cleanup(func() { checkOnly(t, dir, "from", "to") }) // when the agent has ended, which Spawn's own cleanup waits for
	w.Process = agenttest.Spawn(t, "", "-S", "-c", agent.Stage1(), "mitogen-mux: test")
	link, err := agent.Connect(within(t), w, agent.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if _, err := link.Hello(within(t)); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	write(t, from, content(size), 0o600)
	write(t, to, []byte("old"), 0o600)
	w.mu.Lock()
	w.armed = true
	w.mu.Unlock()

	ctx, cancel := context.WithCancelCause(within(t))
	defer cancel(nil)
	if name == "stall" {
		inner := w.strike
		w.strike = func(w *wire, frame []byte) error {
			cancel(&fault.Error{Kind: fault.TimedOut, Message: "stalled"})
			return inner(w, frame)
		}
	}
	err = transfer(ctx, linked{link}, from, to)
	_ = w.Close()
	<-link.Done()
	w.mu.Lock()
	struck := w.frames >= w.at
	w.mu.Unlock()

	b, readErr := os.ReadFile(to)
	if readErr != nil || (string(b) != "old" && !bytes.Equal(b, content(size))) {
		t.Errorf("the destination has %d bytes, %v: neither the old file nor the new one", len(b), readErr)
	}
	if err == nil && len(b) != size {
		t.Error("no error, and the old file")
	}
	if kind := fault.KindOf(err); err != nil && kind != fault.AgentDied && kind != fault.TimedOut && kind != fault.FileFailed {
		t.Errorf("%v of kind %d", err, kind)
	}
	if !struck && err != nil {
		t.Errorf("nothing happened, and still %v", err)
	}
	return struck
}

// The same without an agent: the connection breaks at each part of the content.
func TestPlainPutCut(t *testing.T) {
	const parts = 3
	for at := 1; at <= parts; at++ {
		for name, strike := range map[string]func(*shell){
			"cut":  func(s *shell) { _ = s.stdin.Close() },
			"kill": func(s *shell) { _ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGTERM) },
		} {
			t.Run(fmt.Sprintf("%s %d", name, at), func(t *testing.T) {
				dir := t.TempDir()
				from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
				write(t, from, content(parts*chunkSize), 0o600)
				write(t, to, []byte("old"), 0o600)
				c := plain{func(s *shell) {
					written := 0
					s.onWrite = func() {
						if written++; written == at {
							strike(s)
						}
					}
				}}
				_, err := New().Put(within(t), c, &PutRequest{Path: from, Dest: []byte(to)})
				switch {
				case err == nil:
					check(t, to, content(parts*chunkSize), 0o600) // all of it had arrived
				case fault.KindOf(err) != fault.FileFailed:
					t.Errorf("%v of kind %d", err, fault.KindOf(err))
				default:
					check(t, to, []byte("old"), 0o600)
				}
				if at < parts && err == nil {
					t.Error("a part did not arrive, and no error")
				}
				checkOnly(t, dir, "from", "to")
			})
		}
	}
}

// An agent that lies about what it moved.
func TestLyingAgent(t *testing.T) {
	right := content(100)
	for name, c := range map[string]struct {
		result agent.Result
		want   fault.Kind
	}{
		"size":      {agent.Result{Size: 99}, fault.FileFailed},
		"digest":    {agent.Result{Size: 100}, fault.FileFailed},
		"io":        {agent.Result{Failed: true, Failure: agent.FailIO, Text: "No space left on device"}, fault.FileFailed},
		"changed":   {agent.Result{Failed: true, Failure: agent.FailChanged}, fault.FileChanged},
		"cancelled": {agent.Result{Failed: true, Failure: agent.FailCancelled}, fault.Cancelled},
		"escape":    {agent.Result{Failed: true, Failure: agent.FailIO, Text: "\x1b]0;owned\x07"}, fault.FileFailed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			to := filepath.Join(dir, "to")
			write(t, to, []byte("old"), 0o600)
			l := agenttest.Link(t, agent.Options{Name: "fake"}, func(f *agenttest.Fake) {
				f.Boot()
				id, _ := f.Open()
				f.Send(agent.TypeData, id, right)
				f.Send(agent.TypeEnd, id, nil)
				f.Result(id, c.result)
				id, _ = f.Open()
				f.Result(id, c.result)
				f.Drain()
			})
			_, err := New().Get(within(t), linked{l}, &GetRequest{Source: []byte("/x"), Path: to})
			if fault.KindOf(err) != c.want || strings.ContainsAny(err.Error(), "\x1b\x07") {
				t.Errorf("get: %q of kind %d", err, fault.KindOf(err))
			}
			_, err = New().Put(within(t), linked{l}, &PutRequest{Body: inParts(right, 10), Dest: []byte("/x")})
			if fault.KindOf(err) != c.want || strings.ContainsAny(err.Error(), "\x1b\x07") {
				t.Errorf("put: %q of kind %d", err, fault.KindOf(err))
			}
			check(t, to, []byte("old"), 0o600)
			checkOnly(t, dir, "to")
		})
	}
}
