package mux

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// TestShares: a context shares what it is sent where others are behind the same agent, and that one is not the controller's own.
func TestShares(t *testing.T) {
	type asked struct {
		host string
		path hop.Path
	}
	login := sshHop("h", "py")
	for name, c := range map[string]struct {
		asked []asked // the last one is who shares, or does not
		want  bool
	}{
		"an account alone":                {[]asked{{"x", hop.Path{login, becomeHop("a", "py")}}}, false},
		"beside the login account":        {[]asked{{"x", hop.Path{login}}, {"x", hop.Path{login, becomeHop("a", "py")}}}, false},
		"beside another account":          {[]asked{{"x", hop.Path{login, becomeHop("b", "py")}}, {"x", hop.Path{login, becomeHop("a", "py")}}}, true},
		"one account of two hosts":        {[]asked{{"y", hop.Path{login, becomeHop("a", "py")}}, {"x", hop.Path{login, becomeHop("a", "py")}}}, true},
		"beside a container":              {[]asked{{"y", hop.Path{login, boxHop("b", "py")}}, {"x", hop.Path{login, boxHop("a", "py")}}}, true},
		"a login account beside accounts": {[]asked{{"y", hop.Path{login, becomeHop("b", "py")}}, {"z", hop.Path{login, becomeHop("c", "py")}}, {"x", hop.Path{login}}}, false},
		"behind an account": {[]asked{
			{"y", hop.Path{login, becomeHop("b", "py"), becomeHop("c", "py")}}, {"x", hop.Path{login, becomeHop("b", "py"), becomeHop("a", "py")}},
		}, true},
		"of the controller": {[]asked{{"y", hop.Path{localHop(), becomeHop("b", "py")}}, {"x", hop.Path{localHop(), becomeHop("a", "py")}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := newTree(t, Options{})
			if c.asked[0].path[0].Local != nil {
				token := wanted(t, tree, run("r1"), localHop())
				if err := attach(t, tree, "MUXATTACH "+hexOf(token)+"\n"); err != nil {
					t.Fatal(err)
				}
			}
			var last *Context
			for _, a := range c.asked {
				r := run("r1")
				r.MaxInterp = 9
				last = acquire(t, tree, r, a.host, a.path...)
				defer last.Release()
			}
			if got := last.Shares(); got != c.want {
				t.Errorf("it shares: %v", got)
			}
		})
	}
}

// TestRealSharing: what two containers are sent crosses the line to the agent before them once.
func TestRealSharing(t *testing.T) {
	tree, python := realTree(t, "/bin/sh")
	dir := t.TempDir()
	body := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(body)
	var boxes []*Context
	for _, name := range []string{"a", "b"} {
		r := run("r1")
		r.MaxInterp = 9
		c := acquire(t, tree, r, name, sshHop("here", python), boxHop(name, python))
		defer c.Release()
		if _, err := c.link.Hello(t.Context()); err != nil { // its agent has been sent
			t.Fatal(err)
		}
		boxes = append(boxes, c)
	}
	before := sentTo(t, tree, "ssh here")
	for i, c := range boxes {
		path := filepath.Join(dir, string(rune('a'+i)))
		s, err := c.Open(t.Context(), agent.Put{Dest: []byte(path), Size: uint64(len(body)), SHA256: blobcache.Sum(body)})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Send(t.Context(), body); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for {
			ev, err := s.Recv(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ev.Channel == agent.Final {
				break
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes are there, %v", len(got), err)
		}
	}
	if crossed := sentTo(t, tree, "ssh here") - before; crossed < int64(len(body)) || crossed > int64(len(body))+8<<10 {
		t.Errorf("%d bytes crossed for %d", crossed, len(body))
	}
}

// sentTo is what the agent of a name was sent.
func sentTo(t *testing.T, tree *Tree, name string) int64 {
	t.Helper()
	for _, n := range tree.Nodes() {
		if n.Name == name && n.Python != "" {
			return n.SentBytes
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}
