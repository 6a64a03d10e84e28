package mux

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// attachReal starts a local agent, as a run's own process does, and hands its connection to the tree.
func attachReal(t *testing.T, tree *Tree, python string, token []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mux") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", agent.Stage1Local(), "mitogen-mux: test", socket, hexOf(token))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		_ = l.Close() // an agent that does not come must not be waited for
	}()
	t.Cleanup(func() {
		_ = tree.Close()
		<-ended
	})
	conn, err := l.Accept()
	if err != nil {
		<-ended
		t.Fatalf("the agent did not come: %v: %s", err, said.String())
	}
	if err := tree.AttachLocal(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
}

// plainSudo is a command line with its become wrapper, as the core's become plugin builds it.
func plainSudo(t *testing.T, mode, command string) []byte {
	t.Helper()
	script, err := filepath.Abs("testdata/fakesudo")
	if err != nil {
		t.Fatal(err)
	}
	return []byte(script + " " + mode + " /bin/sh -c 'echo " + marker + " ; " + command + "'")
}

// plainWays are the ways to a become account without an agent.
func plainWays(t *testing.T, f func(t *testing.T, open func(t *testing.T, become hop.Hop) *Context)) {
	t.Run("ssh", func(t *testing.T) {
		tree, _ := realTree(t, "/bin/sh")
		f(t, func(t *testing.T, become hop.Hop) *Context {
			return acquire(t, tree, run("r1"), "here", sshHop("here", ""), become)
		})
	})
	t.Run("local", func(t *testing.T) {
		tree, python := realTree(t, "/bin/sh")
		attachReal(t, tree, python, wanted(t, tree, run("r1"), localHop()))
		f(t, func(t *testing.T, become hop.Hop) *Context {
			return acquire(t, tree, run("r1"), "here", localHop(), become)
		})
	})
}

func TestPlainBecome(t *testing.T) {
	plainWays(t, func(t *testing.T, open func(*testing.T, hop.Hop) *Context) {
		for _, c := range []struct {
			mode, password string
			kind           fault.Kind
			says           string
		}{
			{"none", "", 0, "out none in|err"},
			{"stdin", "secret", 0, "out stdin in|err"},
			{"chatty", "secret", 0, "[fakesudo] password:\nSorry, try again.\nout chatty in|err"},
			{"stdin", "guess", fault.BecomePasswordWrong, "Sorry, try again."},
			{"missing", "", fault.BecomePasswordRequired, "a password is required"},
			{"refuse", "secret", fault.BecomeFailed, "not in the sudoers"},
			{"nomarker", "secret", fault.BecomeFailed, ""},
		} {
			t.Run(c.mode+"/"+c.password, func(t *testing.T) {
				sudo := fakeSudo(t, c.mode, c.password, "")
				ctx := open(t, sudo)
				defer ctx.Release()
				if ctx.HasAgent() || !ctx.CanExec() {
					t.Error("it has an agent")
				}
				p, err := ctx.Exec(t.Context(), plainSudo(t, c.mode, `read word; echo "out $BECAME $word"; echo err >&2; exit 7`), ExecOptions{})
				if c.kind != 0 {
					if e := wantFault(t, err, c.kind, 1, "sudo root"); !strings.Contains(e.Stderr, c.says) {
						t.Errorf("got %q", e.Stderr)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = p.Close() }()
				if _, err := p.Write([]byte("in\n")); err != nil {
					t.Error(err)
				}
				if err := p.CloseWrite(); err != nil {
					t.Error(err)
				}
				if got := drain(t, p); got != c.says {
					t.Errorf("got %q, want %q", got, c.says)
				}
				if code, err := p.Wait(); code != 7 || err != nil {
					t.Errorf("exit code %d, %v", code, err)
				}
			})
		}
	})
}

func TestPlainBecomeTimeoutAndCancel(t *testing.T) {
	plainWays(t, func(t *testing.T, open func(*testing.T, hop.Hop) *Context) {
		sudo := fakeSudo(t, "never", "secret", "")
		sudo.Become.TimeoutSeconds = 1
		c := open(t, sudo)
		defer c.Release()
		_, err := c.Exec(t.Context(), plainSudo(t, "never", "true"), ExecOptions{})
		wantFault(t, err, fault.BecomeTimeout, 1, "sudo root")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(&fault.Error{Kind: fault.Cancelled, Message: "the task was cancelled"})
		_, err = c.Exec(ctx, plainSudo(t, "never", "true"), ExecOptions{})
		wantFault(t, err, fault.Cancelled, 1, "sudo root")
	})
}

// TestPlainBecomeLongOutput has more on both channels than any buffer holds.
func TestPlainBecomeLongOutput(t *testing.T) {
	plainWays(t, func(t *testing.T, open func(*testing.T, hop.Hop) *Context) {
		c := open(t, fakeSudo(t, "stdin", "secret", ""))
		defer c.Release()
		p, err := c.Exec(t.Context(), plainSudo(t, "stdin", "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2"), ExecOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = p.Close() }()
		said := make(chan int)
		go func() {
			n, _ := io.Copy(io.Discard, p.Stderr())
			said <- int(n)
		}()
		n, err := io.Copy(io.Discard, p)
		if err != nil || n != 3000000 {
			t.Errorf("stdout: %d bytes, %v", n, err)
		}
		if n := <-said; n != 2000000 {
			t.Errorf("stderr: %d bytes", n)
		}
	})
}

// TestPlainBecomeClosedEarly closes the process while it talks.
func TestPlainBecomeClosedEarly(t *testing.T) {
	plainWays(t, func(t *testing.T, open func(*testing.T, hop.Hop) *Context) {
		c := open(t, fakeSudo(t, "none", "", ""))
		defer c.Release()
		p, err := c.Exec(t.Context(), plainSudo(t, "none", "while echo out && echo err >&2; do :; done"), ExecOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Read(make([]byte, 10)); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}
