package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

const (
	readBuffer = 16 << 10
	// flushTime is how long Close lets the last control frames (a CANCEL, above all) leave a link that is not writing.
	flushTime = 2 * time.Second
	// An agent may log so much at first and so much more for every stream; the rest is left out.
	logsAtFirst   = 256
	logsPerStream = 64
)

// ErrClosed is why a link ended that was closed on this side.
var ErrClosed = errors.New("the link was closed")

// Stats counts what a link has done so far.
type Stats struct {
	SentBytes     int64
	ReceivedBytes int64
	RoundTrips    int64  // times that this side spoke after the agent had; the rest of a request does not count
	Jobs          int    // modules, commands and transfers without a result
	BlobBytes     int64  // that the agent was sent and keeps, before compression, for itself and for those behind it
	MemoryKiB     uint64 // that the agent itself has had resident at most, as far as it has said
}

// Link is a connection to one agent. Its methods may be called from any goroutine.
//
// Two goroutines serve it: the reader believes or refuses what the agent says and never waits for anybody; the writer takes from
// the outbox. The mutex guards everything below it, including all streams.
type Link struct {
	conn Conn
	in   *bufio.Reader // the reader's
	o    Options

	failed   chan struct{} // closed with err set
	done     chan struct{} // closed when both goroutines have ended
	helloed  chan struct{} // closed with hello set
	blobTurn chan struct{} // holds a token while nobody sends blobs

	mu       sync.Mutex
	out      outbox
	streams  map[uint32]*Stream // that were opened and have no result
	lastID   uint32
	running  int          // goroutines
	closing  *fault.Error // why it was ended from this side
	err      *fault.Error
	hello    Hello
	pings    map[uint64]chan struct{}
	lastPing uint64
	kept     kept // blobs that the agent has been sent
	passed   passed
	jobs     int
	memory   uint64 // KiB, see Stats
	heard    bool   // something came since the last Write
	logsLeft int

	sent, received, roundTrips int64

	lastChain uint32
}

func newLink(conn Conn, in *bufio.Reader, o Options) *Link {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	l := &Link{
		conn: conn, in: in, o: o,
		failed: make(chan struct{}), done: make(chan struct{}), helloed: make(chan struct{}), blobTurn: make(chan struct{}, 1),
		out: outbox{wake: make(chan struct{}, 1)}, streams: map[uint32]*Stream{}, pings: map[uint64]chan struct{}{},
		kept: newKept(o.BlobLimit), passed: newPassed(), logsLeft: logsAtFirst, running: 2,
	}
	l.blobTurn <- struct{}{}
	return l
}

// start runs the goroutines; first is what the writer writes before any frame.
func (l *Link) start(first []byte) {
	go l.read()
	go l.write(first)
}

// Done is closed when the link has ended, for whatever reason, and its goroutines with it.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err says why the link ended: a *fault.Error, the caller's own copy; nil while it has not.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure()
}

// failure is Err with the mutex held.
func (l *Link) failure() error {
	if l.err == nil {
		return nil
	}
	e := *l.err
	return &e
}

// Close is End for the reason that nobody wants the link any more. It always returns nil.
func (l *Link) Close() error {
	l.End(&fault.Error{Kind: fault.Cancelled, Message: "the connection to the agent was closed", Cause: ErrClosed})
	return nil
}

// End ends the link: requests that wait for a result get the reason, running jobs of the agent go on to their end, except those
// cancelled before. It waits for the link's goroutines.
func (l *Link) End(reason *fault.Error) {
	l.mu.Lock()
	if l.closing == nil {
		l.closing = reason
	}
	l.out.poke()
	l.mu.Unlock()
	patience := time.NewTimer(flushTime)
	defer patience.Stop()
	select {
	case <-l.done:
	case <-patience.C:
		l.fail(reason)
		<-l.done
	}
}

// fail ends the link with a reason; the first one counts.
func (l *Link) fail(reason *fault.Error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = reason
	close(l.failed)
	lives := l.isHelloed()
	l.out.control, l.out.ready = nil, nil
	l.streams, l.jobs = nil, 0
	l.mu.Unlock()
	level := hclog.Debug
	if _, ok := errors.AsType[*ViolationError](reason); ok && reason.HopName == "" || reason.Kind == fault.AgentVersion {
		level = hclog.Warn // the far side itself is to blame, and perhaps no friend
	}
	l.o.Log.Log(level, "link ended", "name", l.o.Name, "reason", reason)
	if d, ok := l.conn.(detacher); ok && lives {
		_ = d.Detach()
		return
	}
	_ = l.conn.Close()
}

// ended is called by each goroutine as its last act.
func (l *Link) ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	if l.running == 0 {
		close(l.done)
	}
}

func (l *Link) isHelloed() bool {
	select {
	case <-l.helloed:
		return true
	default:
		return false
	}
}

// Hello waits for the agent's HELLO.
func (l *Link) Hello(ctx context.Context) (Hello, error) {
	select {
	case <-l.helloed:
		return l.hello, nil
	case <-l.failed:
		return Hello{}, l.Err()
	case <-ctx.Done():
		return Hello{}, ctxFault(ctx, "cannot wait for the agent")
	}
}

// Ping returns when the agent has answered, and so has read all that was sent before. Tests call it.
func (l *Link) Ping(ctx context.Context) error {
	l.mu.Lock()
	if err := l.usable(); err != nil {
		l.mu.Unlock()
		return err
	}
	l.lastPing++
	id, pong := l.lastPing, make(chan struct{})
	l.pings[id] = pong
	l.out.putControl(nil, TypePing, binary.BigEndian.AppendUint64(nil, id))
	l.mu.Unlock()
	select {
	case <-pong:
		return nil
	case <-l.failed:
		return l.Err()
	case <-ctx.Done():
		return ctxFault(ctx, "cannot wait for the agent")
	}
}

// usable returns why no more may be queued. The mutex is held.
func (l *Link) usable() error {
	if l.err == nil && l.closing != nil {
		e := *l.closing
		return &e
	}
	return l.failure()
}

// Stats returns the counts.
func (l *Link) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{SentBytes: l.sent, ReceivedBytes: l.received, RoundTrips: l.roundTrips, Jobs: l.jobs, BlobBytes: l.kept.bytes + l.passed.bytes, MemoryKiB: l.memory}
}

// write is the writer.
func (l *Link) write(b []byte) {
	defer l.ended()
	defer l.passed.unused.Stop()
	for {
		l.mu.Lock()
		start := len(b)
		b = l.out.take(b, l.closing != nil, l.number)
		closing := l.closing
		l.sent += int64(len(b))
		if l.out.spoke && l.heard {
			l.heard = false
			l.roundTrips++
		}
		l.out.spoke = false
		l.mu.Unlock()
		l.traceSent(b[start:])
		switch {
		case len(b) > 0:
			if err := l.deliver(b, start); err != nil {
				l.fail(l.reason(err))
				return
			}
			buffers.giveBack(b)
			b = nil
			continue
		case closing != nil:
			l.fail(closing)
			return
		}
		select {
		case <-l.out.wake:
		case <-l.passed.unused.C:
			l.forgetPassed()
		case <-l.failed:
			return
		}
	}
}

// deliver writes b: source bytes of the agent's own text, then frames. What is worth it goes as what others may be sent too.
func (l *Link) deliver(b []byte, source int) error {
	s, ok := l.conn.(sharer)
	if !ok || len(b) < leastPassed || l.o.Shared == nil || !l.o.Shared() {
		_, err := l.conn.Write(b)
		return err //nolint:wrapcheck // reason says what it means
	}
	written, end := 0, source
	share := func(from int) error {
		if end-from < leastPassed || end-from > MaxPayload {
			return nil
		}
		if from > written {
			if _, err := l.conn.Write(b[written:from]); err != nil {
				return err //nolint:wrapcheck // reason says what it means
			}
		}
		written = end
		return s.Share(b[from:end])
	}
	err := share(0)
	for err == nil && end < len(b) {
		from := end + headerLength
		kind := FrameType(b[end+4])
		end = from + int(binary.BigEndian.Uint32(b[end:]))
		if kind == TypeData || kind == TypeKeep {
			err = share(from)
		}
	}
	if err == nil && written < len(b) {
		_, err = l.conn.Write(b[written:])
	}
	return err //nolint:wrapcheck // reason says what it means
}

// traceSent logs frames as they leave, never what is in them.
func (l *Link) traceSent(b []byte) {
	if !l.o.Log.IsTrace() {
		return
	}
	for len(b) > 0 {
		size, kind, stream := binary.BigEndian.Uint32(b), FrameType(b[4]), binary.BigEndian.Uint32(b[5:])
		l.o.Log.Trace("frame", "to", l.o.Name, "type", kind, "stream", stream, "bytes", size)
		b = b[headerLength+size:]
	}
}

// number gives a stream its number when its OPEN leaves. The mutex is held.
func (l *Link) number(s *Stream) {
	if l.err != nil {
		return
	}
	l.lastID++
	s.id = l.lastID
	s.opened = true
	l.streams[s.id] = s
}

// reason says what an error of the reader or the writer means for the link.
func (l *Link) reason(err error) *fault.Error {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e
	}
	e := &fault.Error{Kind: fault.AgentDied, Message: "the connection to the agent was lost", Cause: err}
	if v, ok := errors.AsType[*ViolationError](err); ok {
		e.Message, e.Cause = "the agent was given up", v
	} else if errors.Is(err, io.EOF) {
		e.Message, e.Cause = "the agent ended", nil
	}
	if t, ok := l.conn.(teller); ok {
		e.Stderr = fault.Clean(t.Tail())
	}
	return e
}

// read is the reader.
func (l *Link) read() {
	defer l.ended()
	var small [4 << 10]byte
	for {
		f, err := readFrame(l.in, up, func(n int) []byte {
			if n <= len(small) {
				return small[:n]
			}
			return buffers.borrow()[:n] // an idle link keeps none
		})
		if err == nil {
			err = l.accept(&f)
		}
		if err != nil { // what was borrowed may still be in use
			l.fail(l.reason(err))
			return
		}
		buffers.giveBack(f.Payload)
	}
}

// accept believes a frame, or returns why it ends the link. What it keeps of it is the frame's no more.
func (l *Link) accept(f *Frame) error {
	l.mu.Lock()
	l.received += int64(headerLength + len(f.Payload))
	l.heard = true
	l.mu.Unlock()
	if l.o.Log.IsTrace() {
		l.o.Log.Trace("frame", "from", l.o.Name, "type", f.Type, "stream", f.Stream, "bytes", len(f.Payload))
	}
	if (f.Type == TypeHello) == l.isHelloed() {
		return violation("%s frame where HELLO comes first and once", f.Type)
	}
	switch f.Type {
	case TypeHello:
		return l.acceptHello(f.Payload)
	case TypePong:
		return l.acceptPong(f.Payload)
	case TypeLog:
		return l.acceptLog(f.Payload)
	default:
		return l.acceptOnStream(f)
	}
}

func (l *Link) acceptHello(payload []byte) error {
	h, err := DecodeHello(payload)
	switch {
	case err != nil:
		return violation("%v", err)
	case h.Protocol != Protocol || h.Source != sourceDigest():
		return &fault.Error{Kind: fault.AgentVersion, Message: "the agent is not the one that was sent"}
	}
	l.hello = h
	close(l.helloed)
	return nil
}

func (l *Link) acceptPong(payload []byte) error {
	id := binary.BigEndian.Uint64(payload)
	l.mu.Lock()
	defer l.mu.Unlock()
	pong, ok := l.pings[id]
	if !ok {
		return violation("PONG without a PING")
	}
	delete(l.pings, id)
	close(pong)
	return nil
}

func (l *Link) acceptLog(payload []byte) error {
	level := int(payload[0])
	if level < LogWarning || level > LogVVVV {
		return violation("LOG of level %d", level)
	}
	l.mu.Lock()
	l.logsLeft--
	left := l.logsLeft
	if left < 0 {
		l.logsLeft = -1 // stays below 0 until the next stream, and cannot wrap
	}
	l.mu.Unlock()
	text := fault.Clean(payload[1:])
	switch {
	case left < 0:
		return nil
	case left == 0:
		level, text = LogWarning, "the agent says too much: its next messages are left out"
	}
	l.o.Log.Debug("agent says", "name", l.o.Name, "level", level, "text", text)
	if l.o.OnLog != nil {
		l.o.OnLog(level, text)
	}
	return nil
}

// acceptOnStream hands a frame to its stream.
func (l *Link) acceptOnStream(f *Frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.streams[f.Stream]
	if !ok {
		if l.err != nil {
			return l.failure()
		}
		return violation("%s frame on a stream that is not open", f.Type)
	}
	return s.accept(f)
}
