package server

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"
)

// child starts a process that ends when it is told to.
func child(t *testing.T) (p process, end func()) {
	t.Helper()
	cmd := exec.Command("/bin/cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = stdin.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	return process{cmd.Process.Pid, startTime(cmd.Process.Pid)}, end
}

func TestWatch(t *testing.T) {
	ways := map[string]func(process) (func(context.Context), error){
		"system's way": process.watch,
		"polling": func(p process) (func(context.Context), error) {
			return func(ctx context.Context) { p.poll(ctx, time.Millisecond) }, nil
		},
	}
	for name, watch := range ways {
		t.Run(name, func(t *testing.T) {
			p, end := child(t)
			wait, err := watch(p)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(within(t))
			cancel(errors.New("no more"))
			wait(ctx) // returns, for its context has ended
			if !p.alive() {
				t.Fatal("the process has ended too early")
			}
			if wait, err = watch(p); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				wait(within(t))
			}()
			select {
			case <-done:
				t.Fatal("it was thought to have ended")
			case <-time.After(20 * time.Millisecond): // so that the wait has begun, most likely
			}
			end()
			<-done
			if p.alive() {
				t.Error("it is still alive")
			}
			if _, err := p.watch(); !errors.Is(err, errGone) {
				t.Errorf("watching what is gone: %v", err)
			}
		})
	}
}

func TestWatchOfAnotherProcess(t *testing.T) {
	p, _ := child(t)
	if p.start == 0 {
		t.Skip("this system does not say when a process started")
	}
	if _, err := (process{p.pid, p.start + 1}).watch(); !errors.Is(err, errGone) {
		t.Errorf("a reused pid: %v", err)
	}
	wait, err := (process{p.pid, 0}).watch()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(nil)
	wait(ctx)
}

func TestUmask(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "umask 037; read x")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // read fails, as it should
	defer stdin.Close()
	if startTime(cmd.Process.Pid) == 0 {
		t.Skip("this system does not say")
	}
	for ctx := within(t); umaskOf(cmd.Process.Pid) != 0o037; {
		if ctx.Err() != nil {
			t.Fatalf("got %o", umaskOf(cmd.Process.Pid))
		}
	}
	if got := umaskOf(1 << 30); got != defaultUmask {
		t.Errorf("of no process: %o", got)
	}
}
