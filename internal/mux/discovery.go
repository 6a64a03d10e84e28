package mux

import (
	"bytes"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// search is a shell's script that carries out a discovery's command, says what came of it and, on the next line, which interpreter it
// takes, and becomes that interpreter with args. It has no line feed in it, nor an exclamation mark: a login shell of the C family stands
// before it.
func search(d *hop.Discovery, args string) string {
	prefer := make([]string, 0, len(d.Prefer))
	for _, p := range d.Prefer {
		prefer = append(prefer, quoted(p)+" ")
	}
	return `o=$(` + string(d.Command) + `); IFS=$(printf "\n\t"); set -f; f=; ` +
		`for w in ` + strings.Join(prefer, "") + `$o; do for i in $o; do case $i in /*) [ "$i" = "$w" ] && f=${f:-$i};; esac; done; done; ` +
		`[ "$f" ] || exit 127; printf "%s\n" "$o" "$f"; exec "$f" ` + args
}

// searched takes apart what came before an agent that such a script has started.
func searched(preamble []byte) (answer []byte, interpreter string) {
	said := bytes.TrimRight(preamble, "\r\n")
	at := bytes.LastIndexByte(said, '\n') + 1
	return preamble[:at], string(said[at:])
}

// discovered gives n, whose agent was started by a search, the interpreter that it has: further requests find it under that name.
func (t *Tree) discovered(n *node, preamble []byte) {
	answer, interpreter := searched(preamble)
	t.mu.Lock()
	defer t.mu.Unlock()
	n.answer = answer
	e := n.edge
	e.interpreter = interpreter
	if siblings := t.siblingsLocked(n.parent); siblings[n.edge] == n && siblings[e] == nil {
		delete(siblings, n.edge)
		siblings[e] = n
		n.edge.interpreter = interpreter // its role is read without the lock
	}
}

// Discovered returns what the discovery has said, if it was for this very request that it was carried out.
func (c *Context) Discovered() (answer []byte, ok bool) { return c.answer, c.answer != nil }
