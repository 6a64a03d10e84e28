package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// The table has every kind of the .proto and no other.
func TestKindsAreTheEnum(t *testing.T) {
	got := slices.Sorted(maps.Keys(statusCodes))
	var want []fault.Kind
	for number := range muxv1.Error_Kind_name {
		want = append(want, fault.Kind(number))
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kinds (-enum +table):\n%s", diff)
	}
}

// What a handler returns comes back at the other end, for every kind.
func TestErrorRoundTrip(t *testing.T) {
	for number, name := range muxv1.Error_Kind_name {
		sent := &fault.Error{
			Kind: fault.Kind(number), Hop: 2, HopName: "sudo root", Message: "it is " + name, Hint: "a remedy", Stderr: "words\nof the far side",
			Token: []byte{0, 1, 255}, Step: 3, Exit: 7,
		}
		err := statusOf(t.Context(), "web1", fmt.Errorf("somewhere: %w", sent))
		if diff := cmp.Diff(sent, FaultOf(err)); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", name, diff)
		}
		st, _ := status.FromError(err)
		if st.Code() == codes.OK || st.Code() != statusCodes[sent.Kind] || st.Message() != "sudo root: it is "+name {
			t.Errorf("%s: code %s, message %q", name, st.Code(), st.Message())
		}
		detail, ok := st.Details()[0].(*muxv1.Error)
		if !ok || detail.GetHost() != "web1" {
			t.Errorf("%s: detail %v", name, detail)
		}
	}
}

func TestStatusOf(t *testing.T) {
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(context.DeadlineExceeded)
	for name, c := range map[string]struct {
		ctx  context.Context //nolint:containedctx // a table
		err  error
		code codes.Code
		kind fault.Kind
		text string
	}{
		"bad request":    {t.Context(), invalid("hop %d", 1), codes.InvalidArgument, fault.Internal, "hop 1"},
		"bad, wrapped":   {t.Context(), &fault.Error{Kind: fault.Cancelled, Cause: invalid("bad")}, codes.InvalidArgument, fault.Internal, "bad"},
		"untyped":        {t.Context(), errors.New("odd"), codes.Internal, fault.Internal, "odd"},
		"untyped, ended": {ended, errors.New("odd"), codes.DeadlineExceeded, fault.TimedOut, "the time for this was over"},
		"cause":          {t.Context(), &fault.Error{Kind: fault.FileFailed, Message: "a", Cause: errors.New("b")}, codes.Unknown, fault.FileFailed, "a: b"},
		"unknown kind":   {t.Context(), &fault.Error{Kind: 999, Message: "new"}, codes.Internal, 999, "new"},
		"long": {
			t.Context(), &fault.Error{Kind: fault.Internal, Message: strings.Repeat("é", 10_000)}, codes.Internal, fault.Internal,
			strings.Repeat("é", maxText/2),
		},
		"escapes": {t.Context(), &fault.Error{Kind: fault.Internal, Message: "a\x1b[31mb\xff"}, codes.Internal, fault.Internal, "ab"},
	} {
		t.Run(name, func(t *testing.T) {
			err := statusOf(c.ctx, "", c.err)
			got := FaultOf(err)
			if status.Code(err) != c.code || got.Kind != c.kind || !strings.HasPrefix(got.Message, c.text) || len(got.Message) > maxText {
				t.Errorf("code %s, kind %d, %q", status.Code(err), got.Kind, got.Message)
			}
		})
	}
	if statusOf(t.Context(), "", nil) != nil || FaultOf(nil) != nil {
		t.Error("nothing became an error")
	}
	for _, err := range []error{errors.New("plain"), status.Error(codes.Unavailable, "plain")} {
		if e := FaultOf(err); e.Kind != fault.Internal || e.Message != "plain" {
			t.Errorf("without a detail: %v", e)
		}
	}
}
