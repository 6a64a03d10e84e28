package sshlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// Exec implements mux.Transport. It takes two round trips: the channel, and the command with all that goes before it.
func (t *transport) Exec(ctx context.Context, cmd []byte, o mux.ExecOptions) (mux.Process, error) {
	if err := t.enter(); err != nil {
		return nil, err
	}
	defer t.leave()
	ch, requests, err := t.openSession(ctx, o.MakeRoom)
	if err != nil {
		return nil, err
	}
	p := newProcess(t, ch, requests)
	started := make(chan error, 1)
	t.wg.Go(func() { started <- t.start(ch, cmd, o) })
	select {
	case err = <-started:
	case <-ctx.Done():
		err = ctxFault(ctx, "Starting a command on "+t.name)
	}
	if err == nil && t.isClosed() { // Close may have looked for processes before there was this one
		err = t.Err()
	}
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// Pauses between attempts to open a session that the server refused, and how many to make while we hold none ourselves: servers
// count a session for a moment after they have closed it.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
	maxRefused = 6
)

// openSession opens a session channel when one may be open. A server that allows fewer than we think refuses: then we wait
// until a session of ours has ended.
func (t *transport) openSession(ctx context.Context, makeRoom func()) (ssh.Channel, <-chan *ssh.Request, error) {
	if !takeSession(ctx, t.slots, t.done, makeRoom) {
		if ctx.Err() != nil {
			return nil, nil, t.tooMany(ctx)
		}
		return nil, nil, t.Err()
	}
	ch, requests, err := t.tryOpen(ctx, makeRoom)
	if err != nil {
		<-t.slots
		return nil, nil, err
	}
	t.live.Add(1)
	t.opened.Add(1)
	return ch, requests, nil
}

// takeSession waits for one of the places of a connection's sessions, and reports whether it has one: not if the connection or ctx has
// ended before.
func takeSession(ctx context.Context, places chan<- struct{}, ended <-chan struct{}, makeRoom func()) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
	}
	if makeRoom != nil {
		makeRoom()
	}
	select {
	case places <- struct{}{}:
		return true
	case <-ended:
	case <-ctx.Done():
	}
	return false
}

// tryOpen is openSession with a place in hand.
func (t *transport) tryOpen(ctx context.Context, makeRoom func()) (ssh.Channel, <-chan *ssh.Request, error) {
	refusals, opened := 0, t.opened.Load()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		ch, requests, err := t.openChannel(ctx, "session", nil)
		if err == nil {
			return ch, requests, nil
		}
		refused, isRefused := errors.AsType[*ssh.OpenChannelError](err)
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctxFault(ctx, "Opening a session on "+t.name)
		case !isRefused || !t.alive():
			return nil, nil, t.ended()
		}
		refusals++
		if makeRoom != nil {
			makeRoom()
		}
		if now := t.opened.Load(); now != opened || t.live.Load() > 0 { // others get sessions: this one's turn will come
			refusals, opened = 0, now
		}
		if refusals >= maxRefused {
			return nil, nil, &fault.Error{
				Kind: fault.Unsupported, Message: fmt.Sprintf("%s refuses sessions: %s", t.name, fault.Clean([]byte(refused.Message))),
				Hint: "Look at MaxSessions in the server's sshd_config; at least one session is needed.",
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-t.freed:
		case <-timer.C:
		case <-t.done:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil, nil, t.tooMany(ctx)
		}
	}
}

func (t *transport) tooMany(ctx context.Context) error {
	f := ctxFault(ctx, "Waiting for a free session on "+t.name)
	if f.Kind == fault.TimedOut {
		f.Hint = "All sessions of this connection are in use; look at MaxSessions in the server's sshd_config."
	}
	return f
}

func (t *transport) alive() bool {
	select {
	case <-t.done:
		return false
	default:
		return true
	}
}

// ended waits for the connection's end, which the caller has seen signs of, and says why it came.
func (t *transport) ended() error {
	<-t.done
	return t.Err()
}

// release gives a session's slot back.
func (t *transport) release() {
	t.live.Add(-1)
	<-t.slots
	select {
	case t.freed <- struct{}{}:
	default: // a waiter that comes later tries at once
	}
}

// start sends what a command needs, and the command. As with ssh, only the command's own answer is waited for.
func (t *transport) start(ch ssh.Channel, cmd []byte, o mux.ExecOptions) error {
	send := func(name string, payload any) {
		_, _ = ch.SendRequest(name, false, ssh.Marshal(payload)) // a lost connection shows below
	}
	if t.forwardsAgent {
		_, _ = ch.SendRequest("auth-agent-req@openssh.com", false, nil)
	}
	if o.TTY {
		send("pty-req", ptyRequest{Term: t.term(), Modes: "\x00"})
	}
	for _, v := range t.variables() {
		send("env", v)
	}
	ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{string(cmd)}))
	switch {
	case err != nil && t.probe():
		return &fault.Error{Kind: fault.AgentDied, Message: t.name + " closed the session before the command started", Cause: err}
	case err != nil:
		return t.ended()
	case !ok:
		return &fault.Error{
			Kind: fault.Unsupported, Message: t.name + " refuses to execute commands",
			Hint: "The account may be restricted on the server (authorized_keys options, ForceCommand, sftp only).",
		}
	}
	return nil
}

// probe reports whether the connection still works, at the price of a round trip.
func (t *transport) probe() bool {
	_, _, err := t.conn.SendRequest("keepalive@openssh.com", true, nil)
	return err == nil
}

// ptyRequest is RFC 4254 section 6.2. Size and modes are left to the server, as ssh -tt leaves them when it has no terminal.
type ptyRequest struct {
	Term                         string
	Columns, Rows, Width, Height uint32
	Modes                        string
}

// term is the run's own terminal type; none is sent as none, as ssh does, and the server then sets no TERM.
func (t *transport) term() string { return t.place.env("TERM") }

type variable struct{ Name, Value string }

// variables are those of SetEnv and, of the run's, those that SendEnv's patterns name.
func (t *transport) variables() []variable {
	var all []variable
	for _, entry := range t.cfg.SetEnv {
		if name, value, ok := strings.Cut(entry, "="); ok {
			all = append(all, variable{name, value})
		}
	}
	for _, entry := range t.place.run.Environ {
		name, value, _ := strings.Cut(entry, "=")
		for _, patterns := range t.cfg.SendEnv {
			for pattern := range strings.FieldsSeq(patterns) {
				if wildcard(pattern, name) {
					all = append(all, variable{name, value})
				}
			}
		}
	}
	return all
}

// process is a command on a transport. Its streams go through pumps, because a channel's own Read and Write end only when the server
// says so, and Close must not wait for that.
type process struct {
	t       *transport
	ch      ssh.Channel
	stdin   *pump
	stdout  *pump
	stderr  *pump
	ended   chan struct{} // the channel is closed: no status follows
	closing sync.Once
	closed  chan struct{}
	code    int
	known   bool // code was told
}

var _ mux.Process = (*process)(nil)

// errInputEnds is why a process takes no more input that was given all of it.
var errInputEnds = errors.New("the input has ended")

func newProcess(t *transport, ch ssh.Channel, requests <-chan *ssh.Request) *process {
	p := &process{
		t: t, ch: ch, stdin: newPump(), stdout: newPump(), stderr: newPump(),
		ended: make(chan struct{}), closed: make(chan struct{}),
	}
	t.keep(p)
	t.wg.Go(func() { p.follow(requests) })
	t.wg.Go(func() {
		p.stdin.run(ch.Write)
		if p.stdin.err == errInputEnds { //nolint:errorlint // it is that one or another
			_ = ch.CloseWrite() // a lost connection shows elsewhere
		}
	})
	drain := func(to *pump, from io.Reader) {
		to.run(from.Read)
		if to.err != io.EOF { //nolint:errorlint // a channel returns it bare
			_, _ = io.CopyBuffer(io.Discard, onlyReader{from}, make([]byte, drainBuffer))
		}
	}
	t.wg.Go(func() { drain(p.stdout, ch) })
	t.wg.Go(func() { drain(p.stderr, ch.Stderr()) })
	return p
}

// drainBuffer is for what nobody reads any more.
const drainBuffer = 4 << 10

// onlyReader hides WriterTo, so that a copy uses the buffer it was given.
type onlyReader struct{ io.Reader }

// follow waits for the command's end.
func (p *process) follow(requests <-chan *ssh.Request) {
	for r := range requests {
		switch r.Type {
		case "exit-status":
			var status struct{ Code uint32 }
			if ssh.Unmarshal(r.Payload, &status) == nil {
				p.code, p.known = int(status.Code), true
			}
		case "exit-signal":
			var signal struct {
				Name    string
				Core    bool
				Message string
				Lang    string
			}
			if ssh.Unmarshal(r.Payload, &signal) == nil {
				p.code, p.known = signalCode(signal.Name), true
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	p.t.release()
	p.stdin.end(io.ErrClosedPipe)
	close(p.ended)
}

// Read implements mux.Process.
func (p *process) Read(b []byte) (int, error) { return p.stdout.move(b) }

// Write implements mux.Process.
func (p *process) Write(b []byte) (int, error) { return p.stdin.move(b) }

// CloseWrite implements mux.Process.
func (p *process) CloseWrite() error {
	p.stdin.end(errInputEnds)
	return nil
}

// Stderr implements mux.Process.
func (p *process) Stderr() io.Reader { return readerFunc(p.stderr.move) }

// Wait implements mux.Process.
func (p *process) Wait() (int, error) {
	select {
	case <-p.ended:
	default:
		select {
		case <-p.ended:
		case <-p.closed:
			if err := p.t.Err(); err != nil {
				return 0, err
			}
			return 0, os.ErrClosed
		}
	}
	if p.known {
		return p.code, nil
	}
	if p.t.probe() {
		return noStatus, nil
	}
	return 0, p.t.ended()
}

// noStatus is ssh's own exit code when the server closes a session without one.
const noStatus = 255

// Close implements mux.Process.
func (p *process) Close() error {
	p.closing.Do(func() {
		close(p.closed)
		for _, one := range []*pump{p.stdin, p.stdout, p.stderr} {
			one.end(os.ErrClosed)
		}
		_ = p.ch.Close()
		p.t.forget(p)
	})
	return nil
}

// signalCode is 128 and the number of the signal with this name of RFC 4254 section 6.10, as a shell would say it.
func signalCode(name string) int {
	name, _, _ = strings.Cut(name, "@")
	if n, ok := signalNumbers[name]; ok {
		return 128 + n
	}
	return noStatus
}

// signalNumbers are Linux's; targets with others agree on all of these but USR1 and USR2.
var signalNumbers = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12,
	"PIPE": 13, "ALRM": 14, "TERM": 15, "XCPU": 24, "XFSZ": 25, "SYS": 31,
}
