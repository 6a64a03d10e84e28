package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// seeds adds the golden files of a way, or their payloads.
func seeds(f *testing.F, way direction, typ FrameType) {
	f.Helper()
	for _, m := range goldenMessages() {
		switch {
		case m.way != way:
		case typ == 0:
			b, err := os.ReadFile(filepath.Join(goldenDir, m.name+".bin"))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		case m.frame.Type == typ:
			f.Add(m.frame.Payload)
		}
	}
}

// FuzzReadFrame: every byte string is frames and then an error; a frame that is read is the one that was written.
func FuzzReadFrame(f *testing.F) {
	seeds(f, up, 0)
	seeds(f, down, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, way := range []direction{up, down} {
			in := bytes.NewReader(b)
			var again []byte
			for {
				frame, err := readFrame(in, way, allocate)
				if err != nil {
					if errors.Is(err, io.EOF) && len(again) != len(b) {
						t.Errorf("EOF after %d of %d bytes", len(again), len(b))
					}
					break
				}
				if len(frame.Payload) > MaxPayload {
					t.Fatalf("a payload of %d bytes", len(frame.Payload))
				}
				again = AppendFrame(again, frame)
			}
			if !bytes.HasPrefix(b, again) {
				t.Error("other frames were read")
			}
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	seeds(f, down, TypeOpen)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		again, err := DecodeRequest(EncodeRequest(r))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v came back as %+v, %v", r, again, err)
		}
	})
}

// clean fails unless text may be shown.
func clean(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsAny(s, "\x1b\x00\x07\r\u202e") {
			t.Errorf("not clean: %q", s)
		}
	}
}

func FuzzDecodeHello(f *testing.F) {
	seeds(f, up, TypeHello)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHello(b)
		if err != nil {
			return
		}
		clean(t, h.Python, h.Executable, h.Account)
		if h.PID < 0 || h.UID < 0 || h.Protocol < 0 {
			t.Errorf("%+v", h)
		}
		if again, err := DecodeHello(EncodeHello(h)); err != nil || again != h {
			t.Errorf("%+v came back as %+v, %v", h, again, err)
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	seeds(f, up, TypeResult)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeResult(b)
		if err != nil {
			return
		}
		clean(t, r.Text, string(r.Failure))
		if r.ExitCode < 0 || r.ExitCode > 255 || r.Failed != (r.Err() != nil) {
			t.Errorf("%+v", r)
		}
		if again, err := DecodeResult(EncodeResult(r)); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v came back as %+v, %v", r, again, err)
		}
	})
}

// FuzzLink hands whatever an agent may say to a link with one stream of every kind: it refuses or believes, and holds no more than the
// windows allow.
func FuzzLink(f *testing.F) {
	seeds(f, up, 0)
	f.Add([]byte("\x00\x00\x00\x01\x03\x00\x00\x00\x02a\x00\x00\x00\x00\x06\x00\x00\x00\x02\x00\x00\x00\x00\x09\x00\x00\x00\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := still()
		l.o.OnLog = func(_ int, text string) { clean(t, text) }
		var streams []*Stream
		for _, r := range []Request{
			Module{}, Command{}, Put{}, Get{}, Spawn{Terminal: ControllingTerminal}, Blobs{}, Spawn{}, Command{},
		} {
			s, err := l.Open(context.Background(), r)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.CloseSend()
			streams = append(streams, s)
		}
		l.take(t)
		streams[7].Close()
		in := bytes.NewReader(b)
		for {
			frame, err := readFrame(in, up, allocate)
			if err == nil {
				err = l.accept(&frame)
			}
			if err != nil {
				break
			}
		}
		for i, s := range streams {
			held := s.in[0].size() + s.in[1].size() + s.in[2].size()
			if held > s.window || s.window > maxWindow || s.down.under < 0 || s.up.under < 0 || s.up.under > s.window {
				t.Errorf("stream %d holds %d, window %d, under way %d down and %d up", i+1, held, s.window, s.down.under, s.up.under)
			}
		}
	})
}

// FuzzNoise: what comes before the magic is skipped or refused, in bounded memory.
func FuzzNoise(f *testing.F) {
	f.Add([]byte("Welcome\r\n" + magic + "rest"))
	f.Add([]byte("MUX\x00\r\n1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		noise, err := skipNoise(in)
		if len(noise) > maxNoise+len(magic) {
			t.Errorf("%d bytes of noise", len(noise))
		}
		if at := bytes.Index(b, []byte(magic)); err == nil && (at != len(noise) || in.Len() != len(b)-at-len(magic)) {
			t.Errorf("the magic is at %d, found at %d with %d left of %d", at, len(noise), in.Len(), len(b))
		}
	})
}
