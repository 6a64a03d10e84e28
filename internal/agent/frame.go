package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Frame is one frame. The payload of a frame that was read belongs to the reader's buffer.
type Frame struct {
	Type    FrameType
	Stream  uint32
	Payload []byte
}

// AppendFrame appends f to b as it goes over the link.
func AppendFrame(b []byte, f Frame) []byte {
	return append(appendHeader(b, f.Type, f.Stream, len(f.Payload)), f.Payload...)
}

func appendHeader(b []byte, t FrameType, stream uint32, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(length)) //nolint:gosec // at most MaxPayload
	b = append(b, byte(t))
	return binary.BigEndian.AppendUint32(b, stream)
}

// direction is which way a frame goes.
type direction bool

const (
	up   direction = true  // from the agent
	down direction = false // to the agent
)

// checkHeader refuses what no state of any stream could make right, before a byte of the payload is read.
func checkHeader(way direction, length uint32, t FrameType, stream uint32) error {
	l, ok := layouts[t]
	switch {
	case !ok:
		return violation("unknown frame type %d", t)
	case way == up && !l.up, way == down && !l.down:
		return violation("%s frame in the wrong direction", l.name)
	case l.onLink != (stream == 0):
		return violation("%s frame on stream %d", l.name, stream)
	case int64(length) < int64(l.min), int64(length) > int64(l.max):
		return violation("%s frame of %d bytes", l.name, length)
	case t == TypeDrop && length%32 != 0:
		return violation("%s frame of %d bytes", l.name, length)
	}
	return nil
}

// readFrame reads one frame that goes the given way. room returns where a payload of n bytes, at most MaxPayload, is put. io.EOF
// means that the link ended between two frames.
func readFrame(r io.Reader, way direction, room func(n int) []byte) (Frame, error) {
	var header [headerLength]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Frame{}, err //nolint:wrapcheck // io.EOF between frames is an answer
	}
	length := binary.BigEndian.Uint32(header[:4])
	f := Frame{Type: FrameType(header[4]), Stream: binary.BigEndian.Uint32(header[5:])}
	if err := checkHeader(way, length, f.Type, f.Stream); err != nil {
		return Frame{}, err
	}
	f.Payload = room(int(length))
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("cannot read the payload of a %s frame: %w", f.Type, noEOF(err))
	}
	return f, nil
}

// noEOF makes an end where there should be bytes what it is.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // io.ReadFull returns it bare
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadDown reads a frame of the daemon, for agents written in Go: the scripted ones of tests.
func ReadDown(r io.Reader) (Frame, error) {
	return readFrame(r, down, allocate)
}

// ReadUp reads a frame of an agent.
func ReadUp(r io.Reader) (Frame, error) {
	return readFrame(r, up, allocate)
}

func allocate(n int) []byte { return make([]byte, n) }

// buffers lends room for frames to busy links: bulk data would else keep the garbage collector busier than anything.
var buffers bufferPool

// bufferSize is room for a frame of any length, and the END that may follow it.
const bufferSize = headerLength + MaxPayload + headerLength

type bufferPool struct{ pool sync.Pool }

// borrow returns room for a frame of any length.
func (p *bufferPool) borrow() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:0]
	}
	return make([]byte, 0, bufferSize)
}

// room returns room for n bytes, borrowed if they are many.
func (p *bufferPool) room(n int) []byte {
	if n < MaxPayload/4 {
		return make([]byte, 0, n)
	}
	return p.borrow()
}

// giveBack takes back what was borrowed, and leaves anything else alone. Nobody may use it any more.
func (p *bufferPool) giveBack(b []byte) {
	if cap(b) == bufferSize {
		p.pool.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}

// ViolationError says how an agent broke the protocol. It ends the link.
type ViolationError struct{ What string }

// Error implements error.
func (e *ViolationError) Error() string { return "the agent broke the protocol: " + e.What }

func violation(format string, args ...any) error {
	return &ViolationError{What: fmt.Sprintf(format, args...)}
}
