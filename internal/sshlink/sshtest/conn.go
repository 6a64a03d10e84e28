package sshtest

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Pipe returns the two ends of a connection whose bytes arrive after delay. Unlike net.Pipe, a Write does not wait for the Read.
// Within testing/synctest the time that passes is exactly the delays that somebody waited for.
func Pipe(delay time.Duration) (client, server net.Conn) {
	up, down := newStream(), newStream()
	return &end{delay: delay, in: down, out: up}, &end{delay: delay, in: up, out: down}
}

type packet struct {
	at   time.Time
	data []byte
}

// stream is one direction.
type stream struct {
	packets chan packet
	once    sync.Once
	closed  chan struct{}
}

func newStream() *stream {
	return &stream{packets: make(chan packet, 4096), closed: make(chan struct{})}
}

func (s *stream) close() { s.once.Do(func() { close(s.closed) }) }

type end struct {
	delay   time.Duration
	in, out *stream
	rest    []byte
}

// Read implements net.Conn; it has one caller at a time.
func (e *end) Read(p []byte) (int, error) {
	for len(e.rest) == 0 {
		var next packet
		select {
		case next = <-e.in.packets:
		default:
			select {
			case next = <-e.in.packets:
			case <-e.in.closed:
				return 0, io.EOF
			}
		}
		if !e.until(next.at) {
			return 0, io.EOF
		}
		e.rest = next.data
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// until waits for a packet's arrival; false if the connection was closed before.
func (e *end) until(at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-e.in.closed:
		return false
	}
}

// Write implements net.Conn.
func (e *end) Write(p []byte) (int, error) {
	select {
	case <-e.out.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	select {
	case e.out.packets <- packet{time.Now().Add(e.delay), append([]byte(nil), p...)}:
		return len(p), nil
	case <-e.out.closed:
		return 0, io.ErrClosedPipe
	}
}

// Close implements net.Conn. It ends both directions at once.
func (e *end) Close() error {
	e.in.close()
	e.out.close()
	return nil
}

func (*end) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func (*end) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 22} }
func (*end) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*end) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*end) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// Faults breaks a connection at a chosen point. Zero values break nothing.
type Faults struct {
	net.Conn

	Operations int64 // the connection ends after that many reads and writes
	Received   int64 // … after that many bytes read
	Sent       int64 // … after that many bytes written
	Stall      bool  // instead of ending, nothing comes any more and what is written is lost, until Close

	operations, received, sent atomic.Int64
	frozen                     atomic.Bool
	once                       sync.Once
	closed                     chan struct{}
}

// Freeze stalls the connection from now on, as a network does that drops everything.
func (f *Faults) Freeze() { f.frozen.Store(true) }

// Break returns conn with faults.
func Break(conn net.Conn, f *Faults) *Faults {
	f.Conn, f.closed = conn, make(chan struct{})
	return f
}

// Used is how many reads and writes there were, and how many bytes each way.
func (f *Faults) Used() (operations, received, sent int64) {
	return f.operations.Load(), f.received.Load(), f.sent.Load()
}

func (f *Faults) fail() error {
	if f.Stall || f.frozen.Load() {
		<-f.closed
		return net.ErrClosed
	}
	_ = f.Conn.Close()
	return io.EOF
}

// Read implements net.Conn.
func (f *Faults) Read(p []byte) (int, error) {
	if n := f.operations.Add(1); f.Operations > 0 && n > f.Operations {
		return 0, f.fail()
	}
	if f.Received > 0 {
		left := f.Received - f.received.Load()
		if left <= 0 {
			return 0, f.fail()
		}
		p = p[:min(int64(len(p)), left)]
	}
	n, err := f.Conn.Read(p)
	if f.frozen.Load() {
		return 0, f.fail()
	}
	f.received.Add(int64(n))
	return n, err
}

// Write implements net.Conn. A stalled write succeeds, as it does while the system has room for what it cannot send.
func (f *Faults) Write(p []byte) (int, error) {
	n := f.operations.Add(1)
	room := int64(len(p))
	switch {
	case f.frozen.Load() || (f.Operations > 0 && n > f.Operations):
		room = 0
	case f.Sent > 0:
		room = max(0, min(room, f.Sent-f.sent.Load()))
	}
	sent, err := f.Conn.Write(p[:room])
	f.sent.Add(int64(sent))
	switch {
	case err != nil || room == int64(len(p)):
		return sent, err
	case f.Stall || f.frozen.Load():
		return len(p), nil
	default:
		return sent, f.fail()
	}
}

// Close implements net.Conn.
func (f *Faults) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}
