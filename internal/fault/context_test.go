package fault

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestOfContext(t *testing.T) {
	if e := OfContext(t.Context()); e != nil {
		t.Errorf("a context that goes on: %v", e)
	}
	for name, c := range map[string]struct {
		cause error
		want  Kind
	}{
		"plain":    {nil, Cancelled},
		"untyped":  {errors.New("bored"), Cancelled},
		"deadline": {context.DeadlineExceeded, TimedOut},
		"typed":    {&Error{Kind: RunUnknown, Message: "the run has ended"}, RunUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(c.cause)
			if got := OfContext(ctx); got.Kind != c.want {
				t.Errorf("got %v, want kind %d", got, c.want)
			}
		})
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if got := OfContext(ctx); got.Kind != TimedOut {
		t.Errorf("an expired deadline: %v", got)
	}
}
