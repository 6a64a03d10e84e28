package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// still returns a link without goroutines: a test takes what would be written and hands in what would be read.
func still() *Link {
	l := newLink(nil, nil, Options{})
	l.hello = Hello{Protocol: Protocol}
	close(l.helloed)
	return l
}

// take returns the frames of the next Write.
func (l *Link) take(t interface{ Fatalf(string, ...any) }) []Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	var frames []Frame
	for in := bytes.NewReader(l.out.take(nil, l.closing != nil, l.number)); in.Len() > 0; {
		f, err := ReadDown(in)
		if err != nil {
			t.Fatalf("the daemon breaks the protocol: %v", err)
		}
		frames = append(frames, f)
	}
	return frames
}

func genBytes(most int) *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		b := rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, "bytes")
		if len(b) == 0 {
			return nil
		}
		return b
	})
}

func genList() *rapid.Generator[[][]byte] {
	return rapid.Custom(func(t *rapid.T) [][]byte {
		var out [][]byte
		for range rapid.IntRange(0, 4).Draw(t, "words") {
			out = append(out, rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "word"))
		}
		return out
	})
}

func genDigest() *rapid.Generator[blobcache.Digest] {
	return rapid.Map(rapid.StringN(0, 3, 3), func(s string) blobcache.Digest {
		if s == "" {
			return blobcache.Digest{}
		}
		return blobcache.Sum([]byte(s))
	})
}

// genText is text as fault.Clean leaves it.
func genText() *rapid.Generator[string] {
	return rapid.Map(rapid.StringN(0, 20, 60), func(s string) string { return fault.Clean([]byte(s)) })
}

func genRequest() *rapid.Generator[Request] {
	return rapid.Custom(func(t *rapid.T) Request {
		count := rapid.Uint64Range(0, maxCount)
		switch Kind(rapid.IntRange(1, 6).Draw(t, "kind")) {
		case KindModule:
			return Module{
				Manifest: genDigest().Draw(t, "manifest"), Params: genBytes(20).Draw(t, "params"), Name: rapid.String().Draw(t, "name"),
				Environment: genList().Draw(t, "environment"), Cwd: genBytes(9).Draw(t, "cwd"), Environ: genList().Draw(t, "environ"),
				RlimitNofile: count.Draw(t, "nofile"), ParamsFollow: rapid.Bool().Draw(t, "follow"), Logging: rapid.Bool().Draw(t, "logging"),
				Stdin: rapid.Bool().Draw(t, "stdin"), Judged: rapid.Bool().Draw(t, "judged"), Glance: rapid.Bool().Draw(t, "glance"),
				Secrets: genList().Draw(t, "secrets"),
			}
		case KindCommand:
			return Command{
				Argv: genList().Draw(t, "argv"), TTY: rapid.Bool().Draw(t, "tty"), Cwd: genBytes(9).Draw(t, "cwd"), Environ: genList().Draw(t, "environ"),
			}
		case KindPut:
			p := Put{Dest: genBytes(9).Draw(t, "dest"), Size: count.Draw(t, "size"), SHA256: genDigest().Draw(t, "digest")}
			if rapid.Bool().Draw(t, "has mode") {
				mode := rapid.Uint32Range(0, 0o7777).Draw(t, "mode")
				p.Mode = &mode
			}
			return p
		case KindGet:
			return Get{Source: genBytes(9).Draw(t, "source")}
		case KindSpawn:
			return Spawn{Argv: genList().Draw(t, "argv"), Terminal: Terminal(rapid.IntRange(0, 2).Draw(t, "terminal"))}
		default:
			return Blobs{}
		}
	})
}

// TestRecordsModel: what is encoded is decoded, and no beginning of a record passes for another value.
func TestRecordsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRequest().Draw(t, "request")
		b := EncodeRequest(r)
		got, err := DecodeRequest(b)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v came back as %+v, %v", r, got, err)
		}
		count := rapid.Uint64Range(0, maxCount)
		res := Result{
			Text: genText().Draw(t, "text"), ExitCode: rapid.IntRange(0, 255).Draw(t, "code"), QueueMicros: count.Draw(t, "n"), JobMicros: count.Draw(t, "n"),
			CPUMicros: count.Draw(t, "n"), MaxRSSKiB: count.Draw(t, "n"), AgentKiB: count.Draw(t, "n"), Size: count.Draw(t, "n"), SHA256: genDigest().Draw(t, "digest"),
		}
		for range rapid.IntRange(0, 2).Draw(t, "logged") {
			res.Logged = append(res.Logged, genText().Draw(t, "text"))
		}
		if rapid.Bool().Draw(t, "failed") {
			res.Failed = true
			res.Failure = rapid.SampledFrom([]Failure{FailIO, FailFork, FailCancelled}).Draw(t, "failure")
		}
		b = EncodeResult(res)
		if got, err := DecodeResult(b); err != nil || !reflect.DeepEqual(got, res) {
			t.Fatalf("%+v came back as %+v, %v", res, got, err)
		}
		if cut := rapid.IntRange(0, len(b)).Draw(t, "cut"); cut < len(b) {
			if got, err := DecodeResult(b[:cut]); err == nil && reflect.DeepEqual(got, res) {
				t.Fatalf("%d of %d bytes pass for the whole", cut, len(b))
			}
		}
	})
}

// creditModel is an agent that keeps the page's accounts, next to a link that must keep the same.
type creditModel struct {
	l       *Link
	s       *Stream
	over    context.Context // has ended: Send does what it can at once
	sent    []byte          // given to Send and taken by it
	arrived []byte          // at the agent
	owed    int             // bytes that the agent got and gave no credit for
	ended   bool            // END was sent
	endSeen bool            // END arrived
	window  int             // what the agent may send
	most    int             // the window that the agent was told
	said    [TTY][]byte
	heard   [TTY][]byte
}

func (m *creditModel) send(t *rapid.T) {
	p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.SampledFrom([]int{1, 100, 5000, MaxPayload, MaxPayload + 1, Window + 7}).Draw(t, "n"))
	before := m.s.down.under
	err := m.s.Send(m.over, p)
	if m.ended {
		if !errors.Is(err, errNoInput) {
			t.Fatalf("Send after CloseSend: %v", err)
		}
		return
	}
	took := m.s.down.under - before
	if took > len(p) || took < len(p) && fault.KindOf(err) != fault.Cancelled || took == len(p) && err != nil {
		t.Fatalf("Send took %d of %d: %v", took, len(p), err)
	}
	m.sent = append(m.sent, p[:took]...)
}

func (m *creditModel) write(t *rapid.T) {
	frames := m.l.take(t)
	data := 0
	for _, f := range frames {
		switch f.Type {
		case TypeData:
			data += len(f.Payload)
			m.arrived = append(m.arrived, f.Payload...)
			m.owed += len(f.Payload)
		case TypeEnd:
			m.endSeen = true
		case TypeCredit:
			if data > 0 {
				t.Fatalf("data was written ahead of a control frame")
			}
			m.window += int(binary.BigEndian.Uint32(f.Payload))
		case TypeWindow:
			now := int(binary.BigEndian.Uint32(f.Payload))
			if data > 0 || now <= m.most || now > maxWindow {
				t.Fatalf("a window of %d after one of %d, with %d bytes before it", now, m.most, data)
			}
			m.window += now - m.most
			m.most = now
		}
	}
	if data > MaxPayload {
		t.Fatalf("one Write carried %d bytes of data", data)
	}
	if m.window > m.most || m.owed > m.most {
		t.Fatalf("windows of %d up and %d down", m.window, m.owed)
	}
}

func (m *creditModel) give(t *rapid.T) {
	n := rapid.IntRange(0, m.owed+1).Draw(t, "credit")
	err := m.l.accept(&Frame{TypeCredit, m.s.id, binary.BigEndian.AppendUint32(nil, uint32(n))})
	if (err == nil) != (n > 0 && n <= m.owed) {
		t.Fatalf("CREDIT of %d for %d: %v", n, m.owed, err)
	}
	if err == nil {
		m.owed -= n
	}
}

func (m *creditModel) say(t *rapid.T) {
	ch := Channel(rapid.IntRange(1, 3).Draw(t, "channel"))
	n := rapid.SampledFrom([]int{1, 1000, 70000, MaxPayload}).Draw(t, "n")
	p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, n)
	typ := map[Channel]FrameType{Stdout: TypeData, Stderr: TypeErr, TTY: TypeTTY}[ch]
	err := m.l.accept(&Frame{typ, m.s.id, p})
	switch { // in between, CREDIT is on its way: no honest agent counts on it, and none gains by it
	case err != nil && n <= m.window:
		t.Fatalf("%d bytes with a window of %d: %v", n, m.window, err)
	case err == nil && n > m.s.window-m.waiting():
		t.Fatalf("%d bytes were believed with %d waiting", n, m.waiting())
	}
	if err == nil {
		m.window -= n
		m.said[ch-1] = append(m.said[ch-1], p...)
	}
}

// waiting is how much the link holds.
func (m *creditModel) waiting() int {
	n := 0
	for i := range m.said {
		n += len(m.said[i]) - len(m.heard[i])
	}
	return n
}

func (m *creditModel) receive(t *rapid.T) {
	waiting := m.waiting()
	e, err := m.s.Recv(m.over)
	if (err == nil) != (waiting > 0) {
		t.Fatalf("Recv with %d bytes waiting: %v", waiting, err)
	}
	if err == nil {
		m.heard[e.Channel-1] = append(m.heard[e.Channel-1], e.Data...)
	}
}

// TestCreditModel: whatever both ends do, in any order, no byte is lost, doubled or out of its turn, and no window is overrun.
func TestCreditModel(t *testing.T) {
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("now or never"))
	rapid.Check(t, func(t *rapid.T) {
		m := &creditModel{l: still(), over: over, window: Window, most: Window}
		s, err := m.l.Open(context.Background(), Spawn{Terminal: ControllingTerminal})
		if err != nil {
			t.Fatal(err)
		}
		m.s = s
		if _, err := s.Recv(over); err == nil { // lets OPEN go
			t.Fatal("received something")
		}
		m.write(t)
		t.Repeat(map[string]func(*rapid.T){
			"send": m.send, "write": m.write, "credit": m.give, "say": m.say, "receive": m.receive,
			"end": func(t *rapid.T) {
				m.ended = true
				if err := s.CloseSend(); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				if !bytes.HasPrefix(m.sent, m.arrived) {
					t.Fatal("other bytes arrived than were sent")
				}
				if m.endSeen && (!m.ended || len(m.sent) != len(m.arrived)) {
					t.Fatal("END came before the data")
				}
				for i := range m.said {
					if !bytes.HasPrefix(m.said[i], m.heard[i]) {
						t.Fatalf("other bytes were received than were said on %d", i+1)
					}
				}
				if m.waiting() > m.s.window {
					t.Fatalf("%d bytes are held", m.waiting())
				}
			},
		})
		for len(m.arrived) < len(m.sent) || m.ended && !m.endSeen {
			before := len(m.arrived)
			m.write(t)
			if len(m.arrived) == before && !m.endSeen {
				t.Fatalf("stuck with %d of %d", len(m.arrived), len(m.sent))
			}
		}
	})
}

// TestManyStreamsShareTheLink: with many senders each Write has a fair share of each, and everything leaves.
func TestManyStreamsShareTheLink(t *testing.T) {
	l := still()
	const streams = 50
	for i := range streams {
		s, err := l.Open(context.Background(), Command{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(t.Context(), bytes.Repeat([]byte{byte(i)}, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	turns := map[uint32]int{}
	for round := range streams {
		var data []uint32
		for _, f := range l.take(t) {
			if f.Type == TypeData {
				data = append(data, f.Stream)
				turns[f.Stream]++
			}
		}
		if len(data) != 1 || data[0] != uint32(round+1) {
			t.Fatalf("round %d carried data of %v", round, data)
		}
	}
	if left := l.take(t); len(left) != 0 || len(turns) != streams {
		t.Errorf("%d frames are left, %d streams had a turn", len(left), len(turns))
	}
}

func TestLongParamsAreWhole(t *testing.T) {
	for _, size := range []int{MaxPayload - 5000, MaxPayload - 60, MaxPayload - 50, MaxPayload - 40, MaxPayload, MaxPayload + 1, 250_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := still()
			params := bytes.Repeat([]byte("x"), size)
			if _, err := l.Open(context.Background(), &Module{Manifest: blobcache.Sum(nil), Params: params, Name: "m"}); err != nil {
				t.Fatal(err)
			}
			var got []byte
			var follow, ended bool
			for frames := l.take(t); len(frames) > 0; frames = l.take(t) {
				for _, f := range frames {
					switch f.Type {
					case TypeOpen:
						r, err := DecodeRequest(f.Payload)
						m, ok := r.(Module)
						if err != nil || !ok {
							t.Fatalf("%+v, %v", r, err)
						}
						got, follow = m.Params, m.ParamsFollow
					case TypeData:
						got = append(got, f.Payload...)
					case TypeEnd:
						ended = true
					}
				}
			}
			if !bytes.Equal(got, params) || follow != ended {
				t.Errorf("%d of %d bytes, follow %v, ended %v", len(got), size, follow, ended)
			}
		})
	}
}
