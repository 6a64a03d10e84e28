// Package hop holds the values of which a path consists: what each step towards a context needs, already resolved by Ansible, with
// its key. It knows nothing of protocols, connections or the tree.
package hop

import "fmt"

// Secret is bytes that nothing may print. It formats as "(secret)" under every verb.
type Secret struct{ value []byte }

// NewSecret keeps a copy of b.
func NewSecret(b []byte) Secret { return Secret{append([]byte(nil), b...)} }

// Reveal returns the bytes. Its callers are the places where the secret is used: keep them few.
func (s Secret) Reveal() []byte { return s.value }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return len(s.value) == 0 }

// Format implements fmt.Formatter.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// MarshalText implements encoding.TextMarshaler, for encoders that do not use fmt.
func (s Secret) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// Key identifies a hop below its parent: equal keys, equal nodes. It is an HMAC over the fields that the .proto marks as
// identity (see internal/server), so it tells nothing of the secrets in it.
type Key [32]byte

// Hop is one step towards a context. Exactly one of SSH, Local, Become and Container is set.
type Hop struct {
	SSH       *SSH
	Local     *Local
	Become    *Become
	Container *Container
	// Interpreter of the account as shell words; empty: any agent that is ready, else none.
	Interpreter string
	// Discovery says how to find an interpreter where none is named and no agent is ready; nil: none is needed.
	Discovery *Discovery
	// Account is the key without the interpreter: all agents of one account share it.
	Account Key
}

// Path is the list of hops from the controller, outermost first.
type Path []Hop

// Bare is the index of the first hop from which on a plain command needs no agent: those hops have no interpreter, and their tools can be
// put before the command (containers, and an account at the very end). len(p) if there is none.
func (p Path) Bare() int {
	i := len(p)
	for i > 0 && p[i-1].Interpreter == "" {
		h := p[i-1]
		if h.Discovery != nil || h.Container == nil && (h.Become == nil || i < len(p)) {
			break
		}
		i--
	}
	return i
}

// SSH is an account reached by SSH; the fields are those of SshHop in path.proto.
type SSH struct {
	Host                 string
	Port                 uint16
	User                 string
	Password             Secret
	PrivateKeyFile       string
	PrivateKey           Secret
	PrivateKeyPassphrase Secret
	HostKeyChecking      bool
	Args                 []string // before the port, user and key of this hop on ssh's command line
	LateArgs             []string // behind them
	Executable           string
	PKCS11Provider       string
	ControlPath          string
	TimeoutSeconds       uint32
	ReconnectionRetries  uint32
	Verbosity            uint32
	PasswordMechanism    string
	Transport            string // "native", "openssh", "via" (not for the first hop), or empty: whichever of the first two can do it
}

// Local is the controller's own account within one run.
type Local struct{ Run string }

// Become is another account of the same machine, reached with a tool.
type Become struct {
	Method          string
	User            string
	Exe             string
	Flags           string
	Password        Secret
	Argv            [][]byte // starts the agent through the tool
	Prompt          []byte
	PromptPatterns  []string
	Success         []byte
	WrongPassword   [][]byte
	MissingPassword [][]byte
	TimeoutSeconds  uint32
}

// Container is another root of the same machine, entered with a tool that runs a command there.
type Container struct {
	Method string
	Name   string
	User   string   // empty: whom the tool chooses
	Argv   [][]byte // the tool and its arguments; the words of the command follow
}

// Discovery is Ansible's own search for an interpreter.
type Discovery struct {
	Command []byte   // for a shell: it prints the path of each on a line of its own
	Prefer  []string // the first of these that was found is taken, else the first that was found
}

// Name says what the hop is, for people: "ssh deploy@h1:22", "local", "sudo root", "docker app@web1".
func (h Hop) Name() string {
	switch {
	case h.SSH != nil:
		name := h.SSH.Host
		if h.SSH.User != "" {
			name = h.SSH.User + "@" + name
		}
		if h.SSH.Port != 0 {
			name = fmt.Sprintf("%s:%d", name, h.SSH.Port)
		}
		return "ssh " + name
	case h.Become != nil:
		return h.Become.Method + " " + h.Become.User
	case h.Container != nil && h.Container.User != "":
		return h.Container.Method + " " + h.Container.User + "@" + h.Container.Name
	case h.Container != nil:
		return h.Container.Method + " " + h.Container.Name
	default:
		return "local"
	}
}

// Run is what a dial needs to know of the run that asks for it: its own environment and place, never the daemon's.
type Run struct {
	ID            string
	Environ       []string // "NAME=value", allow-listed by the plugin
	Cwd           string
	PersistFor    int64 // seconds that idle nodes stay after their last use
	PersistBecome bool
	MaxInterp     int
	AgentName     string // argv of agents, after stage 1
}
