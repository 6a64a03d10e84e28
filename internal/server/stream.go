package server

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

type runStream = grpc.BidiStreamingServer[muxv1.RunRequest, muxv1.RunReply]

// maxLogs is how many log events wait for a client that does not read.
const maxLogs = 256

// replies is the sending side of a request's stream: what the request says from several goroutines, and log events, which come from
// goroutines that must not wait for a client. They leave with the next reply.
type replies struct {
	host string

	sending sync.Mutex // held while a message is sent; before mu
	stream  runStream

	mu   sync.Mutex
	logs []*muxv1.Log
	lost int
}

// log takes a log event. It never blocks.
func (r *replies) log(level int, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.logs) == maxLogs {
		r.lost++
		return
	}
	r.logs = append(r.logs, &muxv1.Log{Level: logLevel(level), Host: r.host, Text: text(what)})
}

func logLevel(level int) muxv1.Log_Level {
	if l := muxv1.Log_Level(level); l >= muxv1.Log_WARNING && l <= muxv1.Log_VVVV {
		return l
	}
	return muxv1.Log_VVVV
}

// send sends what waits, and then m unless it is nil.
func (r *replies) send(m *muxv1.RunReply) error {
	r.sending.Lock()
	defer r.sending.Unlock()
	r.mu.Lock()
	logs, lost := r.logs, r.lost
	r.logs, r.lost = nil, 0
	r.mu.Unlock()
	if lost > 0 {
		logs = append(logs, &muxv1.Log{Level: muxv1.Log_WARNING, Host: r.host, Text: "more was logged than this run has read"})
	}
	for _, l := range logs {
		if err := r.stream.Send(&muxv1.RunReply{Event: &muxv1.RunReply_Log{Log: l}}); err != nil {
			return err
		}
	}
	if m == nil {
		return nil
	}
	return r.stream.Send(m)
}

// bodies is the receiving side of a request's stream after the request itself: the content of its steps, in their order. Nothing is
// read before a step asks for it, so a client waits for its step, and what is read ahead is one message.
type bodies struct {
	stream runStream
	wg     *sync.WaitGroup
	start  sync.Once
	parts  chan part
	ended  map[uint32]bool // steps whose content was complete
	kept   map[uint32][][]byte
	gone   map[uint32]bool // there was more than is kept
}

// maxKept is how much of a step's content is kept for when it has to be asked of another agent, in bytes.
const maxKept = 64 << 10

type part struct {
	message *muxv1.RunRequest
	err     error
}

func newBodies(stream runStream, wg *sync.WaitGroup) *bodies {
	return &bodies{stream: stream, wg: wg, parts: make(chan part), ended: map[uint32]bool{}, kept: map[uint32][][]byte{}, gone: map[uint32]bool{}}
}

// of returns the content of one step, a part a call, as moduleexec.Body and fileservice.Body want it. Content of earlier steps that did
// not ask for all of theirs is passed over. Short content can be had again.
func (b *bodies) of(step uint32) func(context.Context) ([]byte, error) {
	again, gone := b.kept[step], b.gone[step]
	return func(ctx context.Context) ([]byte, error) {
		if gone {
			return nil, &fault.Error{Kind: fault.Internal, Message: "the content of a step is wanted a second time"}
		}
		if len(again) > 0 {
			part := again[0]
			again = again[1:]
			return part, nil
		}
		for {
			if b.ended[step] {
				return nil, io.EOF
			}
			body, err := b.next(ctx, step)
			if err != nil {
				return nil, err
			}
			if body.GetLast() {
				b.ended[body.GetStep()] = true
			}
			switch {
			case body.GetStep() > step:
				return nil, invalid("the content of step %d came before that of step %d was complete", body.GetStep(), step)
			case body.GetStep() < step || len(body.GetData()) == 0:
				continue
			}
			b.keep(step, body.GetData())
			return body.GetData(), nil
		}
	}
}

func (b *bodies) keep(step uint32, part []byte) {
	size := len(part)
	for _, p := range b.kept[step] {
		size += len(p)
	}
	if b.gone[step] = b.gone[step] || size > maxKept; b.gone[step] {
		delete(b.kept, step)
		return
	}
	b.kept[step] = append(b.kept[step], part)
}

func (b *bodies) next(ctx context.Context, step uint32) (*muxv1.Body, error) {
	b.start.Do(func() { b.wg.Go(b.read) })
	var p part
	select {
	case p = <-b.parts:
	case <-ctx.Done():
		return nil, fault.OfContext(ctx)
	}
	switch {
	case errors.Is(p.err, io.EOF):
		return nil, invalid("the content of step %d ends early", step)
	case p.err != nil:
		return nil, p.err
	case p.message.GetBody() == nil:
		return nil, invalid("the second message of a request is not content")
	case len(p.message.GetBody().GetData()) > maxBodyPart:
		return nil, invalid("%d bytes of content in one message: at most %d are allowed", len(p.message.GetBody().GetData()), maxBodyPart)
	}
	return p.message.GetBody(), nil
}

// read hands on what comes until the call ends. It has a goroutine of its own because nothing but the call's end can interrupt Recv,
// and a step must be able to end while its client still has content.
func (b *bodies) read() {
	for {
		m, err := b.stream.Recv()
		select {
		case b.parts <- part{m, err}:
		case <-b.stream.Context().Done():
			return
		}
		if err != nil {
			return
		}
	}
}
