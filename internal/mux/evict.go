package mux

import (
	"context"
	"slices"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// slots counts the interpreters of one target, and has those that wait for theirs, first come, first served.
type slots struct {
	used     int
	queue    []*slotWait
	granting bool // grantLocked is under way: ending a node calls it again
}

type slotWait struct {
	node    *node
	limit   int
	granted chan struct{}
}

// takeSlot makes n one of its target's interpreters. When there are as many as the run allows, the idle, childless one that was
// used longest ago leaves; when all are busy, n waits for at most the connect timeout.
func (t *Tree) takeSlot(ctx context.Context, n *node) error {
	limit := n.opening.run.MaxInterp
	if limit <= 0 {
		limit = defaultInterp
	}
	w := &slotWait{node: n, limit: limit, granted: make(chan struct{})}
	t.mu.Lock()
	s := &n.root.slots
	s.queue = append(s.queue, w)
	t.grantLocked(n.root)
	timeout := connectTimeout(n.root)
	t.mu.Unlock()

	timer := time.NewTimer(timeout)
	defer timer.Stop()
	var err error
	select {
	case <-w.granted:
		return nil
	case <-timer.C:
		err = &fault.Error{
			Kind: fault.TimedOut, Message: "all interpreters of the target are busy",
			Hint: "raise mitogen_max_interpreters, or run fewer accounts of one host at the same time",
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.slot {
		return nil // granted meanwhile; if n has ended, that gave the slot back
	}
	s.queue = slices.DeleteFunc(s.queue, func(q *slotWait) bool { return q == w })
	t.grantLocked(n.root) // the next one's limit may be higher
	return err
}

// grantLocked gives slots to those who wait, as far as there are any.
func (t *Tree) grantLocked(root *node) {
	s := &root.slots
	if s.granting {
		return
	}
	s.granting = true
	defer func() { s.granting = false }()
	for len(s.queue) > 0 {
		w := s.queue[0]
		if w.node.state.Ended() {
			s.queue = s.queue[1:]
			continue
		}
		if s.used >= w.limit && !t.evictLocked(root) {
			return
		}
		if s.used >= w.limit {
			continue // a lower limit than that of those before: more than one must go
		}
		s.queue = s.queue[1:]
		s.used++
		w.node.slot = true
		close(w.granted)
	}
}

// evictLocked ends the interpreter of a target that can best be spared, and reports whether there was one.
func (t *Tree) evictLocked(root *node) bool {
	return t.spareLocked(t.all, func(n *node) bool { return n.root == root && n.slot && n.refs == 0 && len(n.children) == 0 },
		"too many interpreters on one target", "another account needed the place")
}

// makeRoom ends the agent of a connection, and all below it, that can best be spared, if there is one: each holds a session.
func (t *Tree) makeRoom(connection *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spareLocked(connection.children, (*node).idle, "too many sessions on one connection", "another command needed the session")
}

// spareLocked ends the usable one of nodes that was used longest ago of those that may go, and reports whether there was one. why is for
// the log, message for whoever still has to do with it.
func (t *Tree) spareLocked(nodes map[*node]bool, may func(*node) bool, why, message string) bool {
	var oldest *node
	for n := range nodes {
		if n.usable && may(n) && (oldest == nil || n.lastUsed.Before(oldest.lastUsed)) {
			oldest = n
		}
	}
	if oldest == nil {
		return false
	}
	t.log.Debug(why+": one that is idle leaves", "name", oldest.name())
	t.downLocked(oldest, Closed, &fault.Error{Kind: fault.Cancelled, Message: message})
	return true
}

// idle reports whether nobody holds n or what is below it, and nothing there is being opened.
func (n *node) idle() bool {
	for child := range n.children {
		if !child.usable || !child.idle() {
			return false
		}
	}
	return n.refs == 0
}

// connectTimeout is how long a target's own hop lets a connection attempt take.
func connectTimeout(root *node) time.Duration {
	if s := root.hop.SSH; s != nil && s.TimeoutSeconds > 0 {
		return time.Duration(s.TimeoutSeconds) * time.Second
	}
	return defaultTimeout
}
