package server

import (
	"context"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// Tree is what this package needs of a mux.Tree; Over makes it of one.
type Tree interface {
	Acquire(ctx context.Context, run hop.Run, host string, path hop.Path) (Node, error)
	Reset(run, host string, path hop.Path)
	Release(run string, hosts []string)
	Vacate(ctx context.Context, run, host, account string) error
	EndRun(run string)
	Nodes() []mux.NodeInfo
	Look(ctx context.Context) []string
	Dials() uint64
}

// Node is what this package needs of a mux.Context.
type Node interface {
	Open(ctx context.Context, r agent.Request) (*agent.Stream, error)
	SendBlobs(ctx context.Context, want []blobcache.Digest, from agent.BlobSource) (release func(), err error)
	HasAgent() bool
	CanExec() bool
	Exec(ctx context.Context, cmd []byte, o mux.ExecOptions) (mux.Process, error)
	LoginUID(ctx context.Context) (uint32, error)
	// Shares reports whether what is sent to the node need not be sent again to others beside it.
	Shares() bool
	Memory() *mux.Memory
	Discovered() (answer []byte, ok bool)
	Log(f func(level int, text string))
	// Retire keeps the next request from getting the node.
	Retire()
	Release()
}

// Over is a Tree made of the real one.
func Over(t *mux.Tree) Tree { return overTree{t} }

type overTree struct{ *mux.Tree }

// Acquire implements Tree.
func (t overTree) Acquire(ctx context.Context, run hop.Run, host string, path hop.Path) (Node, error) {
	c, err := t.Tree.Acquire(ctx, run, host, path)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// The two rooms below declare what they need of a node each for itself, so a node goes to each in a coat.
type (
	moduleCaller struct{ Node }
	fileCaller   struct{ Node }
)

// Exec implements moduleexec.Caller.
func (c moduleCaller) Exec(ctx context.Context, cmd []byte, tty bool) (moduleexec.Process, error) {
	p, err := c.Node.Exec(ctx, cmd, mux.ExecOptions{TTY: tty})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Exec implements fileservice.Caller.
func (c fileCaller) Exec(ctx context.Context, cmd []byte, tty bool) (fileservice.Process, error) {
	p, err := c.Node.Exec(ctx, cmd, mux.ExecOptions{TTY: tty})
	if err != nil {
		return nil, err
	}
	return p, nil
}
