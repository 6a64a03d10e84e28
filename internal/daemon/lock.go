package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has the lock.
var ErrLocked = errors.New("another daemon has the lock")

// Lock is held by the one daemon of a version. The system releases it when the process ends, however that comes.
type Lock struct{ file *os.File }

// Lock takes a version's lock, or returns ErrLocked at once.
func (d Dir) Lock(version string) (*Lock, error) {
	path := d.LockFile(version)
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("cannot open the lock: %w", err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			closeQuietly(file)
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrLocked
			}
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		// The holder before may have removed the file between our open and our lock: then others lock another file.
		if sameFile(file, path) {
			if err := writePID(file); err != nil {
				closeQuietly(file)
				return nil, fmt.Errorf("cannot write %s: %w", path, err)
			}
			return &Lock{file}, nil
		}
		closeQuietly(file)
	}
}

// Release gives the lock up and removes its file.
func (l *Lock) Release() {
	_ = os.Remove(l.file.Name())
	_ = l.file.Close()
}

func sameFile(file *os.File, path string) bool {
	open, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(open, named)
}

func writePID(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// Gone returns nil once no daemon of the version has the lock.
func (d Dir) Gone(ctx context.Context, version string) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		lock, err := d.Lock(version)
		if err == nil {
			lock.Release()
			return nil
		}
		if !errors.Is(err, ErrLocked) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Holder names the process that has, or had last, a version's lock, for people.
func (d Dir) Holder(version string) string {
	text, err := os.ReadFile(d.LockFile(version))
	if err != nil || len(text) == 0 {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}
