package mux

import (
	"context"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// intermediary is n's account as the place that another connection goes on from.
func (n *node) intermediary() *Intermediary {
	return &Intermediary{Name: n.name(), Forward: n.forward, Start: n.start}
}

// forward opens a TCP connection from n's account: a process of its agent passes the bytes on. It is a Forward.
func (n *node) forward(ctx context.Context, host string, port int) (net.Conn, error) {
	hello, err := n.link.Hello(ctx)
	if err != nil {
		return nil, err
	}
	argv := [][]byte{[]byte(hello.Executable), []byte("-c"), []byte(agent.Relay()), []byte(host), []byte(strconv.Itoa(port))}
	stream, err := n.link.Spawn(ctx, &agent.Spawn{Argv: argv, Terminal: agent.NoTerminal})
	if err != nil {
		return nil, err
	}
	conn := &forwarded{stream.Conn(), n}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var connected [1]byte
	if _, err := io.ReadFull(conn, connected[:]); err != nil {
		tail := conn.words()
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &fault.Error{
			Kind: fault.Unreachable, Message: "ssh: connect to host " + host + " port " + strconv.Itoa(port) + " from " + n.name() + " failed",
			Stderr: tail, Hint: "check the address and the port as seen from there",
		}
	}
	return conn, nil
}

// forwarded is a connection that an agent's account has made. It needs no deadlines, as those who wait on it close it.
type forwarded struct {
	agent.Conn
	by *node
}

// Read implements net.Conn.
func (f *forwarded) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	return n, f.by.blame(err)
}

// Write implements net.Conn.
func (f *forwarded) Write(p []byte) (int, error) {
	n, err := f.Conn.Write(p)
	return n, f.by.blame(err)
}

// words is what the far side had to say besides.
func (f *forwarded) words() string {
	if t, ok := f.Conn.(interface{ Tail() []byte }); ok {
		return fault.Clean(t.Tail())
	}
	return ""
}

// LocalAddr and RemoteAddr implement net.Conn: the far side alone knows them.
func (*forwarded) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (*forwarded) RemoteAddr() net.Addr { return &net.TCPAddr{} }

func (*forwarded) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*forwarded) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*forwarded) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// start has n's agent run a program. It is a Start.
func (n *node) start(ctx context.Context, argv []string) (*Program, error) {
	spawn := &agent.Spawn{Terminal: agent.ControllingTerminal}
	for _, word := range argv {
		spawn.Argv = append(spawn.Argv, []byte(word))
	}
	stream, err := n.link.Spawn(ctx, spawn)
	if err != nil {
		return nil, n.blame(err)
	}
	p := newStreamProcess(stream, n)
	return &Program{
		Stdin: programInput{p}, Stdout: p.stdout, Stderr: p.stderr, Terminal: programTerminal{p.tty, p},
		Wait: p.exit, Kill: func() { _ = p.Close() },
	}, nil
}

// exit is a Program's Wait.
func (p *streamProcess) exit() (int, error) {
	code, err := p.Wait()
	switch {
	case err == nil:
		return code, nil
	case p.ctx.Err() != nil: // it was killed
		return -1, nil
	default:
		return -1, err
	}
}

// programInput is a Program's Stdin.
type programInput struct{ p *streamProcess }

func (i programInput) Write(b []byte) (int, error) { return i.p.Write(b) }
func (i programInput) Close() error                { return i.p.CloseWrite() }

// programTerminal is a Program's Terminal.
type programTerminal struct {
	Output
	p *streamProcess
}

func (t programTerminal) Write(b []byte) (int, error) {
	if err := t.p.WriteTTY(b); err != nil {
		return 0, err
	}
	return len(b), nil
}
