package sshlink

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// hostKeys judges the server's key for one connection, by the known_hosts files and StrictHostKeyChecking.
type hostKeys struct {
	cfg      *config
	name     string // as known_hosts has it: "[h]:2222", or HostKeyAlias
	bare     string // without the port; empty if that is the same or an alias was given
	lines    []knownLine
	user     []string // files; the first takes new keys
	revoked  string
	distrust func() // called when a key is let through although it differs
	notes    []mux.Note
}

func newHostKeys(c *config, p *place) *hostKeys {
	k := &hostKeys{cfg: c, name: strings.ToLower(c.HostName)}
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
	if revoked, err := k.checkRevoked(key); revoked {
		return err
	}
	if bits := rsaBits(key); bits > 0 && bits < k.cfg.RequiredRSA {
		return &fault.Error{
			Kind: fault.HostKeyChanged, Message: fmt.Sprintf("The RSA host key of %s has %d bits, RequiredRSASize asks for %d", k.name, bits, k.cfg.RequiredRSA),
			Hint: "Give the host a longer key, or lower RequiredRSASize.",
		}
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
	for _, key := range []ssh.PublicKey{cert.SignatureKey, cert.Key} {
		if revoked, err := k.checkRevoked(key); revoked {
			return true, err
		}
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
	switch {
	case cert.CertType != ssh.HostCert:
		err = errors.New("it is no host certificate")
	case k.cfg.CASignatures != nil && !slices.Contains(k.cfg.CASignatures, cert.Signature.Format):
		err = fmt.Errorf("its signature %s is not among CASignatureAlgorithms", cert.Signature.Format)
	default:
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

// checkRevoked judges a key that is revoked, and reports whether it is. As with ssh, RevokedHostKeys is final, and a @revoked line is
// let through when host key checking is off.
func (k *hostKeys) checkRevoked(key ssh.PublicKey) (revoked bool, err error) {
	if k.revoked != "" && k.inRevokedFile(key) {
		return true, k.revokedFault(key, k.revoked)
	}
	for _, line := range k.lines {
		if known := line.public(); line.marker != markRevoked || known == nil || !equalKeys(known, key) {
			continue
		}
		if k.cfg.StrictHostKeys != "no" {
			return true, k.revokedFault(key, line.where())
		}
		k.warn("the host key of %s is revoked by %s; host key checking is off, so only passwords and agent forwarding are refused", k.name, line.where())
		k.distrusts()
		return true, nil
	}
	return false, nil
}

// inRevokedFile reports whether RevokedHostKeys has key. A file that cannot be read counts as having every key.
func (k *hostKeys) inRevokedFile(key ssh.PublicKey) bool {
	rest, err := os.ReadFile(k.revoked)
	if err != nil {
		return true
	}
	for len(rest) > 0 {
		var known ssh.PublicKey
		if known, _, _, rest, err = ssh.ParseAuthorizedKey(rest); err != nil {
			return false
		}
		if equalKeys(known, key) {
			return true
		}
	}
	return false
}

func (k *hostKeys) distrusts() {
	if k.distrust != nil {
		k.distrust()
	}
}

// krlMagic begins a key revocation list (PROTOCOL.krl of OpenSSH).
const krlMagic = "SSHKRL\n\x00"

// isKRL reports whether a file is a key revocation list, which is read by OpenSSH alone.
func isKRL(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, len(krlMagic))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == krlMagic
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
		k.warn("the host key of %s has changed to %s, %s has another; host key checking is off, so only passwords and agent forwarding are refused",
			k.name, ssh.FingerprintSHA256(key), known.where())
		k.distrusts()
		return nil
	}
	return &fault.Error{
		Kind: fault.HostKeyChanged,
		Message: fmt.Sprintf("REMOTE HOST IDENTIFICATION HAS CHANGED: %s shows the %s key %s, %s has another", k.name, keyName(key),
			ssh.FingerprintSHA256(key), known.where()),
		Hint: fmt.Sprintf("Someone may be eavesdropping, or the host was reinstalled. If that is so: ssh-keygen -f '%s' -R '%s'.", known.file, k.name),
	}
}

func (k *hostKeys) warn(format string, args ...any) {
	k.notes = append(k.notes, mux.Note{Level: mux.Warning, Text: fmt.Sprintf(format, args...)})
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
			k.warn("the host key of %s could not be remembered: %s", k.name, plainFileError(err))
		}
		return nil
	}
	if first == "" || first == os.DevNull {
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

// rsaBits is the size of an RSA key, 0 for others.
func rsaBits(key ssh.PublicKey) int {
	if holder, ok := key.(ssh.CryptoPublicKey); ok {
		if public, ok := holder.CryptoPublicKey().(*rsa.PublicKey); ok {
			return public.N.BitLen()
		}
	}
	return 0
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
