package mux

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// role is what a node is in the tree. Each role has its own way of being opened, and nothing else tells them apart.
type role uint8

const (
	sshConnection  role = iota + 1 // an account reached by SSH, without an interpreter
	sshAgent                       // an agent on such a connection
	becomeAgent                    // an agent of another account, spawned by an agent
	containerAgent                 // an agent in a container, spawned by an agent
	localAgent                     // the controller's own, attached by a run's process
)

// edge names a node below its parent: equal edges, one node.
type edge struct {
	role        role
	account     hop.Key
	run         string // local agents belong to one run
	interpreter string
}

// node is one context: a prefix of a path, with its link. All but the first block is guarded by Tree.mu.
type node struct {
	id      uint64
	parent  *node // nil for the first of a path
	root    *node // the target: the first of its path, or the last SSH connection on it
	edge    edge  // its interpreter may be discovered: that is guarded
	hop     hop.Hop
	level   int // index of the hop in its path
	opening opening

	state    State
	refs     int            // contexts, walks and waiters that hold the node
	lookup   map[edge]*node // children to share; a draining one is no longer in it
	children map[*node]bool // all that are not ended
	up       chan struct{}  // closed when the node can be used, and when it never will
	usable   bool           // up was closed for the first reason
	err      error          // why it ended
	cancel   context.CancelCauseFunc

	transport Transport // sshConnection
	link      peer      // the others
	hello     agent.Hello
	answer    []byte                      // of the discovery that has started the agent; does not change once up is closed
	gone      func(context.Context) error // becomeAgent, containerAgent: waits for the end of its process
	slot      bool                        // counts among the target's interpreters
	slots     slots                       // of a root
	tokens    [][]byte                    // localAgent: what may attach
	claimed   bool                        // localAgent: something did

	uses          map[use]bool // what living runs used it for; false: released
	hosts         map[string]bool
	told          map[use]bool  // connections: who has heard the notes
	persist       time.Duration // after the last use
	persistBecome bool
	lastUsed      time.Time
	timer         *time.Timer
	logs          map[*Context]func(level int, text string)
	memory        Memory // of a root; has its own lock
}

// use is a run's use of a node on behalf of an inventory name.
type use struct{ run, host string }

// opening is what opening a node takes besides the node itself: what the first asker brought.
type opening struct {
	run    hop.Run
	launch func(ctx context.Context, n *node) (opened, error)
}

// opened is what opening a node gave: one of the two.
type opened struct {
	transport Transport
	link      peer
}

// close ends it; who waits for something gets the reason.
func (o opened) close(reason error) {
	if o.link != nil {
		e, ok := errors.AsType[*fault.Error](reason)
		if !ok {
			e = &fault.Error{Kind: fault.Internal, Message: "the connection ended", Cause: reason}
		}
		o.link.End(e)
	}
	if o.transport != nil {
		_ = o.transport.Close()
	}
}

func (o opened) done() <-chan struct{} {
	if o.link != nil {
		return o.link.Done()
	}
	return o.transport.Done()
}

// name says what the node is, for people.
func (n *node) name() string { return n.hop.Name() }

// fault makes err an error of this node's edge. kind is for errors that have none.
func (n *node) fault(err error, kind fault.Kind, message string) *fault.Error {
	return atHop(err, kind, message, n.level, n.name())
}

// blame makes the end of n's link an error of n's hop, for whatever leads through the link and ends with it.
func (n *node) blame(err error) error {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return n.fault(e, e.Kind, e.Message)
	}
	return err
}

// atHop makes err a *fault.Error that says at which hop it happened. The error is shared by all who waited, so it is copied.
func atHop(err error, kind fault.Kind, message string, level int, name string) *fault.Error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return &fault.Error{Kind: kind, Hop: level, HopName: name, Message: message, Cause: err}
	}
	if e.HopName != "" {
		return e
	}
	at := *e
	at.Hop, at.HopName = level, name
	return &at
}

// info describes the node for status; the link's own figures are added without the tree's lock.
func (n *node) infoLocked() NodeInfo {
	info := NodeInfo{
		ID: n.id, Name: n.name(), State: n.state, Python: n.hello.Python, Hosts: slices.Sorted(maps.Keys(n.hosts)),
	}
	if n.parent != nil {
		info.Parent = n.parent.id
	}
	if n.refs == 0 && len(n.children) == 0 {
		info.IdleSince = n.lastUsed
	}
	return info
}
