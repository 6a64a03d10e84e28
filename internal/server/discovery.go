package server

import (
	"context"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// expectDiscovery says on the path that its account's interpreter is about to be discovered, where a shell can start one at once.
func (r *request) expectDiscovery() {
	last := &r.path[len(r.path)-1]
	if command := r.steps[0].command; len(r.steps) == 1 && command != nil && last.Interpreter == "" && (last.SSH != nil || last.Container != nil) {
		last.Discovery = command.discovery
	}
}

// unanswered tells that there was no agent to be had by the discovery on the last hop from what keeps any command from being run.
func unanswered(last *hop.Hop, err error) bool {
	switch fault.KindOf(err) {
	case fault.InterpreterMissing, fault.AgentDied, fault.Unsupported:
		return last.Discovery != nil
	case fault.Unreachable: // a container's tool ends with the command's exit code, and what it means is a guess
		return last.Discovery != nil && last.Container != nil
	default:
		return false
	}
}

// discovered gives what the discovery has said that started the agent, or runs the command.
func (r *request) discovered(ctx context.Context, i uint32, of asked) (*muxv1.StepResult, error) {
	answer, ok := r.node.Discovered()
	if !ok {
		return r.runCommand(ctx, i, of)
	}
	return r.answered(i, answer), nil
}
