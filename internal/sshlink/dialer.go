// Package sshlink opens SSH connections in process: it finds out what the user's ssh would do for a target, does that with
// golang.org/x/crypto/ssh, and words failures as ssh would. It knows nothing of the tree, of agents' frames or of Ansible beyond
// the options of its ssh plugin, and is the only package that imports x/crypto/ssh.
package sshlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// Options of a Dialer.
type Options struct {
	Log hclog.Logger // nil: none
	// DialContext opens network connections; nil: the system's. It is a field for tests.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dialer is a mux.Dialer.
type Dialer struct {
	log     hclog.Logger
	network func(ctx context.Context, c *config) (net.Conn, error)
	resolve func(ctx context.Context, h *hop.SSH, p *place) (*config, error)
	configs *resolver
	memory  *memory
	jumps   *jumps
}

var _ mux.Dialer = (*Dialer)(nil)

// New returns a Dialer.
func New(o Options) *Dialer {
	d := &Dialer{log: o.Log, configs: newResolver(), memory: &memory{}, jumps: &jumps{}, network: dialTCP}
	d.resolve = d.configs.resolve
	if d.log == nil {
		d.log = hclog.NewNullLogger()
	}
	if o.DialContext != nil {
		d.network = func(ctx context.Context, c *config) (net.Conn, error) {
			return o.DialContext(ctx, "tcp", address(c))
		}
	}
	return d
}

// maxPause is the longest wait between two attempts, as in Ansible's ssh plugin.
const maxPause = 30 * time.Second

// Dial implements mux.Dialer. What the built-in client cannot do is left to the user's ssh. Failures to reach the host are tried
// again as reconnection_retries says; a host that was reached and refuses is not asked twice.
func (d *Dialer) Dial(ctx context.Context, h *hop.SSH, run hop.Run) (mux.Transport, error) {
	return d.DialThrough(ctx, h, run, nil)
}

// DialThrough implements mux.Dialer. There it is the built-in client that connects, and the configuration's own proxies are not asked; or,
// if the hop says so, the intermediary's ssh.
func (d *Dialer) DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, from *mux.Intermediary) (mux.Transport, error) {
	p, err := newPlace(run)
	if err != nil {
		return nil, err
	}
	c := &choice{d: d, hop: h, place: p, from: from}
	if err := c.make(ctx); err != nil {
		return nil, err
	}
	for n := uint32(0); ; n++ {
		t, err := c.connect(ctx)
		if err == nil {
			return t, nil
		}
		if n >= h.ReconnectionRetries || !worthRetrying(err) {
			return nil, err
		}
		pause := min(maxPause, time.Duration(1<<min(n, 10)-1)*time.Second)
		d.log.Debug("connection failed, trying again", "host", h.Host, "attempt", n+1, "pause", pause, "error", err)
		if !wait(ctx, pause) {
			return nil, err
		}
	}
}

// worthRetrying holds for failures of the network; what the host itself refused stays refused.
func worthRetrying(err error) bool {
	f, ok := errors.AsType[*fault.Error](err)
	return ok && (f.Kind == fault.Unreachable || f.Kind == fault.TimedOut)
}

// wait returns false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// newPlace asks the password database, as OpenSSH does: HOME is not looked at.
func newPlace(run hop.Run) (*place, error) {
	u, err := user.Current()
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Message: "Cannot find out who the controller's user is", Cause: err}
	}
	return &place{home: u.HomeDir, user: u.Username, uid: u.Uid, run: run}, nil
}

func unsupported(what, hint string) *fault.Error {
	return &fault.Error{Kind: fault.Unsupported, Message: fmt.Sprintf("%s cannot be used by the built-in SSH client", what), Hint: hint}
}
