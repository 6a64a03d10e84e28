package moduleexec

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// execPlain runs a command without an agent, as plain Ansible would: its line through the account's login shell.
func execPlain(parent context.Context, c Caller, cmd *Command, out *Output) (Result, error) {
	if len(cmd.Plain) == 0 {
		return Result{}, &fault.Error{
			Kind:    fault.InterpreterMissing,
			Message: "this command needs an agent, and no Python interpreter is known for this account",
			Hint:    "Set ansible_python_interpreter.",
		}
	}
	started := time.Now()
	process, err := c.Exec(parent, cmd.Plain, cmd.TTY)
	if err != nil {
		return Result{}, typed(parent, err)
	}
	ctx, end := context.WithCancelCause(parent)
	var running sync.WaitGroup
	// In this order: Close unblocks whoever reads or writes, then they are waited for.
	defer running.Wait()
	defer end(nil)
	defer process.Close() // everything of worth has been read, or has failed
	running.Go(func() {
		<-ctx.Done()
		_ = process.Close()
	})
	running.Go(func() { feedProcess(ctx, process, cmd.Body, end) })

	var reading sync.WaitGroup
	reading.Go(func() { drain(process.Stderr(), out.AddStderr, end) })
	drain(process, out.AddStdout, end)
	reading.Wait()
	if ctx.Err() != nil {
		return Result{}, typed(ctx, nil)
	}
	rc, err := process.Wait()
	if err != nil || ctx.Err() != nil {
		return Result{}, typed(ctx, err)
	}
	return Result{RC: rc, Spans: Spans{Wire: time.Since(started)}}, nil
}

// drain reads to the end, which an error of the connection is too: Wait tells them apart.
func drain(from io.Reader, add func([]byte) error, end context.CancelCauseFunc) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if addErr := add(buffer[:n]); addErr != nil {
				end(addErr)
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// feedProcess is feedStream without an agent.
func feedProcess(ctx context.Context, process Process, body Body, end context.CancelCauseFunc) {
	for body != nil {
		part, err := body(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			end(err)
			return
		}
		if _, err := process.Write(part); err != nil {
			return // the process has closed its stdin, or has ended
		}
	}
	_ = process.CloseWrite() // fails only with the process
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
