package mux

import (
	"context"
	"errors"
	"io"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// streamProcess is a spawn stream as a Process, for plain commands where an agent takes the place of SSH. Its goroutine hands each
// of the far side's words to the reader of its channel: it goes no faster than they read.
type streamProcess struct {
	stream spawned
	ctx    context.Context
	cancel context.CancelCauseFunc
	out    [3]*io.PipeReader // by agent.Channel of what they carry: stdout, stderr, terminal
	in     [3]*io.PipeWriter
	done   chan struct{}
	code   int   // before done is closed
	err    error // the same
}

// The pipes of a streamProcess.
const (
	pipeStdout = iota
	pipeStderr
	pipeTTY
)

var errProcessClosed = errors.New("the process was closed")

func newStreamProcess(s spawned) *streamProcess {
	p := &streamProcess{stream: s, done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	for i := range p.out {
		p.out[i], p.in[i] = io.Pipe()
	}
	go p.pump()
	return p
}

func (p *streamProcess) pump() {
	defer close(p.done)
	p.err = p.receive()
	for _, w := range p.in {
		_ = w.CloseWithError(p.err) // nil is io.EOF
	}
}

func (p *streamProcess) receive() error {
	for {
		ev, err := p.stream.Recv(p.ctx)
		if err != nil {
			return err
		}
		pipe := pipeStdout
		switch ev.Channel {
		case agent.Stdout:
		case agent.Stderr:
			pipe = pipeStderr
		case agent.TTY:
			pipe = pipeTTY
		case agent.End:
			_ = p.in[pipeStdout].Close()
			continue
		case agent.Final:
			p.code = ev.Result.ExitCode
			if ev.Result.Failed {
				return &fault.Error{
					Kind: fault.Unsupported, Message: "cannot start the command", Stderr: fault.Clean([]byte(ev.Result.Text)),
				}
			}
			return nil
		}
		if _, err := p.in[pipe].Write(ev.Data); err != nil {
			return err
		}
	}
}

// Read implements Process.
func (p *streamProcess) Read(b []byte) (int, error) { return p.out[pipeStdout].Read(b) }

// Stderr implements Process.
func (p *streamProcess) Stderr() io.Reader { return p.out[pipeStderr] }

// ReadTTY implements terminal.
func (p *streamProcess) ReadTTY(b []byte) (int, error) { return p.out[pipeTTY].Read(b) }

// Write implements Process.
func (p *streamProcess) Write(b []byte) (int, error) {
	if err := p.stream.Send(p.ctx, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WriteTTY implements terminal.
func (p *streamProcess) WriteTTY(b []byte) error { return p.stream.SendTTY(p.ctx, b) }

// CloseWrite implements Process.
func (p *streamProcess) CloseWrite() error { return p.stream.CloseSend() }

// Wait implements Process.
func (p *streamProcess) Wait() (int, error) {
	<-p.done
	return p.code, p.err
}

// Close implements Process.
func (p *streamProcess) Close() error {
	p.cancel(errProcessClosed)
	for _, r := range p.out {
		_ = r.CloseWithError(errProcessClosed)
	}
	p.stream.Close()
	<-p.done
	return nil
}
