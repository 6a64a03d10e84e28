package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// BlobSource is where the blobs come from. What it returns must not change.
type BlobSource interface {
	Get(d blobcache.Digest) ([]byte, bool)
}

// SendBlobs sends those of want that this link has not sent yet, as one compressed stream. It returns when they have left: a request
// opened after it finds them there, until release is called, which is to be done when that request has ended. Then the agent may be
// told to forget what was used longest ago, if it has more than Options.BlobLimit. Concurrent callers wait for each other. A blob that
// from does not have is an error, and then nothing is sent.
func (l *Link) SendBlobs(ctx context.Context, want []blobcache.Digest, from BlobSource) (release func(), err error) {
	select {
	case <-l.blobTurn:
		defer func() { l.blobTurn <- struct{}{} }()
	case <-l.failed:
		return nil, l.Err()
	case <-ctx.Done():
		return nil, ctxFault(ctx, "cannot send blobs")
	}
	h := &holding{link: l}
	digests, bodies, err := l.missingBlobs(want, from, h)
	if err == nil && len(digests) > 0 {
		err = l.sendMissing(ctx, digests, bodies, h)
	}
	if err != nil {
		h.release()
		return nil, err
	}
	return h.release, nil
}

// missingBlobs returns what must be sent, and holds the rest.
func (l *Link) missingBlobs(want []blobcache.Digest, from BlobSource, h *holding) ([]blobcache.Digest, [][]byte, error) {
	var digests []blobcache.Digest
	l.mu.Lock()
	asked := make(map[blobcache.Digest]bool, len(want))
	for _, d := range want {
		if !l.kept.has(d) && !asked[d] {
			asked[d] = true
			digests = append(digests, d)
		}
	}
	h.addLocked(want)
	err := l.usable()
	l.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	bodies := make([][]byte, len(digests))
	for i, d := range digests {
		b, ok := from.Get(d)
		if !ok {
			return nil, nil, &fault.Error{Kind: fault.Internal, Message: fmt.Sprintf("blob %s is not here to be sent", d)}
		}
		bodies[i] = b
	}
	return digests, bodies, nil
}

func (l *Link) sendMissing(ctx context.Context, digests []blobcache.Digest, bodies [][]byte, h *holding) error {
	s, err := l.Open(ctx, Blobs{})
	if err != nil {
		return err
	}
	s.forgetIfFailed(digests)
	err = s.sendBlobs(ctx, digests, bodies)
	if err == nil {
		err = s.left(ctx)
	}
	if err != nil && !errors.Is(err, ErrEnded) {
		s.Close()
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.result != nil && s.result.Failed {
		return s.result.Err()
	}
	for i, d := range digests {
		l.kept.add(d, int64(len(bodies[i])))
	}
	h.addLocked(digests)
	l.dropExcessLocked()
	s.discard() // nobody receives; a failure is heard of by forgetIfFailed
	return nil
}

// forgetIfFailed makes the blobs of a stream that fails count as not sent.
func (s *Stream) forgetIfFailed(digests []blobcache.Digest) {
	l := s.link
	l.mu.Lock()
	defer l.mu.Unlock()
	s.onFailure = func() {
		for _, d := range digests {
			l.kept.forget(d)
		}
		l.o.Log.Warn("agent refused blobs", "name", l.o.Name, "failure", s.result.Failure, "text", s.result.Text)
	}
}

func (s *Stream) sendBlobs(ctx context.Context, digests []blobcache.Digest, bodies [][]byte) error {
	text := latest.of(digests, bodies)
	for len(text) > 0 { // the same frames for the same blobs: they may be known on the way
		n := min(len(text), MaxPayload)
		if err := s.Send(ctx, text[:n]); err != nil {
			return err
		}
		text = text[n:]
	}
	return s.CloseSend()
}

// left waits until the writer has taken END.
func (s *Stream) left(ctx context.Context) error {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	for !s.endTaken && s.result == nil {
		if s.link.err != nil {
			return s.link.failure()
		}
		if err := s.wait(ctx, "cannot send blobs"); err != nil {
			return err
		}
	}
	return nil
}

// compressedBlobs is the stream that was made last: when a run begins, many agents are sent the same.
type compressedBlobs struct {
	mu   sync.Mutex
	key  string // the digests, in order
	text func() []byte
}

// mostKept is the largest stream in bytes that is kept: a program that is a module can be much larger.
const mostKept = 1 << 20

var (
	latest      compressedBlobs
	compressors sync.Pool // of *zlib.Writer: one costs a megabyte
)

// of returns the stream for these blobs, which nobody may change. Who asks for the same meanwhile waits for it.
func (c *compressedBlobs) of(digests []blobcache.Digest, bodies [][]byte) []byte {
	var key []byte
	for _, d := range digests {
		key = append(key, d[:]...)
	}
	c.mu.Lock()
	if c.key != string(key) {
		c.key, c.text = string(key), sync.OnceValue(func() []byte { return compress(digests, bodies) })
	}
	made := c.text
	c.mu.Unlock()
	text := made()
	if len(text) > mostKept {
		c.drop(string(key))
	}
	return text
}

func (c *compressedBlobs) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key == key {
		c.key, c.text = "", nil
	}
}

// compress writes to memory only, where nothing can fail.
func compress(digests []blobcache.Digest, bodies [][]byte) []byte {
	var out bytes.Buffer
	w, ok := compressors.Get().(*zlib.Writer)
	if ok {
		w.Reset(&out)
	} else {
		w = zlib.NewWriter(&out)
	}
	for i, d := range digests {
		head := binary.BigEndian.AppendUint32(d[:], uint32(len(bodies[i]))) //nolint:gosec // a file that a module imports
		_, _ = w.Write(head)
		_, _ = w.Write(bodies[i])
	}
	_ = w.Close()
	w.Reset(io.Discard) // so that the pool keeps no stream
	compressors.Put(w)
	return out.Bytes()
}
