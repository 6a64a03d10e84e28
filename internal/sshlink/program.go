package sshlink

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// This file says how ssh is run: on this machine, or by an intermediary.

// What is said where the program is missing, and the remedy.
const (
	noProgram  = "There is no program "
	installSSH = "Install OpenSSH's client, or check ansible_ssh_executable."
)

// prepareThere is for an intermediary, on whose disk nothing is written: no control socket, and no key.
func (o *outside) prepareThere() error {
	o.run = o.runThere
	if !o.hop.PrivateKey.IsZero() {
		return &fault.Error{
			Kind: fault.Unsupported, Message: "A private key that is given as content cannot be used by " + o.whose(),
			Hint: "Set ansible_ssh_private_key_file to a file of that machine, or unset mitogen_ssh_transport: then the daemon's own client connects.",
		}
	}
	o.option("ControlMaster=no") // one that is open there is used
	o.option("ControlPersist=no")
	return nil
}

// prepareHere finds the program, makes the control socket and the environment, and returns the file of a key that was given as content.
func (o *outside) prepareHere(c *config) (key string, err error) {
	o.run = o.runHere
	if o.program = o.place.lookPath(o.program); o.program == "" {
		return "", &fault.Error{Kind: fault.Unreachable, Message: noProgram + sshName(o.hop.Executable), Hint: installSSH}
	}
	if o.dir, err = os.MkdirTemp("", "mux"); err != nil {
		return "", &fault.Error{Kind: fault.Internal, Message: "Cannot make a folder for ssh's control socket", Cause: err}
	}
	if c != nil {
		o.control = c.ControlPath
	}
	if !namesControlPath(o.hop) && o.control == "" {
		o.control = filepath.Join(o.dir, "c")
		o.option("ControlMaster=auto")
		o.option("ControlPersist=no")
		o.option(`ControlPath="` + o.control + `"`)
	}
	for _, entry := range o.place.run.Environ {
		if !strings.HasPrefix(entry, "SSH_ASKPASS") {
			o.environ = append(o.environ, entry)
		}
	}
	o.environ = append(o.environ, "SSH_ASKPASS_REQUIRE=never") // questions go to the terminal, where we are
	if o.hop.PrivateKey.IsZero() {
		return "", nil
	}
	socket := filepath.Join(o.dir, "agent")
	public, server, err := serveKey(o.hop.PrivateKey, o.hop.PrivateKeyPassphrase, socket)
	if err != nil {
		return "", err
	}
	o.keys, key = server, filepath.Join(o.dir, "key.pub")
	if err := os.WriteFile(key, public, 0o600); err != nil {
		return "", &fault.Error{Kind: fault.Internal, Message: "Cannot write a public key for ssh", Cause: err}
	}
	o.option(`IdentityAgent="` + socket + `"`)
	return key, nil
}

// elsewhere has a shell of the intermediary's become the program that its arguments name. Questions go to the terminal, where we are.
const elsewhere = `p=$(command -v "$0") && [ -f "$p" ] && [ -x "$p" ] || { echo "` + noProgram + `$0" >&2; exit 255; }; ` +
	`unset SSH_ASKPASS; SSH_ASKPASS_REQUIRE=never; export SSH_ASKPASS_REQUIRE; exec "$p" "$@"`

// runThere has the intermediary run ssh, in the environment of its account.
func (o *outside) runThere(ctx context.Context, argv []string, _ bool) (*mux.Program, error) {
	return o.from.Start(ctx, slices.Concat([]string{"/bin/sh", "-c", elsewhere}, argv))
}

// runHere runs ssh in the run's environment and folder. For a session with a terminal its stdin is one, too: ssh gives its modes to the
// far side.
func (o *outside) runHere(_ context.Context, argv []string, tty bool) (*mux.Program, error) {
	h := &here{cmd: exec.Command(argv[0], argv[1:]...), wg: &o.wg, exited: make(chan struct{})} // the user's own program
	h.cmd.Env, h.cmd.Dir = o.environ, o.place.run.Cwd
	theirs, err := h.wire(tty)
	if err == nil {
		err = h.cmd.Start()
	}
	closeAll(theirs)
	if err != nil {
		closeAll([]*os.File{h.stdin, h.stdout, h.stderr, h.terminal, h.tty})
		return nil, &fault.Error{Kind: fault.Unreachable, Message: "Cannot run " + argv[0], Cause: err, Hint: "Check ansible_ssh_executable."}
	}
	return &mux.Program{Stdin: h.stdin, Stdout: h.stdout, Stderr: h.stderr, Terminal: h.terminal, Wait: h.wait, Kill: h.kill}, nil
}

// here is a program on this machine.
type here struct {
	cmd      *exec.Cmd
	stdin    *os.File
	stdout   *os.File
	stderr   *os.File
	terminal *os.File
	tty      *os.File // its other end: kept open, as the program opens it only when it has a question
	exited   chan struct{}
	wg       *sync.WaitGroup
}

// wire makes the program's pipes and terminal, and returns its ends of them.
func (h *here) wire(tty bool) (theirs []*os.File, err error) {
	var in, out, errs *os.File
	if tty {
		h.stdin, in, err = openTerminal()
	} else {
		in, h.stdin, err = os.Pipe()
	}
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, in)
	if h.stdout, out, err = os.Pipe(); err != nil {
		return theirs, err
	}
	theirs = append(theirs, out)
	if h.stderr, errs, err = os.Pipe(); err != nil {
		return theirs, err
	}
	theirs = append(theirs, errs)
	if h.terminal, h.tty, err = openTerminal(); err != nil {
		return theirs, err
	}
	h.cmd.Stdin, h.cmd.Stdout, h.cmd.Stderr, h.cmd.ExtraFiles = in, out, errs, []*os.File{h.tty}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3} // the first of ExtraFiles
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

// wait is the Program's Wait.
func (h *here) wait() (int, error) {
	_ = h.cmd.Wait()
	closeAll([]*os.File{h.terminal, h.tty})
	// Something that ssh has started may hold its stderr; nobody shall wait for that.
	_ = h.stderr.SetReadDeadline(time.Now().Add(time.Second))
	close(h.exited)
	return h.cmd.ProcessState.ExitCode(), nil
}

// kill is the Program's Kill: the stubborn have a second.
func (h *here) kill() {
	_ = syscall.Kill(-h.cmd.Process.Pid, syscall.SIGTERM)
	h.wg.Go(func() {
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-h.exited:
		case <-timer.C:
			_ = syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL)
		}
	})
}
