package mux

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// TestManyAccountsTakeTurns: sixty accounts of one target want an interpreter at the same time. Nineteen have one, besides the login
// account's, until they are done with it; the others come in their order, each as soon as a place is free, or give up after the connect timeout.
func TestManyAccountsTakeTurns(t *testing.T) {
	const (
		accounts = 60
		places   = defaultInterp - 1
	)
	patience := time.Duration(sshHop("h1", "").SSH.TimeoutSeconds) * time.Second
	for name, c := range map[string]struct {
		hold time.Duration
		most int // that get their turn
	}{
		"all in time":       {time.Second, accounts},
		"just in time":      {patience/3 - time.Millisecond, accounts},
		"the last too late": {patience/3 + time.Millisecond, 3 * places},
		"two turns":         {patience - time.Millisecond, 2 * places},
		"one turn":          {patience + time.Millisecond, places},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tree, _ := newTree(t, Options{})
				r := run("r1")
				r.MaxInterp = 0 // the default
				acquire(t, tree, r, "h1", sshHop("h1", "py")).Release()
				var (
					mu       sync.Mutex
					served   []int
					late     = map[time.Duration]int{}
					now, all int // that hold one
					busy     sync.WaitGroup
				)
				start := time.Now()
				for i := range accounts {
					busy.Go(func() {
						path := hop.Path{sshHop("h1", "py"), becomeHop(fmt.Sprint(i), "py")}
						held, err := tree.Acquire(t.Context(), r, "h1", path)
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							wantFault(t, err, fault.TimedOut, 1, fmt.Sprint("sudo ", i))
							late[time.Since(start)]++
							return
						}
						served = append(served, i)
						now++
						all = max(all, now)
						busy.Go(func() {
							time.Sleep(c.hold)
							mu.Lock()
							now--
							mu.Unlock()
							held.Release()
						})
					})
					synctest.Wait() // they come in this order
				}
				busy.Wait()
				slices.Sort(served) // those of one turn come in any order
				if len(served) != c.most || served[c.most-1] != c.most-1 || all != places {
					t.Errorf("%d were served, %d at once: %v", len(served), all, served)
				}
				if late[patience] != accounts-c.most || len(late) > 1 {
					t.Errorf("late: %v", late)
				}
			})
		})
	}
}
