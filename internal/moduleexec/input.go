package moduleexec

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Input is a file or folder that a manifest was made from, as it was then.
type Input struct {
	Path      string
	Dev       uint64
	Ino       uint64
	Size      uint64
	MtimeNs   int64
	CtimeNs   int64
	Directory bool // was searched before a hit: only MtimeNs counts
	Absent    bool // was searched and not there: must still be absent
}

// unchanged looks whether the input is as it was. It costs one stat: a payload of 60 inputs is checked in some 60 microseconds,
// so it is done before every use rather than watched.
func (in *Input) unchanged() bool {
	var st unix.Stat_t
	err := unix.Stat(in.Path, &st)
	for errors.Is(err, unix.EINTR) {
		err = unix.Stat(in.Path, &st)
	}
	if in.Absent {
		return err != nil // whatever the reason: an import system would find nothing there
	}
	if err != nil {
		return false
	}
	isDir := uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR //nolint:unconvert // 16 bits wide on darwin
	if in.Directory {
		return isDir && st.Mtim.Nano() == in.MtimeNs
	}
	return !isDir &&
		uint64(st.Dev) == in.Dev && //nolint:unconvert // 32 bits wide on darwin
		st.Ino == in.Ino &&
		uint64(st.Size) == in.Size &&
		st.Mtim.Nano() == in.MtimeNs &&
		st.Ctim.Nano() == in.CtimeNs
}
