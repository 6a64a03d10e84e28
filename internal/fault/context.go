package fault

import (
	"context"
	"errors"
)

// OfContext says what the end of ctx means for the work it ended: its cause if that has a kind, TimedOut after a deadline, else
// Cancelled. It returns nil while ctx has not ended.
func OfContext(ctx context.Context) *Error {
	if ctx.Err() == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if e, ok := errors.AsType[*Error](cause); ok {
		return e
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return &Error{Kind: TimedOut, Message: "the time for this was over", Cause: cause}
	}
	return &Error{Kind: Cancelled, Message: "cancelled", Cause: cause}
}
