package sshlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

var (
	errTimeout   = errors.New("no answer in time")
	errClosed    = errors.New("closed by the daemon")
	errKeepalive = errors.New("the server does not answer keepalives")
)

// stage is how far an attempt has come; a failure is worded by it.
type stage int32

const (
	stageConnect  stage = iota
	stageBanner         // waiting for the server's version
	stageExchange       // keys, host key
	stageAuth
)

// connectFault words a failure to reach host:port as ssh words it.
func connectFault(host string, port int, err error) *fault.Error {
	f := &fault.Error{Kind: fault.Unreachable, Cause: err}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.IsTimeout {
		f.Message = fmt.Sprintf("ssh: Could not resolve hostname %s: %s", host, dnsText(dns))
		f.Hint = "Check the name in the inventory, or set ansible_host to an address."
		f.Cause = nil
		return f
	}
	text := plainText(err)
	f.Message = fmt.Sprintf("ssh: connect to host %s port %d: %s", host, port, text)
	f.Cause = nil
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Hint = "Nothing listens there: check ansible_host and ansible_port, and that sshd runs."
	case text == timedOutText:
		f.Hint = "Check that the host is up and that no firewall is between; ansible_timeout is the time each attempt has."
	}
	return f
}

const timedOutText = "Connection timed out"

func dnsText(err *net.DNSError) string {
	if err.IsNotFound {
		return "Name or service not known"
	}
	return err.Err
}

// plainText is the system's own words for a network error, without Go's prefixes.
func plainText(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if errno == syscall.ETIMEDOUT {
			return timedOutText
		}
		text := errno.Error()
		return strings.ToUpper(text[:1]) + text[1:]
	}
	if errors.Is(err, errTimeout) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return timedOutText
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return "Connection closed by remote host"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

// ctxFault is the error of a context that has ended.
func ctxFault(ctx context.Context, what string) *fault.Error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, errTimeout) {
		return &fault.Error{Kind: fault.TimedOut, Message: what + " took too long"}
	}
	return &fault.Error{Kind: fault.Cancelled, Message: what + " was cancelled", Cause: cause}
}

// handshakeFault words a failure between TCP connect and authentication. lost is what the connection itself reported, if it did.
func (a *attempt) handshakeFault(err, lost error) *fault.Error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	where := fmt.Sprintf("%s port %d", a.cfg.HostName, a.cfg.Port)
	at := stage(a.stage.Load())
	text := err.Error()
	if i := strings.Index(text, "ssh: disconnect, reason "); i >= 0 {
		return disconnectFault(a.cfg, where, text[i+len("ssh: disconnect, reason "):], at)
	}
	f := &fault.Error{Kind: fault.Unreachable}
	switch {
	case lost != nil && at == stageBanner:
		f.Message = fmt.Sprintf("kex_exchange_identification: %s: %s", where, bannerText(lost))
		f.Hint = "The server ended the connection before its greeting: it may be overloaded (MaxStartups), refuse this address, or not speak SSH."
		if errors.Is(lost, errTimeout) {
			f.Message = fmt.Sprintf("Connection to %s timed out during banner exchange", where)
			f.Hint = "Something listens but does not speak SSH: check ansible_port, and the load of the host."
		}
	case lost != nil && at == stageAuth && errors.Is(lost, errTimeout):
		f.Kind = fault.TimedOut
		f.Message = "Authentication with " + where + " timed out"
		f.Hint = "The server accepted the connection but did not answer: look at its authentication log."
	case lost != nil:
		f.Message = fmt.Sprintf("Connection to %s lost: %s", where, plainText(lost))
	case strings.Contains(text, "no common algorithm"):
		f.Kind = fault.Unsupported
		f.Message = fmt.Sprintf("Unable to negotiate with %s: %s", where, strings.TrimPrefix(text, "ssh: handshake failed: "))
		f.Hint = "Allow an algorithm of the server's offer in ssh_config (KexAlgorithms, Ciphers, MACs, HostKeyAlgorithms)."
	case at == stageBanner:
		f.Message = fmt.Sprintf("kex_exchange_identification: %s: Invalid greeting from the server", where)
		f.Hint = "The service on this port does not speak SSH: check ansible_port."
	default:
		f.Message, f.Cause = "Connection to "+where+" failed", err
	}
	return f
}

func bannerText(err error) string {
	if text := plainText(err); text != timedOutText {
		return text
	}
	return "Connection timed out"
}

// disconnectFault words the reason that the server itself gave: "2: Too many authentication failures".
func disconnectFault(c *config, where, reason string, at stage) *fault.Error {
	code, text, _ := strings.Cut(reason, ": ")
	if plain, err := strconv.Unquote(text); err == nil {
		text = plain
	}
	f := &fault.Error{
		Kind:    fault.Unreachable,
		Message: fmt.Sprintf("Received disconnect from %s:%s: %s", where, code, fault.Clean([]byte(text))),
	}
	if at == stageAuth {
		f.Kind = fault.AuthFailed
		f.Hint = fmt.Sprintf("The server gave up on %s@%s.", c.User, c.HostName)
		if strings.Contains(strings.ToLower(text), "too many authentication failures") {
			f.Hint = "The server allows fewer attempts than there are keys: set ansible_ssh_private_key_file and IdentitiesOnly=yes, so that only that key is offered."
		}
	}
	return f
}
