package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// stage is a Dialer whose targets have scripted agents. All are honest but one, once: in place of its first command it does what a row says.
type stage struct {
	t    *testing.T
	evil string // a host, or an account
	do   func(f *agenttest.Fake, id uint32)

	mu   sync.Mutex
	done bool
}

// Dial implements Dialer.
func (s *stage) Dial(_ context.Context, h *hop.SSH, _ hop.Run) (Transport, error) {
	return &stageTransport{s, h.Host, fakeTransport{world: newWorld(), done: make(chan struct{})}}, nil
}

// DialThrough implements Dialer.
func (s *stage) DialThrough(ctx context.Context, h *hop.SSH, run hop.Run, _ *Intermediary) (Transport, error) {
	return s.Dial(ctx, h, run)
}

type stageTransport struct {
	stage *stage
	host  string
	fakeTransport
}

func (t *stageTransport) Exec(context.Context, []byte, ExecOptions) (Process, error) {
	ours, theirs := net.Pipe()
	agenttest.Script(t.stage.t, theirs, t.stage.agent(t.host))
	return farProcess{ours}, nil
}

// turnsEvil reports whether the agent of that name is the one, and has not been yet.
func (s *stage) turnsEvil(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != s.evil || s.done {
		return false
	}
	s.done = true
	return true
}

// agent is an agent that does commands, which read their stdin and say "done", and enters accounts.
func (s *stage) agent(name string) func(*agenttest.Fake) {
	return func(f *agenttest.Fake) {
		f.Boot()
		children := map[uint32]*stageChild{}
		defer func() {
			for _, c := range children {
				c.end()
			}
		}()
		for {
			frame := f.Next()
			child := children[frame.Stream]
			switch {
			case frame.Type == agent.TypeOpen:
				r, err := agent.DecodeRequest(frame.Payload)
				if err != nil {
					s.t.Errorf("a bad OPEN: %v", err)
					return
				}
				if spawn, ok := r.(agent.Spawn); ok {
					children[frame.Stream] = s.enter(f, frame.Stream, string(spawn.Argv[1]))
				} else if s.turnsEvil(name) {
					s.do(f, frame.Stream)
				}
			case child != nil && frame.Type == agent.TypeData:
				child.down <- frame.Payload
			case child != nil && frame.Type == agent.TypeCredit:
				child.give(int(binary.BigEndian.Uint32(frame.Payload)))
			case child != nil && (frame.Type == agent.TypeEnd || frame.Type == agent.TypeCancel):
				child.end()
				delete(children, frame.Stream)
			case frame.Type == agent.TypeEnd:
				f.Send(agent.TypeData, frame.Stream, []byte("done"))
				f.Send(agent.TypeEnd, frame.Stream, nil)
				f.Result(frame.Stream, agent.Result{})
			}
		}
	}
}

// stageChild is a spawned account: a script of its own, whose bytes go up as fast as there is credit.
type stageChild struct {
	conn   net.Conn
	down   chan []byte
	mu     sync.Mutex
	more   *sync.Cond
	credit int
}

func (s *stage) enter(f *agenttest.Fake, id uint32, account string) *stageChild {
	inner, outer := net.Pipe()
	c := &stageChild{conn: outer, down: make(chan []byte, 100), credit: agent.Window - len(marker) - 1}
	c.more = sync.NewCond(&c.mu)
	go agenttest.Play(s.t, inner, s.agent(account))
	go func() {
		for p := range c.down {
			_, _ = outer.Write(p) // a child that has gone reads nothing
		}
	}()
	go func() {
		f.Send(agent.TypeData, id, []byte(marker+"\n")) // ends this goroutine when the link is gone
		buf := make([]byte, 4<<10)
		for {
			n, err := outer.Read(buf)
			if err != nil {
				break
			}
			c.take(n)
			f.Send(agent.TypeData, id, buf[:n])
		}
		f.Send(agent.TypeEnd, id, nil)
		f.Result(id, agent.Result{})
	}()
	return c
}

func (c *stageChild) give(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credit += n
	c.more.Signal()
}

func (c *stageChild) take(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.credit < n {
		c.more.Wait()
	}
	c.credit -= n
}

// end closes the child's stdio.
func (c *stageChild) end() {
	c.give(1 << 40)
	_ = c.conn.Close()
	close(c.down)
}

// violations are rows of the table "What an agent may say" in docs/agent-protocol.md: what a hostile agent does where it should do the
// command on stream id, and how the log names it. The frames themselves have a longer table, in internal/agent.
var violations = map[string]struct {
	do   func(f *agenttest.Fake, id uint32)
	want string
	done bool // the command had its result before
}{
	"names a stream that is not its own": {say(agent.TypeData, 1, "x"), "DATA frame on a stream that is not open", false},
	"ends a stream that is not its own":  {say(agent.TypeResult, 1, ""), "RESULT frame on a stream that is not open", false},
	"gives credit to another stream":     {say(agent.TypeCredit, 1, "\x00\x00\x00\x01"), "CREDIT frame on a stream that is not open", false},
	"names a stream that ended":          {twice(say(agent.TypeResult, 0, ""), say(agent.TypeErr, 0, "x")), "ERR frame on a stream that is not open", true},
	"asks for a command":                 {say(agent.TypeOpen, 7, "\x02"), "OPEN frame in the wrong direction", false},
	"asks for a file":                    {say(agent.TypeOpen, 7, "\x04"), "OPEN frame in the wrong direction", false},
	"asks for another account":           {say(agent.TypeOpen, 7, "\x05"), "OPEN frame in the wrong direction", false},
	"asks for blobs":                     {say(agent.TypeOpen, 7, "\x06"), "OPEN frame in the wrong direction", false},
	"names an unknown blob":              {say(agent.TypeDrop, noStream, strings.Repeat("b", 32)), "DROP frame in the wrong direction", false},
	"cancels":                            {say(agent.TypeCancel, 0, ""), "CANCEL frame in the wrong direction", false},
	"widens its window":                  {say(agent.TypeWindow, 0, "\x00\x40\x00\x00"), "WINDOW frame in the wrong direction", false},
	"has the daemon keep something":      {say(agent.TypeKeep, 0, "x"), "KEEP frame in the wrong direction", false},
	"asks for what passed to another":    {say(agent.TypeKept, 0, "\x00\x00\x00\x01"), "KEPT frame in the wrong direction", false},
	"has the daemon forget":              {say(agent.TypeForget, noStream, "\x00\x00\x00\x01"), "FORGET frame in the wrong direction", false},
	"pings":                              {say(agent.TypePing, noStream, "12345678"), "PING frame in the wrong direction", false},
	"answers a ping that was not":        {say(agent.TypePong, noStream, "12345678"), "PONG without a PING", false},
	"greets again":                       {say(agent.TypeHello, noStream, string(agent.EncodeHello(agenttest.GoodHello()))), "where HELLO comes first and once", false},
	"types on a terminal that is not":    {say(agent.TypeTTY, 0, "x"), "TTY frame on a stream of kind 2", false},
	"goes on after its end":              {twice(say(agent.TypeEnd, 0, ""), say(agent.TypeData, 0, "x")), "DATA frame after END", false},
	"gives credit that nobody used":      {say(agent.TypeCredit, 0, "\xff\xff\xff\xff"), "CREDIT of 4294967295", false},
	"sends more than its credit":         {flood, "on a credit of", false},
	"sends a frame of no type":           {raw("\x00\x00\x00\x00\xc8\x00\x00\x00\x01"), "unknown frame type 200", false},
	"sends a frame without end":          {raw("\xff\xff\xff\xff\x03\x00\x00\x00\x01"), "DATA frame of 4294967295 bytes", false},
	"sends what is no frame":             {raw("GET / HTTP/1.1\r\n\r\n"), "unknown frame type 47", false},
	"sends a result that is none":        {say(agent.TypeResult, 0, "junk"), "cut short", false},
	"sends a result with an address":     {say(agent.TypeResult, 0, "\x63\x00\x00\x00\x02h2"), "unknown field 99", false},
	"logs at a level that there is not":  {say(agent.TypeLog, noStream, "\x09x"), "LOG of level 9", false},
	"logs without end":                   {say(agent.TypeLog, noStream, "\x01"+strings.Repeat("x", 4097)), "LOG frame of 4098 bytes", false},
	"begins anew":                        {raw(agenttest.Magic), "PING frame in the wrong direction", false},
}

// noStream is the link itself; 0 is the stream of the command in a row of violations.
const noStream = 0xffffffff

func say(typ agent.FrameType, stream uint32, payload string) func(*agenttest.Fake, uint32) {
	return func(f *agenttest.Fake, id uint32) {
		switch stream {
		case noStream:
			id = 0
		case 0:
		default:
			id += stream
		}
		f.Send(typ, id, []byte(payload))
	}
}

func twice(first, second func(*agenttest.Fake, uint32)) func(*agenttest.Fake, uint32) {
	return func(f *agenttest.Fake, id uint32) { first(f, id); second(f, id) }
}

func raw(text string) func(*agenttest.Fake, uint32) {
	return func(f *agenttest.Fake, _ uint32) { f.Raw([]byte(text)) }
}

func flood(f *agenttest.Fake, id uint32) {
	for range agent.Window/agent.MaxPayload + 1 {
		f.Send(agent.TypeData, id, bytes.Repeat([]byte("x"), agent.MaxPayload))
	}
}

// places are where the hostile agent is. Of the paths that are in use then some share the fate of its link and others do not.
var places = map[string]struct {
	evil  string
	path  hop.Path   // to it
	level int        // of the hop that breaks the protocol
	name  string     // of that hop
	below []hop.Path // lead through it
	other []hop.Path // do not
}{
	"a target": {
		evil: "h1", path: hop.Path{sshHop("h1", "py")}, name: "ssh h1",
		other: []hop.Path{{sshHop("h2", "py")}, {sshHop("h2", "py"), becomeHop("a", "py")}},
	},
	"an account": {
		evil: "a", path: hop.Path{sshHop("h1", "py"), becomeHop("a", "py")}, level: 1, name: "sudo a",
		other: []hop.Path{{sshHop("h1", "py")}, {sshHop("h1", "py"), becomeHop("b", "py")}, {sshHop("h2", "py")}},
	},
	"an account behind another": {
		evil: "a", path: hop.Path{sshHop("h1", "py"), becomeHop("b", "py"), becomeHop("a", "py")}, level: 2, name: "sudo a",
		other: []hop.Path{
			{sshHop("h1", "py")},
			{sshHop("h1", "py"), becomeHop("b", "py")},
			{sshHop("h1", "py"), becomeHop("b", "py"), becomeHop("c", "py")},
			{sshHop("h2", "py")},
		},
	},
	"an account on the way": {
		evil: "b", path: hop.Path{sshHop("h1", "py"), becomeHop("b", "py")}, level: 1, name: "sudo b",
		below: []hop.Path{{sshHop("h1", "py"), becomeHop("b", "py"), becomeHop("a", "py")}},
		other: []hop.Path{{sshHop("h1", "py")}, {sshHop("h1", "py"), becomeHop("c", "py")}, {sshHop("h2", "py")}},
	},
}

// conversation is a command under way.
type conversation struct {
	context *Context
	stream  *agent.Stream
}

func converseWith(t *testing.T, tree *Tree, path hop.Path) conversation {
	t.Helper()
	r := run("r1")
	r.MaxInterp = 9
	c := acquire(t, tree, r, "host", path...)
	s, err := c.Open(t.Context(), agent.Command{Argv: [][]byte{[]byte("true")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), make([]byte, 40<<10)); err != nil { // so much that it leaves at once
		t.Fatal(err)
	}
	return conversation{c, s}
}

// finish has the command end, and returns what it said, or why it could not.
func (c conversation) finish(ctx context.Context) (string, error) {
	defer c.context.Release()
	defer c.stream.Close()
	_ = c.stream.CloseSend() // Recv says it too
	said := ""
	for {
		ev, err := c.stream.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return said, nil
		}
		if err != nil {
			return said, c.context.fault(err, "the request failed")
		}
		said += string(ev.Data)
	}
}

// inBubble counts the goroutines of the test's bubble.
func inBubble() int {
	stacks := make([]byte, 1<<20)
	return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte(", synctest bubble "))
}

// TestHostileAgents: whatever an agent says that it may not say ends its own link, with a typed error that names the hop and a line in the
// log, and what leads through it; all other links go on with what they have under way, nothing is left of it, and the next request dials.
func TestHostileAgents(t *testing.T) {
	for place, p := range places {
		for name, v := range violations {
			t.Run(place+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log bytes.Buffer
					s := &stage{t: t, evil: p.evil, do: v.do}
					tree := New(Options{Dialer: s, Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Info})})
					defer func() { _ = tree.Close() }()
					acquire(t, tree, run("r1"), "host", sshHop("h1", "")).Release() // the connection stays
					var other, below []conversation
					for _, path := range p.other {
						other = append(other, converseWith(t, tree, path))
					}
					synctest.Wait()
					nodes, goroutines := len(tree.Nodes()), inBubble()
					for _, path := range p.below {
						below = append(below, converseWith(t, tree, path))
					}
					synctest.Wait()
					victim := converseWith(t, tree, p.path)
					synctest.Wait()
					for i, c := range append(below, victim) {
						_, err := c.finish(t.Context())
						if v.done && i == len(below) {
							continue
						}
						e := wantFault(t, err, fault.AgentDied, p.level, p.name)
						if broken, ok := errors.AsType[*agent.ViolationError](e.Cause); !ok || !strings.Contains(broken.What, v.want) {
							t.Errorf("it ended with %v, want %q", e.Cause, v.want)
						}
					}
					synctest.Wait()
					if left := len(tree.Nodes()); left != nodes {
						t.Errorf("%d nodes, %d before it came", left, nodes)
					}
					if left := inBubble(); left != goroutines {
						t.Errorf("%d goroutines, %d before it came", left, goroutines)
					}
					if line := log.String(); strings.Count(line, "\n") != 1 || !strings.Contains(line, "[WARN]") || !strings.Contains(line, v.want) || !strings.Contains(line, p.name) {
						t.Errorf("the log has %q", line)
					}
					for _, path := range append([]hop.Path{p.path}, p.below...) {
						other = append(other, converseWith(t, tree, path))
					}
					for _, c := range other {
						if said, err := c.finish(t.Context()); err != nil || said != "done" {
							t.Errorf("%s: %q, %v", c.context.node.name(), said, err)
						}
					}
				})
			})
		}
	}
}
