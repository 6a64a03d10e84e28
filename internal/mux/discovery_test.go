package mux

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// sought is a hop whose interpreter is to be discovered among paths.
func sought(h hop.Hop, prefer []string, paths ...string) hop.Hop {
	h.Interpreter = ""
	h.Discovery = &hop.Discovery{Command: []byte(seek(paths...)), Prefer: prefer}
	return h
}

// seek is Ansible's own command.
func seek(paths ...string) string {
	lines := []string{"echo FOUND"}
	for _, p := range paths {
		lines = append(lines, "command -v '"+p+"'")
	}
	return "/bin/sh -c " + quoted(strings.Join(append(lines, "echo ENDFOUND"), "; "))
}

// seen is what that command says where these are there.
func seen(paths ...string) string {
	return strings.Join(append(append([]string{"FOUND"}, paths...), "ENDFOUND", ""), "\n")
}

func TestDiscovery(t *testing.T) {
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	for name, c := range map[string]struct {
		seek, prefer []string
		answer       string
		want         string // the interpreter that is then there
	}{
		"the first":              {[]string{"/no/such", first, second}, nil, seen(first, second), first},
		"the preferred":          {[]string{first, second}, []string{"/no/such", second}, seen(first, second), second},
		"preferred is not found": {[]string{first}, []string{second}, seen(first), first},
		"words are no paths":     {[]string{"cd", first}, []string{"cd"}, seen("cd", first), first},
	} {
		for _, shell := range []string{"/bin/sh", "csh", "testdata/noisy"} {
			t.Run(name+" "+shell, func(t *testing.T) {
				if _, err := exec.LookPath(shell); err != nil {
					t.Skipf("no %s", shell)
				}
				tree, python := realTree(t, shell)
				for _, place := range []string{first, second} {
					if err := os.WriteFile(place, []byte("#!/bin/sh\nexec "+python+" \"$@\"\n"), 0o755); err != nil { //nolint:gosec // a program
						t.Fatal(err)
					}
				}
				for way, h := range map[string]hop.Hop{"ssh": sshHop("there", ""), "container": boxHop("a", "")} {
					path := hop.Path{sought(h, c.prefer, c.seek...)}
					if way == "container" {
						path = append(hop.Path{sshHop("here", python)}, path...)
					}
					found := acquire(t, tree, run("r1"), "here", path...)
					answer, ok := found.Discovered()
					if got := string(answer); !ok || !strings.HasSuffix(got, c.answer) || shell != "testdata/noisy" && got != c.answer {
						t.Errorf("%s: the discovery says %q, %v, want %q", way, answer, ok, c.answer)
					}
					dials := tree.Dials()
					path[len(path)-1].Interpreter, path[len(path)-1].Discovery = c.want, nil
					named := acquire(t, tree, run("r1"), "here", path...)
					if named.node != found.node || tree.Dials() != dials {
						t.Errorf("%s: the agent is not found under the name of its interpreter", way)
					}
					if got := output(t, named, "echo hello"); got != "hello" {
						t.Errorf("%s: got %q", way, got)
					}
					if _, ok := named.Discovered(); ok {
						t.Errorf("%s: who did not ask has an answer", way)
					}
					named.Release()
					found.Release()
				}
			})
		}
	}
}

func TestDiscoveryFindsNothing(t *testing.T) {
	_, python := realTree(t, "/bin/sh")
	for name, c := range map[string]struct {
		before hop.Path
		end    hop.Hop
		path   string
		kind   fault.Kind
	}{
		"none":                     {nil, sshHop("here", ""), "/no/such", fault.InterpreterMissing},
		"no Python":                {nil, sshHop("here", ""), "/bin/false", fault.InterpreterMissing},
		"none in a container":      {hop.Path{sshHop("here", python)}, boxHop("a", ""), "/no/such", fault.InterpreterMissing},
		"no Python in a container": {hop.Path{sshHop("here", python)}, boxHop("a", ""), "/bin/false", fault.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := realTree(t, "/bin/sh")
			_, err := tree.Acquire(t.Context(), run("r1"), "here", append(c.before, sought(c.end, nil, c.path)))
			wantFault(t, err, c.kind, len(c.before), c.end.Name())
		})
	}
}

// TestDiscoveryIsSharedAndAsksOnce: of those who discover at the same time one has the answer, and all have the one agent; later ones
// have any agent that is there.
func TestDiscoveryIsSharedAndAsksOnce(t *testing.T) {
	tree, w := newTree(t, Options{})
	w.preamble = []byte(seen("/usr/bin/python3") + "/usr/bin/python3\n")
	letGo := w.hold("h1")
	defer letGo()
	path := hop.Path{sought(sshHop("h1", ""), nil, "/usr/bin/python3")}
	contexts := make([]*Context, 5)
	var waiting sync.WaitGroup
	for i := range contexts {
		waiting.Go(func() {
			c, err := tree.Acquire(t.Context(), run("r1"), "h1", path)
			if err != nil {
				t.Error(err)
				return
			}
			contexts[i] = c
		})
	}
	letGo()
	waiting.Wait()
	if t.Failed() {
		return
	}
	answers := 0
	for _, c := range contexts {
		if _, ok := c.Discovered(); ok {
			answers++
		}
		defer c.Release()
	}
	later := acquire(t, tree, run("r2"), "h1", path...)
	defer later.Release()
	contexts = append(contexts, later)
	if _, ok := later.Discovered(); ok || answers != 1 {
		t.Errorf("%d answers for the first, the later one has one: %v", answers, ok)
	}
	if slices.ContainsFunc(contexts, func(c *Context) bool { return c.node != later.node }) || tree.Dials() != 2 {
		t.Errorf("%d dials: %v", tree.Dials(), tree.Nodes())
	}
}
