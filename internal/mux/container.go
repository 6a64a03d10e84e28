package mux

import (
	"context"
	"errors"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// startInContainer has the parent's agent run the tool that enters the container, with stage 1 as its command.
func (t *Tree) startInContainer(ctx context.Context, n *node) (peer, error) {
	argv := append(append([][]byte{}, n.hop.Container.Argv...), []byte("/bin/sh"), []byte("-c"), []byte(n.stage1()))
	stream, err := n.parent.link.Spawn(ctx, &agent.Spawn{Argv: argv, Terminal: agent.NoTerminal})
	if err != nil {
		return nil, n.fault(err, fault.AgentDied, "cannot start "+n.hop.Container.Method)
	}
	t.mu.Lock()
	n.gone = stream.Gone
	t.mu.Unlock()
	conn := &spawnedConn{Conn: stream.Conn(), stream: stream, parent: n.parent, code: -1}
	link, err := t.bootstrap(ctx, n, conn)
	if err != nil {
		return nil, n.fault(notEntered(err, conn, n.hop), fault.AgentDied, "cannot start the agent")
	}
	return link, nil
}

// enter is the tool with a command for a shell behind it, as one command line.
func enter(c *hop.Container, cmd string) string {
	words := make([]string, 0, len(c.Argv)+3)
	for _, w := range c.Argv {
		words = append(words, quoted(string(w)))
	}
	return strings.Join(append(words, "/bin/sh", "-c", quoted(cmd)), " ")
}

// notEntered says better why there is no agent in a container. The tools end as the command does, with 126 or 127 if it is not there, and
// with other codes for reasons of their own: the container does not run, or they may not enter it.
func notEntered(err error, conn *spawnedConn, h hop.Hop) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || (e.Kind != fault.AgentDied && e.Kind != fault.InterpreterMissing) {
		return err
	}
	said, tool := *e, string(h.Container.Argv[0])
	said.Cause = nil
	switch {
	case missing(conn.code) && strings.HasPrefix(e.Stderr, tool+": "): // the agent's own words
		said.Kind, said.Message = fault.Unreachable, "cannot start "+tool
		said.Hint = "install it on the machine that the container runs on, or set its path"
	case missing(conn.code):
		return explain(err, conn.code, h.Interpreter)
	case conn.code > 0 && conn.code < signalled:
		said.Kind, said.Message = fault.Unreachable, h.Container.Method+" cannot enter "+h.Container.Name
		said.Hint = "check that the container runs and that the account may enter it"
	default:
		return err
	}
	return &said
}
