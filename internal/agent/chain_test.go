package agent_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
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
