package server

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// ticket is what its holder may do, as long as its run is attached: run commands at the end of a path.
type ticket struct {
	run       string
	host      string
	path      hop.Path
	shell     [][]byte
	maxInterp int
}

// ticket makes one for the request's node, which has been reached: what is wrong with the way is said now, and not to rsync.
func (r *request) ticket(i uint32, s *ticketStep) (*muxv1.StepResult, error) {
	if err := runsCommands(r.node, r.path); err != nil {
		return nil, err
	}
	name := r.server.keys.ticket(r.run.ID, s.host, r.path, s.shell)
	r.server.runs.issue(name, ticket{run: r.run.ID, host: s.host, path: r.path, shell: s.shell, maxInterp: r.run.MaxInterp})
	return r.answered(i, []byte(name)), nil
}

// runsCommands refuses what has no way: without an agent the become plugin would have to put its tool before each command.
func runsCommands(node Node, path hop.Path) error {
	if node.HasAgent() || path[len(path)-1].Become == nil {
		return nil
	}
	return &fault.Error{
		Kind:    fault.InterpreterMissing,
		Hop:     len(path) - 1,
		HopName: path[len(path)-1].Name(),
		Message: "rsync, scp and git reach this account only with Python, and no interpreter is known for it",
		Hint:    "Set ansible_python_interpreter.",
	}
}

// issue makes a ticket good until its run ends. A run that has ended gets none.
func (r *registry) issue(name string, t ticket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.byID[t.run]; ok {
		known.tickets[name] = t
	}
}

// redeem finds the ticket of that name, which begins with its run's.
func (r *registry) redeem(name string) (ticket, error) {
	run, _, _ := strings.Cut(name, ".")
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.byID[run]; ok {
		if t, ok := known.tickets[name]; ok {
			return t, nil
		}
	}
	return ticket{}, &fault.Error{Kind: fault.RunUnknown, Message: "the ticket is not good, or no longer: it ends with the run that got it"}
}

type execStream = grpc.BidiStreamingServer[muxv1.ExecRequest, muxv1.ExecReply]

// Exec runs a command for the holder of a ticket.
func (s *jobsService) Exec(stream execStream) error {
	first, err := stream.Recv()
	start := first.GetStart()
	if errors.Is(err, io.EOF) || (err == nil && start == nil) {
		err = invalid("the first message does not say what to start")
	}
	if err != nil {
		return statusOf(stream.Context(), "", err)
	}
	t, err := s.runs.redeem(start.GetTicket())
	if err != nil {
		return statusOf(stream.Context(), start.GetHost(), err)
	}
	admitted, err := s.runs.admit(stream.Context(), t.run)
	if err != nil {
		return statusOf(stream.Context(), t.host, err)
	}
	defer admitted.done()
	admitted.run.MaxInterp = t.maxInterp
	return statusOf(admitted.ctx, t.host, s.exec(admitted, &t, start, stream))
}

func (s *jobsService) exec(admitted admission, t *ticket, start *muxv1.ExecRequest_Start, stream execStream) error {
	if start.GetHost() != t.host {
		return invalid("the ticket is for %s, not for %.80q", t.host, start.GetHost())
	}
	line := start.GetCommand()
	if err := words([][]byte{line}); err != nil {
		return err
	}
	node, err := s.o.Tree.Acquire(admitted.ctx, admitted.run, t.host, t.path)
	if err != nil {
		return err
	}
	defer node.Release()
	if err := runsCommands(node, t.path); err != nil {
		return err
	}
	s.jobs.Add(1)
	command := &moduleexec.Command{Argv: append(t.shell[:len(t.shell):len(t.shell)], line), Plain: line, Body: s.stdin(stream)}
	result, err := moduleexec.RunCommand(admitted.ctx, moduleCaller{node}, command, moduleexec.NewLiveOutput(func(stdout, stderr []byte) error {
		return stream.Send(&muxv1.ExecReply{Stdout: stdout, Stderr: stderr})
	}))
	if err != nil {
		return err
	}
	rc := int32(result.RC)
	return stream.Send(&muxv1.ExecReply{Rc: &rc})
}

// stdin hands on what comes of the command's input. It reads in a goroutine of its own because nothing but the call's end can interrupt
// Recv, and a command may end before its input does.
func (s *Server) stdin(stream execStream) moduleexec.Body {
	type part struct {
		data []byte
		err  error
	}
	parts := make(chan part)
	s.wg.Go(func() {
		for {
			m, err := stream.Recv()
			if err == nil && (m.GetStart() != nil || len(m.GetStdin()) > maxBodyPart) {
				err = invalid("a message that is no stdin, or more than %d bytes of it", maxBodyPart)
			}
			select {
			case parts <- part{m.GetStdin(), err}:
			case <-stream.Context().Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return func(ctx context.Context) ([]byte, error) {
		select {
		case p := <-parts:
			return p.data, p.err
		case <-ctx.Done():
			return nil, fault.OfContext(ctx)
		}
	}
}
