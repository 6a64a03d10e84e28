package sshlink

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// inBubble dials b and runs f with the link, all in a bubble.
func inBubble(t *testing.T, b *bench, f func(t *testing.T, link mux.Transport)) {
	t.Helper()
	bubble(t, b, func(t *testing.T) {
		link, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = link.Close() }()
		f(t, link)
	})
}

func start(t *testing.T, link mux.Transport, cmd string) mux.Process {
	t.Helper()
	p, err := link.Exec(t.Context(), []byte(cmd), mux.ExecOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// untilEOF is a command that ends with its stdin.
func untilEOF(_ string, ch ssh.Channel) uint32 {
	_, _ = io.Copy(io.Discard, ch)
	return 0
}

// TestCloseUnblocks: Close ends Read, Write, Stderr and Wait although the server never reads, writes or closes.
func TestCloseUnblocks(t *testing.T) {
	b := newBench(t)
	hang := make(chan struct{})
	b.server.Exec = func(string, ssh.Channel) uint32 { <-hang; return 0 }
	bubble(t, b, func(t *testing.T) {
		hang = make(chan struct{})
		link, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := start(t, link, "x")
		ended := make(chan error, 4)
		go func() { _, err := p.Read(make([]byte, 1)); ended <- err }()
		go func() { _, err := p.Stderr().Read(make([]byte, 1)); ended <- err }()
		go func() { _, err := io.CopyN(p, zeros{}, 64<<20); ended <- err }()
		go func() { _, err := p.Wait(); ended <- err }()
		synctest.Wait() // until all of them wait
		_ = p.Close()
		for range 4 {
			if err := <-ended; err == nil {
				t.Error("a closed process did not fail its callers")
			}
		}
		close(hang)
		_ = link.Close()
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLostConnection: who waits on a process learns that the connection ended first, and so does who asks for one later.
func TestLostConnection(t *testing.T) {
	b := newBench(t)
	b.server.Exec = untilEOF
	inBubble(t, b, func(t *testing.T, link mux.Transport) {
		p := start(t, link, "x")
		var cut *transport
		cut, _ = link.(*transport)
		_ = cut.wire.Conn.Close()
		if out, err := io.ReadAll(p); err != nil || len(out) > 0 {
			t.Errorf("output %q, %v", out, err)
		}
		_, err := p.Wait()
		f := typed(t, err, fault.AgentDied)
		if f.Message != "Connection to h1 closed by remote host" {
			t.Errorf("got %q", f.Message)
		}
		<-link.Done()
		if !errors.Is(link.Err(), f) {
			t.Errorf("Err says %v", link.Err())
		}
		_, err = link.Exec(t.Context(), []byte("y"), mux.ExecOptions{})
		failsAs(t, err, fault.AgentDied)
		_ = p.Close()
	})
}

func TestClosedByUs(t *testing.T) {
	b := newBench(t)
	b.server.Exec = untilEOF
	inBubble(t, b, func(t *testing.T, link mux.Transport) {
		p := start(t, link, "x")
		for range 2 {
			if err := link.Close(); err != nil {
				t.Error(err)
			}
		}
		<-link.Done()
		failsAs(t, link.Err(), fault.Cancelled)
		_, err := p.Wait()
		failsAs(t, err, fault.Cancelled)
		_, err = link.Exec(t.Context(), []byte("y"), mux.ExecOptions{})
		failsAs(t, err, fault.Cancelled)
	})
}

func TestNoStatus(t *testing.T) {
	b := newBench(t)
	b.server.Mute = func(string) bool { return true }
	inBubble(t, b, func(t *testing.T, link mux.Transport) {
		p := start(t, link, "x")
		_, _ = io.ReadAll(p)
		if code, err := p.Wait(); code != 255 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
}

// TestSessionLimits: more commands than sessions wait for their turn, at our own limit and at a server's lower one.
func TestSessionLimits(t *testing.T) {
	for name, c := range map[string]struct{ server, want int }{"ours": {0, maxSessions}, "the server's": {3, 3}, "one": {1, 1}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.server.MaxSessions = c.server
			var mu sync.Mutex
			open, most := 0, 0
			b.server.Exec = func(string, ssh.Channel) uint32 {
				mu.Lock()
				open++
				most = max(most, open)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				open--
				mu.Unlock()
				return 0
			}
			inBubble(t, b, func(t *testing.T, link mux.Transport) {
				var all sync.WaitGroup
				for range 20 {
					all.Go(func() {
						p, err := link.Exec(t.Context(), []byte("x"), mux.ExecOptions{})
						if err != nil {
							t.Error(err)
							return
						}
						if code, err := p.Wait(); code != 0 || err != nil {
							t.Errorf("got %d, %v", code, err)
						}
						_ = p.Close()
					})
				}
				all.Wait()
				if most != c.want {
					t.Errorf("%d sessions at once, want %d", most, c.want)
				}
			})
		})
	}
}

// TestNoSessionFree: a command that never gets a session says so when its time is over.
func TestNoSessionFree(t *testing.T) {
	b := newBench(t)
	b.server.MaxSessions = 1
	b.server.Exec = untilEOF
	inBubble(t, b, func(t *testing.T, link mux.Transport) {
		p := start(t, link, "x")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := link.Exec(ctx, []byte("y"), mux.ExecOptions{})
		if f := typed(t, err, fault.TimedOut); !strings.Contains(f.Hint, "MaxSessions") {
			t.Errorf("hint %q", f.Hint)
		}
		_ = p.Close()
	})
}

// TestSessionsRefused: a server that allows none is an error, not a wait.
func TestSessionsRefused(t *testing.T) {
	b := newBench(t)
	b.server.MaxSessions = -1
	inBubble(t, b, func(t *testing.T, link mux.Transport) {
		_, err := link.Exec(t.Context(), []byte("x"), mux.ExecOptions{})
		if f := typed(t, err, fault.Unsupported); f.Message != "deploy@h1 refuses sessions: open failed" {
			t.Errorf("got %q", f.Message)
		}
	})
}

// TestSessionRequests: variables and terminal go before the command, with what the configuration and the run say.
func TestSessionRequests(t *testing.T) {
	b := newBench(t)
	var got []string
	b.server.Requests = func(kind string, payload []byte) {
		switch kind {
		case "env":
			var v variable
			_ = ssh.Unmarshal(payload, &v)
			kind += " " + v.Name + "=" + v.Value
		case "pty-req":
			var r ptyRequest
			_ = ssh.Unmarshal(payload, &r)
			kind += " " + r.Term
		}
		got = append(got, kind)
	}
	b.cfg.SetEnv = []string{"A=b c"}
	b.cfg.SendEnv = []string{"LANG", "LC_*"}
	b.run.Environ = []string{"LANG=C", "LC_ALL=x=y", "HOME=/h", "TERM=vt100", "XLC_A=1"}
	inBubble(t, b, func(t *testing.T, link mux.Transport) {
		p, err := link.Exec(t.Context(), []byte("x"), mux.ExecOptions{TTY: true})
		if err != nil {
			t.Fatal(err)
		}
		_ = p.Close()
	})
	want := []string{"pty-req vt100", "env A=b c", "env LANG=C", "env LC_ALL=x=y", "exec"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSignalCode(t *testing.T) {
	for name, want := range map[string]int{"TERM": 143, "KILL": 137, "SEGV": 139, "ABRT": 134, "XCPU": 152, "new@example.org": 255} {
		if got := signalCode(name); got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
}
