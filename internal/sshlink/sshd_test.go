package sshlink

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

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

func (a *account) dial(t *testing.T) mux.Transport {
	t.Helper()
	link, err := New(Options{}).Dial(t.Context(), a.hop, a.run)
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

func TestExec(t *testing.T) {
	link := startAccount(t, "").dial(t)
	for name, c := range map[string]struct {
		cmd, stdin string
		tty        bool
		want       result
	}{
		"output":    {cmd: "echo out; echo err >&2", want: result{0, "out\n", "err\n"}},
		"code":      {cmd: "exit 3", want: result{code: 3}},
		"signal":    {cmd: "kill -TERM $$", want: result{code: 143}},
		"kill":      {cmd: "kill -KILL $$", want: result{code: 137}},
		"stdin":     {cmd: "cat", stdin: "in\n", want: result{0, "in\n", ""}},
		"no tty":    {cmd: "tty", want: result{1, "not a tty\n", ""}},
		"tty":       {cmd: "test -t 0 && test -t 1 && stty size; echo $TERM", tty: true, want: result{0, "0 0\r\ndumb\r\n", ""}},
		"tty merge": {cmd: "echo err >&2; exit 4", tty: true, want: result{4, "err\r\n", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			got := output(t, link, c.cmd, c.stdin, mux.ExecOptions{TTY: c.tty})
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}
