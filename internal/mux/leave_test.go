package mux

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

func TestPersistence(t *testing.T) {
	all := "[ssh h1=ready ssh h1=ready sudo root=ready]"
	for name, c := range map[string]struct {
		persist int64
		become  bool
		at      map[time.Duration]string // seconds after the end of the run
	}{
		"a minute": {60, true, map[time.Duration]string{0: all, 59: all, 61: "[]"}},
		"none":     {0, true, map[time.Duration]string{0: "[]"}},
		"not become": {60, false, map[time.Duration]string{
			0: "[ssh h1=ready ssh h1=ready]", 59: "[ssh h1=ready ssh h1=ready]", 61: "[]",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tree, _ := newTree(t, Options{})
				r := run("r1")
				r.PersistFor, r.PersistBecome = c.persist, c.become
				acquire(t, tree, r, "h1", sudoPath...).Release()
				time.Sleep(time.Hour) // while the run lives, nothing leaves
				wantNames(t, tree, all)
				acquire(t, tree, r, "h1", sudoPath...).Release()
				tree.EndRun("r1")
				start := time.Now()
				for _, at := range []time.Duration{0, 59, 61} {
					time.Sleep(time.Until(start.Add(at * time.Second)))
					if want, ok := c.at[at]; ok {
						wantNames(t, tree, want)
					}
				}
				if tree.Busy() {
					t.Error("still busy")
				}
			})
		})
	}
}

func TestPersistenceCountsFromTheLastUseOfAnyRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		acquire(t, tree, run("r1"), "h1", sshPath...).Release()
		tree.EndRun("r1")
		time.Sleep(50 * time.Second)
		acquire(t, tree, run("r2"), "h1", sshPath...).Release()
		time.Sleep(50 * time.Second)
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready]") // r2 lives
		tree.EndRun("r2")
		time.Sleep(9 * time.Second)
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready]")
		time.Sleep(2 * time.Second)
		wantNames(t, tree, "[]")
		if dials, open := w.count("h1"); dials != 1 || open != 0 {
			t.Errorf("%d dials, %d open", dials, open)
		}
		tree.EndRun("unknown")
	})
}

func TestEndRunLeavesWhatIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		r := run("r1")
		r.PersistFor = 0
		c := acquire(t, tree, r, "h1", sudoPath...)
		tree.EndRun("r1")
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo root=ready]")
		c.Release()
		wantNames(t, tree, "[]")
	})
}

// TestRelease: what a run has done with leaves as if the run had ended, what it has in use for another host or what another run has in
// use stays.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		for _, host := range []string{"h1", "h2"} {
			acquire(t, tree, run("r1"), host, sshHop(host, "py")).Release()
		}
		acquire(t, tree, run("r1"), "h1", sudoPath...).Release()
		acquire(t, tree, run("r1"), "shared", sudoPath...).Release()
		all := "[ssh h1=ready ssh h1=ready ssh h2=ready ssh h2=ready sudo root=ready]"
		tree.Release("r1", []string{"h1", "nobody"})
		tree.Release("r2", []string{"h1", "h2", "shared"})
		time.Sleep(time.Hour)
		wantNames(t, tree, all) // shared wants them
		tree.Release("r1", []string{"shared"})
		time.Sleep(time.Second)
		wantNames(t, tree, "[ssh h2=ready ssh h2=ready]") // idle for longer than it persists
		acquire(t, tree, run("r1"), "h1", sshPath...).Release()
		used := acquire(t, tree, run("r1"), "h2", sshHop("h2", "py"))
		tree.Release("r1", []string{"h1", "h2"})
		acquire(t, tree, run("r1"), "h1", sshPath...).Release()
		time.Sleep(time.Hour)
		wantNames(t, tree, "[ssh h2=ready ssh h2=ready ssh h1=ready ssh h1=ready]") // one is held, the other was asked for again
		used.Release()
		time.Sleep(time.Hour)
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready]")
		tree.Reset("r1", "h1", nil)
		wantNames(t, tree, "[]")
		if dials, _ := w.count("h1"); dials != 2 {
			t.Errorf("%d dials", dials)
		}
	})
}

func TestResetDrains(t *testing.T) {
	for name, reset := range map[string]func(*Tree){
		"by path": func(tree *Tree) { tree.Reset("r2", "elsewhere", sshPath) },
		"by host": func(tree *Tree) { tree.Reset("r1", "h1", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tree, w := newTree(t, Options{})
				acquire(t, tree, run("r1"), "other", sshHop("h2", "py")).Release()
				used := acquire(t, tree, run("r1"), "h1", sudoPath...)
				tree.Reset("r2", "h1", nil) // that run did not open it
				tree.Reset("r1", "nobody", hop.Path{sshHop("h3", "")})
				reset(tree)
				wantNames(t, tree, "[ssh h2=ready ssh h2=ready ssh h1=draining ssh h1=draining sudo root=draining]")
				reset(tree) // again: nothing new
				if _, err := used.Open(t.Context(), nil); err != nil {
					t.Errorf("a running request was cut: %v", err)
				}
				fresh := acquire(t, tree, run("r1"), "h1", sudoPath...)
				used.Release()
				wantNames(t, tree, "[ssh h2=ready ssh h2=ready ssh h1=ready ssh h1=ready sudo root=ready]")
				fresh.Release()
				if dials, open := w.count("h1"); dials != 2 || open != 1 {
					t.Errorf("%d dials, %d open", dials, open)
				}
			})
		})
	}
}

func TestVacate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		acquire(t, tree, run("r1"), "h1", sudoPath...).Release()
		for _, other := range [][3]string{{"r1", "h1", "nobody"}, {"r1", "h2", "root"}, {"r2", "h1", "root"}} {
			if err := tree.Vacate(t.Context(), other[0], other[1], other[2]); err != nil {
				t.Fatal(err)
			}
		}
		used := acquire(t, tree, run("r1"), "h1", sudoPath...)
		if err := tree.Vacate(t.Context(), "r1", "h1", "root"); err != nil {
			t.Fatal(err)
		}
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo root=ready]") // a job's account keeps its agent
		used.Release()
		if err := tree.Vacate(t.Context(), "r1", "h1", "root"); err != nil {
			t.Fatal(err)
		}
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready]")
	})
}

// TestRetire: an agent that is stale stays with those who hold it; the next request has another one, on the same connection.
func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		used := acquire(t, tree, run("r1"), "h1", sudoPath...)
		stale := acquire(t, tree, run("r1"), "h1", sudoPath...)
		stale.Retire()
		stale.Release()
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo root=draining]")
		fresh := acquire(t, tree, run("r1"), "h1", sudoPath...)
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo root=draining sudo root=ready]")
		if _, err := used.Open(t.Context(), nil); err != nil {
			t.Errorf("a running request was cut: %v", err)
		}
		used.Release()
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo root=ready]")
		fresh.Release()
		if dials, open := w.count("h1"); dials != 1 || open != 1 {
			t.Errorf("%d dials, %d open", dials, open)
		}
	})
}

func TestResetOfWhatIsBeingDialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		letGo := w.hold("h1/py")
		got := make(chan *Context, 2)
		go func() { got <- acquire(t, tree, run("r1"), "h1", sudoPath...) }()
		synctest.Wait()
		tree.Reset("r1", "h1", nil)
		wantNames(t, tree, "[ssh h1=draining ssh h1=draining]")
		letGo()
		old := <-got
		wantNames(t, tree, "[ssh h1=draining ssh h1=draining sudo root=draining]")
		old.Release()
		wantNames(t, tree, "[]")
	})
}
