package server

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// maxChainedParams keeps a chain's requests from needing the agent's credit before the last of them has been made.
const maxChainedParams = 64 << 10

// chainFrom returns how many steps from i on the agent can carry out without asking back: it looks at their guards itself, so that they
// cost one round trip. A command with content or a terminal is carried out by itself, a module with very long parameters and a ticket too,
// and what has a guard on a step before i begins another chain.
func (r *request) chainFrom(i int) int {
	if !r.node.HasAgent() {
		return 1
	}
	n := 0
	for _, s := range r.steps[i:] {
		alone := s.command != nil && (s.command.hasBody || s.command.remember || s.command.command.TTY)
		alone = alone || s.ticket != nil || (s.module != nil && len(s.module.module.Params) > maxChainedParams)
		if alone || slices.ContainsFunc(s.guards, func(g guard) bool { return g.step < i }) {
			break
		}
		n++
	}
	return max(n, 1)
}

// link is a step of a chain on its way.
type link struct {
	started chan struct{} // closed when it has been asked for, or cannot be
	ended   chan struct{} // closed with result or err set
	told    chan struct{} // closed when the client knows, so that what comes of the next follows
	result  *muxv1.StepResult
	err     error
}

// asked is whom a step is asked of, and whose output the client has to have first.
type asked struct {
	node    Node
	before  *link // nil: nobody's
	chained bool
}

// wait returns when what comes of the step may follow.
func (a asked) wait(ctx context.Context) error {
	if a.before == nil {
		return nil
	}
	select {
	case <-a.before.told:
		return nil
	case <-ctx.Done():
		return fault.OfContext(ctx)
	}
}

// chainedNode is a node that one step of a chain is asked of.
type chainedNode struct {
	Node
	place  agent.Chained
	opened func()
}

// Open implements Node.
func (n chainedNode) Open(ctx context.Context, r agent.Request) (*agent.Stream, error) {
	n.place.Request = r
	s, err := n.Node.Open(ctx, n.place)
	if err == nil {
		n.opened()
	}
	return s, err
}

// runChain runs as many steps from first on as the chain is for. It returns the first step's error, as runSteps does.
func (r *request) runChain(ctx context.Context, first int, newChain func() *agent.Chain) error {
	return r.fresh(ctx, func() error { return r.tryChain(ctx, first, newChain()) })
}

// tryChain is runChain with the agent there is. If it is stale nothing has begun.
func (r *request) tryChain(parent context.Context, first int, chain *agent.Chain) error {
	ctx, giveUp := context.WithCancelCause(parent)
	links := make([]*link, chain.Len())
	for k := range links {
		links[k] = &link{started: make(chan struct{}), ended: make(chan struct{}), told: make(chan struct{})}
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer giveUp(nil)
	running.Go(func() {
		for k, l := range links {
			started := sync.OnceFunc(func() { close(l.started) })
			running.Go(func() {
				defer close(l.ended)
				defer started()
				opened := false
				node := chainedNode{Node: r.nodeFor(uint32(first + k)), place: agent.Chained{Chain: chain, Index: k}, opened: func() { opened = true; started() }}
				for _, g := range r.steps[first+k].guards {
					node.place.Guards = append(node.place.Guards, agent.Guard{Index: g.step - first, Field: g.Field, Value: g.Value, Unequal: g.Unequal})
				}
				var before *link
				if k > 0 {
					before = links[k-1]
				}
				l.result, l.err = r.runStep(ctx, uint32(first+k), asked{node, before, true})
				if l.err != nil && !opened {
					giveUp(r.at(first+k, l.err)) // the chain will never be whole: nothing of it is begun
				}
			})
			<-l.started // bodies come in the order of the steps
		}
	})
	return r.tellChain(ctx, first, links)
}

// tellChain hands on what comes of a chain's steps in their order.
func (r *request) tellChain(ctx context.Context, first int, links []*link) error {
	var failed error
	for k, l := range links {
		<-l.ended
		if cause := unbegun(ctx); cause != nil {
			return cause
		}
		switch {
		case k == 0 && (errors.Is(l.err, agent.ErrSkipped) || errors.Is(l.err, moduleexec.ErrStale)):
			return moduleexec.ErrStale // nothing else keeps the first from beginning
		case errors.Is(l.err, agent.ErrSkipped):
			if failed == nil {
				if err := r.reply(&muxv1.StepResult{Step: uint32(first + k), Skipped: true}); err != nil {
					return err
				}
			}
		case l.err != nil && failed == nil:
			failed = r.at(first+k, l.err)
		case l.err == nil:
			if err := r.reply(l.result); err != nil {
				return err
			}
		}
		close(l.told)
	}
	return failed
}

// unbegun returns why a chain was given up before it was begun.
func unbegun(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	if e, ok := errors.AsType[*fault.Error](context.Cause(ctx)); ok {
		return e
	}
	return nil
}
