package sshlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// The values of mitogen_ssh_transport.
const (
	native  = "native"
	openssh = "openssh"
	via     = "via" // an intermediary's ssh
)

// choice is which client connects: the built-in one, unless it cannot do what is asked.
type choice struct {
	d     *Dialer
	hop   *hop.SSH
	place *place
	cfg   *config // nil: the program is not one to ask
	why   string  // for an ssh program; empty: the built-in client

	from *mux.Intermediary // nil: the connection is made from here
}

// make finds out what is to be done, and by whom.
func (c *choice) make(ctx context.Context) error {
	if c.hop.Transport == via {
		if c.from == nil {
			return &fault.Error{
				Kind: fault.Unsupported, Message: "mitogen_ssh_transport is via, and there is no host that this one is reached through",
				Hint: "Set mitogen_via, or unset mitogen_ssh_transport.",
			}
		}
		c.why = "mitogen_ssh_transport is via"
		return nil
	}
	stock := c.place.isStockSSH(c.hop.Executable)
	switch {
	case c.hop.Transport == openssh:
		c.why = "mitogen_ssh_transport is openssh"
	case !stock:
		c.why = "ansible_ssh_executable is set"
	case usesPKCS11(c.hop):
		c.why = "ansible_ssh_pkcs11_provider is set"
	}
	if stock {
		var err error
		if c.cfg, err = c.d.resolve(ctx, c.hop, c.place); err != nil {
			return err
		}
		if c.why == "" {
			c.why = c.foreign()
		}
	}
	if c.why != "" && c.from != nil {
		return unsupported("Behind another host ("+c.why+")",
			"mitogen_ssh_transport: via has the ssh program of that host connect; or ProxyJump may do instead of mitogen_via.")
	}
	if c.why != "" && c.hop.Transport == native {
		f := unsupported("Here ("+c.why+")", "")
		f.Hint = "Unset mitogen_ssh_transport: the user's ssh then connects."
		return f
	}
	return nil
}

// foreign says what of the configuration the built-in client cannot do.
func (c *choice) foreign() string {
	if names := c.cfg.foreign(); names != "" {
		return "ssh_config has " + names
	}
	if c.cfg.RevokedHostKeys != "" && isKRL(c.place.path(c.cfg, c.cfg.RevokedHostKeys)) {
		return "RevokedHostKeys is a key revocation list"
	}
	if c.cfg.ControlPath != "" && c.from == nil && answers(c.cfg.ControlPath) {
		return "the control connection " + c.cfg.ControlPath + " is open"
	}
	return ""
}

// answers reports whether somebody listens on a UNIX socket.
func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second) //nolint:noctx // a UNIX socket answers at once
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// connect makes one attempt. Where the built-in client finds that it cannot do what the host wants, the user's ssh goes on.
func (c *choice) connect(ctx context.Context) (mux.Transport, error) {
	if c.why != "" {
		return c.outside(ctx, c.hop, c.why)
	}
	alone := c.hop.Transport == native || c.from != nil
	if why := c.d.memory.recall(c.hop); why != "" && !alone {
		t, err := c.outside(ctx, c.hop, why)
		if err != nil {
			c.d.memory.note(c.hop, "")
		}
		return t, err
	}
	var forward mux.Forward
	if c.from != nil {
		forward = c.from.Forward
	}
	t, err := c.d.connect(ctx, c.cfg, c.place, c.hop, forward)
	if err == nil {
		return t, nil
	}
	why, passwordRefused := left(err)
	if why == "" || alone || ctx.Err() != nil {
		return nil, err
	}
	h := c.hop
	if passwordRefused { // more tries would lock accounts
		own := *h
		own.Password = hop.Secret{}
		h = &own
	}
	through, err := c.outside(ctx, h, why)
	if err != nil {
		return nil, err
	}
	c.d.memory.note(c.hop, why)
	return through, nil
}

// outside is dialOutside without a nil pointer in an interface.
func (c *choice) outside(ctx context.Context, h *hop.SSH, why string) (mux.Transport, error) {
	t, err := c.d.dialOutside(ctx, c.cfg, c.place, h, c.from, why)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// refusal is a failed authentication of the built-in client, with what the user's ssh could still try.
type refusal struct {
	fault           *fault.Error
	left            string
	passwordRefused bool
}

// Error implements error.
func (r *refusal) Error() string { return r.fault.Error() }

// Unwrap keeps the fault findable.
func (r *refusal) Unwrap() error { return r.fault }

// left says what the user's ssh could do after the built-in client's failure; empty if it would fail as well.
func left(err error) (why string, passwordRefused bool) {
	if r, ok := errors.AsType[*refusal](err); ok {
		return "the server wants " + r.left, r.passwordRefused
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Kind == fault.Unsupported {
		return f.Message, false
	}
	return "", false
}

// memory is which accounts the built-in client could not reach, so that they need not be tried again.
type memory struct {
	mu    sync.Mutex
	known map[string]string
}

func (m *memory) note(h *hop.SSH, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if why == "" {
		delete(m.known, accountOf(h))
		return
	}
	if m.known == nil || len(m.known) >= maxAnswers {
		m.known = map[string]string{}
	}
	m.known[accountOf(h)] = why
}

func (m *memory) recall(h *hop.SSH) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known[accountOf(h)]
}

// accountOf names what a hop says of the account, without its secrets.
func accountOf(h *hop.SSH) string {
	words := slices.Concat([]string{h.Host, fmt.Sprint(h.Port), h.User, h.PrivateKeyFile, fmt.Sprint(h.PrivateKey.IsZero(), h.Password.IsZero())}, h.Args, h.LateArgs)
	return strings.Join(words, "\x00")
}
