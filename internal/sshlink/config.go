package sshlink

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// config is what OpenSSH would do for one target: the options of `ssh -G` that matter to a connection, under OpenSSH's names.
// Paths and lists are as ssh prints them; expand.go resolves what is left of tokens in them.
type config struct {
	Host     string // as given, %n
	HostName string
	Port     int
	User     string

	AddressFamily      string // any, inet, inet6
	BindAddress        string
	ConnectTimeout     time.Duration // 0: none
	ConnectionAttempts int
	TCPKeepAlive       bool
	AliveInterval      time.Duration // ServerAliveInterval, 0: none
	AliveCountMax      int
	ProxyJump          string
	ProxyCommand       string
	ConfigFile         string // -F of the arguments: ProxyJump's hosts read it too

	IdentityFiles       []string
	IdentitiesOnly      bool
	IdentityAgent       string // empty: SSH_AUTH_SOCK
	CertificateFiles    []string
	PubkeyAuth          bool
	PasswordAuth        bool
	KbdInteractiveAuth  bool
	GSSAPIAuth          bool
	HostbasedAuth       bool
	PreferredAuths      []string
	ForwardAgent        string // no, yes, or a socket's path
	PubkeyAlgorithms    []string
	HostKeyAlgorithms   []string
	Ciphers, MACs, Kexs []string
	RekeyBytes          uint64

	StrictHostKeys   string // yes, accept-new, no, off, ask
	HostKeyAlias     string
	HashKnownHosts   bool
	UserKnownHosts   []string
	GlobalKnownHosts []string
	RevokedHostKeys  string
	NoAuthForLocal   bool // NoHostAuthenticationForLocalhost

	SendEnv []string
	SetEnv  []string

	BatchMode    bool     // nobody may be asked for anything: no password is sent
	CASignatures []string // CASignatureAlgorithms
	RequiredRSA  int      // RequiredRSASize, bits
	ControlPath  string   // of a control connection that the user may have open; empty: none

	elsewhere    []string // options that only the user's ssh can do
	localCommand string
	permitLocal  bool
}

// defaultPreferred is OpenSSH's order of methods.
var defaultPreferred = []string{"gssapi-with-mic", "hostbased", "publickey", "keyboard-interactive", "password"}

// defaultConfig is what `ssh -G` says where there is no configuration and there are no options.
func defaultConfig(host, user string) *config {
	return &config{
		Host: host, HostName: strings.ToLower(host), Port: 22, User: user,
		AddressFamily: "any", ConnectionAttempts: 1, TCPKeepAlive: true, AliveCountMax: 3,
		IdentityFiles: []string{"~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ecdsa_sk", "~/.ssh/id_ed25519", "~/.ssh/id_ed25519_sk"},
		PubkeyAuth:    true, PasswordAuth: true, KbdInteractiveAuth: true, PreferredAuths: defaultPreferred, ForwardAgent: "no",
		RequiredRSA:      1024,
		StrictHostKeys:   "ask",
		UserKnownHosts:   []string{"~/.ssh/known_hosts", "~/.ssh/known_hosts2"},
		GlobalKnownHosts: []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"},
	}
}

// parseConfig reads the output of `ssh -G`. Options that a connection of ours does not depend on are passed over.
func parseConfig(host string, out []byte) (*config, error) {
	c := &config{Host: host, HostName: host, Port: 22, ConnectionAttempts: 1, PreferredAuths: defaultPreferred, ForwardAgent: "no"}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if err := c.set(strings.ToLower(name), strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("cannot read option %s of ssh -G: %w", name, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the output of ssh -G: %w", err)
	}
	c.settleForeign()
	return c, nil
}

func (c *config) set(name, value string) error {
	var err error
	switch name {
	case "hostname":
		c.HostName = value
	case "port":
		c.Port, err = strconv.Atoi(value)
	case "user":
		c.User = value
	case "addressfamily":
		c.AddressFamily = value
	case "bindaddress":
		c.BindAddress = value
	case "connecttimeout":
		c.ConnectTimeout, err = seconds(value)
	case "connectionattempts":
		c.ConnectionAttempts, err = strconv.Atoi(value)
	case "tcpkeepalive":
		c.TCPKeepAlive = yes(value)
	case "serveraliveinterval":
		c.AliveInterval, err = seconds(value)
	case "serveralivecountmax":
		c.AliveCountMax, err = strconv.Atoi(value)
	case "proxyjump":
		c.ProxyJump = notNone(value)
	case "proxycommand":
		c.ProxyCommand = notNone(value)
	case "rekeylimit":
		bytes, _, _ := strings.Cut(value, " ")
		c.RekeyBytes, err = strconv.ParseUint(bytes, 10, 64)
	case "sendenv":
		c.SendEnv = append(c.SendEnv, value)
	case "setenv":
		c.SetEnv = append(c.SetEnv, value)
	case "batchmode":
		c.BatchMode = yes(value)
	case "controlpath":
		c.ControlPath = notNone(value)
	case "requiredrsasize":
		c.RequiredRSA, err = strconv.Atoi(value)
	default:
		c.setAuth(name, value)
		c.setTrust(name, value)
		c.noteForeign(name, value)
	}
	return err
}

// setAuth takes the options about who we are.
func (c *config) setAuth(name, value string) {
	switch name {
	case "identityfile":
		if notNone(value) != "" && !slices.Contains(c.IdentityFiles, value) {
			c.IdentityFiles = append(c.IdentityFiles, value)
		}
	case "identitiesonly":
		c.IdentitiesOnly = yes(value)
	case "identityagent":
		c.IdentityAgent = value
	case "certificatefile":
		if notNone(value) != "" {
			c.CertificateFiles = append(c.CertificateFiles, value)
		}
	case "pubkeyauthentication":
		c.PubkeyAuth = value != "no" && value != "false"
	case "passwordauthentication":
		c.PasswordAuth = yes(value)
	case "kbdinteractiveauthentication", "challengeresponseauthentication":
		c.KbdInteractiveAuth = yes(value)
	case "gssapiauthentication":
		c.GSSAPIAuth = yes(value)
	case "hostbasedauthentication":
		c.HostbasedAuth = yes(value)
	case "preferredauthentications":
		c.PreferredAuths = list(value)
	case "forwardagent":
		c.ForwardAgent = value
	case "pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes":
		c.PubkeyAlgorithms = list(value)
	}
}

// setTrust takes the options about who they are, and the algorithms.
func (c *config) setTrust(name, value string) {
	switch name {
	case "stricthostkeychecking":
		c.StrictHostKeys = value
		switch value { // as older releases print it
		case "true":
			c.StrictHostKeys = "yes"
		case "false", "off":
			c.StrictHostKeys = "no"
		}
	case "hostkeyalias":
		c.HostKeyAlias = notNone(value)
	case "hashknownhosts":
		c.HashKnownHosts = yes(value)
	case "userknownhostsfile":
		c.UserKnownHosts = paths(value)
	case "globalknownhostsfile":
		c.GlobalKnownHosts = paths(value)
	case "revokedhostkeys":
		c.RevokedHostKeys = notNone(value)
	case "nohostauthenticationforlocalhost":
		c.NoAuthForLocal = yes(value)
	case "casignaturealgorithms":
		c.CASignatures = list(value)
	case "hostkeyalgorithms":
		c.HostKeyAlgorithms = list(value)
	case "ciphers":
		c.Ciphers = list(value)
	case "macs":
		c.MACs = list(value)
	case "kexalgorithms":
		c.Kexs = list(value)
	}
}

func yes(value string) bool { return value == "yes" || value == "true" }

func notNone(value string) string {
	if strings.EqualFold(value, "none") {
		return ""
	}
	return value
}

func list(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
}

func seconds(value string) (time.Duration, error) {
	if notNone(value) == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(value)
	return time.Duration(n) * time.Second, err
}

// paths splits a list of files. ssh prints them without quotes, so a word that cannot start a path belongs to the path before it.
func paths(value string) []string {
	var all []string
	for word := range strings.SplitSeq(value, " ") {
		switch {
		case len(all) > 0 && word != "none" && !strings.HasPrefix(word, "/") && !strings.HasPrefix(word, "~"):
			all[len(all)-1] += " " + word
		case notNone(word) != "":
			all = append(all, word)
		}
	}
	return all
}
