package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// TestChain: nothing of a chain leaves before its last request is there, then all of it costs one round trip, whatever the order of opening.
func TestChain(t *testing.T) {
	l := agenttest.Start(t, "")
	if err := l.Ping(t.Context()); err != nil { // the agent itself has left
		t.Fatal(err)
	}
	before := l.Stats()
	path := filepath.Join(t.TempDir(), "folder")
	chain := agent.NewChain(3)
	guards := []agent.Guard{{Index: 0, Field: "rc", Value: []byte("0")}}
	streams := make([]*agent.Stream, 3)
	for _, i := range []int{2, 1, 0} {
		if sent := l.Stats().SentBytes; sent != before.SentBytes {
			t.Errorf("%d bytes left before the chain was whole", sent-before.SentBytes)
		}
		c := agent.Chained{Chain: chain, Index: i, Request: agent.Folder{Path: []byte(path), Remove: i == 2}}
		if i == 2 {
			c.Guards = guards
		}
		s, err := l.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		streams[i] = s
	}
	for i, want := range []agent.Failure{"", agent.FailIO, ""} {
		e, err := streams[i].Recv(t.Context())
		if err != nil || e.Channel != agent.Final || e.Result.Failure != want {
			t.Errorf("%d: got %+v, %v", i, e, err)
		}
	}
	if trips := l.Stats().RoundTrips - before.RoundTrips; trips > 1 {
		t.Errorf("%d round trips", trips)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the folder is still there")
	}
}

// TestChainGivenUp: of a chain that never becomes whole nothing leaves.
func TestChainGivenUp(t *testing.T) {
	l := agenttest.Start(t, "")
	if err := l.Ping(t.Context()); err != nil { // the agent itself has left
		t.Fatal(err)
	}
	before := l.Stats()
	s, err := l.Open(t.Context(), agent.Chained{Chain: agent.NewChain(2), Request: agent.Folder{Path: []byte("/nowhere")}})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := l.Stats(); after.Jobs != 0 || after.SentBytes-before.SentBytes > 64 {
		t.Errorf("%+v, then %+v", before, after)
	}
}

// TestChainFollows: a chain begins when the streams that it follows have ended, if one of those that decide is done. What has ended already is
// not asked for again, and what cannot be followed is an error before anything has left.
func TestChainFollows(t *testing.T) {
	const notBegun = "not begun" // Open says so
	type set map[string]bool     // by name, whether it decides
	for name, c := range map[string]struct {
		follows set
		cancel  bool // what is at work ends that way
		want    agent.Failure
	}{
		"done":                                {set{"done": true}, false, ""},
		"failed":                              {set{"failed": true}, false, notBegun},
		"failed, does not decide":             {set{"failed": false}, false, ""},
		"at work":                             {set{"at work": true}, false, ""},
		"at work, cancelled":                  {set{"at work": true}, true, agent.FailNotBegun},
		"at work, does not decide, cancelled": {set{"at work": false}, true, ""},
		"failed, other at work":               {set{"failed": true, "at work": true}, false, ""},
		"failed, other at work, cancelled":    {set{"failed": true, "at work": true}, true, agent.FailNotBegun},
		"failed, other does not decide":       {set{"failed": true, "at work": false}, false, notBegun},
		"done, other at work, cancelled":      {set{"done": true, "at work": true}, true, ""},
		"at work, another takes longer":       {set{"at work": true, "slow": false}, false, ""},
		"another link":                        {set{"another link": true}, false, notBegun},
		"another link, done, does not decide": {set{"done": true, "another link": false}, false, notBegun},
		"not left":                            {set{"not left": true}, false, notBegun},
		"not left, does not decide":           {set{"done": true, "not left": false}, false, notBegun},
		"none":                                {set{}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := agenttest.Start(t, ""), filepath.Join(t.TempDir(), "folder")
			gate := filepath.Join(t.TempDir(), "gate")
			must(t, syscall.Mkfifo(gate, 0o600))
			file, err := os.OpenFile(gate, os.O_RDWR, 0)
			must(t, err)
			defer file.Close()
			slow, both := filepath.Join(t.TempDir(), "slow"), agent.NewChain(2)
			then := func(i int, script string) agent.Chained {
				return agent.Chained{Chain: both, Index: i, Request: agent.Command{Argv: argv("sh", "-c", script)}}
			}
			streams := map[string]*agent.Stream{
				"done":         open(t.Context(), t, l, agent.Folder{Path: []byte("/none"), Remove: true}),
				"failed":       open(t.Context(), t, l, agent.Get{Source: []byte("/none")}),
				"at work":      open(t.Context(), t, l, then(0, "read x <"+gate)),
				"slow":         open(t.Context(), t, l, then(1, strings.Repeat("/bin/true; ", 50)+": >"+slow)),
				"another link": open(t.Context(), t, agenttest.Start(t, ""), agent.Folder{Path: []byte("/none"), Remove: true}),
				"not left":     open(t.Context(), t, l, agent.Chained{Chain: agent.NewChain(2), Request: agent.Folder{Path: []byte(path)}}),
			}
			defer streams["slow"].Close()
			defer streams["at work"].Close()
			for _, ended := range []string{"done", "failed"} {
				gather(within(t), t, streams[ended])
			}
			for _, begins := range []string{"at work", "slow"} {
				must(t, streams[begins].CloseSend())
			}
			must(t, l.Ping(within(t))) // all has left
			chain := agent.NewChain(1)
			var deciding, others []*agent.Stream
			for name, decides := range c.follows {
				if decides {
					deciding = append(deciding, streams[name])
				} else {
					others = append(others, streams[name])
				}
			}
			chain.Follow(deciding, others)
			before := l.Stats()
			s, err := l.Open(t.Context(), agent.Chained{Chain: chain, Request: agent.Folder{Path: []byte(path)}})
			if c.want == notBegun {
				if fault.KindOf(err) != fault.NotBegun || l.Stats().SentBytes != before.SentBytes {
					t.Errorf("got %v", err)
				}
				return
			}
			must(t, err)
			must(t, l.Ping(within(t)))
			_, waits := c.follows["at work"]
			if _, err := os.Stat(path); (err != nil) != waits {
				t.Errorf("begun: %v, though another is at work: %v", err == nil, waits)
			}
			if c.cancel {
				streams["at work"].Cancel()
			} else if _, err := file.WriteString("\n"); err != nil {
				t.Error(err)
			}
			if got := gather(within(t), t, s).result.Failure; got != c.want {
				t.Errorf("got %q", got)
			}
			if _, err := os.Stat(path); (err == nil) != (c.want == "") {
				t.Error(err)
			}
			if _, wants := c.follows["slow"]; wants {
				_, err := os.Stat(slow)
				must(t, err)
			}
		})
	}
}
