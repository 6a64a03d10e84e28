package mux

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// boxHop is a container that a real tool enters: env, which leaves a mark.
func boxHop(name, interpreter string, argv ...string) hop.Hop {
	if argv == nil {
		argv = []string{"/usr/bin/env", "BOX_" + name + "=it's " + name}
	}
	c := &hop.Container{Method: "box", Name: name}
	for _, word := range argv {
		c.Argv = append(c.Argv, []byte(word))
	}
	return hop.Hop{Container: c, Interpreter: interpreter, Account: key("box " + name)}
}

const marks = `echo "$BOX_a,$BOX_b"`

func TestRealContainers(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	for name, path := range map[string]hop.Path{
		"one":        {sshHop("here", python), boxHop("a", python), boxHop("b", python)},
		"on the way": {sshHop("here", python), boxHop("a", python), boxHop("b", python+" ")},
	} {
		t.Run(name, func(t *testing.T) {
			r := run("r1")
			r.MaxInterp = 9
			c := acquire(t, tree, r, "here", path...)
			defer c.Release()
			if c.CanExec() || !c.HasAgent() {
				t.Error("a container with an agent has none, or wants SSH")
			}
			if got := output(t, c, marks); got != "it's a,it's b" {
				t.Errorf("got %q", got)
			}
		})
	}
	if n := len(tree.Nodes()); n != 5 { // the connection, its agent, one in a, two in b
		t.Errorf("%d nodes: %v", n, tree.Nodes())
	}
}

// TestRealPlainInContainers: commands without an agent are started by the last account that has one, or by SSH.
func TestRealPlainInContainers(t *testing.T) {
	for name, c := range map[string]struct {
		before func(python string) hop.Path // is there already
		path   func(python string) hop.Path
		want   string
	}{
		"by SSH": {nil, func(string) hop.Path {
			return hop.Path{sshHop("here", ""), boxHop("a", ""), boxHop("b", "")}
		}, "it's a,it's b|"},
		"by SSH, though it has an agent": {func(python string) hop.Path { return hop.Path{sshHop("here", python)} }, func(python string) hop.Path {
			return hop.Path{sshHop("here", python), boxHop("b", "")}
		}, ",it's b|"},
		"by the agent of another container": {func(python string) hop.Path { return hop.Path{sshHop("here", python), boxHop("a", python)} }, func(python string) hop.Path {
			return hop.Path{sshHop("here", python), boxHop("a", python), boxHop("b", "")}
		}, "it's a,it's b|"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, python := realTree(t, "/bin/sh")
			if c.before != nil {
				acquire(t, tree, run("r1"), "here", c.before(python)...).Release()
			}
			got := acquire(t, tree, run("r1"), "here", c.path(python)...)
			defer got.Release()
			if got.HasAgent() || !got.CanExec() {
				t.Error("a bare container has an agent, or cannot execute")
			}
			if out := plainOutput(t, got, marks); out != c.want {
				t.Errorf("got %q, want %q", out, c.want)
			}
		})
	}
}

func TestRealContainerFaults(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	for name, c := range map[string]struct {
		hop  hop.Hop
		kind fault.Kind
		says string
	}{
		"no such tool":       {boxHop("a", python, "/no/tool"), fault.Unreachable, "/no/tool: No such file"},
		"the tool refuses":   {boxHop("b", python, "/bin/sh", "-c", "echo no such container: not found >&2; exit 1"), fault.Unreachable, "no such container"},
		"no interpreter":     {boxHop("c", "/no/python"), fault.InterpreterMissing, "not found"},
		"the tool is killed": {boxHop("d", python, "/bin/sh", "-c", "kill -9 $$"), fault.AgentDied, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tree.Acquire(t.Context(), run("r1"), "here", hop.Path{sshHop("here", python), c.hop})
			e := wantFault(t, err, c.kind, 1, "box "+c.hop.Container.Name)
			if !strings.Contains(e.Stderr, c.says) {
				t.Errorf("got %q, want %q in it", e.Stderr, c.says)
			}
		})
	}
}

// TestResetOfWhatLiesBehind: only the end of a path of several hops is opened anew.
func TestResetOfWhatLiesBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, w := newTree(t, Options{})
		path := hop.Path{sshHop("h1", "py"), becomeHop("a", "py")}
		acquire(t, tree, run("r1"), "h1", path...).Release()
		acquire(t, tree, run("r1"), "h1", sshHop("h1", "py"), becomeHop("b", "py")).Release()
		synctest.Wait()
		tree.Reset("r1", "a", path)
		acquire(t, tree, run("r1"), "h1", path...).Release()
		synctest.Wait()
		behind, bare := hop.Path{sshHop("h1", "py"), sshHop("h2", "py")}, hop.Path{sshHop("h1", "py"), sshHop("h3", "")}
		for _, path := range []hop.Path{behind, bare} {
			acquire(t, tree, run("r1"), "b", path...).Release()
			synctest.Wait()
			tree.Reset("r1", "b", path)
			acquire(t, tree, run("r1"), "b", path...).Release()
			synctest.Wait()
		}
		for what, want := range map[string]int{
			"h1": 1, "agent ssh h1": 1, "agent sudo a": 2, "agent sudo b": 1, "h2": 2, "agent ssh h2": 2, "h3": 2,
		} {
			if dials, _ := w.count(what); dials != want {
				t.Errorf("%s was opened %d times, want %d", what, dials, want)
			}
		}
	})
}

// throughDialer connects through what it is given, to a server that it knows, and is a shellDialer otherwise.
type throughDialer struct {
	shellDialer
	host string
	port int
	got  chan string
}

func (d throughDialer) DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, from *Intermediary) (Transport, error) {
	conn, err := from.Forward(ctx, d.host, d.port)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return nil, err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return nil, err
	}
	d.got <- string(got)
	return d.Dial(ctx, h, run)
}

// TestRealForward: an SSH hop behind another context is a connection from there, and a target of its own.
func TestRealForward(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	go func() {
		conn, err := server.Accept()
		if err != nil {
			return
		}
		line := make([]byte, 6)
		_, _ = io.ReadFull(conn, line)
		_, _ = conn.Write([]byte(strings.ToUpper(string(line)) + strings.Repeat("x", 200_000)))
		_ = conn.Close()
	}()
	address := server.Addr().(*net.TCPAddr)
	dialer := throughDialer{shellDialer{"/bin/sh"}, "127.0.0.1", address.Port, make(chan string, 1)}
	tree, python := realTree(t, "/bin/sh")
	tree.dialer = dialer
	near := sshHop("near", python)
	c := acquire(t, tree, run("r1"), "far", near, boxHop("a", python), sshHop("far", python))
	if got := <-dialer.got; got != "HELLO\n"+strings.Repeat("x", 200_000) {
		t.Errorf("got %.20q … of %d bytes", got, len(got))
	}
	if c.node.root.hop.SSH == nil || c.node.root.hop.SSH.Host != "far" {
		t.Errorf("its target is %s", c.node.root.name())
	}
	c.Release()

	_ = server.Close()
	_, err = tree.Acquire(t.Context(), run("r1"), "gone", hop.Path{near, sshHop("gone", python)})
	e := wantFault(t, err, fault.Unreachable, 1, "ssh gone")
	if !strings.Contains(e.Stderr, "refused") || !strings.Contains(e.Message, "from ssh near") {
		t.Errorf("got %v: %s", e, e.Stderr)
	}
}
