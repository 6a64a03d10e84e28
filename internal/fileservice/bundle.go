package fileservice

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"os"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Bundle is the contents of many files on their way, one after the other: of each its size (64 bit, big-endian), its bytes and their
// SHA-256. A file that cannot be read, or has changed meanwhile, has 32 zero bytes in place of that: who writes it down keeps nothing of
// it.
type Bundle struct {
	names  [][]byte
	source *source // the one being sent, without content if it cannot be read; nil: none
	left   uint64  // bytes of it
	intact bool    // it has been sent as it is
	digest hash.Hash
	buffer []byte
}

// OpenBundle takes the files that the file index names, each name absolute and ended by NUL. Errors are *fault.Error.
func OpenBundle(index string) (*Bundle, error) {
	text, err := os.ReadFile(index)
	if err != nil {
		return nil, localFault("read", index, err)
	}
	names := bytes.Split(text, []byte{0})
	return &Bundle{names: names[:len(names)-1], digest: sha256.New(), buffer: make([]byte, 0, chunkSize)}, nil
}

// Next returns the next part, at most 128 KiB, and io.EOF after the last. A part is good until the next call.
func (b *Bundle) Next(ctx context.Context) ([]byte, error) {
	b.buffer = b.buffer[:0]
	const around = 8 + len(blobcache.Digest{})
	for cap(b.buffer)-len(b.buffer) > around {
		if err := fault.OfContext(ctx); err != nil {
			return nil, err
		}
		if b.source == nil {
			if len(b.names) == 0 {
				break
			}
			b.begin(ctx)
		}
		b.read(cap(b.buffer) - len(b.buffer) - len(blobcache.Digest{}))
		if b.left == 0 {
			b.end()
		}
	}
	if len(b.buffer) == 0 {
		return nil, io.EOF
	}
	return b.buffer, nil
}

// begin opens the next file and writes its size.
func (b *Bundle) begin(ctx context.Context) {
	name := string(b.names[0])
	b.names = b.names[1:]
	s, err := open(ctx, &PutRequest{Path: name})
	if err != nil {
		s = &source{name: name}
	}
	b.source, b.left, b.intact = s, s.size, err == nil
	b.digest.Reset()
	b.buffer = binary.BigEndian.AppendUint64(b.buffer, s.size)
}

// read adds at most so many bytes of the file; zeros in place of those that are not there any more.
func (b *Bundle) read(most int) {
	n := min(b.left, uint64(most))
	at := len(b.buffer)
	b.buffer = b.buffer[:at+int(n)] //nolint:gosec // at most most
	part := b.buffer[at:]
	if s := b.source; s.file == nil {
		copy(part, s.small[uint64(len(s.small))-b.left:])
	} else if err := s.readChunk(part); err != nil {
		clear(part)
		b.intact = false
	}
	b.digest.Write(part)
	b.left -= n
}

// end writes the digest and closes the file.
func (b *Bundle) end() {
	var digest blobcache.Digest
	if b.source.file != nil && b.source.checkUnchanged() != nil {
		b.intact = false
	}
	if b.intact {
		b.digest.Sum(digest[:0])
	}
	b.buffer = append(b.buffer, digest[:]...)
	b.Close()
}

// Close lets go of the file being sent.
func (b *Bundle) Close() {
	if b.source != nil {
		b.source.Close()
		b.source = nil
	}
}
