package fileservice

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Get reads a file of the node into a file of the controller, whole or not at all. Errors are *fault.Error; after one the
// destination is what it was.
func (s *Service) Get(ctx context.Context, c Caller, r *GetRequest) (Result, error) {
	draft, err := newDraft(r.Path, r.Umask)
	if err != nil {
		return Result{}, err
	}
	defer draft.discard()
	in := &incoming{ctx: ctx, draft: draft, hash: sha256.New(), turns: &s.down, link: r.Link}
	in.meter = s.meters.begin(Transfer{Host: r.Host, Path: string(r.Source)}, r.Progress)
	defer in.done()

	started := time.Now()
	if c.HasAgent() {
		err = getAgent(ctx, c, r, in)
	} else {
		err = getPlain(ctx, c, r, in)
	}
	if err != nil {
		return Result{}, typed(ctx, err)
	}
	res := Result{Size: in.meter.done(), SHA256: in.digest(), Queue: in.queued}
	res.Wire = time.Since(started) - res.Queue
	if err := draft.commit(); err != nil {
		return Result{}, err
	}
	return res, nil
}

func getAgent(ctx context.Context, c Caller, r *GetRequest, in *incoming) error {
	stream, err := c.Open(ctx, &agent.Get{Source: r.Source})
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		event, err := stream.Recv(ctx)
		if err != nil {
			return err
		}
		switch event.Channel {
		case agent.Stdout:
			err := in.add(event.Data)
			event.Release()
			if err != nil {
				return err
			}
		case agent.Final:
			result := event.Result
			if result.Failed {
				return remoteFault("read", r.Source, result)
			}
			if result.Size != in.meter.done() || result.SHA256 != in.digest() {
				return &fault.Error{
					Kind:    fault.FileFailed,
					Message: fmt.Sprintf("cannot read %s: what arrived is not what was sent", fault.Clean(r.Source)),
				}
			}
			return nil
		default: // End: the result will follow
		}
	}
}

// incoming is a file on its way from a node. How large it is shows only as it comes: when it is no small one any more it waits for its
// turn, and the credit that it does not give back meanwhile stops the far side.
type incoming struct {
	ctx    context.Context //nolint:containedctx // one transfer's, as the struct is
	draft  *draft
	hash   hash.Hash
	turns  *turns
	link   string
	meter  *meter
	queued time.Duration
	free   func() // ends the turn; nil without one
}

func (in *incoming) add(p []byte) error {
	if in.free == nil && in.meter.done()+uint64(len(p)) > MaxInline {
		asked := time.Now()
		free, err := in.turns.take(in.ctx, in.link, "")
		if err != nil {
			return err
		}
		in.free, in.queued = free, time.Since(asked)
	}
	in.hash.Write(p)
	in.meter.add(len(p))
	return in.draft.write(p)
}

func (in *incoming) digest() blobcache.Digest {
	var d blobcache.Digest
	in.hash.Sum(d[:0])
	return d
}

// done ends the turn.
func (in *incoming) done() {
	in.meter.end()
	if in.free != nil {
		in.free()
	}
}
