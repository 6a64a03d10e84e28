package sshlink

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestEveryOptionIsTreated: whatever this machine's ssh has, our table has; and the page for people says what the table does.
func TestEveryOptionIsTreated(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/ssh.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]treatment{}
	names := map[string]treatment{"done": done, "moot": moot, "ssh": fallback}
	for _, row := range regexp.MustCompile(`(?m)^\| (\w+) \| (done|moot|ssh) \|`).FindAllStringSubmatch(string(page), -1) {
		told[strings.ToLower(row[1])] = names[row[2]]
	}
	for name, is := range treatments {
		if told[name] != is {
			t.Errorf("%s: the page says %d, the table %d", name, told[name], is)
		}
	}
	for name := range told {
		if treatments[name] == 0 {
			t.Errorf("%s is on the page, and not in the table", name)
		}
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("ssh is not installed")
	}
	out, err := exec.CommandContext(t.Context(), program, "-F", "none", "-G", "-o", "PKCS11Provider=/x", "-o", "ProxyCommand=x", "-o", "LocalCommand=x",
		"-o", "RemoteCommand=x", "-o", "HostKeyAlias=x", "-o", "CertificateFile=x", "-o", "BindAddress=::1", "-o", "SendEnv=A", "-o", "SetEnv=A=b",
		"-o", "KnownHostsCommand=/x", "-o", "RevokedHostKeys=/x", "-o", "IdentityAgent=/x", "-o", "ControlPath=/x", "-L", "1:h:1", "-R", "1:h:1", "-D", "1",
		"-o", "PreferredAuthentications=publickey", "-o", "BindInterface=lo", "h").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	n := 0
	for lines.Scan() {
		name, _, _ := strings.Cut(strings.ToLower(lines.Text()), " ")
		n++
		if treatments[name] == 0 {
			t.Errorf("%s is an option of this ssh, and not in the table", name)
		}
	}
	if n < 80 {
		t.Errorf("ssh -G gave %d lines", n)
	}
}
