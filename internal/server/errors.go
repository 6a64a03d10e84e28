package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// maxText bounds each text of an error: a status travels in HTTP/2 headers.
const maxText = 2048

// statusCodes says what each kind is to gRPC. The kind in the detail is what programs decide by.
var statusCodes = map[fault.Kind]codes.Code{
	fault.Unspecified:            codes.Unknown,
	fault.Unreachable:            codes.Unavailable,
	fault.AuthFailed:             codes.Unauthenticated,
	fault.HostKeyUnknown:         codes.Unauthenticated,
	fault.HostKeyChanged:         codes.Unauthenticated,
	fault.BecomePasswordRequired: codes.PermissionDenied,
	fault.BecomePasswordWrong:    codes.PermissionDenied,
	fault.BecomeTimeout:          codes.DeadlineExceeded,
	fault.BecomeFailed:           codes.PermissionDenied,
	fault.InterpreterMissing:     codes.NotFound,
	fault.AgentVersion:           codes.Unimplemented,
	fault.AgentDied:              codes.Unavailable,
	fault.FileChanged:            codes.Aborted,
	fault.FileNotFound:           codes.NotFound,
	fault.FileFailed:             codes.Unknown,
	fault.TooLarge:               codes.ResourceExhausted,
	fault.Cancelled:              codes.Canceled,
	fault.TimedOut:               codes.DeadlineExceeded,
	fault.Unsupported:            codes.Unimplemented,
	fault.Internal:               codes.Internal,
	fault.PayloadWanted:          codes.FailedPrecondition,
	fault.LocalAgentWanted:       codes.FailedPrecondition,
	fault.RunUnknown:             codes.FailedPrecondition,
	fault.Draining:               codes.FailedPrecondition,
	fault.NotBegun:               codes.FailedPrecondition,
}

// badRequest is a message that breaks what the .proto files say: the caller's bug.
type badRequest struct{ text string }

// Error implements error.
func (e *badRequest) Error() string { return e.text }

func invalid(format string, args ...any) error { return &badRequest{fmt.Sprintf(format, args...)} }

// statusOf makes an error a status with its detail. host is the inventory name, empty if the call has none.
func statusOf(ctx context.Context, host string, err error) error {
	if err == nil {
		return nil
	}
	if bad, ok := errors.AsType[*badRequest](err); ok {
		return withDetail(codes.InvalidArgument, &muxv1.Error{Kind: muxv1.Error_INTERNAL, Host: host, Message: text(bad.text)}, bad.text)
	}
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		if e = fault.OfContext(ctx); e == nil {
			e = &fault.Error{Kind: fault.Internal, Message: err.Error()}
		}
	}
	detail := &muxv1.Error{
		Kind:     muxv1.Error_Kind(e.Kind),
		Host:     text(host),
		Hop:      uint32(max(0, e.Hop)),
		HopName:  text(e.HopName),
		Message:  text(messageOf(e)),
		Hint:     text(e.Hint),
		Stderr:   fault.Clean([]byte(e.Stderr)),
		Token:    e.Token,
		Step:     uint32(max(0, e.Step)),
		ExitCode: uint32(max(0, e.Exit)),
	}
	code, ok := statusCodes[e.Kind]
	if !ok {
		code = codes.Internal
	}
	return withDetail(code, detail, e.Error())
}

func withDetail(code codes.Code, detail *muxv1.Error, message string) error {
	st := status.New(code, text(message))
	if detailed, err := st.WithDetails(detail); err == nil {
		st = detailed
	}
	return st.Err()
}

// messageOf is what happened, with its cause but without the hop, which has its own field.
func messageOf(e *fault.Error) string {
	if e.Cause == nil {
		return e.Message
	}
	return e.Message + ": " + e.Cause.Error()
}

// text makes s fit for a header: valid UTF-8 of bounded length, without what a terminal would act on.
func text(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return fault.Clean([]byte(s))
}

// FaultOf reads the detail of a status back, for clients of the daemon in Go: nil for nil, kind Internal if there is no detail.
func FaultOf(err error) *fault.Error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return &fault.Error{Kind: fault.Internal, Message: err.Error(), Cause: err}
	}
	for _, d := range st.Details() {
		if e, ok := d.(*muxv1.Error); ok {
			return &fault.Error{
				Kind:    fault.Kind(e.GetKind()),
				Hop:     int(e.GetHop()),
				HopName: e.GetHopName(),
				Message: e.GetMessage(),
				Hint:    e.GetHint(),
				Stderr:  e.GetStderr(),
				Token:   e.GetToken(),
				Step:    int(e.GetStep()),
				Exit:    int(e.GetExitCode()),
			}
		}
	}
	return &fault.Error{Kind: fault.Internal, Message: st.Message(), Cause: err}
}
