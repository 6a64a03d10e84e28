// Package mux is the tree of nodes: which contexts exist, in what state, who waits for them and how long they stay. It decides when an
// edge is dialled (once, however many wait), and when a node leaves. It knows nothing of gRPC, of SSH's insides or of modules.
package mux

import (
	"context"
	"io"
	"net"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// Dialer opens connections to targets. internal/sshlink is the one in use.
type Dialer interface {
	// Dial connects and authenticates. ctx ends the attempt; the attempt's own timeout and retries are the hop's. Errors are
	// *fault.Error with a kind that says which step failed.
	Dial(ctx context.Context, h *hop.SSH, run hop.Run) (Transport, error)
	// DialThrough is Dial with a way of its own to the server: forward opens the connection.
	DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, forward Forward) (Transport, error)
}

// Forward opens a TCP connection from somewhere else.
type Forward func(ctx context.Context, host string, port int) (net.Conn, error)

// Transport is an open connection to one account of one target, on which processes are started.
type Transport interface {
	// Exec starts cmd through the account's login shell. ctx bounds the start only.
	Exec(ctx context.Context, cmd []byte, o ExecOptions) (Process, error)
	// Done is closed when the connection has ended, for whatever reason; Err then says why.
	Done() <-chan struct{}
	Err() error
	// Notes are what people should know about how the connection was made; they do not change.
	Notes() []Note
	// Close ends the connection and everything on it, and waits for its goroutines.
	Close() error
}

// Note is a remark for people; it reaches each run once per host.
type Note struct {
	Level int // as in an agent's LOG
	Text  string
}

// Levels of notes.
const (
	Warning = 1
	Verbose = 2 // shown at -v
)

// ExecOptions are what a process may be given besides its command.
type ExecOptions struct {
	TTY   bool // a terminal, as with ssh -tt
	Agent bool // it lasts: the connection may live and die with it
	// MakeRoom ends an agent of this connection that is idle, if there is one. It is called whenever the command has to wait because
	// as many sessions are open as may be.
	MakeRoom func()
}

// Process is a command on a transport. Read is its stdout, Write its stdin; Close ends both and unblocks their callers. What Read or
// Write was given and failed with may still be in use: nobody else may use it any more.
type Process interface {
	io.ReadWriteCloser
	CloseWrite() error
	Stderr() io.Reader
	// Wait returns the exit code, 128 + n if signal n ended it, once the output has been read. An error means that the
	// connection ended first.
	Wait() (int, error)
}
