package agent

import "github.com/mitogen-mux/mitogen-mux/internal/blobcache"

// This file is docs/agent-protocol.md in Go: every number, layout and maximum, and nothing that acts. A change edits that page, the
// golden files under testdata and both ends together.

// Protocol is the number that HELLO must carry.
const Protocol = 1

// magic is what stage 1 says first. NUL, LF, CR, 0xff, XON and XOFF are in it because each is what some kind of unclean line eats.
const magic = "MUX\x00\x0a\x0d\xff\x11\x131\x0d\x0a"

// The maxima.
const (
	MaxPayload   = 128 << 10 // bytes of a frame's payload
	Window       = 1 << 20   // credit of either direction when a stream opens
	maxWindow    = 4 << 20   // the most it ever has
	leastWindow  = 2 * creditAt
	creditAt     = 128 << 10 // consumed bytes that are worth a CREDIT frame
	maxNoise     = 64 << 10  // bytes before the magic
	maxHello     = 16 << 10
	maxResult    = 64 << 10
	maxText      = 4096 // LOG and RESULT
	maxVersion   = 64
	maxPath      = 4096
	maxAccount   = 256
	maxPlace     = 8 << 10 // a chained request's place
	maxChain     = 4096    // requests
	headerLength = 9
)

// FrameType is the second field of a frame's header.
type FrameType uint8

// The frame types.
const (
	TypeHello  FrameType = 1
	TypeOpen   FrameType = 2
	TypeData   FrameType = 3
	TypeErr    FrameType = 4
	TypeTTY    FrameType = 5
	TypeEnd    FrameType = 6
	TypeCredit FrameType = 7
	TypeCancel FrameType = 8
	TypeResult FrameType = 9
	TypePing   FrameType = 10
	TypePong   FrameType = 11
	TypeDrop   FrameType = 12
	TypeLog    FrameType = 13
	TypeWindow FrameType = 14
	TypeKeep   FrameType = 15
	TypeKept   FrameType = 16
	TypeForget FrameType = 17
)

// layout is what can be said of a frame type without knowing its stream.
type layout struct {
	name     string
	up, down bool
	onLink   bool // on stream 0, otherwise on any other
	min, max int  // bytes of payload
}

var layouts = map[FrameType]layout{
	TypeHello:  {name: "HELLO", up: true, onLink: true, max: maxHello},
	TypeOpen:   {name: "OPEN", down: true, min: 1, max: MaxPayload},
	TypeData:   {name: "DATA", up: true, down: true, min: 1, max: MaxPayload},
	TypeErr:    {name: "ERR", up: true, min: 1, max: MaxPayload},
	TypeTTY:    {name: "TTY", up: true, down: true, min: 1, max: MaxPayload},
	TypeEnd:    {name: "END", up: true, down: true},
	TypeCredit: {name: "CREDIT", up: true, down: true, min: 4, max: 4},
	TypeCancel: {name: "CANCEL", down: true},
	TypeResult: {name: "RESULT", up: true, max: maxResult},
	TypePing:   {name: "PING", down: true, onLink: true, min: 8, max: 8},
	TypePong:   {name: "PONG", up: true, onLink: true, min: 8, max: 8},
	TypeDrop:   {name: "DROP", down: true, onLink: true, min: len(blobcache.Digest{}), max: MaxPayload},
	TypeLog:    {name: "LOG", up: true, onLink: true, min: 1, max: 1 + maxText},
	TypeWindow: {name: "WINDOW", down: true, min: 4, max: 4},
	TypeKeep:   {name: "KEEP", down: true, min: 1, max: MaxPayload},
	TypeKept:   {name: "KEPT", down: true, min: 4, max: 4},
	TypeForget: {name: "FORGET", down: true, onLink: true, min: 4, max: 4},
}

// String returns the page's name of the type.
func (t FrameType) String() string {
	if l, ok := layouts[t]; ok {
		return l.name
	}
	return "unknown"
}

// Kind is the first byte of an OPEN.
type Kind uint8

// The kinds of stream.
const (
	KindModule  Kind = 1
	KindCommand Kind = 2
	KindPut     Kind = 3
	KindGet     Kind = 4
	KindSpawn   Kind = 5
	KindBlobs   Kind = 6
	KindFolder  Kind = 7
	KindLook    Kind = 8
)

// answers says which frames the agent may send on a stream of a kind. CREDIT and RESULT it may always send: what it may not, the
// account of the stream's credit says.
var answers = map[Kind]map[FrameType]bool{
	KindModule:  {TypeData: true, TypeErr: true, TypeEnd: true},
	KindCommand: {TypeData: true, TypeErr: true, TypeEnd: true},
	KindPut:     {},
	KindGet:     {TypeData: true, TypeEnd: true},
	KindSpawn:   {TypeData: true, TypeErr: true, TypeTTY: true, TypeEnd: true},
	KindBlobs:   {},
	KindFolder:  {},
	KindLook:    {TypeData: true, TypeEnd: true},
}

// Hello is the agent's first word.
type Hello struct {
	Protocol   int
	Python     string // version, "3.11.2"
	PID        int
	UID        int
	Source     blobcache.Digest
	Executable string
	Account    string
	SpareKiB   uint64 // memory that the system could give when the agent started; 0: not known
}

// Request is what a stream is opened for: Module, Command, Put, Get, Spawn, Blobs, Folder or Look, or one of them as Chained.
type Request interface {
	kind() Kind
	fields(b *record)
}

// Module runs the payload that the manifest blob describes in a forked child.
type Module struct {
	Manifest     blobcache.Digest
	Params       []byte // JSON of any length
	Name         string // for people
	Environment  [][]byte
	Cwd          []byte
	Environ      [][]byte
	RlimitNofile uint64
	Logging      bool     // what it writes to Python's logging comes in the Result
	Stdin        bool     // what is sent on the stream is its stdin; Params have to fit into the OPEN frame
	Judged       bool     // those who follow it begin only if it has succeeded; so does the Result say
	Glance       bool     // it is the core's stat, of which no more is wanted than whether a file is there, and which
	Secrets      [][]byte // texts in Params that the module leaves out of what it logs

	// ParamsFollow: Params go on as DATA until END. Open sets it when they are too long for the OPEN frame, and sends the rest.
	ParamsFollow bool
}

// Command runs argv; its stdin is what is sent on the stream.
type Command struct {
	Argv    [][]byte
	TTY     bool
	Cwd     []byte
	Environ [][]byte
}

// Put writes a file from what is sent on the stream.
type Put struct {
	Dest   []byte
	Size   uint64
	Mode   *uint32          // nil: an existing file's, else 0666 less the umask
	SHA256 blobcache.Digest // zero: it follows the body as a trailer
	UID    uint32           // whose file it shall be, if the agent is root; 0: the agent's own
}

// Get reads a file.
type Get struct{ Source []byte }

// Terminal says what a spawned process has of a terminal.
type Terminal uint8

// The terminals.
const (
	NoTerminal          Terminal = 0
	ControllingTerminal Terminal = 1 // stdio are pipes, the terminal's bytes are TTY frames
	StdioTerminal       Terminal = 2
)

// Spawn runs argv with the agent's own environment; it is meant to become an agent.
type Spawn struct {
	Argv     [][]byte
	Terminal Terminal
}

// Blobs is the stream that Link.SendBlobs opens.
type Blobs struct{}

// Folder makes a folder that only its owner may enter, and the parents it lacks likewise; or removes one with all that is in it. A folder
// that was made and not removed goes when the agent does.
type Folder struct {
	Path   []byte
	Remove bool
	UID    uint32 // as Put's
}

// Look asks what the agent is doing, as text for people.
type Look struct{}

// Failure is why the agent could not do what it was asked.
type Failure string

// The failures.
const (
	FailNotFound    Failure = "not-found"
	FailChanged     Failure = "changed"
	FailDigest      Failure = "digest"
	FailIO          Failure = "io"
	FailBlobMissing Failure = "blob-missing"
	FailCancelled   Failure = "cancelled"
	FailBadRequest  Failure = "bad-request"
	FailFork        Failure = "fork"
	FailStale       Failure = "stale"
	FailSkipped     Failure = "skipped"
	FailNotBegun    Failure = "not-begun"
)

// Result is the last word on a stream.
type Result struct {
	Failed      bool
	Failure     Failure // if Failed
	Text        string  // the failure in the agent's words, cleaned
	ExitCode    int     // 128 + n if signal n ended it
	QueueMicros uint64  // from OPEN to the job's start
	JobMicros   uint64
	CPUMicros   uint64
	MaxRSSKiB   uint64
	Size        uint64
	SHA256      blobcache.Digest
	Succeeded   bool     // a module that was to be judged has ended with 0, and what it printed tells of no failure
	AgentKiB    uint64   // most memory of the agent itself, where it has become more; else 0
	Logged      []string // "name: text" of the records that a module wrote to Python's logging, cleaned
}

// Log levels of LOG frames.
const (
	LogWarning = 1
	LogV       = 2
	LogVVV     = 3
	LogVVVV    = 4
)
