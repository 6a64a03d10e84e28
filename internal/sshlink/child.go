package sshlink

import (
	"context"
	"io"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// child is one run of the ssh program: its stdio are pipes, its controlling terminal is ours, where it asks its questions. It is a
// mux.Process.
type child struct {
	o       *outside
	program *mux.Program
	asked   *dialogue
	tail    tail // of stderr
	onTTY   bool

	code    int   // once exited is closed: -1 if there is none
	lost    error // the same: the machine that it ran on was lost
	exited  chan struct{}
	closing sync.Once
	closed  chan struct{}
	early   bool // once closed is: it had not exited by then, and its exit code is nobody's
	ending  sync.Once
}

var _ mux.Process = (*child)(nil)

// start runs the program with a command for the far side.
func (o *outside) start(ctx context.Context, remote string, tty bool) (*child, error) {
	c := &child{o: o, onTTY: tty, exited: make(chan struct{}), closed: make(chan struct{}), asked: newDialogue(o.hop, o.name)}
	terminal := "-T"
	if tty {
		terminal = "-tt"
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, o.err
	}
	var err error
	if c.program, err = o.run(ctx, slices.Concat([]string{o.program}, o.args, []string{terminal, o.host, remote}), tty); err != nil {
		return nil, err
	}
	o.open[c] = struct{}{}
	o.wg.Go(func() {
		if c.asked.converse(c.program.Terminal) {
			c.terminate()
		}
	})
	o.wg.Go(func() {
		c.code, c.lost = c.program.Wait()
		close(c.exited)
		o.forget(c)
	})
	return c, nil
}

// drainStderr reads stderr into the tail until the returned function is called.
func (c *child) drainStderr() (stop func()) {
	ended := make(chan struct{})
	c.o.wg.Go(func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, c.Stderr())
	})
	return func() {
		select {
		case <-c.exited: // the rest comes within the deadline that the end has set
		default:
			_ = c.program.Stderr.SetReadDeadline(time.Now())
		}
		<-ended
		select {
		case <-c.exited:
		default:
			_ = c.program.Stderr.SetReadDeadline(time.Time{})
		}
	}
}

// said is the last of stderr that was read.
func (c *child) said() []byte { return c.tail.bytes() }

// verdict is why the dialogue ended the program, nil if it did not.
func (c *child) verdict() *fault.Error { return c.asked.verdict() }

// Read implements mux.Process.
func (c *child) Read(p []byte) (int, error) { return c.program.Stdout.Read(p) } //nolint:wrapcheck // a reader's io.EOF stays bare

// Write implements mux.Process.
func (c *child) Write(p []byte) (int, error) { return c.program.Stdin.Write(p) } //nolint:wrapcheck // as above

// CloseWrite implements mux.Process. A terminal stays open, as with Ansible's own plugin: ssh may not have read its modes yet.
func (c *child) CloseWrite() error {
	if c.onTTY {
		return nil
	}
	return c.program.Stdin.Close() //nolint:wrapcheck // as above
}

// Stderr implements mux.Process.
func (c *child) Stderr() io.Reader { return stderrOf{c} }

// stderrOf reads stderr, and keeps the tail.
type stderrOf struct{ c *child }

func (s stderrOf) Read(p []byte) (int, error) {
	n, err := s.c.program.Stderr.Read(p)
	_, _ = s.c.tail.Write(p[:n])
	if s.c.onTTY { // ssh's farewell is said by the plugin, for both ways; all else comes on stdout then
		n = copy(p, farewell.ReplaceAll(p[:n], nil))
	}
	if isTimeout(err) {
		err = io.EOF
	}
	return n, err //nolint:wrapcheck // a reader's io.EOF stays bare
}

var farewell = regexp.MustCompile(`(?:Shared c|C)onnection to \S+ closed\.\r\n`)

// Wait implements mux.Process.
func (c *child) Wait() (int, error) {
	select {
	case <-c.exited:
	case <-c.closed:
		if !c.hasExited() {
			return 0, c.over()
		}
	}
	if f := c.verdict(); f != nil {
		return 0, f
	}
	if c.lost != nil {
		return 0, c.lost
	}
	code := c.code
	if code == noStatus { // what nobody has read may say why
		_, _ = io.Copy(io.Discard, c.Stderr())
	}
	said := c.said()
	switch {
	case code < 0, c.isClosed() && c.early:
		return 0, c.over()
	case code == noStatus && lostConnection.Match(said):
		return 0, c.o.explain(c, said)
	case code == noStatus && c.o.isLost():
		return 0, c.o.Err()
	default:
		return code, nil
	}
}

// over is why there is no exit code: the connection has ended, or only this was closed.
func (c *child) over() error {
	if err := c.o.Err(); err != nil {
		return err
	}
	return os.ErrClosed
}

// lostConnection are ssh's own words for an end that is not the command's. A command may say 255, too.
var lostConnection = regexp.MustCompile(`(?m)^(Connection to .* closed by remote host|Connection (closed|reset) by |Timeout, server .* not responding|client_loop: |` +
	`packet_write_|Read from remote host |Control master terminated|ssh: |kex_exchange_identification: |Received disconnect |Disconnected from |` +
	`Host key verification failed|.*: Permission denied \()`)

// Close implements mux.Process.
func (c *child) Close() error {
	c.closing.Do(func() {
		c.early = !c.hasExited()
		close(c.closed)
		_, _, _ = c.program.Stdin.Close(), c.program.Stdout.Close(), c.program.Stderr.Close()
		if !c.o.holds(c) {
			c.terminate()
		}
	})
	return nil
}

func (c *child) isClosed() bool  { return isOver(c.closed) }
func (c *child) hasExited() bool { return isOver(c.exited) }

func isOver(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// terminate ends the program and what it has started. It does not wait.
func (c *child) terminate() { c.ending.Do(c.program.Kill) }
