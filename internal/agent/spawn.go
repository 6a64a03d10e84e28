package agent

import (
	"context"
	"io"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Conn makes the stream of a spawned process the Conn of that process's own link: DATA both ways. What the process says on stderr and
// on its terminal meanwhile is consumed; its tail stands in the errors of that link. Nothing else may use the stream from now on.
func (s *Stream) Conn() Conn { return &spawnConn{stream: s} }

type spawnConn struct {
	stream *Stream
	rest   []byte // the reader's

	mu   sync.Mutex
	tail []byte
}

// Read implements io.Reader.
func (c *spawnConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		e, err := c.stream.Recv(context.Background())
		if err != nil {
			return 0, err
		}
		switch e.Channel {
		case Stdout:
			c.rest = e.Data
		case Stderr, TTY:
			c.keep(e.Data)
		case End, Final:
			return 0, io.EOF
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// keep remembers the last words.
func (c *spawnConn) keep(words []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, words...)
	if over := len(c.tail) - fault.MaxStderr; over > 0 {
		c.tail = append([]byte(nil), c.tail[over:]...)
	}
}

// Tail returns the last words on stderr and the terminal.
func (c *spawnConn) Tail() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]byte(nil), c.tail...)
}

// Write implements io.Writer.
func (c *spawnConn) Write(p []byte) (int, error) {
	if err := c.stream.Send(context.Background(), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Share is Write for what others behind the same agent may be sent too.
func (c *spawnConn) Share(p []byte) error { return c.stream.share(context.Background(), p) }

// Close kills the process.
func (c *spawnConn) Close() error {
	c.stream.Close()
	return nil
}

// Detach ends the process's stdin and leaves it alone: an agent there finishes the jobs it has, as it does on any lost link.
func (c *spawnConn) Detach() error {
	l := c.stream.link
	l.mu.Lock()
	defer l.mu.Unlock()
	err := c.stream.closeSend()
	c.stream.discard()
	return err
}
