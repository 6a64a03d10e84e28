package mux

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// started has a real agent start a shell's script for a connection.
func started(t *testing.T, script string) (*Context, *Program) {
	t.Helper()
	tree, python := realTree(t, "/bin/sh")
	near := acquire(t, tree, run("r1"), "near", sshHop("near", python))
	t.Cleanup(near.Release)
	p, err := near.node.intermediary().Start(t.Context(), []string{"/bin/sh", "-c", script})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return near, p
}

// TestRealStart: a program has pipes and a terminal to ask on, whose silence can be noticed.
func TestRealStart(t *testing.T) {
	_, p := started(t, `stty -echo </dev/tty; printf 'password: ' >/dev/tty; IFS= read -r word </dev/tty; echo "got $word" >&2
		head -c 200000 /dev/zero | tr '\0' x; cat; test -t 0 || exit 3`)
	asked := make([]byte, len("password: "))
	if _, err := io.ReadFull(p.Terminal, asked); err != nil || string(asked) != "password: " {
		t.Fatalf("%q, %v", asked, err)
	}
	if err := p.Terminal.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Terminal.Read(asked); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a terminal that says nothing gives %v", err)
	}
	_, err := io.WriteString(p.Terminal, "secret\n")
	err = errors.Join(err, p.Terminal.SetReadDeadline(time.Time{}))
	_, typed := io.WriteString(p.Stdin, "the end")
	if err := errors.Join(err, typed, p.Stdin.Close()); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 2)
	for _, from := range []io.Reader{p.Stderr, p.Terminal} {
		go func() {
			text, _ := io.ReadAll(from)
			said <- strings.TrimSpace(string(text))
		}()
	}
	out, err := io.ReadAll(p.Stdout)
	if err != nil || string(out) != strings.Repeat("x", 200_000)+"the end" {
		t.Errorf("%d bytes on stdout, %v", len(out), err)
	}
	if all := <-said + <-said; all != "got secret" {
		t.Errorf("%q on stderr and the terminal", all)
	}
	if code, err := p.Wait(); code != 3 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
}

// TestRealStartMissing: what is not there says so as a shell would.
func TestRealStartMissing(t *testing.T) {
	_, p := started(t, "exec no-such-program")
	go func() { _, _ = io.Copy(io.Discard, p.Terminal) }()
	text, _ := io.ReadAll(p.Stderr)
	if code, err := p.Wait(); code != 127 || err != nil || !strings.Contains(string(text), "no-such-program") {
		t.Errorf("got %d, %v: %q", code, err, text)
	}
}

// TestRealKill: nobody has to read what a program says that is not wanted any more.
func TestRealKill(t *testing.T) {
	_, p := started(t, "echo $$; cat /dev/zero")
	line := make([]byte, 16)
	n, err := p.Stdout.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.SplitN(string(line[:n]), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if code, err := p.Wait(); code != -1 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	for range time.Tick(time.Millisecond) {
		if syscall.Kill(pid, 0) != nil { // the agent has waited for it
			break
		}
	}
}

// TestRealIntermediaryLost: it is at its own hop that the connection ends.
func TestRealIntermediaryLost(t *testing.T) {
	near, p := started(t, "echo here; exec cat")
	if _, err := io.ReadFull(p.Stdout, make([]byte, len("here\n"))); err != nil {
		t.Fatal(err)
	}
	hello, err := near.link.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(hello.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, err = p.Stdout.Read(make([]byte, 1))
	wantFault(t, err, fault.AgentDied, 0, "ssh near")
	code, err := p.Wait()
	wantFault(t, err, fault.AgentDied, 0, "ssh near")
	if code != -1 {
		t.Errorf("code %d", code)
	}
	if _, err := near.node.intermediary().Start(t.Context(), []string{"true"}); fault.KindOf(err) != fault.AgentDied {
		t.Errorf("another one: %v", err)
	}
}

// loginDialer is a shellDialer where each process is a login of its own.
type loginDialer struct{ shellDialer }

type loginTransport struct{ Transport }

// Shared implements Transport.
func (loginTransport) Shared() bool { return false }

func (d loginDialer) Dial(ctx context.Context, h *hop.SSH, run hop.Run) (Transport, error) {
	tr, err := d.shellDialer.Dial(ctx, h, run)
	return loginTransport{tr}, err
}

// TestNoFurtherLogin: where a process is a login, the agent that is there does what it can.
func TestNoFurtherLogin(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	tree.dialer = loginDialer{shellDialer{"/bin/sh"}}
	bare := acquire(t, tree, run("r1"), "h", sshHop("h", ""))
	if !bare.CanExec() || plainOutput(t, bare, "echo out") != "out|" {
		t.Error("without an agent there is no way")
	}
	bare.Release()
	c := acquire(t, tree, run("r1"), "h", sshHop("h", python))
	defer c.Release()
	if c.CanExec() {
		t.Error("an agent's account logs in for a command")
	}
	s, err := c.Open(t.Context(), &agent.Command{Argv: [][]byte{[]byte("/usr/bin/tty")}, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if ev, err := s.Recv(t.Context()); err != nil || !strings.HasPrefix(string(ev.Data), "/dev/") {
		t.Errorf("its terminal is %q, %v", ev.Data, err)
	}
}
