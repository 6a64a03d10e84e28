package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// awaitParent waits until the process that started this one has ended. It reports at once that it has not where that cannot be seen.
func awaitParent() bool {
	fd, err := unix.PidfdOpen(os.Getppid(), 0)
	if err != nil {
		return false // kernels before 5.3
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
			return n > 0
		}
	}
}
