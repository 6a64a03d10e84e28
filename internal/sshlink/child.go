package sshlink

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// child is one run of the ssh program: its stdio are pipes, its controlling terminal is ours, where it asks its questions. It is a
// mux.Process.
type child struct {
	o        *outside
	cmd      *exec.Cmd
	stdin    *os.File
	stdout   *os.File
	stderr   *os.File
	terminal *os.File
	tty      *os.File // its other end: kept open, as the program opens it only when it has a question
	asked    *dialogue
	tail     tail // of stderr
	onTTY    bool

	exited  chan struct{}
	closing sync.Once
	closed  chan struct{}
	ending  sync.Once
}

var _ mux.Process = (*child)(nil)

// start runs the program with a command for the far side.
func (o *outside) start(remote string, tty bool) (*child, error) {
	c := &child{o: o, exited: make(chan struct{}), closed: make(chan struct{}), asked: newDialogue(o.hop, o.name)}
	terminal := "-T"
	if tty {
		terminal, c.onTTY = "-tt", true
	}
	c.cmd = exec.Command(o.program, slices.Concat(o.args, []string{terminal, o.host, remote})...) // the user's own program
	c.cmd.Env, c.cmd.Dir = o.environ, o.place.run.Cwd
	theirs, err := c.wire(tty)
	if err == nil {
		o.mu.Lock()
		if o.closed {
			err = o.err
		} else if err = c.cmd.Start(); err == nil {
			o.open[c] = struct{}{}
			o.wg.Add(2)
		}
		o.mu.Unlock()
	}
	closeAll(theirs)
	if err != nil {
		closeAll([]*os.File{c.stdin, c.stdout, c.stderr, c.terminal, c.tty})
		if f, ok := errors.AsType[*fault.Error](err); ok {
			return nil, f
		}
		return nil, &fault.Error{Kind: fault.Unreachable, Message: "Cannot run " + o.program, Cause: err, Hint: "Check ansible_ssh_executable."}
	}
	go func() {
		defer o.wg.Done()
		if c.asked.converse(c.terminal) {
			c.terminate()
		}
	}()
	go func() {
		defer o.wg.Done()
		_ = c.cmd.Wait()
		closeAll([]*os.File{c.terminal, c.tty})
		// Something that ssh has started may hold its stderr; nobody shall wait for that.
		_ = c.stderr.SetReadDeadline(time.Now().Add(time.Second))
		close(c.exited)
		o.forget(c)
	}()
	return c, nil
}

// wire makes the program's pipes and terminal, and returns its ends of them. For a session with a terminal stdin is one, too: ssh
// gives its modes to the far side.
func (c *child) wire(tty bool) (theirs []*os.File, err error) {
	var in, out, errs *os.File
	if tty {
		c.stdin, in, err = openTerminal()
	} else {
		in, c.stdin, err = os.Pipe()
	}
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, in)
	if c.stdout, out, err = os.Pipe(); err != nil {
		return theirs, err
	}
	theirs = append(theirs, out)
	if c.stderr, errs, err = os.Pipe(); err != nil {
		return theirs, err
	}
	theirs = append(theirs, errs)
	if c.terminal, c.tty, err = openTerminal(); err != nil {
		return theirs, err
	}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr, c.cmd.ExtraFiles = in, out, errs, []*os.File{c.tty}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3} // the first of ExtraFiles
	return theirs, nil
}

// openTerminal makes a terminal whose own end can be read with a deadline.
func openTerminal() (ours, tty *os.File, err error) {
	blocking, tty, err := pty.Open()
	if err != nil {
		return nil, nil, err //nolint:wrapcheck // the caller says what for
	}
	defer func() { _ = blocking.Close() }()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = tty.Close()
		return nil, nil, err //nolint:wrapcheck // as above
	}
	return os.NewFile(uintptr(fd), blocking.Name()), tty, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
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
			_ = c.stderr.SetReadDeadline(time.Now())
		}
		<-ended
		select {
		case <-c.exited:
		default:
			_ = c.stderr.SetReadDeadline(time.Time{})
		}
	}
}

// said is the last of stderr that was read.
func (c *child) said() []byte { return c.tail.bytes() }

// verdict is why the dialogue ended the program, nil if it did not.
func (c *child) verdict() *fault.Error { return c.asked.verdict() }

// status is the exit code of a program that has ended, -1 if a signal ended it.
func (c *child) status() int { return c.cmd.ProcessState.ExitCode() }

// Read implements mux.Process.
func (c *child) Read(p []byte) (int, error) { return c.stdout.Read(p) } //nolint:wrapcheck // a reader's io.EOF stays bare

// Write implements mux.Process.
func (c *child) Write(p []byte) (int, error) { return c.stdin.Write(p) } //nolint:wrapcheck // as above

// CloseWrite implements mux.Process. A terminal stays open, as with Ansible's own plugin: ssh may not have read its modes yet.
func (c *child) CloseWrite() error {
	if c.onTTY {
		return nil
	}
	return c.stdin.Close() //nolint:wrapcheck // as above
}

// Stderr implements mux.Process.
func (c *child) Stderr() io.Reader { return stderrOf{c} }

// stderrOf reads stderr, and keeps the tail.
type stderrOf struct{ c *child }

func (s stderrOf) Read(p []byte) (int, error) {
	n, err := s.c.stderr.Read(p)
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
	default:
		select {
		case <-c.exited:
		case <-c.closed:
			if err := c.o.Err(); err != nil {
				return 0, err
			}
			return 0, os.ErrClosed
		}
	}
	if f := c.verdict(); f != nil {
		return 0, f
	}
	code := c.status()
	if code == noStatus { // what nobody has read may say why
		_, _ = io.Copy(io.Discard, c.Stderr())
	}
	said := c.said()
	switch {
	case code < 0:
		if err := c.o.Err(); err != nil {
			return 0, err
		}
		return 0, os.ErrClosed
	case code == noStatus && lostConnection.Match(said):
		return 0, c.o.explain(c, said)
	case code == noStatus && c.o.isLost():
		return 0, c.o.Err()
	default:
		return code, nil
	}
}

// lostConnection are ssh's own words for an end that is not the command's. A command may say 255, too.
var lostConnection = regexp.MustCompile(`(?m)^(Connection to .* closed by remote host|Connection (closed|reset) by |Timeout, server .* not responding|client_loop: |` +
	`packet_write_|Read from remote host |Control master terminated|ssh: |kex_exchange_identification: |Received disconnect |Disconnected from |` +
	`Host key verification failed|.*: Permission denied \()`)

// Close implements mux.Process.
func (c *child) Close() error {
	c.closing.Do(func() {
		close(c.closed)
		closeAll([]*os.File{c.stdin, c.stdout, c.stderr})
		if !c.o.isFirst(c) || c.o.alone(c) {
			c.terminate()
		}
	})
	return nil
}

func (c *child) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// terminate ends the program and what it has started, the stubborn after a second. It does not wait.
func (c *child) terminate() {
	c.ending.Do(func() {
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM)
		c.o.wg.Go(func() {
			timer := time.NewTimer(time.Second)
			defer timer.Stop()
			select {
			case <-c.exited:
			case <-timer.C:
				_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
			}
		})
	})
}
