package daemon

import (
	"net"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAcceptRefusesOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("connecting as another user needs root")
	}
	base, err := os.MkdirTemp("", "mux")
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	check(t, os.Chmod(base, 0o755))
	path := base + "/s"
	refused := make(chan error, 1)
	listener, err := Listen(path, func(err error) { refused <- err })
	check(t, err)
	defer closeQuietly(listener)
	check(t, os.Chmod(path, 0o666)) // so that nothing but the listener's own check is left
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()

	check(t, connectAs(65534, path))
	if err := <-refused; err == nil {
		t.Error("refused without a reason")
	}
	select {
	case <-accepted:
		t.Fatal("a process of uid 65534 was accepted")
	default:
	}
	conn, err := Dial(t.Context(), path)
	check(t, err)
	check(t, conn.Close())
	check(t, (<-accepted).Close())
}

// connectAs connects to a socket from a thread that has become another user, and which ends with that.
func connectAs(uid int, path string) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not used again
		if _, _, errno := unix.RawSyscall(unix.SYS_SETREUID, ^uintptr(0), uintptr(uid), 0); errno != 0 {
			result <- errno
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			result <- err
			return
		}
		_, err = unix.Read(fd, make([]byte, 1)) // until it is turned away
		result <- err
	}()
	return <-result
}
