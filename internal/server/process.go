package server

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// process names a process of this machine beyond doubt: pids are used again.
type process struct {
	pid   int
	start uint64 // field 22 of /proc/PID/stat, 0 where there is none
}

// errGone is what a watch on a process that is not there (any more) ends with before it begins.
var errGone = errors.New("the process is not there")

// pollEvery is how often a process is looked for where the system has no way to be told.
const pollEvery = time.Second

// defaultUmask is taken for that of a process that does not show its own.
const defaultUmask = 0o022

// alive reports whether the process is there, as itself.
func (p process) alive() bool {
	if err := unix.Kill(p.pid, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return false
	}
	start := startTime(p.pid)
	return p.start == 0 || start == 0 || start == p.start
}

// poll returns when the process has ended, or ctx.
func (p process) poll(ctx context.Context, every time.Duration) {
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for p.alive() {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}
