// Package mux is the tree of nodes: which contexts exist, in what state, who waits for them and how long they stay. It decides when an
// edge is dialled (once, however many wait), and when a node leaves. It knows nothing of gRPC, of SSH's insides or of modules.
package mux

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// Dialer opens connections to targets. internal/sshlink is the one in use.
type Dialer interface {
	// Dial connects and authenticates. ctx ends the attempt; the attempt's own timeout and retries are the hop's. Errors are
	// *fault.Error with a kind that says which step failed.
	Dial(ctx context.Context, h *hop.SSH, run hop.Run) (Transport, error)
	// DialThrough is Dial from an intermediary.
	DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, from *Intermediary) (Transport, error)
}

// Intermediary is an account with an agent, from which a connection goes on in one of two ways.
type Intermediary struct {
	Name    string // for people
	Forward Forward
	Start   Start
}

// Forward opens a TCP connection from somewhere else.
type Forward func(ctx context.Context, host string, port int) (net.Conn, error)

// Start starts a program somewhere else, in the account's own environment. ctx bounds the start only.
type Start func(ctx context.Context, argv []string) (*Program, error)

// Program is a process with a terminal of its own, on which it may ask. All that it says has to be read, or it comes to a stop.
type Program struct {
	Stdin    io.WriteCloser
	Stdout   io.ReadCloser
	Stderr   Output
	Terminal Terminal
	// Wait returns the exit code once the output has been read, -1 if there is none. An error says that the intermediary was lost.
	Wait func() (int, error)
	// Kill ends it, and what it has started. It does not wait.
	Kill func()
}

// Output is something that is read with a deadline.
type Output interface {
	io.ReadCloser
	SetReadDeadline(t time.Time) error
}

// Terminal is an Output that can be typed on.
type Terminal interface {
	Output
	io.Writer
}

// Transport is an open connection to one account of one target, on which processes are started.
type Transport interface {
	// Exec starts cmd through the account's login shell. ctx bounds the start only.
	Exec(ctx context.Context, cmd []byte, o ExecOptions) (Process, error)
	// Done is closed when the connection has ended, for whatever reason; Err then says why.
	Done() <-chan struct{}
	Err() error
	// Notes are what people should know about how the connection was made; they do not change.
	Notes() []Note
	// Shared reports whether a further process is no further login.
	Shared() bool
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
