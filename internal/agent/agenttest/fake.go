package agenttest

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

// Fake is the agent's end of a link in a test's hands: a script says what it does, right or wrong. Its methods end the script's
// goroutine when the link is gone, and say so with t.Errorf only where the script relied on it.
type Fake struct {
	net.Conn
	t    testing.TB
	kept [][]byte // what KEEP brought
}

// Link returns a link to an agent that script plays. The link is closed, and the script waited for, when the test ends.
func Link(t testing.TB, o agent.Options, script func(*Fake)) *agent.Link {
	t.Helper()
	ours, theirs := net.Pipe()
	Script(t, theirs, script)
	l, err := agent.Connect(t.Context(), ours, o)
	if err != nil {
		t.Fatalf("cannot connect: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Script runs script on conn. When it returns conn is closed; the test waits for it.
func Script(t testing.TB, conn net.Conn, script func(*Fake)) {
	var wg sync.WaitGroup
	wg.Go(func() { Play(t, conn, script) })
	t.Cleanup(func() {
		_ = conn.Close()
		wg.Wait()
	})
}

// Play runs script on conn and closes it. The script may end its goroutine: deferred calls come after it, other statements need not.
func Play(t testing.TB, conn net.Conn, script func(*Fake)) {
	defer func() { _ = conn.Close() }()
	script(&Fake{Conn: conn, t: t})
}

// Magic is what stage 1 says first.
const Magic = "MUX\x00\x0a\x0d\xff\x11\x131\x0d\x0a"

// GoodHello is the HELLO of an agent that runs the source it was sent.
func GoodHello() agent.Hello {
	return agent.Hello{
		Protocol: agent.Protocol, Python: "3.11.2", PID: 4711, UID: 1000, Source: blobcache.Sum(agent.Source()),
		Executable: "/usr/bin/python3", Account: "deploy",
	}
}

// Boot does what an honest agent does up to its HELLO.
func (f *Fake) Boot() {
	f.Raw([]byte(Magic))
	f.ReadSource()
	f.Send(agent.TypeHello, 0, agent.EncodeHello(GoodHello()))
}

// ReadSource reads the agent that was sent.
func (f *Fake) ReadSource() []byte {
	var length [4]byte
	f.must(io.ReadFull(f, length[:]))
	b := make([]byte, binary.BigEndian.Uint32(length[:]))
	f.must(io.ReadFull(f, b))
	return b
}

// Raw writes bytes.
func (f *Fake) Raw(b []byte) { f.must(f.Write(b)) }

// Send writes a frame.
func (f *Fake) Send(t agent.FrameType, stream uint32, payload []byte) {
	f.Raw(agent.AppendFrame(nil, agent.Frame{Type: t, Stream: stream, Payload: payload}))
}

// Result ends a stream.
func (f *Fake) Result(stream uint32, r agent.Result) {
	f.Send(agent.TypeResult, stream, agent.EncodeResult(r))
}

// Next reads a frame; KEEP and KEPT are the DATA that they stand for. The script ends when there is none.
func (f *Fake) Next() agent.Frame {
	frame, err := agent.ReadDown(f)
	f.must(0, err)
	switch frame.Type { //nolint:exhaustive // the others are what they are
	case agent.TypeKeep:
		f.kept = append(f.kept, frame.Payload)
		frame.Type = agent.TypeData
	case agent.TypeKept:
		frame.Type, frame.Payload = agent.TypeData, f.kept[binary.BigEndian.Uint32(frame.Payload)-1]
	}
	return frame
}

// Expect reads a frame and fails the test if it is of another type.
func (f *Fake) Expect(t agent.FrameType) agent.Frame {
	frame := f.Next()
	if frame.Type != t {
		f.t.Errorf("the agent was sent %s where %s comes", frame.Type, t)
		runtime.Goexit()
	}
	return frame
}

// Credit waits until more may be sent on a stream: it returns how many bytes the daemon has given back, or widens the window.
func (f *Fake) Credit(window *int) int {
	frame := f.Next()
	switch frame.Type {
	case agent.TypeCredit:
		return int(binary.BigEndian.Uint32(frame.Payload))
	case agent.TypeWindow:
		*window = int(binary.BigEndian.Uint32(frame.Payload))
		return 0
	default:
		f.t.Errorf("the agent was sent %s where CREDIT or WINDOW comes", frame.Type)
		runtime.Goexit()
		return 0
	}
}

// Open reads an OPEN.
func (f *Fake) Open() (uint32, agent.Request) {
	frame := f.Expect(agent.TypeOpen)
	r, err := agent.DecodeRequest(frame.Payload)
	if err != nil {
		f.t.Errorf("the agent was sent a bad OPEN: %v", err)
		runtime.Goexit()
	}
	return frame.Stream, r
}

// Drain reads until the link ends, so that its writer is never stuck.
func (f *Fake) Drain() { _, _ = io.Copy(io.Discard, f) }

// must ends the script when the link is gone: that is the daemon's right at any time.
func (f *Fake) must(_ int, err error) {
	if err != nil {
		runtime.Goexit()
	}
}
