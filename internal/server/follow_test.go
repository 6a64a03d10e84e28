package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// gate is a FIFO that a job waits at until the test opens it.
type gate struct {
	path string
	file *os.File
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{path: filepath.Join(t.TempDir(), "gate")}
	if err := syscall.Mkfifo(g.path, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if g.file, err = os.OpenFile(g.path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.file.Close() })
	return g
}

// script goes before what the job does then.
func (g *gate) script() string { return "read x <" + g.path + "; " }

func (g *gate) open(t *testing.T) {
	t.Helper()
	if _, err := g.file.WriteString("\n"); err != nil {
		t.Error(err)
	}
}

// pending is a request under way.
type pending struct {
	*answer
	err    error
	cancel func()
	ended  sync.WaitGroup
}

func (p *pending) wait() (*answer, error) {
	p.ended.Wait()
	return p.answer, p.err
}

// send is ask without waiting for what comes of it.
func (d *daemon) send(t *testing.T, in *muxv1.Request, bodies ...*muxv1.Body) *pending {
	t.Helper()
	ctx, cancel := context.WithCancelCause(within(t))
	stream, err := d.jobs.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := &pending{cancel: func() { cancel(nil) }}
	t.Cleanup(func() { cancel(nil); p.ended.Wait() })
	p.ended.Go(func() { p.answer, p.err = gather(t, stream, in, bodies) })
	return p
}

// left waits until all of a named request has left for the target.
func (d *daemon) left(t *testing.T, node *agentNode, before agent.Stats, run, name string) {
	t.Helper()
	for ctx := within(t); ctx.Err() == nil; runtime.Gosched() {
		if l, _ := d.Server.runs.leaderOrNews(run, name); l != nil && node.Stats().SentBytes > before.SentBytes {
			if first, _ := l.asked([]uint32{0}); first != nil {
				return
			}
		}
	}
	t.Fatal("it has not left")
}

// leads gives the request a name.
func leads(in *muxv1.Request, name string) *muxv1.Request {
	in.Name = name
	return in
}

// follows has the request follow steps of another.
func follows(in *muxv1.Request, name string, steps ...uint32) *muxv1.Request {
	in.Follow = &muxv1.Follow{Request: name, Steps: steps}
	return in
}

func guarded(s *muxv1.Step, step uint32, rc string) *muxv1.Step {
	s.Guards = []*muxv1.Guard{{Step: step, Field: "rc", Value: rc}}
	return s
}

func withBody(s *muxv1.Step) *muxv1.Step {
	s.GetCommand().HasBody = true
	return s
}

func onTerminal(s *muxv1.Step) *muxv1.Step {
	s.GetCommand().Tty = true
	return s
}

func missing() *muxv1.Step {
	return &muxv1.Step{Action: &muxv1.Step_Get{Get: &muxv1.Get{Source: []byte("/none"), Path: "/none"}}}
}

// empty are the bodies of the steps that have some.
func empty(steps []*muxv1.Step) (bodies []*muxv1.Body) {
	for i, s := range steps {
		if s.GetCommand().GetHasBody() {
			bodies = append(bodies, &muxv1.Body{Step: uint32(i), Last: true})
		}
	}
	return bodies
}

// kindOf is that of an error, 0 for none.
func kindOf(err error) fault.Kind {
	if err == nil {
		return 0
	}
	return FaultOf(err).Kind
}

// done is what jobs have written to a file; nothing if it is not there.
func done(path string) string {
	text, _ := os.ReadFile(path)
	return strings.Join(strings.Fields(string(text)), " ")
}

// A request begins when the one that it follows has ended, which may be long ago, and if that has come to what it should have.
func TestFollow(t *testing.T) {
	skipped := func() *muxv1.Step { return guarded(shell1("true"), 0, "1") }
	plain := func(s *muxv1.Step) *muxv1.Step { return s }
	for name, c := range map[string]struct {
		first    func(*muxv1.Step) *muxv1.Step // the leader's, which works for a while
		more     []*muxv1.Step                 // the leader's too
		deciding []uint32
		then     func(*muxv1.Step) *muxv1.Step // the follower's first
		want     fault.Kind
	}{
		"one step":             {plain, nil, []uint32{0}, plain, 0},
		"bad exit code":        {plain, []*muxv1.Step{shell1("exit 7")}, []uint32{1}, plain, 0},
		"one of several":       {plain, []*muxv1.Step{skipped(), shell1("true")}, []uint32{2, 1}, plain, 0},
		"skipped":              {plain, []*muxv1.Step{skipped(), shell1("true")}, []uint32{1}, plain, fault.NotBegun},
		"failed":               {plain, []*muxv1.Step{missing()}, []uint32{1}, plain, fault.NotBegun},
		"not after a failure":  {plain, []*muxv1.Step{missing(), shell1("true")}, []uint32{2}, plain, fault.NotBegun},
		"before a failure":     {plain, []*muxv1.Step{missing()}, []uint32{0}, plain, 0},
		"leader on a terminal": {onTerminal, nil, []uint32{0}, plain, 0},
		"leader with a body":   {withBody, nil, []uint32{0}, plain, 0},
		"leader in two parts":  {plain, []*muxv1.Step{withBody(shell1("cat"))}, []uint32{1}, plain, 0},
		"on a terminal":        {plain, nil, []uint32{0}, onTerminal, 0},
		"with a body":          {plain, nil, []uint32{0}, withBody, 0},
		"with a body, failed":  {plain, []*muxv1.Step{missing()}, []uint32{1}, withBody, fault.NotBegun},
		"in two parts":         {plain, nil, []uint32{0}, plain, 0},
		"in two parts, failed": {plain, []*muxv1.Step{missing()}, []uint32{1}, plain, fault.NotBegun},
	} {
		for _, hasAgent := range []bool{true, false} {
			for _, ended := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/agent %v/ended %v", name, hasAgent, ended), func(t *testing.T) {
					var node Node = newBareNode()
					if hasAgent {
						node = newAgentNode(t)
					}
					d := start(t, node)
					acquired := make(chan struct{}, 2)
					d.tree.wait = func() { acquired <- struct{}{} }
					gate, job, log := newGate(t), newWitness(t), filepath.Join(t.TempDir(), "log")
					// Who does not wait for the end is there first.
					first := c.first(shell1(job.script() + gate.script() + strings.Repeat("/bin/true; ", 50) + "echo led >>" + log))
					steps := append([]*muxv1.Step{first}, c.more...)
					leader := d.send(t, leads(d.request(t, steps...), "one"), empty(steps)...)
					if err := job.begun(); err != nil {
						t.Fatal(err)
					}
					defer job.ended(t)
					if <-acquired; ended {
						gate.open(t)
						_, _ = leader.wait()
					}
					steps = []*muxv1.Step{c.then(shell1("echo followed >>" + log + "; echo it"))}
					if strings.HasPrefix(name, "in two parts") {
						steps = append(steps, withBody(shell1("cat")))
					}
					follower := d.send(t, follows(d.request(t, steps...), "one", c.deciding...), empty(steps)...)
					if <-acquired; !ended {
						gate.open(t)
					}
					if a, err := follower.wait(); kindOf(err) != c.want || (err == nil && strings.TrimSpace(a.stdout[0]) != "it") {
						t.Errorf("the follower: %v, %v", a.stdout, err)
					}
					want := map[fault.Kind]string{0: "led followed", fault.NotBegun: "led"}[c.want]
					if got := done(log); got != want {
						t.Errorf("done were %q, not %q", got, want)
					}
					if a, _ := leader.wait(); len(a.results) == 0 || a.results[0].GetRc() != 0 || strings.Contains(a.stdout[0], "it") {
						t.Errorf("the leader: %v", a)
					}
				})
			}
		}
	}
}

// On the target a leader, who follows it, and who follows that one cost one round trip, though each has a call of its own.
func TestFollowInOneRoundTrip(t *testing.T) {
	node := newAgentNode(t)
	d := start(t, node)
	gate, log := newGate(t), filepath.Join(t.TempDir(), "log")
	if err := node.Ping(t.Context()); err != nil { // the agent itself has left
		t.Fatal(err)
	}
	first := node.Stats()
	var all []*pending
	for i := range 3 {
		script := fmt.Sprintf("echo %d >>%s; echo %d", i, log, i)
		if i == 0 {
			script = gate.script() + script
		}
		in := leads(d.request(t, shell1(script), guarded(shell1("true"), 0, "0")), fmt.Sprint(i))
		if i > 0 {
			in = follows(in, fmt.Sprint(i-1), 1)
		}
		before := node.Stats()
		all = append(all, d.send(t, in))
		d.left(t, node, before, in.GetRun(), in.GetName())
	}
	gate.open(t)
	for i, p := range all {
		if a, err := p.wait(); err != nil || a.stdout[0] != fmt.Sprintf("%d\n", i) || len(a.results) != 2 {
			t.Errorf("%d: %v, %v", i, a, err)
		}
	}
	if got := done(log); got != "0 1 2" {
		t.Errorf("done were %q", got)
	}
	if trips := node.Stats().RoundTrips - first.RoundTrips; trips != 1 {
		t.Errorf("%d round trips", trips)
	}
}

// Whatever ends a leader ends with it what waits for it. What waits can be given up by itself.
func TestFollowEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end              func(d *daemon, run string, leader, follower *pending)
		leader, follower fault.Kind
		either           fault.Kind // the follower's too, whichever is first
	}{
		"leader cancelled":   {func(_ *daemon, _ string, leader, _ *pending) { leader.cancel() }, fault.Internal, fault.NotBegun, fault.NotBegun},
		"follower cancelled": {func(_ *daemon, _ string, _, follower *pending) { follower.cancel() }, 0, fault.Internal, fault.Internal},
		"run ended": {func(d *daemon, run string, _, _ *pending) {
			if _, err := d.runs.Detach(context.Background(), &muxv1.DetachRequest{Run: run}); err != nil {
				panic(err)
			}
		}, fault.Cancelled, fault.Cancelled, fault.NotBegun},
	} {
		for _, inAgent := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/in agent %v", name, inAgent), func(t *testing.T) {
				node := newAgentNode(t)
				d := start(t, node)
				acquired := make(chan struct{}, 2)
				d.tree.wait = func() { acquired <- struct{}{} }
				gate, job, log := newGate(t), newWitness(t), filepath.Join(t.TempDir(), "log")
				request, before := leads(d.request(t, shell1(job.script()+gate.script()+"true")), "one"), node.Stats()
				leader := d.send(t, request)
				if err := job.begun(); err != nil {
					t.Fatal(err)
				}
				<-acquired
				d.left(t, node, before, request.GetRun(), "one")
				then := []*muxv1.Step{shell1("echo followed >>" + log)}
				if !inAgent {
					then = append(then, withBody(shell1("cat"))) // so it is not one chain
				}
				before = node.Stats()
				follower := d.send(t, leads(follows(d.request(t, then...), "one", 0), "two"), empty(then)...)
				if <-acquired; inAgent {
					d.left(t, node, before, request.GetRun(), "two")
				}
				c.end(d, request.GetRun(), leader, follower)
				if _, err := follower.wait(); kindOf(err) != c.follower && kindOf(err) != c.either {
					t.Errorf("the follower: %v", err)
				}
				if c.leader == 0 {
					ctx := within(t)
					for node.state.held.Load() == 0 && ctx.Err() == nil { // the daemon has not heard of it
						runtime.Gosched()
					}
					if err := node.Ping(ctx); err != nil { // nor the agent
						t.Error(err)
					}
					gate.open(t)
				}
				if _, err := leader.wait(); kindOf(err) != c.leader {
					t.Errorf("the leader: %v", err)
				}
				job.ended(t)
				if err := node.Ping(within(t)); err != nil {
					t.Error(err)
				}
				if got := done(log); got != "" {
					t.Errorf("%q was done", got)
				}
			})
		}
	}
}

// Nothing is run of a request that follows what it cannot.
func TestFollowBad(t *testing.T) {
	d := start(t, newAgentNode(t))
	log := filepath.Join(t.TempDir(), "log")
	ask := func(name, leader string, steps ...uint32) error {
		_, err := d.ask(t, follows(leads(d.request(t, shell1("echo x >>"+log)), name), leader, steps...))
		return err
	}
	if _, err := d.ask(t, leads(d.request(t, shell1("true"), shell1("true")), "one")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		name, leader string
		steps        []uint32
		code         codes.Code
		kind         fault.Kind
	}{
		"unknown":         {"", "two", []uint32{0}, codes.FailedPrecondition, fault.NotBegun},
		"itself":          {"self", "self", []uint32{0}, codes.FailedPrecondition, fault.NotBegun},
		"no name":         {"", "", []uint32{0}, codes.FailedPrecondition, fault.NotBegun},
		"no step":         {"", "one", nil, codes.InvalidArgument, fault.Internal},
		"a step too many": {"", "one", []uint32{0, 2}, codes.InvalidArgument, fault.Internal},
		"same name":       {"one", "one", []uint32{0}, codes.InvalidArgument, fault.Internal},
		"long name":       {strings.Repeat("x", 1<<20), "one", []uint32{0}, codes.InvalidArgument, fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			if err := ask(c.name, c.leader, c.steps...); status.Code(err) != c.code || kindOf(err) != c.kind {
				t.Errorf("got %v", err)
			}
		})
	}
	if got := done(log); got != "" {
		t.Errorf("%q was done", got)
	}
	if err := ask("", "one", 1); err != nil {
		t.Errorf("what may be followed: %v", err)
	}
}

// Each of a run's threads has a connection of its own, and what was sent last may come first.
func TestFollowOneThatComesLater(t *testing.T) {
	d := start(t, newAgentNode(t))
	log := filepath.Join(t.TempDir(), "log")
	in := d.request(t, shell1("echo followed >>"+log))
	second := d.send(t, follows(in, "one", 0))
	for ctx := within(t); ; runtime.Gosched() {
		d.Server.runs.mu.Lock()
		waits := d.Server.runs.byID[in.GetRun()].leaders.came != nil
		d.Server.runs.mu.Unlock()
		if waits {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("it does not wait")
		}
	}
	if _, err := d.ask(t, leads(d.request(t, shell1("echo led >>"+log)), "one")); err != nil {
		t.Fatal(err)
	}
	if _, err := second.wait(); err != nil {
		t.Fatal(err)
	}
	if got := done(log); got != "led followed" {
		t.Errorf("%q was done", got)
	}
}

// Who is asked to send a request again, because something was wanted and nothing has been run, sends it with its name.
func TestFollowOneThatIsSentAgain(t *testing.T) {
	d := start(t, newAgentNode(t))
	log := filepath.Join(t.TempDir(), "log")
	if _, err := d.ask(t, leads(d.request(t, shell1("true")), "another")); err != nil {
		t.Fatal(err)
	}
	for i, want := range []fault.Kind{fault.LocalAgentWanted, fault.LocalAgentWanted, 0, fault.Internal} {
		d.tree.err = nil
		if want == fault.LocalAgentWanted {
			d.tree.err = &fault.Error{Kind: want}
		}
		if _, err := d.ask(t, leads(d.request(t, shell1("echo led >>"+log)), "one")); kindOf(err) != want {
			t.Errorf("%d: %v", i, err)
		}
	}
	for _, name := range []string{"one", "another"} {
		if _, err := d.ask(t, follows(d.request(t, shell1("echo followed >>"+log)), name, 0)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := done(log); got != "led followed followed" {
		t.Errorf("done were %q", got)
	}
}

// Of the requests with a name the latest are known.
func TestFollowTheLatest(t *testing.T) {
	d := start(t, newBareNode())
	run := d.attach(t)
	for i := range maxLeaders + 1 {
		if i == 2 { // of no account
			if _, err := d.ask(t, leads(d.request(t, missing()), "failed")); kindOf(err) != fault.FileNotFound {
				t.Fatal(err)
			}
		}
		if _, err := d.ask(t, &muxv1.Request{Run: run, Host: "web1", Path: sshPath(), Name: fmt.Sprint(i), Steps: []*muxv1.Step{ticket1("web1")}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]fault.Kind{"0": fault.NotBegun, "1": 0, fmt.Sprint(maxLeaders): 0} {
		if _, err := d.ask(t, follows(d.request(t, shell1("true")), name, 0)); kindOf(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
