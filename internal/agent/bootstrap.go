package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Conn is the pair of byte streams below a link. Close unblocks Read and Write and their later calls fail; what they were given then may
// still be in use.
//
// A Conn may also have Tail() []byte, the last words on the far side's stderr, which then stand in errors; and Detach() error, which
// is called in place of Close once an agent lives there: it ends our side, and leaves the process to its own end.
type Conn interface{ io.ReadWriteCloser }

// One that leads through another agent may have Share(p []byte) error, which is Write for what others behind that agent may be sent too.
type (
	teller   interface{ Tail() []byte }
	detacher interface{ Detach() error }
	sharer   interface{ Share(p []byte) error }
)

// Options are what a link needs besides its Conn.
type Options struct {
	Log hclog.Logger // nil: none
	// OnLog is given the agent's LOG messages, cleaned. It is called by the link's reader: it must not block.
	OnLog func(level int, text string)
	// OnPreamble is given what came before the agent, before Connect returns.
	OnPreamble func(text []byte)
	Name       string // of the far side, in the log
	// BlobLimit is how many bytes of blobs the agent may keep that no request needs; 0: DefaultBlobLimit.
	BlobLimit int64
	// Shared reports whether others behind the same agent may be sent what this one is; nil: there are none.
	Shared func() bool
	// KeepLimit is how many bytes of that the agent may keep; 0: as its memory allows.
	KeepLimit int64
}

// Connect skips noise up to the magic, sends the agent and returns without waiting for its HELLO: requests may be queued at once. ctx
// bounds Connect only. It owns conn from now on, also when it fails. Errors are *fault.Error.
func Connect(ctx context.Context, conn Conn, o Options) (*Link, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	in := bufio.NewReaderSize(conn, readBuffer)
	noise, err := skipNoise(in)
	if !stop() {
		return nil, ctxFault(ctx, "cannot start an agent")
	}
	if err != nil {
		_ = conn.Close()
		return nil, startFault(conn, noise, err)
	}
	l := newLink(conn, in, o)
	if len(noise) > 0 {
		l.o.Log.Debug("skipped noise before the agent", "name", o.Name, "text", fault.Clean(noise))
	}
	if o.OnPreamble != nil {
		o.OnPreamble(noise)
	}
	l.received = int64(len(noise) + len(magic))
	l.heard, l.out.spoke = true, true
	first := binary.BigEndian.AppendUint32(nil, uint32(len(Source()))) //nolint:gosec // some tens of KiB
	first = append(first, Source()...)
	l.start(first)
	return l, nil
}

var (
	errUnclean  = errors.New("the magic came mangled")
	errTooNoisy = errors.New("too much output before the magic")
)

// skipNoise reads up to the end of the magic and returns what stood before it.
func skipNoise(in io.ByteReader) ([]byte, error) {
	var seen []byte
	for {
		b, err := in.ReadByte()
		if err != nil {
			return seen, err //nolint:wrapcheck // startFault says what it means
		}
		seen = append(seen, b)
		switch {
		case bytes.HasSuffix(seen, []byte(magic)):
			return seen[:len(seen)-len(magic)], nil
		case isMangled(seen):
			return seen, errUnclean
		case len(seen) >= maxNoise+len(magic):
			return seen, errTooNoisy
		}
	}
}

// isMangled reports whether seen ends with a magic of which some control bytes were changed, added or eaten on the way. The word MUX
// alone in a banner is none.
func isMangled(seen []byte) bool {
	last := seen[len(seen)-1]
	if last != '\r' && last != '\n' {
		return false
	}
	at := bytes.LastIndex(seen, []byte("MUX"))
	if at < 0 || bytes.HasPrefix([]byte(magic), seen[at:]) {
		return false
	}
	rest, ok := bytes.CutSuffix(seen[at+3:len(seen)-1], []byte("1"))
	return ok && len(rest) > 0 && len(rest) <= 2*len(magic) && len(bytes.Trim(rest, "\x00\n\r\x11\x13\x7f\xff\u00ff")) == 0
}

// startFault says why no agent came.
func startFault(conn Conn, noise []byte, err error) error {
	words := noise
	if t, ok := conn.(teller); ok {
		words = append(append(words, '\n'), t.Tail()...)
	}
	e := &fault.Error{Kind: fault.AgentDied, Message: "the agent did not start", Stderr: fault.Clean(words), Cause: err}
	switch {
	case errors.Is(err, errUnclean):
		e.Kind, e.Message = fault.Unsupported, "the connection to the agent is not 8-bit clean"
		e.Hint = "Look for a terminal, a filter or a wrapper between the login shell and the interpreter"
	case errors.Is(err, errTooNoisy):
		e.Hint = "Make the account's shell start-up files print nothing when they are not interactive"
	case bytes.Contains(words, []byte("not found")), bytes.Contains(words, []byte("No such file")):
		e.Kind, e.Message = fault.InterpreterMissing, "the Python interpreter was not found"
		e.Hint = "Set ansible_python_interpreter to a Python of the target"
	case errors.Is(err, io.EOF):
		e.Cause = nil // "EOF" tells nobody anything
	}
	return e
}

// ctxFault makes the end of a context an error with a kind. A *fault.Error as the cause keeps its own.
func ctxFault(ctx context.Context, what string) error {
	cause := context.Cause(ctx)
	kind := fault.Cancelled
	if e, ok := errors.AsType[*fault.Error](cause); ok {
		kind = e.Kind
	} else if errors.Is(cause, context.DeadlineExceeded) {
		kind = fault.TimedOut
	}
	return &fault.Error{Kind: kind, Message: what, Cause: cause}
}
