// Package agenttest starts agents for tests: a real one in a Python on pipes, and scripted ones that say whatever a test wants. It is
// for tests only, and knows nothing that a package which talks to agents would not.
package agenttest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
)

// Start runs a real agent in the given Python ("" for the python3 of PATH; the test is skipped if there is none) and closes its link
// when the test ends. It fails the test if the process does not end then.
func Start(t testing.TB, python string) *agent.Link {
	t.Helper()
	return StartWith(t, python, agent.Options{Name: "test"})
}

// StartWith is Start with options.
func StartWith(t testing.TB, python string, o agent.Options) *agent.Link {
	t.Helper()
	conn := Spawn(t, python, "-c", agent.Stage1(), "mitogen-mux: test")
	l, err := agent.Connect(t.Context(), conn, o)
	if err != nil {
		t.Fatalf("cannot connect: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Process is a process whose stdio is a Conn. Closing it ends its stdin; the process leaves by itself.
type Process struct {
	io.Reader
	io.Writer
	cmd    *exec.Cmd
	stderr bytes.Buffer
	stdin  io.Closer
	stdout io.Closer
}

// Spawn starts a Python with arguments. The test waits for the process when it ends.
func Spawn(t testing.TB, python string, args ...string) *Process {
	t.Helper()
	if python == "" {
		python = "python3"
	}
	path, err := exec.LookPath(python)
	if err != nil {
		t.Skipf("no %s to run an agent in: %v", python, err)
	}
	p := &Process{cmd: exec.Command(path, args...)}
	p.cmd.Stderr = &p.stderr
	theirIn, ourIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ourOut, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.cmd.Stdout = theirIn, theirOut
	p.Reader, p.Writer, p.stdin, p.stdout = ourOut, ourIn, ourIn, ourOut
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = theirIn.Close(), theirOut.Close()
	t.Cleanup(func() {
		_ = p.Close()
		err := p.cmd.Wait()
		if p.stderr.Len() > 0 {
			t.Logf("stderr of the agent (%v):\n%s", err, p.stderr.String())
		}
	})
	return p
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill kills the process.
func (p *Process) Kill() error { return p.cmd.Process.Kill() } //nolint:wrapcheck // a test's

// Close implements io.Closer.
func (p *Process) Close() error { return errors.Join(p.stdin.Close(), p.stdout.Close()) }
