package agent_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// store is an agent's memory of blobs, filled as the page says.
type store struct {
	blobs map[blobcache.Digest][]byte
	sent  int // blobs that came, again or not
}

// unpack reads the stream of a whole blobs request.
func (s *store) unpack(t *testing.T, packed []byte) {
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Errorf("blobs: %v", err)
		return
	}
	for {
		var head [36]byte
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Errorf("blobs: %v", err)
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[32:]))
		if _, err := io.ReadFull(r, body); err != nil || blobcache.Sum(body) != blobcache.Digest(head[:32]) {
			t.Errorf("a blob of %d bytes came otherwise: %v", len(body), err)
		}
		s.blobs[blobcache.Digest(head[:32])] = body
		s.sent++
	}
}

// keeper is an agent that keeps blobs, forgets them on DROP, and refuses a module whose manifest it does not have.
func keeper(t *testing.T, s *store) func(*agenttest.Fake) {
	return func(f *agenttest.Fake) {
		f.Boot()
		packed := map[uint32][]byte{}
		for {
			frame := f.Next()
			switch frame.Type {
			case agent.TypePing:
				f.Send(agent.TypePong, 0, frame.Payload)
			case agent.TypeDrop:
				for p := frame.Payload; len(p) > 0; p = p[32:] {
					delete(s.blobs, blobcache.Digest(p[:32]))
				}
			case agent.TypeOpen:
				r, err := agent.DecodeRequest(frame.Payload)
				if err != nil {
					t.Error(err)
				}
				if m, ok := r.(agent.Module); ok {
					var res agent.Result
					if _, ok := s.blobs[m.Manifest]; !ok {
						res = agent.Result{Failed: true, Failure: agent.FailBlobMissing}
					}
					f.Result(frame.Stream, res)
				}
			case agent.TypeData:
				packed[frame.Stream] = append(packed[frame.Stream], frame.Payload...)
				f.Send(agent.TypeCredit, frame.Stream, number(uint32(len(frame.Payload))))
			case agent.TypeEnd:
				s.unpack(t, packed[frame.Stream])
				f.Result(frame.Stream, agent.Result{})
			}
		}
	}
}

// send is a request that needs ds and has ended.
func send(ctx context.Context, t *testing.T, l *agent.Link, ds []blobcache.Digest, from agent.BlobSource) {
	t.Helper()
	release, err := l.SendBlobs(ctx, ds, from)
	must(t, err)
	release()
}

// TestBlobsOnceAndInTime: whoever calls, each blob goes once, and a request after SendBlobs finds its own.
func TestBlobsOnceAndInTime(t *testing.T) {
	ctx := within(t)
	s := &store{blobs: map[blobcache.Digest][]byte{}}
	l := agenttest.Link(t, agent.Options{}, keeper(t, s))
	cache := blobcache.New(1 << 30)
	noise := rand.NewChaCha8([32]byte{})
	var all []blobcache.Digest
	var total int64
	for i := range 40 {
		b := make([]byte, i*i*200) // up to 300 kB, 4 MB together: more than a window, and not to be compressed
		_, _ = noise.Read(b)
		all = append(all, cache.Put(b))
		total += int64(len(b))
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 20 {
				want := []blobcache.Digest{all[(i*7+j*3)%40], all[(i+j)%40], all[(i+j)%40]}
				release, err := l.SendBlobs(ctx, want, cache)
				if err != nil {
					t.Error(err)
					return
				}
				defer release()
				for _, d := range want {
					st, err := l.Open(ctx, agent.Module{Manifest: d})
					if err != nil {
						t.Error(err)
						return
					}
					for {
						e, err := st.Recv(ctx)
						if err != nil {
							break
						}
						if e.Result.Failed {
							t.Errorf("a blob was not there in time: %+v", e.Result)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	send(ctx, t, l, all, cache)
	must(t, l.Ping(ctx))
	if s.sent != 40 || l.Stats().BlobBytes != total {
		t.Errorf("%d blobs were sent, %d of %d bytes", s.sent, l.Stats().BlobBytes, total)
	}
}

// TestBlobsAreBounded: what was used longest ago goes, and only what no request needs; what went comes again when it is wanted.
func TestBlobsAreBounded(t *testing.T) {
	ctx := within(t)
	s := &store{blobs: map[blobcache.Digest][]byte{}}
	l := agenttest.Link(t, agent.Options{BlobLimit: 1000}, keeper(t, s))
	cache := blobcache.New(1 << 20)
	var all []blobcache.Digest
	for i := range 8 {
		all = append(all, cache.Put(bytes.Repeat([]byte{byte(i)}, 300)))
	}
	there := func(want ...int) {
		t.Helper()
		must(t, l.Ping(ctx))
		if len(s.blobs) != len(want) || l.Stats().BlobBytes != int64(300*len(want)) {
			t.Errorf("the agent keeps %d blobs and is believed to have %d bytes, want blobs %v", len(s.blobs), l.Stats().BlobBytes, want)
		}
		for _, i := range want {
			if _, ok := s.blobs[all[i]]; !ok {
				t.Errorf("the agent has forgotten blob %d of %v", i, want)
			}
		}
	}
	for i := range 3 {
		send(ctx, t, l, all[i:i+1], cache)
	}
	there(0, 1, 2)
	send(ctx, t, l, all[:1], cache)
	send(ctx, t, l, all[3:4], cache)
	there(0, 2, 3)

	first, err := l.SendBlobs(ctx, all[:4], cache) // more than it may keep, and all of it needed
	must(t, err)
	second, err := l.SendBlobs(ctx, all[3:5], cache)
	must(t, err)
	there(0, 1, 2, 3, 4)
	first()
	first()
	there(1, 3, 4) // 1 came last of the first four
	send(ctx, t, l, all[5:], cache)
	there(3, 4, 7)
	second()
	there(3, 4, 7)
	if s.sent != 4+2+3 {
		t.Errorf("%d blobs were sent", s.sent)
	}
}

func TestBlobMissingHere(t *testing.T) {
	ctx := within(t)
	s := &store{blobs: map[blobcache.Digest][]byte{}}
	l := agenttest.Link(t, agent.Options{}, keeper(t, s))
	cache := blobcache.New(1 << 20)
	here := cache.Put([]byte("here"))
	_, err := l.SendBlobs(ctx, []blobcache.Digest{here, blobcache.Sum([]byte("not here"))}, cache)
	if fault.KindOf(err) != fault.Internal {
		t.Errorf("got %v", err)
	}
	send(ctx, t, l, []blobcache.Digest{here}, cache)
	must(t, l.Ping(ctx))
	if s.sent != 1 {
		t.Errorf("%d blobs were sent", s.sent)
	}
}

// TestRefusedBlobsAreSentAgain: an agent that says it did not get them is not believed to have them.
func TestRefusedBlobsAreSentAgain(t *testing.T) {
	ctx := within(t)
	l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		for _, failed := range []bool{true, false} {
			id, _ := f.Open()
			for f.Next().Type != agent.TypeEnd {
			}
			f.Send(agent.TypePong, 0, f.Expect(agent.TypePing).Payload)
			if failed {
				f.Result(id, agent.Result{Failed: true, Failure: agent.FailDigest, Text: "no"})
			} else {
				f.Result(id, agent.Result{})
			}
			f.Send(agent.TypePong, 0, f.Expect(agent.TypePing).Payload)
		}
		f.Drain()
	})
	cache := blobcache.New(1 << 20)
	want := []blobcache.Digest{cache.Put([]byte("a"))}
	for _, left := range []int64{0, 1} {
		send(ctx, t, l, want, cache) // without waiting for the answer
		must(t, l.Ping(ctx))
		must(t, l.Ping(ctx))
		if got := l.Stats().BlobBytes; got != left {
			t.Errorf("the agent is believed to have %d bytes, want %d", got, left)
		}
	}
}

// TestBlobsCancelled: a caller that gives up leaves nothing half done for the next.
func TestBlobsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []agent.FrameType
		goOn := make(chan struct{})
		s := &store{blobs: map[blobcache.Digest][]byte{}}
		ours, theirs := net.Pipe()
		agenttest.Script(t, theirs, func(f *agenttest.Fake) {
			f.Boot()
			id, _ := f.Open()
			<-goOn
			for f.Next().Type != agent.TypeCancel {
			}
			f.Result(id, agent.Result{Failed: true, Failure: agent.FailCancelled})
			id, _ = f.Open()
			var packed []byte
			for {
				frame := f.Next()
				got = append(got, frame.Type)
				if frame.Type == agent.TypeEnd {
					break
				}
				packed = append(packed, frame.Payload...)
			}
			s.unpack(t, packed)
			f.Result(id, agent.Result{})
			f.Drain()
		})
		l, err := agent.Connect(t.Context(), ours, agent.Options{})
		must(t, err)
		cache := blobcache.New(1 << 30)
		big := make([]byte, 3<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(big)
		want := []blobcache.Digest{cache.Put(big)}
		small := []blobcache.Digest{cache.Put([]byte("small"))}
		ctx, cancel := context.WithCancelCause(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		sending := func(ctx context.Context, ds []blobcache.Digest) error {
			_, err := l.SendBlobs(ctx, ds, cache)
			return err
		}
		go func() { first <- sending(ctx, want) }()
		synctest.Wait()
		go func() { second <- sending(t.Context(), small) }()
		synctest.Wait()
		cancel(errors.New("enough"))
		if err := <-first; fault.KindOf(err) != fault.Cancelled {
			t.Errorf("the first: %v", err)
		}
		close(goOn)
		must(t, <-second)
		synctest.Wait()
		if st := l.Stats(); s.sent != 1 || st.BlobBytes != 5 {
			t.Errorf("%d blobs arrived, %+v", s.sent, st)
		}
		must(t, l.Close())
	})
}

// TestTheSameBlobsAreTheSameStream: for whoever sends them, whatever others send meanwhile.
func TestTheSameBlobsAreTheSameStream(t *testing.T) {
	ctx := within(t)
	cache := blobcache.New(1 << 30)
	sets := make([][]blobcache.Digest, 3)
	for i := range sets {
		for j := range 3 {
			sets[i] = append(sets[i], cache.Put(bytes.Repeat([]byte{byte(i + j)}, 100_000)))
		}
	}
	noise := make([]byte, 2<<20) // not to be compressed, and more than is kept
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	sets[2] = append(sets[2], cache.Put(noise))
	var wg sync.WaitGroup
	for i := range 24 {
		s, want := &store{blobs: map[blobcache.Digest][]byte{}}, sets[i%len(sets)]
		l := agenttest.Link(t, agent.Options{}, keeper(t, s))
		wg.Go(func() {
			release, err := l.SendBlobs(ctx, want, cache)
			if err == nil {
				release()
				err = l.Ping(ctx)
			}
			if err != nil {
				t.Error(err)
			}
			if s.sent != len(want) {
				t.Errorf("%d blobs came, want %d", s.sent, len(want))
			}
			for _, d := range want {
				if _, ok := s.blobs[d]; !ok {
					t.Errorf("blob %s did not come", d)
				}
			}
		})
	}
	wg.Wait()
}
