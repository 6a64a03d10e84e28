package sshlink

import (
	"crypto/sha1" // OpenSSH defines %C by it
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// place is where a connection is set up from: the account that the daemon belongs to, and the run.
type place struct {
	home, user, uid string
	run             hop.Run
}

// env looks a variable up as the run would.
func (p *place) env(name string) string {
	for i := len(p.run.Environ) - 1; i >= 0; i-- {
		if n, v, ok := strings.Cut(p.run.Environ[i], "="); ok && n == name {
			return v
		}
	}
	return ""
}

// abs makes a path of ssh_config absolute: ~ is the home of the password database, as for OpenSSH, and the rest starts at the
// run's directory.
func (p *place) abs(path string) string {
	switch {
	case path == "~":
		return p.home
	case strings.HasPrefix(path, "~/"):
		return filepath.Join(p.home, path[2:])
	case filepath.IsAbs(path) || p.run.Cwd == "":
		return path
	default:
		return filepath.Join(p.run.Cwd, path)
	}
}

// path expands the tokens and variables of a path, and makes it absolute.
func (p *place) path(c *config, s string) string { return p.abs(p.variables(p.tokens(c, s))) }

// tokens expands ssh_config's percent tokens. Unknown ones stay as they are: ssh has refused them before us.
func (p *place) tokens(c *config, s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	local, _ := os.Hostname()
	short, _, _ := strings.Cut(local, ".")
	port := strconv.Itoa(c.Port)
	alias := c.HostKeyAlias
	if alias == "" {
		alias = c.Host
	}
	sum := sha1.Sum([]byte(local + c.HostName + port + c.User + c.ProxyJump)) // see above
	return strings.NewReplacer("%%", "%", "%C", hex.EncodeToString(sum[:]), "%d", p.home, "%h", c.HostName, "%i", p.uid,
		"%j", c.ProxyJump, "%k", alias, "%L", short, "%l", local, "%n", c.Host, "%p", port, "%r", c.User, "%u", p.user).Replace(s)
}

// variables expands ${NAME}.
func (p *place) variables(s string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		name, after, closed := strings.Cut(rest, "}")
		if !found || !closed {
			out.WriteString(s)
			return out.String()
		}
		out.WriteString(before)
		out.WriteString(p.env(name))
		s = after
	}
}
