package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

const (
	// maxOut is how much a stream's sender may leave with the outbox and go on.
	maxOut = 2 * MaxPayload
	// holdBack is how much of a new stream's input waits for its end, so that a small request leaves in one Write.
	holdBack = 32 << 10
)

// Channel says what an Event is.
type Channel uint8

// The channels.
const (
	Stdout Channel = 1
	Stderr Channel = 2
	TTY    Channel = 3
	End    Channel = 4 // no more Stdout
	Final  Channel = 5 // the Result
)

// Event is something that a stream's job or transfer gave.
type Event struct {
	Channel Channel
	Data    []byte  // Stdout, Stderr, TTY: at most MaxPayload, the receiver's own
	Result  *Result // Final
}

// Release gives Data back for others to use. Who does without leaves it to the garbage collector, as is right for what is little or rare.
func (e Event) Release() { buffers.giveBack(e.Data) }

var (
	// ErrEnded is what Send returns once the agent has given its result: it wants no more.
	ErrEnded = errors.New("the stream has its result already")
	// ErrStreamClosed is what a closed stream returns.
	ErrStreamClosed = errors.New("the stream was closed")
	errNoInput      = errors.New("the stream takes no such input")
)

// Stream is one request and what comes of it. One goroutine may receive, others may send. Whoever opened it must receive up to the
// Final event or Close it; Close is always safe.
//
// The OPEN of a stream that takes input is held back until its input ends, grows beyond a small size, or somebody receives.
type Stream struct {
	link    *Link
	request Request
	changed chan struct{} // closed and forgotten at the next change; nil: nobody waits
	chain   *Chain        // nil: the request stands alone
	inChain bool          // could leave, and is in chain.held or was

	// Down.
	id         uint32
	open       []byte // OPEN's payload while it is held back, then nil
	opened     bool   // OPEN has left
	out        []chunk
	outBytes   int
	inReady    bool
	down       pace
	unreturned int  // what has left and the agent gave no credit for
	resumed    bool // what leaves next has waited for credit
	endQueued  bool
	endTaken   bool
	cancelled  bool
	closed     bool
	onFailure  func() // called with the mutex held if the result is a failure
	isCounted  bool   // in Link.jobs
	resultSeen bool   // by the receiver

	window int // the credit that there is in either direction

	// Up.
	in        [TTY]pending // by Channel, less one
	arrivals  uint64
	up        pace // under way is what the agent may still send
	consumed  int  // what it has not got back
	ended     bool
	endSeen   bool // by the receiver
	result    *Result
	discarded bool // nobody receives any more
}

// Open asks the agent for r. The stream counts as open at once, whether or not the agent has said HELLO.
func (l *Link) Open(ctx context.Context, r Request) (*Stream, error) {
	if ctx.Err() != nil {
		return nil, ctxFault(ctx, "cannot ask the agent")
	}
	s := &Stream{link: l, window: Window}
	rest, err := s.ask(r)
	if err != nil {
		return nil, err
	}
	r = s.request
	s.down, s.up = paces(r)
	l.mu.Lock()
	if err := l.usable(); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	l.logsLeft = max(l.logsLeft, 0) + logsPerStream
	switch r.kind() {
	case KindModule, KindCommand, KindPut, KindGet, KindFolder:
		l.jobs++
		s.isCounted = true
	case KindSpawn, KindBlobs, KindLook:
	}
	if !s.takes(TypeData) {
		s.release()
	}
	l.mu.Unlock()
	if rest != nil {
		if err := s.send(ctx, TypeData, rest); err != nil && !errors.Is(err, ErrEnded) {
			s.Close()
			return nil, err
		}
		return s, s.CloseSend()
	}
	return s, nil
}

// ask makes r what the stream is opened for, and returns what of it does not fit into OPEN.
func (s *Stream) ask(r Request) (rest []byte, err error) {
	c, inChain := r.(Chained)
	if inChain {
		r = c.Request
		s.chain = c.Chain
		s.link.mu.Lock()
		err = s.link.place(c)
		s.link.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	room := MaxPayload
	if inChain {
		room -= maxPlace
	}
	s.request, rest = split(valueOf(r), room)
	s.open = EncodeRequest(s.request)
	if inChain {
		c.Request = s.request
		s.open = EncodeRequest(c)
	}
	if len(s.open) > MaxPayload {
		return nil, &fault.Error{
			Kind: fault.TooLarge, Message: fmt.Sprintf("a request of %d bytes is more than the %d that an agent takes", len(s.open), MaxPayload),
		}
	}
	return rest, nil
}

// valueOf makes a pointer to a request the request.
func valueOf(r Request) Request {
	switch p := r.(type) {
	case *Module:
		return *p
	case *Command:
		return *p
	case *Put:
		return *p
	case *Get:
		return *p
	case *Spawn:
		return *p
	case *Blobs:
		return *p
	case *Folder:
		return *p
	case *Look:
		return *p
	default:
		return r
	}
}

// split cuts the params of a module that do not fit into an OPEN of so many bytes.
func split(r Request, most int) (Request, []byte) {
	m, ok := r.(Module)
	if !ok || m.Stdin || len(EncodeRequest(m)) <= most {
		return r, nil
	}
	params := m.Params
	m.Params, m.ParamsFollow = []byte{'-'}, true
	room := most - len(EncodeRequest(m)) + len(m.Params)
	if room <= 0 || room >= len(params) {
		m.Params = params // something else is too long, or nearly all of it: Open refuses
		return m, nil
	}
	m.Params = params[:room]
	return m, params[room:]
}

// takes reports whether the agent takes frames of type t on the stream.
func (s *Stream) takes(t FrameType) bool {
	switch r := s.request.(type) {
	case Module:
		return t == TypeData && (r.ParamsFollow || r.Stdin)
	case Command, Put, Blobs:
		return t == TypeData
	case Spawn:
		return t == TypeData || r.Terminal == ControllingTerminal
	default:
		return false
	}
}

// release lets a stream that is held back go. The mutex is held, as in all unexported methods that do not say otherwise.
func (s *Stream) release() {
	if s.open == nil || s.link.err != nil || s.link.closing != nil || s.chain.hold(s) {
		return
	}
	s.link.out.putControl(s, TypeOpen, s.open)
	s.open = nil
	s.up.leave(Window)
	if len(s.out) > 0 {
		s.link.out.putReady(s)
	}
}

func (s *Stream) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// wait waits for a change with the mutex released meanwhile.
func (s *Stream) wait(ctx context.Context, what string) error {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	changed := s.changed
	s.link.mu.Unlock()
	defer s.link.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-s.link.failed:
		return nil
	case <-ctx.Done():
		return ctxFault(ctx, what)
	}
}

// Send sends p as the job's stdin or the file's content. It returns when p may be reused, which is when the agent has given credit for
// all of it, and the writer has taken most of it.
func (s *Stream) Send(ctx context.Context, p []byte) error { return s.send(ctx, TypeData, p) }

// SendTTY types p on the controlling terminal of a spawned process.
func (s *Stream) SendTTY(ctx context.Context, p []byte) error { return s.send(ctx, TypeTTY, p) }

func (s *Stream) send(ctx context.Context, t FrameType, p []byte) error {
	if !s.takes(t) {
		return errNoInput
	}
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	for len(p) > 0 {
		if err := s.unsendable(t); err != nil {
			return err
		}
		n := min(len(p), MaxPayload, s.down.room(), maxOut-s.outBytes)
		if n == 0 {
			s.resumed = s.resumed || s.down.room() == 0
			if err := s.wait(ctx, "cannot send to the agent"); err != nil {
				return err
			}
			continue
		}
		s.queue(t, p[:n])
		p = p[n:]
	}
	return nil
}

// unsendable returns why nothing can be sent any more.
func (s *Stream) unsendable(t FrameType) error {
	switch {
	case s.result != nil:
		return ErrEnded
	case s.closed || s.cancelled:
		return ErrStreamClosed
	case s.link.err != nil:
		return s.link.failure()
	case s.endQueued && t == TypeData:
		return errNoInput
	}
	return nil
}

// followsOpen reports whether what is sent is known when the stream is opened, so that it answers nothing that the agent says.
func (s *Stream) followsOpen() bool {
	switch s.request.kind() {
	case KindModule, KindPut, KindBlobs:
		return true
	case KindCommand, KindGet, KindSpawn, KindFolder, KindLook:
	}
	return false
}

// queue leaves a copy of p with the outbox.
func (s *Stream) queue(t FrameType, p []byte) {
	s.down.leave(len(p))
	s.outBytes += len(p)
	if last := len(s.out) - 1; last >= 0 && s.out[last].typ == t && s.out[last].size()+len(p) <= MaxPayload {
		s.out[last].frame = append(s.out[last].frame, p...)
	} else {
		s.out = append(s.out, newChunk(t, p))
	}
	s.queued()
}

// queued has what is in the outbox leave.
func (s *Stream) queued() {
	if s.open == nil {
		s.link.out.putReady(s)
	} else if s.outBytes > holdBack {
		s.release()
	}
}

// CloseSend says that no more will be sent. On a stream that takes no input it does nothing.
func (s *Stream) CloseSend() error {
	if !s.takes(TypeData) {
		return nil
	}
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	return s.closeSend()
}

func (s *Stream) closeSend() error {
	switch {
	case s.endQueued || s.result != nil:
		return nil
	case s.closed || s.cancelled:
		return ErrStreamClosed
	case s.link.err != nil:
		return s.link.failure()
	}
	s.endQueued = true
	s.out = append(s.out, newChunk(TypeEnd, nil))
	if s.open != nil {
		s.release()
	} else {
		s.link.out.putReady(s)
	}
	return nil
}

// accept believes a frame of the agent on the stream, or returns why it ends the link.
func (s *Stream) accept(f *Frame) error {
	switch f.Type {
	case TypeCredit:
		return s.acceptCredit(binary.BigEndian.Uint32(f.Payload))
	case TypeResult:
		res, err := DecodeResult(f.Payload)
		if err != nil {
			return violation("%v", err)
		}
		s.finish(&res)
		return nil
	case TypeData, TypeErr, TypeTTY, TypeEnd:
		if !answers[s.request.kind()][f.Type] || f.Type == TypeTTY && !s.takes(TypeTTY) {
			return violation("%s frame on a stream of kind %d", f.Type, s.request.kind())
		}
	default:
		return violation("%s frame on a stream", f.Type)
	}
	switch {
	case s.ended && (f.Type == TypeData || f.Type == TypeEnd):
		return violation("%s frame after END", f.Type)
	case f.Type == TypeEnd:
		s.ended = true
	case len(f.Payload) > s.up.under:
		return violation("%s frame of %d bytes on a credit of %d", f.Type, len(f.Payload), s.up.under)
	default:
		s.acceptOutput(f)
	}
	s.notify()
	return nil
}

func (s *Stream) acceptCredit(n uint32) error {
	if n == 0 || int64(n) > int64(s.unreturned) {
		return violation("CREDIT of %d for %d bytes", n, s.unreturned)
	}
	s.unreturned -= int(n)
	s.down.arrive(int(n))
	s.widen()
	s.notify()
	return nil
}

func (s *Stream) acceptOutput(f *Frame) {
	s.up.arrive(len(f.Payload))
	s.widen()
	if s.discarded {
		s.giveBack(len(f.Payload))
		return
	}
	p := &s.in[channelOf(f.Type)-1]
	if len(p.parts) == 0 {
		s.arrivals++
		p.since = s.arrivals
	}
	p.add(f)
}

func channelOf(t FrameType) Channel {
	switch t {
	case TypeErr:
		return Stderr
	case TypeTTY:
		return TTY
	default:
		return Stdout
	}
}

// giveBack counts n bytes as consumed and tells the agent when that is worth a frame.
func (s *Stream) giveBack(n int) {
	s.consumed += n
	if credit := min(s.consumed, s.up.room()); credit >= creditAt && s.result == nil && s.link.err == nil {
		s.link.out.putCredit(s, credit)
		s.up.leave(credit)
		s.consumed -= credit
	}
}

// widen tells the agent when more is to be under way than ever.
func (s *Stream) widen() {
	if more := max(s.down.limit, s.up.limit) - s.window; more > 0 && s.result == nil && s.link.err == nil {
		s.window += more
		s.up.leave(more)
		s.link.out.putControl(s, TypeWindow, binary.BigEndian.AppendUint32(nil, uint32(s.window))) //nolint:gosec // at most maxWindow
	}
}

// finish is the stream's last word.
func (s *Stream) finish(res *Result) {
	s.result = res
	s.link.memory = max(s.link.memory, res.AgentKiB)
	delete(s.link.streams, s.id)
	s.dropOut()
	if s.isCounted && s.link.err == nil {
		s.link.jobs--
	}
	if res.Failed && s.onFailure != nil {
		s.onFailure()
	}
	s.notify()
}

// Recv returns the next event: output as it came (in order within a channel; between channels, what waited longest comes first), End if
// the agent said so, Final, then io.EOF. What came before the link was lost is given before the error.
func (s *Stream) Recv(ctx context.Context) (Event, error) {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	s.release()
	for {
		if s.closed {
			return Event{}, ErrStreamClosed
		}
		if e, ok := s.next(); ok {
			return e, nil
		}
		switch {
		case s.resultSeen:
			return Event{}, io.EOF
		case s.link.err != nil:
			return Event{}, s.link.failure()
		}
		if err := s.wait(ctx, "cannot wait for the agent"); err != nil {
			return Event{}, err
		}
	}
}

// next takes what the receiver gets next.
func (s *Stream) next() (Event, bool) {
	var oldest Channel
	for i := range s.in {
		if len(s.in[i].parts) > 0 && (oldest == 0 || s.in[i].since < s.in[oldest-1].since) {
			oldest = Channel(i + 1)
		}
	}
	switch {
	case oldest != 0:
		return Event{Channel: oldest, Data: s.cut(&s.in[oldest-1])}, true
	case s.ended && !s.endSeen:
		s.endSeen = true
		return Event{Channel: End}, true
	case s.result != nil && !s.resultSeen:
		s.resultSeen = true
		return Event{Channel: Final, Result: s.result}, true
	default:
		return Event{}, false
	}
}

// cut takes at most a payload from p.
func (s *Stream) cut(p *pending) []byte {
	data := p.parts[0]
	p.parts[0] = nil
	p.parts = p.parts[1:]
	s.arrivals++
	p.since = s.arrivals // the other channels get their turn
	s.giveBack(len(data))
	return data
}

// Cancel asks the agent to kill the job or drop the transfer; the Result that says so is still received. A request that has not left
// yet never does.
func (s *Stream) Cancel() {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	s.cancel()
}

func (s *Stream) cancel() {
	if s.result != nil || s.cancelled || s.link.err != nil {
		return
	}
	s.cancelled = true
	s.dropOut()
	if s.opened || (s.chain != nil && s.chain.sent) { // of a chain either all leave or none
		s.link.out.putControl(s, TypeCancel, nil)
		s.notify()
		return
	}
	s.link.out.withdraw(s)
	s.open = nil
	s.finish(&Result{Failed: true, Failure: FailCancelled, Text: "cancelled before it was sent"})
}

// Close gives the stream up: it cancels what has no result yet, and what still comes is thrown away.
func (s *Stream) Close() {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	s.cancel()
	s.discard()
}

// Gone waits until the agent has said its last word about the stream, whoever received it, or the link is lost.
func (s *Stream) Gone(ctx context.Context) error {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	for s.result == nil && s.link.err == nil {
		if err := s.wait(ctx, "cannot wait for the end of a process"); err != nil {
			return err
		}
	}
	return nil
}

// discard makes everything that came and will come consumed.
func (s *Stream) discard() {
	s.closed, s.discarded = true, true
	for i := range s.in {
		n := s.in[i].size()
		s.in[i].parts = nil
		s.giveBack(n)
	}
	s.notify()
}
