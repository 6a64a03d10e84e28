package moduleexec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds a test that would otherwise wait for ever.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// linked is a node with an agent, on which commands can also be run plainly.
type linked struct {
	*agent.Link
	canExec bool
}

func (linked) HasAgent() bool  { return true }
func (l linked) CanExec() bool { return l.canExec }
func (linked) Exec(ctx context.Context, cmd []byte, tty bool) (Process, error) {
	return plain{}.Exec(ctx, cmd, tty)
}

func startAgent(t *testing.T) linked {
	t.Helper()
	return linked{Link: agenttest.Start(t, "")}
}

// plain is a node without an agent: this machine's own shell.
type plain struct{}

func (plain) HasAgent() bool { return false }
func (plain) CanExec() bool  { return true }
func (plain) Open(context.Context, agent.Request) (*agent.Stream, error) {
	return nil, errors.New("there is no agent")
}

func (plain) SendBlobs(context.Context, []blobcache.Digest, agent.BlobSource) (func(), error) {
	return nil, errors.New("there is no agent")
}

func (plain) Exec(_ context.Context, cmd []byte, tty bool) (Process, error) {
	c := exec.Command("/bin/sh", "-c", string(cmd))
	c.Env = append(os.Environ(), "TTY="+map[bool]string{true: "yes", false: "no"}[tty])
	p := &shell{cmd: c}
	var ends []*os.File
	pipe := func(theirs **os.File, ours **os.File, oursReads bool) {
		r, w, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		*ours, *theirs = w, r
		if oursReads {
			*ours, *theirs = r, w
		}
		ends = append(ends, *theirs)
	}
	var in, out, errs *os.File
	pipe(&in, &p.stdin, false)
	pipe(&out, &p.stdout, true)
	pipe(&errs, &p.stderr, true)
	c.Stdin, c.Stdout, c.Stderr = in, out, errs
	err := c.Start()
	for _, f := range ends {
		_ = f.Close()
	}
	return p, err
}

type shell struct {
	cmd                   *exec.Cmd
	stdin, stdout, stderr *os.File
	once                  sync.Once
	end                   error
}

func (s *shell) Read(p []byte) (int, error)  { return s.stdout.Read(p) }
func (s *shell) Write(p []byte) (int, error) { return s.stdin.Write(p) }
func (s *shell) CloseWrite() error           { return s.stdin.Close() }
func (s *shell) Stderr() io.Reader           { return s.stderr }

func (s *shell) Wait() (int, error) {
	s.once.Do(func() { s.end = s.cmd.Wait() })
	if e, ok := errors.AsType[*exec.ExitError](s.end); ok {
		return e.ExitCode(), nil
	}
	return 0, s.end
}

func (s *shell) Close() error {
	_ = s.cmd.Process.Kill() // perhaps it has ended
	err := errors.Join(s.stdin.Close(), s.stdout.Close(), s.stderr.Close())
	_, _ = s.Wait()
	return err
}

// collect is an Output whose parts are kept.
type collect struct {
	*Output
	parts          int
	stdout, stderr bytes.Buffer
}

func newCollect(keep int) *collect {
	c := &collect{}
	c.Output = NewOutput(keep, func(stdout, stderr []byte) error {
		c.parts++
		c.stdout.Write(stdout)
		c.stderr.Write(stderr)
		return nil
	})
	return c
}

func (c *collect) all() (stdout, stderr string) {
	restOut, restErr := c.Rest()
	return c.stdout.String() + string(restOut), c.stderr.String() + string(restErr)
}

func argv(words ...string) [][]byte {
	out := make([][]byte, len(words))
	for i, w := range words {
		out[i] = []byte(w)
	}
	return out
}

// bodyOf is content of so many parts.
func bodyOf(part []byte, times int) Body {
	return func(context.Context) ([]byte, error) {
		if times--; times < 0 {
			return nil, io.EOF
		}
		return part, nil
	}
}

const tinyModule = `
import json, os, sys
from ansible.module_utils import basic
print(json.dumps({"args": json.loads(basic._ANSIBLE_ARGS.decode()), "name": __name__, "cwd": os.getcwd(), "extra": os.environ.get("EXTRA")}))
sys.stderr.write("noise")
sys.exit(3)
`

func tinyPayload(t *testing.T) *Pinned {
	t.Helper()
	s := NewStore(blobcache.New(1 << 20))
	m, blobs := manifestOf("ansible.modules.tiny", "ansible/__init__.py", "", "ansible/module_utils/__init__.py", "",
		"ansible/module_utils/basic.py", "_ANSIBLE_ARGS = None\n", "ansible/modules/__init__.py", "", "ansible/modules/tiny.py", tinyModule)
	bring(t, s, "tiny", m, blobs)
	return mustPin(t, s, "tiny")
}

func TestRunModule(t *testing.T) {
	ctx, c, payload := within(t), startAgent(t), tinyPayload(t)
	for range 2 {
		before := c.Stats()
		out := newCollect(MaxGuarded)
		res, err := RunModule(ctx, c, &Module{
			Payload: payload, Params: []byte(`{"x": "é"}`), Name: "tiny", Cwd: []byte("/"), Environment: argv("EXTRA=yes"),
		}, out.Output)
		if err != nil {
			t.Fatal(err)
		}
		stdout, stderr := out.all()
		if want := "{\"args\": {\"x\": \"\\u00e9\"}, \"name\": \"__main__\", \"cwd\": \"/\", \"extra\": \"yes\"}\n"; stdout != want || stderr != "noise" || res.RC != 3 {
			t.Errorf("rc %d, stdout %q, stderr %q", res.RC, stdout, stderr)
		}
		if string(out.Kept()) != stdout {
			t.Errorf("kept %q", out.Kept())
		}
		if res.Spans.Job <= 0 || res.Spans.Fork <= 0 || res.Spans.Wire < 0 {
			t.Errorf("spans %+v", res.Spans)
		}
		if trips := c.Stats().RoundTrips - before.RoundTrips; trips > 1 {
			t.Errorf("%d round trips", trips)
		}
	}
	if bytes := c.Stats().SentBytes; bytes > 64<<10 {
		t.Errorf("%d bytes were sent", bytes)
	}
}

func TestRunModuleWithoutAgent(t *testing.T) {
	_, err := RunModule(within(t), plain{}, &Module{Name: "tiny", Payload: tinyPayload(t)}, newCollect(0).Output)
	if fault.KindOf(err) != fault.InterpreterMissing {
		t.Errorf("got %v", err)
	}
}

// Every way a command can be run gives the same.
func TestRunCommand(t *testing.T) {
	real := startAgent(t)
	for name, c := range map[string]struct {
		caller Caller
		tty    bool
	}{
		"agent":                      {real, false},
		"no agent":                   {plain{}, false},
		"terminal, on a connection":  {linked{Link: real.Link, canExec: true}, true},
		"terminal, without an agent": {plain{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			const script = "cat; echo err >&2; exit 7"
			out := newCollect(0)
			res, err := RunCommand(within(t), c.caller, &Command{
				Argv: argv("/bin/sh", "-c", script), Plain: []byte(script + "; echo $TTY"), TTY: c.tty, Body: bodyOf([]byte("in "), 3),
			}, out.Output)
			stdout, stderr := out.all()
			if err != nil || res.RC != 7 || stdout != "in in in " || stderr != "err\n" || out.Kept() != nil {
				t.Errorf("got %+v, %v, stdout %q, stderr %q", res, err, stdout, stderr)
			}
		})
	}
}

func TestRunCommandWithoutBodyHasEmptyStdin(t *testing.T) {
	real := startAgent(t)
	for name, c := range map[string]Caller{"agent": real, "no agent": plain{}} {
		out := newCollect(0)
		res, err := RunCommand(within(t), c, &Command{Argv: argv("/bin/cat"), Plain: []byte("cat")}, out.Output)
		if stdout, _ := out.all(); err != nil || res.RC != 0 || stdout != "" {
			t.Errorf("%s: %+v, %v, %q", name, res, err, stdout)
		}
	}
}

func TestRunCommandOnTerminal(t *testing.T) {
	out := newCollect(0)
	res, err := RunCommand(within(t), startAgent(t), &Command{Argv: argv("/usr/bin/tty"), Plain: []byte("exit 9"), TTY: true}, out.Output)
	if stdout, _ := out.all(); err != nil || res.RC != 0 || !strings.HasPrefix(stdout, "/dev/") {
		t.Errorf("got %+v, %v, %q", res, err, stdout)
	}
}

func TestRunCommandOnly(t *testing.T) {
	_, err := RunCommand(within(t), plain{}, &Command{Argv: argv("/bin/true")}, newCollect(0).Output)
	if fault.KindOf(err) != fault.InterpreterMissing {
		t.Errorf("got %v", err)
	}
}

// Ten megabytes go in and come out with memory for a few windows.
func TestRunCommandStreams(t *testing.T) {
	real := startAgent(t)
	for name, c := range map[string]Caller{"agent": real, "no agent": plain{}} {
		t.Run(name, func(t *testing.T) {
			part := bytes.Repeat([]byte("0123456789abcdef"), 4096)
			var got, largest int
			out := NewOutput(1<<10, func(stdout, _ []byte) error {
				got += len(stdout)
				largest = max(largest, len(stdout))
				return nil
			})
			res, err := RunCommand(within(t), c, &Command{Argv: argv("/bin/cat"), Plain: []byte("cat"), Body: bodyOf(part, 160)}, out)
			rest, _ := out.Rest()
			got += len(rest)
			if err != nil || res.RC != 0 || got != 10<<20 {
				t.Errorf("%d bytes came back: %+v, %v", got, res, err)
			}
			if largest > MaxInline+agent.MaxPayload || len(rest) > MaxInline {
				t.Errorf("a part of %d bytes, a rest of %d", largest, len(rest))
			}
			if out.Kept() != nil {
				t.Error("more was kept than asked for")
			}
		})
	}
}

func TestRunCommandThatLeavesItsInput(t *testing.T) {
	real := startAgent(t)
	for name, c := range map[string]Caller{"agent": real, "no agent": plain{}} {
		t.Run(name, func(t *testing.T) {
			endless := func(ctx context.Context) ([]byte, error) { return make([]byte, 64<<10), ctx.Err() }
			out := newCollect(0)
			res, err := RunCommand(within(t), c, &Command{Argv: argv("/bin/echo", "hi"), Plain: []byte("echo hi"), Body: endless}, out.Output)
			if stdout, _ := out.all(); err != nil || res.RC != 0 || stdout != "hi\n" {
				t.Errorf("got %+v, %v, %q", res, err, stdout)
			}
		})
	}
}

// What ends a job early: the caller, its input, whoever reads its output.
func TestRunCommandEnded(t *testing.T) {
	real := startAgent(t)
	broken := errors.New("broken")
	for callerName, c := range map[string]Caller{"agent": real, "no agent": plain{}} {
		for name, how := range map[string]struct {
			want  fault.Kind
			cause error
			body  func(end context.CancelCauseFunc) Body
			emit  error
		}{
			"cancelled": {fault.Cancelled, context.Canceled, func(end context.CancelCauseFunc) Body {
				return func(ctx context.Context) ([]byte, error) { end(nil); <-ctx.Done(); return nil, ctx.Err() }
			}, nil},
			"with a cause": {fault.RunUnknown, nil, func(end context.CancelCauseFunc) Body {
				return func(ctx context.Context) ([]byte, error) {
					end(&fault.Error{Kind: fault.RunUnknown})
					<-ctx.Done()
					return nil, ctx.Err()
				}
			}, nil},
			"input": {fault.Cancelled, broken, func(context.CancelCauseFunc) Body {
				return func(context.Context) ([]byte, error) { return nil, broken }
			}, nil},
			"typed input": {fault.FileChanged, nil, func(context.CancelCauseFunc) Body {
				return func(context.Context) ([]byte, error) { return nil, &fault.Error{Kind: fault.FileChanged} }
			}, nil},
			"output": {fault.Cancelled, broken, nil, broken},
		} {
			t.Run(callerName+"/"+name, func(t *testing.T) {
				job := newWitness(t)
				ctx, end := context.WithCancelCause(within(t))
				defer end(nil)
				cmd, script := &Command{}, job.script()
				begun := make(chan error, 1)
				go func() { begun <- job.begun() }()
				if how.body != nil {
					inner := how.body(end)
					cmd.Body = func(ctx context.Context) ([]byte, error) {
						if err := <-begun; err != nil {
							return nil, err
						}
						return inner(ctx)
					}
				} else {
					script += "head -c 200000 /dev/zero; "
				}
				script += "exec sleep 600"
				cmd.Argv, cmd.Plain = argv("/bin/sh", "-c", script), []byte(script)
				out := NewOutput(0, func(_, _ []byte) error { return how.emit })
				_, err := RunCommand(ctx, c, cmd, out)
				if fault.KindOf(err) != how.want || (how.cause != nil && !errors.Is(err, how.cause)) {
					t.Errorf("got %v of kind %d, want kind %d", err, fault.KindOf(err), how.want)
				}
				if how.body == nil {
					if err := <-begun; err != nil {
						t.Fatal(err)
					}
				}
				job.ended(t)
			})
		}
	}
}

// witness is a FIFO that a job holds open: it tells when the job has begun, and when it has ended.
type witness struct {
	path string
	file *os.File
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{path: filepath.Join(t.TempDir(), "fifo")}
	if err := syscall.Mkfifo(w.path, 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// script goes before what the job does.
func (w *witness) script() string { return "exec 9>" + w.path + "; echo up >&9; " }

// begun waits until the job has begun.
func (w *witness) begun() error {
	file, err := os.Open(w.path)
	if err != nil {
		return err
	}
	w.file = file
	_, err = io.ReadFull(file, make([]byte, len("up\n")))
	return err
}

// ended waits until the job has ended.
func (w *witness) ended(t *testing.T) {
	t.Helper()
	_, _ = io.Copy(io.Discard, w.file)
	_ = w.file.Close()
}

func TestFailure(t *testing.T) {
	for f, want := range map[agent.Failure]fault.Kind{
		agent.FailCancelled:   fault.Cancelled,
		agent.FailNotFound:    fault.FileNotFound,
		agent.FailFork:        fault.Internal,
		agent.FailBlobMissing: fault.Internal,
		agent.FailBadRequest:  fault.Internal,
		agent.FailIO:          fault.Internal,
	} {
		err := failure(&agent.Result{Failed: true, Failure: f, Text: "some\x1b[31mthing\nmore"})
		if fault.KindOf(err) != want || !strings.HasSuffix(err.Error(), ": something") {
			t.Errorf("%s: %v of kind %d", f, err, fault.KindOf(err))
		}
	}
}

func TestAgentLostInUse(t *testing.T) {
	l := agenttest.Link(t, agent.Options{Name: "fake"}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		f.Send(agent.TypeData, id, []byte("half"))
	})
	out := newCollect(0)
	_, err := RunCommand(within(t), linked{Link: l}, &Command{Argv: argv("/bin/true")}, out.Output)
	if fault.KindOf(err) != fault.AgentDied {
		t.Errorf("got %v of kind %d", err, fault.KindOf(err))
	}
}
