package mux

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// lookTime is how long an agent may take to say what it does: one that is stuck never will.
const lookTime = 2 * time.Second

// Look asks all agents at once what they are doing, and returns the name of each with its answer, for people.
func (t *Tree) Look(ctx context.Context) []string {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, &fault.Error{Kind: fault.TimedOut, Message: "it does not answer: it is stuck, or the line is"})
	defer cancel()
	t.mu.Lock()
	var names []string
	var links []peer
	for _, n := range slices.SortedFunc(maps.Keys(t.all), func(a, b *node) int { return int(a.id) - int(b.id) }) {
		if n.link != nil && (n.state == Ready || n.state == Draining) {
			names = append(names, n.way())
			links = append(links, n.link)
		}
	}
	t.mu.Unlock()
	answers := make([]string, len(links))
	var asking sync.WaitGroup
	for i, l := range links {
		asking.Go(func() {
			text, err := look(ctx, l)
			if err != nil {
				text = err.Error()
			}
			answers[i] = names[i] + ":\n" + text
		})
	}
	asking.Wait()
	return answers
}

// way names the hops to n: "ssh deploy@h1:22, sudo root".
func (n *node) way() string {
	name := n.name()
	if n.parent == nil {
		return name
	}
	before := n.parent.way()
	if n.edge.role == sshAgent {
		return before // the connection has the same hop
	}
	return before + ", " + name
}

func look(ctx context.Context, l peer) (string, error) {
	stream, err := l.Open(ctx, agent.Look{})
	if err != nil {
		return "", fmt.Errorf("cannot ask: %w", err)
	}
	defer stream.Close()
	var text strings.Builder
	for {
		event, err := stream.Recv(ctx)
		switch {
		case err != nil:
			return "", fmt.Errorf("cannot ask: %w", err)
		case event.Channel == agent.Final:
			return fault.Clean([]byte(text.String())), event.Result.Err()
		default:
			_, _ = text.Write(event.Data)
		}
	}
}
