package sshlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

// testPlace is a place with the real home, as ssh uses that, and a run.
func testPlace(t *testing.T, environ ...string) *place {
	t.Helper()
	p, err := newPlace(hop.Run{ID: "r1", Cwd: t.TempDir(), Environ: append(environ, "PATH="+os.Getenv("PATH"))})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sshSays runs `ssh -G` with the command line that Ansible would build, and returns the values of each option.
func sshSays(t *testing.T, p *place, h *hop.SSH) map[string][]string {
	t.Helper()
	path, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("ssh is not installed")
	}
	args := append([]string{"-G"}, h.Args...)
	add := func(o ...string) { args = append(args, o...) }
	if !h.HostKeyChecking {
		add("-o", "StrictHostKeyChecking=no")
	}
	if h.Port != 0 {
		add("-o", fmt.Sprintf("Port=%d", h.Port))
	}
	if h.PrivateKeyFile != "" {
		add("-o", `IdentityFile="`+h.PrivateKeyFile+`"`)
	}
	if h.Password.IsZero() {
		add("-o", "KbdInteractiveAuthentication=no", "-o", "PreferredAuthentications=gssapi-with-mic,gssapi-keyex,hostbased,publickey",
			"-o", "PasswordAuthentication=no")
	}
	if h.User != "" {
		add("-o", `User="`+h.User+`"`)
	}
	add("-o", fmt.Sprintf("ConnectTimeout=%d", h.TimeoutSeconds), h.Host)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env, cmd.Dir = p.run.Environ, p.run.Cwd
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ssh %v: %v", args, err)
	}
	said := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		said[name] = append(said[name], value)
	}
	return said
}

type fragment struct {
	name, config string
	args         []string
	change       func(h *hop.SSH)
}

// fragments are configurations, and arguments as inventories have them. {dir} is a directory.
var fragments = []fragment{
	{name: "nothing"},
	{name: "hostname", config: "Host h1\n HostName 192.0.2.7"},
	{name: "hostname token", config: "Host h?\n HostName %h.example.org"},
	{name: "port", config: "Host *\n Port 2222"},
	{name: "port of the inventory first", config: "Port 2222", change: func(h *hop.SSH) { h.Port = 2200 }},
	{name: "port by -p", args: []string{"-p", "2201"}},
	{name: "port by -p before the inventory's", args: []string{"-p", "2201"}, change: func(h *hop.SSH) { h.Port = 2200 }},
	{name: "user", config: "User deploy"},
	{name: "user of the inventory first", config: "User deploy", change: func(h *hop.SSH) { h.User = "admin" }},
	{name: "user with @ and space", change: func(h *hop.SSH) { h.User = "DOM\\a@b c" }},
	{name: "user by -l", args: []string{"-l", "ops"}},
	{name: "first match wins", config: "Host h1\n User one\nHost *\n User two\n Port 44"},
	{name: "negated host", config: "Host * !h1\n User one\nHost h1\n User two"},
	{name: "match user", config: "Match user admin\n Port 99", change: func(h *hop.SSH) { h.User = "admin" }},
	{name: "match exec", config: "Match exec \"test %h = h1\"\n Port 98"},
	{name: "match exec by environment", config: "Match exec \"test $SITE = north\"\n User north"},
	{name: "include", config: "Include {dir}/more", change: nil},
	{name: "identity", config: "IdentityFile ~/.ssh/one\nIdentityFile {dir}/two"},
	{name: "identity with tokens", config: "IdentityFile ~/keys/%r@%h-%p"},
	{name: "identity with quotes", config: "IdentityFile \"{dir}/my key\""},
	{name: "identity of the inventory first", config: "IdentityFile ~/.ssh/one", change: func(h *hop.SSH) { h.PrivateKeyFile = "/k/a b" }},
	{name: "identities only", config: "IdentitiesOnly yes\nIdentityAgent ~/agent-%u"},
	{name: "identity agent variable", config: "IdentityAgent $MY_AGENT"},
	{name: "certificate", config: "CertificateFile ~/.ssh/c-cert.pub\nCertificateFile {dir}/d"},
	{name: "proxyjump", config: "ProxyJump me@j1:2022,j2"},
	{name: "proxyjump by -J", args: []string{"-J", "j1"}},
	{name: "proxyjump none", config: "Host h1\n ProxyJump none\nHost *\n ProxyJump j1"},
	{name: "proxycommand", config: "ProxyCommand nc -X 5 %h %p"},
	{name: "proxycommand by common args", args: []string{"-o", "ProxyCommand=ssh -W %h:%p -q bastion"}},
	{name: "accept-new", config: "StrictHostKeyChecking accept-new"},
	{name: "strict yes", config: "StrictHostKeyChecking yes"},
	{name: "strict off", config: "StrictHostKeyChecking off"},
	{name: "checking off", change: func(h *hop.SSH) { h.HostKeyChecking = false }},
	{name: "checking off but args first", args: []string{"-o", "StrictHostKeyChecking=yes"}, change: func(h *hop.SSH) { h.HostKeyChecking = false }},
	{name: "known hosts", config: "UserKnownHostsFile {dir}/k1 ~/k2\nGlobalKnownHostsFile /dev/null\nHashKnownHosts yes\nHostKeyAlias web"},
	{name: "no known hosts", config: "UserKnownHostsFile /dev/null"},
	{name: "known hosts none", config: "UserKnownHostsFile none"},
	{name: "timeouts", config: "ConnectTimeout 3\nConnectionAttempts 4\nServerAliveInterval 15\nServerAliveCountMax 2\nTCPKeepAlive no"},
	{name: "timeout by args first", args: []string{"-oConnectTimeout=33"}},
	{name: "algorithms", config: "Ciphers aes256-ctr,aes128-ctr\nMACs hmac-sha2-256\nKexAlgorithms curve25519-sha256\nHostKeyAlgorithms ssh-ed25519\nPubkeyAcceptedAlgorithms rsa-sha2-512"},
	{name: "algorithms added", config: "Ciphers +aes128-cbc\nHostKeyAlgorithms +ssh-rsa\nKexAlgorithms ^curve25519-sha256\nMACs -hmac-sha1"},
	{name: "family", config: "AddressFamily inet\nBindAddress 127.0.0.1"},
	{name: "environment", config: "SendEnv FOO BAR_*\nSetEnv A=1 \"B=x y\""},
	{name: "authentication off", config: "PubkeyAuthentication no\nForwardAgent yes"},
	{name: "password", change: func(h *hop.SSH) { h.Password = hop.NewSecret([]byte("x")) }},
	{name: "password, order", config: "PreferredAuthentications password,publickey", change: func(h *hop.SSH) { h.Password = hop.NewSecret([]byte("x")) }},
	{name: "ansible's defaults", args: []string{"-C", "-o", "ControlMaster=auto", "-o", "ControlPersist=60s"}},
	{name: "rekey", config: "RekeyLimit 1G 1h"},
}

// TestDifferential: what we would connect to and with is what `ssh -G` says for Ansible's own command line.
func TestDifferential(t *testing.T) {
	if n := len(fragments); n < 150 {
		t.Errorf("%d fragments", n)
	}
	for _, f := range fragments {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := testPlace(t, "SITE=north", "MY_AGENT=/run/my-agent")
			fill := strings.NewReplacer("{dir}", p.run.Cwd).Replace
			sshtest.WriteFile(t, filepath.Join(p.run.Cwd, "more"), "Port 4444\n")
			file := filepath.Join(p.run.Cwd, "config")
			sshtest.WriteFile(t, file, fill(f.config)+"\n")
			h := &hop.SSH{Host: "h1", HostKeyChecking: true, TimeoutSeconds: 10, Args: append([]string{"-F", file}, filled(f.args, fill)...)}
			if f.change != nil {
				f.change(h)
			}
			said := sshSays(t, p, h)
			c, err := newResolver().resolve(t.Context(), h, p)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, c, said)
		})
	}
}

// filled is args with each word filled in.
func filled(args []string, fill func(string) string) []string {
	all := make([]string, len(args))
	for i, arg := range args {
		all[i] = fill(arg)
	}
	return all
}

// compare checks every option that we read against what ssh said, each by its own words.
func compare(t *testing.T, c *config, said map[string][]string) {
	t.Helper()
	flag := func(b bool) string { return map[bool]string{true: "yes", false: "no"}[b] }
	duration := func(d time.Duration) string {
		if d == 0 {
			return "0"
		}
		return fmt.Sprint(int(d / time.Second))
	}
	got := map[string]string{
		"hostname": c.HostName, "port": fmt.Sprint(c.Port), "user": c.User, "addressfamily": c.AddressFamily, "bindaddress": c.BindAddress,
		"connecttimeout": duration(c.ConnectTimeout), "connectionattempts": fmt.Sprint(c.ConnectionAttempts), "tcpkeepalive": flag(c.TCPKeepAlive),
		"serveraliveinterval": duration(c.AliveInterval), "serveralivecountmax": fmt.Sprint(c.AliveCountMax), "proxyjump": c.ProxyJump,
		"proxycommand": c.ProxyCommand, "identitiesonly": flag(c.IdentitiesOnly), "identityagent": c.IdentityAgent,
		"pubkeyauthentication": flag(c.PubkeyAuth), "passwordauthentication": flag(c.PasswordAuth),
		"kbdinteractiveauthentication": flag(c.KbdInteractiveAuth), "gssapiauthentication": flag(c.GSSAPIAuth), "forwardagent": c.ForwardAgent,
		"hostkeyalias": c.HostKeyAlias, "hashknownhosts": flag(c.HashKnownHosts), "nohostauthenticationforlocalhost": flag(c.NoAuthForLocal),
		"stricthostkeychecking": c.StrictHostKeys, "userknownhostsfile": strings.Join(c.UserKnownHosts, " "),
		"globalknownhostsfile": strings.Join(c.GlobalKnownHosts, " "), "ciphers": strings.Join(c.Ciphers, ","), "macs": strings.Join(c.MACs, ","),
		"kexalgorithms": strings.Join(c.Kexs, ","), "hostkeyalgorithms": strings.Join(c.HostKeyAlgorithms, ","),
		"pubkeyacceptedalgorithms": strings.Join(c.PubkeyAlgorithms, ","), "preferredauthentications": strings.Join(c.PreferredAuths, ","),
		"identityfile": strings.Join(c.IdentityFiles, "\n"), "certificatefile": strings.Join(c.CertificateFiles, "\n"),
		"sendenv": strings.Join(c.SendEnv, "\n"), "setenv": strings.Join(c.SetEnv, "\n"), "batchmode": flag(c.BatchMode),
		"hostbasedauthentication": flag(c.HostbasedAuth), "requiredrsasize": fmt.Sprint(c.RequiredRSA),
		"casignaturealgorithms": strings.Join(c.CASignatures, ","), "controlpath": c.ControlPath,
	}
	same := map[string]string{"unbound": "yes", "host-bound": "yes", "true": "yes", "false": "no", "none": "", "off": "no"}
	for name, ours := range got {
		theirs := strings.Join(said[name], "\n")
		switch {
		case name == "preferredauthentications" && theirs == "":
			theirs = strings.Join(defaultPreferred, ",")
		case strings.HasSuffix(name, "timeout") || strings.HasSuffix(name, "interval"):
			theirs = strings.Replace(theirs, "none", "0", 1)
		}
		if name == "identityfile" { // ssh passes over it
			theirs = strings.TrimPrefix(theirs, "none\n")
		}
		if plain, ok := same[theirs]; ok {
			theirs = plain
		}
		if plain, ok := same[ours]; ok {
			ours = plain
		}
		if ours != theirs {
			t.Errorf("%s: ours is %q, ssh's %q", name, ours, theirs)
		}
	}
}

// TestPlainConfig: where ssh is not asked, because there is nothing to read, it would have said the same.
func TestPlainConfig(t *testing.T) {
	for name, h := range map[string]*hop.SSH{
		"host":     {Host: "h1", HostKeyChecking: true, TimeoutSeconds: 10},
		"all":      {Host: "h1", Port: 2222, User: "deploy", PrivateKeyFile: "/k/id", TimeoutSeconds: 7},
		"capitals": {Host: "H1.Example.ORG", HostKeyChecking: true, TimeoutSeconds: 10},
		"password": {Host: "h1", Password: hop.NewSecret([]byte("x")), HostKeyChecking: true, TimeoutSeconds: 10},
	} {
		t.Run(name, func(t *testing.T) { plainIsWhatSSHSays(t, h, nil) })
	}
}

// plainIsWhatSSHSays compares plainConfig with ssh -G, which is given args that must not matter.
func plainIsWhatSSHSays(t *testing.T, h *hop.SSH, args []string) {
	t.Helper()
	p := testPlace(t)
	asked := *h
	asked.Args = append([]string{"-F", os.DevNull}, args...)
	want, err := newResolver().resolve(t.Context(), &asked, p)
	if err != nil {
		t.Fatal(err)
	}
	got, said := reflect.ValueOf(*plainConfig(h, p)), reflect.ValueOf(*want)
	for i := range got.NumField() {
		if !got.Type().Field(i).IsExported() { // what ssh_config has that only ssh can do: nothing here
			continue
		}
		field := got.Type().Field(i).Name
		a, b := got.Field(i).Interface(), said.Field(i).Interface()
		switch field {
		case "Ciphers", "MACs", "Kexs", "HostKeyAlgorithms", "PubkeyAlgorithms", "CASignatures": // empty stands for the default
			continue
		case "GSSAPIAuth", "HashKnownHosts", "ConfigFile": // distributions change the defaults of ssh itself
			continue
		case "IdentityFiles":
			b = slices.DeleteFunc(slices.Clone(want.IdentityFiles), func(s string) bool { // dead kinds
				return strings.HasSuffix(s, "id_xmss") || strings.HasSuffix(s, "id_dsa")
			})
		case "UserKnownHosts":
			a = []string{p.abs("~/.ssh/known_hosts"), p.abs("~/.ssh/known_hosts2")}
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: ours is %v, ssh's %v", field, a, b)
		}
	}
}

// stubSSH is an ssh that counts its calls and prints a configuration. It returns the directory for PATH, and the count.
func stubSSH(t *testing.T, script string) (dir string, calls func() int) {
	t.Helper()
	dir = t.TempDir()
	log := filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho x >>" + log + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte(text), 0o700); err != nil { // a program
		t.Fatal(err)
	}
	return dir, func() int {
		out, _ := os.ReadFile(log)
		return bytes.Count(out, []byte("\n"))
	}
}

func TestConfigIsAskedOnce(t *testing.T) {
	dir, calls := stubSSH(t, "echo hostname $HOSTNAME_WANTED; echo port 22")
	p := testPlace(t)
	p.run.Environ = []string{"PATH=" + dir + ":/usr/bin:/bin", "HOSTNAME_WANTED=one"}
	file := filepath.Join(p.run.Cwd, "config")
	sshtest.WriteFile(t, file, "Host *\n")
	r := newResolver()
	resolve := func(host string, p *place, args ...string) *config {
		t.Helper()
		c, err := r.resolve(t.Context(), &hop.SSH{Host: host, Args: append([]string{"-F", file}, args...)}, p)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	expect := func(what string, want int) {
		t.Helper()
		if got := calls(); got != want {
			t.Fatalf("%s: %d calls, want %d", what, got, want)
		}
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { resolve("h1", p) })
	}
	all.Wait()
	expect("20 at once", 1)
	resolve("h2", p)
	expect("another host", 2)
	resolve("h1", p, "-4")
	expect("other arguments", 3)
	other := *p
	other.run.Environ = []string{p.run.Environ[0], "HOSTNAME_WANTED=two"}
	if c := resolve("h1", &other); c.HostName != "two" {
		t.Errorf("got %q", c.HostName)
	}
	expect("another environment", 4)
	other = *p
	other.run.ID = "r2"
	resolve("h1", &other)
	expect("another run", 4)
	sshtest.WriteFile(t, file, "Match exec true\n")
	resolve("h1", p)
	resolve("h1", p)
	expect("the file changed", 5)
	resolve("h1", &other)
	expect("another run, with Match", 6)
}

func TestConfigFailures(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	sshtest.WriteFile(t, file, "Host *\n")
	h := &hop.SSH{Host: "h1", Args: []string{"-F", file}}
	dir, _ := stubSSH(t, "echo 'config: line 3: Bad option: foo' >&2; exit 255")
	p := testPlace(t)
	p.run.Environ = []string{"PATH=" + dir}
	_, err := newResolver().resolve(t.Context(), h, p)
	if f := typed(t, err, fault.Unreachable); f.Hint != "config: line 3: Bad option: foo" {
		t.Errorf("hint %q", f.Hint)
	}

	p.run.Environ = []string{"PATH=/nowhere"}
	_, err = newResolver().resolve(t.Context(), h, p)
	failsAs(t, err, fault.Unsupported)

	dir, calls := stubSSH(t, "exec sleep 60")
	p.run.Environ = []string{"PATH=" + dir + ":/usr/bin:/bin"}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	r := newResolver()
	go func() {
		_, err := r.resolve(ctx, h, p)
		ended <- err
	}()
	waitFor(t, func() bool { return calls() == 1 })
	cancel(errors.New("enough"))
	failsAs(t, <-ended, fault.Cancelled)
}

// TestNoProgram: what only a program could do, and there is none.
func TestNoProgram(t *testing.T) {
	p := testPlace(t)
	_, err := New(Options{}).Dial(t.Context(), &hop.SSH{Host: "h1", Executable: "/nowhere/ssh"}, p.run)
	if f := typed(t, err, fault.Unreachable); f.Message != "Cannot run /nowhere/ssh" {
		t.Errorf("got %q", f.Message)
	}
	if stock := p.lookPath("ssh"); stock != "" && !p.isStockSSH(stock) {
		t.Error("the stock ssh by its path is not known as such")
	}
}

func TestOnlyMoot(t *testing.T) {
	for args, want := range map[string]bool{
		"": true, "-C": true, "-C -o ControlMaster=auto -o ControlPersist=60s": true, "-oControlPath=/x": false, "-o Compression=yes": true,
		"-F none": true, "-F /x": false, "-o User=x": false, "-p 22": false, "-o": false, "-vvv": true, "-tt": true, "-q": true, "-4": false,
	} {
		if got := onlyMoot(strings.Fields(args)); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
}

func TestConfigFileOf(t *testing.T) {
	for args, want := range map[string]string{
		"": "", "-F /a": "/a", "-F/a": "/a", "-CF /a": "/a", "-o F=/x": "", "-p 22 -F /a": "/a", "-l -F": "", "-oX -vF/b": "/b", "-F": "",
	} {
		if got := configFileOf(strings.Fields(args)); got != want {
			t.Errorf("%q: got %q, want %q", args, got, want)
		}
	}
}

func TestExpand(t *testing.T) {
	p := &place{home: "/home/me", user: "me", uid: "1000", run: hop.Run{Cwd: "/work", Environ: []string{"A=first", "A=last", "B=b"}}}
	c := &config{Host: "h1", HostName: "192.0.2.1", Port: 2222, User: "deploy"}
	for in, want := range map[string]string{
		"~/x": "/home/me/x", "~": "/home/me", "x": "/work/x", "/a": "/a", "/%h-%p-%r-%n-%u-%i-%%": "/192.0.2.1-2222-deploy-h1-me-1000-%",
		"%d/k": "/home/me/k", "/${A}/${B}": "/last/b", "/${NONE}x": "/x", "/${A": "/${A", "/%k": "/h1", "/$A": "/$A",
	} {
		if got := p.path(c, in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestPaths(t *testing.T) {
	for in, want := range map[string][]string{
		"/a /b": {"/a", "/b"}, "/my files/a ~/b": {"/my files/a", "~/b"}, "none": nil, "/a none": {"/a"}, "": nil,
	} {
		if got := paths(in); !slices.Equal(got, want) && !(len(got) == 1 && got[0] == "" && want == nil) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("hostname h\nport 22\nuserknownhostsfile /a b\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseConfig("h", b) })
}

func FuzzKnownHosts(f *testing.F) {
	f.Add([]byte("|1|MTIz|NDU2 ssh-ed25519 AAAA\n@revoked * x y\n[a]:2,!b ssh-rsa AAAA\n"), "a")
	f.Fuzz(func(t *testing.T, b []byte, host string) {
		file := filepath.Join(t.TempDir(), "k")
		sshtest.WriteFile(t, file, string(b))
		for _, l := range readKnownHosts([]string{file}) {
			_, _ = l.matches(host), l.public()
		}
	})
}

// TestArgumentsKeepTheCoresOrder: of two values ssh takes the first, and the core puts ssh_args before its own options, the rest behind.
func TestArgumentsKeepTheCoresOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	sshtest.WriteFile(t, file, "")
	for name, c := range map[string]struct {
		hop  hop.SSH
		want string
	}{
		"early wins":      {hop.SSH{Port: 22, Args: []string{"-F", file, "-o", "Port=1"}}, "1"},
		"late loses":      {hop.SSH{Port: 22, Args: []string{"-F", file}, LateArgs: []string{"-o", "Port=1"}}, "22"},
		"late, unopposed": {hop.SSH{Args: []string{"-F", file}, LateArgs: []string{"-o", "Port=1"}}, "1"},
		"file named late": {hop.SSH{LateArgs: []string{"-F", file, "-p", "3"}}, "3"},
	} {
		t.Run(name, func(t *testing.T) {
			c.hop.Host = "h1"
			cfg, err := newResolver().resolve(t.Context(), &c.hop, testPlace(t))
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(cfg.Port); got != c.want {
				t.Errorf("port %s, want %s", got, c.want)
			}
		})
	}
}
