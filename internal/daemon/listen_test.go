package daemon

import (
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
)

func itoa(i int) string { return strconv.Itoa(i) }

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := testDir(t).Socket("v")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(t, err)
	stale.SetUnlinkOnClose(false) // as after kill -9
	check(t, stale.Close())
	if _, err := Dial(t.Context(), path); reasonOf(err) != NotRunning {
		t.Errorf("dial before: got %v, want NotRunning", err)
	}

	listener, err := Listen(path, func(err error) { t.Error(err) })
	check(t, err)
	info, err := os.Lstat(path)
	check(t, err)
	if got := info.Mode(); got != 0o600|os.ModeSocket {
		t.Errorf("mode: got %v, want a socket of mode 0600", got)
	}
	conn, err := Dial(t.Context(), path)
	check(t, err)
	accepted, err := listener.Accept()
	check(t, err)
	check(t, conn.Close())
	check(t, accepted.Close())

	check(t, listener.Close())
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after Close: got %v, want no file", err)
	}
}

func TestSocketOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving a socket away needs root")
	}
	path := testDir(t).Socket("v")
	write(t, path)
	check(t, os.Chown(path, 65534, 65534))
	if _, err := Dial(t.Context(), path); reasonOf(err) != Owner {
		t.Errorf("dial: got %v, want Owner", err)
	}
	if _, err := Listen(path, nil); reasonOf(err) != Owner {
		t.Errorf("listen: got %v, want Owner", err)
	}
}

func reasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return 0
}
