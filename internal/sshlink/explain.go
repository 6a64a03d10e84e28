package sshlink

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// wordings are how ssh says what went wrong, in the order in which they decide: several may stand in one text.
var wordings = []struct {
	match *regexp.Regexp
	kind  fault.Kind
	hint  string
}{
	{
		regexp.MustCompile(`REMOTE HOST IDENTIFICATION HAS CHANGED|REVOKED HOST KEY|host key .* revoked|Certificate invalid`), fault.HostKeyChanged,
		"Someone may be eavesdropping, or the host was reinstalled. If that is so, remove the old line with ssh-keygen -R.",
	},
	{
		regexp.MustCompile(`Host key verification failed|host key is known for .* strict checking`), fault.HostKeyUnknown,
		"Compare the fingerprint, then add the key with ssh-keyscan; or set StrictHostKeyChecking=accept-new.",
	},
	{
		regexp.MustCompile(`(?i)too many authentication failures`), fault.AuthFailed,
		"The server allows fewer attempts than there are keys: set ansible_ssh_private_key_file and IdentitiesOnly=yes, so that only that key is offered.",
	},
	{regexp.MustCompile(`Permission denied \(`), fault.AuthFailed, "The server accepted none of the methods that it names."},
	{
		regexp.MustCompile(`Unable to negotiate|no matching .* found`), fault.Unsupported,
		"Allow an algorithm of the server's offer in ssh_config (KexAlgorithms, Ciphers, MACs, HostKeyAlgorithms).",
	},
	{regexp.MustCompile(noProgram), fault.Unreachable, installSSH},
	{regexp.MustCompile(`Could not resolve hostname`), fault.Unreachable, "Check the name in the inventory, or set ansible_host to an address."},
	{regexp.MustCompile(`Connection refused`), fault.Unreachable, "Nothing listens there: check ansible_host and ansible_port, and that sshd runs."},
	{
		regexp.MustCompile(`(?i)timed out`), fault.Unreachable,
		"Check that the host is up and that no firewall is between; ansible_timeout is the time each attempt has.",
	},
	{
		regexp.MustCompile(`kex_exchange_identification|Connection (closed|reset) by`), fault.Unreachable,
		"The server ended the connection before its greeting: it may be overloaded (MaxStartups), or refuse this address.",
	},
}

var (
	offending  = regexp.MustCompile(`Offending (?:key|\S+ key) (?:for IP )?in (\S+)`)
	shownPrint = regexp.MustCompile(`(?s)sent by the remote host is\s+(\S+?)\.?\s`)
	noiseLine  = regexp.MustCompile(`(?m)^(debug\d:|OpenSSH_|Warning: Permanently added).*\n?`)
)

// explain is the error for a program that could not connect, or lost its connection: the dialogue's word, else ssh's own.
func (o *outside) explain(c *child, said []byte) *fault.Error {
	text := noiseLine.ReplaceAllString(fault.Clean(said), "")
	f := o.classify(strings.TrimSpace(text), c)
	if own := c.verdict(); own != nil && f.Kind != fault.HostKeyChanged { // the dialogue knows better why ssh gave up
		copied := *own
		f = &copied
	}
	if o.from != nil {
		f.Hint = strings.TrimSpace(f.Hint + " It is " + o.whose() + " that connects, with the keys, known_hosts and ssh_config of that account.")
	}
	if f.Stderr = strings.TrimSpace(text); strings.TrimSuffix(f.Stderr, ".") == f.Message {
		f.Stderr = ""
	}
	return f
}

// lineAt is the line of text that position at is in.
func lineAt(text string, at int) string {
	begin := strings.LastIndexByte(text[:at], '\n') + 1
	return firstLine(text[begin:])
}

func (o *outside) classify(text string, c *child) *fault.Error {
	f := &fault.Error{Kind: fault.Unreachable, Message: strings.TrimSuffix(lastLine(text), ".")}
	if f.Message == "" {
		f.Message = fmt.Sprintf("%s ended without a word", o.program)
	}
	for _, w := range wordings {
		if at := w.match.FindStringIndex(text); at != nil {
			f.Kind, f.Hint = w.kind, w.hint
			f.Message = strings.TrimSuffix(lineAt(text, at[0]), ".")
			break
		}
	}
	switch {
	case strings.Contains(text, "Certificate invalid"):
		f.Message = "The host certificate of " + o.name + " is not valid"
		f.Hint = "Renew the certificate on the host."
	case f.Kind == fault.HostKeyChanged:
		f.Message = "REMOTE HOST IDENTIFICATION HAS CHANGED: " + o.name
		if m := shownPrint.FindStringSubmatch(text); m != nil {
			f.Message += " shows the key " + m[1]
		}
		if m := offending.FindStringSubmatch(text); m != nil {
			f.Message += ", " + m[1] + " has another"
		}
	case f.Kind == fault.AuthFailed && c.asked.spent() != "":
		f.Hint = c.asked.spent()
	case o.isFirst(c) || lostConnection.MatchString(text) && f.Hint == "":
		f.Kind = fault.AgentDied
		f.Hint = "sshd or the host was stopped, or the network dropped the connection; the next task connects anew."
	}
	return f
}
