package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// Listen makes a socket that only processes of our own uid can use. The caller has the version's lock, so what stands at path is
// stale. refused is told of connections that were turned away.
func Listen(path string, refused func(error)) (net.Listener, error) {
	if err := checkSocket(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove a stale socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	// Until here the directory's mode kept others out; the process's umask is left alone, for it is the children's too.
	if err := os.Chmod(path, 0o600); err != nil {
		closeQuietly(listener)
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return &ownListener{UnixListener: listener, uid: os.Geteuid(), refused: refused}, nil
}

// Dial connects to a daemon's socket. Where none listens it returns an *Error with NotRunning.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	if err := checkSocket(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, notRunning(path, nil)
		}
		return nil, err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, notRunning(path, err)
	}
	return conn, nil
}

func notRunning(path string, cause error) error {
	return &Error{Reason: NotRunning, Path: path, Message: "no daemon listens at " + path, Cause: cause}
}

// checkSocket returns an error that is fs.ErrNotExist if there is nothing at path, and an *Error if it is another user's.
func checkSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if uid := ownerOf(info); uid != os.Geteuid() {
		return &Error{
			Reason: Owner, Path: path, Message: fmt.Sprintf("the socket %s belongs to uid %d and we are uid %d", path, uid, os.Geteuid()),
			Remedy: "remove it, or " + chooseAnother,
		}
	}
	return nil
}

// ownListener accepts connections of processes of one uid only.
type ownListener struct {
	*net.UnixListener
	uid     int
	refused func(error)
}

// Accept implements net.Listener.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && uid == l.uid {
			return conn, nil
		}
		closeQuietly(conn)
		if err == nil {
			err = fmt.Errorf("refused a process of uid %d at %s", uid, l.Addr())
		}
		l.refused(err)
	}
}

// peerUID returns the uid of the process that connected, as the kernel noted it.
func peerUID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("cannot tell who connected: %w", err)
	}
	var uid int
	var failed error
	if err := raw.Control(func(fd uintptr) { uid, failed = socketPeerUID(int(fd)) }); err != nil {
		return 0, fmt.Errorf("cannot tell who connected: %w", err)
	}
	if failed != nil {
		return 0, fmt.Errorf("cannot tell who connected: %w", failed)
	}
	return uid, nil
}
