package fileservice

import (
	"context"
	"slices"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// turns lets one holder in at a time for each link, in the order of their asking. Who moves the content that is being moved comes in at
// once: it crosses the link for all of them, and none waits for another one.
type turns struct {
	mu    sync.Mutex
	links map[string]*turn
}

// turn is guarded by turns.mu.
type turn struct {
	holders int
	content string    // that all of them move; "": there is one, which moves something of its own
	waiting []*waiter // first come, first served
}

type waiter struct {
	content string
	come    chan struct{} // closed when it is in
}

// take waits for link's turn. release may be called more than once.
func (t *turns) take(ctx context.Context, link, content string) (release func(), err error) {
	t.mu.Lock()
	if t.links == nil {
		t.links = map[string]*turn{}
	}
	mine, ok := t.links[link]
	if !ok {
		mine = &turn{}
		t.links[link] = mine
	}
	w := &waiter{content, make(chan struct{})}
	if mine.holders == 0 || content != "" && content == mine.content {
		mine.admit(w)
	} else {
		mine.waiting = append(mine.waiting, w)
	}
	t.mu.Unlock()

	release = sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.holders--; mine.holders == 0 && !mine.pass() {
			delete(t.links, link)
		}
	})
	select {
	case <-w.come:
		return release, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	at := slices.Index(mine.waiting, w)
	if at >= 0 {
		mine.waiting = slices.Delete(mine.waiting, at, at+1)
	}
	t.mu.Unlock()
	if at < 0 { // it came in meanwhile
		release()
	}
	return nil, fault.OfContext(ctx)
}

func (t *turn) admit(w *waiter) {
	t.holders++
	t.content = w.content
	close(w.come)
}

// pass admits who is next, and who moves the same; it reports whether there is anybody.
func (t *turn) pass() bool {
	if len(t.waiting) == 0 {
		return false
	}
	next := t.waiting[0].content
	t.admit(t.waiting[0])
	t.waiting = slices.DeleteFunc(t.waiting[1:], func(w *waiter) bool {
		same := next != "" && w.content == next
		if same {
			t.admit(w)
		}
		return same
	})
	return true
}
