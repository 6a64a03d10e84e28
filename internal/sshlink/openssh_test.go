package sshlink

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// listening serves b's server at a real port, and points the hop there: for peers that cannot use pipes.
func (b *bench) listening(t *testing.T) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.dials.Add(1)
			b.server.Serve(conn)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended; b.server.Wait() })
	b.hop.Host, b.hop.Port, b.hop.TimeoutSeconds, b.hop.Transport = "127.0.0.1", l.Addr().(*net.TCPAddr).AddrPort().Port(), 60, openssh // a tcp listener
	b.hop.HostKeyChecking = true
	file := filepath.Join(t.TempDir(), "ssh_config")
	sshtest.WriteFile(t, file, "HostKeyAlias h1\nGlobalKnownHostsFile /dev/null\nIdentityFile none\nUserKnownHostsFile "+b.cfg.UserKnownHosts[0]+"\n")
	b.hop.Args = []string{"-F", file}
	b.run = hop.Run{ID: "r1", Cwd: "/", Environ: []string{"PATH=" + os.Getenv("PATH")}}
	b.dialer = New(Options{})
}

// launched answers the launcher as a shell would: it says that it is there, and takes a command line, which comes back.
func launched(cmd string, ch ssh.Channel) uint32 {
	if cmd != launcher {
		_, _ = io.WriteString(ch, cmd)
		return 0
	}
	_, _ = io.WriteString(ch, readyMark)
	var line strings.Builder
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(ch, one); err != nil {
			return 1
		}
		if one[0] == '\n' {
			break
		}
		line.WriteByte(one[0])
	}
	_, _ = io.WriteString(ch, line.String())
	return 0
}

// TestQuestions: what ssh asks on its terminal, answered or refused; no secret shows in what is said.
func TestQuestions(t *testing.T) {
	locked := sshtest.NewKey(t, "ed25519")
	for name, c := range map[string]struct {
		prepare func(t *testing.T, b *bench)
		want    fault.Kind
		says    string
	}{
		"password": {prepare: func(_ *testing.T, b *bench) { b.server.Config.PasswordCallback = passwordIs(secret) }},
		"keyboard-interactive": {prepare: func(_ *testing.T, b *bench) {
			b.server.Config.KeyboardInteractiveCallback = asks([]string{"Password: "})
		}},
		"wrong password": {want: fault.AuthFailed, says: "The password was refused.", prepare: func(_ *testing.T, b *bench) {
			b.server.Config.PasswordCallback = passwordIs("another")
		}},
		"wrong, both ways": {want: fault.AuthFailed, says: "The password was refused.", prepare: func(_ *testing.T, b *bench) {
			b.server.Config.PasswordCallback = passwordIs("another")
			b.server.Config.KeyboardInteractiveCallback = asks([]string{"Passwort: "}, []string{"Password: "})
		}},
		"no password": {want: fault.AuthFailed, says: "Permission denied", prepare: func(_ *testing.T, b *bench) {
			b.hop.Password = hop.Secret{}
			b.server.Config.PasswordCallback = passwordIs(secret)
		}},
		"nobody answers": {want: fault.AuthFailed, says: "no password was given", prepare: func(_ *testing.T, b *bench) {
			b.hop.PasswordMechanism = "disable"
			b.server.Config.PasswordCallback = passwordIs(secret)
		}},
		"second factor": {want: fault.AuthFailed, says: "Verification code:", prepare: func(_ *testing.T, b *bench) {
			b.server.Config.KeyboardInteractiveCallback = asks([]string{"Password: "}, []string{"Verification code: "})
		}},
		"key with passphrase": {prepare: func(t *testing.T, b *bench) {
			t.Helper()
			lockedKey(t, b, locked, "pass word")
			b.hop.PrivateKeyPassphrase = hop.NewSecret([]byte("pass word"))
		}},
		"wrong passphrase": {want: fault.AuthFailed, says: "passphrase", prepare: func(t *testing.T, b *bench) {
			t.Helper()
			lockedKey(t, b, locked, "pass word")
			b.hop.PrivateKeyPassphrase = hop.NewSecret([]byte(secret))
		}},
		"key as content": {prepare: func(_ *testing.T, b *bench) { b.hop.PrivateKey = b.goodKey }},
		"content that is no key": {want: fault.AuthFailed, says: "ansible_private_key", prepare: func(_ *testing.T, b *bench) {
			b.hop.PrivateKey = hop.NewSecret([]byte(secret))
		}},
		"unknown host": {want: fault.HostKeyUnknown, says: "SHA256:", prepare: func(t *testing.T, b *bench) {
			t.Helper()
			sshtest.WriteFile(t, b.cfg.UserKnownHosts[0], "")
		}},
		"banner": {prepare: func(_ *testing.T, b *bench) {
			b.server.Config.BannerCallback = func(ssh.ConnMetadata) string { return "Your password: will be asked for\nMUX-READY or not\n" }
			b.server.Config.PasswordCallback = passwordIs(secret)
		}},
	} {
		for _, way := range []string{openssh, via} {
			t.Run(name+"/"+way, func(t *testing.T) {
				b := newBench(t)
				b.server.Exec = launched
				b.hop.PrivateKey = hop.Secret{}
				b.hop.Password = hop.NewSecret([]byte(secret))
				c.prepare(t, b)
				b.listening(t)
				want, says := c.want, c.says
				if way == via {
					b.hop.Transport, b.from = via, intermediary(b.run)
					if !b.hop.PrivateKey.IsZero() {
						want, says = fault.Unsupported, "ansible_ssh_private_key_file"
					}
				}
				err := b.ready(t.Context())
				if want == 0 {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				f := typed(t, err, want)
				text := f.Error() + "\n" + f.Hint + "\n" + f.Stderr
				if !strings.Contains(text, says) || way == via && !strings.Contains(text, "ssh of the hop before (ssh near)") {
					t.Errorf("%q does not say %q, or whose ssh it is", text, says)
				}
				if strings.Contains(text, secret) {
					t.Errorf("secret in %q", text)
				}
			})
		}
	}
}

// lockedKey makes the server accept an encrypted key, which the hop names.
func lockedKey(t *testing.T, b *bench, key crypto.Signer, passphrase string) {
	t.Helper()
	public := sshtest.Signer(t, key).PublicKey()
	b.server.Config.PublicKeyCallback = func(_ ssh.ConnMetadata, shown ssh.PublicKey) (*ssh.Permissions, error) {
		if equalKeys(shown, public) {
			return &ssh.Permissions{}, nil
		}
		return nil, errors.New("not authorized")
	}
	b.hop.PrivateKeyFile = filepath.Join(t.TempDir(), "key")
	sshtest.WriteFile(t, b.hop.PrivateKeyFile, string(sshtest.EncodeKey(t, key, passphrase)))
}

// TestOneProgram: the agent runs on the session that proved the connection, and the connection ends with it.
func TestOneProgram(t *testing.T) {
	b := newBench(t)
	b.server.Exec = launched
	b.listening(t)
	link, err := b.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, link, "first", "", mux.ExecOptions{Agent: true}); got.stdout != "first" || got.code != 0 {
		t.Errorf("got %+v", got)
	}
	<-link.Done()
	_ = link.Close()
	if b.dials.Load() != 1 {
		t.Errorf("%d connections", b.dials.Load())
	}
}

// TestSharedConnection: while the first session lives, further commands make no connection of their own.
func TestSharedConnection(t *testing.T) {
	a := startAccount(t, "")
	link := a.dial(t, openssh)
	first, err := link.Exec(t.Context(), []byte("sh -c 'echo here; cat'"), mux.ExecOptions{Agent: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(first, make([]byte, len("here\n"))); err != nil {
		t.Fatal(err)
	}
	if got := output(t, link, "echo $SSH_CONNECTION; exit 255", "", mux.ExecOptions{}); got.code != 255 || got.stdout == "" {
		t.Errorf("got %+v", got)
	}
	if n := a.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
	_ = first.Close() // the account's agent leaves: nobody else is there, so the connection ends
	<-link.Done()
	failsAs(t, link.Err(), fault.AgentDied)
}

// TestFirstLeavesBeforeOthers: who shares the connection keeps it when the first command is closed.
func TestFirstLeavesBeforeOthers(t *testing.T) {
	a := startAccount(t, "")
	link := a.dial(t, openssh)
	first, err := link.Exec(t.Context(), []byte("sh -c 'echo here; cat'"), mux.ExecOptions{Agent: true})
	if err != nil {
		t.Fatal(err)
	}
	second, err := link.Exec(t.Context(), []byte("cat"), mux.ExecOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	if _, err := io.WriteString(second, "still here\n"); err != nil {
		t.Fatal(err)
	}
	if err := second.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(second); string(out) != "still here\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if code, err := second.Wait(); code != 0 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	_ = second.Close()
	<-link.Done()
}

// TestNoShellThere: a far side that does not know the launcher is still one that commands can be sent to.
func TestNoShellThere(t *testing.T) {
	b := newBench(t)
	b.server.Exec = func(cmd string, ch ssh.Channel) uint32 {
		if cmd == launcher {
			_, _ = io.WriteString(ch, "% Invalid input\n")
			return 1
		}
		_, _ = io.WriteString(ch, cmd)
		return 0
	}
	b.listening(t)
	if err := b.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestChoice: who connects, and what is said about it.
func TestChoice(t *testing.T) {
	a := startAccount(t, "")
	stock := a.program(t, "ssh")
	wrapper := filepath.Join(t.TempDir(), "wrapper")
	sshtest.WriteFile(t, wrapper, "#!/bin/sh\nexec "+stock+" \"$@\"\n")
	if err := os.Chmod(wrapper, 0o755); err != nil { // a program
		t.Fatal(err)
	}
	known := "UserKnownHostsFile " + a.KnownHosts(t) + "\n"
	for name, c := range map[string]struct {
		set  func(h *hop.SSH)
		says string // in the note; empty: the built-in client
	}{
		"nothing":        {func(*hop.SSH) {}, ""},
		"stock path":     {func(h *hop.SSH) { h.Executable = stock }, ""},
		"forced":         {func(h *hop.SSH) { h.Transport = openssh }, "mitogen_ssh_transport"},
		"executable":     {func(h *hop.SSH) { h.Executable = wrapper }, "ansible_ssh_executable"},
		"forward":        {func(h *hop.SSH) { h.Args = append(a.args(t, known), "-R", "0:127.0.0.1:1") }, "RemoteForward"},
		"command":        {func(h *hop.SSH) { h.Args = a.args(t, known+"PermitLocalCommand yes\nLocalCommand true") }, "LocalCommand"},
		"not allowed":    {func(h *hop.SSH) { h.Args = a.args(t, known+"LocalCommand true") }, ""},
		"algorithm":      {func(h *hop.SSH) { h.Args = a.args(t, known+"Ciphers aes128-ctr\nMACs umac-64@openssh.com") }, "MACs"},
		"pkcs11, no PIN": {func(h *hop.SSH) { h.PKCS11Provider = "/nowhere" }, ""},
		"dead control":   {func(h *hop.SSH) { h.Args = a.args(t, known+"ControlPath /nowhere/c") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := *a.hop
			c.set(&h)
			link, err := New(Options{}).Dial(t.Context(), &h, a.run)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = link.Close() }()
			if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
				t.Errorf("got %+v", got)
			}
			if _, isOutside := link.(*outside); isOutside != (c.says != "") {
				t.Errorf("through the user's ssh: %v", isOutside)
			}
			if c.says != "" && (len(link.Notes()) != 1 || !strings.Contains(link.Notes()[0].Text, c.says)) {
				t.Errorf("notes %v do not say %q", link.Notes(), c.says)
			}
		})
	}
	t.Run("native only", func(t *testing.T) {
		h := *a.hop
		h.Executable, h.Transport = wrapper, native
		_, err := New(Options{}).Dial(t.Context(), &h, a.run)
		failsAs(t, err, fault.Unsupported)
	})
}

// TestControlPath uses a control connection that the user has open: it works where no key would.
func TestControlPath(t *testing.T) {
	a := startAccount(t, "")
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "c")
	config := a.args(t, "UserKnownHostsFile "+a.KnownHosts(t)+"\nControlPath "+socket)
	a.background(t, a.program(t, "ssh"), append(config, "-M", "-N", "-i", a.key, "-p", fmt.Sprint(a.Port), "-l", a.User, a.Host)...)
	waitFor(t, func() bool { return answers(socket) })
	a.hop.Args = config
	a.hop.PrivateKeyFile = "/nowhere"
	a.run.Environ = append(a.run.Environ, "SSH_AUTH_SOCK=")
	link := a.dial(t, "")
	if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
		t.Errorf("got %+v", got)
	}
	if n := a.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestPKCS11 logs in with a key in a token, whose PIN is the password.
func TestPKCS11(t *testing.T) {
	const provider = "/usr/lib/softhsm/libsofthsm2.so"
	if _, err := os.Stat(provider); err != nil {
		t.Skip("softhsm2 is not installed")
	}
	a := startAccount(t, "")
	util := a.program(t, "softhsm2-util")
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	sshtest.WriteFile(t, conf, "directories.tokendir = "+filepath.Join(dir, "tokens")+"\n")
	a.run.Environ = append(a.run.Environ, "SOFTHSM2_CONF="+conf)
	a.must(t, util, "--init-token", "--free", "--label", "test", "--pin", "4711", "--so-pin", "4711")
	key := sshtest.NewKey(t, "rsa")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sshtest.WriteFile(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	a.must(t, util, "--import", filepath.Join(dir, "key.pem"), "--token", "test", "--label", "k", "--id", "01", "--pin", "4711")
	s := sshtest.StartSSHD(t, sshtest.Options{Authorized: []ssh.PublicKey{sshtest.Signer(t, key).PublicKey()}})
	for name, c := range map[string]struct {
		pin  string
		want fault.Kind
	}{"good": {"4711", 0}, "wrong": {"0815", fault.AuthFailed}} {
		t.Run(name, func(t *testing.T) {
			h := &hop.SSH{
				Host: s.Host, Port: s.Port, User: s.User, HostKeyChecking: true, TimeoutSeconds: 60, PKCS11Provider: provider,
				Password: hop.NewSecret([]byte(c.pin)), Args: a.args(t, "UserKnownHostsFile "+s.KnownHosts(t)),
			}
			link, err := New(Options{}).Dial(t.Context(), h, a.run)
			if c.want != 0 {
				failsAs(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = link.Close() }()
			if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestDialogueInPieces: a question is known however the terminal cuts it.
func TestDialogueInPieces(t *testing.T) {
	text := "The authenticity of host 'h (::1)' can't be established.\r\nED25519 key fingerprint is SHA256:abc.\r\n" +
		"Are you sure you want to continue connecting (yes/no/[fingerprint])? "
	for cut := range len(text) {
		d := newDialogue(&hop.SSH{}, "h")
		said := ""
		for _, part := range []string{text[:cut], text[cut:]} {
			answer, _ := d.hear(part)
			said += string(answer)
		}
		if said != "no\n" || d.verdict() == nil || !strings.Contains(d.verdict().Message, "ED25519 key SHA256:abc of h") {
			t.Fatalf("cut at %d: %q, %v", cut, said, d.verdict())
		}
	}
}

// TestSecurityKey: a key whose private part is in a device (FIDO) is left to the user's ssh, once the server has refused all else.
func TestSecurityKey(t *testing.T) {
	const kind, application = "sk-ssh-ed25519@openssh.com", "ssh:"
	public := ssh.Marshal(struct {
		Kind  string
		Point []byte
		App   string
	}{kind, make([]byte, 32), application})
	private := ssh.Marshal(struct {
		Check1, Check2                     uint32
		Kind                               string
		Point                              []byte
		App                                string
		Flags                              byte
		Handle, Reserved, Comment, Padding string
	}{7, 7, kind, make([]byte, 32), application, 1, "handle", "", "", ""})
	private = private[:len(private)-4] // the padding has no length of its own
	for i := byte(1); len(private)%8 != 0; i++ {
		private = append(private, i)
	}
	file := append([]byte("openssh-key-v1\x00"), ssh.Marshal(struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public, Private      []byte
	}{"none", "none", "", 1, public, private})...)
	key := filepath.Join(t.TempDir(), "id_sk")
	sshtest.WriteFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: file})))
	sshtest.WriteFile(t, key+".pub", kind+" "+base64.StdEncoding.EncodeToString(public)+"\n")
	for _, c := range []struct {
		name  string
		gone  bool
		dials int32
	}{{"there", false, 2}, {"only its public part", true, 1}} {
		t.Run(c.name, func(t *testing.T) {
			if c.gone {
				if err := os.Remove(key); err != nil {
					t.Fatal(err)
				}
			}
			b := newBench(t)
			b.hop.PrivateKey = hop.Secret{}
			b.listening(t)
			b.hop.Transport, b.hop.PrivateKeyFile = "", key
			_, err := b.dial(t.Context())
			failsAs(t, err, fault.AuthFailed)
			if b.dials.Load() != c.dials {
				t.Errorf("%d connections, want %d", b.dials.Load(), c.dials)
			}
		})
	}
}
