package mux

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// model drives a tree at random and knows what must be true of it between two steps.
type model struct {
	tree    *Tree
	world   *world
	held    []*Context
	waiting []*waiter
	gates   map[string]func()
}

// waiter is a request that may still be under way.
type waiter struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	c      *Context
	err    error
}

var (
	modelHosts = []string{"h1", "h2"}
	modelPaths = []hop.Path{
		{sshHop("h1", "")},
		{sshHop("h1", "py")},
		{sshHop("h1", "py3")},
		{sshHop("h2", "py")},
		{sshHop("h1", "py"), becomeHop("a", "py")},
		{sshHop("h1", "py"), becomeHop("b", "py")},
		{sshHop("h1", "py"), becomeHop("b", "")},
		{sshHop("h1", "py"), becomeHop("a", "py"), becomeHop("b", "py")},
		{sshHop("h2", "py"), becomeHop("a", "py")},
	}
	modelSteps = []string{"h1", "h2", "h1/py", "agent ssh h1", "agent ssh h2", "spawn sudo", "agent sudo a", "agent sudo b"}
)

// TestModel drives the tree at random: whatever the order of requests, releases, failures, deaths, resets and ends of runs, the
// tree's books are right, nothing that has ended is used, and in the end nothing is left.
func TestModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(t *rapid.T) { // a bubble has no deadline to ask for
			w := newWorld()
			m := &model{tree: New(Options{Dialer: w, PoolSize: 2}), world: w, gates: map[string]func(){}}
			m.tree.connect = w.connect
			defer func() { _ = m.tree.Close() }() // also when the check fails
			t.Repeat(map[string]func(*rapid.T){
				"acquire": m.acquire, "cancel": m.cancel, "release": m.release, "hold": m.hold, "let go": m.letGo, "fail": m.fail,
				"mend": m.mend, "kill transport": m.killTransport, "kill agent": m.killAgent, "reset": m.reset, "done": m.done, "end run": m.endRun,
				"sleep": m.sleep, "": m.check,
			})
			m.finish(t)
		})
	})
}

func (m *model) run(t *rapid.T) hop.Run {
	r := run(rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "run"))
	r.PersistFor = rapid.SampledFrom([]int64{0, 60}).Draw(t, "persist")
	r.PersistBecome = rapid.Bool().Draw(t, "persist become")
	return r
}

func (m *model) acquire(t *rapid.T) {
	path := rapid.SampledFrom(modelPaths).Draw(t, "path")
	r := m.run(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	w := &waiter{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.c, w.err = m.tree.Acquire(ctx, r, path[0].SSH.Host, path)
	}()
	m.waiting = append(m.waiting, w)
}

func (m *model) cancel(t *rapid.T) {
	m.settle(t)
	if len(m.waiting) > 0 {
		rapid.SampledFrom(m.waiting).Draw(t, "waiter").cancel(errors.New("had enough"))
	}
}

// settle sorts out which requests have come to an end.
func (m *model) settle(t *rapid.T) {
	synctest.Wait()
	m.waiting = slices.DeleteFunc(m.waiting, func(w *waiter) bool {
		select {
		case <-w.done:
		default:
			return false
		}
		w.cancel(nil)
		if w.err != nil {
			e, ok := errors.AsType[*fault.Error](w.err)
			if !ok || e.Kind == fault.Internal || e.HopName == "" {
				t.Fatalf("a request got %#v", w.err)
			}
			return true
		}
		m.held = append(m.held, w.c)
		return true
	})
}

func (m *model) release(t *rapid.T) {
	if len(m.held) > 0 {
		i := rapid.IntRange(0, len(m.held)-1).Draw(t, "context")
		m.held[i].Release()
		m.held = slices.Delete(m.held, i, i+1)
	}
}

func (m *model) hold(t *rapid.T) {
	step := rapid.SampledFrom(modelSteps).Draw(t, "step")
	if m.gates[step] == nil {
		m.gates[step] = m.world.hold(step)
	}
}

func (m *model) letGo(t *rapid.T) {
	step := rapid.SampledFrom(modelSteps).Draw(t, "step")
	if m.gates[step] != nil {
		m.gates[step]()
		delete(m.gates, step)
	}
}

func (m *model) fail(t *rapid.T) {
	m.world.setFail(rapid.SampledFrom(modelSteps).Draw(t, "step"), errors.New("no luck"))
}

func (m *model) mend(t *rapid.T) {
	m.world.setFail(rapid.SampledFrom(modelSteps).Draw(t, "step"), nil)
}

func (m *model) killTransport(t *rapid.T) {
	m.world.mu.Lock()
	all := slices.Clone(m.world.transports)
	m.world.mu.Unlock()
	if len(all) > 0 {
		rapid.SampledFrom(all).Draw(t, "transport").die(errors.New("cut"))
	}
}

func (m *model) killAgent(t *rapid.T) {
	m.world.mu.Lock()
	all := slices.Clone(m.world.peers)
	m.world.mu.Unlock()
	if len(all) > 0 {
		rapid.SampledFrom(all).Draw(t, "agent").die(errors.New("killed"))
	}
}

func (m *model) reset(t *rapid.T) {
	m.tree.Reset(rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "run"), rapid.SampledFrom(modelHosts).Draw(t, "host"),
		rapid.SampledFrom(append([]hop.Path{nil}, modelPaths...)).Draw(t, "path"))
}

func (m *model) done(t *rapid.T) {
	m.tree.Release(rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "run"), rapid.SliceOf(rapid.SampledFrom(modelHosts)).Draw(t, "hosts"))
}

func (m *model) endRun(t *rapid.T) {
	m.tree.EndRun(rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "run"))
}

func (m *model) sleep(t *rapid.T) {
	time.Sleep(time.Duration(rapid.IntRange(0, 70).Draw(t, "seconds")) * time.Second)
}

// check is what must hold whenever nothing moves.
func (m *model) check(t *rapid.T) {
	m.settle(t)
	refs, links, connections := m.books(t)
	if want := len(m.held) + len(m.waiting) - m.lost(); refs != want {
		t.Fatalf("%d refs, %d wanted", refs, want)
	}
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	agents, hosts := 0, 0
	for what, n := range m.world.open {
		switch {
		case n < 0:
			t.Fatalf("%q was closed more often than opened", what)
		case slices.Contains(modelHosts, what):
			hosts += n
		case strings.HasPrefix(what, "agent "):
			agents += n
		}
	}
	if agents != links || hosts != connections {
		t.Fatalf("%d agents and %d connections are open, the tree knows %d and %d", agents, hosts, links, connections)
	}
}

// books checks the tree's own records and sums them up.
func (m *model) books(t *rapid.T) (refs, links, connections int) {
	tree := m.tree
	tree.mu.Lock()
	defer tree.mu.Unlock()
	slots := map[*node]int{}
	for n := range tree.all {
		refs += n.refs
		where := fmt.Sprintf("%s %v", n.name(), n.state)
		switch {
		case n.state.Ended():
			t.Fatalf("%s: ended, and in the tree", where)
		case n.parent != nil && (!tree.all[n.parent] || !n.parent.children[n] || !n.parent.usable):
			t.Fatalf("%s: its parent does not carry it", where)
		case n.state != Draining && tree.siblingsLocked(n.parent)[n.edge] != n:
			t.Fatalf("%s: cannot be found", where)
		case n.refs < 0:
			t.Fatalf("%s: %d refs", where, n.refs)
		case n.refs == 0 && len(n.children) == 0 && (!n.usable || n.state == Draining):
			t.Fatalf("%s: nobody wants it", where)
		case n.refs == 0 && len(n.children) == 0 && !n.wantedLocked() && n.timer == nil:
			t.Fatalf("%s: would stay for ever", where)
		case n.usable && n.state != Ready && n.state != Draining:
			t.Fatalf("%s: open, and not ready", where)
		}
		if n.slot {
			slots[n.root]++
		}
		if n.usable && n.link != nil {
			links++
		}
		if n.usable && n.transport != nil {
			connections++
		}
		for e, child := range n.lookup {
			if child.edge != e || !n.children[child] {
				t.Fatalf("%s: a child at the wrong edge", where)
			}
		}
		if n.root == n {
			if n.slots.used > 3 {
				t.Fatalf("%s: %d interpreters", where, n.slots.used)
			}
		}
	}
	for e, n := range tree.roots {
		if n.edge != e || !tree.all[n] {
			t.Fatalf("a root at the wrong edge: %s", n.name())
		}
	}
	for n := range tree.all {
		if n.root == n && n.slots.used != slots[n] {
			t.Fatalf("%s: %d slots counted, %d taken", n.name(), n.slots.used, slots[n])
		}
	}
	return refs, links, connections
}

// lost counts the contexts whose node has ended under them; each must say so when it is used.
func (m *model) lost() int {
	lost := 0
	for _, c := range m.held {
		m.tree.mu.Lock()
		ended := c.node.state.Ended()
		m.tree.mu.Unlock()
		if ended {
			lost++
		}
		if !c.HasAgent() {
			continue
		}
		if _, err := c.Open(context.Background(), nil); (err != nil) != ended {
			panic(fmt.Sprintf("ended %v, and Open says %v", ended, err))
		}
	}
	return lost
}

// finish lets everything come to its end: then nothing may be left.
func (m *model) finish(t *rapid.T) {
	for _, letGo := range m.gates {
		letGo()
	}
	for _, w := range m.waiting {
		<-w.done
	}
	m.check(t)
	for _, c := range m.held {
		c.Release()
	}
	m.held = nil
	m.tree.EndRun("r1")
	m.tree.EndRun("r2")
	m.check(t)
	time.Sleep(61 * time.Second)
	m.check(t)
	if m.tree.Busy() {
		t.Fatalf("left: %s", names(m.tree))
	}
}
