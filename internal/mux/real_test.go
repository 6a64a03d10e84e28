package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// shellDialer is a Dialer whose transports run commands as sshd would, on this machine.
type shellDialer struct{ shell string }

// DialThrough implements Dialer.
func (d shellDialer) DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, _ *Intermediary) (Transport, error) {
	return d.Dial(ctx, h, run)
}

func (d shellDialer) Dial(context.Context, *hop.SSH, hop.Run) (Transport, error) {
	return &shellTransport{shell: d.shell, done: make(chan struct{})}, nil
}

type shellTransport struct {
	shell string
	done  chan struct{}
	once  sync.Once
}

func (s *shellTransport) Done() <-chan struct{} { return s.done }
func (s *shellTransport) Err() error            { return errors.New("closed") }
func (s *shellTransport) Notes() []Note         { return nil }
func (s *shellTransport) Shared() bool          { return true }

func (s *shellTransport) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (s *shellTransport) Exec(_ context.Context, cmd []byte, _ ExecOptions) (Process, error) {
	c := exec.Command(s.shell, "-c", string(cmd))
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	theirIn, in, err := os.Pipe() // of our own: Cmd's is closed with the process, whatever its user is doing
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	said, theirSaid, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.Stdin, c.Stdout, c.Stderr = theirIn, theirOut, theirSaid
	if err := c.Start(); err != nil {
		return nil, err
	}
	_, _, _ = theirIn.Close(), theirOut.Close(), theirSaid.Close()
	p := &shellProcess{cmd: c, WriteCloser: in, out: out, said: said, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		_ = c.Wait()
	}()
	return p, nil
}

type shellProcess struct {
	cmd *exec.Cmd
	io.WriteCloser
	out, said *os.File
	exited    chan struct{}
}

func (p *shellProcess) Read(b []byte) (int, error) { return p.out.Read(b) }
func (p *shellProcess) Stderr() io.Reader          { return p.said }
func (p *shellProcess) CloseWrite() error          { return p.WriteCloser.Close() }

func (p *shellProcess) Wait() (int, error) {
	<-p.exited
	return p.cmd.ProcessState.ExitCode(), nil
}

func (p *shellProcess) Close() error {
	_ = p.WriteCloser.Close()
	_ = p.cmd.Process.Signal(syscall.SIGHUP) // as sshd does
	<-p.exited
	return errors.Join(p.out.Close(), p.said.Close())
}

// realTree is a tree over real processes with a real agent's interpreter.
func realTree(t *testing.T, shell string) (*Tree, string) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skipf("no python3 to run an agent in: %v", err)
	}
	tree := New(Options{Dialer: shellDialer{shell}})
	t.Cleanup(func() { _ = tree.Close() })
	return tree, python
}

// fakeSudo is a become hop through testdata/fakesudo.
func fakeSudo(t *testing.T, mode, password, python string) hop.Hop {
	t.Helper()
	script, err := filepath.Abs("testdata/fakesudo")
	if err != nil {
		t.Fatal(err)
	}
	h := becomeHop("root", python)
	h.Account = key("fakesudo " + mode + password)
	b := h.Become
	b.Prompt, b.PromptPatterns = []byte("[fakesudo] password:"), []string{`mot de passe\s*[:：]`}
	if password == "" {
		b.Prompt, b.PromptPatterns = nil, nil
	}
	b.Password = hop.NewSecret([]byte(password))
	b.WrongPassword = [][]byte{[]byte("Sorry, try again.")}
	if mode == "silent" {
		b.WrongPassword = nil
	}
	b.MissingPassword = [][]byte{[]byte("fakesudo: a password is required")}
	b.TimeoutSeconds = 30
	start := fmt.Sprintf("%s -c '%s' 'mitogen-mux: test'", python, agent.Stage1())
	for _, word := range []string{script, mode, "/bin/sh", "-c", "echo " + marker + " ; " + start} {
		if len(b.Argv) == 2 && string(b.Argv[0]) == "sudo" {
			b.Argv = nil
		}
		b.Argv = append(b.Argv, []byte(word))
	}
	return h
}

// output runs a command on the context's agent.
func output(t *testing.T, c *Context, command string) string {
	t.Helper()
	s, err := c.Open(t.Context(), &agent.Command{Argv: [][]byte{[]byte("/bin/sh"), []byte("-c"), []byte(command)}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for {
		ev, err := s.Recv(t.Context())
		if errors.Is(err, io.EOF) {
			return strings.TrimSpace(out.String())
		}
		if err != nil {
			t.Fatal(err)
		}
		if ev.Channel == agent.Stdout || ev.Channel == agent.Stderr {
			out.Write(ev.Data)
		}
	}
}

func TestRealBecome(t *testing.T) {
	for _, c := range []struct {
		mode, password string
		kind           fault.Kind // 0: it works
		says           string     // in the error's Stderr or message
	}{
		{"none", "", 0, ""},
		{"none", "secret", 0, ""},
		{"stdin", "secret", 0, ""},
		{"tty", "secret", 0, ""},
		{"lecture", "secret", 0, ""},
		{"translated", "secret", 0, ""},
		{"slow", "secret", 0, ""},
		{"chatty", "secret", 0, ""},
		{"stdin", "guess", fault.BecomePasswordWrong, "Sorry, try again."},
		{"tty", "guess", fault.BecomePasswordWrong, "Sorry, try again."},
		{"silent", "guess", fault.BecomePasswordWrong, "Incorrect sudo password"},
		{"missing", "", fault.BecomePasswordRequired, "fakesudo: a password is required"},
		{"default", "", fault.BecomePasswordRequired, "Mot de passe de bob"},
		{"refuse", "secret", fault.BecomeFailed, "bob is not in the sudoers file."},
		{"nomarker", "secret", fault.BecomeFailed, "(exit code 0)"},
		{"echoed", "secret", fault.BecomeFailed, "(exit code 3)"},
		{"noshell", "secret", fault.InterpreterMissing, "This account is currently not available."},
		{"nopython", "secret", fault.InterpreterMissing, "no-such-python"},
	} {
		t.Run(c.mode+"/"+c.password, func(t *testing.T) {
			tree, python := realTree(t, "/bin/sh")
			path := hop.Path{sshHop("here", python), fakeSudo(t, c.mode, c.password, python)}
			for range 2 { // a failure is not kept: the tool is asked afresh
				ctx, err := tree.Acquire(t.Context(), run("r1"), "here", path)
				if c.kind == 0 {
					if err != nil {
						t.Fatalf("%v: %q", err, fault.Clean([]byte(errStderr(err))))
					}
					if got := output(t, ctx, "echo $BECAME"); got != c.mode {
						t.Errorf("became %q", got)
					}
					ctx.Release()
					continue
				}
				e := wantFault(t, err, c.kind, 1, "sudo root")
				if !strings.Contains(e.Stderr+e.Message, c.says) {
					t.Errorf("got %q and %q, want %q in it", e.Message, e.Stderr, c.says)
				}
				if strings.Contains(fmt.Sprintf("%+v %v", e, err), "secret") {
					t.Errorf("the password is in the error: %+v", e)
				}
			}
			if nodes := tree.Nodes(); len(nodes) < 2 {
				t.Errorf("the accounts before it went with it: %+v", nodes)
			}
		})
	}
}

func errStderr(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.Stderr
	}
	return ""
}

// TestRealBecomeTimeout is about a dialogue that leads nowhere: the tool's words are in the error.
func TestRealBecomeTimeout(t *testing.T) {
	for mode, says := range map[string]string{"never": "", "otp": "Verification code:"} {
		t.Run(mode, func(t *testing.T) {
			tree, python := realTree(t, "/bin/sh")
			sudo := fakeSudo(t, mode, "secret", python)
			sudo.Become.TimeoutSeconds = 1
			_, err := tree.Acquire(t.Context(), run("r1"), "here", hop.Path{sshHop("here", python), sudo})
			e := wantFault(t, err, fault.BecomeTimeout, 1, "sudo root")
			if !strings.Contains(e.Stderr, says) {
				t.Errorf("the tool's words are lost: %q", e.Stderr)
			}
		})
	}
}

func TestRealBecomeToolMissing(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	sudo := fakeSudo(t, "none", "secret", python)
	sudo.Become.Argv[0] = []byte("/nonexistent/sudo")
	_, err := tree.Acquire(t.Context(), run("r1"), "here", hop.Path{sshHop("here", python), sudo})
	if e := wantFault(t, err, fault.BecomeFailed, 1, "sudo root"); e.Hint != toolHint {
		t.Errorf("hint: %q, message %q, stderr %q", e.Hint, e.Message, e.Stderr)
	}
	sudo = fakeSudo(t, "none", "secret", python)
	sudo.Become.Argv = [][]byte{[]byte("/bin/sh"), []byte("-c"), []byte("no-such-tool -u root true")}
	sudo.Account = key("missing by shell")
	_, err = tree.Acquire(t.Context(), run("r1"), "here", hop.Path{sshHop("here", python), sudo})
	if e := wantFault(t, err, fault.BecomeFailed, 1, "sudo root"); e.Hint != toolHint || !strings.Contains(e.Stderr, "no-such-tool") {
		t.Errorf("hint: %q, message %q, stderr %q", e.Hint, e.Message, e.Stderr)
	}
}

// TestRealBecomeDepth goes from account to account to account.
func TestRealBecomeDepth(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	path := hop.Path{
		sshHop("here", python), fakeSudo(t, "stdin", "secret", python), fakeSudo(t, "tty", "secret", python),
		fakeSudo(t, "none", "", python), fakeSudo(t, "lecture", "secret", python),
	}
	r := run("r1")
	r.MaxInterp = len(path)
	c := acquire(t, tree, r, "here", path...)
	defer c.Release()
	if got := output(t, c, "echo $BECAME"); got != "lecture" {
		t.Errorf("became %q", got)
	}
}

func TestRealInterpreter(t *testing.T) {
	for name, c := range map[string]struct {
		shell, interpreter string
		kind               fault.Kind
		says               string
	}{
		"missing":     {"/bin/sh", "/nonexistent/python3", fault.InterpreterMissing, "not found"},
		"a directory": {"/bin/sh", "/etc", fault.InterpreterMissing, ""},
		"no python":   {"/bin/sh", "/bin/false", fault.InterpreterMissing, ""},
		"broken":      {"/bin/sh", "/bin/sh", fault.InterpreterMissing, ""},
		"nologin":     {"testdata/nologin", "python3", fault.InterpreterMissing, "This account is currently not available."},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := realTree(t, c.shell)
			_, err := tree.Acquire(t.Context(), run("r1"), "here", hop.Path{sshHop("here", c.interpreter)})
			e := wantFault(t, err, c.kind, 0, "ssh here")
			if !strings.Contains(e.Stderr, c.says) {
				t.Errorf("got %q, want %q in it", e.Stderr, c.says)
			}
			plain := acquire(t, tree, run("r1"), "here", sshHop("here", "")) // the connection is there
			defer plain.Release()
			if got := plainOutput(t, plain, "echo out"); c.shell == "/bin/sh" && got != "out|" {
				t.Errorf("a plain command gave %q", got)
			}
		})
	}
}

func TestRealNoisyLoginShell(t *testing.T) {
	tree, python := realTree(t, "testdata/noisy")
	c := acquire(t, tree, run("r1"), "here", sshHop("here", python))
	defer c.Release()
	if got := output(t, c, "echo fine"); got != "fine" {
		t.Errorf("got %q", got)
	}
}

// plainOutput runs a command without an agent: "stdout|stderr".
func plainOutput(t *testing.T, c *Context, command string) string {
	t.Helper()
	p, err := c.Exec(t.Context(), []byte(command), ExecOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	return drain(t, p)
}

func drain(t *testing.T, p Process) string {
	t.Helper()
	said := make(chan string)
	go func() {
		b, _ := io.ReadAll(p.Stderr())
		said <- string(b)
	}()
	out, err := io.ReadAll(p)
	if err != nil {
		t.Error(err)
	}
	words := <-said
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(out)) + "|" + strings.TrimSpace(words)
}

// TestRealSudo runs the machine's own sudo, as root and thus without a password.
func TestRealSudo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sudo runs without a password for root only")
	}
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		t.Skipf("no sudo: %v", err)
	}
	const python = "/usr/bin/python3" // an account without rights must be able to run it
	if _, err := os.Stat(python); err != nil {
		t.Skipf("no python3 for every account: %v", err)
	}
	if out, err := exec.Command(sudo, "-n", "-u", "nobody", python, "-c", "").CombinedOutput(); err != nil {
		t.Skipf("sudo does not work here: %v %s", err, out)
	}
	tree, _ := realTree(t, "/bin/sh")
	h := becomeHop("nobody", python)
	h.Become.Argv = nil
	for _, word := range []string{
		sudo, "-H", "-S", "-n", "-u", "nobody", "/bin/sh", "-c",
		"echo " + marker + " ; " + python + " -c '" + agent.Stage1() + "' name",
	} {
		h.Become.Argv = append(h.Become.Argv, []byte(word))
	}
	c := acquire(t, tree, run("r1"), "here", sshHop("here", python), h)
	defer c.Release()
	if got := output(t, c, "id -un"); got != "nobody" {
		t.Errorf("became %q", got)
	}
}

func TestRealLook(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	path := hop.Path{sshHop("here", python), fakeSudo(t, "none", "", python)}
	c, err := tree.Acquire(t.Context(), run("r1"), "here", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	output(t, c, "true")
	stream, err := c.Open(t.Context(), &agent.Command{Argv: [][]byte{[]byte("/bin/sleep"), []byte("1000")}})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var answers []string
	for len(answers) < 2 || !strings.Contains(answers[1], "(sleep)") {
		answers = tree.Look(t.Context())
	}
	if !strings.HasPrefix(answers[0], "ssh here:\n") || !strings.HasPrefix(answers[1], "ssh here, sudo root:\njob of process ") {
		t.Errorf("%q", answers)
	}
	// One that is stuck keeps nobody waiting for long.
	hello, err := c.link.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(hello.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answers = tree.Look(t.Context())
	_ = syscall.Kill(hello.PID, syscall.SIGCONT)
	if len(answers) != 2 || !strings.Contains(answers[1], "it does not answer") {
		t.Errorf("%q", answers)
	}
}
