package fileservice

import (
	"context"
	"io"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

const (
	// MaxInline is the size up to which a file is one message.
	MaxInline = 32 << 10
	chunkSize = agent.MaxPayload
)

// Caller is what this package needs of a node; internal/server makes it of a mux.Context.
type Caller interface {
	Open(ctx context.Context, r agent.Request) (*agent.Stream, error)
	HasAgent() bool
	Exec(ctx context.Context, cmd []byte, tty bool) (Process, error)
}

// Process is a command that runs without an agent. Read is its stdout, Write its stdin; Close ends both and unblocks their callers.
type Process interface {
	io.ReadWriteCloser
	CloseWrite() error
	Stderr() io.Reader
	Wait() (int, error)
}

// Body is content that comes in parts: the next one, then io.EOF. A part may be used until the next call.
type Body func(ctx context.Context) ([]byte, error)

// PutRequest is a file to write on the node.
type PutRequest struct {
	Host     string // for people
	Link     string // large files of one link take turns
	Shared   bool   // content that others on the link have comes to the node from there
	Path     string // of the controller; or
	Body     Body
	Dest     []byte
	Mode     *uint32        // nil: an existing file's, else 0666 less the account's umask
	UID      uint32         // whose file it shall be, if the account is root; 0: the account's own
	Progress func(Progress) // may be nil; called now and then while a large file is moved
}

// GetRequest is a file to read from the node.
type GetRequest struct {
	Host     string
	Link     string
	Source   []byte
	Path     string // of the controller
	Umask    uint32 // for a new file; one that is there keeps its mode
	Progress func(Progress)
}

// Result is what was moved.
type Result struct {
	Size   uint64
	SHA256 blobcache.Digest
	Queue  time.Duration // waiting for other large files
	Wire   time.Duration
}

// Service moves files. It is safe for concurrent use.
type Service struct {
	up, down turns
	meters   meters
}

// New returns a Service.
func New() *Service { return &Service{} }
