package agent

import (
	"bytes"
	"testing"
)

func TestOnlyLargePayloadsAreKeptThemselves(t *testing.T) {
	t.Parallel()
	var p pending
	for _, n := range []int{10, MaxPayload, 20, MaxPayload/2 + 1, 30, MaxPayload / 2} {
		f := Frame{Type: TypeData, Payload: bytes.Repeat([]byte{byte(n)}, n)}
		payload := f.Payload
		p.add(&f)
		if kept := f.Payload == nil; kept != (n > MaxPayload/2) {
			t.Errorf("a payload of %d bytes: kept itself: %v", n, kept)
		} else if !kept {
			clear(payload) // as the reader does, in its way
		}
	}
	var got []byte
	for _, part := range p.parts {
		if len(part) > MaxPayload {
			t.Errorf("a part of %d bytes", len(part))
		}
		got = append(got, part...)
	}
	var want []byte
	for _, n := range []int{10, MaxPayload, 20, MaxPayload/2 + 1, 30, MaxPayload / 2} {
		want = append(want, bytes.Repeat([]byte{byte(n)}, n)...)
	}
	if !bytes.Equal(got, want) || p.size() != len(want) {
		t.Errorf("%d bytes came out of %d, or others", len(got), len(want))
	}
}
