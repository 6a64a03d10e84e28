package daemon

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Detach frees the process from whoever started it: own session, no working directory in the way of an unmount, no descriptor but the
// standard ones. (The limit of descriptors needs no care: Go raises its own to the hard limit and gives children the old one.)
func Detach() error {
	// A process that leads its group cannot leave it. It was then started as a session of its own already, or by hand from a shell.
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("cannot start a session: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("cannot leave the working directory: %w", err)
	}
	return closeInherited()
}

// closeInherited closes descriptors that were open when this program started. They are those without close-on-exec, which everything
// that Go opens has, the runtime's own included.
func closeInherited() error {
	dir, err := os.Open("/dev/fd")
	if err != nil {
		return fmt.Errorf("cannot list descriptors: %w", err)
	}
	defer closeQuietly(dir)
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("cannot list descriptors: %w", err)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd <= unix.Stderr {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

// Silence points the given standard descriptors at /dev/null, so that nobody waits for their end.
func Silence(fds ...int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer closeQuietly(null)
	for _, fd := range fds {
		if err := dup2(int(null.Fd()), fd); err != nil {
			return fmt.Errorf("cannot silence descriptor %d: %w", fd, err)
		}
	}
	return nil
}
