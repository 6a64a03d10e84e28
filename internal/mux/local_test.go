package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

func wanted(t *testing.T, tree *Tree, r hop.Run, path ...hop.Hop) []byte {
	t.Helper()
	_, err := tree.Acquire(t.Context(), r, "localhost", path)
	e := wantFault(t, err, fault.LocalAgentWanted, 0, "local")
	if len(e.Token) != tokenBytes {
		t.Fatalf("a token of %d bytes", len(e.Token))
	}
	return e.Token
}

// attach plays an agent's process: it says line and leaves the connection open.
func attach(t *testing.T, tree *Tree, line string) error {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	go func() { _, _ = theirs.Write([]byte(line)) }()
	err := tree.AttachLocal(t.Context(), ours)
	if err != nil {
		if _, werr := ours.Write(nil); !errors.Is(werr, io.ErrClosedPipe) {
			t.Error("the connection is still open")
		}
	}
	return err
}

func TestAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		token := wanted(t, tree, run("r1"), localHop())
		if !tree.Busy() {
			t.Error("a daemon that waits for an agent is not idle")
		}
		got := make(chan error)
		go func() {
			c, err := tree.Acquire(t.Context(), run("r1"), "localhost", hop.Path{localHop()})
			if err == nil {
				c.Release()
			}
			got <- err
		}()
		synctest.Wait()
		line := "MUXATTACH " + hexOf(token) + "\n"
		if err := attach(t, tree, line); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Errorf("the one who waited: %v", err)
		}
		if err := attach(t, tree, line); err == nil {
			t.Error("a token worked twice")
		}

		anyInterpreter := localHop()
		anyInterpreter.Interpreter = ""
		c := acquire(t, tree, run("r1"), "localhost", anyInterpreter)
		if !c.HasAgent() || c.CanExec() {
			t.Error("a local context without its agent")
		}
		c.Release()

		other := wanted(t, tree, run("r2"), localHop()) // an agent belongs to one run
		if bytes.Equal(other, token) {
			t.Error("the same token again")
		}
		tree.EndRun("r1")
		wantNames(t, tree, "[local=dialing]")
		tree.EndRun("r2")
		wantNames(t, tree, "[]")
		if err := attach(t, tree, "MUXATTACH "+hexOf(other)+"\n"); err == nil {
			t.Error("an agent of a run that is over could attach")
		}
		if dials, _ := w.count("agent local"); dials != 1 {
			t.Errorf("%d agents connected", dials)
		}
	})
}

func TestAttachEndsWithItsRunWhileInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		if err := attach(t, tree, "MUXATTACH "+hexOf(wanted(t, tree, run("r1"), localHop()))+"\n"); err != nil {
			t.Fatal(err)
		}
		c := acquire(t, tree, run("r1"), "localhost", localHop(), becomeHop("root", "py"))
		tree.EndRun("r1")
		wantNames(t, tree, "[]")
		_, err := c.Open(t.Context(), nil)
		wantFault(t, err, fault.Cancelled, 1, "sudo root")
		c.Release()
	})
}

func TestAttachRefuses(t *testing.T) {
	good := strings.Repeat("ab", tokenBytes)
	for name, line := range map[string]string{
		"unknown token": "MUXATTACH " + good + "\n",
		"no hex":        "MUXATTACH " + strings.Repeat("xy", tokenBytes) + "\n",
		"short":         "MUXATTACH " + good[2:] + "\n",
		"empty":         "\n",
		"too long":      "MUXATTACH " + good + strings.Repeat("0", 20),
		"wrong word":    "MUXDETACH " + good + "\n",
		"nothing":       "",
		"half":          "MUXATTACH " + good,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tree, w := newTree(t, Options{})
				wanted(t, tree, run("r1"), localHop())
				start := time.Now()
				if err := attach(t, tree, line); err == nil {
					t.Error("it was let in")
				}
				if time.Since(start) > attachRead {
					t.Errorf("it could wait for %v", time.Since(start))
				}
				if dials, _ := w.count("agent local"); dials != 0 {
					t.Error("it was spoken to")
				}
			})
		})
	}
}

// TestWaitersForAnAttachGetTheirOwnToken is about a first asker that dies before it has started the agent.
func TestWaitersForAnAttachGetTheirOwnToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		first := wanted(t, tree, run("r1"), localHop())
		start := time.Now()
		second := wanted(t, tree, run("r1"), localHop())
		if waited := time.Since(start); waited != attachWait || bytes.Equal(first, second) {
			t.Errorf("waited %v, the same token: %v", waited, bytes.Equal(first, second))
		}
		if err := attach(t, tree, "MUXATTACH "+hexOf(first)+"\n"); err != nil { // it was only slow
			t.Fatal(err)
		}
		if err := attach(t, tree, "MUXATTACH "+hexOf(second)+"\n"); err == nil {
			t.Error("two agents of one run")
		}
		acquire(t, tree, run("r1"), "localhost", localHop()).Release()
	})
}

func TestAnAgentThatComesAtTheLastMomentIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		token := wanted(t, tree, run("r1"), localHop())
		letGo := w.hold("agent local")
		got := make(chan error, 1)
		go func() {
			c, err := tree.Acquire(t.Context(), run("r1"), "localhost", hop.Path{localHop(), becomeHop("root", "")})
			if err == nil {
				c.Release()
			}
			got <- err
		}()
		time.Sleep(attachWait - time.Millisecond)
		attached := make(chan error, 1)
		go func() { attached <- attach(t, tree, "MUXATTACH "+hexOf(token)+"\n") }()
		time.Sleep(time.Second)
		select {
		case err := <-got:
			t.Errorf("it has not waited: %v", err)
		default:
		}
		letGo()
		if err := errors.Join(<-attached, <-got); err != nil {
			t.Error(err)
		}
	})
}

func TestTokensDoNotLastForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, _ := newTree(t, Options{})
		token := wanted(t, tree, run("r1"), localHop())
		time.Sleep(attachWindow + time.Second)
		wantNames(t, tree, "[]")
		if err := attach(t, tree, "MUXATTACH "+hexOf(token)+"\n"); err == nil {
			t.Error("an old token worked")
		}
		wanted(t, tree, run("r1"), localHop())
		tree.Reset("r1", "localhost", nil)
		wantNames(t, tree, "[]")
	})
}

func TestAttachedAgentDoesNotBootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		w.setFail("agent local", &fault.Error{Kind: fault.AgentDied, Message: "no magic"})
		token := wanted(t, tree, run("r1"), localHop())
		got := make(chan error)
		go func() {
			_, err := tree.Acquire(t.Context(), run("r1"), "localhost", hop.Path{localHop()})
			got <- err
		}()
		synctest.Wait()
		err := attach(t, tree, "MUXATTACH "+hexOf(token)+"\n")
		wantFault(t, err, fault.AgentDied, 0, "local")
		wantFault(t, <-got, fault.AgentDied, 0, "local")
		wanted(t, tree, run("r1"), localHop()) // and the next one starts another
	})
}

func TestRealLocal(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	attachReal(t, tree, python, wanted(t, tree, run("r1"), localHop()))
	c := acquire(t, tree, run("r1"), "localhost", localHop())
	defer c.Release()
	if got := output(t, c, "echo fine"); got != "fine" {
		t.Errorf("got %q", got)
	}
	root := acquire(t, tree, run("r1"), "localhost", localHop(), fakeSudo(t, "tty", "secret", python))
	defer root.Release()
	if got := output(t, root, "echo $BECAME"); got != "tty" {
		t.Errorf("became %q", got)
	}
}
