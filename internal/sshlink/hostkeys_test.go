package sshlink

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// TestHostKeysAgainstSSHD judges a real server by known_hosts files of all kinds. The text of a case may use {name}, the
// server's name there; {key}, {rsa}, {other}: key type and key; {ca}: the authority.
func TestHostKeysAgainstSSHD(t *testing.T) { bothWays(t, testHostKeysAgainstSSHD) }

func testHostKeysAgainstSSHD(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "")
	other := sshtest.Signer(t, sshtest.NewKey(t, "ed25519")).PublicKey()
	name := fmt.Sprintf("[%s]:%d", a.Host, a.Port)
	line := func(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }
	shown := a.Keys["ed25519"].PublicKey()
	salt := []byte("12345678901234567890")
	hashed := knownHash(name, salt)
	for label, c := range map[string]struct {
		known  string
		config string
		off    bool // host_key_checking: false
		want   fault.Kind
		says   []string
		after  string // what the file ends with
	}{
		"known":          {known: "{name} {key}"},
		"hashed":         {known: hashed + " {key}"},
		"hashed other":   {known: hashed + " {other}", want: fault.HostKeyChanged, says: []string{":1 ", "SHA256:", "ssh-keygen"}},
		"several names":  {known: "h9,{name},h8 {key}"},
		"pattern":        {known: "[127.0.0.*]:* {key}"},
		"negated":        {known: "![127.0.0.1]:*,[127.*]:* {key}", want: fault.HostKeyUnknown},
		"without port":   {known: "127.0.0.1 {key}"},
		"other without":  {known: "127.0.0.1 {other}", want: fault.HostKeyUnknown},
		"second of two":  {known: "{name} {other}\n{name} {key}"},
		"bad lines":      {known: "# comment\n\nnonsense\n{name} ssh-ed25519 !!!\n@odd x y z\n{name} {key}"},
		"unknown, ask":   {known: "", want: fault.HostKeyUnknown, says: []string{"SHA256:", "ssh-keyscan", "ED25519"}},
		"unknown, yes":   {known: "", config: "StrictHostKeyChecking yes", want: fault.HostKeyUnknown},
		"unknown, new":   {known: "h9 {other}", config: "StrictHostKeyChecking accept-new", after: "\n{name} {key}\n"},
		"unknown, off":   {known: "", off: true, after: "{name} {key}\n"},
		"changed":        {known: "\n{name} {other}", want: fault.HostKeyChanged, says: []string{":2 ", "REMOTE HOST IDENTIFICATION HAS CHANGED", "-R '{name}'"}},
		"changed, new":   {known: "{name} {other}", config: "StrictHostKeyChecking accept-new", want: fault.HostKeyChanged},
		"changed, off":   {known: "{name} {other}", off: true},
		"other type":     {known: "{name} {rsa}", want: fault.HostKeyChanged},
		"revoked":        {known: "{name} {key}\n@revoked {name} {key}", want: fault.HostKeyChanged, says: []string{"revoked", ":2"}},
		"revoked, off":   {known: "@revoked * {key}", off: true},
		"revoked else":   {known: "{name} {key}\n@revoked h9 {key}"},
		"ca only":        {known: "@cert-authority * {other}", want: fault.HostKeyUnknown},
		"alias":          {known: "web {key}", config: "HostKeyAlias web"},
		"alias, unknown": {known: "{name} {key}", config: "HostKeyAlias web", want: fault.HostKeyUnknown, says: []string{"web"}},
		"localhost":      {known: "{name} {other}", config: "NoHostAuthenticationForLocalhost yes"},
	} {
		t.Run(label, func(t *testing.T) {
			fill := strings.NewReplacer("{name}", name, "{key}", line(shown), "{other}", line(other), "{rsa}",
				line(sshtest.Signer(t, sshtest.NewKey(t, "rsa")).PublicKey())).Replace
			file := filepath.Join(t.TempDir(), "known_hosts")
			sshtest.WriteFile(t, file, fill(c.known))
			h := *a.hop
			h.Transport = way
			h.HostKeyChecking = !c.off
			h.Args = a.args(t, "UserKnownHostsFile "+file+"\n"+c.config)
			link, err := New(Options{}).Dial(t.Context(), &h, a.run)
			if err == nil {
				_ = link.Close()
			}
			if c.want == 0 && err != nil {
				t.Fatal(err)
			}
			if c.want != 0 {
				f := typed(t, err, c.want)
				for _, word := range c.says {
					if way == openssh {
						break // the words are ssh's own
					}
					if !strings.Contains(f.Message+" "+f.Hint, fill(word)) {
						t.Errorf("%q, hint %q: does not say %q", f.Message, f.Hint, fill(word))
					}
				}
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if way == openssh { // releases differ in whether they finish somebody's last line
				c.after = strings.TrimPrefix(c.after, "\n")
			}
			if want := fill(c.after); c.after != "" && !strings.HasSuffix(string(text), want) {
				t.Errorf("known_hosts is %q, want %q at its end", text, want)
			} else if c.after == "" && string(text) != fill(c.known) {
				t.Errorf("known_hosts was changed: %q", text)
			}
		})
	}
}

func knownHash(name string, salt []byte) string {
	enc := base64.StdEncoding.EncodeToString
	return "|1|" + enc(salt) + "|" + enc(hashName(name, salt))
}

// TestHashedNameIsSSHs: what accept-new writes with HashKnownHosts is found by ssh-keygen -F and by us.
func TestHashedNameIsSSHs(t *testing.T) { bothWays(t, testHashedNameIsSSHs) }

func testHashedNameIsSSHs(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "")
	keygen := a.program(t, "ssh-keygen")
	file := filepath.Join(t.TempDir(), "known_hosts")
	if way == native { // which makes the folder, too
		file = filepath.Join(t.TempDir(), "d", "known_hosts")
	}
	a.hop.Args = a.args(t, "HashKnownHosts yes\nStrictHostKeyChecking accept-new\nUserKnownHostsFile "+file)
	for range 2 {
		_ = a.dial(t, way).Close()
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 1 || !strings.HasPrefix(string(text), "|1|") {
		t.Errorf("known_hosts is %q", text)
	}
	a.must(t, keygen, "-F", fmt.Sprintf("[%s]:%d", a.Host, a.Port), "-f", file)
}

// TestHostCertificates: a server that shows a certificate of a known authority, good and bad.
func TestHostCertificates(t *testing.T) { bothWays(t, testHostCertificates) }

func testHostCertificates(t *testing.T, way string) {
	t.Helper()
	authority := sshtest.Signer(t, sshtest.NewKey(t, "ed25519"))
	tomorrow := time.Now().Add(24 * time.Hour)
	for name, c := range map[string]struct {
		principal string
		until     time.Time
		known     string
		want      fault.Kind
	}{
		"good":           {"127.0.0.1", tomorrow, "@cert-authority [127.0.0.1]:* {ca}", 0},
		"other host":     {"h9", tomorrow, "@cert-authority * {ca}", fault.HostKeyChanged},
		"expired":        {"127.0.0.1", time.Now().Add(-time.Hour), "@cert-authority * {ca}", fault.HostKeyChanged},
		"revoked ca":     {"127.0.0.1", tomorrow, "@cert-authority * {ca}\n@revoked * {ca}", fault.HostKeyChanged},
		"known as plain": {"127.0.0.1", tomorrow, "* {key}", 0},
		"unknown ca":     {"127.0.0.1", tomorrow, "", fault.HostKeyUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			host := sshtest.WriteKey(t, filepath.Join(dir, "host"), "ed25519", "")
			cert := certify(t, authority, host.PublicKey(), ssh.HostCert, c.principal, c.until)
			sshtest.WriteFile(t, filepath.Join(dir, "host-cert.pub"), string(ssh.MarshalAuthorizedKey(cert)))
			a := startAccount(t, "HostKey "+filepath.Join(dir, "host")+"\nHostCertificate "+filepath.Join(dir, "host-cert.pub"))
			file := filepath.Join(dir, "known_hosts")
			line := func(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }
			sshtest.WriteFile(t, file, strings.NewReplacer("{ca}", line(authority.PublicKey()), "{key}", line(host.PublicKey())).Replace(c.known))
			a.hop.Args = a.args(t, "UserKnownHostsFile "+file)
			a.hop.Transport = way
			link, err := New(Options{}).Dial(t.Context(), a.hop, a.run)
			if c.want != 0 {
				failsAs(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = link.Close()
		})
	}
}

// TestKnownKeyIsAskedFor: of a server's several keys, the one that is known is asked for, whatever its type.
func TestKnownKeyIsAskedFor(t *testing.T) { bothWays(t, testKnownKeyIsAskedFor) }

func testKnownKeyIsAskedFor(t *testing.T, way string) {
	t.Helper()
	user := filepath.Join(t.TempDir(), "id")
	signer := sshtest.WriteKey(t, user, "ed25519", "")
	s := sshtest.StartSSHD(t, sshtest.Options{HostKeys: []string{"ed25519", "ecdsa", "rsa"}, Authorized: []ssh.PublicKey{signer.PublicKey()}})
	for kind, key := range s.Keys {
		t.Run(kind, func(t *testing.T) {
			a := &account{SSHD: s}
			file := filepath.Join(t.TempDir(), "known_hosts")
			sshtest.WriteFile(t, file, fmt.Sprintf("[%s]:%d %s", s.Host, s.Port, ssh.MarshalAuthorizedKey(key.PublicKey())))
			h := &hop.SSH{Host: s.Host, Port: s.Port, User: s.User, PrivateKeyFile: user, HostKeyChecking: true, TimeoutSeconds: 60, Transport: way}
			h.Args = a.args(t, "UserKnownHostsFile "+file)
			link, err := New(Options{}).Dial(t.Context(), h, a.run)
			if err != nil {
				t.Fatal(err)
			}
			_ = link.Close()
		})
	}
}

// TestNoPasswordForChangedHost: with host key checking off, a host whose key differs is reached, but gets no password.
func TestNoPasswordForChangedHost(t *testing.T) {
	b := newBench(t)
	sent := false
	b.server.Config.PasswordCallback = func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { sent = true; return &ssh.Permissions{}, nil }
	b.cfg.StrictHostKeys = "no"
	b.cfg.IdentityFiles = nil
	b.hop.Password = b.goodKey
	sshtest.WriteFile(t, b.cfg.UserKnownHosts[0], "h1 "+string(ssh.MarshalAuthorizedKey(sshtest.Signer(t, sshtest.NewKey(t, "ed25519")).PublicKey())))
	bubble(t, b, func(t *testing.T) {
		f := typed(t, b.ready(t.Context()), fault.AuthFailed)
		if sent || !strings.Contains(f.Hint, "host key has changed") {
			t.Errorf("sent: %v, hint %q", sent, f.Hint)
		}
	})
}

func TestWildcard(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"a*c", "abc", true},
		{"a*c", "ac", true},
		{"a*c", "ab", false},
		{"*.x.*", "a.x.x.b", true},
		{"?", "", false},
		{"?b*", "ab", true},
		{"**a", "bba", true},
		{"a", "ab", false},
		{strings.Repeat("*a", 30), strings.Repeat("a", 2000) + "b", false},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("%q on %q: %v", c.pattern, c.s, got)
		}
	}
}

// TestKnownAlgorithmsFirst: the order of a restricted list is kept but for what is known.
func TestKnownAlgorithmsFirst(t *testing.T) {
	k := &hostKeys{cfg: &config{HostKeyAlgorithms: []string{"ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256", "unheard-of"}}}
	k.lines = []knownLine{{keyType: "ssh-rsa"}}
	want := []string{"rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256"}
	if got := k.algorithms(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
