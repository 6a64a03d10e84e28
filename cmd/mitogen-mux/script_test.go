package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// The scripts run this test program as mitogen-mux, and, with a version of its own for version skew, as mitogen-mux-other.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mitogen-mux": main,
		"mitogen-mux-other": func() {
			stamp = "other"
			main()
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// The directory of the script itself is too deep for a socket's path.
			dir, err := os.MkdirTemp("", "mux")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			env.Setenv("MITOGEN_MUX_DIR", filepath.Join(dir, "d"))
			env.Values[daemonsKey{}] = &daemons{started: map[string]*exec.Cmd{}}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":    start,
			"wait-for": waitFor,
			"signal":   sendSignal,
			"detached": detached,
			"mode":     mode,
		},
	})
}

type daemonsKey struct{}

// daemons are what a script has started, by the name it gave them.
type daemons struct{ started map[string]*exec.Cmd }

func daemonsOf(ts *testscript.TestScript) *daemons { return ts.Value(daemonsKey{}).(*daemons) }

// start NAME PROGRAM runs "PROGRAM serve" as a plugin would, with descriptors it should not keep, and sets NAME_LINE to the line it prints.
func start(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: start name program")
	}
	program, err := exec.LookPath(args[1])
	ts.Check(err)
	inherited, err := os.Open(os.DevNull)
	ts.Check(err)
	defer inherited.Close() //nolint:errcheck // only read
	cmd := exec.Command(program, "serve")
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "MITOGEN_MUX_DIR="+ts.Getenv("MITOGEN_MUX_DIR"))
	cmd.ExtraFiles = []*os.File{inherited}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	daemonsOf(ts).started[args[0]] = cmd
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	ts.Check(err)
	ts.Setenv(args[0]+"_LINE", strings.TrimSuffix(line, "\n"))
	ts.Setenv(args[0]+"_PID", strconv.Itoa(cmd.Process.Pid))
}

// wait-for NAME waits until what was started has ended; "! wait-for" wants it to have failed.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	err := daemonsOf(ts).started[args[0]].Wait()
	if (err != nil) != neg {
		ts.Fatalf("%s ended with %v", args[0], err)
	}
}

// signal NAME NAME-OF-SIGNAL.
func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(daemonsOf(ts).started[args[0]].Process.Signal(unix.SignalNum(args[1])))
}

// detached NAME checks what a daemon has of whoever started it: nothing.
func detached(ts *testscript.TestScript, _ bool, args []string) {
	pid := daemonsOf(ts).started[args[0]].Process.Pid
	ts.Check(checkDetached(pid))
}

func checkDetached(pid int) error {
	proc := fmt.Sprintf("/proc/%d/", pid)
	cwd, err := os.Readlink(proc + "cwd")
	if errors.Is(err, os.ErrNotExist) {
		return nil // no such thing on this system
	}
	if err != nil || cwd != "/" {
		return fmt.Errorf("working directory is %s (%w)", cwd, err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		return fmt.Errorf("session is %d, not %d (%w)", sid, pid, err)
	}
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		target, err := os.Readlink(proc + "fd/" + fd.Name())
		if err != nil {
			continue
		}
		number, _ := strconv.Atoi(fd.Name())
		if isNull := target == os.DevNull; isNull != (number <= unix.Stderr) {
			return fmt.Errorf("descriptor %d is %s", number, target)
		}
		if strings.HasPrefix(target, "pipe:") {
			return fmt.Errorf("descriptor %d is a pipe", number)
		}
	}
	limits, err := os.ReadFile(proc + "limits")
	if err != nil {
		return err
	}
	_, line, _ := strings.Cut(string(limits), "Max open files")
	if words := strings.Fields(line); len(words) < 2 || words[0] != words[1] {
		return fmt.Errorf("limits of descriptors are %v", words)
	}
	return nil
}

// mode OCTAL FILE... checks the permissions of files.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	for _, path := range args[1:] {
		info, err := os.Lstat(ts.MkAbs(path))
		ts.Check(err)
		if got := info.Mode().Perm(); got != os.FileMode(want) {
			ts.Fatalf("%s has mode %04o", path, got)
		}
	}
}

