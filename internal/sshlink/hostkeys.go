package sshlink

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// hostKeys judges the server's key for one connection, by the known_hosts files and StrictHostKeyChecking.
type hostKeys struct {
	cfg      *config
	log      hclog.Logger
	name     string // as known_hosts has it: "[h]:2222", or HostKeyAlias
	bare     string // without the port; empty if that is the same or an alias was given
	lines    []knownLine
	user     []string // files; the first takes new keys
	revoked  string
	distrust func() // called when a key is let through although it differs
}

func newHostKeys(c *config, p *place, log hclog.Logger) *hostKeys {
	k := &hostKeys{cfg: c, log: log, name: strings.ToLower(c.HostName)}
	switch {
	case c.HostKeyAlias != "":
		k.name = c.HostKeyAlias
	case c.Port != 22:
		k.bare = k.name
		k.name = fmt.Sprintf("[%s]:%d", k.name, c.Port)
	}
	var files []string
	for _, file := range c.UserKnownHosts {
		k.user = append(k.user, p.path(c, file))
	}
	files = append(files, k.user...)
	for _, file := range c.GlobalKnownHosts {
		files = append(files, p.path(c, file))
	}
	for _, line := range readKnownHosts(files) {
		if line.matches(k.name) || (k.bare != "" && line.matches(k.bare)) {
			k.lines = append(k.lines, line)
		}
	}
	if c.RevokedHostKeys != "" {
		k.revoked = p.path(c, c.RevokedHostKeys)
	}
	return k
}

// algorithms puts those first for which a key is known, so that a server with several keys shows a known one.
func (k *hostKeys) algorithms() []string {
	able := supported(k.cfg.HostKeyAlgorithms, ssh.SupportedAlgorithms().HostKeys, ssh.InsecureAlgorithms().HostKeys)
	if len(able) == 0 {
		able = ssh.SupportedAlgorithms().HostKeys
	}
	known := func(algo string) bool {
		plain, isCert := strings.CutSuffix(algo, certSuffix)
		return slices.ContainsFunc(k.lines, func(l knownLine) bool {
			switch l.marker {
			case "":
				return !isCert && slices.Contains(algorithmsFor(l.keyType, []string{plain}), plain)
			case markAuthority:
				return isCert
			default:
				return false
			}
		})
	}
	var first, rest []string
	for _, algo := range able {
		if known(algo) {
			first = append(first, algo)
		} else {
			rest = append(rest, algo)
		}
	}
	return append(first, rest...)
}

// check is the ssh.HostKeyCallback.
func (k *hostKeys) check(_ string, remote net.Addr, shown ssh.PublicKey) error {
	if k.cfg.NoAuthForLocal && isLoopback(remote) {
		return nil
	}
	key := shown
	if cert, ok := shown.(*ssh.Certificate); ok {
		key = cert.Key
		if done, err := k.checkCertificate(cert); done {
			return err
		}
	}
	if where := k.isRevoked(key); where != "" {
		return k.revokedFault(key, where)
	}
	differs, found := k.look(k.name, key)
	if found {
		return nil
	}
	if k.bare != "" && differs == nil {
		if _, found := k.look(k.bare, key); found {
			return nil
		}
	}
	if differs != nil {
		return k.changed(key, *differs)
	}
	return k.unknown(key)
}

// look searches name's plain entries for key, and returns the first that has another one.
func (k *hostKeys) look(name string, key ssh.PublicKey) (differs *knownLine, found bool) {
	for _, line := range k.lines {
		if line.marker != "" || !line.matches(name) {
			continue
		}
		known := line.public()
		if known == nil {
			continue
		}
		if equalKeys(known, key) {
			return nil, true
		}
		if differs == nil || (known.Type() == key.Type() && differs.keyType != key.Type()) {
			differs = &line
		}
	}
	return differs, false
}

// checkCertificate accepts a certificate of a known authority. done is false when none vouches for it: the key in it then
// counts as a plain one.
func (k *hostKeys) checkCertificate(cert *ssh.Certificate) (done bool, err error) {
	if where := k.isRevoked(cert.SignatureKey); where != "" {
		return true, k.revokedFault(cert.SignatureKey, where)
	}
	if where := k.isRevoked(cert.Key); where != "" {
		return true, k.revokedFault(cert.Key, where)
	}
	at := slices.IndexFunc(k.lines, func(l knownLine) bool {
		known := l.public()
		return l.marker == markAuthority && known != nil && equalKeys(known, cert.SignatureKey)
	})
	if at < 0 {
		return false, nil
	}
	name := k.cfg.HostKeyAlias
	if name == "" {
		name = strings.ToLower(k.cfg.HostName)
	}
	if cert.CertType != ssh.HostCert {
		err = fmt.Errorf("it is no host certificate")
	} else {
		err = (&ssh.CertChecker{}).CheckCert(name, cert)
	}
	if err != nil {
		return true, &fault.Error{
			Kind: fault.HostKeyChanged, Message: fmt.Sprintf("The host certificate of %s is not valid", name), Cause: err,
			Hint: fmt.Sprintf("Its authority is known by %s; renew the certificate on the host.", k.lines[at].where()),
		}
	}
	return true, nil
}

// isRevoked says where key is revoked, empty if it is not.
func (k *hostKeys) isRevoked(key ssh.PublicKey) string {
	for _, line := range k.lines {
		if known := line.public(); line.marker == markRevoked && known != nil && equalKeys(known, key) {
			return line.where()
		}
	}
	if k.revoked == "" {
		return ""
	}
	data, err := os.ReadFile(k.revoked)
	if err != nil || bytes.HasPrefix(data, []byte("SSHKRL\n\x00")) {
		return k.revoked + " (which cannot be read here, so every key counts as revoked)"
	}
	for rest := data; len(rest) > 0; {
		var known ssh.PublicKey
		if known, _, _, rest, err = ssh.ParseAuthorizedKey(rest); err != nil {
			return ""
		}
		if equalKeys(known, key) {
			return k.revoked
		}
	}
	return ""
}

func (k *hostKeys) revokedFault(key ssh.PublicKey, where string) error {
	return &fault.Error{
		Kind:    fault.HostKeyChanged,
		Message: fmt.Sprintf("The %s host key for %s is revoked by %s", keyName(key), k.name, where),
		Hint:    fmt.Sprintf("Do not trust this host: its key %s is marked as revoked.", ssh.FingerprintSHA256(key)),
	}
}

func (k *hostKeys) changed(key ssh.PublicKey, known knownLine) error {
	if k.cfg.StrictHostKeys == "no" {
		k.log.Warn("host key has changed; host key checking is off, so only passwords and agent forwarding are refused",
			"host", k.name, "fingerprint", ssh.FingerprintSHA256(key), "known", known.where())
		if k.distrust != nil {
			k.distrust()
		}
		return nil
	}
	return &fault.Error{
		Kind: fault.HostKeyChanged,
		Message: fmt.Sprintf("REMOTE HOST IDENTIFICATION HAS CHANGED: %s shows the %s key %s, %s has another", k.name, keyName(key),
			ssh.FingerprintSHA256(key), known.where()),
		Hint: fmt.Sprintf("Someone may be eavesdropping, or the host was reinstalled. If that is so: ssh-keygen -f '%s' -R '%s'.", known.file, k.name),
	}
}

func (k *hostKeys) unknown(key ssh.PublicKey) error {
	first := ""
	if len(k.user) > 0 {
		first = k.user[0]
	}
	if k.cfg.StrictHostKeys == "accept-new" || k.cfg.StrictHostKeys == "no" {
		if first == "" || first == os.DevNull {
			return nil
		}
		if err := appendKnownHost(first, k.name, k.cfg.HashKnownHosts, key); err != nil {
			k.log.Warn("host key not remembered", "host", k.name, "error", err)
		}
		return nil
	}
	if first == "" {
		first = "known_hosts"
	}
	return &fault.Error{
		Kind: fault.HostKeyUnknown,
		Message: fmt.Sprintf("Host key verification failed: the %s key %s of %s is in none of %s", keyName(key),
			ssh.FingerprintSHA256(key), k.name, strings.Join(slices.Concat(k.user, k.cfg.GlobalKnownHosts), ", ")),
		Hint: fmt.Sprintf("Compare the fingerprint, then add the key: ssh-keyscan -p %d '%s' >> '%s'; or set StrictHostKeyChecking=accept-new.",
			k.cfg.Port, k.cfg.HostName, first),
	}
}

// keyName is what ssh calls a key's type: ED25519, ECDSA, RSA.
func keyName(key ssh.PublicKey) string {
	name := strings.TrimPrefix(strings.TrimPrefix(key.Type(), "sk-"), "ssh-")
	if strings.HasPrefix(name, "ecdsa") {
		name = "ecdsa"
	}
	name, _, _ = strings.Cut(name, "@")
	return strings.ToUpper(name)
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// supported returns what of want we are able to do, in want's order.
func supported(want []string, able ...[]string) []string {
	var all []string
	for _, algo := range want {
		if slices.ContainsFunc(able, func(have []string) bool { return slices.Contains(have, algo) }) {
			all = append(all, algo)
		}
	}
	return all
}
