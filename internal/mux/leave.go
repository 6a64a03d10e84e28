package mux

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// This file says when a node leaves: when nobody holds it, it has no children, and
//   - it is still being opened: at once, there is nobody left to want it;
//   - it is draining: at once;
//   - no run has it in use, for each that did has ended or released it: its persistence after its last use, become nodes at once if
//     the run wants that.

// errUnwanted is why a dial ends when the last who waited has gone.
func errUnwanted() *fault.Error {
	return &fault.Error{Kind: fault.Cancelled, Message: "nobody waits for the connection any more"}
}

// errLeft is why a node that left by itself is closed.
func errLeft() *fault.Error {
	return &fault.Error{Kind: fault.Cancelled, Message: "the connection was idle"}
}

// releaseLocked gives a hold back.
func (t *Tree) releaseLocked(n *node) {
	n.refs--
	now := time.Now()
	for at := n; at != nil; at = at.parent {
		at.lastUsed = now
	}
	t.reconsiderLocked(n)
}

func (t *Tree) release(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseLocked(n)
}

// reconsiderLocked applies the rules above to n. It is called whenever something they look at has changed.
func (t *Tree) reconsiderLocked(n *node) {
	if n.timer != nil {
		n.timer.Stop()
		n.timer = nil
	}
	if n.state.Ended() || n.refs > 0 || len(n.children) > 0 {
		return
	}
	t.grantLocked(n.root) // n may be the one to evict
	if n.state.Ended() {
		return
	}
	switch {
	case !n.usable && n.edge.role == localAgent && n.state != Draining:
		t.expectLocked(n)
	case !n.usable:
		t.downLocked(n, Failed, errUnwanted())
	case n.state == Draining:
		t.downLocked(n, Closed, errLeft())
	case n.wantedLocked():
	case n.edge.role == becomeAgent && !n.persistBecome:
		t.downLocked(n, Closed, errLeft())
	default:
		left := time.Until(n.lastUsed.Add(n.persist))
		if left <= 0 {
			t.downLocked(n, Closed, errLeft())
			return
		}
		t.afterLocked(n, left, t.reconsiderLocked)
	}
}

// afterLocked calls f on n in a while, unless n has ended or is reconsidered before.
func (t *Tree) afterLocked(n *node, d time.Duration, f func(*node)) {
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if n.timer == timer && !n.state.Ended() {
			f(n)
		}
	})
	n.timer = timer
}

// useLocked notes that a run uses n for an inventory name.
func (t *Tree) useLocked(n *node, rs *runState, run hop.Run, host string) {
	n.lastUsed = time.Now()
	n.persist = time.Duration(max(run.PersistFor, 0)) * time.Second
	n.persistBecome = run.PersistBecome
	if host != "" {
		n.hosts[host] = true
	}
	if rs.ended {
		return
	}
	n.uses[use{rs.id, host}] = true
}

// wantedLocked reports whether a run keeps n for a later use.
func (n *node) wantedLocked() bool {
	for _, wanted := range n.uses {
		if wanted {
			return true
		}
	}
	return false
}

// runLocked is the tree's own record of a run.
func (t *Tree) runLocked(id string) *runState {
	rs := t.runs[id]
	if rs == nil {
		rs = &runState{id: id}
		t.runs[id] = rs
	}
	return rs
}

// EndRun takes note that a run is over: its local nodes end, and nodes that no other run uses stay only as long as they are to
// persist. The caller must not ask for anything more on behalf of the run.
func (t *Tree) EndRun(run string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rs := t.runs[run]
	if rs == nil {
		return
	}
	rs.ended = true
	delete(t.runs, run)
	nodes := t.childrenFirstLocked()
	for _, n := range nodes {
		maps.DeleteFunc(n.uses, func(u use, _ bool) bool { return u.run == run })
		maps.DeleteFunc(n.told, func(u use, _ bool) bool { return u.run == run })
	}
	for _, n := range nodes {
		if n.edge.role == localAgent && n.edge.run == run {
			t.downLocked(n, Closed, &fault.Error{Kind: fault.Cancelled, Message: "the run is over"})
			continue
		}
		t.reconsiderLocked(n)
	}
}

// Release takes note that a run has done with inventory names, for now: nodes that it used for no other, and that no other run uses, stay
// only as long as they are to persist. A further use takes that back.
func (t *Tree) Release(run string, hosts []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.childrenFirstLocked() {
		released := false
		for _, host := range hosts {
			if n.uses[use{run, host}] {
				n.uses[use{run, host}] = false
				released = true
			}
		}
		if released {
			t.reconsiderLocked(n)
		}
	}
}

// Reset makes the connections that a run opened for an inventory name, and the one that path starts with, Draining, and all
// below them: who uses them may finish, the next request opens them anew. Of a path of several hops it is what is at its end, for what
// leads there belongs to others, too.
func (t *Tree) Reset(run, host string, path hop.Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(path) > 1 {
		connections, agents := t.endsLocked(path, run)
		for _, n := range slices.Concat(connections, agents) {
			t.drainLocked(n)
		}
		return
	}
	if len(path) > 0 {
		if e, ok := connectionEdge(path[0], run); ok {
			if n := t.roots[e]; n != nil {
				t.drainLocked(n)
			}
		}
	}
	for _, n := range t.childrenFirstLocked() {
		if _, used := n.uses[use{run, host}]; used && (n.edge.role == sshConnection || n.edge.role == localAgent) {
			t.drainLocked(n)
		}
	}
}

// Vacate ends the idle agents of a become account on the connections that a run opened for an inventory name, and waits until their
// processes have gone.
func (t *Tree) Vacate(ctx context.Context, run, host, account string) error {
	var leaving []func(context.Context) error
	t.mu.Lock()
	for _, n := range t.childrenFirstLocked() {
		if _, used := n.root.uses[use{run, host}]; !used || n.edge.role != becomeAgent || n.hop.Become.User != account {
			continue
		}
		if n.usable && n.refs == 0 && len(n.children) == 0 {
			leaving = append(leaving, n.gone)
			t.drainLocked(n)
		}
	}
	t.mu.Unlock()
	for _, gone := range leaving {
		if err := gone(ctx); err != nil {
			return err
		}
	}
	return nil
}

// drainLocked makes n and all below it Draining, and ends what nobody holds.
func (t *Tree) drainLocked(n *node) {
	if n.state.Ended() {
		return
	}
	if n.state != Draining {
		t.moveLocked(n, Draining)
	}
	t.forgetLocked(n)
	for _, child := range slices.Collect(maps.Keys(n.children)) {
		t.drainLocked(child)
	}
	t.reconsiderLocked(n)
}

// childrenFirstLocked lists the nodes so that a parent comes after its children, which are always younger.
func (t *Tree) childrenFirstLocked() []*node {
	return slices.SortedFunc(maps.Keys(t.all), func(a, b *node) int { return int(b.id) - int(a.id) })
}
