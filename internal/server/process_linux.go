package server

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// watch returns a function that returns when the process has ended, or ctx. It fails if the process is not there.
func (p process) watch() (wait func(context.Context), err error) {
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		if !p.alive() {
			return nil, errGone
		}
		// Kernels before 5.10 lack the flag, those before 5.3 the call.
		return func(ctx context.Context) { p.poll(ctx, pollEvery) }, nil
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	// Only now, with the process held by its descriptor, does its start time say that it is the one.
	if !p.alive() {
		_ = file.Close()
		return nil, errGone
	}
	return func(ctx context.Context) { waitReadable(ctx, file) }, nil
}

// waitReadable waits for a pidfd, which becomes readable when its process ends, by the runtime's poller: no thread waits.
func waitReadable(ctx context.Context, file *os.File) {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = file.Close()
	})
	if conn, err := file.SyscallConn(); err == nil {
		_ = conn.Read(func(fd uintptr) bool { // fails when the file is closed
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || (err != nil && !errors.Is(err, unix.EINTR))
		})
	}
	if !stop() {
		<-closed
		return
	}
	_ = file.Close()
}

// startTime is field 22 of /proc/PID/stat, 0 if it cannot be read.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// Field 2 is the command in parentheses, which may itself have spaces and parentheses; field 3 follows the last one.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0
	}
	start, _ := strconv.ParseUint(string(fields[19]), 10, 64) // 0 if it is none
	return start
}

// umaskOf is the umask of a process.
func umaskOf(pid int) uint32 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return defaultUmask
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("Umask:")); ok {
			if mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 8, 32); err == nil {
				return uint32(mask & 0o777)
			}
		}
	}
	return defaultUmask
}
