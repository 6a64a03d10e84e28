package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

const (
	// agentTimeout is how long an interpreter may take to start, and its agent to say HELLO. It is there so that nothing hangs;
	// a slow machine must never meet it.
	agentTimeout = 60 * time.Second
	// exitTimeout is how long the exit code of an interpreter that did not start may take to follow the end of its output.
	exitTimeout = 2 * time.Second
	// slowDial is how long a dial keeps its place in the pool. The pool is there so that a thousand targets do not start their
	// key exchanges at once; a dial that only waits for a silent host costs nothing and must not keep others from starting.
	slowDial = 50 * time.Millisecond
)

// openConnection dials the target of an SSH hop, through the agent before it if there is one.
func (t *Tree) openConnection(ctx context.Context, n *node) (opened, error) {
	if err := t.pool.Acquire(ctx, 1); err != nil {
		return opened{}, context.Cause(ctx)
	}
	leave := sync.OnceFunc(func() { t.pool.Release(1) })
	defer leave()
	defer time.AfterFunc(slowDial, leave).Stop()
	t.progress(n, Dialing)
	dial := t.dialer.Dial
	if n.parent != nil {
		dial = func(ctx context.Context, h *hop.SSH, run hop.Run) (Transport, error) {
			return t.dialer.DialThrough(ctx, h, run, n.parent.intermediary())
		}
	}
	transport, err := dial(ctx, n.hop.SSH, n.opening.run)
	if err != nil {
		return opened{}, n.fault(err, fault.Unreachable, "cannot connect")
	}
	return opened{transport: transport}, nil
}

// openAgent starts the agent of an SSH, become or container hop.
func (t *Tree) openAgent(ctx context.Context, n *node) (opened, error) {
	if err := t.takeSlot(ctx, n); err != nil {
		return opened{}, err
	}
	t.progress(n, Dialing)
	start := t.startByTransport
	switch n.edge.role {
	case becomeAgent:
		start = t.startByBecome
	case containerAgent:
		start = t.startInContainer
	}
	link, err := start(ctx, n)
	if err != nil {
		if lost := n.parent.lost(); lost != nil {
			err = lost // the hop before this one is to blame
		}
		return opened{}, err
	}
	return opened{link: link}, nil
}

// lost says why what n has open has ended; nil while it has not.
func (n *node) lost() error {
	if n.link != nil {
		if err := n.link.Err(); err != nil {
			return n.fault(err, fault.AgentDied, "the agent was lost")
		}
		return nil
	}
	select {
	case <-n.transport.Done():
		return n.fault(n.transport.Err(), fault.Unreachable, "the connection was lost")
	default:
		return nil
	}
}

// quoted makes one word of s for any shell of the Bourne family, and for csh as far as s has no "!".
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'" }

// startByTransport starts an agent on an SSH connection. A shell stands between, as in plain Ansible: it leaves its name in "_".
func (t *Tree) startByTransport(ctx context.Context, n *node) (peer, error) {
	cmd := "/bin/sh -c " + quoted(n.stage1())
	proc, err := n.parent.transport.Exec(ctx, []byte(cmd), ExecOptions{Agent: true, MakeRoom: func() { t.makeRoom(n.parent) }})
	if err != nil {
		return nil, n.fault(err, fault.Unreachable, "cannot start the interpreter")
	}
	conn := newProcessConn(proc)
	link, err := t.bootstrap(ctx, n, conn)
	if err != nil {
		_ = conn.Close() // it is closed, or just being closed: the exit code is there afterwards
		return nil, n.fault(explain(withWords(err, conn), conn.code, n.hop.Interpreter), fault.AgentDied, "cannot start the agent")
	}
	return link, nil
}

// withWords adds what a closed process has said on stderr to an error that came before it was heard.
func withWords(err error, conn *processConn) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Stderr != "" {
		return err
	}
	said := *e
	said.Stderr = fault.Clean(conn.Tail())
	return &said
}

// stage1 is the command that starts n's agent, for a shell.
func (n *node) stage1() string {
	args := "-c " + quoted(agent.Stage1()) + " " + quoted(n.opening.run.AgentName)
	if n.hop.Discovery != nil {
		return search(n.hop.Discovery, args)
	}
	return n.hop.Interpreter + " " + args
}

// bootstrap makes a stream on which stage 1 runs, or is about to, into a link, which owns the stream from then on.
func (t *Tree) bootstrap(ctx context.Context, n *node, conn agent.Conn) (peer, error) {
	timed, cancel := context.WithTimeoutCause(ctx, agentTimeout,
		&fault.Error{Kind: fault.TimedOut, Message: "the interpreter did not start in time"})
	defer cancel()
	o := agent.Options{
		Log: t.log.Named("agent").With("context", n.id), Name: n.name(), OnLog: func(level int, text string) { t.logged(n, level, text) },
		Shared: func() bool { return t.hasSiblings(n) },
	}
	if n.hop.Discovery != nil {
		o.OnPreamble = func(text []byte) { t.discovered(n, text) }
	}
	return t.connect(timed, conn, o)
}

// hasSiblings reports whether n is behind an agent, over a line that deserves it, and others there may be sent what n is.
func (t *Tree) hasSiblings(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	above := n.parent
	return above != nil && above.link != nil && above.edge.role != localAgent && (len(above.children) > 1 || len(above.hosts) > 1)
}

// logged hands a LOG frame of n's agent to the contexts that hold n.
func (t *Tree) logged(n *node, level int, text string) {
	t.mu.Lock()
	heard := make([]func(int, string), 0, len(n.logs))
	for _, f := range n.logs {
		heard = append(heard, f)
	}
	t.mu.Unlock()
	for _, f := range heard {
		f(level, text)
	}
}

// processConn is a process on a transport as the Conn of a link. It reads stderr all the time, so that the process never stalls
// on it, and keeps its tail; and it learns the exit code of a process that ended before it was closed.
type processConn struct {
	Process
	drained chan struct{}
	ended   atomic.Bool // stdout did
	closing sync.Once
	closed  error
	code    int // after Close: the exit code, or -1

	mu   sync.Mutex
	tail []byte
}

func newProcessConn(p Process) *processConn {
	c := &processConn{Process: p, drained: make(chan struct{}), code: -1}
	go func() {
		defer close(c.drained)
		_, _ = io.Copy(stderrTail{c}, p.Stderr())
	}()
	return c
}

// stderrTail is the writer of a processConn's tail.
type stderrTail struct{ c *processConn }

func (t stderrTail) Write(p []byte) (int, error) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.c.tail = append(t.c.tail, p...)
	if over := len(t.c.tail) - fault.MaxStderr; over > 0 {
		t.c.tail = append(t.c.tail[:0], t.c.tail[over:]...)
	}
	return len(p), nil
}

// Tail is the last words on stderr, for the link's errors.
func (c *processConn) Tail() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.tail)
}

// Read implements agent.Conn.
func (c *processConn) Read(p []byte) (int, error) {
	n, err := c.Process.Read(p)
	if errors.Is(err, io.EOF) {
		c.ended.Store(true)
	}
	return n, err
}

// Close implements agent.Conn.
func (c *processConn) Close() error {
	c.closing.Do(func() {
		if c.ended.Load() {
			c.exited()
		}
		c.closed = c.Process.Close()
		<-c.drained
	})
	return c.closed
}

// exited learns the exit code of a process whose stdout has ended, and its last words, if they come in time.
func (c *processConn) exited() {
	timer := time.AfterFunc(exitTimeout, func() { _ = c.Process.Close() }) // which ends the wait
	defer timer.Stop()
	if code, err := c.Wait(); err == nil {
		c.code = code
		<-c.drained
	}
}

// explain says better why an agent did not start, by the exit code of its process. One that ended by itself before stage 1 spoke was no
// Python that could run it: nothing was done, and what plain Ansible gets from that interpreter can be had from it.
func explain(err error, code int, interpreter string) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Kind != fault.AgentDied || code < 0 || code >= signalled {
		return err
	}
	said := *e
	said.Kind, said.Cause = fault.InterpreterMissing, nil
	said.Message = "cannot start " + interpreter
	if !missing(code) {
		said.Message = interpreter + " is no Python that can run an agent"
	}
	said.Hint = "set ansible_python_interpreter to a Python of the target"
	return &said
}

// signalled is the least exit code of a process that a signal has ended, as a shell says it.
const signalled = 128

// missing tells by the exit code a command that is not there, or cannot be executed, from one that failed (POSIX).
func missing(code int) bool { return code == 127 || code == 126 }
