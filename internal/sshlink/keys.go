package sshlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// givenKey stands in the list of identity files for the key that Ansible gave as content.
const givenKey = "/private_key of ansible"

// key is something to offer. It restricts its signer to the algorithms that the configuration accepts, and remembers its use.
type key struct {
	ssh.AlgorithmSigner
	source string // "agent" or a path, for people
	algos  []string
	used   bool
	err    error // of signing
}

// Algorithms implements ssh.MultiAlgorithmSigner.
func (k *key) Algorithms() []string { return k.algos }

// SignWithAlgorithm implements ssh.AlgorithmSigner.
func (k *key) SignWithAlgorithm(rand io.Reader, data []byte, algo string) (*ssh.Signature, error) {
	k.used = true
	sig, err := k.AlgorithmSigner.SignWithAlgorithm(rand, data, algo)
	k.err = err
	return sig, err
}

func (k *key) String() string {
	return fmt.Sprintf("%s (%s %s)", k.source, k.PublicKey().Type(), ssh.FingerprintSHA256(k.PublicKey()))
}

// keyring is what can be offered, in OpenSSH's order, and why some keys cannot.
type keyring struct {
	keys     []*key
	skipped  []string
	hardware []string // files whose private part is in a security key, and in no agent
	agent    net.Conn
}

func (r *keyring) close() {
	if r.agent != nil {
		_ = r.agent.Close()
	}
}

func (r *keyring) skip(format string, args ...any) {
	r.skipped = append(r.skipped, fmt.Sprintf(format, args...))
}

// add appends signer unless the configuration accepts none of its algorithms, or the key is there already.
func (r *keyring) add(c *config, signer ssh.Signer, source string) {
	blob := signer.PublicKey().Marshal()
	if slices.ContainsFunc(r.keys, func(k *key) bool { return bytes.Equal(k.PublicKey().Marshal(), blob) }) {
		return
	}
	able, ok := signer.(ssh.AlgorithmSigner)
	algos := algorithmsFor(signer.PublicKey().Type(), c.PubkeyAlgorithms)
	if !ok || len(algos) == 0 {
		r.skip("%s: %s is not among PubkeyAcceptedAlgorithms", source, signer.PublicKey().Type())
		return
	}
	r.keys = append(r.keys, &key{AlgorithmSigner: able, source: source, algos: algos})
}

// identity is one configured key: always a public part, a signer if we can sign with it ourselves.
type identity struct {
	path   string
	public ssh.PublicKey
	signer ssh.Signer
	cert   *ssh.Certificate // beside the key, FILE-cert.pub
	absent bool             // there is no private part, not even one that we cannot use
}

// loadKeys collects the keys for a connection. The agent's connection stays open in the ring, as signing needs it.
func loadKeys(ctx context.Context, c *config, p *place, h *hop.SSH) (*keyring, error) {
	r := &keyring{}
	if !c.PubkeyAuth {
		return r, nil
	}
	var identities []*identity
	for _, file := range c.IdentityFiles {
		id, err := r.loadIdentity(c, p, h, file)
		if err != nil {
			return nil, err
		}
		if id != nil {
			identities = append(identities, id)
		}
	}
	held := r.askAgent(ctx, c, p)
	r.order(c, p, identities, held)
	return r, nil
}

// order is OpenSSH's: certificates, then the agent's keys that are configured, then its other keys unless IdentitiesOnly, then
// files that no agent holds.
func (r *keyring) order(c *config, p *place, identities []*identity, held []ssh.Signer) {
	signerFor := func(public ssh.PublicKey) (ssh.Signer, string) {
		for _, s := range held {
			if equalKeys(s.PublicKey(), public) {
				return s, "agent"
			}
		}
		for _, id := range identities {
			if id.signer != nil && equalKeys(id.public, public) {
				return id.signer, id.path
			}
		}
		return nil, ""
	}
	addCert := func(cert *ssh.Certificate, path string) {
		base, _ := signerFor(cert.Key)
		if base == nil {
			r.skip("%s: no private key for this certificate", path)
			return
		}
		signer, err := ssh.NewCertSigner(cert, base)
		if err != nil {
			r.skip("%s: %v", path, err)
			return
		}
		r.add(c, signer, path)
	}
	for _, file := range c.CertificateFiles {
		path := p.path(c, file)
		cert, err := readCertificate(path)
		if err != nil {
			r.skip("%s: %s", path, plainFileError(err))
			continue
		}
		addCert(cert, path)
	}
	for _, id := range identities {
		if id.cert != nil {
			addCert(id.cert, id.path+"-cert.pub")
		}
	}
	configured := func(public ssh.PublicKey) bool {
		return slices.ContainsFunc(identities, func(id *identity) bool { return equalKeys(id.public, public) })
	}
	for _, s := range held {
		if configured(s.PublicKey()) {
			r.add(c, s, "agent")
		}
	}
	if !c.IdentitiesOnly {
		for _, s := range held {
			r.add(c, s, "agent")
		}
	}
	for _, id := range identities {
		switch {
		case id.signer != nil:
			r.add(c, id.signer, id.path)
		case slices.ContainsFunc(held, func(s ssh.Signer) bool { return equalKeys(s.PublicKey(), id.public) }):
		case strings.HasPrefix(id.public.Type(), "sk-") && !id.absent:
			r.hardware = append(r.hardware, id.path)
			r.skip("%s: its private key is in a security key", id.path)
		default:
			r.skip("%s: the agent does not hold it and its private key is not readable without a passphrase", id.path)
		}
	}
}

// loadIdentity reads one IdentityFile. A file that is missing or unfit is skipped, as ssh does; only the key that Ansible gave
// as content must be right.
func (r *keyring) loadIdentity(c *config, p *place, h *hop.SSH, file string) (*identity, error) {
	if file == givenKey {
		signer, err := parseKey(h.PrivateKey.Reveal(), h.PrivateKeyPassphrase)
		if err != nil {
			return nil, badGivenKey(err)
		}
		return &identity{path: "ansible_private_key", public: signer.PublicKey(), signer: signer}, nil
	}
	path := p.path(c, file)
	data, err := os.ReadFile(path)
	if err != nil {
		public, pubErr := readPublic(path + ".pub") // the private part may be in the agent only
		if pubErr != nil {
			if !errors.Is(err, fs.ErrNotExist) || file == h.PrivateKeyFile {
				r.skip("%s: %s", path, plainFileError(err))
			}
			return nil, nil // no identity and no reason to stop
		}
		return &identity{path: path, public: public, absent: true}, nil
	}
	id := &identity{path: path}
	if bytes.Contains(data, []byte("PRIVATE KEY")) && tooOpen(path) {
		r.skip("%s: its permissions are too open, ssh ignores such a key (chmod 600)", path)
		return nil, nil
	}
	signer, err := parseKey(data, h.PrivateKeyPassphrase)
	switch missing, locked := errors.AsType[*ssh.PassphraseMissingError](err); {
	case err == nil:
		id.signer, id.public = signer, signer.PublicKey()
	case locked && missing.PublicKey != nil:
		id.public = missing.PublicKey
	default:
		public, pubErr := parsePublic(data)
		if pubErr != nil {
			public, pubErr = readPublic(path + ".pub")
		}
		if pubErr != nil {
			r.skip("%s: %v", path, withoutData(err))
			return nil, nil
		}
		id.public = public
	}
	id.cert, _ = readCertificate(path + "-cert.pub")
	return id, nil
}

// tooOpen reports whether a file of ours may be read by others.
func tooOpen(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Getuid() && info.Mode().Perm()&0o077 != 0
}

// askAgent returns the signers of the run's agent. No agent, or one that fails, is no error: ssh goes on without.
func (r *keyring) askAgent(ctx context.Context, c *config, p *place) []ssh.Signer {
	socket := agentSocket(c, p)
	if socket == "" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		r.skip("agent %s: %s", socket, plainText(err))
		return nil
	}
	r.agent = conn
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		r.skip("agent %s: %s", socket, plainText(err))
		return nil
	}
	return signers
}

// agentSocket is the path of the agent's socket, empty if there is none to ask.
func agentSocket(c *config, p *place) string {
	switch s := c.IdentityAgent; {
	case s == "" || s == "SSH_AUTH_SOCK":
		return p.env("SSH_AUTH_SOCK")
	case notNone(s) == "":
		return ""
	case strings.HasPrefix(s, "$") && !strings.HasPrefix(s, "${"):
		return p.env(s[1:])
	default:
		return p.path(c, s)
	}
}

func parseKey(data []byte, passphrase hop.Secret) (ssh.Signer, error) {
	signer, err := ssh.ParsePrivateKey(data)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked && !passphrase.IsZero() {
		if open, err := ssh.ParsePrivateKeyWithPassphrase(data, passphrase.Reveal()); err == nil {
			return open, nil
		}
	}
	return signer, err
}

// withoutData keeps what an error of a key parser says of the kind of failure. Such errors never quote key material, but a
// parser's words for a file that is no key might.
func withoutData(err error) error {
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return errors.New("it is encrypted, and the passphrase is missing or wrong")
	}
	if strings.Contains(err.Error(), "no key found") {
		return errors.New("it holds no private key in PEM or OpenSSH format")
	}
	return errors.New("its format is damaged or not supported")
}

func readPublic(path string) (ssh.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parsePublic(data)
}

func parsePublic(data []byte) (ssh.PublicKey, error) {
	public, _, _, _, err := ssh.ParseAuthorizedKey(data)
	return public, err
}

func readCertificate(path string) (*ssh.Certificate, error) {
	public, err := readPublic(path)
	if err != nil {
		return nil, err
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.UserCert {
		return nil, errors.New("not a user certificate")
	}
	return cert, nil
}

func equalKeys(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

func plainFileError(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}

const certSuffix = "-cert-v01@openssh.com"

// weakAlgorithms are those that OpenSSH no longer uses unless told to.
var weakAlgorithms = []string{ssh.KeyAlgoRSA, ssh.CertAlgoRSAv01, "ssh-dss", "ssh-dss" + certSuffix}

// algorithmsFor returns the signature algorithms for a key of the given format that accepted allows, in its order; nil accepted
// means OpenSSH's default.
func algorithmsFor(format string, accepted []string) []string {
	plain, isCert := strings.CutSuffix(format, certSuffix)
	if isCert && strings.HasPrefix(plain, "sk-") {
		plain += "@openssh.com"
	}
	able := []string{plain}
	if plain == ssh.KeyAlgoRSA {
		able = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	allowed := func(algo string) bool {
		name := algo
		if isCert {
			name = strings.TrimSuffix(algo, "@openssh.com") + certSuffix
		}
		if accepted == nil {
			return !slices.Contains(weakAlgorithms, name)
		}
		return slices.Contains(accepted, name)
	}
	return slices.DeleteFunc(able, func(algo string) bool { return !allowed(algo) })
}
