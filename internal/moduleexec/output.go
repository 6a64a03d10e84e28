package moduleexec

import (
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// MaxInline is how many bytes of output a step's result may carry; what comes before goes ahead of it in parts.
const MaxInline = 64 << 10

// Output gathers what a job prints and hands it on in parts, in order: it never holds more than MaxInline bytes and the one frame that
// overflowed them. It is safe for concurrent use.
type Output struct {
	emit   func(stdout, stderr []byte) error
	keep   int
	inline int

	mu      sync.Mutex
	stdout  []byte
	stderr  []byte
	kept    []byte
	over    bool // more than keep was printed
	emitErr error
}

// NewOutput returns an empty Output. emit gets each part that does not fit; it may block, which stops the job's output at its
// source, and must not keep the slices. The first keep bytes of stdout stay for guards; if there were more, none are.
func NewOutput(keep int, emit func(stdout, stderr []byte) error) *Output {
	return &Output{emit: emit, keep: keep, inline: MaxInline}
}

// NewLiveOutput returns an Output that hands on everything as it comes.
func NewLiveOutput(emit func(stdout, stderr []byte) error) *Output { return &Output{emit: emit} }

// AddStdout takes the next bytes of stdout. An error is emit's, as a *fault.Error, and final.
func (o *Output) AddStdout(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.over && len(o.kept)+len(p) <= o.keep {
		o.kept = append(o.kept, p...)
	} else {
		o.kept, o.over = nil, true
	}
	o.stdout = append(o.stdout, p...)
	return o.spillLocked()
}

// AddStderr takes the next bytes of stderr. An error is emit's, as a *fault.Error, and final.
func (o *Output) AddStderr(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stderr = append(o.stderr, p...)
	return o.spillLocked()
}

func (o *Output) spillLocked() error {
	if o.emitErr == nil && len(o.stdout)+len(o.stderr) > o.inline {
		if err := o.emit(o.stdout, o.stderr); err != nil {
			o.emitErr = &fault.Error{Kind: fault.Cancelled, Message: "nobody reads the job's output", Cause: err}
		}
		o.stdout, o.stderr = o.stdout[:0], o.stderr[:0]
	}
	return o.emitErr
}

// Rest returns what no part carried.
func (o *Output) Rest() (stdout, stderr []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stdout, o.stderr
}

// Kept returns all of stdout, nil if it was longer than was to be kept.
func (o *Output) Kept() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept
}
