package sshlink

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// farm is many targets, served by one server in this process whose accounts have a scripted agent, and the tree that reaches them.
type farm struct {
	*bench

	tree *mux.Tree
}

func newFarm(t testing.TB, delay time.Duration) *farm {
	t.Helper()
	b := newBench(t)
	b.cfg.ConnectTimeout = 0
	b.server.Exec = func(_ string, ch ssh.Channel) uint32 {
		agenttest.Play(t, &channelConn{ch}, func(f *agenttest.Fake) {
			f.Boot()
			for {
				stream, _ := f.Open()
				f.Expect(agent.TypeEnd)
				f.Result(stream, agent.Result{})
			}
		})
		return 0
	}
	b.dialer.network = func(context.Context, *config) (net.Conn, error) {
		client, server := sshtest.Pipe(delay)
		b.server.Serve(server)
		if b.wrap != nil {
			client = b.wrap(client)
		}
		return client, nil
	}
	return &farm{bench: b}
}

// ready brings n targets to the answer of a first job, and returns when the last has given it.
func (f *farm) ready(t testing.TB, n int) {
	t.Helper()
	f.tree = mux.New(mux.Options{Dialer: f.dialer})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			h := *f.hop
			h.Host = fmt.Sprint("h", i)
			path := hop.Path{{SSH: &h, Interpreter: "/usr/bin/python3", Account: hop.Key{byte(i), byte(i >> 8)}}}
			c, err := f.tree.Acquire(t.Context(), hop.Run{ID: "r1"}, h.Host, path)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Release()
			s, err := c.Open(t.Context(), &agent.Command{Argv: [][]byte{[]byte("true")}})
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.CloseSend(); err != nil {
				t.Error(err)
			}
			for {
				event, err := s.Recv(t.Context())
				if err != nil {
					t.Error(err)
				}
				if err != nil || event.Result != nil {
					break
				}
			}
			s.Close()
		})
	}
	all.Wait()
}

// TestRoundTripsToAJob lists what each round trip after TCP connect is for, up to the first job's result, by the clock of a bubble,
// which moves by the delays of the connection alone. Times are half round trips since TCP connect.
func TestRoundTripsToAJob(t *testing.T) {
	const trip = 2 * time.Second
	f := newFarm(t, trip/2)
	var began time.Time
	var mu sync.Mutex
	var seen []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%d %s", time.Since(began)/(trip/2), what))
	}
	accept := f.server.Config.PublicKeyCallback
	f.server.Config.PublicKeyCallback = func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		note("the key is offered")
		return accept(c, key)
	}
	f.server.Config.AuthLogCallback = func(_ ssh.ConnMetadata, method string, err error) {
		note(fmt.Sprintf("%s is judged: %v", method, err == nil))
	}
	run := f.server.Exec
	f.server.Exec = func(cmd string, ch ssh.Channel) uint32 {
		note("the command starts")
		return run(cmd, ch)
	}
	bubble(t, f.bench, func(t *testing.T) {
		began = time.Now()
		f.ready(t, 1)
		note("the job's result")
		_ = f.tree.Close()
	})
	want := []string{
		// 1 versions and algorithms, 2 key exchange and host key, 3 the service of authentication
		"7 none is judged: false",      // 4 which methods are there
		"9 the key is offered",         // 5 whether the first key would do
		"11 publickey is judged: true", // 6 its signature
		"15 the command starts",        // 7 a channel, 8 the command with stage 1, whose magic comes with the answer
		"18 the job's result",          // 9 the agent's source and the job, HELLO and the result
	}
	if !slices.Equal(seen, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
}

// TestManyTargets: 200 targets at a round trip of 300 ms take one target's nine round trips and their turns in the pool.
func TestManyTargets(t *testing.T) {
	const trip = 300 * time.Millisecond
	f := newFarm(t, trip/2)
	bubble(t, f.bench, func(t *testing.T) {
		began := time.Now()
		f.ready(t, 200)
		took := time.Since(began)
		_ = f.tree.Close()
		synctest.Wait()
		if most := 9*trip + 300*time.Millisecond; took != most { // 200 targets, 32 places, 50 ms each: six turns to wait
			t.Errorf("took %v, want %v", took, most)
		}
	})
}

// BenchmarkManyTargets is the same by a real clock.
func BenchmarkManyTargets(b *testing.B) {
	f := newFarm(b, 150*time.Millisecond)
	for b.Loop() {
		f.ready(b, 200)
		_ = f.tree.Close()
	}
}
