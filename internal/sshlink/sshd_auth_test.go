package sshlink

import (
	"crypto"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// serveAgent is an ssh-agent with the given keys; the result is its socket.
func serveAgent(t *testing.T, keys ...crypto.Signer) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, key := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "agent") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(ring, conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-ended
	})
	return socket
}

// certify signs public as a certificate for principal.
func certify(t *testing.T, authority ssh.Signer, public ssh.PublicKey, kind uint32, principal string, until time.Time) *ssh.Certificate {
	t.Helper()
	cert := &ssh.Certificate{
		Key: public, CertType: kind, KeyId: "test", ValidPrincipals: []string{principal},
		ValidAfter: uint64(time.Now().Add(-24 * time.Hour).Unix()), ValidBefore: uint64(until.Unix()),
	}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestKeysAgainstSSHD logs in with each kind of key in each way it can be given.
func TestKeysAgainstSSHD(t *testing.T) { bothWays(t, testKeysAgainstSSHD) }

func testKeysAgainstSSHD(t *testing.T, way string) {
	t.Helper()
	rsa, other := sshtest.NewKey(t, "rsa"), sshtest.NewKey(t, "ed25519")
	locked := sshtest.NewKey(t, "ed25519")
	byKind := map[string]crypto.Signer{"ed25519": sshtest.NewKey(t, "ed25519"), "ecdsa": sshtest.NewKey(t, "ecdsa"), "rsa": rsa}
	authority := sshtest.NewKey(t, "ed25519")
	authorized := []ssh.PublicKey{sshtest.Signer(t, locked).PublicKey()}
	for _, key := range byKind {
		authorized = append(authorized, sshtest.Signer(t, key).PublicKey())
	}
	trusted := filepath.Join(t.TempDir(), "ca.pub")
	sshtest.WriteFile(t, trusted, string(ssh.MarshalAuthorizedKey(sshtest.Signer(t, authority).PublicKey())))
	s := sshtest.StartSSHD(t, sshtest.Options{Authorized: authorized, Config: "TrustedUserCAKeys " + trusted})
	known := "UserKnownHostsFile " + s.KnownHosts(t)

	file := func(t *testing.T, key crypto.Signer, passphrase string) string {
		t.Helper()
		name := filepath.Join(t.TempDir(), "key with space")
		sshtest.WriteFile(t, name, string(sshtest.EncodeKey(t, key, passphrase)))
		return name
	}
	public := func(t *testing.T, key crypto.Signer) string {
		t.Helper()
		name := filepath.Join(t.TempDir(), "key.pub")
		sshtest.WriteFile(t, name, string(ssh.MarshalAuthorizedKey(sshtest.Signer(t, key).PublicKey())))
		return name
	}
	secretOf := func(t *testing.T, key crypto.Signer) hop.Secret {
		t.Helper()
		return hop.NewSecret(sshtest.EncodeKey(t, key, ""))
	}
	type setting struct {
		hop    *hop.SSH
		config string
		env    string
	}
	cases := map[string]struct {
		set  func(t *testing.T, s *setting)
		want string // text of the hint; empty: success
	}{
		"encrypted file": {set: func(t *testing.T, s *setting) {
			s.hop.PrivateKeyFile, s.hop.PrivateKeyPassphrase = file(t, locked, "pass word"), hop.NewSecret([]byte("pass word"))
		}},
		"encrypted file, no passphrase": {want: "passphrase", set: func(t *testing.T, s *setting) {
			s.hop.PrivateKeyFile = file(t, locked, "pass word")
		}},
		"encrypted file, key in the agent": {set: func(t *testing.T, s *setting) {
			s.hop.PrivateKeyFile, s.env = file(t, locked, "pass word"), serveAgent(t, other, locked)
			s.config = "IdentitiesOnly yes"
		}},
		"agent":     {set: func(t *testing.T, s *setting) { s.env = serveAgent(t, other, rsa) }},
		"agent rsa": {set: func(t *testing.T, s *setting) { s.env = serveAgent(t, rsa) }},
		"IdentityAgent": {set: func(t *testing.T, s *setting) {
			s.config = "IdentityAgent " + serveAgent(t, rsa)
			s.env = "/nowhere"
		}},
		"IdentityAgent none": {want: "No key was offered", set: func(t *testing.T, s *setting) {
			s.config, s.env = "IdentityAgent none\nIdentityFile none", serveAgent(t, rsa)
		}},
		"agent that is gone": {want: "agent /nowhere: No such file or directory", set: func(_ *testing.T, s *setting) { s.env = "/nowhere" }},
		"agent key chosen by a public file": {set: func(t *testing.T, s *setting) {
			s.config, s.env = "IdentitiesOnly yes", serveAgent(t, other, rsa)
			s.hop.PrivateKeyFile = public(t, rsa)
		}},
		"IdentitiesOnly": {want: "takes none of the keys", set: func(t *testing.T, s *setting) {
			s.config, s.env = "IdentitiesOnly yes", serveAgent(t, rsa)
			s.hop.PrivateKeyFile = file(t, other, "")
		}},
		"content": {set: func(t *testing.T, s *setting) { s.hop.PrivateKey = secretOf(t, rsa) }},
		"content keeps the agent out": {want: "takes none of the keys", set: func(t *testing.T, s *setting) {
			s.hop.PrivateKey, s.env = secretOf(t, other), serveAgent(t, rsa)
		}},
		"wrong key": {want: "takes none of the keys", set: func(t *testing.T, s *setting) { s.hop.PrivateKeyFile = file(t, other, "") }},
		"no such file": {want: "/nowhere/id: no such file", set: func(_ *testing.T, s *setting) {
			s.hop.PrivateKeyFile = "/nowhere/id"
		}},
		"open to all": {want: "permissions are too open", set: func(t *testing.T, s *setting) {
			s.hop.PrivateKeyFile = file(t, rsa, "")
			if err := os.Chmod(s.hop.PrivateKeyFile, 0o644); err != nil { // the fault under test
				t.Fatal(err)
			}
		}},
		"certificate beside the key": {set: func(t *testing.T, s *setting) {
			s.hop.PrivateKeyFile = file(t, other, "")
			cert := certify(t, sshtest.Signer(t, authority), sshtest.Signer(t, other).PublicKey(), ssh.UserCert, s.hop.User, time.Now().Add(time.Hour))
			sshtest.WriteFile(t, s.hop.PrivateKeyFile+"-cert.pub", string(ssh.MarshalAuthorizedKey(cert)))
		}},
		"CertificateFile with the agent's key": {set: func(t *testing.T, s *setting) {
			cert := certify(t, sshtest.Signer(t, authority), sshtest.Signer(t, other).PublicKey(), ssh.UserCert, s.hop.User, time.Now().Add(time.Hour))
			name := filepath.Join(t.TempDir(), "cert")
			sshtest.WriteFile(t, name, string(ssh.MarshalAuthorizedKey(cert)))
			s.config, s.env = "CertificateFile "+name, serveAgent(t, other)
		}},
		"algorithm not accepted": {want: "PubkeyAcceptedAlgorithms", set: func(t *testing.T, s *setting) {
			s.config, s.hop.PrivateKey = "PubkeyAcceptedAlgorithms ssh-ed25519", secretOf(t, rsa)
		}},
		"restricted algorithms": {set: func(t *testing.T, s *setting) {
			s.config = "Ciphers aes256-ctr\nMACs hmac-sha2-512-etm@openssh.com\nKexAlgorithms ecdh-sha2-nistp384"
			s.hop.PrivateKey = secretOf(t, rsa)
		}},
	}
	for kind, key := range byKind {
		cases[kind+" file"] = struct {
			set  func(t *testing.T, s *setting)
			want string
		}{set: func(t *testing.T, s *setting) { s.hop.PrivateKeyFile = file(t, key, "") }}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			set := &setting{hop: &hop.SSH{Host: s.Host, Port: s.Port, User: s.User, HostKeyChecking: true, TimeoutSeconds: 60, Transport: way}}
			c.set(t, set)
			set.hop.Args = (&account{}).args(t, known+"\n"+set.config)
			run := hop.Run{Environ: []string{"PATH=" + os.Getenv("PATH"), "SSH_AUTH_SOCK=" + set.env}, Cwd: "/"}
			link, err := New(Options{}).Dial(t.Context(), set.hop, run)
			if c.want != "" {
				if f := typed(t, err, fault.AuthFailed); way == native && !strings.Contains(f.Hint, c.want) {
					t.Errorf("hint %q does not say %q", f.Hint, c.want)
				}
				return
			}
			if err != nil {
				f := typed(t, err, fault.KindOf(err))
				t.Fatalf("%v; %s", err, f.Hint)
			}
			defer func() { _ = link.Close() }()
			if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestRealAgent uses the ssh-agent of OpenSSH.
func TestRealAgent(t *testing.T) { bothWays(t, testRealAgent) }

func testRealAgent(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "")
	program := a.program(t, "ssh-agent")
	add := a.program(t, "ssh-add")
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	a.background(t, program, "-D", "-a", socket)
	a.run.Environ = append(a.run.Environ, "SSH_AUTH_SOCK="+socket)
	waitFor(t, func() bool { _, err := os.Stat(socket); return err == nil })
	a.must(t, add, a.key)
	a.hop.PrivateKeyFile = ""
	link := a.dial(t, way)
	if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
		t.Errorf("got %+v", got)
	}
}

// TestForwardAgent asks the forwarded agent for its keys from the far side.
func TestForwardAgent(t *testing.T) { bothWays(t, testForwardAgent) }

func testForwardAgent(t *testing.T, way string) {
	t.Helper()
	a := startAccount(t, "")
	add := a.program(t, "ssh-add")
	key := sshtest.NewKey(t, "ed25519")
	a.run.Environ = append(a.run.Environ, "SSH_AUTH_SOCK="+serveAgent(t, key))
	a.hop.Args = a.args(t, "ForwardAgent yes\nUserKnownHostsFile "+a.KnownHosts(t))
	got := output(t, a.dial(t, way), add+" -L", "", mux.ExecOptions{})
	if want := strings.Fields(string(ssh.MarshalAuthorizedKey(sshtest.Signer(t, key).PublicKey())))[1]; !strings.Contains(got.stdout, want) {
		t.Errorf("got %+v", got)
	}
}
