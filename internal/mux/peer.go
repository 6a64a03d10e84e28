package mux

import (
	"context"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// peer is what the tree asks of an agent's link: *agent.Link in production, so that tests of the tree need no interpreter.
type peer interface {
	Open(ctx context.Context, r agent.Request) (*agent.Stream, error)
	SendBlobs(ctx context.Context, want []blobcache.Digest, from agent.BlobSource) (release func(), err error)
	// Spawn opens a stream whose far end is meant to become an agent, or is a plain command.
	Spawn(ctx context.Context, s *agent.Spawn) (spawned, error)
	Hello(ctx context.Context) (agent.Hello, error)
	Done() <-chan struct{}
	Err() error
	End(reason *fault.Error)
	Stats() agent.Stats
}

// spawned is what the tree asks of a spawn stream.
type spawned interface {
	Send(ctx context.Context, p []byte) error
	SendTTY(ctx context.Context, p []byte) error
	CloseSend() error
	Recv(ctx context.Context) (agent.Event, error)
	Close()
	Conn() agent.Conn
	Gone(ctx context.Context) error
}

// connectFunc is agent.Connect, as the tree sees it.
type connectFunc func(ctx context.Context, conn agent.Conn, o agent.Options) (peer, error)

func connect(ctx context.Context, conn agent.Conn, o agent.Options) (peer, error) {
	l, err := agent.Connect(ctx, conn, o)
	if err != nil {
		return nil, err
	}
	return linkPeer{l}, nil
}

// linkPeer is *agent.Link with the one method whose result the tree wants as its own interface.
type linkPeer struct{ *agent.Link }

func (l linkPeer) Spawn(ctx context.Context, s *agent.Spawn) (spawned, error) {
	stream, err := l.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return stream, nil
}
