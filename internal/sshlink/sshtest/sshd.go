// Package sshtest holds peers for tests of sshlink and of what stands on it: OpenSSH's real server, a server in process with
// faults on request, and connections that delay or break. It knows nothing of sshlink.
package sshtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// SSHD is a real OpenSSH server: an sshd -i for each connection, on a port of its own.
type SSHD struct {
	Host string
	Port uint16
	User string // the account that runs the test
	Dir  string
	Keys map[string]ssh.Signer // host keys by kind

	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	running  map[*os.Process]net.Conn
}

// Options of StartSSHD.
type Options struct {
	HostKeys   []string // kinds; default ed25519
	Authorized []ssh.PublicKey
	Config     string // lines in front of the defaults: the first value holds
}

// FindSSHD returns the path of sshd, or skips the test. MITOGEN_MUX_TEST_SSHD names another than the machine's.
func FindSSHD(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("MITOGEN_MUX_TEST_SSHD"); path != "" {
		return path
	}
	for _, name := range []string{"sshd", "/usr/sbin/sshd"} {
		if path, err := exec.LookPath(name); err == nil {
			if abs, err := filepath.Abs(path); err == nil {
				return abs
			}
		}
	}
	t.Skip("sshd is not installed")
	return ""
}

// ownPrograms are the lines that keep an sshd that stands elsewhere to its own parts; none before 9.8, which is one program.
func ownPrograms(sshd string) string {
	lines, folder := "", filepath.Join(filepath.Dir(sshd), "..", "lib", "openssh")
	for option, name := range map[string]string{"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"} {
		if path := filepath.Join(folder, name); exists(path) {
			lines += option + " " + path + "\n"
		}
	}
	return lines
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// StartSSHD starts a server that lasts until the test ends.
func StartSSHD(t testing.TB, o Options) *SSHD {
	t.Helper()
	program := FindSSHD(t)
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd demands it so
			t.Skipf("sshd needs /run/sshd: %v", err)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := &SSHD{Host: "127.0.0.1", User: me.Username, Dir: t.TempDir(), Keys: map[string]ssh.Signer{}, running: map[*os.Process]net.Conn{}}
	if len(o.HostKeys) == 0 {
		o.HostKeys = []string{"ed25519"}
	}
	var config strings.Builder
	config.WriteString(o.Config + "\n" + ownPrograms(program))
	for _, kind := range o.HostKeys {
		file := filepath.Join(s.Dir, "host_"+kind)
		s.Keys[kind] = WriteKey(t, file, kind, "")
		fmt.Fprintf(&config, "HostKey %s\n", file)
	}
	var authorized strings.Builder
	for _, key := range o.Authorized {
		authorized.Write(ssh.MarshalAuthorizedKey(key))
	}
	keys := filepath.Join(s.Dir, "authorized_keys")
	WriteFile(t, keys, authorized.String())
	fmt.Fprintf(&config, "AuthorizedKeysFile %s\nStrictModes no\nPermitRootLogin yes\nPidFile none\nUsePAM no\nLogLevel DEBUG1\n"+
		"PasswordAuthentication no\nKbdInteractiveAuthentication no\nChallengeResponseAuthentication no\nPrintMotd no\nPrintLastLog no\n", keys)
	file := filepath.Join(s.Dir, "sshd_config")
	WriteFile(t, file, config.String())

	s.listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = s.listener.Addr().(*net.TCPAddr).AddrPort().Port() // a tcp listener
	log, err := os.Create(filepath.Join(s.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	s.wg.Go(func() { s.serve(program, file, log) })
	t.Cleanup(func() {
		_ = s.listener.Close()
		s.DropAll()
		s.wg.Wait()
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("sshd's log:\n%s", text)
		}
	})
	return s
}

func (s *SSHD) serve(program, config string, log *os.File) {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		file, err := conn.(*net.TCPConn).File() // a tcp listener
		if err != nil {
			_ = conn.Close()
			continue
		}
		cmd := exec.Command(program, "-i", "-E", log.Name(), "-f", config) // ends with its connection
		cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, log
		if err := cmd.Start(); err != nil {
			_, _ = fmt.Fprintln(log, err)
			_ = file.Close()
			_ = conn.Close()
			continue
		}
		_ = file.Close()
		s.mu.Lock()
		s.running[cmd.Process] = conn
		s.mu.Unlock()
		s.wg.Go(func() {
			_ = cmd.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.running, cmd.Process)
			_ = conn.Close()
		})
	}
}

// DropAll cuts all connections, as a server that crashes does.
func (s *SSHD) DropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for process, conn := range s.running {
		if tcp, ok := conn.(*net.TCPConn); ok {
			if raw, err := tcp.SyscallConn(); err == nil {
				shutdown(raw)
			}
		}
		_ = process.Kill()
	}
}

// Connections is how many are open.
func (s *SSHD) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.running)
}

// KnownHosts writes a known_hosts file with the server's host keys and returns its path.
func (s *SSHD) KnownHosts(t testing.TB) string {
	t.Helper()
	var lines strings.Builder
	for _, signer := range s.Keys {
		fmt.Fprintf(&lines, "[%s]:%d %s", s.Host, s.Port, ssh.MarshalAuthorizedKey(signer.PublicKey()))
	}
	file := filepath.Join(t.TempDir(), "known_hosts")
	WriteFile(t, file, lines.String())
	return file
}

// NewKey makes a private key: ed25519, ecdsa or rsa.
func NewKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		t.Fatalf("no such kind of key: %s", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// EncodeKey writes key in OpenSSH's format, encrypted if there is a passphrase. It is ssh-keygen that encrypts: the ssh library knows one
// number of rounds only, and the race detector makes each of them ten times as long.
func EncodeKey(t testing.TB, key crypto.Signer, passphrase string) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "test")
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(block)
	if passphrase == "" {
		return text
	}
	file := filepath.Join(t.TempDir(), "key")
	WriteFile(t, file, string(text))
	if said, err := exec.Command("ssh-keygen", "-q", "-p", "-a", "1", "-P", "", "-N", passphrase, "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	text, err = os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// WriteKey makes a key and writes it to file.
func WriteKey(t testing.TB, file, kind, passphrase string) ssh.Signer {
	t.Helper()
	key := NewKey(t, kind)
	WriteFile(t, file, string(EncodeKey(t, key, passphrase)))
	return Signer(t, key)
}

// Signer is key as the ssh library wants it.
func Signer(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// WriteFile writes a file that only its owner reads.
func WriteFile(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
