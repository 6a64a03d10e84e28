package sshlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// peer is a port that treats each connection as answer says; the first one is number 1.
func peer(t *testing.T, answer func(n int64, conn net.Conn)) (port uint16, seen *atomic.Int64) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen = &atomic.Int64{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var open []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, conn)
			answer(seen.Add(1), conn)
		}
		for _, conn := range open {
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), seen // a tcp listener
}

func closes(_ int64, conn net.Conn) { _ = conn.Close() }
func isSilent(int64, net.Conn)      {}
func speaksHTTP(_ int64, c net.Conn) {
	_, _ = c.Write([]byte(strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 60)))
	_ = c.Close()
}

// TestRefusals: what a person reads when there is no connection: kind, ssh's own words, a remedy. All clients say the same.
func TestRefusals(t *testing.T) { everyWay(t, testRefusals) }

func testRefusals(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "MaxAuthTries 2\nBanner none")
	bad := []string{}
	for i := range 3 {
		file := filepath.Join(t.TempDir(), fmt.Sprint("bad", i))
		sshtest.WriteKey(t, file, "ed25519", "")
		bad = append(bad, "-i", file)
	}
	closing, _ := peer(t, closes)
	silent, _ := peer(t, isSilent)
	http, _ := peer(t, speaksHTTP)
	for name, c := range map[string]struct {
		set  func(h *hop.SSH)
		want fault.Kind
		says string // in message or hint
	}{
		"refused":               {func(h *hop.SSH) { h.Port = 1 }, fault.Unreachable, "ssh: connect to host 127.0.0.1 port 1: Connection refused"},
		"no such name":          {func(h *hop.SSH) { h.Host = "no-such-host.invalid" }, fault.Unreachable, "Could not resolve hostname no-such-host.invalid"},
		"closes":                {func(h *hop.SSH) { h.Port = closing }, fault.Unreachable, "MaxStartups"},
		"silent":                {func(h *hop.SSH) { h.Port, h.TimeoutSeconds = silent, 1 }, fault.Unreachable, "timed out during banner exchange"},
		"not ssh":               {func(h *hop.SSH) { h.Port = http }, fault.Unreachable, "kex_exchange_identification"},
		"too many keys":         {func(h *hop.SSH) { h.Args = append(bad, h.Args...) }, fault.AuthFailed, "Too many authentication failures"},
		"too many keys, remedy": {func(h *hop.SSH) { h.Args = append(bad, h.Args...) }, fault.AuthFailed, "IdentitiesOnly"},
		"denied":                {func(h *hop.SSH) { h.PrivateKeyFile = bad[1] }, fault.AuthFailed, "Permission denied (publickey)"},
		"bad option":            {func(h *hop.SSH) { h.LateArgs = []string{"-o", "NoSuchOption=1"} }, fault.Unreachable, "nosuchoption"},
	} {
		t.Run(name, func(t *testing.T) {
			h := *a.hop
			c.set(&h)
			h.Transport = way
			_, err := New(Options{}).DialThrough(t.Context(), &h, a.run, a.from(way))
			f := typed(t, err, c.want)
			if text := f.Message + "\n" + f.Hint; !strings.Contains(text, c.says) || f.Hint == "" {
				t.Errorf("%q does not say %q", text, c.says)
			}
		})
	}
}

// TestDropsAreRetried: a server that drops its first connections (MaxStartups) is tried again as reconnection_retries says, and no
// more often.
func TestDropsAreRetried(t *testing.T) { everyWay(t, testDropsAreRetried) }

func testDropsAreRetried(t *testing.T, way string) {
	t.Helper()
	port, seen := peer(t, closes)
	a := startAccount(t, "")
	a.hop.Port, a.hop.ReconnectionRetries, a.hop.Transport = port, 1, way
	_, err := New(Options{}).DialThrough(t.Context(), a.hop, a.run, a.from(way))
	failsAs(t, err, fault.Unreachable)
	if n := seen.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestTalkativeServers: banners and a login shell that prints do not disturb; the output is the command's and what came before it.
func TestTalkativeServers(t *testing.T) { everyWay(t, testTalkativeServers) }

func testTalkativeServers(t *testing.T, way string) {
	t.Helper()
	banner := filepath.Join(t.TempDir(), "banner")
	sshtest.WriteFile(t, banner, strings.Repeat("Authorized use only. Password: none\n", 100))
	link := startAccount(t, "Banner "+banner+"\nForceCommand echo hello from rc; eval \"$SSH_ORIGINAL_COMMAND\"").dial(t, way)
	if got := output(t, link, "echo out; exit 3", "", mux.ExecOptions{}); got.code != 3 || got.stdout != "hello from rc\nout\n" {
		t.Errorf("got %+v", got)
	}
}

// TestCancelled: who no longer wants a connection does not wait for a silent server, and leaves no program and no connection behind.
func TestCancelled(t *testing.T) { everyWay(t, testCancelled) }

func testCancelled(t *testing.T, way string) {
	t.Helper()
	gone := make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	port, _ := peer(t, func(_ int64, conn net.Conn) {
		cancel(errors.New("the run has ended"))
		go func() {
			defer close(gone)
			_, _ = io.Copy(io.Discard, conn)
		}()
	})
	a := startAccount(t, "")
	a.hop.Port, a.hop.Transport = port, way
	_, err := New(Options{}).DialThrough(ctx, a.hop, a.run, a.from(way))
	failsAs(t, err, fault.Cancelled)
	<-gone
}
