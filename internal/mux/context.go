package mux

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// Context is a node held for one request, until Release.
type Context struct {
	tree      *Tree
	node      *node
	transport Transport // of the SSH account that the path ends at, or that starts plain commands
	link      peer      // of node; nil if it is a connection
	end       hop.Hop
	level     int
	rest      hop.Path // hops behind node that have no agent: their tools are put before a command, which node starts
	user      use      // whose request it is
	answer    []byte   // of the discovery that has started node's agent, if it was for this request
	release   sync.Once
}

// HasAgent reports whether Open and SendBlobs can work.
func (c *Context) HasAgent() bool { return c.link != nil && len(c.rest) == 0 }

// Shares reports whether what is sent to the context crosses the line to the agent before it once for all the contexts there.
func (c *Context) Shares() bool { return c.HasAgent() && c.tree.hasSiblings(c.node) }

// CanExec reports whether Exec can work: the path ends at the SSH account itself, where that takes no login, or there is no agent.
func (c *Context) CanExec() bool { return c.transport != nil || !c.HasAgent() }

// Open is agent.Link.Open.
func (c *Context) Open(ctx context.Context, r agent.Request) (*agent.Stream, error) {
	if !c.HasAgent() {
		return nil, c.noAgent()
	}
	s, err := c.link.Open(ctx, r)
	if err != nil {
		return nil, c.fault(err, "the agent was lost")
	}
	return s, nil
}

// SendBlobs is agent.Link.SendBlobs.
func (c *Context) SendBlobs(ctx context.Context, want []blobcache.Digest, from agent.BlobSource) (release func(), err error) {
	if !c.HasAgent() {
		return nil, c.noAgent()
	}
	if release, err = c.link.SendBlobs(ctx, want, from); err != nil {
		return nil, c.fault(err, "the agent was lost")
	}
	return release, nil
}

// Exec starts what plain Ansible would hand to ssh, become wrapper and all, without an agent on the account. Under a become hop it
// first talks to the tool: the process that it returns begins after the success marker's line.
func (c *Context) Exec(ctx context.Context, cmd []byte, o ExecOptions) (Process, error) {
	if !c.CanExec() {
		return nil, c.fault(&fault.Error{Kind: fault.Unsupported, Message: "a plain command needs an SSH connection"}, "")
	}
	p, err := c.start(ctx, cmd, o)
	if err != nil {
		return nil, c.fault(err, "cannot start the command")
	}
	b := c.end.Become
	if b == nil || len(c.rest) == 0 {
		return p, nil
	}
	become, err := becomeProcess(ctx, p, b)
	if err != nil {
		return nil, c.fault(err, "cannot start the command")
	}
	return become, nil
}

// start runs cmd, behind the tools of the hops that have no agent, on the node itself.
func (c *Context) start(ctx context.Context, cmd []byte, o ExecOptions) (Process, error) {
	for _, h := range slices.Backward(c.rest) {
		if h.Container != nil {
			cmd = []byte("exec " + enter(h.Container, string(cmd)))
		}
	}
	if c.transport != nil {
		o.MakeRoom = func() { c.tree.makeRoom(c.node.root) }
		return c.transport.Exec(ctx, cmd, o)
	}
	terminal := agent.NoTerminal
	switch {
	case o.TTY:
		terminal = agent.StdioTerminal
	case len(c.rest) > 0 && c.end.Become != nil:
		terminal = agent.ControllingTerminal
	}
	s, err := c.link.Spawn(ctx, &agent.Spawn{Argv: [][]byte{[]byte("/bin/sh"), []byte("-c"), cmd}, Terminal: terminal})
	if err != nil {
		return nil, err
	}
	return newStreamProcess(s, c.node), nil
}

// Log has f called with what the account's agent logs while the context is held, and with the connection's notes if the run has not
// heard them for this host. f must not block, nor call the context.
func (c *Context) Log(f func(level int, text string)) {
	c.tree.mu.Lock()
	defer c.tree.mu.Unlock()
	c.node.logs[c] = f
	root := c.node.root
	if root.transport == nil || root.told[c.user] {
		return
	}
	for i, note := range root.transport.Notes() {
		if i == 0 {
			root.told[c.user] = true
		}
		f(note.Level, note.Text)
	}
}

// Retire makes the context's node Draining, and all below it: who holds them may finish, the next request opens them anew.
func (c *Context) Retire() {
	c.tree.mu.Lock()
	defer c.tree.mu.Unlock()
	c.tree.drainLocked(c.node)
}

// Release gives the context back. A second call does nothing.
func (c *Context) Release() {
	c.release.Do(func() {
		c.tree.mu.Lock()
		defer c.tree.mu.Unlock()
		delete(c.node.logs, c)
		c.tree.releaseLocked(c.node)
	})
}

func (c *Context) noAgent() error {
	return c.fault(&fault.Error{Kind: fault.InterpreterMissing, Message: "the account has no agent"}, "")
}

func (c *Context) fault(err error, message string) error {
	if ctxErr, ok := asContextError(err); ok {
		err = ctxErr
	}
	return atHop(err, fault.AgentDied, message, c.level, c.end.Name())
}

// asContextError makes the end of a request's own context a typed error.
func asContextError(err error) (error, bool) {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err, false
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &fault.Error{Kind: fault.TimedOut, Message: "the time ran out", Cause: err}, true
	case errors.Is(err, context.Canceled):
		return &fault.Error{Kind: fault.Cancelled, Message: "the request was cancelled", Cause: err}, true
	default:
		return err, false
	}
}
