package mux

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const marker = "BECOME-SUCCESS-test"

// world is a fake of everything that the tree opens: it counts, and fails where it is told to.
type world struct {
	mu         sync.Mutex
	dials      map[string]int // begun, by what they are for
	open       map[string]int // open now
	most       map[string]int // open or being opened at the same time, at most
	opening    map[string]int
	gate       map[string]chan struct{} // opening waits for it, if there is one
	fail       map[string]error         // opening fails
	deaf       bool                     // opening does not hear that it was cancelled
	notes      []Note                   // of every transport
	preamble   []byte                   // of every agent
	transports []*fakeTransport
	peers      []*fakePeer
}

func newWorld() *world {
	return &world{
		dials: map[string]int{}, open: map[string]int{}, most: map[string]int{}, opening: map[string]int{},
		gate: map[string]chan struct{}{}, fail: map[string]error{},
	}
}

// begin is the part that every way of opening shares.
func (w *world) begin(ctx context.Context, what string) error {
	w.mu.Lock()
	w.dials[what]++
	w.opening[what]++
	w.most[what] = max(w.most[what], w.opening[what])
	gate, err := w.gate[what], w.fail[what]
	if w.deaf {
		ctx = context.Background()
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.opening[what]--
		w.mu.Unlock()
	}()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

func (w *world) opened(what string, by int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[what] += by
}

func (w *world) count(what string) (dials, open int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials[what], w.open[what]
}

func (w *world) setFail(what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[what] = err
}

// hold makes opening wait until the returned function is called.
func (w *world) hold(what string) (letGo func()) {
	gate := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate[what] = gate
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.gate, what)
		close(gate)
	})
}

// DialThrough implements Dialer.
func (w *world) DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, _ *Intermediary) (Transport, error) {
	return w.Dial(ctx, h, run)
}

// Dial implements Dialer.
func (w *world) Dial(ctx context.Context, h *hop.SSH, _ hop.Run) (Transport, error) {
	if err := w.begin(ctx, h.Host); err != nil {
		return nil, err
	}
	w.opened(h.Host, 1)
	tr := &fakeTransport{world: w, host: h.Host, done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.transports = append(w.transports, tr)
	return tr, nil
}

// end is something that ends once.
type end struct {
	once sync.Once
	err  error
}

type fakeTransport struct {
	world *world
	full  bool // as many sessions are open as may be
	host  string
	done  chan struct{}
	end   end
}

// Notes implements Transport.
func (f *fakeTransport) Notes() []Note { return f.world.notes }

// Shared implements Transport.
func (f *fakeTransport) Shared() bool { return true }

func (f *fakeTransport) Exec(ctx context.Context, cmd []byte, o ExecOptions) (Process, error) {
	if f.full {
		o.MakeRoom()
	}
	interpreter := strings.SplitN(strings.TrimPrefix(string(cmd), "/bin/sh -c '"), " ", 2)[0]
	name := f.host + "/" + interpreter
	if err := f.world.begin(ctx, name); err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return nil, f.Err()
	default:
	}
	f.world.opened(name, 1)
	return &fakeProcess{world: f.world, name: name}, nil
}
func (f *fakeTransport) Done() <-chan struct{} { return f.done }
func (f *fakeTransport) Err() error {
	<-f.done
	return f.end.err
}

func (f *fakeTransport) Close() error {
	f.die(errors.New("closed by us"))
	return nil
}

func (f *fakeTransport) die(err error) {
	f.end.once.Do(func() {
		f.end.err = err
		f.world.opened(f.host, -1)
		close(f.done)
	})
}

// fakeProcess is the stdio of an agent that a fakePeer stands for.
type fakeProcess struct {
	world *world
	name  string
	end   end
}

func (*fakeProcess) Read([]byte) (int, error)    { return 0, io.EOF }
func (*fakeProcess) Write(p []byte) (int, error) { return len(p), nil }
func (*fakeProcess) CloseWrite() error           { return nil }
func (*fakeProcess) Stderr() io.Reader           { return strings.NewReader("") }
func (*fakeProcess) Wait() (int, error)          { return 0, nil }
func (f *fakeProcess) Close() error {
	f.end.once.Do(func() { f.world.opened(f.name, -1) })
	return nil
}

// connect implements connectFunc.
func (w *world) connect(ctx context.Context, conn agent.Conn, o agent.Options) (peer, error) {
	if err := w.begin(ctx, "agent "+o.Name); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if o.OnPreamble != nil {
		o.OnPreamble(w.preamble)
	}
	p := &fakePeer{world: w, name: o.Name, conn: conn, done: make(chan struct{}), onLog: o.OnLog}
	w.opened("agent "+o.Name, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = append(w.peers, p)
	return p, nil
}

type fakePeer struct {
	world *world
	name  string
	conn  agent.Conn
	done  chan struct{}
	end   end
	onLog func(int, string)
	fails atomic.Pointer[fault.Error] // why it is ending, while Done is not closed yet
}

func (p *fakePeer) Open(context.Context, agent.Request) (*agent.Stream, error) {
	select {
	case <-p.done:
		return nil, p.Err()
	default:
		return nil, nil
	}
}

func (p *fakePeer) SendBlobs(context.Context, []blobcache.Digest, agent.BlobSource) (func(), error) {
	return func() {}, nil
}

func (p *fakePeer) Spawn(ctx context.Context, s *agent.Spawn) (spawned, error) {
	select {
	case <-p.done:
		return nil, p.Err()
	default:
	}
	name := "spawn " + string(s.Argv[0])
	if err := p.world.begin(ctx, name); err != nil {
		return nil, err
	}
	return &fakeSpawn{}, nil
}

func (p *fakePeer) Hello(ctx context.Context) (agent.Hello, error) {
	select {
	case <-p.done:
		return agent.Hello{}, p.Err()
	case <-ctx.Done():
		return agent.Hello{}, ctx.Err()
	default:
		return agent.Hello{Python: "3.11.2"}, nil
	}
}
func (p *fakePeer) Done() <-chan struct{} { return p.done }
func (p *fakePeer) Err() error {
	select {
	case <-p.done:
		return p.end.err
	default:
		if e := p.fails.Load(); e != nil {
			return e
		}
		return nil
	}
}
func (p *fakePeer) Stats() agent.Stats { return agent.Stats{Jobs: 1, SentBytes: 2} }

func (p *fakePeer) End(reason *fault.Error) { p.die(reason) }

func (p *fakePeer) die(err error) {
	p.end.once.Do(func() {
		p.end.err = err
		_ = p.conn.Close()
		p.world.opened("agent "+p.name, -1)
		close(p.done)
	})
}

// fakeSpawn is a become tool that needs no password.
type fakeSpawn struct{ said bool }

func (*fakeSpawn) Send(context.Context, []byte) error    { return nil }
func (*fakeSpawn) SendTTY(context.Context, []byte) error { return nil }
func (*fakeSpawn) CloseSend() error                      { return nil }
func (*fakeSpawn) Close()                                {}
func (*fakeSpawn) Gone(context.Context) error            { return nil }
func (*fakeSpawn) Conn() agent.Conn                      { return fakeConn{} }
func (s *fakeSpawn) Recv(context.Context) (agent.Event, error) {
	if s.said {
		return agent.Event{}, io.EOF
	}
	s.said = true
	return agent.Event{Channel: agent.Stdout, Data: []byte(marker + "\n")}, nil
}

type fakeConn struct{}

func (fakeConn) Read([]byte) (int, error)    { return 0, io.EOF }
func (fakeConn) Write(p []byte) (int, error) { return len(p), nil }
func (fakeConn) Close() error                { return nil }

// newTree is a tree in a fake world, closed at the test's end.
func newTree(t testing.TB, o Options) (*Tree, *world) {
	w := newWorld()
	o.Dialer = w
	tree := New(o)
	tree.connect = w.connect
	t.Cleanup(func() { _ = tree.Close() })
	return tree, w
}

func key(s string) hop.Key { return hop.Key(blobcache.Sum([]byte(s))) }

// sshHop is the account "u" of a host, with an interpreter, or without one if that is empty.
func sshHop(host, interpreter string) hop.Hop {
	return hop.Hop{
		SSH: &hop.SSH{Host: host, TimeoutSeconds: 7}, Interpreter: interpreter, Account: key("ssh " + host),
	}
}

func becomeHop(user, interpreter string) hop.Hop {
	return hop.Hop{
		Become:      &hop.Become{Method: "sudo", User: user, Argv: [][]byte{[]byte("sudo"), []byte(user)}, Success: []byte(marker)},
		Interpreter: interpreter, Account: key("sudo " + user),
	}
}

func localHop() hop.Hop {
	return hop.Hop{Local: &hop.Local{Run: "r1"}, Interpreter: "python3", Account: key("local")}
}

func run(id string) hop.Run {
	return hop.Run{ID: id, PersistFor: 60, PersistBecome: true, MaxInterp: 3, AgentName: "mitogen-mux: it's me"}
}

// wantFault fails the test unless err is a fault of that kind at that hop.
func wantFault(t testing.TB, err error, kind fault.Kind, level int, name string) fault.Error {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("got %v, want a fault of kind %d", err, kind)
	}
	if e.Kind != kind || e.Hop != level || e.HopName != name {
		t.Fatalf("got kind %d at hop %d %q (%v), want kind %d at hop %d %q", e.Kind, e.Hop, e.HopName, e, kind, level, name)
	}
	return *e
}

// acquire fails the test if there is no context.
func acquire(t testing.TB, tree *Tree, r hop.Run, host string, path ...hop.Hop) *Context {
	t.Helper()
	c, err := tree.Acquire(t.Context(), r, host, path)
	if err != nil {
		t.Fatalf("cannot acquire: %v", err)
	}
	return c
}
