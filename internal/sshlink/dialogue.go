package sshlink

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// dialogue answers what the ssh program asks on its terminal: each secret once, and no question that it does not know.
type dialogue struct {
	name       string
	password   hop.Secret
	passphrase hop.Secret
	pin        bool // the password is a token's PIN

	mu           sync.Mutex
	text         string // since the last answer
	passwordSent bool
	phraseSent   bool
	ended        *fault.Error
}

func newDialogue(h *hop.SSH, name string) *dialogue {
	d := &dialogue{name: name, passphrase: h.PrivateKeyPassphrase, pin: usesPKCS11(h)}
	if h.PasswordMechanism != "disable" {
		d.password = h.Password
	}
	return d
}

// quiet is how long the terminal must say nothing more before a text that looks like a question counts as one.
const quiet = 300 * time.Millisecond

// converse reads the terminal to its end. It returns true when the program has to be ended, as its question has no answer.
func (d *dialogue) converse(terminal mux.Terminal) bool {
	buf := make([]byte, 4096)
	for {
		n, err := terminal.Read(buf)
		if isTimeout(err) {
			return d.giveUp()
		}
		if err != nil {
			return false
		}
		answer, known := d.hear(string(buf[:n]))
		if d.verdict() != nil && answer == nil {
			return true
		}
		if answer != nil {
			if _, err := terminal.Write(answer); err != nil {
				return true
			}
		}
		until := time.Time{}
		if !known {
			until = time.Now().Add(quiet)
		}
		if err := terminal.SetReadDeadline(until); err != nil {
			return true
		}
	}
}

// What OpenSSH asks. It never translates its texts; those that a server sends (keyboard-interactive) may be anything.
var (
	asksTrust      = regexp.MustCompile(`continue connecting \(yes/no`)
	asksPassphrase = regexp.MustCompile(`Enter passphrase for (?:key )?'?([^'\n]*?)'?: $`)
	asksPIN        = regexp.MustCompile(`Enter PIN for [^\n]*: $`)
	asksPassword   = regexp.MustCompile(`(?i)(?:password|passcode)[^\n]*[:：] ?$`)
	asksServer     = regexp.MustCompile(`(?i)(?:(?:password|passcode)[^\n]*|(?:^|[\r\n])\(\S+@\S+\) [^\n]*)[:：?>] ?$`)
	fingerprint    = regexp.MustCompile(`(\S+) key fingerprint is (\S+?)\.?\r?\n`)
)

// hear takes what came next on the terminal, and returns the answer if it is a question. known is false for a text that may be one,
// or the beginning of one.
func (d *dialogue) hear(more string) (answer []byte, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.text += more; len(d.text) > 4*fault.MaxStderr {
		d.text = d.text[len(d.text)-4*fault.MaxStderr:]
	}
	reply := func(s hop.Secret) ([]byte, bool) {
		d.text = ""
		return append(append([]byte{}, s.Reveal()...), '\n'), true
	}
	switch {
	case asksTrust.MatchString(d.text):
		d.ended = d.untrusted()
		d.text = ""
		return []byte("no\n"), true
	case asksPassphrase.MatchString(d.text):
		key := asksPassphrase.FindStringSubmatch(d.text)[1]
		if d.passphrase.IsZero() || d.phraseSent {
			return d.refuse(fmt.Sprintf("The key %s needs a passphrase, which is missing or wrong", key),
				"Set ansible_private_key_passphrase, or load the key into an ssh-agent.")
		}
		d.phraseSent = true
		return reply(d.passphrase)
	case asksPIN.MatchString(d.text):
		if !d.pin || d.passwordSent {
			return d.refuse(fmt.Sprintf("The token asks %q, and the PIN is missing or wrong", d.question()),
				"With ansible_ssh_pkcs11_provider the PIN is ansible_password.")
		}
		d.passwordSent = true
		return reply(d.password)
	case asksServer.MatchString(d.text):
		switch {
		case d.password.IsZero():
			return d.refuse(fmt.Sprintf("%s: the server asks %q, and no password was given", d.name, d.question()),
				"Set ansible_password, or use --ask-pass.")
		case d.passwordSent && asksPassword.MatchString(d.text):
			return d.refuse(d.name+": Permission denied", passwordRefused)
		case d.passwordSent:
			return nil, false
		}
		d.passwordSent = true
		return reply(d.password)
	}
	return nil, strings.HasSuffix(d.text, "\n") || d.text == ""
}

const passwordRefused = "The password was refused."

func (d *dialogue) refuse(message, hint string) ([]byte, bool) {
	d.ended = &fault.Error{Kind: fault.AuthFailed, Message: message, Hint: hint}
	return nil, true
}

// question is the last line that was heard, for people.
func (d *dialogue) question() string { return strings.TrimSpace(fault.Clean([]byte(lastLine(d.text)))) }

// giveUp is for a question that nobody knows.
func (d *dialogue) giveUp() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = d.refuse(fmt.Sprintf("%s: ssh asks %q, which nobody can answer here", d.name, d.question()),
		"Use a key, or open a control connection (ControlMaster, ControlPath) before the run: it is used while it lives.")
	return true
}

// untrusted is the error for the question whether to trust a key.
func (d *dialogue) untrusted() *fault.Error {
	f := &fault.Error{
		Kind: fault.HostKeyUnknown, Message: "Host key verification failed: the host key of " + d.name + " is in no known_hosts file",
		Hint: "Compare the fingerprint, then add the key with ssh-keyscan; or set StrictHostKeyChecking=accept-new.",
	}
	if m := fingerprint.FindStringSubmatch(d.text); m != nil {
		f.Message = fmt.Sprintf("Host key verification failed: the %s key %s of %s is in no known_hosts file", m[1], m[2], d.name)
	}
	return f
}

func (d *dialogue) verdict() *fault.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// spent says what was given in vain, once ssh has been refused; empty if nothing was.
func (d *dialogue) spent() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.passwordSent:
		return passwordRefused
	case d.phraseSent:
		return "The key's passphrase may be wrong: ansible_private_key_passphrase."
	default:
		return ""
	}
}
