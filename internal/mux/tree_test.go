package mux

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func TestStateTable(t *testing.T) {
	for from := State(0); from <= Failed+1; from++ {
		for to := State(0); to <= Failed+1; to++ {
			allowed := slices.Contains(moves[from], to)
			switch {
			case allowed && (from.Ended() || from == to):
				t.Errorf("%v to %v", from, to)
			case allowed != from.canMove(to):
				t.Errorf("canMove(%v, %v) is %v", from, to, !allowed)
			}
		}
	}
	for s := Idle; s <= Failed; s++ {
		if !s.Ended() && (!s.canMove(Closed) || s != Draining && !s.canMove(Draining)) {
			t.Errorf("%v cannot be drained or closed", s)
		}
	}
	if got := State(77).String(); got != "State(77)" {
		t.Errorf("got %q", got)
	}
}

func TestForbiddenMovePanicsInTests(t *testing.T) {
	tree, _ := newTree(t, Options{})
	defer func() {
		if recover() == nil {
			t.Error("it did not")
		}
	}()
	tree.moveLocked(&node{state: Closed}, Ready)
}

func names(tree *Tree) string {
	var out []string
	for _, n := range tree.Nodes() {
		out = append(out, n.Name+"="+n.State.String())
	}
	return fmt.Sprint(out)
}

func wantNames(t *testing.T, tree *Tree, want string) {
	t.Helper()
	synctest.Wait()
	if got := names(tree); got != want {
		t.Errorf("nodes: %s\nwant:  %s", got, want)
	}
}

var (
	sshPath  = hop.Path{sshHop("h1", "py")}
	sudoPath = hop.Path{sshHop("h1", "py"), becomeHop("root", "py")}
)

func TestTransportOutlivesItsAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		acquire(t, tree, run("r1"), "h1", sshPath...).Release()
		w.peers[0].die(errors.New("out of memory"))
		wantNames(t, tree, "[ssh h1=ready]")
		acquire(t, tree, run("r1"), "h1", sshPath...).Release()
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready]")
		if dials, _ := w.count("h1"); dials != 1 {
			t.Errorf("%d dials", dials)
		}
	})
}

// What was asked of an agent whose connection is lost fails as the connection did, not as if somebody had cancelled it.
func TestRequestsOfALostConnectionLearnWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		held := acquire(t, tree, run("r1"), "h1", sshPath...)
		w.transports[0].die(errors.New("keepalive"))
		synctest.Wait()
		wantFault(t, w.peers[0].Err(), fault.Unreachable, 0, "ssh h1")
		held.Release()
	})
}

// A request's error may be known before the link has ended. Whoever comes then gets a new agent.
func TestAnAgentThatIsEndingServesNobody(t *testing.T) {
	for name, c := range map[string]struct {
		path  hop.Path
		agent bool // one is found
		peers int  // that there have been at the end
	}{
		"by its name": {sshPath, true, 2},
		"any":         {hop.Path{sshHop("h1", "")}, false, 1},
		"on the way":  {hop.Path{sshHop("h1", "another"), becomeHop("root", "py")}, true, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tree, w := newTree(t, Options{})
				acquire(t, tree, run("r1"), "h1", sshPath...).Release()
				w.peers[0].fails.Store(&fault.Error{Kind: fault.AgentDied, Message: "killed"})
				found := acquire(t, tree, run("r1"), "h1", c.path...)
				defer found.Release()
				if dials, _ := w.count("h1"); dials != 1 || len(w.peers) != c.peers || found.HasAgent() != c.agent {
					t.Errorf("%d dials, %d agents, one found: %v", dials, len(w.peers), found.HasAgent())
				}
			})
		})
	}
}

// deadTransport makes the next Exec find that the connection has been dead for a while.
func TestWarmConnectionFoundDeadIsDialledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		acquire(t, tree, run("r1"), "h1", sshHop("h1", "")).Release()
		letGo := w.hold("h1/py")
		got := make(chan error)
		go func() {
			c, err := tree.Acquire(t.Context(), run("r1"), "h1", sshPath)
			if err == nil {
				c.Release()
			}
			got <- err
		}()
		synctest.Wait()
		w.transports[0].die(errors.New("keepalive"))
		letGo()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		if dials, _ := w.count("h1"); dials != 2 {
			t.Errorf("%d dials", dials)
		}
		w.transports[1].die(errors.New("keepalive"))
		synctest.Wait()
		w.setFail("h1", errors.New("refused"))
		_, err := tree.Acquire(t.Context(), run("r1"), "h1", sshPath)
		wantFault(t, err, fault.Unreachable, 0, "ssh h1")
		if dials, _ := w.count("h1"); dials != 3 {
			t.Errorf("%d dials: a failed dial was repeated", dials)
		}
	})
}

func TestEmptyInterpreter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		plain := hop.Path{sshHop("h1", "")}
		becomePlain := hop.Path{sshHop("h1", ""), becomeHop("root", "")}

		c := acquire(t, tree, run("r1"), "h1", plain...)
		if c.HasAgent() || !c.CanExec() {
			t.Error("a bare connection has an agent, or cannot execute")
		}
		_, err := c.Open(t.Context(), nil)
		wantFault(t, err, fault.InterpreterMissing, 0, "ssh h1")
		c.Release()

		c = acquire(t, tree, run("r1"), "h1", sshHop("h1", "py"), becomeHop("root", "")) // needs no agent of the login account
		if c.HasAgent() || !c.CanExec() {
			t.Error("a plain become command has an agent, or cannot be executed")
		}
		c.Release()
		wantNames(t, tree, "[ssh h1=ready]")

		acquire(t, tree, run("r1"), "h1", sudoPath...).Release()
		synctest.Wait()
		c = acquire(t, tree, run("r1"), "h1", plain...)
		if !c.HasAgent() || !c.CanExec() {
			t.Error("the login account's agent was not found")
		}
		c.Release()
		c = acquire(t, tree, run("r1"), "h1", becomePlain...)
		if !c.HasAgent() || c.CanExec() {
			t.Error("the become agent was not found")
		}
		c.Release()
		time.Sleep(time.Second)
		acquire(t, tree, run("r1"), "h1", sshHop("h1", "py3.9")).Release()
		synctest.Wait()
		c = acquire(t, tree, run("r1"), "h1", plain...)
		if c.node.edge.interpreter != "py3.9" {
			t.Errorf("not the agent that was used last: %q", c.node.edge.interpreter)
		}
		c.Release()
		acquire(t, tree, run("r1"), "h1", sshHop("h1", ""), becomeHop("b", "py")).Release() // through any agent of the login account
		if dials, _ := w.count("h1"); dials != 1 {
			t.Errorf("%d dials", dials)
		}

		_, err = tree.Acquire(t.Context(), run("r1"), "h2", hop.Path{sshHop("h2", ""), becomeHop("b", "py")})
		wantFault(t, err, fault.InterpreterMissing, 0, "ssh h2")
	})
}

func TestUnsupportedPaths(t *testing.T) {
	noMarker := becomeHop("root", "py")
	noMarker.Become.Success = nil
	for name, c := range map[string]struct {
		path  hop.Path
		level int
		hop   string
	}{
		"empty":        {nil, 0, ""},
		"become first": {hop.Path{becomeHop("root", "py")}, 0, "sudo root"},
		"local behind": {hop.Path{sshHop("h1", "py"), {Local: &hop.Local{}}}, 1, "local"},
		"no method":    {hop.Path{{}}, 0, "local"},
		"no marker":    {hop.Path{sshHop("h1", "py"), noMarker}, 1, "sudo root"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := newTree(t, Options{})
			_, err := tree.Acquire(t.Context(), run("r1"), "h", c.path)
			wantFault(t, err, fault.Unsupported, c.level, c.hop)
		})
	}
}

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{PoolSize: 2})
		var letGo []func()
		got := make(chan string, 4)
		for i := range 4 {
			host := fmt.Sprintf("h%d", i)
			letGo = append(letGo, w.hold(host))
			go func() {
				acquire(t, tree, run("r1"), host, sshHop(host, "")).Release()
				got <- host
			}()
			synctest.Wait() // first come, first served
		}
		wantNames(t, tree, "[ssh h0=dialing ssh h1=dialing ssh h2=idle ssh h3=idle]")
		letGo[1]()
		if host := <-got; host != "h1" {
			t.Errorf("got %s", host)
		}
		wantNames(t, tree, "[ssh h0=dialing ssh h1=ready ssh h2=dialing ssh h3=idle]")
		time.Sleep(slowDial) // h0 and h2 are silent: they keep nobody from starting
		wantNames(t, tree, "[ssh h0=dialing ssh h1=ready ssh h2=dialing ssh h3=dialing]")
		letGo[3]()
		if host := <-got; host != "h3" {
			t.Errorf("got %s", host)
		}
		letGo[0]()
		letGo[2]()
		<-got
		<-got
	})
}

func TestWaiterInThePoolsQueueLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{PoolSize: 1})
		letGo := w.hold("h1")
		got := make(chan error, 2)
		go func() {
			_, err := tree.Acquire(t.Context(), run("r1"), "h1", sshPath)
			got <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), slowDial/2)
		defer cancel()
		_, err := tree.Acquire(ctx, run("r1"), "h2", hop.Path{sshHop("h2", "")})
		wantFault(t, err, fault.TimedOut, 0, "ssh h2")
		letGo()
		if err := <-got; err != nil {
			t.Error(err)
		}
		if dials, _ := w.count("h2"); dials != 0 {
			t.Error("it was dialled all the same")
		}
	})
}

func TestEviction(t *testing.T) {
	user := func(name string) hop.Path { return hop.Path{sshHop("h1", "py"), becomeHop(name, "py")} }
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{}) // three interpreters a target: the login account's, and two more
		a := acquire(t, tree, run("r1"), "h1", user("a")...)
		acquire(t, tree, run("r1"), "h1", user("b")...).Release()
		acquire(t, tree, run("r1"), "h2", sshHop("h2", "py")).Release() // another target has its own
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo a=ready sudo b=ready ssh h2=ready ssh h2=ready]")
		time.Sleep(time.Second)
		c := acquire(t, tree, run("r1"), "h1", user("c")...) // b was used last, but a is busy
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo a=ready ssh h2=ready ssh h2=ready sudo c=ready]")

		_, err := tree.Acquire(t.Context(), run("r1"), "h1", user("d")) // all busy: until the connect timeout
		wantFault(t, err, fault.TimedOut, 1, "sudo d")
		if _, open := w.count("agent sudo d"); open != 0 {
			t.Error("it was opened")
		}

		type outcome struct {
			name string
			c    *Context
		}
		got := make(chan outcome, 2)
		for _, name := range []string{"d", "e"} {
			go func() { got <- outcome{name, acquire(t, tree, run("r1"), "h1", user(name)...)} }()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		a.Release()
		d := <-got
		if d.name != "d" {
			t.Errorf("%s came before its turn", d.name)
		}
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready ssh h2=ready ssh h2=ready sudo c=ready sudo d=ready sudo e=idle]")
		w.mu.Lock()
		dying := slices.IndexFunc(w.peers, func(p *fakePeer) bool { return p.name == "sudo c" })
		w.mu.Unlock()
		w.peers[dying].die(errors.New("killed")) // a place is a place, however it became free
		e := <-got
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready ssh h2=ready ssh h2=ready sudo d=ready sudo e=ready]")
		c.Release()
		d.c.Release()
		e.c.Release()
	})
}

// TestRoomForACommand: an agent holds a session as long as it is there. One that is idle gives it to a command that needs it, with all
// below it; one that somebody holds does not.
func TestRoomForACommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		r := run("r1")
		r.MaxInterp = 9
		acquire(t, tree, r, "h1", sshHop("h1", "py1"), becomeHop("root", "py1")).Release()
		time.Sleep(time.Second)
		acquire(t, tree, r, "h1", sshHop("h1", "py2")).Release()
		busy := acquire(t, tree, r, "h1", sshHop("h1", "py2"), becomeHop("root", "py2"))
		synctest.Wait() // what has come up is Ready a moment later, and a command goes by the agent that was used last of those
		w.transports[0].full = true
		for _, want := range []string{"[ssh h1=ready ssh h1=ready sudo root=ready]", "[ssh h1=ready ssh h1=ready sudo root=ready]"} {
			command := acquire(t, tree, r, "h1", sshHop("h1", ""))
			if _, err := command.Exec(t.Context(), []byte("true"), ExecOptions{}); err != nil {
				t.Fatal(err)
			}
			command.Release()
			synctest.Wait()
			wantNames(t, tree, want)
		}
		busy.Release()
	})
}

func TestEvictionTakesTheLeastRecentlyUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		for _, name := range []string{"a", "b", "a", "c"} {
			acquire(t, tree, run("r1"), "h1", sshHop("h1", "py"), becomeHop(name, "py")).Release()
			time.Sleep(time.Second)
		}
		wantNames(t, tree, "[ssh h1=ready ssh h1=ready sudo a=ready sudo c=ready]")
	})
}

func TestLogReachesTheContextsThatHoldTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		var heard []string
		a := acquire(t, tree, run("r1"), "h1", sshPath...)
		a.Log(func(level int, text string) { heard = append(heard, fmt.Sprint("a", level, text)) })
		b := acquire(t, tree, run("r1"), "h1", sshPath...)
		b.Log(func(level int, text string) { heard = append(heard, fmt.Sprint("b", level, text)) })
		a.Release()
		w.peers[0].onLog(2, " text")
		b.Release()
		w.peers[0].onLog(2, " lost")
		if got := fmt.Sprint(heard); got != "[b2 text]" {
			t.Errorf("got %s", got)
		}
	})
}

// TestNotes: what a connection has to say reaches each run once per host, whoever dialled.
func TestNotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		w.notes = []Note{{Warning, "one"}, {Verbose, "two"}}
		heard := func(id, host string) string {
			c := acquire(t, tree, run(id), host, sshPath...)
			defer c.Release()
			var all []string
			c.Log(func(level int, text string) { all = append(all, fmt.Sprint(level, text)) })
			return strings.Join(all, " ")
		}
		for _, c := range []struct{ run, host, want string }{
			{"r1", "web", "1one 2two"}, {"r1", "web", ""}, {"r1", "alias", "1one 2two"}, {"r2", "web", "1one 2two"}, {"r1", "alias", ""},
		} {
			if got := heard(c.run, c.host); got != c.want {
				t.Errorf("%s, %s: got %q, want %q", c.run, c.host, got, c.want)
			}
		}
	})
}

func TestNodesTellWhatPeopleAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		c := acquire(t, tree, run("r1"), "web", sshPath...)
		acquire(t, tree, run("r1"), "alias", sshHop("h1", "")).Release()
		synctest.Wait()
		nodes := tree.Nodes()
		n := nodes[1]
		if n.Parent != nodes[0].ID || n.Python != "3.11.2" || n.Jobs != 1 || n.SentBytes != 2 || !n.IdleSince.IsZero() {
			t.Errorf("got %+v", n)
		}
		if got := fmt.Sprint(nodes[0].Hosts); got != "[alias web]" {
			t.Errorf("hosts: %s", got)
		}
		c.Release()
		if tree.Nodes()[1].IdleSince.IsZero() {
			t.Error("not idle")
		}
		if tree.Dials() != 2 {
			t.Errorf("%d dials", tree.Dials())
		}
	})
}
