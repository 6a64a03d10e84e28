package sshlink

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// errRefused ends authentication when nothing is left to try.
var errRefused = errors.New("nothing left to authenticate with")

// authenticator chooses the methods of one attempt, one after the other, as OpenSSH would. The password is sent once: a server
// that asks again has refused it, and more tries would lock accounts.
type authenticator struct {
	cfg      *config
	ring     *keyring
	password hop.Secret

	keys         []*key // still to offer
	partial      int    // partial successes seen
	allowed      []string
	passwordSent bool
	asked        string      // a question that was not answered
	distrust     atomic.Bool // the host key is not the known one: no password for this server
}

func newAuthenticator(c *config, ring *keyring, password hop.Secret) *authenticator {
	return &authenticator{cfg: c, ring: ring, password: password, keys: ring.keys}
}

// next is the ssh.ClientAuthCallback.
func (a *authenticator) next(ctx *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	if ctx.AllowedMethods != nil {
		a.allowed = ctx.AllowedMethods
	}
	if n := len(ctx.PartialSuccessMethods); n > a.partial {
		a.partial = n
		a.keys = slices.DeleteFunc(slices.Clone(a.ring.keys), func(k *key) bool { return k.used })
	} else if i := slices.IndexFunc(a.ring.keys, func(k *key) bool { return k.err != nil }); i >= 0 && len(a.keys) == 0 {
		// The library leaves publickey when signing fails; the keys after that one have not been offered yet.
		a.ring.skip("%s: cannot sign: %v", a.ring.keys[i], a.ring.keys[i].err)
		a.ring.keys[i].err = nil
		a.keys = a.ring.keys[i+1:]
	}
	for _, method := range a.cfg.PreferredAuths {
		if !slices.Contains(a.allowed, method) {
			continue
		}
		if m := a.method(method); m != nil {
			return m, nil
		}
	}
	return nil, errRefused
}

func (a *authenticator) method(name string) ssh.AuthMethod {
	canAnswer := !a.password.IsZero() && !a.passwordSent && !a.distrust.Load()
	switch {
	case name == "publickey" && a.cfg.PubkeyAuth && len(a.keys) > 0:
		signers := make([]ssh.Signer, len(a.keys))
		for i, k := range a.keys {
			signers[i] = k
		}
		a.keys = nil
		return ssh.PublicKeys(signers...)
	case name == "keyboard-interactive" && a.cfg.KbdInteractiveAuth && canAnswer && a.asked == "":
		return ssh.KeyboardInteractive(a.answer)
	case name == "password" && a.cfg.PasswordAuth && canAnswer:
		return ssh.PasswordCallback(func() (string, error) {
			a.passwordSent = true
			return string(a.password.Reveal()), nil
		})
	default:
		return nil
	}
}

// answer is the ssh.KeyboardInteractiveChallenge: one question is answered with the password, once.
func (a *authenticator) answer(_, _ string, questions []string, _ []bool) ([]string, error) {
	switch {
	case len(questions) == 0:
		return nil, nil
	case len(questions) == 1 && !a.passwordSent:
		a.passwordSent = true
		return []string{string(a.password.Reveal())}, nil
	default:
		a.asked = strings.TrimSpace(strings.Join(questions, " "))
		return nil, errRefused
	}
}

// refused is the error for a server that takes nothing of what we have.
func (a *authenticator) refused() error {
	f := &fault.Error{
		Kind:    fault.AuthFailed,
		Message: fmt.Sprintf("%s@%s: Permission denied (%s)", a.cfg.User, a.cfg.HostName, strings.Join(a.allowed, ",")),
	}
	f.Hint = a.remedy()
	if left := a.leftOut(); left != "" {
		return &refusal{fault: f, left: left, passwordRefused: a.passwordSent}
	}
	return f
}

func (a *authenticator) remedy() string {
	var parts []string
	wantsKeys := slices.Contains(a.allowed, "publickey")
	wantsPassword := slices.Contains(a.allowed, "password") || slices.Contains(a.allowed, "keyboard-interactive")
	switch n := len(a.ring.keys); {
	case !wantsKeys || !a.cfg.PubkeyAuth:
	case n == 0:
		parts = append(parts, "No key was offered: set ansible_ssh_private_key_file, or load one into the agent")
	default:
		parts = append(parts, "The server takes none of the keys offered: "+shortList(a.ring.keys))
	}
	if wantsKeys && len(a.ring.skipped) > 0 {
		parts = append(parts, "not offered: "+shortList(a.ring.skipped))
	}
	switch {
	case a.asked != "":
		parts = append(parts, fmt.Sprintf("the server asked %q, which the password does not answer", fault.Clean([]byte(a.asked))))
	case a.passwordSent:
		parts = append(parts, "the password was refused")
	case !wantsPassword:
	case a.distrust.Load():
		parts = append(parts, "no password is sent to a server whose host key has changed")
	case a.password.IsZero():
		parts = append(parts, "no password was given (ansible_password, --ask-pass)")
	default:
		parts = append(parts, "the configuration forbids the password (PasswordAuthentication, PreferredAuthentications)")
	}
	if slices.Contains(a.allowed, "gssapi-with-mic") && a.cfg.GSSAPIAuth {
		parts = append(parts, "GSSAPI was not tried")
	}
	if len(parts) == 0 {
		return "The server offers no method that can be used here."
	}
	return strings.Join(parts, "; ") + "."
}

func shortList[T any](all []T) string {
	const most = 6
	var words []string
	for i, v := range all {
		if i == most {
			words = append(words, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		words = append(words, fmt.Sprint(v))
	}
	return strings.Join(words, ", ")
}
