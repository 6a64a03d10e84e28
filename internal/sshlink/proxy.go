package sshlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// jump connects through the hosts of ProxyJump, whose connections are shared. As with ssh, each is configured by the configuration
// files alone, and nobody gives them the target's password or key.
func (a *attempt) jump(ctx context.Context) (net.Conn, error) {
	var last *jumpHost
	way := []string{a.hop.Executable, a.cfg.ConfigFile, a.place.run.Cwd, strings.Join(a.place.run.Environ, "\x00")}
	for spec := range strings.SplitSeq(a.cfg.ProxyJump, ",") {
		spec = strings.TrimSpace(spec)
		way = append(way, spec)
		below := last
		next, err := a.d.jumps.acquire(ctx, strings.Join(way, "\x01"), func(ctx context.Context) (*transport, error) {
			var via mux.Forward
			if below != nil {
				via = below.transport.forward
			}
			t, err := a.jumpHost(ctx, spec, via)
			if err == nil && below != nil {
				t.below = a.d.jumps.share(below)
			}
			return t, err
		})
		if last != nil {
			_ = last.Close()
		}
		if err != nil {
			return nil, a.atJump(spec, err)
		}
		last = next
	}
	conn, err := last.transport.forward(ctx, a.cfg.HostName, a.cfg.Port)
	if err != nil {
		_ = last.Close()
		return nil, err
	}
	return &jumped{Conn: conn, through: last}, nil
}

// atJump says at which jump host a failure was.
func (a *attempt) atJump(spec string, err error) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	at := &fault.Error{
		Kind: f.Kind, Message: fmt.Sprintf("ProxyJump %s of %s: %s", spec, a.cfg.Host, f.Message), Hint: f.Hint, Stderr: f.Stderr, Cause: f.Cause,
	}
	if r, refused := errors.AsType[*refusal](err); refused {
		return &refusal{fault: at, left: r.left}
	}
	return at
}

// jumpHost opens the connection to one jump host: [user@]host[:port], or an ssh:// URI.
func (a *attempt) jumpHost(ctx context.Context, spec string, via mux.Forward) (*transport, error) {
	var args []string
	if a.cfg.ConfigFile != "" {
		args = append(args, "-F", a.cfg.ConfigFile)
	}
	user, host, found := cutLast(strings.TrimPrefix(spec, "ssh://"), "@")
	if !found {
		user, host = "", user
	}
	if name, port, err := net.SplitHostPort(host); err == nil {
		host = name
		args = append(args, "-p", port)
	}
	host = strings.Trim(host, "[]")
	if user != "" {
		args = append(args, "-l", user)
	}
	h := &hop.SSH{Host: host, HostKeyChecking: true, Args: args, Executable: a.hop.Executable}
	c, err := a.d.resolve(ctx, h, a.place)
	if err != nil {
		return nil, err
	}
	if via != nil && c.ProxyJump != "" { // a chain is complete: the host's own proxy is not asked again
		own := *c
		own.ProxyJump = ""
		c = &own
	}
	return a.d.connect(ctx, c, a.place, h, via)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// jumped is a connection through jump hosts; it holds the last of them.
type jumped struct {
	net.Conn
	through *jumpHost
}

// Close implements net.Conn.
func (j *jumped) Close() error {
	err := j.Conn.Close()
	return errors.Join(err, j.through.Close())
}

// forward opens a connection from the far side of t to host:port.
func (t *transport) forward(ctx context.Context, host string, port int) (net.Conn, error) {
	if err := t.enter(); err != nil {
		return nil, err
	}
	defer t.leave()
	payload := ssh.Marshal(struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}{host, uint32(port), "127.0.0.1", 0}) // a port
	ch, requests, err := t.openChannel(ctx, "direct-tcpip", payload)
	if err != nil {
		if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			return nil, &fault.Error{
				Kind: fault.Unreachable, Message: fmt.Sprintf("ssh: connect to host %s port %d: %s", host, port, fault.Clean([]byte(refused.Message))),
				Hint: "The jump host " + t.name + " cannot or may not open this connection (AllowTcpForwarding).",
			}
		}
		return nil, err
	}
	t.wg.Go(func() { ssh.DiscardRequests(requests) })
	return &channelConn{Channel: ch}, nil
}

// channelConn is a forwarded connection. It needs no deadlines, as those who wait on it close it.
type channelConn struct{ ssh.Channel }

func (*channelConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*channelConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*channelConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*channelConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*channelConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// proxyCommand starts ProxyCommand with the user's shell, as ssh does, in the run's environment and directory.
func (a *attempt) proxyCommand(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	line := a.place.tokens(a.cfg, a.cfg.ProxyCommand)
	shell := a.place.env("SHELL")
	if shell == "" {
		shell = "/bin/sh"
	}
	c := &commandConn{line: line, stderr: &tail{}}
	c.cmd = exec.Command(shell, "-c", "exec "+line) // the user's own command; Close ends it
	c.cmd.Env, c.cmd.Dir = append([]string{}, a.place.run.Environ...), a.place.run.Cwd
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Close reaches what the command has started
	c.cmd.Stderr = c.stderr
	c.cmd.WaitDelay = time.Second
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("cannot start ProxyCommand: %w", err)
	}
	if c.stdout, err = c.cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("cannot start ProxyCommand: %w", err)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, &fault.Error{
			Kind: fault.Unreachable, Message: "Cannot start ProxyCommand " + line, Cause: err,
			Hint: "Check ProxyCommand in ssh_config or in ansible_ssh_common_args.",
		}
	}
	return c, nil
}

// commandConn is a connection over a process's stdio.
type commandConn struct {
	channelConn // for addresses and deadlines only

	line   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.ReadCloser
	stderr *tail
	once   sync.Once
}

func (c *commandConn) Read(p []byte) (int, error)  { return c.stdout.Read(p) }
func (c *commandConn) Write(p []byte) (int, error) { return c.stdin.Write(p) }

// Close ends the process and what it started in its group, and waits for it.
func (c *commandConn) Close() error {
	c.once.Do(func() {
		_ = c.stdin.Close()
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGHUP)
		_ = c.stdout.Close()
		stubborn := time.AfterFunc(time.Second, func() { _ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) })
		_ = c.cmd.Wait()
		stubborn.Stop()
	})
	return nil
}

// explain adds a ProxyCommand's own words to a failure.
func explain(f *fault.Error, conn net.Conn) *fault.Error {
	c, ok := conn.(*commandConn)
	if !ok || f.Kind != fault.Unreachable {
		return f
	}
	f.Stderr = fault.Clean(c.stderr.bytes())
	f.Message = fmt.Sprintf("%s (ProxyCommand %s)", f.Message, c.line)
	if f.Stderr != "" {
		f.Hint = "ProxyCommand said: " + firstLine(f.Stderr)
	}
	return f
}

// tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - fault.MaxStderr; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.buf...)
}
