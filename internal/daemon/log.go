package daemon

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxLog is the size at which a log file is put aside. Two files are kept, and the directory may be in RAM.
const MaxLog = 1 << 20

// Log is a log file that never grows beyond bounds: at its maximum it becomes the older one, in place of the older one before it.
type Log struct {
	path    string
	max     int64
	crashes bool // the trace of a crash goes to it too

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
}

// OpenLog appends to the daemon's log at path, readable by its owner only. The trace of a crash goes to it too.
func OpenLog(path string, limit int64) (*Log, error) { return openLog(path, limit, true) }

func openLog(path string, limit int64, crashes bool) (*Log, error) {
	l := &Log{path: path, max: limit, crashes: crashes}
	if err := l.openLocked(); err != nil {
		return nil, err
	}
	return l, nil
}

// Write appends one entry, whole, to one file.
func (l *Log) Write(entry []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(entry)) > l.max {
		if l.rotateLocked() != nil {
			l.size = 0 // go on with the full file, and try again once as much has been written
		}
	}
	n, err := l.file.Write(entry)
	l.size += int64(n)
	return n, err
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

func (l *Log) rotateLocked() error {
	if err := os.Rename(l.path, olderLog(l.path)); err != nil {
		return fmt.Errorf("cannot put the log aside: %w", err)
	}
	full := l.file
	if err := l.openLocked(); err != nil {
		return err
	}
	return full.Close()
}

func (l *Log) openLocked() error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		closeQuietly(file)
		return fmt.Errorf("cannot open the log: %w", err)
	}
	l.file, l.size = file, info.Size()
	if !l.crashes {
		return nil
	}
	if err := debug.SetCrashOutput(file, debug.CrashOptions{}); err != nil {
		return fmt.Errorf("cannot send crashes to the log: %w", err)
	}
	return nil
}

func olderLog(path string) string { return path + ".1" }
