package fileservice

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeBack has the system begin to write a part of a file to disk. It is a wish: what becomes of it, Sync says.
func writeBack(file *os.File, at, n int64) {
	_ = unix.SyncFileRange(int(file.Fd()), at, n, unix.SYNC_FILE_RANGE_WRITE)
}
