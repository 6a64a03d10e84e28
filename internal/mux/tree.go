package mux

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// Defaults of Options and of the values a run may leave open.
const (
	DefaultPoolSize = 32
	defaultInterp   = 20
	defaultTimeout  = 10 * time.Second // of a connection attempt and of a become dialogue, as in Ansible
)

// Options are what a tree is made from.
type Options struct {
	Dialer   Dialer
	Log      hclog.Logger
	PoolSize int // dials that may start at the same time (MITOGEN_POOL_SIZE); 0: DefaultPoolSize
}

// Tree holds every connection and agent of the daemon. All methods are safe for concurrent use.
//
// A node enters the tree with the first request for its edge and has a goroutine that opens it, watches it and ends with it.
// Whoever uses or waits for a node holds it (refs); a node that nobody holds and that has no children leaves by the rules of
// leave.go. What is opened is closed without the lock, children before their parents.
type Tree struct {
	dialer  Dialer
	log     hclog.Logger
	connect connectFunc
	pool    *semaphore.Weighted
	ctx     context.Context // ends with the tree
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup // every goroutine of the tree

	mu      sync.Mutex // guards all that follows, and the nodes
	roots   map[edge]*node
	all     map[*node]bool // that have not ended
	runs    map[string]*runState
	nextID  uint64
	dials   uint64
	closing bool
}

// runState is a run as the tree knows it: it exists from the run's first request to EndRun.
type runState struct {
	id    string
	ended bool
}

// New makes an empty tree.
func New(o Options) *Tree {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.PoolSize <= 0 {
		o.PoolSize = DefaultPoolSize
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Tree{
		dialer: o.Dialer, log: o.Log, connect: connect, pool: semaphore.NewWeighted(int64(o.PoolSize)), ctx: ctx, cancel: cancel,
		roots: map[edge]*node{}, all: map[*node]bool{}, runs: map[string]*runState{},
	}
}

// errClosing is what requests get once Close was called.
func errClosing() *fault.Error {
	return &fault.Error{Kind: fault.Draining, Message: "the daemon is closing its connections"}
}

// Close ends every node and waits for all that the tree has started. Requests that wait get an error.
func (t *Tree) Close() error {
	t.mu.Lock()
	t.closing = true
	for _, n := range slices.Collect(maps.Keys(t.all)) {
		t.downLocked(n, Closed, errClosing())
	}
	t.mu.Unlock()
	t.cancel(errClosing())
	t.wg.Wait()
	return nil
}

// Busy reports whether there is any node: one that is used, wanted, or kept warm.
func (t *Tree) Busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all) > 0
}

// Dials is how many edges the tree has begun to open.
func (t *Tree) Dials() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dials
}

// NodeInfo describes a node for people.
type NodeInfo struct {
	ID, Parent    uint64 // Parent 0: none
	Name          string
	State         State
	Jobs          int // running
	Python        string
	BlobBytes     int64
	MemoryKiB     uint64 // of the agent itself, at most; 0: not known
	SentBytes     int64
	ReceivedBytes int64
	RoundTrips    int64
	Hosts         []string
	IdleSince     time.Time // zero: in use
}

// Nodes lists the tree, parents before their children.
func (t *Tree) Nodes() []NodeInfo {
	t.mu.Lock()
	nodes := slices.SortedFunc(maps.Keys(t.all), func(a, b *node) int { return int(a.id) - int(b.id) })
	infos := make([]NodeInfo, len(nodes))
	links := make([]peer, len(nodes))
	for i, n := range nodes {
		infos[i], links[i] = n.infoLocked(), n.link
	}
	t.mu.Unlock()
	for i, l := range links {
		if l == nil {
			continue
		}
		s := l.Stats()
		infos[i].Jobs, infos[i].BlobBytes = s.Jobs, s.BlobBytes
		infos[i].MemoryKiB = s.MemoryKiB
		infos[i].SentBytes, infos[i].ReceivedBytes, infos[i].RoundTrips = s.SentBytes, s.ReceivedBytes, s.RoundTrips
	}
	return infos
}

// siblingsLocked is the map that names the nodes below parent.
func (t *Tree) siblingsLocked(parent *node) map[edge]*node {
	if parent == nil {
		return t.roots
	}
	return parent.lookup
}

// plantLocked adds a node; nothing is opened yet.
func (t *Tree) plantLocked(parent *node, e edge, h hop.Hop, level int, o opening) *node {
	t.nextID++
	n := &node{
		id: t.nextID, parent: parent, edge: e, hop: h, level: level, opening: o,
		state: Idle, lookup: map[edge]*node{}, children: map[*node]bool{}, up: make(chan struct{}), lastUsed: time.Now(),
		uses: map[use]bool{}, hosts: map[string]bool{}, told: map[use]bool{}, logs: map[*Context]func(int, string){},
	}
	n.root = n
	t.siblingsLocked(parent)[e] = n
	if parent != nil {
		if e.role != sshConnection {
			n.root = parent.root
		}
		parent.children[n] = true
		if parent.state == Draining {
			t.moveLocked(n, Draining)
		}
	}
	t.all[n] = true
	return n
}

// moveLocked changes a node's state by the table. A move that is not in it is a bug: it panics in tests, and elsewhere is logged
// and ends the node as an internal error.
func (t *Tree) moveLocked(n *node, to State) {
	if n.state.canMove(to) {
		t.log.Debug("node", "id", n.id, "name", n.name(), "from", n.state, "to", to)
		n.state = to
		return
	}
	if testing.Testing() {
		panic("mux: a node cannot move from " + n.state.String() + " to " + to.String())
	}
	t.log.Error("a node was asked for a move it cannot make", "name", n.name(), "from", n.state, "to", to)
	if !n.state.Ended() {
		t.downLocked(n, Closed, n.fault(nil, fault.Internal, "the node's state is inconsistent"))
	}
}

// progressLocked is moveLocked for a node on its way up: one that was drained meanwhile, or has ended, stays as it is.
func (t *Tree) progressLocked(n *node, to State) {
	if n.state != Draining && !n.state.Ended() {
		t.moveLocked(n, to)
	}
}

func (t *Tree) progress(n *node, to State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progressLocked(n, to)
}

// downLocked ends n and all below it, and lets go what waits for them. What they have open is closed in the background, children
// before their parents.
func (t *Tree) downLocked(n *node, to State, err error) {
	if n.state.Ended() {
		return
	}
	var open []opened
	t.cutLocked(n, to, err, &open)
	t.wg.Go(func() {
		for _, o := range open {
			o.close(err)
		}
	})
	if n.parent != nil {
		t.reconsiderLocked(n.parent)
	}
	t.grantLocked(n.root)
}

// cutLocked takes n and all below it out of the tree and collects what they have open.
func (t *Tree) cutLocked(n *node, to State, err error, open *[]opened) {
	for child := range n.children {
		t.cutLocked(child, Closed, err, open)
	}
	t.moveLocked(n, to)
	n.err = err
	t.forgetLocked(n)
	delete(t.all, n)
	if n.parent != nil {
		delete(n.parent.children, n)
	}
	if n.slot {
		n.slot = false
		n.root.slots.used--
	}
	if n.timer != nil {
		n.timer.Stop()
	}
	if n.cancel != nil {
		n.cancel(err)
	}
	if n.usable {
		*open = append(*open, opened{n.transport, n.link})
		n.usable = false
	} else {
		close(n.up)
	}
}

// forgetLocked makes sure that no further request finds n.
func (t *Tree) forgetLocked(n *node) {
	if siblings := t.siblingsLocked(n.parent); siblings[n.edge] == n {
		delete(siblings, n.edge)
	}
}
