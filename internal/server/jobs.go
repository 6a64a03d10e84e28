package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// jobsService is the service Jobs.
type jobsService struct {
	muxv1.UnimplementedJobsServer
	*Server
}

// Run serves a request.
func (s *jobsService) Run(stream runStream) error {
	return s.serve(stream, func(step) error { return nil })
}

// serve takes a request, admits its steps by allow, and runs them.
func (s *Server) serve(stream runStream, allow func(step) error) error {
	arrived := time.Now()
	first, err := stream.Recv()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = invalid("no request came")
		}
		return statusOf(stream.Context(), "", err)
	}
	in := first.GetRequest()
	if in == nil {
		return statusOf(stream.Context(), "", invalid("the first message is not a request"))
	}
	admitted, err := s.runs.admit(stream.Context(), in.GetRun())
	if err != nil {
		return statusOf(stream.Context(), in.GetHost(), err)
	}
	defer admitted.done()
	r := &request{
		server:  s,
		run:     admitted.run,
		umask:   admitted.umask,
		seen:    admitted.seen,
		host:    in.GetHost(),
		arrived: arrived,
		replies: &replies{stream: stream, host: in.GetHost()},
		bodies:  newBodies(stream, &s.wg),
	}
	err = r.serve(admitted.ctx, in, allow)
	return statusOf(admitted.ctx, in.GetHost(), err)
}

// request is a request under way.
type request struct {
	server  *Server
	run     hop.Run
	umask   uint32
	seen    *moduleexec.Seen
	host    string
	arrived time.Time
	replies *replies
	bodies  *bodies

	path     hop.Path
	steps    []step
	payloads []*moduleexec.Pinned // by step, nil for what is no module
	node     Node
	judged   bool                  // modules that do not succeed have not been run, for those who follow it
	leads    *leader               // for those who follow it; nil: nobody will
	follows  *followed             // nil: nobody
	outcomes []*moduleexec.Outcome // by step, nil for what was skipped or has failed
	watched  []bool                // a guard looks into what the step prints
	queued   time.Duration         // before the first step that was run
}

// serve checks everything before anything is run, so that what is wanted (a payload, a local agent, a run) can be brought and the
// same request sent again.
func (r *request) serve(ctx context.Context, in *muxv1.Request, allow func(step) error) error {
	var err error
	if err := short(in.GetHost()); err != nil {
		return err
	}
	if r.path, err = r.server.keys.toPath(in.GetPath(), in.GetRun()); err != nil {
		return err
	}
	if most := in.GetPath().GetMaxInterpreters(); most > 0 {
		r.run.MaxInterp = int(most)
	}
	if r.steps, err = toSteps(in.GetSteps()); err != nil {
		return err
	}
	for _, s := range r.steps {
		if err := allow(s); err != nil {
			return err
		}
	}
	defer r.release()
	if err := r.pin(); err != nil {
		return err
	}
	defer r.tell()
	if err := r.relate(ctx, in); err != nil {
		return err
	}
	r.expectDiscovery()
	if err := r.acquire(ctx); err != nil {
		return err
	}
	err = r.runInTurn(ctx)
	// The log may explain an error: it goes first.
	if sendErr := r.replies.send(nil); err == nil {
		err = sendErr
	}
	return err
}

func (r *request) acquire(ctx context.Context) error {
	defer r.tellOfWaiting()()
	node, err := r.server.o.Tree.Acquire(ctx, r.run, r.host, r.path)
	if last := &r.path[len(r.path)-1]; unanswered(last, err) {
		last.Discovery = nil // a shell can say that there is no interpreter
		node, err = r.server.o.Tree.Acquire(ctx, r.run, r.host, r.path)
	}
	if err != nil {
		return err
	}
	r.node = node
	node.Log(r.replies.log)
	return nil
}

// renew leaves the agent, which is stale, to those who have jobs there, and takes a new one.
func (r *request) renew(ctx context.Context) error {
	r.node.Retire()
	r.node.Release()
	r.node = nil
	return r.acquire(ctx)
}

func (r *request) release() {
	for _, p := range r.payloads {
		if p != nil {
			p.Release()
		}
	}
	if r.node != nil {
		r.node.Release()
	}
}

// pin takes hold of all payloads and notes what guards will want to see.
func (r *request) pin() error {
	r.payloads = make([]*moduleexec.Pinned, len(r.steps))
	r.watched = make([]bool, len(r.steps))
	for i, s := range r.steps {
		for _, g := range s.guards {
			if g.NeedsStdout() {
				r.watched[g.step] = true
			}
		}
		if s.module == nil {
			continue
		}
		pinned, err := r.server.o.Payloads.Pin(s.module.payload, r.seen)
		if err != nil {
			return r.at(i, err)
		}
		r.payloads[i] = pinned
	}
	return nil
}

// runSteps runs the steps in their order. After an error only steps whose guard says so are run; the first error is the request's.
func (r *request) runSteps(ctx context.Context) error {
	var failed error
	n := 0
	for i := 0; i < len(r.steps); i += n {
		if n = r.chainFrom(i); n > 1 && failed == nil {
			if failed = r.runChain(ctx, i, func() *agent.Chain { return agent.NewChain(n) }); failed != nil && (ctx.Err() != nil || fault.KindOf(failed) == fault.AgentDied) {
				return failed
			}
			continue
		}
		n = 1
		s := r.steps[i]
		if len(s.guards) == 0 && failed != nil {
			continue
		}
		if !r.allowed(s) {
			if failed == nil {
				if err := r.reply(&muxv1.StepResult{Step: uint32(i), Skipped: true}); err != nil {
					return err
				}
			}
			continue
		}
		result, err := r.runStep(ctx, uint32(i), asked{node: r.nodeFor(uint32(i))})
		if err != nil {
			if failed == nil {
				failed = r.at(i, err)
			}
			if ctx.Err() != nil || fault.KindOf(err) == fault.AgentDied || r.node == nil {
				return failed
			}
			continue
		}
		if err := r.reply(result); err != nil {
			return err
		}
	}
	return failed
}

// allowed reports whether all guards of a step say so.
func (r *request) allowed(s step) bool {
	for _, g := range s.guards {
		if !g.Allows(r.outcomes[g.step]) {
			return false
		}
	}
	return true
}

func (r *request) reply(result *muxv1.StepResult) error {
	if result.Spans != nil { // the first that was run
		result.Spans.Queue += micros(r.queued)
		r.queued = 0
	}
	return r.replies.send(&muxv1.RunReply{Event: &muxv1.RunReply_Result{Result: result}})
}

// at says at which step and hop an error happened. The error may be shared, so it is copied.
func (r *request) at(i int, err error) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	located := *e
	located.Step = i
	if located.HopName == "" && len(r.path) > 0 && located.Kind != fault.PayloadWanted {
		located.Hop = len(r.path) - 1
		located.HopName = r.path[located.Hop].Name()
	}
	return &located
}

func (r *request) runStep(ctx context.Context, i uint32, of asked) (*muxv1.StepResult, error) {
	s := r.steps[i]
	switch {
	case s.module != nil:
		module := s.module.module
		module.Payload, module.Judged = r.payloads[i], r.judged
		return r.runModule(ctx, i, of, &module)
	case s.command != nil && s.command.remember:
		return r.remembered(ctx, i, of)
	case s.command != nil && s.command.discovery != nil:
		return r.discovered(ctx, i, of)
	case s.command != nil:
		return r.runCommand(ctx, i, of)
	case s.put != nil:
		return r.put(ctx, i, of, s.put)
	case s.folder != nil:
		return r.folder(ctx, i, of, s.folder)
	case s.ticket != nil:
		return r.ticket(i, s.ticket)
	default:
		return r.get(ctx, i, of, s.get)
	}
}

// maxRenewals is how often in a row an agent may say that it is stale. One that is new is not, unless something changes all the time.
const maxRenewals = 3

// fresh calls run until the agent is not stale, each time with a new one.
func (r *request) fresh(ctx context.Context, run func() error) error {
	for renewals := 0; ; renewals++ {
		err := run()
		if !errors.Is(err, moduleexec.ErrStale) {
			return err
		}
		r.server.o.Log.Debug("an agent is replaced", "host", r.host, "cause", err)
		if renewals == maxRenewals {
			return &fault.Error{Kind: fault.Internal, Message: "the agent does not stay fresh", Cause: err}
		}
		if err := r.renew(ctx); err != nil {
			return err
		}
	}
}

// runModule runs a module. One of a chain is not asked again by itself.
func (r *request) runModule(ctx context.Context, i uint32, of asked, m *moduleexec.Module) (result *muxv1.StepResult, err error) {
	run := func() error {
		result, err = r.runJob(ctx, i, of, func(out *moduleexec.Output) (moduleexec.Result, error) {
			return r.execModule(ctx, i, of.node, m, out)
		})
		return err
	}
	if of.chained {
		return result, run()
	}
	err = r.fresh(ctx, func() error {
		of.node = r.nodeFor(i)
		return run()
	})
	return result, err
}

// execModule runs a module with its stdin, if it has one.
func (r *request) execModule(ctx context.Context, i uint32, node Node, m *moduleexec.Module, out *moduleexec.Output) (moduleexec.Result, error) {
	if input := r.steps[i].module.input; input != "" {
		bundle, err := fileservice.OpenBundle(input)
		if err != nil {
			return moduleexec.Result{}, err
		}
		defer bundle.Close()
		m.Body = bundle.Next
	}
	return moduleexec.RunModule(ctx, moduleCaller{node}, m, out)
}

func (r *request) runCommand(ctx context.Context, i uint32, of asked) (*muxv1.StepResult, error) {
	s := r.steps[i].command
	command := s.command
	if s.hasBody {
		command.Body = r.bodies.of(i)
	}
	return r.runJob(ctx, i, of, func(out *moduleexec.Output) (moduleexec.Result, error) {
		return moduleexec.RunCommand(ctx, moduleCaller{of.node}, &command, out)
	})
}

// answered is the result of a command that need not be run.
func (r *request) answered(i uint32, stdout []byte) *muxv1.StepResult {
	r.outcomes[i] = &moduleexec.Outcome{Stdout: stdout}
	return &muxv1.StepResult{Step: i, Stdout: stdout, Spans: &muxv1.Spans{}}
}

// remembered gives what the command said before, or runs it.
func (r *request) remembered(ctx context.Context, i uint32, of asked) (*muxv1.StepResult, error) {
	question := string(r.path[len(r.path)-1].Account[:]) + string(bytes.Join(r.steps[i].command.command.Argv, []byte{0}))
	if answer, ok := r.node.Memory().Recall(question); ok {
		return r.answered(i, answer), nil
	}
	r.watched[i] = true
	result, err := r.runCommand(ctx, i, of)
	if err == nil && result.Rc == 0 && r.outcomes[i].Stdout != nil {
		r.node.Memory().Remember(question, r.outcomes[i].Stdout)
	}
	return result, err
}

func (r *request) runJob(ctx context.Context, i uint32, of asked, run func(*moduleexec.Output) (moduleexec.Result, error)) (*muxv1.StepResult, error) {
	r.server.jobs.Add(1)
	keep := 0
	if r.watched[i] {
		keep = moduleexec.MaxGuarded
	}
	out := moduleexec.NewOutput(keep, func(stdout, stderr []byte) error {
		if err := of.wait(ctx); err != nil {
			return err
		}
		return r.replies.send(&muxv1.RunReply{Event: &muxv1.RunReply_Output{Output: &muxv1.Output{Step: i, Stdout: stdout, Stderr: stderr}}})
	})
	res, err := run(out)
	if err != nil {
		return nil, err
	}
	for _, text := range res.Logged {
		r.replies.log(int(muxv1.Log_VVV), text)
	}
	r.outcomes[i] = &moduleexec.Outcome{RC: res.RC, Stdout: out.Kept(), Failed: r.judged && !res.Succeeded}
	stdout, stderr := out.Rest()
	return &muxv1.StepResult{
		Step:   i,
		Rc:     int32(res.RC),
		Stdout: stdout,
		Stderr: stderr,
		Spans:  &muxv1.Spans{Wire: micros(res.Spans.Wire), Fork: micros(res.Spans.Fork), Module: micros(res.Spans.Job)},
	}, nil
}

func (r *request) put(ctx context.Context, i uint32, of asked, p *putStep) (*muxv1.StepResult, error) {
	if err := r.canMoveFiles(); err != nil {
		return nil, err
	}
	uid, err := r.owner(ctx, p.asLogin)
	if err != nil {
		return nil, err
	}
	in := &fileservice.PutRequest{
		Host: r.host, Link: r.link(), Shared: r.node.Shares(), Path: p.path, Dest: p.dest, Mode: p.mode, UID: uid, Progress: r.progress(string(p.dest)),
	}
	if p.hasBody {
		in.Body = r.bodies.of(i)
	}
	res, err := r.server.o.Files.Put(ctx, fileCaller{of.node}, in)
	if err != nil {
		return nil, err
	}
	return r.moved(i, &res), nil
}

func (r *request) folder(ctx context.Context, i uint32, of asked, f *folderStep) (*muxv1.StepResult, error) {
	if err := r.canMoveFiles(); err != nil {
		return nil, err
	}
	uid, err := r.owner(ctx, f.asLogin)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	err = r.server.o.Files.Folder(ctx, fileCaller{of.node}, &fileservice.FolderRequest{Path: f.path, Remove: f.remove, UID: uid})
	if err != nil {
		return nil, err
	}
	r.outcomes[i] = &moduleexec.Outcome{}
	return &muxv1.StepResult{Step: i, Spans: &muxv1.Spans{Wire: micros(time.Since(started))}}, nil
}

// owner returns whose a file shall be: the account's before the last hop, if that is asked for and not who writes anyway.
func (r *request) owner(ctx context.Context, asLogin bool) (uint32, error) {
	if !asLogin || len(r.path) == 1 {
		return 0, nil
	}
	return r.node.LoginUID(ctx)
}

func (r *request) get(ctx context.Context, i uint32, of asked, g *getStep) (*muxv1.StepResult, error) {
	if err := r.canMoveFiles(); err != nil {
		return nil, err
	}
	in := &fileservice.GetRequest{Host: r.host, Link: r.link(), Source: g.source, Path: g.path, Umask: r.umask, Progress: r.progress(string(g.source))}
	res, err := r.server.o.Files.Get(ctx, fileCaller{of.node}, in)
	if err != nil {
		return nil, err
	}
	return r.moved(i, &res), nil
}

func (r *request) moved(i uint32, res *fileservice.Result) *muxv1.StepResult {
	r.outcomes[i] = &moduleexec.Outcome{}
	return &muxv1.StepResult{
		Step:   i,
		Size:   res.Size,
		Sha256: res.SHA256[:],
		Spans:  &muxv1.Spans{Queue: micros(res.Queue), Wire: micros(res.Wire)},
	}
}

// canMoveFiles refuses what has no way: without an agent files go through a shell of the SSH account, which a become tool is not.
func (r *request) canMoveFiles() error {
	last := r.path[len(r.path)-1]
	if r.node.HasAgent() || last.Become == nil {
		return nil
	}
	return &fault.Error{
		Kind:    fault.InterpreterMissing,
		Message: "files of this account can only be moved with Python, and no interpreter is known for it",
		Hint:    "Set ansible_python_interpreter.",
	}
}

// link names the connection that the path's bytes go over: that of its first hop.
func (r *request) link() string { return string(r.path[0].Account[:]) }

// progress tells a client of long transfers, at -v.
func (r *request) progress(name string) func(fileservice.Progress) {
	return func(p fileservice.Progress) {
		r.replies.log(int(muxv1.Log_V), progressText(name, p))
		_ = r.replies.send(nil) // a client that is gone is noticed by the transfer's context
	}
}

func progressText(name string, p fileservice.Progress) string {
	rate := float64(p.Done) / max(p.Elapsed.Seconds(), 1e-3)
	line := fmt.Sprintf("%s: %s", name, mebibytes(float64(p.Done)))
	if p.Total > 0 {
		line += " of " + mebibytes(float64(p.Total))
	}
	line += fmt.Sprintf(", %s/s", mebibytes(rate))
	if p.Total > p.Done && rate > 0 {
		left := time.Duration(float64(p.Total-p.Done) / rate * float64(time.Second))
		line += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return line
}

func mebibytes(n float64) string { return fmt.Sprintf("%.1f MiB", n/(1<<20)) }

func micros(d time.Duration) uint64 { return uint64(max(0, d.Microseconds())) }
