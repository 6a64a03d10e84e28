package sshlink

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// bench is a server in process and a dialer that reaches it over pipes, with a configuration made by hand.
type bench struct {
	server *sshtest.Server
	dialer *Dialer
	cfg    *config
	hop    *hop.SSH
	run    hop.Run
	from   *mux.Intermediary
	delay  time.Duration
	wrap   func(net.Conn) net.Conn // of the dialer's end
	dials  atomic.Int32

	goodKey hop.Secret // the one that the server accepts; the hop has it unless a test takes it away
}

func newBench(t testing.TB) *bench {
	t.Helper()
	key := sshtest.NewKey(t, "ed25519")
	server, host := sshtest.NewServer(t, sshtest.Signer(t, key).PublicKey())
	known := filepath.Join(t.TempDir(), "known_hosts")
	sshtest.WriteFile(t, known, "h1 "+string(ssh.MarshalAuthorizedKey(host)))
	b := &bench{server: server, dialer: New(Options{})}
	b.cfg = defaultConfig("h1", "deploy")
	b.cfg.UserKnownHosts, b.cfg.GlobalKnownHosts = []string{known}, nil
	b.cfg.StrictHostKeys = "yes"
	b.cfg.IdentityFiles = []string{givenKey}
	b.cfg.ConnectTimeout = 10 * time.Second
	b.goodKey = hop.NewSecret(sshtest.EncodeKey(t, key, ""))
	b.hop = &hop.SSH{Host: "h1", User: "deploy", PrivateKey: b.goodKey}
	b.dialer.resolve = func(context.Context, *hop.SSH, *place) (*config, error) { return b.cfg, nil }
	b.dialer.network = func(context.Context, *config) (net.Conn, error) {
		b.dials.Add(1)
		client, server := sshtest.Pipe(b.delay)
		b.server.Serve(server)
		if b.wrap != nil {
			client = b.wrap(client)
		}
		return client, nil
	}
	return b
}

func (b *bench) dial(ctx context.Context) (mux.Transport, error) {
	return b.dialer.DialThrough(ctx, b.hop, b.run, b.from)
}

// ready dials and runs a command; the error is the first of them.
func (b *bench) ready(ctx context.Context) error {
	link, err := b.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = link.Close() }()
	p, err := link.Exec(ctx, []byte("echo -n hello"), mux.ExecOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	out, err := io.ReadAll(p)
	if err != nil {
		return err
	}
	code, err := p.Wait()
	if err == nil && (code != 0 || !strings.HasSuffix(string(out), "hello")) {
		return errors.New("wrong result: " + string(out))
	}
	return err
}

// bubble runs f in a bubble of fake time. It fails if a goroutine is left.
func bubble(t *testing.T, b *bench, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t)
		b.server.Wait()
	})
}

// typed fails unless err is a *fault.Error with a message, of one of the kinds.
func typed(t *testing.T, err error, kinds ...fault.Kind) *fault.Error {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Message == "" {
		t.Fatalf("not a typed error: %v", err)
	}
	for _, kind := range kinds {
		if f.Kind == kind {
			return f
		}
	}
	t.Fatalf("kind %d of %q is none of %v", f.Kind, f.Error(), kinds)
	return nil
}

// failsAs is typed for those who do not look closer.
func failsAs(t *testing.T, err error, kinds ...fault.Kind) {
	t.Helper()
	_ = typed(t, err, kinds...)
}

// TestRoundTrips measures by the clock of a bubble, which only moves by the delays of the connection: from TCP connect on, 6
// round trips to an authenticated connection, 1 for a channel, 1 for the command.
func TestRoundTrips(t *testing.T) {
	const trip = time.Second
	b := newBench(t)
	b.delay = trip / 2
	b.cfg.ConnectTimeout = 0
	bubble(t, b, func(t *testing.T) {
		began := time.Now()
		link, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Since(began); got != 6*trip {
			t.Errorf("authenticated after %v round trips, want 6", got.Seconds())
		}
		began = time.Now()
		p, err := link.Exec(t.Context(), []byte("x"), mux.ExecOptions{TTY: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Since(began); got != 2*trip {
			t.Errorf("command started after %v round trips, want 2", got.Seconds())
		}
		_ = p.Close()
		_ = link.Close()
	})
}

// TestRefusedKeyRoundTrips: each key that the server refuses costs one round trip, without a signature.
func TestRefusedKeyRoundTrips(t *testing.T) {
	const trip = time.Second
	b := newBench(t)
	b.delay = trip / 2
	b.cfg.ConnectTimeout = 0
	dir := t.TempDir()
	b.cfg.IdentityFiles = nil
	for _, name := range []string{"a", "b", "c"} {
		sshtest.WriteKey(t, filepath.Join(dir, name), "ed25519", "")
		b.cfg.IdentityFiles = append(b.cfg.IdentityFiles, filepath.Join(dir, name))
	}
	b.cfg.IdentityFiles = append(b.cfg.IdentityFiles, givenKey)
	bubble(t, b, func(t *testing.T) {
		began := time.Now()
		link, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Since(began); got != 9*trip {
			t.Errorf("authenticated after %v round trips, want 9", got.Seconds())
		}
		_ = link.Close()
	})
}

// cutKinds are what a connection that ends at some point may be called.
var cutKinds = []fault.Kind{fault.Unreachable, fault.AgentDied}

func TestCutAfterEachOperation(t *testing.T) {
	b := newBench(t)
	var last *sshtest.Faults
	count := func(c net.Conn) net.Conn { last = sshtest.Break(c, &sshtest.Faults{}); return last }
	b.wrap = count
	bubble(t, b, func(t *testing.T) {
		if err := b.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	all, _, _ := last.Used()
	failed := 0
	for n := int64(1); n <= all; n++ {
		b.wrap = func(c net.Conn) net.Conn { return sshtest.Break(c, &sshtest.Faults{Operations: n}) }
		bubble(t, b, func(t *testing.T) {
			if err := b.ready(t.Context()); err != nil {
				failed++
				failsAs(t, err, cutKinds...)
			}
		})
	}
	if failed < int(all)/2 {
		t.Errorf("only %d of %d cuts were seen", failed, all)
	}
}

func TestCutAtEachByte(t *testing.T) {
	for name, f := range map[string]func(n int64) *sshtest.Faults{
		"received": func(n int64) *sshtest.Faults { return &sshtest.Faults{Received: n} },
		"sent":     func(n int64) *sshtest.Faults { return &sshtest.Faults{Sent: n} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			for n := int64(1); n <= 512; n++ {
				b.wrap = func(c net.Conn) net.Conn { return sshtest.Break(c, f(n)) }
				bubble(t, b, func(t *testing.T) { failsAs(t, b.ready(t.Context()), cutKinds...) })
			}
		})
	}
}

// TestStalls: a server that stops at any operation is an error once the time is over, never earlier or later.
func TestStalls(t *testing.T) {
	b := newBench(t)
	var last *sshtest.Faults
	b.wrap = func(c net.Conn) net.Conn { last = sshtest.Break(c, &sshtest.Faults{}); return last }
	bubble(t, b, func(t *testing.T) {
		link, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = link.Close()
	})
	all, _, _ := last.Used()
	for n := int64(0); n < all; n++ {
		b.wrap = func(c net.Conn) net.Conn {
			f := &sshtest.Faults{Operations: n, Stall: true}
			if n == 0 {
				f.Operations = 1
			}
			return sshtest.Break(c, f)
		}
		bubble(t, b, func(t *testing.T) {
			began := time.Now()
			link, err := b.dial(t.Context())
			if err == nil { // the stalled operation was not needed
				_ = link.Close()
				return
			}
			f := typed(t, err, fault.Unreachable, fault.TimedOut)
			if got := time.Since(began); got != b.cfg.ConnectTimeout && got != authGrace {
				t.Errorf("operation %d: after %v: %v", n, got, f)
			}
		})
	}
}

func TestCancelAtAnyMoment(t *testing.T) {
	b := newBench(t)
	b.delay = time.Second
	for after := time.Duration(0); after < 16*time.Second; after += time.Second / 2 {
		bubble(t, b, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			timer := time.AfterFunc(after, func() { cancel(errors.New("the run has ended")) })
			defer timer.Stop()
			began := time.Now()
			err := b.ready(ctx)
			if err == nil {
				return
			}
			failsAs(t, err, fault.Cancelled)
			if took := time.Since(began); took != after {
				t.Errorf("cancelled at %v, returned at %v", after, took)
			}
		})
	}
}

func TestNoiseBeforeVersion(t *testing.T) {
	for name, c := range map[string]struct {
		noise string
		want  fault.Kind
	}{
		"lines":    {"Welcome\r\nto this host\r\n", 0},
		"not ssh":  {strings.Repeat("HTTP/1.1 400 Bad Request ", 20) + "\n", fault.Unreachable},
		"endless":  {strings.Repeat("x\n", 5000), fault.Unreachable},
		"binary":   {strings.Repeat("\x00\xff\x16\x03", 200), fault.Unreachable},
		"old":      {"SSH-1.5-old\r\n", fault.Unreachable},
		"no lines": {"SSH-2.0-" + strings.Repeat("y", 1000), fault.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.server.Noise = c.noise
			bubble(t, b, func(t *testing.T) {
				err := b.ready(t.Context())
				if c.want != 0 {
					failsAs(t, err, c.want)
				} else if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestRetries: a server that drops its first connections, as by MaxStartups, is tried again with the pauses of Ansible's plugin.
func TestRetries(t *testing.T) {
	b := newBench(t)
	b.hop.ReconnectionRetries = 8
	b.wrap = func(c net.Conn) net.Conn {
		if b.dials.Load() < 9 {
			_ = c.Close()
		}
		return c
	}
	bubble(t, b, func(t *testing.T) {
		began := time.Now()
		if err := b.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := (0 + 1 + 3 + 7 + 15 + 30 + 30 + 30) * time.Second
		if got := time.Since(began); got != want || b.dials.Load() != 9 {
			t.Errorf("%d attempts in %v, want 9 in %v", b.dials.Load(), got, want)
		}
	})
}

func TestNoRetryWhenRefused(t *testing.T) {
	b := newBench(t)
	b.hop.ReconnectionRetries = 5
	b.hop.PrivateKey = hop.NewSecret(sshtest.EncodeKey(t, sshtest.NewKey(t, "ed25519"), ""))
	bubble(t, b, func(t *testing.T) {
		f := typed(t, b.ready(t.Context()), fault.AuthFailed)
		if f.Message != "deploy@h1: Permission denied (publickey)" {
			t.Errorf("got %q", f.Message)
		}
		if b.dials.Load() != 1 {
			t.Errorf("%d attempts", b.dials.Load())
		}
	})
}

func TestKeepAlive(t *testing.T) {
	b := newBench(t)
	b.cfg.AliveInterval, b.cfg.AliveCountMax = 15*time.Second, 3
	var f *sshtest.Faults
	b.wrap = func(c net.Conn) net.Conn { f = sshtest.Break(c, &sshtest.Faults{}); return f }
	bubble(t, b, func(t *testing.T) {
		link, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // answers keep it alive
		if err := link.Err(); err != nil {
			t.Fatal(err)
		}
		frozen := time.Now()
		f.Freeze()
		<-link.Done()
		if got := time.Since(frozen); got < 45*time.Second || got > 75*time.Second {
			t.Errorf("noticed after %v", got)
		}
		if f := typed(t, link.Err(), fault.AgentDied); f.Message != "Timeout, server h1 not responding" {
			t.Errorf("got %q", f.Message)
		}
		_ = link.Close()
	})
}
