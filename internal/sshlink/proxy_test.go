package sshlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// site is a row of servers with names of their own in one configuration file.
type site struct {
	servers []*sshtest.SSHD
	config  string
	file    string
	run     hop.Run
}

func startSite(t *testing.T, n int) *site {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "id")
	signer := sshtest.WriteKey(t, key, "ed25519", "")
	s := &site{file: filepath.Join(dir, "config"), run: hop.Run{ID: "r1", Cwd: dir, Environ: []string{"PATH=" + os.Getenv("PATH")}}}
	for i := range n {
		server := sshtest.StartSSHD(t, sshtest.Options{Authorized: []ssh.PublicKey{signer.PublicKey()}})
		s.servers = append(s.servers, server)
		s.config += fmt.Sprintf("Host s%d\n HostName %s\n Port %d\n User %s\n UserKnownHostsFile %s\n", i, server.Host, server.Port, server.User, server.KnownHosts(t))
	}
	s.config += "Host *\n GlobalKnownHostsFile /dev/null\n IdentityFile " + key + "\n"
	return s
}

func (s *site) dial(ctx context.Context, t *testing.T, way, host, first string) (mux.Transport, error) {
	t.Helper()
	sshtest.WriteFile(t, s.file, first+"\n"+s.config)
	h := &hop.SSH{Host: host, HostKeyChecking: true, TimeoutSeconds: 60, Args: []string{"-F", s.file}, Transport: way}
	return New(Options{}).Dial(ctx, h, s.run)
}

// TestProxyJump goes through chains of up to three hosts, and leaves no connection behind.
func TestProxyJump(t *testing.T) { bothWays(t, testProxyJump) }

func testProxyJump(t *testing.T, way string) {
	t.Helper()
	s := startSite(t, 4)
	for _, c := range []struct{ name, config string }{
		{"one", "Host s3\n ProxyJump s0"},
		{"three", "Host s3\n ProxyJump s0,s1,s2"},
		{"recursive", "Host s3\n ProxyJump s2\nHost s2\n ProxyJump s1\nHost s1\n ProxyJump s0"},
		{"user and port", fmt.Sprintf("Host s3\n ProxyJump %s@s0:%d", s.servers[0].User, s.servers[0].Port)},
	} {
		t.Run(c.name, func(t *testing.T) {
			link, err := s.dial(t.Context(), t, way, "s3", c.config)
			if err != nil {
				t.Fatal(err)
			}
			if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
				t.Errorf("got %+v", got)
			}
			_ = link.Close()
			for _, server := range s.servers {
				waitFor(t, func() bool { return server.Connections() == 0 })
			}
		})
	}
}

// TestJumpHostsAreShared: one connection to each jump host of a chain, however many targets are behind it, also at the same time; it
// ends with the last of them. A jump host that was lost is connected anew.
func TestJumpHostsAreShared(t *testing.T) {
	s := startSite(t, 4)
	sshtest.WriteFile(t, s.file, "Host s2 s3\n ProxyJump s0,s1\n"+s.config)
	d := New(Options{})
	dial := func(host string) (mux.Transport, error) {
		return d.Dial(t.Context(), &hop.SSH{Host: host, HostKeyChecking: true, TimeoutSeconds: 60, Args: []string{"-F", s.file}}, s.run)
	}
	for range 2 {
		hosts := []string{"s2", "s3", "s3", "s2", "s3"}
		links := make(chan mux.Transport, len(hosts))
		for _, host := range hosts {
			go func() {
				link, err := dial(host)
				if err != nil {
					t.Error(err)
				}
				links <- link
			}()
		}
		var all []mux.Transport
		for range hosts {
			if link := <-links; link != nil {
				all = append(all, link)
			}
		}
		if a, b := s.servers[0].Connections(), s.servers[1].Connections(); a != 1 || b != 1 {
			t.Errorf("%d and %d connections to the jump hosts", a, b)
		}
		for i, link := range all {
			if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
				t.Errorf("%d: got %+v", i, got)
			}
			_ = link.Close()
		}
		for _, server := range s.servers {
			waitFor(t, func() bool { return server.Connections() == 0 })
		}
	}
	old, err := dial("s2")
	if err != nil {
		t.Fatal(err)
	}
	s.servers[0].DropAll()
	<-old.Done()
	anew, err := dial("s2")
	if err != nil {
		t.Fatal(err)
	}
	_ = old.Close()
	if got := output(t, anew, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
		t.Errorf("got %+v", got)
	}
	_ = anew.Close()
}

func TestProxyJumpFailures(t *testing.T) {
	s := startSite(t, 2)
	_, err := s.dial(t.Context(), t, native, "s1", "Host s1\n ProxyJump gone\nHost gone\n HostName 127.0.0.1\n Port 1")
	f := typed(t, err, fault.Unreachable)
	if want := "ProxyJump gone of s1: ssh: connect to host 127.0.0.1 port 1: Connection refused"; f.Message != want {
		t.Errorf("got %q, want %q", f.Message, want)
	}
	_, err = s.dial(t.Context(), t, native, "s9", "Host s9\n HostName 127.0.0.1\n Port 1\n ProxyJump s0")
	f = typed(t, err, fault.Unreachable)
	if want := "ssh: connect to host 127.0.0.1 port 1: "; !strings.HasPrefix(f.Message, want) {
		t.Errorf("got %q, want %q", f.Message, want)
	}
	for _, server := range s.servers {
		waitFor(t, func() bool { return server.Connections() == 0 })
	}
}

// TestProxyCommand uses OpenSSH itself as the proxy.
func TestProxyCommand(t *testing.T) { bothWays(t, testProxyCommand) }

func testProxyCommand(t *testing.T, way string) {
	t.Helper()
	s := startSite(t, 2)
	(&account{}).program(t, "ssh")
	link, err := s.dial(t.Context(), t, way, "s1", "Host s1\n ProxyCommand ssh -F "+s.file+" -W %h:%p s0")
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
		t.Errorf("got %+v", got)
	}
	_ = link.Close()
	waitFor(t, func() bool { return s.servers[0].Connections() == 0 })
}

func TestProxyCommandFailures(t *testing.T) {
	s := startSite(t, 1)
	for name, c := range map[string]struct{ command, stderr string }{
		"says why":    {"sh -c 'echo no route to %h >&2; exit 1'", "no route to 127.0.0.1"},
		"not there":   {"/nowhere/proxy", "/nowhere/proxy"},
		"says rather": {"echo hello", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.dial(t.Context(), t, native, "s0", "Host s0\n ProxyCommand "+c.command)
			f := typed(t, err, fault.Unreachable)
			if !strings.Contains(f.Stderr, c.stderr) || !strings.Contains(f.Message, "ProxyCommand") {
				t.Errorf("%q, stderr %q", f.Message, f.Stderr)
			}
		})
	}
}

// TestProxyCommandEnds: a proxy that says nothing and what it started are gone when the dial is cancelled.
func TestProxyCommandEnds(t *testing.T) {
	s := startSite(t, 1)
	pid := filepath.Join(s.run.Cwd, "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.dial(ctx, t, native, "s0", "Host s0\n ProxyCommand sh -c 'trap \"\" HUP; sleep 100 & echo $$! >"+pid+".new; mv "+pid+".new "+pid+"; wait'")
		ended <- err
	}()
	waitFor(t, func() bool { _, err := os.Stat(pid); return err == nil })
	cancel(errors.New("enough"))
	failsAs(t, <-ended, fault.Cancelled)
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(string(text), &child); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	waitFor(t, func() bool { return errors.Is(syscall.Kill(child, 0), syscall.ESRCH) })
}

func TestConnectFault(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
		hint bool
	}{
		"refused":   {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "ssh: connect to host h1 port 22: Connection refused", true},
		"timed out": {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ETIMEDOUT)}, "ssh: connect to host h1 port 22: Connection timed out", true},
		"limit":     {errTimeout, "ssh: connect to host h1 port 22: Connection timed out", true},
		"no route":  {os.NewSyscallError("connect", syscall.EHOSTUNREACH), "ssh: connect to host h1 port 22: No route to host", false},
		"reset":     {os.NewSyscallError("read", syscall.ECONNRESET), "ssh: connect to host h1 port 22: Connection reset by peer", false},
		"no name":   {&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "h1", IsNotFound: true}}, "ssh: Could not resolve hostname h1: Name or service not known", true},
		"dns fails": {&net.DNSError{Err: "server misbehaving", Name: "h1"}, "ssh: Could not resolve hostname h1: server misbehaving", true},
	} {
		t.Run(name, func(t *testing.T) {
			f := connectFault("h1", 22, c.err)
			if f.Kind != fault.Unreachable || f.Error() != c.want || (f.Hint != "") != c.hint {
				t.Errorf("got %q, hint %q; want %q", f.Error(), f.Hint, c.want)
			}
		})
	}
}

// TestRefusedPort is the same against a real port that nobody listens on.
func TestRefusedPort(t *testing.T) {
	h := &hop.SSH{Host: "127.0.0.1", Port: 1, Args: []string{"-F", "none"}, TimeoutSeconds: 60}
	_, err := New(Options{}).Dial(t.Context(), h, hop.Run{})
	if f := typed(t, err, fault.Unreachable); f.Message != "ssh: connect to host 127.0.0.1 port 1: Connection refused" {
		t.Errorf("got %q", f.Message)
	}
}

// TestConnectTimeout: a host that does not answer costs the hop's timeout, again at each attempt.
func TestConnectTimeout(t *testing.T) {
	b := newBench(t)
	b.hop.ReconnectionRetries = 1
	b.dialer.network = func(ctx context.Context, _ *config) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	bubble(t, b, func(t *testing.T) {
		began := time.Now()
		f := typed(t, b.ready(t.Context()), fault.Unreachable)
		if f.Message != "ssh: connect to host h1 port 22: Connection timed out" {
			t.Errorf("got %q", f.Message)
		}
		if got := time.Since(began); got != 20*time.Second {
			t.Errorf("took %v", got)
		}
	})
}
