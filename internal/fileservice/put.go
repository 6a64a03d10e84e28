package fileservice

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Put writes a file on the node, whole or not at all. Errors are *fault.Error; after one the destination is what it was, unless the
// link was lost when everything had been sent: then it is the old file or the new one.
func (s *Service) Put(ctx context.Context, c Caller, r *PutRequest) (Result, error) {
	src, err := open(ctx, r)
	if err != nil {
		return Result{}, typed(ctx, err)
	}
	defer src.Close()
	release, queued := func() {}, time.Duration(0)
	if src.file != nil {
		asked := time.Now()
		content := ""
		if r.Shared {
			content = src.identity()
		}
		if release, err = s.up.take(ctx, r.Link, content); err != nil {
			return Result{}, err
		}
		queued = time.Since(asked)
	}
	// A large file's turn is over when its last byte is on its way: the next one's first need not wait for the far side's answer.
	defer release()

	started := time.Now()
	moved := s.meters.begin(Transfer{Host: r.Host, Path: string(r.Dest), Up: true, Progress: Progress{Total: src.size}}, r.Progress)
	defer moved.end()
	var res Result
	if c.HasAgent() {
		res, err = putAgent(ctx, c, r, src, moved, release)
	} else {
		res, err = putPlain(ctx, c, r, src, moved)
	}
	if err != nil {
		return Result{}, typed(ctx, err)
	}
	res.Queue, res.Wire = queued, time.Since(started)
	return res, nil
}

func putAgent(ctx context.Context, c Caller, r *PutRequest, src *source, m *meter, sent func()) (Result, error) {
	request := &agent.Put{Dest: r.Dest, Size: src.size, Mode: r.Mode, UID: r.UID}
	if src.file == nil {
		request.SHA256 = blobcache.Sum(src.small)
	}
	stream, err := c.Open(ctx, request)
	if err != nil {
		return Result{}, err
	}
	defer stream.Close() // before the result it cancels: the far side removes its temporary file
	digest := request.SHA256
	if src.file == nil {
		err = send(ctx, stream, src.small)
	} else {
		digest, err = sendLarge(ctx, stream, src, m, sent)
	}
	if err == nil {
		err = stream.CloseSend()
	}
	sent()
	if err != nil && ownFault(err) {
		return Result{}, err
	}
	// Any other error is of the stream, whose result says why, if it has one.
	result, recvErr := result(ctx, stream)
	if recvErr != nil {
		return Result{}, recvErr
	}
	if result.Failed {
		return Result{}, remoteFault("write", r.Dest, result)
	}
	if err != nil || result.Size != src.size || result.SHA256 != digest {
		return Result{}, &fault.Error{Kind: fault.FileFailed, Message: fmt.Sprintf("the agent says it wrote %s, but not what it was sent", r.Dest)}
	}
	return Result{Size: src.size, SHA256: digest}, nil
}

func send(ctx context.Context, stream *agent.Stream, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	return stream.Send(ctx, p)
}

// stuckAfter is how long a node may take nothing of a large file and keep its turn.
const stuckAfter = 10 * time.Second

// sendLarge sends the file and then, as the trailer, its digest: if the file has changed meanwhile the trailer never comes, and without
// it the far side keeps nothing. A node that does not take it does not use the line: others need not wait for it, and pass has them go on.
func sendLarge(ctx context.Context, stream *agent.Stream, src *source, m *meter, pass func()) (blobcache.Digest, error) {
	var digest blobcache.Digest
	stuck := time.AfterFunc(stuckAfter, pass)
	defer stuck.Stop()
	hash := sha256.New()
	buffer := make([]byte, chunkSize)
	for left := src.size; left > 0; {
		chunk := buffer[:min(left, chunkSize)]
		if err := src.readChunk(chunk); err != nil {
			return digest, err
		}
		hash.Write(chunk)
		if err := stream.Send(ctx, chunk); err != nil {
			return digest, err
		}
		left -= uint64(len(chunk))
		m.add(len(chunk))
		stuck.Reset(stuckAfter)
	}
	if err := src.checkUnchanged(); err != nil {
		return digest, err
	}
	hash.Sum(digest[:0])
	return digest, stream.Send(ctx, digest[:])
}

// ownFault reports whether err is about the controller's file rather than the stream.
func ownFault(err error) bool {
	switch fault.KindOf(err) { //nolint:exhaustive // the others are the stream's
	case fault.FileChanged, fault.FileFailed, fault.FileNotFound:
		return true
	default:
		return false
	}
}

// result reads to the end of a stream that has only a result to give.
func result(ctx context.Context, stream *agent.Stream) (*agent.Result, error) {
	for {
		event, err := stream.Recv(ctx)
		if err != nil {
			return nil, err
		}
		if event.Channel == agent.Final {
			return event.Result, nil
		}
	}
}

// remoteFault is an error of the node's file system.
func remoteFault(verb string, path []byte, r *agent.Result) error {
	text := fault.Clean([]byte(r.Text))
	e := &fault.Error{Kind: fault.FileFailed, Message: fmt.Sprintf("cannot %s %s: %s", verb, fault.Clean(path), text)}
	switch r.Failure {
	case agent.FailNotFound:
		if verb == "read" {
			e.Kind = fault.FileNotFound
		}
	case agent.FailChanged:
		e.Kind = fault.FileChanged
	case agent.FailSkipped:
		e.Kind, e.Cause = fault.Cancelled, agent.ErrSkipped
	case agent.FailCancelled:
		e.Kind = fault.Cancelled
	case agent.FailNotBegun:
		return r.Err()
	case agent.FailDigest:
		e.Message = fmt.Sprintf("cannot %s %s: what arrived is not what was sent", verb, fault.Clean(path))
	default:
		if text == "" {
			e.Message += string(r.Failure)
		}
	}
	return e
}

// typed makes an error a *fault.Error: what ended the context explains what came of it.
func typed(ctx context.Context, err error) error {
	if e := fault.OfContext(ctx); e != nil {
		return e
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return &fault.Error{Kind: fault.FileFailed, Message: "the file could not be moved", Cause: err}
}
