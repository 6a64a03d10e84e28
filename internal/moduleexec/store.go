package moduleexec

import (
	"container/list"
	"fmt"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// maxPayloads is how many payloads a Store remembers: every module of several large collections under every supported core. What is
// kept of one is its manifest's text and its inputs, some 20 KiB.
const maxPayloads = 2048

// Store remembers payloads by their key, between tasks and between runs, for as long as what they were made from is unchanged.
// Their files are blobs of the cache, which may evict those that nobody uses. It is safe for concurrent use.
type Store struct {
	cache *blobcache.Cache

	mu       sync.Mutex
	payloads map[string]*list.Element // of *payload
	recent   *list.List               // most recently used first
}

// payload is immutable once it is in a Store.
type payload struct {
	key      string
	text     []byte           // the manifest blob
	manifest blobcache.Digest // of text
	blobs    []blobcache.Digest
	inputs   []Input
}

// Seen is which payloads a run has found unchanged. It goes on with them until it ends, as with what plain Ansible has built for it, or until one
// lacks files that nobody has used for long. The zero value has seen none. It is safe for concurrent use.
type Seen struct {
	mu       sync.Mutex
	payloads map[string]*payload
}

func (s *Seen) get(key string) *payload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.payloads[key]
}

func (s *Seen) add(p *payload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.payloads == nil {
		s.payloads = map[string]*payload{}
	}
	s.payloads[p.key] = p
}

func (s *Seen) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.payloads, key)
}

// NewStore returns an empty store whose blobs live in cache.
func NewStore(cache *blobcache.Cache) *Store {
	return &Store{cache: cache, payloads: map[string]*list.Element{}, recent: list.New()}
}

// Offer makes a payload known and returns which of its blobs have to be brought (AddBlob) before it can run.
func (s *Store) Offer(key []byte, m Manifest, inputs []Input) ([]blobcache.Digest, error) {
	if len(key) == 0 || len(key) > 256 {
		return nil, fmt.Errorf("the payload's key has %d bytes: 1 to 256 are allowed", len(key))
	}
	if len(inputs) > MaxInputs {
		return nil, fmt.Errorf("the payload has %d inputs: at most %d are allowed", len(inputs), MaxInputs)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	text := m.Text()
	p := &payload{key: string(key), text: text, manifest: blobcache.Sum(text), blobs: distinct(m.Entries), inputs: inputs}
	s.add(p)
	missing := make([]blobcache.Digest, 0)
	for _, d := range p.blobs {
		if !s.cache.Has(d) {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// AddBlob keeps content, which nobody may change any more, and which must have the name it comes under.
func (s *Store) AddBlob(name blobcache.Digest, content []byte) error {
	if blobcache.Sum(content) != name {
		return fmt.Errorf("a blob's content is not what its name %s says", name)
	}
	s.cache.Put(content)
	return nil
}

// Counts says how many payloads are known, and how many bytes of blobs.
func (s *Store) Counts() (payloads int, blobBytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.payloads), s.cache.Bytes()
}

// Pin looks a payload up for use by a run: what it was made from is checked, unless the run has seen it, and its blobs stay until Release. An
// error of kind PayloadWanted asks for it to be offered (again).
func (s *Store) Pin(key []byte, seen *Seen) (*Pinned, error) {
	p := seen.get(string(key))
	if p == nil {
		if p = s.find(string(key)); p == nil {
			return nil, wanted("is not known to this daemon")
		}
		for i := range p.inputs {
			if !p.inputs[i].unchanged() {
				s.forget(p)
				return nil, wanted("was made from files that have changed since: " + p.inputs[i].Path)
			}
		}
		seen.add(p)
	}
	release, missing := s.cache.Pin(p.blobs)
	if len(missing) > 0 {
		release()
		seen.forget(p.key)
		return nil, wanted(fmt.Sprintf("lacks %d of its files", len(missing)))
	}
	return &Pinned{payload: p, cache: s.cache, release: release}, nil
}

func wanted(why string) error {
	return &fault.Error{Kind: fault.PayloadWanted, Message: "the payload " + why}
}

func (s *Store) find(key string) *payload {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.payloads[key]
	if !ok {
		return nil
	}
	s.recent.MoveToFront(e)
	return payloadOf(e)
}

func (s *Store) add(p *payload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.payloads[p.key]; ok {
		e.Value = p
		s.recent.MoveToFront(e)
		return
	}
	s.payloads[p.key] = s.recent.PushFront(p)
	if oldest := s.recent.Back(); len(s.payloads) > maxPayloads {
		delete(s.payloads, payloadOf(oldest).key)
		s.recent.Remove(oldest)
	}
}

// forget removes p, unless another payload has taken its key since.
func (s *Store) forget(p *payload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.payloads[p.key]; ok && payloadOf(e) == p {
		delete(s.payloads, p.key)
		s.recent.Remove(e)
	}
}

func payloadOf(e *list.Element) *payload {
	p, ok := e.Value.(*payload)
	if !ok {
		panic("moduleexec: a list element is not a payload")
	}
	return p
}

// distinct returns each digest once, in order: empty __init__.py files are many.
func distinct(entries []Entry) []blobcache.Digest {
	seen := make(map[blobcache.Digest]struct{}, len(entries))
	ds := make([]blobcache.Digest, 0, len(entries))
	for _, e := range entries {
		if _, again := seen[e.Digest]; !again {
			seen[e.Digest] = struct{}{}
			ds = append(ds, e.Digest)
		}
	}
	return ds
}

// Pinned is a payload in use.
type Pinned struct {
	*payload
	cache   *blobcache.Cache
	release func()
}

// Release gives the payload's blobs back to the cache. It may be called more than once.
func (p *Pinned) Release() { p.release() }

// Get implements agent.BlobSource: the manifest's text is a blob that the store itself keeps.
func (p *Pinned) Get(d blobcache.Digest) ([]byte, bool) {
	if d == p.manifest {
		return p.text, true
	}
	return p.cache.Get(d)
}

// want lists all blobs that an agent needs for this payload.
func (p *Pinned) want() []blobcache.Digest {
	return append(append(make([]blobcache.Digest, 0, len(p.blobs)+1), p.blobs...), p.manifest)
}
