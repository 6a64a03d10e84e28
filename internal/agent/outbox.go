package agent

import (
	"encoding/binary"
)

// What leaves in one Write: all control frames that wait (up to so many bytes), and data of at most one payload, so that a control
// frame that comes meanwhile waits for one chunk and no longer.
const maxControlBatch = 256 << 10

// outbox holds the frames that wait for the link's writer. The link's mutex guards it.
//
// Control frames leave first, in their order. Data waits with its stream, since only what the peer has given credit for and what the
// caller may buffer gets there; END waits behind its stream's data.
type outbox struct {
	control []controlFrame
	ready   []*Stream // with something in out, a turn each
	wake    chan struct{}
	spoke   bool // something was taken that may answer what came: not the rest of a request
}

type controlFrame struct {
	stream  *Stream // nil: stream 0
	typ     FrameType
	payload []byte
}

// chunk is a part of a stream's input, or its END.
type chunk struct {
	typ   FrameType
	frame []byte // room for the header, then the payload
	part  *part  // that KEEP and KEPT are about
}

// newChunk makes one with a copy of p.
func newChunk(t FrameType, p []byte) chunk {
	room := buffers.room(headerLength + len(p))
	return chunk{typ: t, frame: append(room[:headerLength], p...)}
}

// size is that of the payload.
func (c chunk) size() int { return len(c.frame) - headerLength }

// weight is how much of the stream's credit the chunk uses.
func (c chunk) weight() int {
	if c.typ == TypeKept {
		return c.part.size
	}
	return c.size()
}

// seal makes the chunk a frame of a stream.
func (c chunk) seal(stream uint32) []byte {
	appendHeader(c.frame[:0], c.typ, stream, c.size())
	return c.frame
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) putControl(s *Stream, t FrameType, payload []byte) {
	o.control = append(o.control, controlFrame{s, t, payload})
	o.poke()
}

func (o *outbox) putCredit(s *Stream, n int) {
	o.putControl(s, TypeCredit, binary.BigEndian.AppendUint32(nil, uint32(n))) //nolint:gosec // at most maxWindow
}

// putReady gives s its turns.
func (o *outbox) putReady(s *Stream) {
	if !s.inReady {
		s.inReady = true
		o.ready = append(o.ready, s)
	}
	o.poke()
}

// withdraw takes the OPEN of a stream out again.
func (o *outbox) withdraw(s *Stream) {
	for i, f := range o.control {
		if f.stream == s && f.typ == TypeOpen {
			o.control = append(o.control[:i], o.control[i+1:]...)
			return
		}
	}
}

// take appends to b what the next Write carries; where that is a frame alone it is not copied, and b may be a lent buffer. The last one
// before a link closes asks nothing new of the agent. number is called for each OPEN and gives its stream its number.
func (o *outbox) take(b []byte, last bool, number func(*Stream)) []byte {
	taken := 0
	for _, f := range o.control {
		if len(b) > maxControlBatch {
			break
		}
		taken++
		o.spoke = true
		if last && f.typ == TypeOpen {
			continue
		}
		if f.typ == TypeOpen {
			number(f.stream)
		}
		frame := Frame{Type: f.typ, Payload: f.payload}
		if f.stream != nil {
			frame.Stream = f.stream.id
		}
		b = AppendFrame(b, frame)
	}
	clear(o.control[:taken])
	o.control = o.control[taken:]
	if len(o.control) == 0 {
		o.control = nil
	}
	if last || len(o.control) > 0 {
		return b
	}
	return o.takeData(b)
}

func (o *outbox) takeData(b []byte) []byte {
	room := MaxPayload
	for len(o.ready) > 0 {
		s := o.ready[0]
		if len(s.out) > 0 && s.out[0].size() > room {
			break
		}
		o.ready[0] = nil
		o.ready = o.ready[1:]
		s.inReady = false
		o.spoke = o.spoke || s.resumed || !s.followsOpen()
		s.resumed = false
		for len(s.out) > 0 { // one frame, and END if that was the last
			c := s.out[0]
			s.out[0] = chunk{}
			s.out = s.out[1:]
			if frame := c.seal(s.id); len(b) == 0 {
				b = frame
			} else {
				b = append(b, frame...)
				buffers.giveBack(frame)
			}
			room -= c.size()
			s.outBytes -= c.size()
			s.unreturned += c.weight()
			if c.part != nil {
				s.link.partLeft(c)
			}
			if c.typ == TypeEnd {
				s.endTaken = true
			}
			if len(s.out) > 0 && s.out[0].typ != TypeEnd {
				break
			}
		}
		s.notify()
		if len(s.out) > 0 {
			s.inReady = true
			o.ready = append(o.ready, s)
		}
	}
	return b
}
