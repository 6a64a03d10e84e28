package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// tinyFiles are a payload whose module prints its parameters.
var tinyFiles = []struct{ path, content string }{
	{"ansible/__init__.py", ""},
	{"ansible/module_utils/__init__.py", ""},
	{"ansible/module_utils/basic.py", "_ANSIBLE_ARGS = None\n"},
	{"ansible/modules/__init__.py", ""},
	{"ansible/modules/tiny.py", "from ansible.module_utils import basic\nprint(basic._ANSIBLE_ARGS.decode())\nraise SystemExit(0)\n"},
}

// upload offers the payload and brings what is missing; it returns how much that was.
func (d *daemon) upload(t *testing.T, key string, inputs ...*muxv1.OfferRequest_Input) int {
	t.Helper()
	manifest := &muxv1.Manifest{Module: "ansible.modules.tiny"}
	blobs := map[[32]byte]string{}
	for _, f := range tinyFiles {
		sum := sha256.Sum256([]byte(f.content))
		blobs[sum] = f.content
		manifest.Entries = append(manifest.Entries, &muxv1.Manifest_Entry{Path: f.path, Sha256: sum[:], Size: uint64(len(f.content))})
	}
	offer, err := d.files.Offer(within(t), &muxv1.OfferRequest{Payload: []byte(key), Manifest: manifest, Inputs: inputs})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := d.files.Upload(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, missing := range offer.GetMissing() {
		content := blobs[[32]byte(missing)]
		half := len(content) / 2
		for i, part := range []string{content[:half], content[half:]} {
			if err := stream.Send(&muxv1.Blob{Sha256: missing, Data: []byte(part), Last: i == 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	return len(offer.GetMissing())
}

func tiny(params string, guards ...*muxv1.Guard) *muxv1.Step {
	module := &muxv1.Module{Payload: []byte("tiny"), Params: []byte(params), Name: "tiny"}
	return &muxv1.Step{Action: &muxv1.Step_Module{Module: module}, Guards: guards}
}

func TestModule(t *testing.T) {
	node := newAgentNode(t)
	d := start(t, node)
	marker := filepath.Join(t.TempDir(), "shadow.py")
	request := d.request(t, shell1("echo ran >"+marker), tiny(`{"a": 1}`))
	_, err := d.ask(t, request)
	if e := FaultOf(err); e.Kind != fault.PayloadWanted || e.Step != 1 || status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a step was run although a later one's payload was wanted")
	}
	_ = os.Remove(marker)
	if n := d.upload(t, "tiny", &muxv1.OfferRequest_Input{Path: marker, Absent: true}); n != 3 {
		t.Errorf("%d blobs were missing", n)
	}
	request.Steps = request.GetSteps()[1:]
	for range 2 {
		a, err := d.ask(t, request)
		if err != nil {
			t.Fatal(err)
		}
		if a.stdout[0] != "{\"a\": 1}\n" || a.results[0].GetRc() != 0 || a.results[0].GetSkipped() {
			t.Errorf("got %v", a.results)
		}
		if spans := a.results[0].GetSpans(); spans.GetFork() == 0 || spans.GetModule() == 0 || spans.GetWire() == 0 {
			t.Errorf("spans %v", spans)
		}
	}
	if n := d.upload(t, "tiny", &muxv1.OfferRequest_Input{Path: marker, Absent: true}); n != 0 {
		t.Errorf("%d blobs were missing the second time", n)
	}
	for _, change := range []func() error{func() error { return nil }, func() error { return os.WriteFile(marker, nil, 0o600) }} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ask(t, request); err != nil {
			t.Errorf("the run does not go on with what it has: %v", err)
		}
	}
	p, end := child(t)
	defer end()
	other, err := d.runs.Attach(within(t), &muxv1.AttachRequest{Pid: uint32(p.pid), StartTime: p.start})
	if err != nil {
		t.Fatal(err)
	}
	request.Run = other.GetRun()
	if _, err := d.ask(t, request); FaultOf(err).Kind != fault.PayloadWanted {
		t.Errorf("after an input has changed another run got %v", err)
	}
	if node.state.held.Load() != -4 {
		t.Errorf("the node was given back %d times", -node.state.held.Load())
	}
}

// TestStaleAgent: a module that a stale agent refuses is run by the next one, and an agent that is always stale is an error.
func TestStaleAgent(t *testing.T) {
	for times, want := range map[int]fault.Kind{1: 0, 3: 0, 4: fault.Internal} {
		node := &agentNode{bareNode: newBareNode()}
		refused := 0
		node.Link = agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
			f.Boot()
			for {
				frame := f.Next()
				if frame.Type == agent.TypeEnd { // of the blobs
					f.Result(frame.Stream, agent.Result{})
				}
				if frame.Type != agent.TypeOpen {
					continue
				}
				r, err := agent.DecodeRequest(frame.Payload)
				if err != nil {
					t.Error(err)
				}
				if c, ok := r.(agent.Chained); ok {
					if r = c.Request; c.Index > 0 { // its guard would say no
						f.Result(frame.Stream, agent.Result{Failed: true, Failure: agent.FailSkipped})
						continue
					}
				}
				if _, ok := r.(agent.Module); !ok {
					continue
				}
				if refused++; refused <= times {
					f.Result(frame.Stream, agent.Result{Failed: true, Failure: agent.FailStale, Text: "/etc/environment"})
				} else {
					f.Result(frame.Stream, agent.Result{ExitCode: 7})
				}
			}
		})
		d := start(t, node)
		d.upload(t, "tiny")
		a, err := d.ask(t, d.request(t, tiny("{}"), tiny("{}", &muxv1.Guard{Field: "rc", Value: "1"})))
		if e := FaultOf(err); (want == 0) != (err == nil) || (err != nil && e.Kind != want) {
			t.Errorf("stale %d times: %v", times, err)
		}
		if err == nil && a.results[0].GetRc() != 7 {
			t.Errorf("stale %d times: %v", times, a.results)
		}
		if n := int(node.state.retired.Load()); n != min(times, 3) {
			t.Errorf("stale %d times: %d agents were retired", times, n)
		}
	}
}

// Parameters that do not fit into a frame.
func TestModuleWithLargeParams(t *testing.T) {
	d := start(t, newAgentNode(t))
	d.upload(t, "tiny")
	params := `{"a": "` + strings.Repeat("x", 1<<20) + `"}`
	a, err := d.ask(t, d.request(t, tiny(params)))
	if err != nil || a.stdout[0] != params+"\n" {
		t.Errorf("%d bytes came back, %v", len(a.stdout[0]), err)
	}
}

func TestCommand(t *testing.T) {
	for name, node := range map[string]Node{"agent": newAgentNode(t), "no agent": newBareNode()} {
		t.Run(name, func(t *testing.T) {
			d := start(t, node)
			command := shell1("cat; echo err >&2; exit 300")
			command.GetCommand().HasBody = true
			a, err := d.ask(t, d.request(t, command), &muxv1.Body{Data: []byte("in ")}, &muxv1.Body{}, &muxv1.Body{Data: []byte("put"), Last: true})
			if err != nil || a.stdout[0] != "in put" || a.stderr[0] != "err\n" || a.results[0].GetRc() != 300&0xff {
				t.Errorf("got %v, %v", a.results, err)
			}
			if got := d.tree.acquired[0]; got.host != "web1" || got.path[0].SSH.Host != "h1" || got.run.ID == "" || got.run.AgentName != "mitogen-mux: me@here" {
				t.Errorf("asked the tree for %+v", got)
			}
		})
	}
}

// Ten megabytes of stdin, and as much output.
func TestStdin(t *testing.T) {
	for name, node := range map[string]Node{"agent": newAgentNode(t), "no agent": newBareNode()} {
		t.Run(name, func(t *testing.T) {
			d := start(t, node)
			command := shell1("cat")
			command.GetCommand().HasBody = true
			var bodies []*muxv1.Body
			want := &bytes.Buffer{}
			for i := range 80 {
				part := bytes.Repeat([]byte{byte(i)}, maxBodyPart)
				want.Write(part)
				bodies = append(bodies, &muxv1.Body{Data: part, Last: i == 79})
			}
			a, err := d.ask(t, d.request(t, command), bodies...)
			if err != nil || a.stdout[0] != want.String() {
				t.Errorf("%d bytes came back, %v", len(a.stdout[0]), err)
			}
		})
	}
}

// A step that does not read its input does not hold up the next one.
func TestStdinThatIsLeft(t *testing.T) {
	d := start(t, newAgentNode(t))
	left, skipped, read := shell1("exit 1"), shell1("cat"), shell1("cat")
	for _, s := range []*muxv1.Step{left, skipped, read} {
		s.GetCommand().HasBody = true
	}
	skipped.Guards = []*muxv1.Guard{{Field: "rc", Value: "0"}}
	var bodies []*muxv1.Body
	for step := range uint32(3) {
		for i := range 20 {
			bodies = append(bodies, &muxv1.Body{Step: step, Data: bytes.Repeat([]byte{'a' + byte(step)}, 100_000), Last: i == 19})
		}
	}
	a, err := d.ask(t, d.request(t, left, skipped, read), bodies...)
	if err != nil || a.stdout[2] != strings.Repeat("c", 2_000_000) || !a.results[1].GetSkipped() {
		t.Errorf("%d bytes came back, %v", len(a.stdout[2]), err)
	}
}

func TestBadBodies(t *testing.T) {
	d := start(t, newAgentNode(t))
	first, second := shell1("cat"), shell1("cat")
	first.GetCommand().HasBody, second.GetCommand().HasBody = true, true
	request := d.request(t, first, second)
	for name, bodies := range map[string][]*muxv1.Body{
		"none":        nil,
		"ends early":  {{Data: []byte("x")}},
		"wrong order": {{Data: []byte("x")}, {Step: 1, Data: []byte("y"), Last: true}},
		"large":       {{Data: make([]byte, maxBodyPart+1), Last: true}},
	} {
		if _, err := d.ask(t, request, bodies...); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	stream, err := d.jobs.Run(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stream.Send(&muxv1.RunRequest{Part: &muxv1.RunRequest_Request{Request: request}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a second request: %v", err)
	}
}

// Two hundred megabytes of output need memory for a few windows.
func TestOutputInBoundedMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("200 MB: not with -short")
	}
	d := start(t, newAgentNode(t))
	stream, err := d.jobs.Run(within(t))
	if err != nil {
		t.Fatal(err)
	}
	const size = 200 << 20
	request := d.request(t, shell1("head -c 209715200 /dev/zero"))
	if err := stream.Send(&muxv1.RunRequest{Part: &muxv1.RunRequest_Request{Request: request}}); err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	got, largest, most := 0, 0, uint64(0)
	for i := 0; ; i++ {
		reply, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		n := len(reply.GetOutput().GetStdout()) + len(reply.GetResult().GetStdout())
		got, largest = got+n, max(largest, n)
		if i%200 == 0 {
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
		if reply.GetResult() != nil {
			break
		}
	}
	if got != size || largest > 256<<10 {
		t.Errorf("%d bytes came, %d at a time", got, largest)
	}
	if grown := int64(most) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// Whatever ends the client's interest ends the job.
func TestCancel(t *testing.T) {
	for nodeName, node := range map[string]Node{"agent": newAgentNode(t), "no agent": newBareNode()} {
		for name, c := range map[string]struct {
			end  func(d *daemon, run string, cancel context.CancelCauseFunc)
			code codes.Code
			kind fault.Kind // of the server's word, if it gets through
		}{
			"client": {func(_ *daemon, _ string, cancel context.CancelCauseFunc) { cancel(nil) }, codes.Canceled, fault.Internal},
			"detach": {func(d *daemon, run string, _ context.CancelCauseFunc) {
				if _, err := d.runs.Detach(context.Background(), &muxv1.DetachRequest{Run: run}); err != nil {
					panic(err)
				}
			}, codes.Canceled, fault.Cancelled},
		} {
			t.Run(nodeName+"/"+name, func(t *testing.T) {
				d := start(t, node)
				job, second := newWitness(t), filepath.Join(t.TempDir(), "second")
				ctx, cancel := context.WithCancelCause(within(t))
				defer cancel(nil)
				stream, err := d.jobs.Run(ctx)
				if err != nil {
					t.Fatal(err)
				}
				request := d.request(t, shell1(job.script()+"exec sleep 600"), shell1("echo >"+second))
				if err := stream.Send(&muxv1.RunRequest{Part: &muxv1.RunRequest_Request{Request: request}}); err != nil {
					t.Fatal(err)
				}
				if err := job.begun(); err != nil {
					t.Fatal(err)
				}
				c.end(d, request.GetRun(), cancel)
				_, err = stream.Recv()
				if status.Code(err) != c.code || FaultOf(err).Kind != c.kind {
					t.Errorf("got %v", err)
				}
				job.ended(t)
				if _, err := os.Stat(second); err == nil {
					t.Error("the next step was run")
				}
			})
		}
	}
}

func TestDeadline(t *testing.T) {
	d := start(t, newAgentNode(t))
	job := newWitness(t)
	begun := make(chan error, 1)
	go func() { begun <- job.begun() }()
	request := d.request(t, shell1(job.script()+"exec sleep 600"))
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, nil)
	defer cancel()
	stream, err := d.jobs.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gather(t, stream, request, nil); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	// On a machine so slow that the job had not begun nobody else opens the FIFO.
	if file, err := os.OpenFile(job.path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
		_ = file.Close()
	}
	if err := <-begun; err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	job.ended(t)
}

func TestGuards(t *testing.T) {
	d := start(t, newAgentNode(t))
	d.upload(t, "tiny")
	ok, no := shell1("echo ok"), shell1("echo no; exit 4")
	missing := &muxv1.Step{Action: &muxv1.Step_Get{Get: &muxv1.Get{Source: []byte("/none"), Path: filepath.Join(t.TempDir(), "none")}}}
	guarded := func(step uint32, field, value string, unequal bool) *muxv1.Step {
		s := shell1("echo guarded")
		s.Guards = []*muxv1.Guard{{Step: step, Field: field, Value: value, Unequal: unequal}}
		return s
	}
	both := func(one uint32, rc string, other uint32, otherRC string) *muxv1.Step {
		s := guarded(one, "rc", rc, false)
		s.Guards = append(s.Guards, &muxv1.Guard{Step: other, Field: "rc", Value: otherRC})
		return s
	}
	big := `{"a": "` + strings.Repeat("x", 2<<20) + `", "b": 1}`
	for name, c := range map[string]struct {
		steps []*muxv1.Step
		want  string // of each step that gave a result: r run, s skipped
		err   fault.Kind
		step  int
	}{
		"none":                       {[]*muxv1.Step{ok, no, ok}, "rrr", 0, 0},
		"rc equal":                   {[]*muxv1.Step{no, guarded(0, "rc", "4", false)}, "rr", 0, 0},
		"rc not equal":               {[]*muxv1.Step{no, guarded(0, "rc", "4", true), ok}, "rsr", 0, 0},
		"field equal":                {[]*muxv1.Step{tiny(`{"a": {"b": "x"}}`), guarded(0, "a.b", `"x"`, false)}, "rr", 0, 0},
		"field not equal":            {[]*muxv1.Step{tiny(`{"a": {"b": "x"}}`), guarded(0, "a.b", `"y"`, false)}, "rs", 0, 0},
		"field missing":              {[]*muxv1.Step{tiny(`{"a": 1}`), guarded(0, "b", `1`, true)}, "rr", 0, 0},
		"no object":                  {[]*muxv1.Step{ok, guarded(0, "a", `1`, true), guarded(0, "a", `1`, false)}, "rss", 0, 0},
		"too much output":            {[]*muxv1.Step{tiny(big), guarded(0, "b", `1`, false)}, "rs", 0, 0},
		"earlier, not last":          {[]*muxv1.Step{no, ok, guarded(0, "rc", "4", false)}, "rrr", 0, 0},
		"on a skipped one":           {[]*muxv1.Step{no, guarded(0, "rc", "0", false), guarded(1, "rc", "0", false), guarded(1, "rc", "0", true)}, "rsss", 0, 0},
		"two, one says no":           {[]*muxv1.Step{no, ok, both(0, "4", 1, "1")}, "rrs", 0, 0},
		"two, both say yes":          {[]*muxv1.Step{no, ok, both(0, "4", 1, "0")}, "rrr", 0, 0},
		"two, the first says no":     {[]*muxv1.Step{no, ok, both(0, "0", 1, "0")}, "rrs", 0, 0},
		"module":                     {[]*muxv1.Step{ok, tiny("{}", &muxv1.Guard{Field: "rc", Value: "0"})}, "rr", 0, 0},
		"error":                      {[]*muxv1.Step{ok, missing, ok}, "r", fault.FileNotFound, 1},
		"guarded after an error":     {[]*muxv1.Step{no, missing, ok, guarded(0, "rc", "4", false)}, "rr", fault.FileNotFound, 1},
		"on the step with the error": {[]*muxv1.Step{missing, guarded(0, "rc", "0", true)}, "", fault.FileNotFound, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := d.ask(t, d.request(t, c.steps...))
			got := ""
			for _, r := range a.results {
				got += map[bool]string{false: "r", true: "s"}[r.GetSkipped()]
			}
			if got != c.want {
				t.Errorf("steps %q, want %q", got, c.want)
			}
			if e := FaultOf(err); c.err == 0 && err != nil || c.err != 0 && (e == nil || e.Kind != c.err || e.Step != c.step) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// What the tree says reaches the client, and nothing is run.
func TestTreeErrors(t *testing.T) {
	for _, want := range []*fault.Error{
		{Kind: fault.LocalAgentWanted, HopName: "local", Message: "start it", Token: []byte("token")},
		{Kind: fault.Unreachable, HopName: "ssh h", Message: "refused", Hint: "look", Stderr: "words"},
		{Kind: fault.BecomePasswordWrong, Hop: 1, HopName: "sudo root", Message: "wrong"},
	} {
		d := start(t, nil)
		d.tree.err = want
		a, err := d.ask(t, d.request(t, shell1("true")))
		got := FaultOf(err)
		if got.Kind != want.Kind || got.HopName != want.HopName || got.Hop != want.Hop || !bytes.Equal(got.Token, want.Token) || got.Hint != want.Hint || len(a.results) != 0 {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// What an agent logs reaches the request, cleaned; a client that does not read loses some but blocks nobody.
func TestLogs(t *testing.T) {
	node := newAgentNode(t)
	d := start(t, node)
	node.state.onLog = func() {
		node.state.say(agent.LogWarning, "careful \x1b[31m!")
		node.state.say(99, "odd")
		for range maxLogs {
			node.state.say(agent.LogVVV, "chatter")
		}
	}
	a, err := d.ask(t, d.request(t, shell1("true")))
	if err != nil || len(a.logs) != maxLogs+1 {
		t.Fatalf("%d events, %v", len(a.logs), err)
	}
	for i, want := range map[int]*muxv1.Log{
		0: {Level: muxv1.Log_WARNING, Host: "web1", Text: "careful !"}, 1: {Level: muxv1.Log_VVVV, Host: "web1", Text: "odd"},
		2: {Level: muxv1.Log_VVV, Host: "web1", Text: "chatter"}, maxLogs: {Level: muxv1.Log_WARNING, Host: "web1", Text: "more was logged than this run has read"},
	} {
		if !proto.Equal(a.logs[i], want) {
			t.Errorf("event %d: %v", i, a.logs[i])
		}
	}
}

// Requests of one run are served at the same time.
func TestConcurrentRequests(t *testing.T) {
	d := start(t, newAgentNode(t))
	d.upload(t, "tiny")
	request := d.request(t, tiny(`{"a": 1}`), shell1("cat /dev/null; echo x"))
	var bad atomic.Int32
	done := make(chan struct{})
	for range 20 {
		go func() {
			defer func() { done <- struct{}{} }()
			a, err := d.ask(t, request)
			if err != nil || a.stdout[0] != "{\"a\": 1}\n" || a.stdout[1] != "x\n" {
				bad.Add(1)
			}
		}()
	}
	for range 20 {
		<-done
	}
	if bad.Load() != 0 {
		t.Errorf("%d of 20 requests failed", bad.Load())
	}
	reply, err := d.status.Get(within(t), &muxv1.GetStatusRequest{})
	if err != nil || reply.GetCounters().GetJobs() != 40 {
		t.Errorf("%v, %v", reply.GetCounters(), err)
	}
}

// A request whose agent dies says so, and at which hop.
func TestAgentDies(t *testing.T) {
	node := newAgentNode(t)
	d := start(t, node)
	step := shell1("kill -9 $PPID; sleep 600")
	_, err := d.ask(t, d.request(t, step, shell1("true")))
	if e := FaultOf(err); e.Kind != fault.AgentDied || e.HopName != "ssh deploy@h1:22" || status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestParamsAreJSONOnItsWay(t *testing.T) {
	d := start(t, newAgentNode(t))
	d.upload(t, "tiny")
	params, err := json.Marshal(map[string]string{"é": "\u2028\x00"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.ask(t, d.request(t, tiny(string(params))))
	if err != nil || a.stdout[0] != string(params)+"\n" {
		t.Errorf("%q, %v", a.stdout[0], err)
	}
}

// How many interpreters the target may have is the run's, or the request's own.
func TestInterpretersOfATarget(t *testing.T) {
	d := start(t, newBareNode())
	request := d.request(t, shell1("true"))
	for i, most := range []uint32{0, 7} {
		request.Path.MaxInterpreters = most
		if _, err := d.ask(t, request); err != nil {
			t.Fatal(err)
		}
		if got := d.tree.acquired[i].run.MaxInterp; got != int(most) {
			t.Errorf("%d where the request has %d", got, most)
		}
	}
}
