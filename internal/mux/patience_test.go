package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/become"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// line is what a tool says after a while, and where; an empty text is its exit.
type line struct {
	after time.Duration
	ch    agent.Channel
	text  string
}

// slowTool is a become tool that says its lines in time, as a spawn stream and as a process. Whatever it is sent it remembers.
type slowTool struct {
	script chan line

	mu     sync.Mutex
	sent   string
	pipes  [3]*io.PipeWriter // stdout, stderr, terminal
	reads  [3]*io.PipeReader
	exited chan struct{}
	dead   context.Context
	kill   context.CancelCauseFunc
}

func newSlowTool(script []line) *slowTool {
	s := &slowTool{script: make(chan line, len(script)), exited: make(chan struct{})}
	s.dead, s.kill = context.WithCancelCause(context.Background())
	for _, l := range script {
		s.script <- l
	}
	return s
}

// next is the next line, in its time.
func (s *slowTool) next(ctx context.Context) (l line, err error) {
	select {
	case l = <-s.script:
	case <-ctx.Done():
		return line{}, context.Cause(ctx)
	}
	select {
	case <-time.After(l.after):
		return l, nil
	case <-ctx.Done():
		return line{}, context.Cause(ctx)
	}
}

// Recv implements spawned.
func (s *slowTool) Recv(ctx context.Context) (agent.Event, error) {
	l, err := s.next(ctx)
	if err != nil {
		return agent.Event{}, err
	}
	if l.text == "" {
		return agent.Event{Channel: agent.Final, Result: &agent.Result{ExitCode: 1}}, nil
	}
	return agent.Event{Channel: l.ch, Data: []byte(l.text)}, nil
}

func (s *slowTool) say(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent += string(p)
}

// Send implements spawned.
func (s *slowTool) Send(_ context.Context, p []byte) error {
	s.say(p)
	return nil
}

// SendTTY implements spawned.
func (s *slowTool) SendTTY(_ context.Context, p []byte) error {
	s.say(p)
	return nil
}

func (*slowTool) CloseSend() error           { return nil }
func (*slowTool) Gone(context.Context) error { return nil }
func (*slowTool) Conn() agent.Conn           { return nil }
func (s *slowTool) Close()                   {}

// slowProcess is a slowTool as a Process with a terminal.
type slowProcess struct{ *slowTool }

// start has the lines come by themselves.
func (s *slowTool) start() slowProcess {
	for i := range s.pipes {
		s.reads[i], s.pipes[i] = io.Pipe()
	}
	go func() {
		defer close(s.exited)
		defer func() {
			for _, p := range s.pipes {
				_ = p.Close()
			}
		}()
		for {
			l, err := s.next(s.dead)
			if err != nil || l.text == "" {
				return
			}
			if _, err := s.pipes[l.ch-1].Write([]byte(l.text)); err != nil {
				return
			}
		}
	}()
	return slowProcess{s}
}

func (p slowProcess) Read(b []byte) (int, error)    { return p.reads[0].Read(b) }
func (p slowProcess) Stderr() io.Reader             { return p.reads[1] }
func (p slowProcess) ReadTTY(b []byte) (int, error) { return p.reads[2].Read(b) }
func (p slowProcess) CloseWrite() error             { return nil }
func (p slowProcess) Write(b []byte) (int, error)   { p.say(b); return len(b), nil }
func (p slowProcess) WriteTTY(b []byte) error       { p.say(b); return nil }

func (p slowProcess) Wait() (int, error) {
	<-p.exited
	return 1, nil
}

func (p slowProcess) Close() error {
	p.kill(errors.New("closed"))
	for _, r := range p.reads {
		_ = r.CloseWithError(errors.New("closed"))
	}
	return nil
}

const patience = 12 * time.Second

// slowSu is su as Ansible's plugin knows it.
func slowSu() *hop.Become {
	return &hop.Become{
		Method: "su", User: "root", PromptPatterns: []string{`(?:Password|Passwort)\s*[:：]`}, Success: []byte(marker),
		WrongPassword: [][]byte{[]byte("Authentication failure")}, Password: hop.NewSecret([]byte("secret")), TimeoutSeconds: uint32(patience.Seconds()),
	}
}

// ways are the two that a dialogue is held in: on a stream of an agent, and with a plain process.
var ways = map[string]func(ctx context.Context, s *slowTool, b *hop.Become) error{
	"stream": func(ctx context.Context, s *slowTool, b *hop.Become) error {
		spec, err := specOf(b)
		if err != nil {
			return err
		}
		_, err = converse(ctx, s, b, become.New(spec), func() {})
		return err
	},
	"process": func(ctx context.Context, s *slowTool, b *hop.Become) error {
		p, err := becomeProcess(ctx, s.start(), b)
		if err == nil {
			err = p.Close()
		}
		return err
	},
}

// TestPatience: a tool may take its time for each thing that it says, and no more.
func TestPatience(t *testing.T) {
	const almost, tooLong = patience - time.Millisecond, patience + time.Millisecond
	lecture := line{time.Second, agent.Stderr, "We trust you have received the usual lecture.\n"}
	for name, c := range map[string]struct {
		script []line
		kind   fault.Kind // 0: it works
		after  time.Duration
		says   string
		sent   bool
	}{
		"at once":                   {[]line{{0, agent.TTY, "Password: "}, {1, agent.Stdout, marker + "\n"}}, 0, 1, "", true},
		"slow to ask":               {[]line{{almost, agent.TTY, "Password: "}, {1, agent.Stdout, marker + "\n"}}, 0, almost + 1, "", true},
		"slow to believe":           {[]line{{time.Second, agent.TTY, "Password: "}, {almost, agent.Stdout, marker + "\n"}}, 0, time.Second + almost, "", true},
		"slow at everything":        {[]line{{almost, agent.Stderr, "\n"}, {almost, agent.TTY, "Password: "}, {almost, agent.Stdout, marker + "\n"}}, 0, 3 * almost, "", true},
		"a lecture before":          {[]line{lecture, {almost, agent.TTY, "Password: "}, {1, agent.Stdout, marker + "\n"}}, 0, time.Second + almost + 1, "", true},
		"does not ask":              {[]line{{almost, agent.Stdout, marker + "\n"}}, 0, almost, "", false},
		"says nothing":              {nil, fault.BecomeTimeout, patience, "", false},
		"too slow to ask":           {[]line{{tooLong, agent.TTY, "Password: "}}, fault.BecomeTimeout, patience, "", false},
		"a prompt that never comes": {[]line{lecture}, fault.BecomeTimeout, time.Second + patience, "the usual lecture", false},
		"a prompt of another kind":  {[]line{{0, agent.TTY, "Verification code: "}}, fault.BecomeTimeout, patience, "Verification code", false},
		"half a prompt":             {[]line{{0, agent.TTY, "Passw"}}, fault.BecomeTimeout, patience, "Passw", false},
		"too slow to believe":       {[]line{{0, agent.TTY, "Password: "}, {tooLong, agent.Stdout, marker + "\n"}}, fault.BecomeTimeout, patience, "Password", true},
		"slow to refuse":            {[]line{{0, agent.TTY, "Password: "}, {almost, agent.Stderr, "su: Authentication failure\n"}}, fault.BecomePasswordWrong, almost, "Authentication failure", true},
		"slow to end":               {[]line{lecture, {almost, agent.Stdout, ""}}, fault.BecomeFailed, time.Second + almost, "the usual lecture", false},
		"a marker without its line": {[]line{{0, agent.Stdout, marker}}, fault.BecomeTimeout, patience, "", false},
	} {
		for way, converse := range ways {
			t.Run(name+", "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tool := newSlowTool(c.script)
					start := time.Now()
					err := converse(t.Context(), tool, slowSu())
					if took := time.Since(start); took != c.after {
						t.Errorf("it took %v, want %v", took, c.after)
					}
					checkRefusal(t, err, c.kind, c.says)
					if want := map[bool]string{true: "secret\n"}[c.sent]; tool.sent != want {
						t.Errorf("it was sent %q", tool.sent)
					}
				})
			})
		}
	}
}

func checkRefusal(t *testing.T, err error, kind fault.Kind, says string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	switch {
	case kind == 0 && err == nil:
	case !ok || e.Kind != kind || !strings.Contains(e.Stderr, says) || strings.Contains(e.Stderr, "secret"):
		t.Errorf("got %v, want kind %d with %q", err, kind, says)
	case kind == fault.BecomeTimeout && e.Message != "Timeout (12s) waiting for privilege escalation prompt":
		t.Errorf("got %q", e.Message)
	}
}

// TestStuckAnywhere: a tool that pauses after any byte is heard as if it had not, and one that stops there is given up in time.
func TestStuckAnywhere(t *testing.T) {
	const asks = "Lecture: no Password is safe.\r\nPassword: "
	for at := range len(asks) + len(marker) + 1 {
		said := asks[:min(at, len(asks))]
		shown := marker[:max(0, at-len(asks))]
		for way, converse := range ways {
			t.Run(fmt.Sprint(at, " ", way), func(t *testing.T) {
				pause := patience - time.Millisecond
				script := []line{{0, agent.TTY, said}, {0, agent.Stdout, shown}, {pause, agent.TTY, asks[len(said):]}, {1, agent.Stdout, marker[len(shown):] + "\n"}}
				for name, c := range map[string]struct {
					script []line
					kind   fault.Kind
					after  time.Duration
				}{
					"pauses": {script, 0, pause + 1},
					"stops":  {script[:2], fault.BecomeTimeout, patience},
				} {
					synctest.Test(t, func(t *testing.T) {
						var lines []line
						var wait time.Duration
						for _, l := range c.script { // nothing is not said
							wait += l.after
							if l.text != "" {
								l.after, wait = wait, 0
								lines = append(lines, l)
							}
						}
						tool := newSlowTool(lines)
						start := time.Now()
						err := converse(t.Context(), tool, slowSu())
						if took := time.Since(start); took != c.after {
							t.Errorf("%s: it took %v, want %v", name, took, c.after)
						}
						checkRefusal(t, err, c.kind, strings.TrimSpace(said[strings.LastIndex(said, "\n")+1:]))
						if sent := strings.Count(tool.sent, "secret\n"); sent > 1 || (sent == 1) != (c.kind == 0 || strings.Contains(said, "Password:")) {
							t.Errorf("%s: it was sent %q", name, tool.sent)
						}
					})
				}
			})
		}
	}
}
