package mux

import (
	"context"
	"errors"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// Acquire walks path, opens every edge that is missing (once, however many ask at the same time) and returns the context at its
// end, held until Release. It returns as soon as frames can be queued: an agent's HELLO may still be on its way.
//
// host is the inventory name. Errors are *fault.Error and say at which hop. A path that starts with a Local hop for which no
// agent is attached gives LocalAgentWanted with the token that an agent must show to AttachLocal.
func (t *Tree) Acquire(ctx context.Context, run hop.Run, host string, path hop.Path) (*Context, error) {
	if err := check(path); err != nil {
		return nil, err
	}
	t.mu.Lock()
	rs := t.runLocked(run.ID)
	t.mu.Unlock()
	for {
		w := &walk{tree: t, run: run, rs: rs, host: host, path: path}
		c, err := w.walk(ctx)
		if err == nil {
			return c, nil
		}
		// A connection that was kept warm may have died unnoticed (a suspended laptop, a rebooted target), and nothing of the
		// request has been sent on it. Once it is known to be dead, the next walk dials: so this repeats at most once.
		if !w.foundDead() || ctx.Err() != nil {
			return nil, err
		}
	}
}

// check refuses paths that this tree has no way to open.
func check(path hop.Path) error {
	unsupported := func(level int, h hop.Hop, message string) error {
		return &fault.Error{Kind: fault.Unsupported, Hop: level, HopName: h.Name(), Message: message}
	}
	if len(path) == 0 {
		return &fault.Error{Kind: fault.Unsupported, Message: "the path has no hop"}
	}
	for i, h := range path {
		switch {
		case h.SSH == nil && h.Local == nil && h.Become == nil && h.Container == nil:
			return unsupported(i, h, "the hop has no method")
		case i == 0 && h.SSH == nil && h.Local == nil:
			return unsupported(i, h, "a path starts with ssh or local")
		case i > 0 && h.Local != nil:
			return unsupported(i, h, "the controller's own account can only be the first hop")
		case h.Become != nil && len(h.Become.Success) == 0:
			return unsupported(i, h, "the become plugin gives no success marker")
		}
	}
	return nil
}

// walk is one request's way along its path. It holds one node at a time: a node with children stays.
type walk struct {
	tree *Tree
	run  hop.Run
	rs   *runState
	host string
	path hop.Path

	at    *node // held
	first *node // the first of the path
	dials bool  // first was not there before
	opens *node // that was not there before, the last
}

// foundDead reports whether the walk ended because a connection that it found was dead.
func (w *walk) foundDead() bool {
	if w.first == nil || w.dials {
		return false
	}
	t := w.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noticeLocked(w.first)
	return w.first.state == Closed && w.first.edge.role == sshConnection && !t.closing
}

// noticeLocked ends a node if what it has open has ended and its watcher has not come to it yet, and reports whether it did.
func (t *Tree) noticeLocked(n *node) bool {
	if !n.usable || n.link == nil && n.transport == nil {
		return false
	}
	err := n.lost()
	if err != nil {
		t.downLocked(n, Closed, err)
	}
	return err != nil
}

func (w *walk) walk(ctx context.Context) (*Context, error) {
	last := len(w.path) - 1
	end := w.path[last]
	if end.Interpreter == "" && end.Local == nil {
		if n := w.anyReady(); n != nil {
			return w.arrive(n, nil), nil
		}
	}
	bare := w.path.Bare()
	for level, h := range w.path {
		if h.Local != nil || h.SSH != nil {
			if err := w.connection(ctx, h, level); err != nil {
				return nil, err
			}
		}
		if h.Local != nil {
			continue // its first node is its agent
		}
		if level+1 == bare && h.SSH != nil && (level < last || h.Interpreter == "" && h.Discovery == nil) {
			return w.arrive(w.at, w.path[bare:]), nil // SSH itself starts a command that needs no agent
		}
		if (level < last || h.Discovery != nil) && w.anyAgent(h) {
			continue
		}
		if level >= bare {
			return w.arrive(w.at, w.path[level:]), nil // the agent of the node before does
		}
		if h.Interpreter == "" && h.Discovery == nil {
			w.leave()
			return nil, noInterpreter(h, level)
		}
		if err := w.enter(ctx, agentEdge(h), h, level, w.tree.openAgent); err != nil {
			return nil, err
		}
	}
	return w.arrive(w.at, nil), nil
}

// connectionEdge is the edge of a path's first node.
func connectionEdge(h hop.Hop, run string) (edge, bool) {
	switch {
	case h.SSH != nil:
		return edge{role: sshConnection, account: h.Account}, true
	case h.Local != nil:
		return edge{role: localAgent, account: h.Account, run: run, interpreter: h.Interpreter}, true
	default:
		return edge{}, false
	}
}

// agentEdge is the edge of the agent of an SSH, become or container hop.
func agentEdge(h hop.Hop) edge {
	switch {
	case h.SSH != nil:
		return edge{role: sshAgent, interpreter: h.Interpreter}
	case h.Container != nil:
		return edge{role: containerAgent, account: h.Account, interpreter: h.Interpreter}
	default:
		return edge{role: becomeAgent, account: h.Account, interpreter: h.Interpreter}
	}
}

// firstLocked finds the first node of a path. A local hop without an interpreter is served by any agent of the run, also by one that
// is still to attach.
func (t *Tree) firstLocked(h hop.Hop, run string) *node {
	e, _ := connectionEdge(h, run)
	if n := t.roots[e]; n != nil || h.Local == nil || h.Interpreter != "" {
		return n
	}
	var usable, wanted []*node
	for other, n := range t.roots {
		e.interpreter = other.interpreter
		switch {
		case other != e:
		case n.usable:
			usable = append(usable, n)
		default:
			wanted = append(wanted, n)
		}
	}
	if n := newest(usable); n != nil {
		return n
	}
	return newest(wanted)
}

// connection enters the first node of an SSH or local hop.
func (w *walk) connection(ctx context.Context, h hop.Hop, level int) error {
	if h.Local != nil {
		return w.enterLocal(ctx, h)
	}
	e, _ := connectionEdge(h, w.run.ID)
	return w.enter(ctx, e, h, level, w.tree.openConnection)
}

// enter holds the node of edge e below where the walk is, opening it if it is missing, waits until it can be used and steps there.
func (w *walk) enter(ctx context.Context, e edge, h hop.Hop, level int, launch func(context.Context, *node) (opened, error)) error {
	t := w.tree
	t.mu.Lock()
	n, found, err := w.findLocked(e, h, level, opening{run: w.run, launch: launch})
	if err != nil {
		t.mu.Unlock()
		w.leave()
		return err
	}
	if !found {
		t.growLocked(n)
	}
	w.stepLocked(n, !found)
	t.mu.Unlock()

	select {
	case <-n.up:
	default:
		select {
		case <-n.up:
		case <-ctx.Done():
			w.leave()
			return n.fault(contextFault(ctx), fault.Cancelled, "")
		}
	}
	return w.usable(n)
}

// findLocked finds the node of edge e below where the walk is, or plants it.
func (w *walk) findLocked(e edge, h hop.Hop, level int, o opening) (n *node, found bool, err error) {
	t := w.tree
	if t.closing {
		return nil, false, errClosing()
	}
	if w.at != nil && w.at.state.Ended() {
		return nil, false, w.at.fault(w.at.err, fault.AgentDied, "the connection was lost")
	}
	if n = t.siblingsLocked(w.at)[e]; n != nil && !t.noticeLocked(n) {
		return n, true, nil
	}
	return t.plantLocked(w.at, e, h, level, o), false, nil
}

// stepLocked moves the walk's hold to n.
func (w *walk) stepLocked(n *node, planted bool) {
	n.refs++
	w.tree.useLocked(n, w.rs, w.run, w.host)
	if planted {
		w.opens = n
	}
	if w.at != nil {
		w.tree.releaseLocked(w.at)
	} else {
		w.first, w.dials = n, planted
	}
	w.at = n
}

// leave gives the walk's hold back.
func (w *walk) leave() {
	if w.at != nil {
		w.tree.release(w.at)
		w.at = nil
	}
}

// usable ends the walk if n, whose up is closed, has ended.
func (w *walk) usable(n *node) error {
	w.tree.mu.Lock()
	ended, err := n.state.Ended(), n.err
	w.tree.mu.Unlock()
	if !ended {
		return nil
	}
	w.leave()
	return n.fault(err, fault.Internal, "the connection ended")
}

// arrive makes the context of the node the walk holds. rest are the hops for which there is no agent.
func (w *walk) arrive(n *node, rest hop.Path) *Context {
	c := &Context{tree: w.tree, node: n, transport: n.transport, link: n.link, end: w.path[len(w.path)-1], level: len(w.path) - 1, rest: rest, user: use{w.run.ID, w.host}}
	if w.opens == n {
		c.answer = n.answer
	}
	if n.edge.role == sshAgent && n.parent.transport.Shared() {
		c.transport = n.parent.transport
	}
	return c
}

// anyAgent steps to an agent of hop h, which is on the way only, or whose interpreter is to be discovered, and so needs no particular
// one: the one that is named, if it is there, else any that is ready. It reports whether there is one.
func (w *walk) anyAgent(h hop.Hop) bool {
	t := w.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.at.lookup[agentEdge(h)] != nil {
		return false
	}
	h.Interpreter = ""
	n := t.livingLocked(func() []*node { return match(w.at.lookup, h) })
	if n != nil {
		w.stepLocked(n, false)
	}
	return n != nil
}

func noInterpreter(h hop.Hop, level int) error {
	return &fault.Error{
		Kind: fault.InterpreterMissing, Hop: level, HopName: h.Name(),
		Message: "no interpreter is known for an account on the way",
		Hint:    "set ansible_python_interpreter for the account",
	}
}

// anyReady holds any ready agent at the end of the path; nil if there is none.
func (w *walk) anyReady() *node {
	t := w.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return nil
	}
	n := t.livingLocked(func() []*node {
		_, agents := t.endsLocked(w.path, w.run.ID)
		return agents
	})
	if n == nil {
		return nil
	}
	first := n
	for up := n.parent; up != nil; up = up.parent {
		t.useLocked(up, w.rs, w.run, w.host)
		first = up
	}
	w.first = first
	n.refs++
	t.useLocked(n, w.rs, w.run, w.host)
	w.at = n
	return n
}

// endsLocked lists the ready agents at the end of a path, whatever the interpreters of its hops, and the connections that they are on if
// the path ends with one.
func (t *Tree) endsLocked(path hop.Path, run string) (connections, agents []*node) {
	at := []*node{{lookup: t.roots}}
	for _, h := range path {
		h.Interpreter = ""
		connections = nil
		if want, ok := connectionEdge(h, run); ok {
			for _, parent := range at {
				for e, n := range parent.lookup {
					want.interpreter = e.interpreter
					if e == want && n.usable {
						connections = append(connections, n)
					}
				}
			}
			at = connections
		}
		if h.Local != nil {
			continue // its first node is its agent
		}
		var next []*node
		for _, n := range at {
			next = append(next, match(n.lookup, h)...)
		}
		at = next
	}
	return connections, at
}

// match lists the ready agents of hop h, and for a discovery those that are about to be.
func match(among map[edge]*node, h hop.Hop) []*node {
	want := agentEdge(h)
	var found []*node
	for e, n := range among {
		if h.Interpreter == "" {
			want.interpreter = e.interpreter
		}
		if e == want && (n.state == Ready || h.Discovery != nil && n.usable) {
			found = append(found, n)
		}
	}
	return found
}

// livingLocked is the one of the found nodes that was used last and is not ending.
func (t *Tree) livingLocked(find func() []*node) *node {
	for {
		if n := newest(find()); n == nil || !t.noticeLocked(n) {
			return n
		}
	}
}

// newest is the node that was used last.
func newest(nodes []*node) *node {
	var best *node
	for _, n := range nodes {
		if best == nil || n.lastUsed.After(best.lastUsed) {
			best = n
		}
	}
	return best
}

// contextFault says how a request's own context ended.
func contextFault(ctx context.Context) error {
	cause := context.Cause(ctx)
	if _, ok := errors.AsType[*fault.Error](cause); ok {
		return cause
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return &fault.Error{Kind: fault.TimedOut, Message: "the time ran out while connecting", Cause: cause}
	}
	return &fault.Error{Kind: fault.Cancelled, Message: "the request was cancelled while connecting", Cause: cause}
}

// growLocked starts the goroutine that opens n, watches it and ends with it.
func (t *Tree) growLocked(n *node) {
	ctx, cancel := context.WithCancelCause(t.ctx)
	n.cancel = cancel
	t.dials++
	t.wg.Go(func() {
		defer cancel(nil)
		o, err := n.opening.launch(ctx, n)
		if !t.settle(n, o, err) {
			return
		}
		t.watch(ctx, n, o)
	})
}

// settle takes the outcome of opening n and reports whether there is something to watch.
func (t *Tree) settle(n *node, o opened, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case n.state.Ended(): // nobody waited for it any more
		if err == nil {
			t.wg.Go(func() { o.close(errUnwanted()) })
		}
		return false
	case err != nil:
		t.downLocked(n, Failed, n.fault(err, fault.Internal, "cannot open the connection"))
		return false
	}
	n.transport, n.link, n.usable = o.transport, o.link, true
	n.lastUsed = time.Now()
	if o.link == nil {
		t.progressLocked(n, Ready)
	} else {
		t.progressLocked(n, Bootstrapping)
	}
	close(n.up)
	t.reconsiderLocked(n)
	return true
}

// watch waits for the end of what n has open, and ends n with it.
func (t *Tree) watch(ctx context.Context, n *node, o opened) {
	if o.link != nil && !t.hello(ctx, n, o.link) {
		return
	}
	select {
	case <-o.done():
	case <-ctx.Done(): // n has ended already
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.downLocked(n, Closed, n.lost())
}

// hello waits for the agent's first word and reports whether n is still to be watched.
func (t *Tree) hello(ctx context.Context, n *node, link peer) bool {
	timed, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	hello, err := link.Hello(timed)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		n.hello = hello
		t.progressLocked(n, Ready)
	case timed.Err() != nil && ctx.Err() == nil:
		t.downLocked(n, Closed, n.fault(nil, fault.TimedOut, "the agent did not start in time"))
		return false
	}
	return true // a link that failed is done, and says why
}
