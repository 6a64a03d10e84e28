package sshlink

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// authGrace is how long authentication may take once the host key is accepted: PAM may be slow, and sshd's own limit
// (LoginGraceTime) is two minutes.
const authGrace = 120 * time.Second

// attempt is one try to connect and authenticate.
type attempt struct {
	d     *Dialer
	cfg   *config
	place *place
	hop   *hop.SSH
	stage atomic.Int32
}

// connect makes one attempt; via opens the connection to the server, nil: the configuration says how.
func (d *Dialer) connect(ctx context.Context, c *config, p *place, h *hop.SSH, via mux.Forward) (*transport, error) {
	a := &attempt{d: d, cfg: c, place: p, hop: h}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := newLimit(c.ConnectTimeout, func() { cancel(errTimeout) })
	defer limit.Stop()

	conn, err := a.open(ctx, via)
	if err != nil {
		if ended(ctx) {
			return nil, ctxFault(ctx, "Connecting to "+c.HostName)
		}
		if context.Cause(ctx) != nil {
			err = context.Cause(ctx)
		}
		if _, ok := errors.AsType[*fault.Error](err); ok {
			return nil, err
		}
		return nil, connectFault(c.HostName, c.Port, err)
	}
	w := &wire{Conn: conn, greeting: []byte("\n")}
	t, err := a.handshake(ctx, w, limit)
	if err != nil {
		_ = conn.Close()
		if ended(ctx) {
			return nil, ctxFault(ctx, "Connecting to "+c.HostName)
		}
		lost := w.lost()
		if cause := context.Cause(ctx); cause != nil {
			lost = cause
		}
		f := explain(a.handshakeFault(err, lost), conn)
		if r, refused := errors.AsType[*refusal](err); refused {
			return nil, &refusal{fault: f, left: r.left, passwordRefused: r.passwordRefused}
		}
		return nil, f
	}
	return t, nil
}

// ended reports whether ctx has ended for a reason of the caller's, not by the attempt's own limit.
func ended(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), errTimeout)
}

// newLimit is a timer that never fires if d is zero.
func newLimit(d time.Duration, f func()) *time.Timer {
	if d > 0 {
		return time.AfterFunc(d, f)
	}
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}

// open gets a byte stream to the server.
func (a *attempt) open(ctx context.Context, via mux.Forward) (net.Conn, error) {
	switch c := a.cfg; {
	case via != nil:
		return via(ctx, c.HostName, c.Port)
	case c.ProxyJump != "":
		return a.jump(ctx)
	case c.ProxyCommand != "":
		return a.proxyCommand(ctx)
	}
	for n := 1; ; n++ {
		conn, err := a.d.network(ctx, a.cfg)
		if err == nil || n >= a.cfg.ConnectionAttempts || !wait(ctx, time.Second) {
			return conn, err
		}
	}
}

func address(c *config) string { return net.JoinHostPort(c.HostName, strconv.Itoa(c.Port)) }

// dialTCP connects as ssh would; TCP_NODELAY is Go's default.
func dialTCP(ctx context.Context, c *config) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if c.TCPKeepAlive {
		d.KeepAlive = 0 // the default: on
	}
	if c.BindAddress != "" {
		ip := net.ParseIP(c.BindAddress)
		if ip == nil {
			return nil, unsupported("BindAddress "+c.BindAddress, "Give an IP address.")
		}
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	network := "tcp"
	switch c.AddressFamily {
	case "inet":
		network = "tcp4"
	case "inet6":
		network = "tcp6"
	}
	return d.DialContext(ctx, network, address(c))
}

// handshake speaks SSH on w up to an authenticated connection.
func (a *attempt) handshake(ctx context.Context, w *wire, limit *time.Timer) (*transport, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	a.stage.Store(int32(stageBanner))
	w.greeted = func() { a.stage.CompareAndSwap(int32(stageBanner), int32(stageExchange)) }
	trust := newHostKeys(a.cfg, a.place)
	ring, err := loadKeys(ctx, a.cfg, a.place, a.hop)
	if err != nil {
		return nil, err
	}
	defer ring.close()
	auth := newAuthenticator(a.cfg, ring, a.password())
	trust.distrust = func() { auth.distrust.Store(true) }
	cc := &ssh.ClientConfig{
		User: a.cfg.User, AuthCallback: auth.next, HostKeyAlgorithms: trust.algorithms(), ClientVersion: clientVersion,
		HostKeyCallback: func(name string, remote net.Addr, key ssh.PublicKey) error {
			err := trust.check(name, remote, key)
			if err == nil {
				a.stage.Store(int32(stageAuth))
				if a.cfg.ConnectTimeout > 0 {
					limit.Reset(max(authGrace, a.cfg.ConnectTimeout))
				}
			}
			return err
		},
	}
	if err := a.algorithms(&cc.Config); err != nil {
		return nil, err
	}
	conn, channels, requests, err := ssh.NewClientConn(w, address(a.cfg), cc)
	if err != nil {
		if errors.Is(err, errRefused) && w.lost() == nil && ctx.Err() == nil {
			return nil, auth.refused()
		}
		return nil, err
	}
	if !stop() { // ctx has ended meanwhile, and the connection with it
		_ = conn.Close()
		_ = conn.Wait()
		return nil, context.Cause(ctx)
	}
	t := newTransport(a, conn, w, channels, requests, auth.distrust.Load())
	t.notes = trust.notes
	return t, nil
}

const clientVersion = "SSH-2.0-mitogen-mux"

// password is the one to answer with. Ansible's password_mechanism "disable" means that nobody answers.
func (a *attempt) password() hop.Secret {
	if a.hop.PasswordMechanism == "disable" || a.cfg.BatchMode {
		return hop.Secret{}
	}
	return a.hop.Password
}

// algorithms narrows the library's lists to what the configuration asks for, in its order. Lists that are OpenSSH's own defaults
// ask for nothing: then the library's order holds, which prefers what is fast here.
func (a *attempt) algorithms(to *ssh.Config) error {
	able, weak := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	std := &config{}
	if len(a.cfg.Ciphers) > 0 {
		std = a.d.configs.standard(a.place, a.hop.Executable)
	}
	for _, one := range []struct {
		name           string
		want, standard []string
		able, weak     []string
		to             *[]string
	}{
		{"Ciphers", a.cfg.Ciphers, std.Ciphers, able.Ciphers, weak.Ciphers, &to.Ciphers},
		{"MACs", a.cfg.MACs, std.MACs, able.MACs, weak.MACs, &to.MACs},
		{"KexAlgorithms", a.cfg.Kexs, std.Kexs, able.KeyExchanges, weak.KeyExchanges, &to.KeyExchanges},
		{"HostKeyAlgorithms", a.cfg.HostKeyAlgorithms, nil, able.HostKeys, weak.HostKeys, new([]string)},
	} {
		if len(one.want) == 0 || slices.Equal(one.want, one.standard) {
			continue
		}
		*one.to = supported(one.want, one.able, one.weak)
		if len(*one.to) == 0 {
			return unsupported("None of "+one.name+" "+shortList(one.want), "Allow one more in ssh_config, or set mitogen_enabled: false for this host.")
		}
	}
	to.RekeyThreshold = a.cfg.RekeyBytes
	return nil
}
