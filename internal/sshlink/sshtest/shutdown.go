package sshtest

import "syscall"

// shutdown ends a connection whose descriptor another process shares: closing ours alone would not.
func shutdown(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
}
