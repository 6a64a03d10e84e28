package server

import (
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// answeringNode is a node whose agent a discovery has started.
type answeringNode struct{ bareNode }

func (answeringNode) Discovered() ([]byte, bool) { return []byte("found ahead\n"), true }

func TestDiscovery(t *testing.T) {
	ssh := &muxv1.Hop{Method: &muxv1.Hop_Ssh{Ssh: &muxv1.SshHop{Host: "h1"}}}
	box := &muxv1.Hop{Method: &muxv1.Hop_Container{Container: &muxv1.ContainerHop{Method: "box", Argv: [][]byte{[]byte("enter")}}}}
	become := &muxv1.Hop{Method: &muxv1.Hop_Become{Become: &muxv1.BecomeHop{Method: "sudo", Success: []byte("x")}}}
	named := &muxv1.Hop{Method: ssh.GetMethod(), Interpreter: "/usr/bin/python3"}
	lacks := func(kind fault.Kind) error { return &fault.Error{Kind: kind, Message: "no"} }
	const ahead, asked = "found ahead\n", "asked\n"
	for name, c := range map[string]struct {
		last *muxv1.Hop
		err  error
		want string     // empty: an error
		kind fault.Kind // of it
		asks int        // how often the tree is asked
	}{
		"ahead":                        {ssh, nil, ahead, 0, 1},
		"ahead in a container":         {box, nil, ahead, 0, 1},
		"there is no Python":           {ssh, lacks(fault.InterpreterMissing), asked, 0, 2},
		"what was found is none":       {ssh, lacks(fault.AgentDied), asked, 0, 2},
		"the shell mangles":            {ssh, lacks(fault.Unsupported), asked, 0, 2},
		"no host":                      {ssh, lacks(fault.Unreachable), "", fault.Unreachable, 1},
		"no password":                  {ssh, lacks(fault.AuthFailed), "", fault.AuthFailed, 1},
		"a container that may be none": {box, lacks(fault.Unreachable), asked, 0, 2},
		"another account":              {become, nil, asked, 0, 1},
		"an interpreter is named":      {named, nil, asked, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, newBareNode())
			d.tree.discovers = func() (Node, error) { return answeringNode{newBareNode()}, c.err }
			step := shell1("echo asked")
			step.GetCommand().Discovery = &muxv1.Discovery{Prefer: []string{"/usr/bin/python3"}}
			in := d.request(t, step)
			in.Path = &muxv1.Path{Hops: []*muxv1.Hop{ssh, c.last}}
			a, err := d.ask(t, in)
			if c.want == "" {
				if got := FaultOf(err).Kind; got != c.kind {
					t.Errorf("got %v, want %v", got, c.kind)
				}
			} else if err != nil || a.stdout[0] != c.want || a.results[0].GetRc() != 0 {
				t.Errorf("got %q, %v, want %q", a.stdout[0], err, c.want)
			}
			if len(d.tree.acquired) != c.asks {
				t.Errorf("the tree was asked %d times, want %d", len(d.tree.acquired), c.asks)
			}
		})
	}
}
