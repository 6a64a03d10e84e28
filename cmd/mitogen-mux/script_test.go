package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// The scripts run this test program as two versions of mitogen-mux.
func TestMain(m *testing.M) {
	version := func(name string) func() {
		return func() {
			stamp = name
			main()
		}
	}
	testscript.Main(m, map[string]func(){"mitogen-mux": version("own"), "mitogen-mux-other": version("other")})
}

// Without a stamp two builds that differ still have two versions, and one build has one.
func TestBuildVersion(t *testing.T) {
	first, err := buildVersion()
	if err != nil || !regexp.MustCompile(`^dev-[0-9a-f]{16}$`).MatchString(first) {
		t.Errorf("got %q, %v", first, err)
	}
	if again, err := buildVersion(); err != nil || again != first {
		t.Errorf("got %q, %v, then %q", again, err, first)
	}
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
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector would have every command take a second
			env.Values[daemonsKey{}] = &daemons{started: map[string]*exec.Cmd{}}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":    start,
			"wait-for": waitFor,
			"signal":   sendSignal,
			"detached": detached,
			"mode":     mode,
			"attach":   attach,
			"end-run":  endRun,
			"await":    await,
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
	inherited, err := os.Create(ts.MkAbs("inherited"))
	ts.Check(err)
	defer inherited.Close()
	cmd := exec.Command(program, "serve")
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "MITOGEN_MUX_DIR="+ts.Getenv("MITOGEN_MUX_DIR"), "GORACE="+ts.Getenv("GORACE"))
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
	line, err := io.ReadAll(out) // nobody who waits for its end waits for the daemon's
	ts.Check(err)
	ts.Setenv(args[0]+"_LINE", strings.TrimSuffix(string(line), "\n"))
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
		if number <= unix.Stderr && target != os.DevNull || filepath.Base(target) == "inherited" || strings.HasPrefix(target, "pipe:") {
			return fmt.Errorf("descriptor %d is %s", number, target)
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

// attach RUN NAME makes a process of its own a run at a daemon, and sets RUN_PID.
func attach(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command("sleep", "1000")
	ts.Check(cmd.Start())
	daemonsOf(ts).started[args[0]] = cmd
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ts.Setenv(args[0]+"_PID", strconv.Itoa(cmd.Process.Pid))

	socket := strings.Fields(ts.Getenv(args[1] + "_LINE"))[4]
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer conn.Close()
	_, err = muxv1.NewRunsClient(conn).Attach(context.Background(), &muxv1.AttachRequest{Pid: uint32(cmd.Process.Pid), CoreVersion: "2.16.19"})
	ts.Check(err)
}

// end-run RUN ends the process of a run.
func endRun(ts *testscript.TestScript, _ bool, args []string) {
	cmd := daemonsOf(ts).started[args[0]]
	ts.Check(cmd.Process.Kill())
	_ = cmd.Wait()
}

// await TEXT PROGRAM ARGS... runs a program until its output has that text.
func await(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(time.Minute)
	for {
		_ = ts.Exec(args[1], args[2:]...)
		if strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no %q within a minute", args[0])
		}
	}
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
