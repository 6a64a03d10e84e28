package sshlink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair returns both ends of a TCP connection; they end with the test, and with a test that hangs.
func socketPair(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is there at once
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String()) //nolint:noctx // it is there at once
	if err != nil {
		t.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end := func() { _, _ = near.Close(), far.Close() }
	hangs := time.AfterFunc(30*time.Second, end)
	t.Cleanup(func() { hangs.Stop(); end() })
	return near.(*net.TCPConn), far.(*net.TCPConn)
}

func lowWater(t *testing.T, conn *net.TCPConn) (mark int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		var refused error
		err = raw.Control(func(fd uintptr) { mark, refused = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT) })
		err = errors.Join(err, refused)
	}
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

func TestBulkReadsComeToTheEnd(t *testing.T) {
	t.Parallel()
	near, far := socketPair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 8*bulkAfter/16)
	sent = append(sent, "the end"...)
	go far.Write(sent) //nolint:errcheck // the other end would miss it
	w := &wire{Conn: near, heard: true}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(w, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("not what was sent: %v", err)
	}
	if err := w.lost(); err != nil {
		t.Errorf("the connection is said to be lost: %v", err)
	}
}

func TestBulkReadsTakeLittleAfterAWhile(t *testing.T) {
	t.Parallel()
	near, far := socketPair(t)
	var b bulk
	b.set(near, bulkMost)
	if mark := lowWater(t, near); mark != bulkMost {
		t.Fatalf("the mark is %d", mark)
	}
	p := make([]byte, bulkMost)
	reading := make(chan error)
	read := func() {
		n, err := b.read(near, p)
		p = p[:n]
		reading <- err
	}
	go read()
	if _, err := far.Write([]byte("little")); err != nil {
		t.Fatal(err)
	}
	if err := <-reading; err != nil || string(p) != "little" {
		t.Fatalf("got %q, %v", p, err)
	}
	go read()
	for range time.Tick(time.Millisecond) {
		if lowWater(t, near) == 1 {
			break
		}
	}
	if _, err := far.Write([]byte("more")); err != nil {
		t.Fatal(err)
	}
	if err := <-reading; err != nil || string(p) != "more" || b.mark != 0 {
		t.Errorf("got %q, %v; reads wait for %d", p, err, b.mark)
	}
	b.set(near, bulkLeast)
	_ = far.Close()
	if n, err := b.read(near, make([]byte, 10)); err != io.EOF { //nolint:errorlint // a connection returns it bare
		t.Errorf("got %d bytes, %v at the end", n, err)
	}
}

func TestBulkReadsAreForWhatComesFast(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		took time.Duration // for bulkAfter
		mark int
	}{"fast": {-time.Hour, bulkMost}, "slow": {time.Hour, 0}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := socketPair(t)
			b := bulk{came: bulkAfter - 1, since: time.Now().Add(-c.took)}
			if _, err := far.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := b.read(near, make([]byte, 1)); err != nil || b.mark != c.mark {
				t.Errorf("reads wait for %d, %v", b.mark, err)
			}
		})
	}
}

func TestBulkReadsNeedASocket(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	var b bulk
	if b.set(near, bulkMost); b.mark != 0 {
		t.Error("reads of a pipe wait")
	}
}
