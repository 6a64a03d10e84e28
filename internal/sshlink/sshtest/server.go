package sshtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Server is an SSH server in this process. Set its fields before the first Serve.
type Server struct {
	Config ssh.ServerConfig
	// Noise is sent before the server's version.
	Noise string
	// Exec runs a command; nil: the command's text comes back on stdout, with code 0.
	Exec func(cmd string, ch ssh.Channel) uint32
	// MaxSessions that may be open at once, 0 for any number, -1 for none.
	MaxSessions int
	// Requests gets the type of each request within sessions, if it is not nil.
	Requests func(kind string, payload []byte)
	// Mute is told that a session's status should not be sent.
	Mute func(cmd string) bool

	mu       sync.Mutex
	sessions int
	wg       sync.WaitGroup
}

// NewServer returns a server with an ed25519 host key that accepts the given user keys.
func NewServer(t testing.TB, authorized ...ssh.PublicKey) (*Server, ssh.PublicKey) {
	t.Helper()
	s := &Server{}
	host := Signer(t, NewKey(t, "ed25519"))
	s.Config.AddHostKey(host)
	s.Config.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		for _, k := range authorized {
			if bytes.Equal(k.Marshal(), key.Marshal()) {
				return &ssh.Permissions{}, nil
			}
		}
		return nil, errors.New("not authorized")
	}
	return s, host.PublicKey()
}

// Serve speaks on conn in the background until it ends.
func (s *Server) Serve(conn net.Conn) {
	s.wg.Go(func() {
		defer func() { _ = conn.Close() }()
		if _, err := io.WriteString(conn, s.Noise); err != nil {
			return
		}
		c, channels, requests, err := ssh.NewServerConn(conn, &s.Config)
		if err != nil {
			return
		}
		s.wg.Go(func() { s.answer(requests) })
		for offer := range channels {
			s.open(offer)
		}
		_ = c.Wait()
	})
}

// Wait returns when all connections have ended.
func (s *Server) Wait() { s.wg.Wait() }

// answer refuses global requests, as OpenSSH answers keepalives.
func (s *Server) answer(requests <-chan *ssh.Request) {
	for r := range requests {
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
}

func (s *Server) open(offer ssh.NewChannel) {
	s.mu.Lock()
	full := s.MaxSessions != 0 && s.sessions >= s.MaxSessions
	if !full {
		s.sessions++
	}
	s.mu.Unlock()
	if full || offer.ChannelType() != "session" {
		_ = offer.Reject(ssh.ConnectionFailed, "open failed")
		return
	}
	ch, requests, err := offer.Accept()
	if err != nil {
		return
	}
	s.wg.Go(func() {
		s.session(ch, requests)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sessions--
	})
}

func (s *Server) session(ch ssh.Channel, requests <-chan *ssh.Request) {
	var running sync.WaitGroup
	for r := range requests {
		if s.Requests != nil {
			s.Requests(r.Type, r.Payload)
		}
		if r.Type != "exec" {
			if r.WantReply {
				_ = r.Reply(true, nil)
			}
			continue
		}
		var command struct{ Text string }
		_ = ssh.Unmarshal(r.Payload, &command)
		_ = r.Reply(true, nil)
		running.Go(func() { s.run(command.Text, ch) })
	}
	running.Wait()
}

func (s *Server) run(cmd string, ch ssh.Channel) {
	defer func() { _ = ch.Close() }()
	var code uint32
	if s.Exec != nil {
		code = s.Exec(cmd, ch)
	} else {
		_, _ = io.WriteString(ch, cmd)
	}
	if s.Mute == nil || !s.Mute(cmd) {
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
	}
}
