package agent_test

import (
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

// TestNoise: what stands before the magic, in pieces of any size, and what becomes of it.
func TestNoise(t *testing.T) {
	const hello = "\r\nWelcome to MUX1\r\nMUX\r\nMU"
	for name, c := range map[string]struct {
		noise string
		kind  fault.Kind // Unspecified: the agent starts
		says  string
	}{
		"none":              {"", fault.Unspecified, ""},
		"banner":            {hello, fault.Unspecified, ""},
		"start of magic":    {"MUX\x00\x0a\x0d" + "MUX\x00", fault.Unspecified, ""},
		"64 KiB":            {strings.Repeat("x", 64<<10), fault.Unspecified, ""},
		"more":              {strings.Repeat("x", 64<<10+200), fault.AgentDied, "xxx"},
		"line feeds":        {"MUX\x00\r\n\r\xff\x11\x131\r\n", fault.Unsupported, "MUX"},
		"no flow control":   {"MUX\x00\n\r\xff1\r\n", fault.Unsupported, ""},
		"7 bits":            {"MUX\x00\n\r\x7f\x11\x131\r\n", fault.Unsupported, ""},
		"no NUL":            {"MUX\n\r\xff\x11\x131\r\n", fault.Unsupported, ""},
		"latin 1 to UTF-8":  {"MUX\x00\n\r\u00ff\x11\x131\r\n", fault.Unsupported, ""},
		"interpreter":       {"sh: 1: python3: not found\n", fault.InterpreterMissing, "python3: not found"},
		"interpreter, path": {"bash: /opt/py: No such file or directory\n", fault.InterpreterMissing, "/opt/py"},
		"something else":    {"\x1b[31mThis account is not available.\n", fault.AgentDied, "This account is not available."},
	} {
		for pieces, size := range map[string]int{"whole": 1 << 20, "bytes": 1} {
			t.Run(name+"/"+pieces, func(t *testing.T) {
				ours, theirs := net.Pipe()
				agenttest.Script(t, theirs, func(f *agenttest.Fake) {
					text := c.noise
					if c.kind == fault.Unspecified {
						text += agenttest.Magic
					}
					for len(text) > 0 {
						n := min(size, len(text))
						f.Raw([]byte(text[:n]))
						text = text[n:]
					}
					if c.kind == fault.Unspecified {
						f.ReadSource()
						f.Send(agent.TypeHello, 0, agent.EncodeHello(agenttest.GoodHello()))
						f.Drain()
					}
				})
				l, err := agent.Connect(t.Context(), ours, agent.Options{})
				if fault.KindOf(err) != c.kind {
					t.Fatalf("got %v", err)
				}
				if err == nil {
					defer func() { must(t, l.Close()) }()
					if _, err := l.Hello(within(t)); err != nil {
						t.Error(err)
					}
					return
				}
				e, ok := errors.AsType[*fault.Error](err)
				if !ok || !strings.Contains(e.Stderr, c.says) || strings.Contains(e.Stderr, "\x1b") || len(e.Stderr) > fault.MaxStderr {
					t.Errorf("stderr is %q", e.Stderr)
				}
				if _, err := ours.Write([]byte("x")); err == nil {
					t.Error("the connection is still open")
				}
			})
		}
	}
}

// TestRequestsBeforeHello: length and source come in one piece, and frames may be queued before HELLO.
func TestRequestsBeforeHello(t *testing.T) {
	ctx := within(t)
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Raw([]byte(agenttest.Magic))
		if string(f.ReadSource()) != string(agent.Source()) {
			t.Error("the source is not what comes first")
		}
		id, r := f.Open() // before HELLO
		if g, ok := r.(agent.Get); !ok || id != 1 || string(g.Source) != "/x" {
			t.Errorf("OPEN of %d: %+v", id, r)
		}
		f.Send(agent.TypeHello, 0, agent.EncodeHello(agenttest.GoodHello()))
		f.Result(id, agent.Result{})
		f.Drain()
	})
	if g := gather(ctx, t, open(ctx, t, l, agent.Get{Source: []byte("/x")})); g.result == nil {
		t.Error("no result")
	}
}

func TestConnectIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		cause error
		kind  fault.Kind
	}{
		"deadline":        {context.DeadlineExceeded, fault.TimedOut},
		"cancelled":       {errors.New("the run ended"), fault.Cancelled},
		"with a kind":     {&fault.Error{Kind: fault.BecomeTimeout, Message: "sudo said nothing"}, fault.BecomeTimeout},
		"with no cause":   {nil, fault.Cancelled},
		"wrapped timeout": {errors.Join(errors.New("x"), context.DeadlineExceeded), fault.TimedOut},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				ctx, cancel := context.WithCancelCause(t.Context())
				agenttest.Script(t, theirs, func(f *agenttest.Fake) {
					f.Raw([]byte("Password: "))
					f.Drain()
				})
				go func() {
					synctest.Wait()
					cancel(c.cause)
				}()
				_, err := agent.Connect(ctx, ours, agent.Options{})
				if fault.KindOf(err) != c.kind {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// TestHelloThatNeverComes: a link without HELLO is waited for as long as the caller likes.
func TestHelloThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
			f.Raw([]byte(agenttest.Magic))
			f.Drain()
		})
		ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, context.DeadlineExceeded)
		defer cancel()
		if _, err := l.Hello(ctx); fault.KindOf(err) != fault.TimedOut {
			t.Errorf("got %v", err)
		}
		if err := l.Ping(ctx); fault.KindOf(err) != fault.TimedOut {
			t.Errorf("got %v", err)
		}
		must(t, l.Close())
		if _, err := l.Hello(t.Context()); !errors.Is(err, agent.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
