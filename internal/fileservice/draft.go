package fileservice

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// draft is a file of the controller that is being written: beside its destination, and in its place only when it is whole.
type draft struct {
	file *os.File
	dest string      // with symbolic links followed, as a plain write would
	old  fs.FileInfo // of the file that is there; nil if there is none
	mode fs.FileMode
	over bool // committed or discarded

	written, told int64 // bytes: in all; of them on their way to the disk
}

// tellEvery is how much is written before the disk begins with it: what it does beside the transfer the commit need not wait for.
const tellEvery = 16 << 20

// writeSize is how much is written at once, as scp does: with this the system has had the least work by far (decision 8).
const writeSize = 32 << 10

// newDraft begins one. An existing file keeps its owner and mode, and must be writable; a new one gets 0666 less umask. Both is what sftp's get leaves, as far as the
// controller alone can tell.
func newDraft(path string, umask uint32) (*draft, error) {
	d := &draft{dest: path, mode: fs.FileMode(0o666 &^ (umask & 0o777))}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		d.dest = real
	}
	info, err := os.Lstat(d.dest)
	switch {
	case err == nil && info.Mode().IsRegular():
		d.old, d.mode = info, info.Mode().Perm()
		if err := unix.Access(d.dest, unix.W_OK); err != nil {
			return nil, localFault("write", path, err)
		}
	case err == nil && info.IsDir():
		return nil, localFault("write", path, errors.New("is a directory"))
	case err == nil:
		return nil, localFault("write", path, errors.New("not a regular file"))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, localFault("write", path, err)
	}
	// CreateTemp opens with O_EXCL and 0600.
	d.file, err = os.CreateTemp(filepath.Dir(d.dest), ".mitogen-mux-*")
	if err != nil {
		return nil, localFault("write", path, err)
	}
	return d, nil
}

func (d *draft) write(p []byte) error {
	for part := range slices.Chunk(p, writeSize) {
		if _, err := d.file.Write(part); err != nil {
			return localFault("write", d.dest, err)
		}
	}
	if d.written += int64(len(p)); d.written-d.told >= tellEvery {
		writeBack(d.file, d.told, d.written-d.told)
		d.told = d.written
	}
	return nil
}

// commit puts the file in its place, on disk.
func (d *draft) commit() error {
	if d.old != nil {
		if st, ok := d.old.Sys().(*syscall.Stat_t); ok {
			// Only root can, and only root has need to; before the mode, of which it may take bits away.
			_ = d.file.Chown(int(st.Uid), int(st.Gid))
		}
	}
	err := d.file.Chmod(d.mode)
	if err == nil {
		err = d.file.Sync()
	}
	if err == nil {
		err = d.file.Close()
	}
	if err == nil {
		err = os.Rename(d.file.Name(), d.dest)
	}
	if err != nil {
		d.discard()
		return localFault("write", d.dest, err)
	}
	d.over = true
	return nil
}

// discard removes what commit has not put in its place.
func (d *draft) discard() {
	if d.over {
		return
	}
	d.over = true
	_ = d.file.Close() // perhaps a second time
	_ = os.Remove(d.file.Name())
}
