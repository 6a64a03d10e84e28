package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// distance is how long a byte travels in one direction. In a bubble the clock moves only while everybody waits, so that the time
// that passes is exactly the number of times that one side waited for the other.
const distance = time.Second

// farConn is one end of a connection over a distance.
func farConn(t *testing.T) (near, far net.Conn) {
	near, nearRelay := net.Pipe()
	farRelay, far := net.Pipe()
	carry := func(to, from net.Conn) {
		type parcel struct {
			at time.Time
			p  []byte
		}
		road := make(chan parcel, 1000)
		go func() {
			defer close(road)
			for {
				buf := make([]byte, 64<<10)
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				road <- parcel{time.Now().Add(distance), buf[:n]}
			}
		}()
		go func() {
			defer func() { _ = to.Close() }()
			for p := range road {
				time.Sleep(time.Until(p.at))
				if _, err := to.Write(p.p); err != nil {
					return
				}
			}
		}()
	}
	carry(farRelay, nearRelay)
	carry(nearRelay, farRelay)
	t.Cleanup(func() {
		for _, c := range []net.Conn{near, nearRelay, farRelay, far} {
			_ = c.Close()
		}
	})
	return near, far
}

// farDialer reaches one scripted target over a distance.
type farDialer struct {
	t      *testing.T
	script func(*agenttest.Fake)
}

// DialThrough implements Dialer.
func (d farDialer) DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, _ *Intermediary) (Transport, error) {
	return d.Dial(ctx, h, run)
}

func (d farDialer) Dial(context.Context, *hop.SSH, hop.Run) (Transport, error) {
	return &farTransport{farDialer: d, fakeTransport: fakeTransport{world: newWorld(), done: make(chan struct{})}}, nil
}

type farTransport struct {
	farDialer
	fakeTransport
}

// Exec has the command travel to the target; it does not wait for the answer, which is stage 1's magic.
func (f *farTransport) Exec(context.Context, []byte, ExecOptions) (Process, error) {
	near, far := farConn(f.t)
	agenttest.Script(f.t, far, func(a *agenttest.Fake) {
		time.Sleep(distance)
		f.script(a)
	})
	return farProcess{near}, nil
}

type farProcess struct{ net.Conn }

func (farProcess) Stderr() io.Reader  { return strings.NewReader("") }
func (farProcess) CloseWrite() error  { return nil }
func (farProcess) Wait() (int, error) { return 0, errors.New("it ended with its connection") }

// answerCommand is an agent that does one command at once.
func answerCommand(a *agenttest.Fake) {
	id, _ := a.Open()
	for a.Next().Type != agent.TypeEnd { // its stdin
	}
	a.Send(agent.TypeEnd, id, nil)
	a.Result(id, agent.Result{})
	a.Drain()
}

// answerSpawn is an agent that spawns one tool, which needs no password and at once is an agent that does one command.
func answerSpawn(t *testing.T) func(a *agenttest.Fake) {
	return func(a *agenttest.Fake) {
		a.Boot()
		id, _ := a.Open()
		inner, relay := net.Pipe()
		agenttest.Script(t, inner, func(child *agenttest.Fake) {
			child.Boot()
			answerCommand(child)
		})
		go func() {
			a.Send(agent.TypeData, id, []byte(marker+"\n"))
			buf := make([]byte, 4096)
			for {
				n, err := relay.Read(buf)
				if err != nil {
					return
				}
				a.Send(agent.TypeData, id, buf[:n])
			}
		}()
		defer func() { _ = relay.Close() }()
		for {
			if f := a.Next(); f.Type == agent.TypeData {
				if _, err := relay.Write(f.Payload); err != nil {
					return
				}
			}
		}
	}
}

// TestRoundTrips counts how often the daemon waits for the target, from an open SSH connection to the first command's result.
func TestRoundTrips(t *testing.T) {
	for name, c := range map[string]struct {
		path   hop.Path
		script func(t *testing.T) func(*agenttest.Fake)
		want   time.Duration
	}{
		"ssh: the interpreter's start; the agent with the command": {
			sshPath, func(*testing.T) func(*agenttest.Fake) {
				return func(a *agenttest.Fake) {
					a.Boot()
					answerCommand(a)
				}
			}, 2,
		},
		"sudo: the interpreter's start; the agent with sudo; its agent with the command": {sudoPath, answerSpawn, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tree := New(Options{Dialer: farDialer{t, c.script(t)}})
				t.Cleanup(func() { _ = tree.Close() })
				start := time.Now()
				ctx := acquire(t, tree, run("r1"), "h1", c.path...)
				defer ctx.Release()
				output(t, ctx, "true")
				if took := time.Since(start) / (2 * distance); took != c.want {
					t.Errorf("%d round trips, want %d", took, c.want)
				}
			})
		})
	}
}
