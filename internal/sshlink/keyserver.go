package sshlink

import (
	"errors"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// keyServer is an ssh-agent with one key: so the user's ssh can use a key that is on no disk.
type keyServer struct {
	listener net.Listener
	ring     agent.Agent
	wg       sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]bool // nil after Close
}

// serveKey starts one at a socket, and returns the key's public part as a line.
func serveKey(key, passphrase hop.Secret, socket string) ([]byte, *keyServer, error) {
	raw, err := ssh.ParseRawPrivateKey(key.Reveal())
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked && !passphrase.IsZero() {
		raw, err = ssh.ParseRawPrivateKeyWithPassphrase(key.Reveal(), passphrase.Reveal())
	}
	if err != nil {
		return nil, nil, badGivenKey(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: raw}); err != nil {
		return nil, nil, badGivenKey(err)
	}
	signer, err := ssh.NewSignerFromKey(raw)
	if err != nil {
		return nil, nil, badGivenKey(err)
	}
	listener, err := net.Listen("unix", socket) //nolint:noctx // nothing waits here
	if err != nil {
		return nil, nil, &fault.Error{Kind: fault.Internal, Message: "Cannot serve the private key to ssh", Cause: err}
	}
	s := &keyServer{listener: listener, ring: ring, open: map[net.Conn]bool{}}
	s.wg.Go(s.serve)
	return ssh.MarshalAuthorizedKey(signer.PublicKey()), s, nil
}

func badGivenKey(err error) *fault.Error {
	return &fault.Error{
		Kind: fault.AuthFailed, Message: "Cannot use the private key given by ansible_private_key", Cause: withoutData(err),
		Hint: "Check ansible_private_key and ansible_private_key_passphrase.",
	}
}

func (s *keyServer) serve() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.open == nil {
			s.mu.Unlock()
			_ = conn.Close()
			return
		}
		s.open[conn] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			_ = agent.ServeAgent(s.ring, conn)
			_ = conn.Close()
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.open, conn)
		})
	}
}

// Close implements io.Closer; it waits for those who are served.
func (s *keyServer) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	for conn := range s.open {
		_ = conn.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.wg.Wait()
	return err //nolint:wrapcheck // only tests look at it
}
