package agent

import (
	"container/list"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

// DefaultBlobLimit is how many bytes of blobs an agent keeps, before what it makes of them: code objects, of about the same size. All
// modules of ansible-core together have some 5 MiB.
const DefaultBlobLimit = 16 << 20

// kept is what the agent has been sent and keeps. The link's mutex guards it.
type kept struct {
	limit  int64
	bytes  int64
	blobs  map[blobcache.Digest]*list.Element // of *keptBlob
	recent *list.List                         // most recently used first
}

type keptBlob struct {
	digest blobcache.Digest
	size   int64
	holds  int // requests that need it and have not ended
}

func newKept(limit int64) kept {
	if limit <= 0 {
		limit = DefaultBlobLimit
	}
	return kept{limit: limit, blobs: map[blobcache.Digest]*list.Element{}, recent: list.New()}
}

func (k *kept) has(d blobcache.Digest) bool {
	_, ok := k.blobs[d]
	return ok
}

func (k *kept) add(d blobcache.Digest, size int64) {
	k.blobs[d] = k.recent.PushFront(&keptBlob{digest: d, size: size})
	k.bytes += size
}

// forget makes d count as not sent.
func (k *kept) forget(d blobcache.Digest) {
	if e, ok := k.blobs[d]; ok {
		delete(k.blobs, d)
		k.recent.Remove(e)
		k.bytes -= of(e).size
	}
}

// hold counts a use of those of ds that are there.
func (k *kept) hold(ds []blobcache.Digest) []*keptBlob {
	held := make([]*keptBlob, 0, len(ds))
	for _, d := range ds {
		if e, ok := k.blobs[d]; ok {
			k.recent.MoveToFront(e)
			of(e).holds++
			held = append(held, of(e))
		}
	}
	return held
}

// excess lists what has to go for the rest to fit: what nobody holds, used longest ago.
func (k *kept) excess() []blobcache.Digest {
	var ds []blobcache.Digest
	left := k.bytes
	for e := k.recent.Back(); e != nil && left > k.limit; e = e.Prev() {
		if b := of(e); b.holds == 0 {
			ds = append(ds, b.digest)
			left -= b.size
		}
	}
	return ds
}

func of(e *list.Element) *keptBlob {
	b, ok := e.Value.(*keptBlob)
	if !ok {
		panic("agent: a list element is not a blob")
	}
	return b
}

// holding is what one request needs of what the agent keeps.
type holding struct {
	link  *Link
	blobs []*keptBlob
	once  sync.Once
}

func (h *holding) addLocked(ds []blobcache.Digest) {
	h.blobs = append(h.blobs, h.link.kept.hold(ds)...)
}

// release ends the use. A call after the first does nothing.
func (h *holding) release() {
	h.once.Do(func() {
		h.link.mu.Lock()
		defer h.link.mu.Unlock()
		for _, b := range h.blobs {
			b.holds--
		}
		h.link.dropExcessLocked()
	})
}

// dropExcessLocked has the agent forget what is too much.
func (l *Link) dropExcessLocked() {
	if l.usable() != nil {
		return
	}
	ds := l.kept.excess()
	for len(ds) > 0 {
		n := min(len(ds), MaxPayload/len(ds[0]))
		payload := make([]byte, 0, n*len(ds[0]))
		for _, d := range ds[:n] {
			l.kept.forget(d)
			payload = append(payload, d[:]...)
		}
		l.out.putControl(nil, TypeDrop, payload)
		ds = ds[n:]
	}
}
