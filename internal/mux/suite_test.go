package mux

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// kinds registers every way of opening a node. A new one gets the suite below by standing here.
var kinds = map[string]struct {
	path  hop.Path
	step  string // of the fake world, that opening the last node goes through
	name  string // of the hop
	agent bool
	count int        // nodes on the path
	kind  fault.Kind // of an untyped failure
}{
	"ssh connection": {hop.Path{sshHop("h1", "")}, "h1", "ssh h1", false, 1, fault.Unreachable},
	"ssh exec":       {hop.Path{sshHop("h1", "py")}, "h1/py", "ssh h1", true, 2, fault.Unreachable},
	"ssh agent":      {hop.Path{sshHop("h1", "py")}, "agent ssh h1", "ssh h1", true, 2, fault.AgentDied},
	"become spawn":   {hop.Path{sshHop("h1", "py"), becomeHop("root", "py")}, "spawn sudo", "sudo root", true, 3, fault.AgentDied},
	"become agent":   {hop.Path{sshHop("h1", "py"), becomeHop("root", "py")}, "agent sudo root", "sudo root", true, 3, fault.AgentDied},
	"become twice": {
		hop.Path{sshHop("h1", "py"), becomeHop("a", "py"), becomeHop("b", "py")}, "agent sudo b", "sudo b", true, 4, fault.AgentDied,
	},
	"ssh connection behind": {hop.Path{sshHop("h1", "py"), sshHop("h2", "")}, "h2", "ssh h2", false, 3, fault.Unreachable},
	"ssh agent behind":      {hop.Path{sshHop("h1", "py"), sshHop("h2", "py")}, "agent ssh h2", "ssh h2", true, 4, fault.AgentDied},
	"local agent":           {hop.Path{localHop()}, "agent local", "local", true, 1, fault.AgentDied},
	"local become": {
		hop.Path{localHop(), becomeHop("root", "py")}, "agent sudo root", "sudo root", true, 2, fault.AgentDied,
	},
}

// attaching acquires as a run's process would: what wants a local agent gets one.
func attaching(t *testing.T, tree *Tree, ctx context.Context, r hop.Run, path hop.Path) (*Context, error) {
	t.Helper()
	c, err := tree.Acquire(ctx, r, "host", path)
	if fault.KindOf(err) != fault.LocalAgentWanted {
		return c, err
	}
	e, _ := errors.AsType[*fault.Error](err)
	ours, theirs := net.Pipe()
	go func() { _, _ = theirs.Write([]byte("MUXATTACH " + hexOf(e.Token) + "\n")) }()
	t.Cleanup(func() { _ = theirs.Close() })
	if err := tree.AttachLocal(ctx, ours); err != nil {
		return nil, err
	}
	return tree.Acquire(ctx, r, "host", path)
}

func eachKind(t *testing.T, f func(t *testing.T, name string)) {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, name) })
		})
	}
}

func TestKindIsOpenedOnceAndShared(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		first, err := attaching(t, tree, t.Context(), run("r1"), k.path)
		if err != nil {
			t.Fatal(err)
		}
		second := acquire(t, tree, run("r1"), "other", k.path...)
		if first.HasAgent() != k.agent {
			t.Errorf("HasAgent is %v", first.HasAgent())
		}
		if dials, _ := w.count(k.step); dials != 1 {
			t.Errorf("dialled %d times", dials)
		}
		synctest.Wait()
		nodes := tree.Nodes()
		if len(nodes) != k.count || nodes[len(nodes)-1].Name != k.name || nodes[len(nodes)-1].State != Ready {
			t.Errorf("nodes: %+v", nodes)
		}
		first.Release()
		first.Release() // harmless
		second.Release()
		for _, n := range tree.Nodes() {
			if n.State != Ready {
				t.Errorf("after the release: %+v", n)
			}
		}
	})
}

func TestKindWaitersShareOneDial(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		letGo := w.hold(k.step)
		const waiters = 20
		got := make(chan error, waiters)
		leaver, leave := context.WithCancelCause(t.Context())
		for i := range waiters {
			ctx := t.Context()
			if i == 3 {
				ctx = leaver
			}
			go func() {
				c, err := attaching(t, tree, ctx, run("r1"), k.path)
				if err == nil {
					c.Release()
				}
				got <- err
			}()
		}
		synctest.Wait()
		leave(errors.New("had enough"))
		synctest.Wait()
		select {
		case err := <-got:
			if fault.KindOf(err) != fault.Cancelled && !strings.HasPrefix(name, "local agent") {
				t.Fatalf("the one who left got %v", err)
			}
		default:
			t.Fatal("the one who left still waits")
		}
		letGo()
		for range waiters - 1 {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		if dials, _ := w.count(k.step); dials != 1 {
			t.Errorf("dialled %d times", dials)
		}
	})
}

func TestKindFailureIsNotKept(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		w.setFail(k.step, errors.New("no luck"))
		_, err := attaching(t, tree, t.Context(), run("r1"), k.path)
		e := wantFault(t, err, k.kind, len(k.path)-1, k.name)
		if e.Cause == nil || !strings.Contains(e.Error(), "no luck") {
			t.Errorf("the reason is lost: %v", err)
		}
		w.setFail(k.step, &fault.Error{Kind: fault.AuthFailed, Message: "typed"})
		_, err = attaching(t, tree, t.Context(), run("r1"), k.path)
		wantFault(t, err, fault.AuthFailed, len(k.path)-1, k.name)
		w.setFail(k.step, nil)
		c, err := attaching(t, tree, t.Context(), run("r1"), k.path)
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
		if dials, _ := w.count(k.step); dials != 3 {
			t.Errorf("dialled %d times", dials)
		}
	})
}

func TestKindDialEndsWithItsLastWaiter(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		if name == "local agent" {
			return // it bootstraps for its own connection, whoever waits
		}
		tree, w := newTree(t, Options{})
		letGo := w.hold(k.step)
		defer letGo()
		ctx, leave := context.WithCancelCause(t.Context())
		got := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := attaching(t, tree, ctx, run("r1"), k.path)
				got <- err
			}()
		}
		synctest.Wait()
		leave(&fault.Error{Kind: fault.TimedOut, Message: "the task's own timeout"})
		for range 2 {
			wantFault(t, <-got, fault.TimedOut, len(k.path)-1, k.name)
		}
		synctest.Wait()
		w.mu.Lock()
		opening := w.opening[k.step]
		w.mu.Unlock()
		if opening != 0 {
			t.Error("the dial goes on")
		}
		letGo()
		c, err := attaching(t, tree, t.Context(), run("r1"), k.path)
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
	})
}

func TestKindDeathClosesSubtreeAndNextDials(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		c, err := attaching(t, tree, t.Context(), run("r1"), k.path)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()             // until agents have said who they are
		for len(tree.Nodes()) > 0 { // from the leaf to the root: each in its turn is a leaf that dies
			nodes := tree.Nodes()
			before := len(nodes)
			last := nodes[len(nodes)-1]
			if last.Python == "" { // a connection
				for _, tr := range w.transports {
					if "ssh "+tr.host == last.Name {
						tr.die(errors.New("cut"))
					}
				}
			} else {
				for _, p := range w.peers {
					if p.name == last.Name {
						p.die(errors.New("cut"))
					}
				}
			}
			synctest.Wait()
			if after := len(tree.Nodes()); after != before-1 {
				t.Fatalf("%d nodes, then %d", before, after)
			}
		}
		if c.HasAgent() {
			_, err = c.Open(t.Context(), nil)
			wantFault(t, err, fault.AgentDied, len(k.path)-1, k.name)
		}
		c.Release()
		c, err = attaching(t, tree, t.Context(), run("r1"), k.path)
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
		if dials, _ := w.count(k.step); dials != 2 {
			t.Errorf("dialled %d times", dials)
		}
	})
}

// TestKindOpensTooLate is about a dial that succeeds after nobody wants it any more.
func TestKindOpensTooLate(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		w.deaf = true
		letGo := w.hold(k.step)
		ctx, leave := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() {
			_, err := attaching(t, tree, ctx, run("r1"), k.path)
			got <- err
		}()
		synctest.Wait()
		leave(errors.New("had enough"))
		if name == "local agent" {
			tree.EndRun("r1")
		}
		if err := <-got; err == nil {
			t.Error("it got a context")
		}
		letGo()
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := w.open[k.step]; n != 0 {
			t.Errorf("%d left open", n)
		}
	})
}

// TestKindRootDeath cuts the first node: all below it go at the same time.
func TestKindRootDeath(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		c, err := attaching(t, tree, t.Context(), run("r1"), k.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
		if len(w.transports) > 0 {
			w.transports[0].die(errors.New("cut"))
		} else {
			w.peers[0].die(errors.New("cut"))
		}
		synctest.Wait()
		if nodes := tree.Nodes(); len(nodes) != 0 {
			t.Errorf("left: %+v", nodes)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for what, n := range w.open {
			if n != 0 {
				t.Errorf("%d of %q still open", n, what)
			}
		}
	})
}

func TestKindCloseLetsWaitersGo(t *testing.T) {
	eachKind(t, func(t *testing.T, name string) {
		k := kinds[name]
		tree, w := newTree(t, Options{})
		letGo := w.hold(k.step)
		defer letGo()
		got := make(chan error)
		go func() {
			_, err := attaching(t, tree, t.Context(), run("r1"), k.path)
			got <- err
		}()
		synctest.Wait()
		closed := make(chan struct{})
		go func() { defer close(closed); _ = tree.Close() }()
		if err := <-got; fault.KindOf(err) != fault.Draining {
			t.Errorf("got %v", err)
		}
		<-closed
		if _, err := tree.Acquire(t.Context(), run("r1"), "host", k.path); fault.KindOf(err) != fault.Draining {
			t.Errorf("after the close: %v", err)
		}
		if tree.Busy() {
			t.Error("still busy")
		}
	})
}
