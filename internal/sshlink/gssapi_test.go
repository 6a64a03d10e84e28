package sshlink

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// TestGSSAPI logs in with a Kerberos ticket, of a realm of its own: the built-in client finds that no key is accepted, and the user's
// ssh goes on. The next connection goes to it at once.
func TestGSSAPI(t *testing.T) {
	a := startAccount(t, "")
	dir := t.TempDir()
	kdc, kadmin, kdb, kinit := a.program(t, "krb5kdc"), a.program(t, "kadmin.local"), a.program(t, "kdb5_util"), a.program(t, "kinit")
	port := freePort(t)
	sshtest.WriteFile(t, filepath.Join(dir, "krb5.conf"), fmt.Sprintf("[libdefaults]\n default_realm = TEST\n dns_lookup_kdc = false\n"+
		" rdns = false\n dns_canonicalize_hostname = false\n[realms]\n TEST = {\n  kdc = 127.0.0.1:%d\n }\n", port))
	sshtest.WriteFile(t, filepath.Join(dir, "kdc.conf"), fmt.Sprintf("[kdcdefaults]\n kdc_listen = 127.0.0.1:%d\n kdc_tcp_listen = 127.0.0.1:%d\n"+
		"[realms]\n TEST = {\n  database_name = %s/db\n  key_stash_file = %s/stash\n }\n", port, port, dir, dir))
	for name, value := range map[string]string{
		"KRB5_CONFIG": dir + "/krb5.conf", "KRB5_KDC_PROFILE": dir + "/kdc.conf", "KRB5_KTNAME": dir + "/keytab", "KRB5CCNAME": "FILE:" + dir + "/tickets",
	} {
		t.Setenv(name, value) // for sshd
		a.run.Environ = append(a.run.Environ, name+"="+value)
	}
	a.must(t, kdb, "create", "-s", "-r", "TEST", "-P", "master")
	a.must(t, kadmin, "-q", "addprinc -pw ticket "+a.User)
	a.must(t, kadmin, "-q", "addprinc -randkey host/localhost")
	a.must(t, kadmin, "-q", "ktadd -k "+dir+"/keytab host/localhost")
	a.background(t, kdc, "-n")
	waitFor(t, func() bool {
		conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port)) //nolint:noctx // a loopback port
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	s := sshtest.StartSSHD(t, sshtest.Options{Config: "GSSAPIAuthentication yes\nGSSAPIStrictAcceptorCheck no"})
	h := &hop.SSH{Host: "localhost", Port: s.Port, User: s.User, HostKeyChecking: true, TimeoutSeconds: 60, Args: a.args(t,
		fmt.Sprintf("GSSAPIAuthentication yes\nHostKeyAlias [%s]:%d\nIdentityFile none\nUserKnownHostsFile %s", s.Host, s.Port, s.KnownHosts(t)))}
	d := New(Options{})
	_, err := d.Dial(t.Context(), h, a.run)
	if f := typed(t, err, fault.AuthFailed); !strings.Contains(f.Message, "gssapi-with-mic") {
		t.Errorf("without a ticket: %q", f.Message)
	}
	a.must(t, "sh", "-c", "echo ticket | "+kinit+" "+s.User)
	for range 2 {
		link, err := d.Dial(t.Context(), h, a.run)
		if err != nil {
			t.Fatal(err)
		}
		if got := output(t, link, "echo hello", "", mux.ExecOptions{}); got.stdout != "hello\n" {
			t.Errorf("got %+v", got)
		}
		if note := link.Notes()[0].Text; !strings.Contains(note, "GSSAPI") {
			t.Errorf("note %q", note)
		}
		_ = link.Close()
	}
}

// freePort is one that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port // a tcp listener
}
