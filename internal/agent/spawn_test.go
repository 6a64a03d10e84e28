package agent_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// relay plays a parent agent: stream 1 is a spawned process whose stdio is the other end of the returned conn.
func relay(t *testing.T, during func(f *agenttest.Fake)) (*agent.Link, net.Conn, chan agent.FrameType) {
	inner, process := net.Pipe()
	last := make(chan agent.FrameType, 1)
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		if during != nil {
			during(f)
		}
		up := make(chan struct{})
		go func() {
			defer close(up)
			buf := make([]byte, 1000)
			for {
				n, err := process.Read(buf)
				if err != nil {
					return
				}
				f.Send(agent.TypeData, id, buf[:n])
			}
		}()
		defer func() { _ = process.Close(); <-up }()
		for {
			switch frame := f.Next(); frame.Type {
			case agent.TypeData:
				if _, err := process.Write(frame.Payload); err != nil {
					return
				}
			case agent.TypeEnd, agent.TypeCancel:
				last <- frame.Type
				return
			}
		}
	})
	return l, inner, last
}

// TestDetachOrKill: a child that became an agent is left to end by itself, one that did not is killed.
func TestDetachOrKill(t *testing.T) {
	for name, c := range map[string]struct {
		script func(*agenttest.Fake)
		want   agent.FrameType
	}{
		"an agent":    {honest, agent.TypeEnd},
		"no agent":    {func(f *agenttest.Fake) { f.Drain() }, agent.TypeCancel},
		"half an one": {func(f *agenttest.Fake) { f.Raw([]byte(agenttest.Magic)); f.ReadSource(); f.Drain() }, agent.TypeCancel},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent, process, last := relay(t, nil)
				agenttest.Script(t, process, c.script)
				s := open(t.Context(), t, parent, agent.Spawn{Argv: argv("sudo")})
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, context.DeadlineExceeded)
				defer cancel()
				child, err := agent.Connect(ctx, s.Conn(), agent.Options{})
				if err == nil {
					synctest.Wait()
					must(t, child.Close())
				} else if fault.KindOf(err) != fault.TimedOut {
					t.Errorf("cannot connect: %v", err)
				}
				if got := <-last; got != c.want {
					t.Errorf("the parent agent was told %v", got)
				}
			})
		})
	}
}

// TestSideWordsNeverStall: stderr and the terminal of a child are consumed while it is a link, and their tail is told when it dies.
func TestSideWordsNeverStall(t *testing.T) {
	ctx := within(t)
	parent := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		window, inFlight := agent.Window, 0
		say := func(typ agent.FrameType, words []byte) {
			for window-inFlight < len(words) {
				inFlight -= f.Credit(&window)
			}
			f.Send(typ, id, words)
			inFlight += len(words)
		}
		for range 20 { // 5 MiB
			say(agent.TypeTTY, bytes.Repeat([]byte("e"), agent.MaxPayload))
			say(agent.TypeErr, bytes.Repeat([]byte("e"), agent.MaxPayload))
		}
		say(agent.TypeErr, []byte("\nsudo: python3: command not found\n"))
		f.Send(agent.TypeEnd, id, nil)
		f.Result(id, agent.Result{ExitCode: 127})
		f.Drain()
	})
	s := open(ctx, t, parent, agent.Spawn{Argv: argv("sudo"), Terminal: agent.ControllingTerminal})
	_, err := agent.Connect(ctx, s.Conn(), agent.Options{})
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Kind != fault.InterpreterMissing || !strings.HasSuffix(e.Stderr, "command not found") || len(e.Stderr) > fault.MaxStderr {
		t.Errorf("got %#v", err)
	}
}

// TestParentLost: a child's link ends with its parent's.
func TestParentLost(t *testing.T) {
	ctx := within(t)
	parent, process, _ := relay(t, nil)
	agenttest.Script(t, process, honest)
	s := open(ctx, t, parent, agent.Spawn{Argv: argv("sudo")})
	child, err := agent.Connect(ctx, s.Conn(), agent.Options{})
	must(t, err)
	must(t, child.Ping(ctx))
	must(t, parent.Close())
	<-child.Done()
	if !errors.Is(child.Err(), agent.ErrClosed) {
		t.Errorf("the child's link ended with %v", child.Err())
	}
	must(t, child.Close())
}
