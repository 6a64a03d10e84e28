package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// ErrSkipped is the cause of a chained request's failure that was not begun: its guard said no, or one before it failed.
var ErrSkipped = errors.New("it was not begun")

// errNotBegun is why a chain is not asked for that follows what has not come to what it should have, or is not known to the agent.
func errNotBegun() error {
	return &fault.Error{Kind: fault.NotBegun, Message: "what was to follow another request was not begun"}
}

// Chain is so many requests that the agent carries out one after the other without asking back in between. They leave together, when
// the last of them is ready: before that nothing of the chain has begun. For one link, once.
type Chain struct {
	length int

	// Set before the first is opened.
	follows  []*Stream // begins when these have their results
	deciding []*Stream // the same, and one of them must be done

	// The link's mutex guards these.
	id      uint32 // 0: none is open
	held    []*Stream
	sent    bool
	waits   []uint32 // the streams of follows that have no result yet
	decides []uint32 // the same of deciding, if none of these is known to be done
}

// NewChain returns a chain of length requests, each of which must be opened, in any order, as a Chained. Who cannot open one must close
// the streams of the others.
func NewChain(length int) *Chain { return &Chain{length: length} }

// Len is how many requests the chain has.
func (c *Chain) Len() int { return c.length }

// Follow has the chain begin only when streams of the same link have their results: all of them and, if any are deciding, one of those
// must be done. Otherwise the failure is FailNotBegun, or Open's error is of kind NotBegun. To be called before anything is opened.
func (c *Chain) Follow(deciding, others []*Stream) { c.deciding, c.follows = deciding, others }

// Chained is a request with its place in a chain. It is begun if all its guards say so or, without any, if no other before it has failed.
type Chained struct {
	Request
	Chain  *Chain
	Index  int
	Guards []Guard
}

// Guard lets a chained request begin only if a field of an earlier one's outcome has a value: moduleexec.Guard says how.
type Guard struct {
	Index   int
	Field   string
	Value   []byte
	Unequal bool
}

// chained marks the kind of an OPEN whose request has a place in a chain.
const chained Kind = 0x80

func (c Chained) kind() Kind { return c.Request.kind() | chained }

func (c Chained) fields(r *record) {
	place := record{}
	place.putUint(1, uint64(c.Chain.id))
	place.putUint(2, uint64(c.Index))        //nolint:gosec // never negative
	place.putUint(3, uint64(c.Chain.length)) //nolint:gosec // never negative
	for _, g := range c.Guards {
		guard := record{}
		guard.putUint(1, uint64(g.Index)) //nolint:gosec // never negative
		guard.putBytes(2, []byte(g.Field))
		guard.putBytes(3, g.Value)
		guard.putBool(4, g.Unequal)
		place.put(4, guard.bytes)
	}
	if c.Index == 0 {
		for _, n := range c.Chain.waits {
			place.putUint(5, uint64(n))
		}
		for _, n := range c.Chain.decides {
			place.putUint(6, uint64(n))
		}
	}
	r.bytes = binary.BigEndian.AppendUint16(r.bytes, uint16(len(place.bytes))) //nolint:gosec // maxPlace
	r.bytes = append(r.bytes, place.bytes...)
	c.Request.fields(r)
}

// decodeChained is decodeRequest for a request with a place.
func decodeChained(payload []byte) (Request, error) {
	if len(payload) < 3 || len(payload)-3 < int(binary.BigEndian.Uint16(payload[1:])) {
		return nil, fmt.Errorf("cannot read OPEN: %w", errCut)
	}
	end := 3 + int(binary.BigEndian.Uint16(payload[1:]))
	c := Chained{Chain: &Chain{}}
	var guards [][]byte
	err := schema{
		1: asUint(&c.Chain.id, maxCount), 2: asUint(&c.Index, maxChain), 3: asUint(&c.Chain.length, maxChain), 4: asList(&guards),
		5: asUints(&c.Chain.waits), 6: asUints(&c.Chain.decides),
	}.read(payload[3:end])
	for _, b := range guards {
		var g Guard
		if err == nil {
			err = schema{1: asUint(&g.Index, maxChain), 2: asString(&g.Field), 3: asBytes(&g.Value), 4: asBool(&g.Unequal)}.read(b)
		}
		c.Guards = append(c.Guards, g)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read OPEN: %w", err)
	}
	c.Request, err = DecodeRequest(append([]byte{payload[0] &^ byte(chained)}, payload[end:]...))
	return c, err
}

// place gives a chained request its place on the link. The mutex is held.
func (l *Link) place(c Chained) error {
	if c.Chain.id == 0 {
		if err := c.Chain.leaders(l); err != nil {
			return err
		}
		l.lastChain++
		c.Chain.id = l.lastChain
	}
	r := record{}
	if c.fields(&r); c.Index >= c.Chain.length || c.Chain.length > maxChain || int(binary.BigEndian.Uint16(r.bytes)) > maxPlace {
		return errors.New("cannot ask the agent: no such place in a chain")
	}
	return nil
}

// lets reports whether a result lets those begin that follow the request.
func (r *Result) lets(of Request) bool {
	m, ok := of.(Module)
	return !r.Failed && (r.Succeeded || !ok || !m.Judged)
}

// leaders works out what the agent has to know of the streams that the chain follows. The mutex is held.
func (c *Chain) leaders(l *Link) error {
	var waits, decides []uint32
	decided := len(c.deciding) == 0
	for i, s := range slices.Concat(c.deciding, c.follows) {
		isDeciding := i < len(c.deciding)
		switch {
		case s.link != l || !s.opened:
			return errNotBegun()
		case s.result != nil:
			decided = decided || isDeciding && s.result.lets(s.request)
		case isDeciding:
			decides = append(decides, s.id)
		default:
			waits = append(waits, s.id)
		}
	}
	switch {
	case decided:
		c.waits = append(waits, decides...)
	case len(decides) == 0:
		return errNotBegun()
	default:
		c.waits, c.decides = waits, decides
	}
	return nil
}

// hold keeps a stream that could leave until all of its chain can, and reports whether it is to wait. The mutex is held.
func (c *Chain) hold(s *Stream) bool {
	if c == nil || c.sent {
		return false
	}
	if !s.inChain {
		s.inChain = true
		c.held = append(c.held, s)
	}
	if len(c.held) < c.length {
		return true
	}
	c.sent = true
	for _, other := range c.held {
		other.release()
	}
	c.held = nil
	return true // it has left among them
}
