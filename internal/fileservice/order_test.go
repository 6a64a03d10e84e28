package fileservice

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

func (t *turns) users(link string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if mine, ok := t.links[link]; ok {
		return mine.holders + len(mine.waiting)
	}
	return 0
}

// A second large file waits until the first one's last byte has left; a small one does not wait.
func TestLargeFilesTakeTurns(t *testing.T) { synctest.Test(t, takeTurns) }

func takeTurns(t *testing.T) {
	const size = agent.Window + 3*chunkSize
	s := New()
	fullWindow, smallDone, secondOpen := make(chan struct{}), make(chan struct{}), make(chan struct{})
	opened, filled := sync.OnceFunc(func() { close(secondOpen) }), sync.OnceFunc(func() { close(fullWindow) })
	l := agenttest.Link(t, agent.Options{Name: "fake"}, func(f *agenttest.Fake) {
		defer opened()
		defer filled()
		f.Boot()
		first, _ := f.Open()
		left := readData(f, first, agent.Window)
		filled()
		small, r := f.Open()
		if put, ok := r.(agent.Put); !ok || put.Size != 5 {
			t.Errorf("where the small file was due came %+v", r)
		}
		f.Expect(agent.TypeData)
		f.Expect(agent.TypeEnd)
		f.Result(small, agent.Result{Size: 5, SHA256: blobcache.Sum([]byte("small"))})
		<-smallDone
		f.Send(agent.TypeCredit, first, binary.BigEndian.AppendUint32(nil, agent.Window))
		// The second one begins when the first one's last bytes have left for the link's outbox, before it has its result. Its OPEN may
		// overtake those bytes, as control frames do.
		second, ended := uint32(0), false
		for left := size + 32 - left; second == 0 || !ended; {
			switch frame := f.Next(); {
			case frame.Type == agent.TypeOpen:
				second = frame.Stream
				if left > 4*agent.MaxPayload {
					t.Errorf("the second file began with %d bytes of the first to go", left)
				}
			case frame.Type == agent.TypeData && frame.Stream == first:
				left -= len(frame.Payload)
			case frame.Type == agent.TypeEnd && frame.Stream == first:
				ended = true
			}
		}
		opened()
		f.Result(first, agent.Result{Size: size, SHA256: blobcache.Sum(make([]byte, size))})
		f.Result(second, agent.Result{Failed: true, Failure: agent.FailIO, Text: "no"})
		f.Drain()
	})
	ctx := within(t)
	large := func() *PutRequest {
		return &PutRequest{Link: "l", Body: inParts(make([]byte, size), chunkSize), Dest: []byte("/x")}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Put(ctx, linked{l}, large()); err != nil {
			t.Errorf("first: %v", err)
		}
	})
	<-fullWindow
	wg.Go(func() {
		if _, err := s.Put(ctx, linked{l}, large()); fault.KindOf(err) != fault.FileFailed {
			t.Errorf("second: %v", err)
		}
	})
	synctest.Wait()
	if s.up.users("l") != 2 {
		t.Error("the second one does not wait")
	}
	if _, err := s.Put(ctx, linked{l}, &PutRequest{Link: "l", Body: inParts([]byte("small"), 5), Dest: []byte("/y")}); err != nil {
		t.Errorf("small: %v", err)
	}
	close(smallDone)
	<-secondOpen
	wg.Wait()
	if s.up.users("l") != 0 {
		t.Error("a turn is left")
	}
}

// readData reads n bytes of DATA and returns how many.
func readData(f *agenttest.Fake, stream uint32, n int) int {
	got := 0
	for got < n {
		frame := f.Expect(agent.TypeData)
		if frame.Stream == stream {
			got += len(frame.Payload)
		}
	}
	return got
}

// A node that takes no more of its file keeps the next one waiting for a while, and not for ever; it may go on later.
func TestStuckNodePassesItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = agent.Window + 3*chunkSize
		s := New()
		goOn := make(chan struct{})
		l := agenttest.Link(t, agent.Options{Name: "fake"}, func(f *agenttest.Fake) {
			f.Boot()
			first, _ := f.Open()
			left := size + 32 - readData(f, first, agent.Window)
			second, _ := f.Open()
			f.Result(second, agent.Result{Failed: true, Failure: agent.FailIO, Text: "no"})
			<-goOn
			f.Send(agent.TypeCredit, first, binary.BigEndian.AppendUint32(nil, agent.Window))
			for left > 0 {
				if frame := f.Next(); frame.Stream == first {
					left -= len(frame.Payload)
				}
			}
			f.Result(first, agent.Result{Size: size, SHA256: blobcache.Sum(make([]byte, size))})
			f.Drain()
		})
		large := func() *PutRequest {
			return &PutRequest{Link: "l", Body: inParts(make([]byte, size), chunkSize), Dest: []byte("/x")}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Put(t.Context(), linked{l}, large()); err != nil {
				t.Errorf("first: %v", err)
			}
		})
		synctest.Wait()
		began := time.Now()
		if _, err := s.Put(t.Context(), linked{l}, large()); fault.KindOf(err) != fault.FileFailed {
			t.Errorf("second: %v", err)
		}
		if waited := time.Since(began); waited != stuckAfter {
			t.Errorf("it waited %v", waited)
		}
		close(goOn)
		wg.Wait()
		if s.up.users("l") != 0 {
			t.Error("a turn is left")
		}
	})
}

func TestTurnsAreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q turns
		var order []int
		release, err := q.take(t.Context(), "l", "")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				free, err := q.take(t.Context(), "l", "")
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i)
				free()
				free()
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		wg.Go(func() {
			if _, err := q.take(ctx, "l", ""); fault.KindOf(err) != fault.Cancelled {
				t.Errorf("a cancelled wait: %v", err)
			}
		})
		synctest.Wait()
		cancel(errors.New("bored"))
		free, err := q.take(t.Context(), "another link", "")
		if err != nil {
			t.Fatal(err)
		}
		free()
		synctest.Wait()
		release()
		wg.Wait()
		for i, got := range order {
			if i != got {
				t.Errorf("order %v", order)
				break
			}
		}
		if len(order) != 5 || len(q.links) != 0 {
			t.Errorf("order %v, left %v", order, q.links)
		}
	})
}

// Who moves what is being moved does not wait, nor for anybody else who moves it; who moves something else waits for all of them.
func TestTurnsOfOneContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q turns
		var mu sync.Mutex
		var order []string
		came := func(name string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
		}
		var wg sync.WaitGroup
		leave := map[string]chan struct{}{}
		ask := func(ctx context.Context, name, content string) {
			left := make(chan struct{})
			leave[name] = left
			wg.Go(func() {
				free, err := q.take(ctx, "l", content)
				if err != nil {
					came(name + " gave up")
					return
				}
				came(name)
				<-left
				free()
			})
			synctest.Wait()
		}
		then := func(what func(), want ...string) {
			t.Helper()
			order = nil
			what()
			synctest.Wait()
			slices.Sort(order)
			if !slices.Equal(order, want) {
				t.Errorf("in came %q, want %q", order, want)
			}
		}
		impatient, cancel := context.WithCancelCause(t.Context())
		then(func() { ask(t.Context(), "a1", "a") }, "a1")
		then(func() { ask(t.Context(), "b1", "b") })
		then(func() { ask(t.Context(), "own1", "") })
		then(func() { ask(t.Context(), "own2", "") })
		then(func() { ask(impatient, "b2", "b") })
		then(func() { ask(t.Context(), "b3", "b") })
		then(func() { ask(t.Context(), "a2", "a") }, "a2")
		then(func() { close(leave["a1"]) })
		then(func() { ask(t.Context(), "a3", "a") }, "a3")
		then(func() { close(leave["a2"]) })
		then(func() { cancel(errors.New("bored")) }, "b2 gave up")
		then(func() { close(leave["a3"]) }, "b1", "b3")
		then(func() { close(leave["b1"]) })
		then(func() { close(leave["b3"]) }, "own1")
		then(func() { close(leave["own1"]) }, "own2")
		then(func() { close(leave["own2"]) })
		wg.Wait()
		if len(q.links) != 0 {
			t.Errorf("left %v", q.links)
		}
	})
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []Progress
		s := New()
		m := s.meters.begin(Transfer{Host: "h1", Path: "/a", Up: true, Progress: Progress{Total: 100}}, func(p Progress) { told = append(told, p) })
		for range 10 {
			time.Sleep(progressEvery / 2)
			m.add(10)
		}
		if len(told) != 5 || told[0] != (Progress{Done: 20, Total: 100, Elapsed: progressEvery}) {
			t.Errorf("told %v", told)
		}
		other := s.meters.begin(Transfer{Host: "h2", Path: "/b"}, nil)
		other.add(1)
		want := []Transfer{
			{Host: "h1", Path: "/a", Up: true, Progress: Progress{Done: 100, Total: 100, Elapsed: 5 * progressEvery}},
			{Host: "h2", Path: "/b", Progress: Progress{Done: 1}},
		}
		if got := s.Transfers(); !slices.Equal(got, want) {
			t.Errorf("%v are under way", got)
		}
		m.end()
		other.end()
		if got := s.Transfers(); len(got) != 0 {
			t.Errorf("%v are left", got)
		}
	})
}
