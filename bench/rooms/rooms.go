// Package rooms is what the programs of the bench share that use the rooms of the daemon without Ansible.
package rooms

import (
	"context"
	"fmt"
	"os"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// Run is the run that asks.
func Run() hop.Run {
	return hop.Run{ID: "bench", Environ: os.Environ(), Cwd: "/", MaxInterp: 20, AgentName: "mitogen-mux: bench"}
}

// Command runs a command on a node's agent that does nothing.
func Command(ctx context.Context, node *mux.Context) error {
	stream, err := node.Open(ctx, agent.Command{Argv: [][]byte{[]byte("/bin/true")}})
	if err != nil {
		return fmt.Errorf("cannot run a command: %w", err)
	}
	defer stream.Close()
	if err := stream.CloseSend(); err != nil {
		return fmt.Errorf("cannot run a command: %w", err)
	}
	for {
		event, err := stream.Recv(ctx)
		if err != nil {
			return fmt.Errorf("cannot run a command: %w", err)
		}
		if event.Channel == agent.Final {
			return nil
		}
	}
}
