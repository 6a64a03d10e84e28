package mux

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/become"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// terminal is what a Process may have besides its stdio: a controlling terminal, on which a become tool may ask.
type terminal interface {
	ReadTTY(p []byte) (int, error)
	WriteTTY(p []byte) error
}

// becomeProcess talks to the become tool that p is until the command behind it runs, and returns p from there on. p is closed
// after an error.
func becomeProcess(ctx context.Context, p Process, b *hop.Become) (Process, error) {
	spec, err := specOf(b)
	if err != nil {
		_ = p.Close()
		return nil, &fault.Error{Kind: fault.Unsupported, Message: "cannot use a prompt pattern of the become plugin", Cause: err}
	}
	e := &escalation{
		Process: p, hop: b, dialogue: become.New(spec), over: make(chan struct{}), failed: make(chan struct{}),
		patience: time.NewTimer(dialogueTimeout(b)),
	}
	defer e.patience.Stop()
	e.stderr, e.stderrWriter = io.Pipe()
	e.pump(become.Stdout, p.Read)
	e.pump(become.Stderr, p.Stderr().Read)
	if t, ok := p.(terminal); ok {
		e.pump(become.TTY, t.ReadTTY)
	}
	if err := e.wait(ctx); err != nil {
		_ = e.Close()
		return nil, err
	}
	e.said = io.MultiReader(bytes.NewReader(e.early), e.stderr)
	return e, nil
}

// escalation is a process that begins as a become tool. Each of its channels has a goroutine that reads it for the dialogue;
// stdout's ends with the marker, from where on Read reads the process itself, and stderr's goes on as the source of Stderr.
type escalation struct {
	Process
	hop          *hop.Become
	said         io.Reader // Stderr
	stderr       *io.PipeReader
	stderrWriter *io.PipeWriter
	pumps        sync.WaitGroup
	speaking     sync.WaitGroup // the pumps of stdout and stderr, until the dialogue is over
	patience     *time.Timer    // starts anew whenever the tool says something

	mu       sync.Mutex
	dialogue *become.Dialogue
	over     chan struct{} // closed when the command runs
	failed   chan struct{} // closed when it will not
	err      error         // why, before failed is closed
	rest     []byte        // of stdout, read but not yet handed on; before over is closed
	early    []byte        // the same of stderr
}

// pump reads one channel for the dialogue.
func (e *escalation) pump(ch become.Channel, read func([]byte) (int, error)) {
	e.pumps.Add(1)
	if ch != become.TTY {
		e.speaking.Add(1)
	}
	spoke := sync.OnceFunc(func() {
		if ch != become.TTY {
			e.speaking.Done()
		}
	})
	go func() {
		defer e.pumps.Done()
		defer spoke()
		if ch == become.Stderr {
			defer func() { _ = e.stderrWriter.Close() }()
		}
		buf := make([]byte, 32<<10)
		for {
			n, err := read(buf)
			if n > 0 && !e.hear(ch, buf[:n]) {
				spoke()
				switch ch {
				case become.Stdout:
					return
				case become.Stderr:
					if !e.handOn(buf[:n]) {
						return
					}
				}
			}
			if err != nil {
				return
			}
		}
	}()
}

// hear feeds the dialogue and does what it answers. It reports whether p was the dialogue's: afterwards stdout's pump has nothing
// more to do.
func (e *escalation) hear(ch become.Channel, p []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isOver() {
		return false
	}
	e.patience.Reset(dialogueTimeout(e.hop))
	for _, a := range e.dialogue.Feed(ch, p) {
		switch a := a.(type) {
		case become.SendPassword:
			if err := e.answer(a.TTY); err != nil {
				e.failLocked(err)
			}
		case become.Fail:
			e.failLocked(refusal(a, e.hop))
		case become.Done:
			e.rest = append(e.rest, a.Rest...)
			e.early = a.Stderr
			close(e.over)
			return false
		}
	}
	return true
}

func (e *escalation) isOver() bool {
	select {
	case <-e.over:
		return true
	default:
		return false
	}
}

func (e *escalation) answer(tty bool) error {
	line := secretLine(e.hop)
	if t, ok := e.Process.(terminal); ok && tty {
		return t.WriteTTY(line)
	}
	_, err := e.Process.Write(line)
	return err
}

func (e *escalation) failLocked(err error) {
	if e.err == nil {
		e.err = err
		close(e.failed)
	}
}

// handOn gives the reader of Stderr what came after the dialogue.
func (e *escalation) handOn(p []byte) bool {
	_, err := e.stderrWriter.Write(p)
	return err == nil
}

// wait waits for the end of the dialogue: the marker, a refusal, the tool's exit or the time.
func (e *escalation) wait(ctx context.Context) error {
	silent := make(chan struct{})
	e.pumps.Add(1)
	go func() {
		defer e.pumps.Done()
		e.speaking.Wait()
		close(silent)
	}()
	select {
	case <-e.over:
		return nil
	case <-e.failed:
	case <-silent:
		select {
		case <-e.over:
			return nil
		default:
		}
		return e.exited()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-e.patience.C:
		e.mu.Lock()
		defer e.mu.Unlock()
		if f, ok := e.dialogue.Timeout().(become.Fail); ok {
			return refusal(f, e.hop)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// exited is the refusal of a tool whose output has ended.
func (e *escalation) exited() error {
	code, err := e.Process.Wait()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range e.dialogue.Exit(code) {
		if f, ok := a.(become.Fail); ok {
			return refusal(f, e.hop)
		}
	}
	return e.err
}

// Read implements Process: stdout after the marker.
func (e *escalation) Read(p []byte) (int, error) {
	if len(e.rest) > 0 {
		n := copy(p, e.rest)
		e.rest = e.rest[n:]
		return n, nil
	}
	return e.Process.Read(p)
}

// Stderr implements Process: what was said on stderr, prompts left out.
func (e *escalation) Stderr() io.Reader { return e.said }

// Close implements Process.
func (e *escalation) Close() error {
	err := e.Process.Close()
	_ = e.stderr.Close()
	e.pumps.Wait()
	return err
}

// Wait implements Process.
func (e *escalation) Wait() (int, error) {
	code, err := e.Process.Wait()
	e.pumps.Wait()
	return code, err
}
