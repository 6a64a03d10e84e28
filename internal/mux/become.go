package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/become"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// errDialogue is the cause of a dialogue's deadline.
var errDialogue = errors.New("the become dialogue took too long")

// startByBecome has the parent's agent run the become tool, on a terminal of its own so that tools which insist on one are content,
// talks to it until the command runs, and makes its stdio the link. Nothing waits for the parent's HELLO.
func (t *Tree) startByBecome(ctx context.Context, n *node) (peer, error) {
	b := n.hop.Become
	spec, err := specOf(b)
	if err != nil {
		return nil, n.fault(err, fault.Unsupported, "cannot use a prompt pattern of the become plugin")
	}
	stream, err := n.parent.link.Spawn(ctx, &agent.Spawn{Argv: b.Argv, Terminal: agent.ControllingTerminal})
	if err != nil {
		return nil, n.fault(err, fault.AgentDied, "cannot start "+b.Method)
	}
	rest, err := converse(ctx, stream, b, become.New(spec), func() { t.progress(n, Authenticating) })
	if err != nil {
		stream.Close()
		return nil, n.fault(err, fault.AgentDied, "cannot start "+b.Method)
	}
	t.mu.Lock()
	n.gone = stream.Gone
	t.mu.Unlock()
	conn := &spawnedConn{Conn: stream.Conn(), stream: stream, parent: n.parent, prefix: rest, code: -1}
	link, err := t.bootstrap(ctx, n, conn)
	if err != nil {
		return nil, n.fault(explain(err, conn.code, n.hop.Interpreter), fault.AgentDied, "cannot start the agent")
	}
	return link, nil
}

// caseless begins the expression of every prompt.
const caseless = "(?i)"

// specOf is what the become plugin said, for the dialogue.
func specOf(b *hop.Become) (become.Spec, error) {
	spec := become.Spec{
		Prompt: b.Prompt, Success: b.Success, WrongPassword: b.WrongPassword, MissingPassword: b.MissingPassword,
		HasPassword: !b.Password.IsZero(),
	}
	if id := b.Success[bytes.LastIndexByte(b.Success, '-')+1:]; len(id) > 0 { // made up for this one command
		spec.Anywhere = bytes.Contains(b.Prompt, id)
	}
	for _, p := range b.PromptPatterns {
		re, err := regexp.Compile(caseless + p)
		if err != nil {
			return become.Spec{}, err
		}
		spec.Patterns = append(spec.Patterns, re)
	}
	return spec, nil
}

// dialogueTimeout is how long a tool may say nothing, as the connection plugin has it, with a default that is only there so that nothing
// hangs. What it says is bounded by its size: one that talks, and goes on after it has the password, may take its time as under plain Ansible.
func dialogueTimeout(b *hop.Become) time.Duration {
	if b.TimeoutSeconds > 0 {
		return time.Duration(b.TimeoutSeconds) * time.Second
	}
	return defaultTimeout
}

// secretLine is what a tool that asked is sent.
func secretLine(b *hop.Become) []byte { return append(bytes.Clone(b.Password.Reveal()), '\n') }

// converse feeds d what the tool says on a spawn stream and does what d answers. It returns what followed the success marker.
func converse(ctx context.Context, s spawned, b *hop.Become, d *become.Dialogue, asked func()) ([]byte, error) {
	for {
		timed, cancel := context.WithTimeoutCause(ctx, dialogueTimeout(b), errDialogue)
		rest, over, err := answer(timed, s, b, d, asked)
		cancel()
		if err != nil && errors.Is(context.Cause(timed), errDialogue) {
			if f, ok := d.Timeout().(become.Fail); ok {
				err = refusal(f, b)
			}
		}
		if err != nil || over {
			return rest, err
		}
	}
}

// answer waits for the next thing that the tool says and does what d answers. It reports whether the command runs, and what followed the
// success marker then.
func answer(ctx context.Context, s spawned, b *hop.Become, d *become.Dialogue, asked func()) (rest []byte, over bool, err error) {
	actions, err := listen(ctx, s, d)
	if err != nil {
		return nil, false, err
	}
	for _, a := range actions {
		switch a := a.(type) {
		case become.SendPassword:
			asked()
			send := s.Send
			if a.TTY {
				send = s.SendTTY
			}
			if err := send(ctx, secretLine(b)); err != nil {
				return nil, false, err
			}
		case become.Done:
			return a.Rest, true, nil
		case become.Fail:
			return nil, false, refusal(a, b)
		}
	}
	return nil, false, nil
}

// listen waits for the next thing that the tool says.
func listen(ctx context.Context, s spawned, d *become.Dialogue) ([]become.Action, error) {
	ev, err := s.Recv(ctx)
	if errors.Is(err, io.EOF) {
		return nil, &fault.Error{Kind: fault.AgentDied, Message: "the become tool's stream ended early"}
	}
	if err != nil {
		return nil, err
	}
	switch ev.Channel {
	case agent.Stdout:
		return d.Feed(become.Stdout, ev.Data), nil
	case agent.Stderr:
		return d.Feed(become.Stderr, ev.Data), nil
	case agent.TTY:
		return d.Feed(become.TTY, ev.Data), nil
	case agent.Final:
		return ended(ev.Result, d)
	default: // the end of its stdout: the exit code follows
		return nil, nil
	}
}

// ended takes the tool's exit, or the agent's word that there was never anything to exit.
func ended(r *agent.Result, d *become.Dialogue) ([]become.Action, error) {
	if r.Failed {
		e := &fault.Error{Kind: fault.BecomeFailed, Message: "cannot start the become tool", Stderr: fault.Clean([]byte(r.Text))}
		if r.Failure == agent.FailNotFound {
			e.Hint, e.Exit = toolHint, 127
		}
		return nil, e
	}
	return d.Exit(r.ExitCode), nil
}

const toolHint = "install the become tool on the target, or set become_method or become_exe to one that is there"

// refusal is a failed dialogue as an error: its kind, the tool's own words without the secret, and the remedy.
func refusal(f become.Fail, b *hop.Become) *fault.Error {
	text := f.Text
	if !b.Password.IsZero() { // a terminal may have echoed it
		text = bytes.ReplaceAll(text, b.Password.Reveal(), []byte("********"))
	}
	if prompt := bytes.TrimSpace(b.Prompt); len(prompt) > 0 { // Ansible's own words, not the tool's
		text = bytes.ReplaceAll(text, prompt, nil)
	}
	if f.Reason == become.ToolRefused { // which becomes the task's own output
		for _, p := range b.PromptPatterns {
			if re, err := regexp.Compile(caseless + "(?:" + p + ") ?"); err == nil {
				text = re.ReplaceAll(text, nil)
			}
		}
	}
	text = bytes.ReplaceAll(text, []byte(agent.Stage1()), []byte("...")) // of a command that the tool names
	e := &fault.Error{Stderr: fault.Clean(text)}
	switch f.Reason {
	case become.PasswordRequired:
		e.Kind, e.Message = fault.BecomePasswordRequired, "Missing "+b.Method+" password"
		e.Hint = "give it (--ask-become-pass, ansible_become_password); a rule that lets some commands run without one must name the shell"
	case become.PasswordWrong:
		e.Kind, e.Message = fault.BecomePasswordWrong, "Incorrect "+b.Method+" password"
		e.Hint = "check the become password of this host"
	case become.TimedOut:
		e.Kind = fault.BecomeTimeout
		e.Message = "Timeout (" + strconv.Itoa(int(dialogueTimeout(b).Seconds())) + "s) waiting for privilege escalation prompt"
		e.Hint = "the tool neither ran the command nor asked in the way its become plugin expects; if it is only slow, raise the timeout"
	default:
		e.Kind, e.Message = fault.BecomeFailed, b.Method+" refused"
		if f.Code >= 0 {
			e.Message += " (exit code " + strconv.Itoa(f.Code) + ")"
			e.Exit = f.Code
		}
		if missing(f.Code) {
			e.Message, e.Hint = "cannot start "+b.Method, toolHint
		}
	}
	return e
}

// spawnedConn is a spawn stream's Conn of which something has been read already. It also learns the exit code of a process that
// ended before it was closed, and what it said until then.
type spawnedConn struct {
	agent.Conn
	stream spawned
	parent *node // whose agent has started it
	prefix []byte
	ended  bool
	code   int // the exit code, or -1; for who has seen Read fail

	mu   sync.Mutex
	tail []byte // said after stdout's end
}

// Read implements agent.Conn.
func (c *spawnedConn) Read(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) && !c.ended {
		c.ended = true
		c.lastWords()
	}
	return n, c.parent.blame(err)
}

// Write implements agent.Conn.
func (c *spawnedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.parent.blame(err)
}

// Share is Write for what others behind the same agent may be sent too.
func (c *spawnedConn) Share(p []byte) error {
	if s, ok := c.Conn.(interface{ Share(p []byte) error }); ok {
		return c.parent.blame(s.Share(p))
	}
	_, err := c.Write(p)
	return err
}

// lastWords receives what follows the end of stdout: the Conn leaves it, and it says why there is no agent.
func (c *spawnedConn) lastWords() {
	ctx, cancel := context.WithTimeout(context.Background(), exitTimeout)
	defer cancel()
	for {
		ev, err := c.stream.Recv(ctx)
		switch {
		case err != nil:
			return
		case ev.Channel == agent.Final:
			c.code = ev.Result.ExitCode
			return
		case ev.Channel == agent.Stderr || ev.Channel == agent.TTY:
			c.mu.Lock()
			c.tail = append(c.tail, ev.Data...)
			c.tail = c.tail[max(0, len(c.tail)-fault.MaxStderr):]
			c.mu.Unlock()
		}
	}
}

// Tail is the last words on stderr and the terminal. The agent package asks its Conn for it, for Share and for Detach.
func (c *spawnedConn) Tail() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.Conn.(interface{ Tail() []byte }); ok {
		return append(t.Tail(), c.tail...)
	}
	return bytes.Clone(c.tail)
}

// Detach ends our side and leaves the agent to its own end.
func (c *spawnedConn) Detach() error {
	if d, ok := c.Conn.(interface{ Detach() error }); ok {
		return d.Detach()
	}
	return c.Close()
}
