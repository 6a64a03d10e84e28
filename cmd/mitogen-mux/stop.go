package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/daemon"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

type stopCommand struct {
	Force bool `help:"Stop it even while runs are attached: their tasks under way fail, later ones start a new daemon."`
	All   bool `help:"Stop the daemons of all versions in the directory, not only this one's."`
}

// Run stops one daemon or all, and returns when they have gone.
func (c *stopCommand) Run(ctx context.Context, p *program) error {
	dir, err := p.existingDir()
	if isNotRunning(err) {
		return p.say("no daemon runs: %v\n", err)
	}
	if err != nil {
		return err
	}
	versions := []string{p.version}
	if c.All {
		if versions, err = dir.Versions(); err != nil {
			return err
		}
		if len(versions) == 0 {
			return p.say("no daemon runs in %s\n", dir.Path())
		}
	}
	var failed []error
	for _, version := range versions {
		failed = append(failed, c.stop(ctx, p, dir, version))
	}
	if !c.All {
		failed = append(failed, p.nameOthers(dir))
	}
	return errors.Join(failed...)
}

func (c *stopCommand) stop(ctx context.Context, p *program, dir daemon.Dir, version string) error {
	client, err := connect(ctx, dir, version)
	if isNotRunning(err) {
		return p.say("no daemon of version %s runs in %s\n", version, dir.Path())
	}
	if err != nil {
		return err
	}
	defer client.close()
	state, err := client.get(ctx, &muxv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	// The daemon, asked without force, would leave after its last run. People are asked to decide instead.
	if len(state.GetRuns()) > 0 && !c.Force {
		return attached(version, state.GetRuns())
	}
	if err := client.stop(ctx, c.Force); err != nil {
		return err
	}
	gone, cancel := context.WithTimeout(ctx, 3*stopGrace)
	defer cancel()
	if err := dir.Gone(gone, version); err != nil {
		return fmt.Errorf("the daemon of version %s (process %d) was told to stop and is still there: end that process", version, state.GetPid())
	}
	return p.say("stopped version %s (process %d)\n", version, state.GetPid())
}

// attached is the refusal to stop, which says what is in the way.
func attached(version string, runs []*muxv1.GetStatusReply_Run) error {
	names := make([]string, len(runs))
	for i, run := range runs {
		names[i] = fmt.Sprintf("process %d", run.GetPid())
	}
	return fmt.Errorf("not stopped: %d run(s) attached to version %s (%s): wait for them, end them, or use --force",
		len(runs), version, strings.Join(names, ", "))
}

// nameOthers says which other versions may run here.
func (p *program) nameOthers(dir daemon.Dir) error {
	versions, err := dir.Versions()
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(versions, func(v string) bool { return v == p.version })
	if len(others) == 0 {
		return nil
	}
	return p.say("other versions here: %s (stop --all stops them too)\n", strings.Join(others, ", "))
}

func (p *program) say(format string, args ...any) error {
	_, err := fmt.Fprintf(p.out, format, args...)
	return err
}
