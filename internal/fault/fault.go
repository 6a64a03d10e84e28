// Package fault is the error that crosses rooms and, at the edge, the wire: a kind that programs decide by, the place (hop), and
// texts for people (what happened, the remedy, what the far side said). It knows nothing of gRPC; internal/server maps it.
package fault

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Kind is what a program may decide by. The numbers are those of Error.Kind in error.proto: append only.
type Kind int32

// The kinds.
const (
	Unspecified            Kind = 0
	Unreachable            Kind = 1
	AuthFailed             Kind = 2
	HostKeyUnknown         Kind = 3
	HostKeyChanged         Kind = 4
	BecomePasswordRequired Kind = 5
	BecomePasswordWrong    Kind = 6
	BecomeTimeout          Kind = 7
	BecomeFailed           Kind = 8
	InterpreterMissing     Kind = 9
	AgentVersion           Kind = 10
	AgentDied              Kind = 11
	FileChanged            Kind = 12
	FileNotFound           Kind = 13
	FileFailed             Kind = 14
	TooLarge               Kind = 15
	Cancelled              Kind = 16
	TimedOut               Kind = 17
	Unsupported            Kind = 18
	Internal               Kind = 19
	PayloadWanted          Kind = 20
	LocalAgentWanted       Kind = 21
	RunUnknown             Kind = 22
	Draining               Kind = 23
	NotBegun               Kind = 24
)

// Error is a failure with its kind.
type Error struct {
	Kind    Kind
	Hop     int    // index into the path; set by internal/mux
	HopName string // for people; set by internal/mux
	Message string // what happened, one sentence without a full stop
	Hint    string // the remedy, one sentence; may be empty
	Stderr  string // Clean()ed tail of what the far side said
	Token   []byte // LocalAgentWanted
	Step    int    // index of the failed step; set by internal/server
	Exit    int    // BecomeFailed: the tool's exit code, 0 if it has none
	Cause   error
}

// Error implements error.
func (e *Error) Error() string {
	parts := make([]string, 0, 3)
	if e.HopName != "" {
		parts = append(parts, e.HopName)
	}
	parts = append(parts, e.Message)
	if e.Cause != nil {
		parts = append(parts, e.Cause.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Cause }

// KindOf returns the kind of the first *Error in err's tree, Internal for any other error, Unspecified for nil.
func KindOf(err error) Kind {
	if err == nil {
		return Unspecified
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// MaxStderr is how many bytes of a far side's words an error carries.
const MaxStderr = 4096

// Clean makes the far side's words fit for a terminal: the tail of at most MaxStderr bytes as valid UTF-8, without control
// characters and escape sequences, newlines and tabs kept.
func Clean(b []byte) string {
	if len(b) > MaxStderr {
		b = b[len(b)-MaxStderr:]
		for len(b) > 0 && !utf8.RuneStart(b[0]) {
			b = b[1:]
		}
	}
	var out strings.Builder
	rest := string(b)
	for len(rest) > 0 {
		if n := escapeLen(rest); n > 0 {
			rest = rest[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(rest)
		rest = rest[n:]
		if r == '\n' || r == '\t' || (!unicode.IsControl(r) && r != utf8.RuneError && !unicode.Is(unicode.Cf, r)) {
			out.WriteRune(r)
		}
	}
	return strings.TrimSpace(out.String())
}

// escapeLen returns the length of the terminal escape sequence s starts with (ECMA-48: CSI, OSC and the like), or 0.
func escapeLen(s string) int {
	if s[0] != 0x1b || len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']', 'P', '_', '^', 'X':
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
		}
		return len(s)
	default:
		return 2
	}
}
