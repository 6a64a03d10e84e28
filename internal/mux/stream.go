package mux

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// streamProcess is a spawn stream as a Process, for plain commands where an agent takes the place of SSH, and as a Program. Its goroutine
// hands each of the far side's words to the reader of its channel: it goes no faster than they read.
type streamProcess struct {
	stream spawned
	by     *node // whose agent has started it
	ctx    context.Context
	cancel context.CancelCauseFunc
	stdout *io.PipeReader
	stderr net.Conn // with deadlines
	tty    net.Conn
	to     struct { // their other ends
		stdout      *io.PipeWriter
		stderr, tty net.Conn
	}
	done chan struct{}
	code int   // before done is closed
	err  error // the same
}

var errProcessClosed = errors.New("the process was closed")

func newStreamProcess(s spawned, by *node) *streamProcess {
	p := &streamProcess{stream: s, by: by, done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	p.stdout, p.to.stdout = io.Pipe()
	p.stderr, p.to.stderr = net.Pipe()
	p.tty, p.to.tty = net.Pipe()
	go p.pump()
	return p
}

func (p *streamProcess) pump() {
	defer close(p.done)
	p.err = p.by.blame(p.receive())
	_ = p.to.stdout.CloseWithError(p.err) // nil is io.EOF
	_ = p.to.stderr.Close()
	_ = p.to.tty.Close()
}

func (p *streamProcess) receive() error {
	for {
		ev, err := p.stream.Recv(p.ctx)
		if err != nil {
			return err
		}
		var to io.Writer = p.to.stdout
		switch ev.Channel {
		case agent.Stdout:
		case agent.Stderr:
			to = p.to.stderr
		case agent.TTY:
			to = p.to.tty
		case agent.End:
			_ = p.to.stdout.Close()
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
		if _, err := to.Write(ev.Data); err != nil {
			return err
		}
	}
}

// Read implements Process.
func (p *streamProcess) Read(b []byte) (int, error) { return p.stdout.Read(b) }

// Stderr implements Process.
func (p *streamProcess) Stderr() io.Reader { return p.stderr }

// ReadTTY implements terminal.
func (p *streamProcess) ReadTTY(b []byte) (int, error) { return p.tty.Read(b) }

// Write implements Process.
func (p *streamProcess) Write(b []byte) (int, error) {
	if err := p.stream.Send(p.ctx, b); err != nil {
		return 0, p.by.blame(err)
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
	_ = p.stdout.CloseWithError(errProcessClosed)
	_ = p.stderr.Close()
	_ = p.tty.Close()
	p.stream.Close()
	<-p.done
	return nil
}
