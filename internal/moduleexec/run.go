package moduleexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Caller is what this package needs of a node; internal/server makes it of a mux.Context.
type Caller interface {
	Open(ctx context.Context, r agent.Request) (*agent.Stream, error)
	SendBlobs(ctx context.Context, want []blobcache.Digest, from agent.BlobSource) (release func(), err error)
	HasAgent() bool
	// CanExec reports whether Exec runs commands as this account: the path ends at the SSH account, or there is no agent.
	CanExec() bool
	Exec(ctx context.Context, cmd []byte, tty bool) (Process, error)
}

// Process is a command that runs without an agent. Read is its stdout, Write its stdin; Close ends both and unblocks their callers.
type Process interface {
	io.ReadWriteCloser
	CloseWrite() error
	Stderr() io.Reader
	Wait() (int, error)
}

// Body is a step's input: the next part of it, then io.EOF. A part may be used until the next call.
type Body func(ctx context.Context) ([]byte, error)

// Module is one run of a module.
type Module struct {
	Payload      *Pinned
	Params       []byte
	Name         string
	Environment  [][]byte // "name=value", added to the account's
	Cwd          []byte
	Environ      [][]byte // "name=value", in place of the account's if there are any
	RlimitNofile uint64
	Logging      bool // see Result.Logged
	Judged       bool // see Result.Succeeded
	Glance       bool // see agent.Module
	Secrets      [][]byte
	Body         Body // nil: stdin is at EOF
}

// Command is one run of a command.
type Command struct {
	Argv    [][]byte // as the account itself would run it
	Plain   []byte   // the command line for where there is no agent
	TTY     bool
	Cwd     []byte
	Environ [][]byte
	Body    Body // nil: stdin is at EOF
}

// ErrStale is what RunModule returns when the agent has outlived its surroundings: nothing was run, and another agent has to be started.
var ErrStale = errors.New("the agent is stale")

// Result is how a job ended.
type Result struct {
	RC     int
	Spans  Spans
	Logged []string // records of a module's that asks for them: "name: text"
	// Succeeded: a module that is to be judged has not failed, as Ansible sees it.
	Succeeded bool
}

// Spans says where the time went: Wire is from the first frame sent to the last received, less the others.
type Spans struct{ Wire, Fork, Job time.Duration }

// RunModule runs a module. Errors are *fault.Error, or ErrStale; a module that ends badly is no error. ctx ends the job: its process group is killed.
func RunModule(ctx context.Context, c Caller, m *Module, out *Output) (Result, error) {
	if !c.HasAgent() {
		return Result{}, &fault.Error{
			Kind:    fault.InterpreterMissing,
			Message: fmt.Sprintf("module %s needs a Python interpreter, and none is known for this account", m.Name),
			Hint:    "Set ansible_python_interpreter.",
		}
	}
	started := time.Now()
	release, err := c.SendBlobs(ctx, m.Payload.want(), m.Payload)
	if err != nil {
		return Result{}, typed(ctx, err)
	}
	defer release()
	stream, err := c.Open(ctx, &agent.Module{
		Manifest:     m.Payload.manifest,
		Params:       m.Params,
		Name:         m.Name,
		Environment:  m.Environment,
		Cwd:          m.Cwd,
		Environ:      m.Environ,
		RlimitNofile: m.RlimitNofile,
		Logging:      m.Logging,
		Stdin:        m.Body != nil,
		Judged:       m.Judged,
		Glance:       m.Glance,
		Secrets:      m.Secrets,
	})
	if err != nil {
		return Result{}, typed(ctx, err)
	}
	return finish(ctx, stream, m.Body, out, started)
}

// RunCommand runs a command, by the agent or, where there is none or a real terminal can be had, by Exec. Errors are *fault.Error; a
// command that ends badly is no error. ctx ends the job.
func RunCommand(ctx context.Context, c Caller, cmd *Command, out *Output) (Result, error) {
	if !c.HasAgent() || (cmd.TTY && c.CanExec()) {
		return execPlain(ctx, c, cmd, out)
	}
	started := time.Now()
	stream, err := c.Open(ctx, &agent.Command{Argv: cmd.Argv, TTY: cmd.TTY, Cwd: cmd.Cwd, Environ: cmd.Environ})
	if err != nil {
		return Result{}, typed(ctx, err)
	}
	if cmd.Body == nil {
		if err := stream.CloseSend(); err != nil {
			stream.Close()
			return Result{}, typed(ctx, err)
		}
	}
	return finish(ctx, stream, cmd.Body, out, started)
}

// finish carries a job's input and output until its result has come.
func finish(parent context.Context, stream *agent.Stream, body Body, out *Output, started time.Time) (Result, error) {
	ctx, end := context.WithCancelCause(parent)
	var feeding sync.WaitGroup
	// In this order: the feeder's Send and body are unblocked by the context, then it is waited for.
	defer feeding.Wait()
	defer end(nil)
	defer stream.Close()
	if body != nil {
		feeding.Go(func() { feedStream(ctx, stream, body, end) })
	}
	res, err := receive(ctx, stream, out)
	if err != nil {
		stream.Cancel()
		return Result{}, typed(ctx, err)
	}
	if res.Failed && res.Failure == agent.FailStale {
		return Result{}, fmt.Errorf("%w: %s has changed", ErrStale, res.Text)
	}
	if res.Failed {
		return Result{}, failure(res)
	}
	spans := Spans{Fork: micros(res.QueueMicros), Job: micros(res.JobMicros)}
	spans.Wire = max(0, time.Since(started)-spans.Fork-spans.Job)
	return Result{RC: res.ExitCode, Spans: spans, Logged: res.Logged, Succeeded: res.Succeeded}, nil
}

// feedStream sends a job's input. A job may end, or close its stdin, with input left: that is no error. A body that breaks off ends the
// job by end.
func feedStream(ctx context.Context, stream *agent.Stream, body Body, end context.CancelCauseFunc) {
	for {
		part, err := body(ctx)
		if errors.Is(err, io.EOF) {
			_ = stream.CloseSend() // fails only with the stream, as Send
			return
		}
		if err != nil {
			end(err)
			return
		}
		if err := stream.Send(ctx, part); err != nil {
			return // the receiver learns why
		}
	}
}

func receive(ctx context.Context, stream *agent.Stream, out *Output) (*agent.Result, error) {
	for {
		event, err := stream.Recv(ctx)
		if err == nil {
			err = ctx.Err() // of a job that always has something to say
		}
		if err != nil {
			return nil, err
		}
		switch event.Channel {
		case agent.Stdout:
			err = out.AddStdout(event.Data)
		case agent.Stderr:
			err = out.AddStderr(event.Data)
		case agent.Final:
			return event.Result, nil
		default: // End: the result will follow
		}
		if err != nil {
			return nil, err
		}
	}
}

func micros(n uint64) time.Duration {
	return time.Duration(min(n, uint64(time.Hour*24*365/time.Microsecond))) * time.Microsecond
}

// typed makes an error a *fault.Error: what ended the context explains what came of it.
func typed(ctx context.Context, err error) error {
	if e := fault.OfContext(ctx); e != nil {
		return e
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return &fault.Error{Kind: fault.Internal, Message: "the job could not be run", Cause: err}
}

// failure is a job that the agent could not run.
func failure(res *agent.Result) error {
	e := &fault.Error{Kind: fault.Internal, Message: "the agent could not run the job", Stderr: fault.Clean([]byte(res.Text))}
	switch res.Failure {
	case agent.FailCancelled:
		e.Kind, e.Message = fault.Cancelled, "the job was cancelled"
	case agent.FailSkipped:
		e.Kind, e.Message, e.Cause = fault.Cancelled, "the job was not begun", agent.ErrSkipped
	case agent.FailNotBegun:
		return res.Err()
	case agent.FailNotFound:
		e.Kind, e.Message = fault.FileNotFound, "the command or its working directory does not exist"
	case agent.FailFork:
		e.Message, e.Hint = "the target cannot start another process", "Look at the account's process and memory limits."
	default:
		e.Message += " (" + string(res.Failure) + ")"
	}
	if e.Stderr != "" {
		e.Message += ": " + firstLine(e.Stderr)
	}
	return e
}
