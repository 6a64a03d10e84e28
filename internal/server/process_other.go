//go:build !linux

package server

import "context"

// watch returns a function that returns when the process has ended, or ctx. It fails if the process is not there.
func (p process) watch() (wait func(context.Context), err error) {
	if !p.alive() {
		return nil, errGone
	}
	return func(ctx context.Context) { p.poll(ctx, pollEvery) }, nil
}

// startTime is 0: this system does not say.
func startTime(int) uint64 { return 0 }

// umaskOf is what files are commonly made with: this system does not say.
func umaskOf(int) uint32 { return defaultUmask }
