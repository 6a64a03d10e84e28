package daemon

import "fmt"

// Reason is why a daemon, or a client of one, cannot use a place.
type Reason int

// The reasons.
const (
	Relative    Reason = 1  // the directory's path is not absolute
	Blank       Reason = 2  // the path has a blank or a control character, which the handshake line cannot carry
	TooLong     Reason = 3  // a socket's path is longer than the system allows
	Symlink     Reason = 4  // the directory is a symbolic link
	NotDir      Reason = 5  // it is no directory
	Owner       Reason = 6  // it, or a socket in it, belongs to another user
	Mode        Reason = 7  // others have access to it
	OpenParent  Reason = 8  // others may replace it
	NoParent    Reason = 9  // the directory above it is not there
	Stuck       Reason = 10 // another daemon has the place and does not answer
	NotRunning  Reason = 11 // no daemon of this version serves there
	BadVersion  Reason = 12 // the build's version cannot be part of a file's name
	Unavailable Reason = 13 // the system refused; see Cause
)

// Error is a failure with a remedy. Its text is one line.
type Error struct {
	Reason  Reason
	Path    string
	Message string // what is wrong, one sentence without a full stop
	Remedy  string // what to do, the same way
	Cause   error
}

// Error implements error.
func (e *Error) Error() string {
	text := e.Message
	if e.Cause != nil {
		text = fmt.Sprintf("%s: %v", text, e.Cause)
	}
	if e.Remedy == "" {
		return text
	}
	return text + ": " + e.Remedy
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Cause }
