// Package blobcache keeps bytes in memory by their SHA-256, at most so many, so that what several targets, runs or payloads need is
// read and hashed once. It knows nothing of what the bytes mean, where they came from or who was sent them.
package blobcache

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"sync"
)

// Digest names a blob: the SHA-256 of its bytes. The zero Digest stands for "none".
type Digest [sha256.Size]byte

// Sum returns the digest of b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// String returns the digest in lower case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// Cache holds blobs up to a number of bytes and forgets the least recently used first. Pinned blobs stay whatever happens, and
// so does the one put last: the cache may exceed its size by these. It is safe for concurrent use.
type Cache struct {
	maxBytes int64

	mu     sync.Mutex
	bytes  int64
	blobs  map[Digest]*list.Element // of *blob
	recent *list.List               // most recently used first
}

type blob struct {
	digest Digest
	data   []byte
	pins   int
}

// New returns an empty cache of maxBytes.
func New(maxBytes int64) *Cache {
	return &Cache{maxBytes: maxBytes, blobs: map[Digest]*list.Element{}, recent: list.New()}
}

// Put keeps b, which nobody may change any more, and returns its digest.
func (c *Cache) Put(b []byte) Digest {
	d := Sum(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.blobs[d]; ok {
		c.recent.MoveToFront(e)
		return d
	}
	e := c.recent.PushFront(&blob{digest: d, data: b})
	c.blobs[d] = e
	c.bytes += int64(len(b))
	c.evict(e)
	return d
}

// Get returns the blob d; the caller must not change it.
func (c *Cache) Get(d Digest) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.blobs[d]
	if !ok {
		return nil, false
	}
	c.recent.MoveToFront(e)
	return of(e).data, true
}

// Has reports whether the cache holds d. Asking does not count as use.
func (c *Cache) Has(d Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.blobs[d]
	return ok
}

// Bytes returns how much the cache holds.
func (c *Cache) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Pin keeps those of ds that are here until release is called, and returns the others. A release after the first does nothing.
func (c *Cache) Pin(ds []Digest) (release func(), missing []Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pinned := make([]*blob, 0, len(ds))
	for _, d := range ds {
		e, ok := c.blobs[d]
		if !ok {
			missing = append(missing, d)
			continue
		}
		c.recent.MoveToFront(e)
		of(e).pins++
		pinned = append(pinned, of(e))
	}
	release = sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, b := range pinned {
			b.pins--
		}
		c.evict(nil)
	})
	return release, missing
}

// evict forgets what nobody uses, oldest first, until the rest fits. It spares keep: a blob that left in the moment it came could
// never be pinned while the pinned ones fill the cache.
func (c *Cache) evict(keep *list.Element) {
	for e := c.recent.Back(); e != nil && c.bytes > c.maxBytes; {
		older, b := e, of(e)
		e = e.Prev()
		if b.pins > 0 || older == keep {
			continue
		}
		c.recent.Remove(older)
		delete(c.blobs, b.digest)
		c.bytes -= int64(len(b.data))
	}
}

func of(e *list.Element) *blob {
	b, ok := e.Value.(*blob)
	if !ok {
		panic("blobcache: a list element is not a blob")
	}
	return b
}
