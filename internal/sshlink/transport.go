package sshlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// transport is an authenticated connection; it is a mux.Transport.
type transport struct {
	conn  ssh.Conn
	wire  *wire
	cfg   *config
	place *place
	name  string
	notes []mux.Note
	below *jumpHost // the jump host that this one runs through; closed after it

	forwardsAgent bool
	slots         chan struct{} // one for each session that may be open
	live          atomic.Int32  // sessions that are open
	opened        atomic.Int64  // sessions that there ever were
	freed         chan struct{} // has a value when a session has ended since somebody looked

	wg     sync.WaitGroup
	done   chan struct{}
	mu     sync.Mutex
	closed bool  // no caller may enter
	err    error // why it ended; the first reason counts
	open   map[*process]struct{}
}

var _ mux.Transport = (*transport)(nil)

// maxSessions stays below sshd's MaxSessions of 10, which other users of the account's limits may count against too.
const maxSessions = 8

func newTransport(a *attempt, conn ssh.Conn, w *wire, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request, distrusted bool) *transport {
	t := &transport{
		conn: conn, wire: w, cfg: a.cfg, place: a.place, name: fmt.Sprintf("%s@%s", a.cfg.User, a.cfg.HostName),
		forwardsAgent: !distrusted && a.cfg.ForwardAgent != "no" && a.cfg.ForwardAgent != "",
		slots:         make(chan struct{}, maxSessions), freed: make(chan struct{}, 1), done: make(chan struct{}),
		open: make(map[*process]struct{}),
	}
	t.wg.Add(1) // until Close, so that wg cannot be found empty while callers enter
	t.wg.Go(func() { ssh.DiscardRequests(requests) })
	t.wg.Go(func() { t.serveChannels(channels) })
	t.wg.Go(func() {
		err := conn.Wait()
		t.fail(err)
		close(t.done)
	})
	if a.cfg.AliveInterval > 0 {
		t.wg.Go(t.keepAlive)
	}
	return t
}

// Done implements mux.Transport.
func (t *transport) Done() <-chan struct{} { return t.done }

// Err implements mux.Transport.
func (t *transport) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Notes implements mux.Transport.
func (t *transport) Notes() []mux.Note { return t.notes }

// Shared implements mux.Transport.
func (*transport) Shared() bool { return true }

// Close implements mux.Transport.
func (t *transport) Close() error {
	t.fail(errClosed)
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	t.mu.Unlock()
	_ = t.conn.Close()
	for _, p := range t.processes() {
		_ = p.Close()
	}
	if first {
		t.wg.Done()
	}
	t.wg.Wait()
	if t.below != nil {
		return t.below.Close()
	}
	return nil
}

// enter lets a caller start goroutines on t, until leave.
func (t *transport) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return t.err
	}
	t.wg.Add(1)
	return nil
}

func (t *transport) leave() { t.wg.Done() }

// keep and forget know the processes that Close has to end.
func (t *transport) keep(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[p] = struct{}{}
}

func (t *transport) forget(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, p)
}

func (t *transport) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

func (t *transport) processes() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.open))
}

// fail records why the connection ends.
func (t *transport) fail(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return
	}
	f := &fault.Error{Kind: fault.AgentDied}
	switch {
	case errors.Is(cause, errClosed):
		f.Kind, f.Message = fault.Cancelled, "The connection to "+t.name+" was closed by the daemon"
	case errors.Is(cause, errKeepalive):
		f.Message = fmt.Sprintf("Timeout, server %s not responding", t.cfg.HostName)
		f.Hint = "The host did not answer for ServerAliveInterval times ServerAliveCountMax."
	case cause == nil || errors.Is(cause, io.EOF):
		f.Message = fmt.Sprintf("Connection to %s closed by remote host", t.cfg.HostName)
		f.Hint = "sshd or the host was stopped, or the network dropped the connection; the next task connects anew."
	default:
		f.Message = fmt.Sprintf("Connection to %s lost: %s", t.cfg.HostName, plainText(cause))
	}
	t.err = f
}

// keepAlive ends a connection whose server is silent, as ServerAliveInterval asks.
func (t *transport) keepAlive() {
	ticker := time.NewTicker(t.cfg.AliveInterval)
	defer ticker.Stop()
	answered := make(chan struct{}, 1)
	asking, missed, seen := false, 0, t.wire.received.Load()
	for {
		select {
		case <-t.done:
			return
		case <-answered:
			asking = false
			continue
		case <-ticker.C:
		}
		if now := t.wire.received.Load(); now != seen {
			seen, missed = now, 0
			continue
		}
		if missed++; missed > t.cfg.AliveCountMax {
			t.fail(errKeepalive)
			_ = t.conn.Close()
			return
		}
		if !asking {
			asking = true
			t.wg.Go(func() {
				_, _, _ = t.conn.SendRequest("keepalive@openssh.com", true, nil)
				answered <- struct{}{}
			})
		}
	}
}

// serveChannels answers channels that the server opens: agent forwarding if it was asked for, nothing else.
func (t *transport) serveChannels(channels <-chan ssh.NewChannel) {
	for offer := range channels {
		if offer.ChannelType() != agentChannel || !t.forwardsAgent {
			_ = offer.Reject(ssh.UnknownChannelType, "not offered")
			continue
		}
		t.wg.Go(func() { t.serveAgent(offer) })
	}
}

const agentChannel = "auth-agent@openssh.com"

// serveAgent joins one channel with the run's agent.
func (t *transport) serveAgent(offer ssh.NewChannel) {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", t.forwardedSocket())
	if err != nil {
		_ = offer.Reject(ssh.ConnectionFailed, "no agent")
		return
	}
	defer func() { _ = conn.Close() }()
	ch, requests, err := offer.Accept()
	if err != nil {
		return
	}
	t.wg.Go(func() { ssh.DiscardRequests(requests) })
	t.wg.Go(func() {
		_, _ = io.Copy(conn, ch)
		_ = conn.Close() // ends the other direction, too
	})
	_, _ = io.Copy(ch, conn)
	_ = ch.Close()
}

// forwardedSocket is the agent that ForwardAgent names.
func (t *transport) forwardedSocket() string {
	switch f := t.cfg.ForwardAgent; {
	case yes(f):
		return agentSocket(t.cfg, t.place)
	case len(f) > 1 && f[0] == '$' && f[1] != '{':
		return t.place.env(f[1:])
	default:
		return t.place.path(t.cfg, f)
	}
}

// openChannel is conn.OpenChannel with a context. A channel that opens after its asker has left is closed.
func (t *transport) openChannel(ctx context.Context, kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	type opened struct {
		ch       ssh.Channel
		requests <-chan *ssh.Request
		err      error
	}
	result := make(chan opened)
	t.wg.Go(func() {
		var o opened
		o.ch, o.requests, o.err = t.conn.OpenChannel(kind, payload)
		select {
		case result <- o:
		case <-ctx.Done():
			if o.err == nil {
				_ = o.ch.Close()
				ssh.DiscardRequests(o.requests)
			}
		}
	})
	select {
	case o := <-result:
		return o.ch, o.requests, o.err
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
}
