package fileservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// fan is an agent with others behind it, which real ones are, on a wire.
type fan struct {
	hop    *agent.Link
	behind []linked
}

func (f *fan) pid(i int) int {
	h, _ := f.behind[i].Hello(context.Background())
	return h.PID
}

// sent is how much has crossed the wire.
func (f *fan) sent() int64 { return f.hop.Stats().SentBytes }

func newFan(t *testing.T, contexts int, w *wire, o agent.Options) *fan {
	t.Helper()
	w.Process = agenttest.Spawn(t, "", "-S", "-c", agent.Stage1(), "mitogen-mux: hop")
	o.Name = "hop"
	hop, err := agent.Connect(within(t), w, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hop.Close() })
	f := &fan{hop: hop}
	for range contexts {
		f.behind = append(f.behind, linked{nest(t, hop, true)})
	}
	return f
}

// nest starts an agent behind another one.
func nest(t *testing.T, hop *agent.Link, shared bool) *agent.Link {
	t.Helper()
	h, err := hop.Hello(within(t))
	if err != nil {
		t.Fatal(err)
	}
	argv := [][]byte{[]byte(h.Executable), []byte("-S"), []byte("-c"), []byte(agent.Stage1()), []byte("mitogen-mux: behind")}
	s, err := hop.Open(within(t), &agent.Spawn{Argv: argv})
	if err != nil {
		t.Fatal(err)
	}
	l, err := agent.Connect(within(t), s.Conn(), agent.Options{Name: "behind", Shared: func() bool { return shared }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if _, err := l.Hello(within(t)); err != nil {
		t.Fatal(err)
	}
	return l
}

// noise is content of which no part is like another one.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// overhead is what a file costs the wire for each context besides its content: 40 bytes a chunk, what opens and closes a transfer, credit.
func overhead(size int) int64 { return int64(size/chunkSize+1)*40 + 1500 }

// askers put files into the contexts behind an agent.
type askers struct {
	*fan
	*Service
	dir string
	ctx context.Context
}

func (a *askers) put(i int, from string) error {
	to := a.dest(i)
	_, err := a.Put(a.ctx, a.behind[i], &PutRequest{Link: "l", Shared: true, Path: from, Dest: []byte(to)})
	return err
}

func (a *askers) dest(i int) string { return filepath.Join(a.dir, fmt.Sprintf("to%d", i)) }

// all has the contexts ask, at the same time or one after the other; context i asks for the file i modulo their number.
func (a *askers) all(t *testing.T, together bool, from ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range a.behind {
		ask := func() {
			if err := a.put(i, from[i%len(from)]); err != nil {
				t.Errorf("context %d: %v", i, err)
			}
		}
		if together {
			wg.Go(ask)
		} else {
			ask()
		}
	}
	wg.Wait()
}

// wait returns when so much of the first transfer is on its way.
func (a *askers) wait(n uint64) {
	for now := a.Transfers(); len(now) == 0 || now[0].Done < n; now = a.Transfers() {
		runtime.Gosched()
	}
}

// What contexts behind one agent want crosses the line to it once, whenever they ask; and so does the agent's own text.
func TestContentCrossesOnce(t *testing.T) {
	const contexts, size = 8, 3<<20 + 17
	for name, c := range map[string]struct {
		together bool
		files    int
	}{
		"at once":                              {true, 1},
		"one after the other":                  {false, 1},
		"different contents at once":           {true, 3},
		"different contents one after another": {false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := &wire{closed: make(chan struct{})}
			f := newFan(t, contexts, w, agent.Options{})
			if most := int64(2*len(agent.Source()) + contexts*2000); f.sent() > most {
				t.Errorf("%d bytes crossed for the agents, more than %d", f.sent(), most)
			}
			a := &askers{f, New(), dir, within(t)}
			var files []string
			for n := range c.files {
				files = append(files, filepath.Join(dir, fmt.Sprintf("from%d", n)))
				write(t, files[n], noise(byte(n), size), 0o600)
			}
			before := f.sent()
			a.all(t, c.together, files...)
			crossed, least := f.sent()-before, int64(c.files*size)
			if most := least + contexts*overhead(size); crossed < least || crossed > most {
				t.Errorf("%d bytes crossed, not %d to %d", crossed, least, most)
			}
			for i := range contexts {
				check(t, a.dest(i), noise(byte(i%c.files), size), 0o666&^umask())
			}
		})
	}
}

// The same where there are agents on the way from the one to the others.
func TestContentCrossesOnceAtEachHop(t *testing.T) {
	const hops, contexts, size = 2, 4, 3 << 20
	dir := t.TempDir()
	f := newFan(t, hops, &wire{closed: make(chan struct{})}, agent.Options{})
	middle := f.behind
	f.behind = nil
	for i := range contexts {
		f.behind = append(f.behind, linked{nest(t, middle[i%hops].Link, true)})
	}
	a := &askers{f, New(), dir, within(t)}
	from := filepath.Join(dir, "from")
	write(t, from, noise(1, size), 0o600)
	before, between := f.sent(), middle[0].Stats().SentBytes
	a.all(t, true, from)
	if crossed := f.sent() - before; crossed > size+2*contexts*overhead(size) {
		t.Errorf("%d bytes crossed the first line", crossed)
	}
	if crossed := middle[0].Stats().SentBytes - between; crossed > size+contexts*overhead(size) {
		t.Errorf("%d bytes crossed the second one", crossed)
	}
	for i := range contexts {
		check(t, a.dest(i), noise(1, size), 0o666&^umask())
	}
}

// A context that reads nothing any more holds up neither the line nor the others, and gets its file when it reads again.
func TestStoppedContextHoldsUpNobody(t *testing.T) {
	const size = 6 << 20
	dir := t.TempDir()
	f := newFan(t, 4, &wire{closed: make(chan struct{})}, agent.Options{})
	a := &askers{f, New(), dir, within(t)}
	from, other := filepath.Join(dir, "from"), filepath.Join(dir, "other")
	write(t, from, noise(1, size), 0o600)
	write(t, other, noise(2, 100), 0o600)
	if err := syscall.Kill(f.pid(0), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { first <- a.put(0, from) }()
	a.wait(agent.Window / 2)
	before := f.sent()
	for i := 1; i < 4; i++ {
		if err := a.put(i, from); err != nil {
			t.Errorf("context %d: %v", i, err)
		}
	}
	if crossed := f.sent() - before; crossed > size+4*overhead(size) {
		t.Errorf("%d bytes crossed", crossed)
	}
	if err := a.put(3, other); err != nil {
		t.Error(err)
	}
	select {
	case err := <-first:
		t.Errorf("the one that is stopped: %v", err)
	default:
	}
	if err := syscall.Kill(f.pid(0), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	for i := range 3 {
		check(t, a.dest(i), noise(1, size), 0o666&^umask())
	}
}

// What is larger than the agent may keep is kept in part: those who ask together share it, and others get it as well.
func TestKeptIsBounded(t *testing.T) {
	const size, limit, contexts = 16 << 20, 4 << 20, 4
	dir := t.TempDir()
	f := newFan(t, contexts, &wire{closed: make(chan struct{})}, agent.Options{KeepLimit: limit})
	a := &askers{f, New(), dir, within(t)}
	from := filepath.Join(dir, "from")
	write(t, from, noise(1, size), 0o600)
	h, err := f.hop.Hello(a.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.put(0, from); err != nil {
		t.Fatal(err)
	}
	grown := resident(t, h.PID)
	if err := a.put(1, from); err != nil {
		t.Error(err)
	}
	a.all(t, true, from)
	if kept := f.hop.Stats().BlobBytes; kept > limit || kept == 0 {
		t.Errorf("%d bytes are kept", kept)
	}
	if more := resident(t, h.PID) - grown; more > 8<<20 {
		t.Errorf("the agent has grown by %d bytes", more)
	}
	for i := range contexts {
		check(t, a.dest(i), noise(1, size), 0o666&^umask())
	}
}

// resident is how much memory a process has.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Skipf("memory is not told here: %v", err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Who asked first gives up while others have the same: they get it, and it crosses once.
func TestFirstAskerGivesUp(t *testing.T) {
	const size, contexts = 8 << 20, 4
	dir := t.TempDir()
	f := newFan(t, contexts, &wire{closed: make(chan struct{})}, agent.Options{})
	a := &askers{f, New(), dir, within(t)}
	from := filepath.Join(dir, "from")
	write(t, from, noise(1, size), 0o600)
	before := f.sent()
	ctx, giveUp := context.WithCancelCause(a.ctx)
	first := make(chan error, 1)
	go func() {
		_, err := a.Put(ctx, f.behind[0], &PutRequest{Link: "l", Shared: true, Path: from, Dest: []byte(a.dest(0))})
		first <- err
	}()
	a.wait(size / 8)
	var wg sync.WaitGroup
	for i := 1; i < contexts; i++ {
		wg.Go(func() {
			if err := a.put(i, from); err != nil {
				t.Errorf("context %d: %v", i, err)
			}
		})
	}
	giveUp(errors.New("enough"))
	if err := <-first; err != nil && fault.KindOf(err) != fault.Cancelled {
		t.Errorf("the first: %v", err)
	}
	wg.Wait()
	if crossed := f.sent() - before; crossed > size+contexts*overhead(size) {
		t.Errorf("%d bytes crossed", crossed)
	}
	for i := 1; i < contexts; i++ {
		check(t, a.dest(i), noise(1, size), 0o666&^umask())
	}
}

// Whatever happens at whatever frame while two contexts get a file of three chunks: each has its old file or the new one, whole, the
// errors have a kind, no temporary file is left, and if only one of the contexts is struck the other one gets its file.
func TestFaultAtEachFrameForTwo(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three interpreters for each frame")
	}
	kills := map[string]int{"kill the first": 0, "kill the second": 1}
	for _, c := range []struct {
		name string
		up   bool
	}{
		{"cut", false}, {"stall", false}, {"corrupt", false}, {"kill the first", false}, {"kill the second", false}, {"cut", true}, {"stall", true},
	} {
		victim, kill := kills[c.name]
		undisturbed := &wire{at: 1 << 30, up: c.up, closed: make(chan struct{})}
		faultForTwo(t, undisturbed, victim, false, false)
		for at := 1; at <= undisturbed.frames; at++ {
			way := map[bool]string{false: "down", true: "up"}[c.up]
			t.Run(fmt.Sprintf("%s %s %d", c.name, way, at), func(t *testing.T) {
				t.Parallel()
				faultForTwo(t, &wire{strike: strikes[c.name], at: at, up: c.up, closed: make(chan struct{})}, victim, kill, c.name == "stall")
			})
		}
	}
}

func faultForTwo(t *testing.T, w *wire, victim int, kill, stall bool) {
	const size = 2*chunkSize + chunkSize/2
	dir := t.TempDir()
	f := newFan(t, 2, w, agent.Options{})
	pids := []int{f.pid(0), f.pid(1)}
	defer func() {
		_ = w.Close()
		for _, pid := range pids {
			await(pid)
		}
		checkOnlyBut(t, dir, kill, "from", "to0", "to1")
	}()
	ctx, cancel := context.WithCancelCause(within(t))
	defer cancel(nil)
	if kill {
		w.strike = func(*wire, []byte) error { return syscall.Kill(pids[victim], syscall.SIGKILL) }
	}
	if inner := w.strike; stall {
		w.strike = func(w *wire, frame []byte) error {
			cancel(&fault.Error{Kind: fault.TimedOut, Message: "stalled"})
			return inner(w, frame)
		}
	}
	a := &askers{f, New(), dir, ctx}
	from := filepath.Join(dir, "from")
	write(t, from, noise(1, size), 0o600)
	var errs [2]error
	for i := range errs {
		write(t, a.dest(i), []byte("old"), 0o600)
	}
	w.mu.Lock()
	w.armed = true
	w.mu.Unlock()
	for i := range errs {
		errs[i] = a.put(i, from)
	}
	w.mu.Lock()
	struck := w.frames >= w.at
	w.armed = false
	w.mu.Unlock()
	for i, err := range errs {
		b, readErr := os.ReadFile(a.dest(i))
		if readErr != nil || (string(b) != "old" && !bytes.Equal(b, noise(1, size))) {
			t.Errorf("context %d has %d bytes, %v: neither the old file nor the new one", i, len(b), readErr)
		}
		if err == nil && len(b) != size {
			t.Errorf("context %d: no error, and the old file", i)
		}
		if kind := fault.KindOf(err); err != nil && !slices.Contains([]fault.Kind{fault.AgentDied, fault.TimedOut, fault.FileFailed}, kind) {
			t.Errorf("context %d: %v of kind %d", i, err, kind)
		}
		if err != nil && (!struck || kill && i != victim) {
			t.Errorf("context %d, to which nothing happened: %v", i, err)
		}
	}
}

// await returns when a process that is nobody's child here has ended.
func await(pid int) {
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		runtime.Gosched()
	}
}

// checkOnlyBut is checkOnly; where an agent was killed it may have left its temporary file.
func checkOnlyBut(t *testing.T, dir string, killed bool, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if killed && strings.HasPrefix(e.Name(), ".mitogen-mux.") {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	checkOnly(t, dir, names...)
}
