package agent

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

const (
	// leastPassed is how many bytes are worth two frames more than they would be in.
	leastPassed = 4 << 10
	// An agent keeps for those behind it at most so much, and a part of the memory that its system could give when it started.
	mostPassed      = 128 << 20
	passedOfSpare   = 4
	passedIfUnknown = 16 << 20
	// unusedPassed is after how long the agent forgets what nobody wanted any more: RAM of the target is lent for no longer.
	unusedPassed = time.Minute
)

// passed is what the agent keeps of what passed through it to others behind it, so that it crosses this link once however many want it:
// named by its SHA-256 here, by a number on the wire. The link's mutex guards it.
type passed struct {
	parts  map[blobcache.Digest]*part
	first  []*part // what the agent keeps, by number
	bytes  int64   // of those
	last   uint32  // the highest number
	unused *time.Timer
}

// part is the payload of a frame for an agent behind this one.
type part struct {
	digest  blobcache.Digest
	size    int
	number  uint32    // 0: it waits in the outbox
	uses    int       // KEPT frames that wait in the outbox
	waiting []*Stream // for it to leave
}

func newPassed() passed {
	p := passed{parts: map[blobcache.Digest]*part{}, unused: time.NewTimer(unusedPassed)}
	p.unused.Stop()
	return p
}

// share sends p as DATA, whole or by its number.
func (s *Stream) share(ctx context.Context, p []byte) error {
	digest := blobcache.Sum(p)
	l := s.link
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := s.unsendable(TypeData); err != nil {
			return err
		}
		known := l.passed.parts[digest]
		switch {
		case s.down.room() < len(p) || s.outBytes+len(p) > maxOut:
			s.resumed = s.resumed || s.down.room() < len(p)
		case known == nil:
			known = &part{digest: digest, size: len(p)}
			l.passed.parts[digest] = known
			s.queuePart(TypeKeep, p, known)
			return nil
		case known.number > 0:
			known.uses++
			s.queuePart(TypeKept, binary.BigEndian.AppendUint32(nil, known.number), known)
			return nil
		default: // it is about to leave, as it needs no credit any more
			known.waiting = append(known.waiting, s)
		}
		if err := s.wait(ctx, "cannot send to the agent"); err != nil {
			return err
		}
	}
}

func (s *Stream) queuePart(t FrameType, payload []byte, about *part) {
	c := newChunk(t, payload)
	c.part = about
	s.down.leave(c.weight())
	s.outBytes += c.size()
	s.out = append(s.out, c)
	s.queued()
}

// dropOut forgets what waits in the outbox.
func (s *Stream) dropOut() {
	for _, c := range s.out {
		switch c.typ { //nolint:exhaustive // the others are about no part
		case TypeKeep:
			delete(s.link.passed.parts, c.part.digest)
			c.part.wake()
		case TypeKept:
			c.part.uses--
		}
	}
	s.out, s.outBytes = nil, 0
	s.link.forgetUpTo(s.link.keepLimit())
}

// wake lets those go on who wait for p to leave.
func (p *part) wake() {
	for _, s := range p.waiting {
		s.notify()
	}
	p.waiting = nil
}

// partLeft takes note that a KEEP or KEPT has left, and has the agent forget the oldest of what is too much.
func (l *Link) partLeft(c chunk) {
	k := &l.passed
	if c.typ == TypeKeep {
		k.last++
		c.part.number = k.last
		k.first = append(k.first, c.part)
		k.bytes += int64(c.part.size)
		c.part.wake()
	} else {
		c.part.uses--
	}
	l.forgetUpTo(l.keepLimit())
	k.unused.Reset(unusedPassed)
}

// keepLimit is how many bytes the agent may keep for those behind it.
func (l *Link) keepLimit() int64 {
	switch {
	case l.o.KeepLimit > 0:
		return l.o.KeepLimit
	case !l.isHelloed() || l.hello.SpareKiB == 0:
		return passedIfUnknown
	default:
		return int64(min(l.hello.SpareKiB/passedOfSpare, mostPassed>>10)) << 10 //nolint:gosec // the smaller one fits
	}
}

// forgetPassed has the agent forget all that nobody wants.
func (l *Link) forgetPassed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetUpTo(0)
}

// forgetUpTo has the agent forget what came first, until so many bytes are left.
func (l *Link) forgetUpTo(limit int64) {
	k, number := &l.passed, uint32(0)
	for len(k.first) > 0 && k.bytes > limit && k.first[0].uses == 0 {
		oldest := k.first[0]
		k.first[0] = nil
		k.first = k.first[1:]
		k.bytes -= int64(oldest.size)
		delete(k.parts, oldest.digest)
		number = oldest.number
	}
	if number > 0 {
		l.out.putControl(nil, TypeForget, binary.BigEndian.AppendUint32(nil, number))
	}
}
