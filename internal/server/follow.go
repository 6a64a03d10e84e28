package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// maxLeaders is how many named requests of a run are known at a time, those that have ended among them.
const maxLeaders = 256

// leaderWait is how long a request waits for one that it is to follow and that is not known. It was sent first, but each of a run's threads
// has a connection of its own.
const leaderWait = 100 * time.Millisecond

// leader is a request as those see it that may follow it.
type leader struct {
	name  string
	ended chan struct{}
	path  hop.Path
	ran   []bool // by step, before ended is closed: it has been run to its end

	mu      sync.Mutex
	streams []*agent.Stream // by step, those that the agent has been asked for
}

// leaders are the named requests of a run. The registry's lock guards them.
type leaders struct {
	byName map[string]*leader
	names  []string      // the oldest first
	came   chan struct{} // closed when there is another; nil if nobody waits
}

// lead makes a request of a run known by its name.
func (r *registry) lead(id, name string, path hop.Path, steps int) (*leader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.byID[id]
	if !ok {
		return nil, r.unknownLocked()
	}
	all := &known.leaders
	if _, ok := all.byName[name]; ok {
		return nil, invalid("a second request of the name %.80q", name)
	}
	if len(all.names) == maxLeaders {
		delete(all.byName, all.names[0])
		all.names = all.names[1:]
	}
	l := &leader{name: name, ended: make(chan struct{}), path: path, ran: make([]bool, steps), streams: make([]*agent.Stream, steps)}
	if all.byName == nil {
		all.byName = map[string]*leader{}
	}
	all.byName[name] = l
	all.names = append(all.names, name)
	if all.came != nil {
		close(all.came)
		all.came = nil
	}
	return l, nil
}

// leader returns a request by its name; nil if it is not known any more, and does not come soon.
func (r *registry) leader(ctx context.Context, id, name string) *leader {
	late := time.NewTimer(leaderWait)
	defer late.Stop()
	for {
		l, came := r.leaderOrNews(id, name)
		if l != nil {
			return l
		}
		select {
		case <-came:
		case <-late.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// leaderOrNews returns a request by its name or, if it is not known, what is closed when there is another.
func (r *registry) leaderOrNews(id, name string) (*leader, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.byID[id]
	if !ok {
		return nil, nil
	}
	all := &known.leaders
	if l := all.byName[name]; l != nil {
		return l, nil
	}
	if all.came == nil {
		all.came = make(chan struct{})
	}
	return nil, all.came
}

// forget makes the name of a request free.
func (r *registry) forget(id string, l *leader) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.byID[id]; ok && known.leaders.byName[l.name] == l {
		delete(known.leaders.byName, l.name)
		known.leaders.names = slices.DeleteFunc(known.leaders.names, func(name string) bool { return name == l.name })
	}
}

// end says what the request has come to.
func (l *leader) end(ran func(step int) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.ran {
		l.ran[i] = ran(i)
	}
	l.streams = nil
	close(l.ended)
}

// asked returns the streams of all its steps, those of some of them first; nothing if it has ended, or has not asked an agent for all of them.
func (l *leader) asked(deciding []uint32) (first, others []*agent.Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.streams, nil) {
		return nil, nil
	}
	for i, s := range l.streams {
		if slices.Contains(deciding, uint32(i)) {
			first = append(first, s)
		} else {
			others = append(others, s)
		}
	}
	return first, others
}

// leadingNode notes what a step of a request that others may follow asks the agent for.
type leadingNode struct {
	Node
	leader *leader
	step   uint32
}

// Open implements Node.
func (n leadingNode) Open(ctx context.Context, r agent.Request) (*agent.Stream, error) {
	s, err := n.Node.Open(ctx, r)
	if err == nil {
		n.leader.mu.Lock()
		defer n.leader.mu.Unlock()
		n.leader.streams[n.step] = s
	}
	return s, err
}

// followed is whom a request follows.
type followed struct {
	leader   *leader
	deciding []uint32 // steps of which one must have been run
}

func errNotBegun() error {
	return &fault.Error{Kind: fault.NotBegun, Message: "the request that was to be followed is not known, or has not come to its end"}
}

// sameNode reports whether two paths lead to one node. Another may not be there before the leader has ended: it would be in vain to look.
func sameNode(a, b hop.Path) bool {
	return slices.EqualFunc(a, b, func(a, b hop.Hop) bool { return a.Account == b.Account && a.Interpreter == b.Interpreter })
}

// relate takes what a request says of others. None follows itself: its own name is not known before.
func (r *request) relate(ctx context.Context, in *muxv1.Request) (err error) {
	r.judged = in.GetJudged()
	if in.GetFollow() != nil {
		r.follows = &followed{leader: r.server.runs.leader(ctx, r.run.ID, in.GetFollow().GetRequest()), deciding: in.GetFollow().GetSteps()}
		if r.follows.leader == nil || !sameNode(r.follows.leader.path, r.path) {
			return errNotBegun()
		}
		if len(r.follows.deciding) == 0 || int(slices.Max(r.follows.deciding)) >= len(r.follows.leader.ran) {
			return invalid("a request follows no step of another, or one that it has not")
		}
	}
	name := in.GetName()
	if name == "" {
		return nil
	}
	if err := short(name); err != nil {
		return err
	}
	r.leads, err = r.server.runs.lead(r.run.ID, name, r.path, len(r.steps))
	return err
}

// wait returns when the leader has ended; an error if not as it should have.
func (f *followed) wait(ctx context.Context) error {
	select {
	case <-f.leader.ended:
	case <-ctx.Done():
		return fault.OfContext(ctx)
	}
	if !slices.ContainsFunc(f.deciding, func(step uint32) bool { return f.leader.ran[step] }) {
		return errNotBegun()
	}
	return nil
}

// runInTurn runs the steps: after another request, if it follows one. Then they wait on the target if all of them are one chain, else here.
func (r *request) runInTurn(ctx context.Context) error {
	r.outcomes = make([]*moduleexec.Outcome, len(r.steps))
	r.queued = time.Since(r.arrived)
	if r.follows == nil {
		return r.runSteps(ctx)
	}
	deciding, others := r.follows.leader.asked(r.follows.deciding)
	if n := len(r.steps); deciding != nil && r.chainFrom(0) == n {
		return r.runChain(ctx, 0, func() *agent.Chain {
			chain := agent.NewChain(n)
			chain.Follow(deciding, others)
			return chain
		})
	}
	if err := r.follows.wait(ctx); err != nil {
		return err
	}
	return r.runSteps(ctx)
}

// nodeFor is the node for a step.
func (r *request) nodeFor(step uint32) Node {
	if r.leads == nil {
		return r.node
	}
	return leadingNode{r.node, r.leads, step}
}

// tell says to those who follow the request what it has come to. One of which nothing was run may be sent again: its name is free.
func (r *request) tell() {
	if r.leads == nil {
		return
	}
	ran := false
	r.leads.end(func(step int) bool {
		done := step < len(r.outcomes) && r.outcomes[step] != nil && !r.outcomes[step].Failed
		ran = ran || done
		return done
	})
	if !ran {
		r.server.runs.forget(r.run.ID, r.leads)
	}
}
