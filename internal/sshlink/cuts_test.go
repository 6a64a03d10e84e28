package sshlink

import (
	"context"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// TestCutsAgainstSSHD cuts connections to a real server somewhere on the way to a command's result: each is the result or a typed error.
// goleak sees that nothing is left.
func TestCutsAgainstSSHD(t *testing.T) {
	if testing.Short() {
		t.Skip("fifty connections")
	}
	const seed, cuts = 7, 50
	a := startAccount(t, "")
	b := &bench{dialer: New(Options{}), hop: a.hop, run: a.run}
	network := b.dialer.network
	b.dialer.network = func(ctx context.Context, c *config) (net.Conn, error) {
		conn, err := network(ctx, c)
		if err == nil {
			conn = b.wrap(conn)
		}
		return conn, err
	}
	var whole *sshtest.Faults
	b.wrap = func(c net.Conn) net.Conn { whole = sshtest.Break(c, &sshtest.Faults{}); return whole }
	if err := b.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, received, sent := whole.Used()
	random, failed := rand.New(rand.NewPCG(seed, cuts)), 0
	for i := range cuts {
		cut := &sshtest.Faults{Received: 1 + random.Int64N(received)}
		if i%2 == 1 {
			cut = &sshtest.Faults{Sent: 1 + random.Int64N(sent)}
		}
		b.wrap = func(c net.Conn) net.Conn { return sshtest.Break(c, cut) }
		if err := b.ready(t.Context()); err != nil {
			failed++
			failsAs(t, err, cutKinds...)
		}
	}
	if failed < cuts/2 {
		t.Errorf("only %d of %d cuts were seen", failed, cuts)
	}
}
