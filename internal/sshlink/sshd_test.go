package sshlink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// account is a real sshd, a hop that reaches it with a key, and the run.
type account struct {
	*sshtest.SSHD

	hop *hop.SSH
	run hop.Run
	key string
}

// startAccount starts sshd with one authorized key. The hop's configuration is a file of its own, never the user's.
func startAccount(t *testing.T, config string) *account {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "id")
	signer := sshtest.WriteKey(t, key, "ed25519", "")
	s := sshtest.StartSSHD(t, sshtest.Options{Authorized: []ssh.PublicKey{signer.PublicKey()}, Config: config})
	a := &account{SSHD: s, key: key, run: hop.Run{ID: "r1", Cwd: dir, Environ: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}}}
	a.hop = &hop.SSH{
		Host: s.Host, Port: s.Port, User: s.User, PrivateKeyFile: key, HostKeyChecking: true, TimeoutSeconds: 60,
		Args: a.args(t, "UserKnownHostsFile "+s.KnownHosts(t)),
	}
	return a
}

// args are ssh arguments that name a configuration file with the given text.
func (a *account) args(t *testing.T, text string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ssh_config")
	sshtest.WriteFile(t, file, "GlobalKnownHostsFile /dev/null\n"+text+"\n")
	return []string{"-F", file}
}

// bothWays runs a test with the built-in client and with the user's ssh: what they do is one.
func bothWays(t *testing.T, test func(t *testing.T, way string)) {
	t.Helper()
	inWays(t, []string{native, openssh}, test)
}

// everyWay is bothWays, and with the ssh of an intermediary.
func everyWay(t *testing.T, test func(t *testing.T, way string)) {
	t.Helper()
	inWays(t, []string{native, openssh, via}, test)
}

func inWays(t *testing.T, ways []string, test func(t *testing.T, way string)) {
	t.Helper()
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			if way != native && testing.Short() {
				t.Skip("the fallback is not for -short: a process and an askpass for each of its connections")
			}
			test(t, way)
		})
	}
}

// intermediary is this machine as one. What an agent adds to it is tested by internal/mux.
func intermediary(run hop.Run) *mux.Intermediary {
	return &mux.Intermediary{Name: "ssh near", Start: func(ctx context.Context, argv []string) (*mux.Program, error) {
		there := &outside{place: &place{run: run}, environ: run.Environ}
		return there.runHere(ctx, argv, false)
	}}
}

// from is where a connection begins by a way.
func (a *account) from(way string) *mux.Intermediary {
	if way == via {
		return intermediary(a.run)
	}
	return nil
}

func (a *account) dial(t *testing.T, way string) mux.Transport {
	t.Helper()
	a.hop.Transport = way
	link, err := New(Options{}).DialThrough(t.Context(), a.hop, a.run, a.from(way))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close() })
	return link
}

type result struct {
	code        int
	stdout, err string
}

// output runs cmd to its end.
func output(t *testing.T, link mux.Transport, cmd, stdin string, o mux.ExecOptions) result {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errTimeout)
	defer cancel()
	p, err := link.Exec(ctx, []byte(cmd), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	var stderr bytes.Buffer
	drained := make(chan error, 2)
	go func() {
		_, err := io.Copy(&stderr, p.Stderr())
		drained <- err
	}()
	go func() {
		_, err := io.WriteString(p, stdin)
		if err == nil {
			err = p.CloseWrite()
		}
		drained <- err
	}()
	stdout, err := io.ReadAll(p)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-drained; err != nil {
			t.Fatal(err)
		}
	}
	code, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return result{code, string(stdout), stderr.String()}
}

func TestExec(t *testing.T) { everyWay(t, testExec) }

func testExec(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "")
	link := a.dial(t, way)
	for name, c := range map[string]struct {
		cmd, stdin string
		tty        bool
		want       result
		outside    int // the code that ssh gives instead
	}{
		"output":    {cmd: "echo out; echo err >&2", want: result{0, "out\n", "err\n"}},
		"code":      {cmd: "exit 3", want: result{code: 3}},
		"signal":    {cmd: "kill -TERM $$", want: result{code: 143}, outside: 255},
		"kill":      {cmd: "kill -KILL $$", want: result{code: 137}, outside: 255},
		"stdin":     {cmd: "cat", stdin: "in\n", want: result{0, "in\n", ""}},
		"no tty":    {cmd: "tty", want: result{1, "not a tty\n", ""}},
		"tty":       {cmd: "test -t 0 && test -t 1 && stty size; env | grep -c ^TERM= || true", tty: true, want: result{0, "0 0\r\n0\r\n", ""}},
		"tty merge": {cmd: "echo err >&2; exit 4", tty: true, want: result{4, "err\r\n", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			got := output(t, link, c.cmd, c.stdin, mux.ExecOptions{TTY: c.tty})
			if c.outside != 0 && way != native { // which does not tell a signal
				c.want.code = c.outside
			}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// program finds a program of OpenSSH, or skips the test.
func (a *account) program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// must runs a program in the run's environment.
func (a *account) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env, cmd.Dir = a.run.Environ, a.run.Cwd
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// background runs a program until the test ends.
func (a *account) background(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = a.run.Environ
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// waitFor returns when ok holds; the test's own deadline bounds it.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-t.Context().Done():
			t.Fatal("never")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestMuchOutput sends 100 MB both ways at once, on two channels.
func TestMuchOutput(t *testing.T) { everyWay(t, testMuchOutput) }

func testMuchOutput(t *testing.T, way string) {
	t.Helper()
	if testing.Short() {
		t.Skip("moves 400 MB")
	}
	link := startAccount(t, "").dial(t, way)
	const size = 100 << 20
	failed := make(chan error, 2)
	for range 2 {
		go func() {
			failed <- func() error {
				p, err := link.Exec(t.Context(), []byte("cat"), mux.ExecOptions{})
				if err != nil {
					return err
				}
				defer func() { _ = p.Close() }()
				sent := make(chan error, 1)
				go func() {
					_, err := io.CopyN(p, zeros{}, size)
					if err == nil {
						err = p.CloseWrite()
					}
					sent <- err
				}()
				n, err := io.Copy(io.Discard, p)
				if err != nil || n != size {
					return fmt.Errorf("%d bytes back: %w", n, err)
				}
				if err := <-sent; err != nil {
					return err
				}
				_, err = p.Wait()
				return err
			}()
		}()
	}
	for range 2 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestServerDies: a real server that is killed is noticed by all who wait.
func TestServerDies(t *testing.T) { everyWay(t, testServerDies) }

func testServerDies(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "")
	link := a.dial(t, way)
	p, err := link.Exec(t.Context(), []byte("echo ready; cat"), mux.ExecOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	a.DropAll()
	_, err = p.Wait()
	failsAs(t, err, fault.AgentDied)
	<-link.Done()
	_ = p.Close()
}

func TestForcedCommand(t *testing.T) { bothWays(t, testForcedCommand) }

func testForcedCommand(t *testing.T, way string) {
	t.Helper()
	link := startAccount(t, "ForceCommand echo forced: $SSH_ORIGINAL_COMMAND").dial(t, way)
	if got := output(t, link, "true", "", mux.ExecOptions{}); got.stdout != "forced: true\n" {
		t.Errorf("got %+v", got)
	}
}

func TestRealMaxSessions(t *testing.T) { bothWays(t, testRealMaxSessions) }

func testRealMaxSessions(t *testing.T, way string) {
	t.Helper()
	link := startAccount(t, "MaxSessions 2").dial(t, way)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			p, err := link.Exec(t.Context(), []byte("echo x"), mux.ExecOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = p.Close() }()
			if out, err := io.ReadAll(p); string(out) != "x\n" {
				t.Errorf("got %q, %v", out, err)
			}
			if code, err := p.Wait(); code != 0 || err != nil {
				t.Errorf("got %d, %v", code, err)
			}
		})
	}
	all.Wait()
}
