package sshlink

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink/sshtest"
)

const secret = "correct horse"

func passwordIs(want string) func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
	return func(_ ssh.ConnMetadata, got []byte) (*ssh.Permissions, error) {
		if string(got) == want {
			return &ssh.Permissions{}, nil
		}
		return nil, errors.New("wrong password")
	}
}

// asks answers keyboard-interactive with these questions one round after the other, each to be answered by the secret.
func asks(rounds ...[]string) func(ssh.ConnMetadata, ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	return func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		for _, questions := range rounds {
			answers, err := ask("", "", questions, make([]bool, len(questions)))
			if err != nil {
				return nil, err
			}
			for _, a := range answers {
				if a != secret {
					return nil, errors.New("wrong answer")
				}
			}
		}
		return &ssh.Permissions{}, nil
	}
}

func TestPasswords(t *testing.T) {
	for name, c := range map[string]struct {
		password string
		prepare  func(b *bench)
		hint     string // of the failure; empty: success
	}{
		"password":       {secret, func(b *bench) { b.server.Config.PasswordCallback = passwordIs(secret) }, ""},
		"interactive":    {secret, func(b *bench) { b.server.Config.KeyboardInteractiveCallback = asks([]string{"Password: "}) }, ""},
		"empty rounds":   {secret, func(b *bench) { b.server.Config.KeyboardInteractiveCallback = asks([]string{"P: "}, nil, nil) }, ""},
		"wrong password": {"wrong", func(b *bench) { b.server.Config.PasswordCallback = passwordIs(secret) }, "the password was refused"},
		"wrong answer": {"wrong", func(b *bench) {
			b.server.Config.KeyboardInteractiveCallback = asks([]string{"Password: "})
			b.server.Config.PasswordCallback = passwordIs(secret)
		}, "the password was refused"},
		"second factor": {secret, func(b *bench) {
			b.server.Config.KeyboardInteractiveCallback = asks([]string{"Password: "}, []string{"Token: \x1b[1m"})
		}, `the server asked "Token:", which the password does not answer`},
		"two questions": {secret, func(b *bench) {
			b.server.Config.KeyboardInteractiveCallback = asks([]string{"Password:", "Token:"})
		}, `the server asked "Password: Token:"`},
		"no password": {"", func(b *bench) { b.server.Config.PasswordCallback = passwordIs(secret) }, "no password was given"},
		"disabled": {secret, func(b *bench) {
			b.server.Config.PasswordCallback = passwordIs(secret)
			b.hop.PasswordMechanism = "disable"
		}, "no password was given"},
		"forbidden": {secret, func(b *bench) {
			b.server.Config.PasswordCallback = passwordIs(secret)
			b.cfg.PasswordAuth = false
		}, "the configuration forbids the password"},
		"not preferred": {secret, func(b *bench) {
			b.server.Config.PasswordCallback = passwordIs(secret)
			b.cfg.PreferredAuths = []string{"publickey"}
		}, "the configuration forbids the password"},
		"key, then password": {secret, func(b *bench) {
			both := b.server.Config.PublicKeyCallback
			b.server.Config.PublicKeyCallback = func(m ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
				if _, err := both(m, k); err != nil {
					return nil, err
				}
				return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{PasswordCallback: passwordIs(secret)}}
			}
			b.hop.PrivateKey = b.goodKey
		}, ""},
		"key, then a password that is missing": {"", func(b *bench) {
			b.server.Config.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
				return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{PasswordCallback: passwordIs(secret)}}
			}
			b.hop.PrivateKey = b.goodKey
		}, "no password was given"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.hop.PrivateKey = hop.NewSecret(sshtest.EncodeKey(t, sshtest.NewKey(t, "ed25519"), ""))
			b.hop.Password = hop.NewSecret([]byte(c.password))
			c.prepare(b)
			bubble(t, b, func(t *testing.T) {
				err := b.ready(t.Context())
				if c.hint == "" {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				f := typed(t, err, fault.AuthFailed)
				if !strings.Contains(f.Hint, c.hint) {
					t.Errorf("hint %q does not say %q", f.Hint, c.hint)
				}
				if all := fmt.Sprintf("%v %+v", err, f); c.password != "" && strings.Contains(all, c.password) {
					t.Errorf("the password is in %q", all)
				}
			})
		})
	}
}

// TestPasswordSentOnce counts what the server sees: one attempt, whatever it offers, so that no account is locked.
func TestPasswordSentOnce(t *testing.T) {
	b := newBench(t)
	seen := 0
	b.server.Config.PublicKeyCallback = nil
	b.server.Config.PasswordCallback = func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
		seen++
		return nil, errors.New("no")
	}
	b.server.Config.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		for range 3 {
			if _, err := ask("", "", []string{"Password: "}, []bool{false}); err != nil {
				return nil, err
			}
			seen++
		}
		return nil, errors.New("no")
	}
	b.hop.Password = hop.NewSecret([]byte("wrong"))
	b.hop.ReconnectionRetries = 3
	bubble(t, b, func(t *testing.T) { failsAs(t, b.ready(t.Context()), fault.AuthFailed) })
	if seen != 1 {
		t.Errorf("the password was seen %d times", seen)
	}
}

func TestTooManyKeys(t *testing.T) {
	b := newBench(t)
	b.server.Config.MaxAuthTries = 2
	dir := t.TempDir()
	b.cfg.IdentityFiles = nil
	for _, name := range []string{"/a", "/b", "/c"} {
		sshtest.WriteKey(t, dir+name, "ed25519", "")
		b.cfg.IdentityFiles = append(b.cfg.IdentityFiles, dir+name)
	}
	bubble(t, b, func(t *testing.T) {
		f := typed(t, b.ready(t.Context()), fault.AuthFailed)
		if !strings.Contains(f.Message, "too many authentication failures") || !strings.Contains(f.Hint, "IdentitiesOnly") {
			t.Errorf("got %q, hint %q", f.Message, f.Hint)
		}
	})
}

func TestGivenKeyUnfit(t *testing.T) {
	locked := string(sshtest.EncodeKey(t, sshtest.NewKey(t, "ed25519"), secret))
	for name, c := range map[string]struct{ key, passphrase, want string }{
		"no key":           {"hunter2", "", "no private key"},
		"locked":           {locked, "", "passphrase is missing or wrong"},
		"wrong passphrase": {locked, "wrong-one", "passphrase is missing or wrong"},
		"damaged":          {"-----BEGIN OPENSSH PRIVATE KEY-----\naHVudGVyMg==\n-----END OPENSSH PRIVATE KEY-----\n", "", "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.hop.PrivateKey, b.hop.PrivateKeyPassphrase = hop.NewSecret([]byte(c.key)), hop.NewSecret([]byte(c.passphrase))
			bubble(t, b, func(t *testing.T) {
				f := typed(t, b.ready(t.Context()), fault.AuthFailed)
				text := f.Error() + f.Hint
				if !strings.Contains(text, c.want) {
					t.Errorf("%q does not say %q", text, c.want)
				}
				if strings.Contains(text, "hunter2") || strings.Contains(text, "wrong-one") {
					t.Errorf("secret in %q", text)
				}
			})
		})
	}
}

func TestAlgorithmsFor(t *testing.T) {
	for _, c := range []struct {
		format   string
		accepted []string
		want     string
	}{
		{"ssh-ed25519", nil, "ssh-ed25519"},
		{"ssh-rsa", nil, "rsa-sha2-512 rsa-sha2-256"},
		{"ssh-rsa", []string{"ssh-rsa"}, "ssh-rsa"},
		{"ssh-rsa", []string{"ssh-ed25519", "rsa-sha2-256"}, "rsa-sha2-256"},
		{"ssh-ed25519", []string{"rsa-sha2-256"}, ""},
		{"ssh-dss", nil, ""},
		{"ssh-ed25519-cert-v01@openssh.com", []string{"ssh-ed25519"}, ""},
		{"ssh-ed25519-cert-v01@openssh.com", []string{"ssh-ed25519-cert-v01@openssh.com"}, "ssh-ed25519"},
		{"ssh-rsa-cert-v01@openssh.com", []string{"rsa-sha2-512-cert-v01@openssh.com"}, "rsa-sha2-512"},
		{"sk-ssh-ed25519@openssh.com", nil, "sk-ssh-ed25519@openssh.com"},
		{"sk-ssh-ed25519-cert-v01@openssh.com", []string{"sk-ssh-ed25519-cert-v01@openssh.com"}, "sk-ssh-ed25519@openssh.com"},
	} {
		if got := strings.Join(algorithmsFor(c.format, c.accepted), " "); got != c.want {
			t.Errorf("%s with %v: got %q, want %q", c.format, c.accepted, got, c.want)
		}
	}
}
