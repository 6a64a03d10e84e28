package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
)

// registry knows the runs that are attached. Each has a goroutine that waits for its process to end, and ends the run with it.
type registry struct {
	log  hclog.Logger
	tree Tree
	last func() // called when the last run has ended while draining, outside the lock
	wg   sync.WaitGroup

	mu        sync.Mutex // guards all below, and the runs
	byID      map[string]*run
	byProcess map[process]*run
	draining  bool // leave with the last run; until then new ones are welcome, for a second installation may still start them
	stopping  bool // no new run and no new request
	requests  int  // under way
}

// run is one ansible-playbook (or ansible) process.
type run struct {
	id       string
	process  process
	umask    uint32
	core     string
	hop      hop.Run // what dials are told; the newest Attach counts
	requests int     // under way
	tickets  map[string]ticket
	leaders  leaders
	payloads moduleexec.Seen
	ctx      context.Context
	end      context.CancelCauseFunc
}

func newRegistry(log hclog.Logger, tree Tree, last func()) *registry {
	return &registry{log: log, tree: tree, last: last, byID: map[string]*run{}, byProcess: map[process]*run{}}
}

func errDraining() error {
	return &fault.Error{Kind: fault.Draining, Message: "this mitogen-mux daemon is leaving"}
}

func errRunUnknown() error {
	return &fault.Error{Kind: fault.RunUnknown, Message: "this mitogen-mux daemon does not know the run"}
}

// attach makes the run of a process known, or finds it again, and returns its id.
func (r *registry) attach(p process, core string, settings hop.Run) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.byProcess[p]; ok {
		settings.ID = known.id
		known.hop, known.core = settings, core
		return known.id, nil
	}
	if r.stopping {
		return "", errDraining()
	}
	wait, err := p.watch()
	if err != nil {
		return "", invalid("cannot attach process %d: %s", p.pid, err)
	}
	settings.ID = randomID()
	attached := &run{id: settings.ID, process: p, umask: umaskOf(p.pid), core: core, hop: settings, tickets: map[string]ticket{}}
	attached.ctx, attached.end = context.WithCancelCause(context.Background())
	r.byID[attached.id], r.byProcess[p] = attached, attached
	r.log.Info("run attached", "run", attached.id, "pid", p.pid, "core", core)
	r.wg.Go(func() {
		wait(attached.ctx)
		r.ended(attached.id, "its process has ended")
	})
	return attached.id, nil
}

func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // cannot fail
	return hex.EncodeToString(b[:])
}

// ended forgets a run, cancels its requests and lets go of its nodes. A run that is not known is none: it has ended already.
func (r *registry) ended(id, why string) {
	r.mu.Lock()
	gone, ok := r.byID[id]
	if !ok {
		r.mu.Unlock()
		return
	}
	delete(r.byID, id)
	delete(r.byProcess, gone.process)
	left := r.draining && len(r.byID) == 0
	r.stopping = r.stopping || left // nobody comes in between
	r.mu.Unlock()
	r.log.Info("run ended", "run", id, "why", why)
	gone.end(&fault.Error{Kind: fault.Cancelled, Message: "the run has ended: " + why})
	r.tree.EndRun(id)
	if left {
		r.last()
	}
}

// lookUp returns what dials of a run are told.
func (r *registry) lookUp(id string) (hop.Run, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.byID[id]
	if !ok {
		return hop.Run{}, r.unknownLocked()
	}
	return known.hop, nil
}

func (r *registry) unknownLocked() error {
	if r.stopping {
		return errDraining()
	}
	return errRunUnknown()
}

// admission is a request under way.
type admission struct {
	run   hop.Run
	umask uint32
	seen  *moduleexec.Seen // by the run
	ctx   context.Context  //nolint:containedctx // the request's, which ends with the run too
	done  func()
}

// admit begins a request of a run.
func (r *registry) admit(parent context.Context, id string) (admission, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return admission{}, errDraining()
	}
	known, ok := r.byID[id]
	if !ok {
		return admission{}, r.unknownLocked()
	}
	known.requests++
	r.requests++
	ctx, cancel := context.WithCancelCause(parent)
	stop := context.AfterFunc(known.ctx, func() { cancel(context.Cause(known.ctx)) })
	return admission{run: known.hop, umask: known.umask, seen: &known.payloads, ctx: ctx, done: func() {
		stop()
		cancel(nil)
		r.mu.Lock()
		defer r.mu.Unlock()
		known.requests--
		r.requests--
	}}, nil
}

// drain makes the daemon leave with its last run, and returns how many are attached.
func (r *registry) drain() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
	return len(r.byID)
}

// stop refuses new runs and new requests from now on.
func (r *registry) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining, r.stopping = true, true
}

func (r *registry) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byID) > 0 || r.requests > 0
}

// close ends all runs and waits for the registry's goroutines.
func (r *registry) close() {
	r.stop()
	for _, info := range r.list() {
		r.ended(info.id, "the daemon is leaving")
	}
	r.wg.Wait()
}

// runInfo describes a run for people.
type runInfo struct {
	id       string
	pid      int
	core     string
	requests int
}

func (r *registry) list() []runInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	infos := make([]runInfo, 0, len(r.byID))
	for _, known := range r.byID {
		infos = append(infos, runInfo{id: known.id, pid: known.process.pid, core: known.core, requests: known.requests})
	}
	slices.SortFunc(infos, func(a, b runInfo) int { return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.id, b.id)) })
	return infos
}

func attachedText(n int) string {
	if n == 1 {
		return "1 run is attached"
	}
	return fmt.Sprintf("%d runs are attached", n)
}

func (r *registry) isDraining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}
