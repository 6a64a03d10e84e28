package sshlink

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// wire is the connection below SSH. It counts, and remembers what went wrong first.
type wire struct {
	net.Conn
	greeted  func() // called once the server has begun its version
	greeting []byte // the end of what came before that; one reader at a time
	heard    bool
	bulk     bulk
	received atomic.Int64
	sent     atomic.Int64
	closed   atomic.Bool // by us: what Read and Write say then is no news
	mu       sync.Mutex
	err      error
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.bulk.read(w.Conn, p)
	if n > 0 {
		w.received.Add(int64(n))
		w.listen(p[:n])
	}
	w.note(err)
	return n, err
}

// listen waits for a line that begins as a version does (RFC 4253 section 4.2).
func (w *wire) listen(p []byte) {
	if w.heard {
		return
	}
	const version = "\nSSH-"
	w.greeting = append(w.greeting, p...)
	if w.heard = bytes.Contains(w.greeting, []byte(version)); w.heard {
		w.greeting = nil
		w.greeted()
	} else if over := len(w.greeting) - len(version); over > 0 {
		w.greeting = append(w.greeting[:0], w.greeting[over:]...)
	}
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.sent.Add(int64(n))
	w.note(err)
	return n, err
}

// Close implements net.Conn.
func (w *wire) Close() error {
	w.closed.Store(true)
	return w.Conn.Close()
}

func (w *wire) note(err error) {
	if err == nil || w.closed.Load() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// lost is what ended the connection, nil if nothing did or we have.
func (w *wire) lost() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// While much comes fast, a read waits for what comes in bulkTime, but for no longer than bulkWait. Each time that a packet of a large file wakes
// the daemon costs it more than the packet does: several goroutines pass it on.
const (
	bulkTime = 2 * time.Millisecond // a fourth of what agent.Stream lets be under way
	bulkWait = 2 * bulkTime
	// The bytes that this may be; what comes more slowly is taken as it comes.
	bulkLeast, bulkMost = 64 << 10, 256 << 10
	// So much has to come first, so that what is small never waits.
	bulkAfter = 2 << 20
)

// bulk has reads of a connection wait, by the low-water mark of its socket. It belongs to who reads.
type bulk struct {
	mark  int       // bytes; 0: they do not wait
	until time.Time // when less will do, too
	came  int       // bytes since then
	since time.Time
}

func (b *bulk) read(conn net.Conn, p []byte) (int, error) {
	if b.mark > 0 {
		if now := time.Now(); b.until.Sub(now) < bulkWait/2 { // not each time: a timer costs something, too
			b.until = now.Add(bulkWait)
			_ = conn.SetReadDeadline(b.until) // fails if the connection is closed, and so will the read
		}
	}
	n, err := conn.Read(p)
	if b.mark > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		b.set(conn, 0)
		n, err = conn.Read(p)
	}
	if b.came += n; b.came >= bulkAfter {
		mark := int(float64(b.came) * bulkTime.Seconds() / max(time.Since(b.since), time.Microsecond).Seconds())
		if mark < bulkLeast {
			mark = 0
		}
		b.set(conn, min(mark, bulkMost))
	}
	return n, err
}

// set has reads wait for so much, or with 0 not at all. Where there is no socket they never do.
func (b *bulk) set(conn net.Conn, mark int) {
	b.came, b.since = 0, time.Now()
	if mark == b.mark {
		return
	}
	if socket, ok := conn.(*net.TCPConn); ok && setLowWater(socket, max(mark, 1)) == nil {
		b.mark, b.until = mark, time.Time{}
		_ = conn.SetReadDeadline(b.until)
	}
}

func setLowWater(socket *net.TCPConn, bytes int) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
	return errors.Join(err, refused)
}
