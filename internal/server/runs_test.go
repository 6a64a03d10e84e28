package server

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

func TestAttach(t *testing.T) {
	d := start(t, newBareNode())
	p, end := child(t)
	in := &muxv1.AttachRequest{
		Pid: uint32(p.pid), StartTime: p.start, User: "it's me@$host", Cwd: "/tmp", CoreVersion: "2.21.5", MaxInterpreters: 3,
		Environ:        []*muxv1.Variable{{Name: []byte("HOME"), Value: []byte("/root")}},
		PersistSeconds: proto.Uint32(0), PersistBecome: proto.Bool(false),
	}
	reply, err := d.runs.Attach(within(t), in)
	if err != nil {
		t.Fatal(err)
	}
	want := &muxv1.AttachReply{
		Run: reply.GetRun(), Version: "v1", DaemonPid: uint32(os.Getpid()), Stage1: "stage 1", Stage1Local: "stage 1 local", AgentSocket: "/the/socket",
		AgentName: "mitogen-mux: it_s_me@_host",
	}
	if len(reply.GetRun()) < 16 || !proto.Equal(reply, want) {
		t.Errorf("got %v", reply)
	}
	again, err := d.runs.Attach(within(t), in)
	if err != nil || again.GetRun() != reply.GetRun() {
		t.Errorf("again: %v, %v", again, err)
	}
	run, err := d.Server.runs.lookUp(reply.GetRun())
	if err != nil || !slices.Equal(run.Environ, []string{"HOME=/root"}) || run.Cwd != "/tmp" || run.PersistFor != 0 || run.PersistBecome || run.MaxInterp != 3 {
		t.Errorf("dials are told %+v, %v", run, err)
	}
	in.PersistSeconds, in.PersistBecome = nil, nil
	if _, err := d.runs.Attach(within(t), in); err != nil {
		t.Fatal(err)
	}
	if run, _ := d.Server.runs.lookUp(reply.GetRun()); run.PersistFor != 60 || !run.PersistBecome || run.ID != reply.GetRun() {
		t.Errorf("by default dials are told %+v", run)
	}
	if !d.Busy() {
		t.Error("not busy with a run")
	}
	end()
	<-d.tree.endings
	if got := d.tree.endedRuns(); !slices.Equal(got, []string{reply.GetRun()}) || d.Busy() {
		t.Errorf("ended %v, busy %v", got, d.Busy())
	}
	if _, err := d.runs.Attach(within(t), in); status.Code(err) != codes.InvalidArgument {
		t.Errorf("attaching what is gone: %v", err)
	}
}

// A run's requests end with its process.
func TestRunEndsWithItsProcess(t *testing.T) {
	d := start(t, newAgentNode(t))
	p, end := child(t)
	reply, err := d.runs.Attach(within(t), &muxv1.AttachRequest{Pid: uint32(p.pid), StartTime: p.start})
	if err != nil {
		t.Fatal(err)
	}
	job := newWitness(t)
	request := &muxv1.Request{Run: reply.GetRun(), Host: "web1", Path: sshPath(), Steps: []*muxv1.Step{shell1(job.script() + "exec sleep 600")}}
	failed := make(chan error, 1)
	go func() {
		_, err := d.ask(t, request)
		failed <- err
	}()
	if err := job.begun(); err != nil {
		t.Fatal(err)
	}
	info, err := d.status.Get(within(t), &muxv1.GetStatusRequest{})
	if err != nil || len(info.GetRuns()) != 1 || info.GetRuns()[0].GetRequests() != 1 || info.GetRuns()[0].GetPid() != uint32(p.pid) {
		t.Errorf("%v, %v", info.GetRuns(), err)
	}
	end()
	if e := FaultOf(<-failed); e.Kind != fault.Cancelled || !strings.Contains(e.Message, "its process has ended") {
		t.Errorf("got %v", e)
	}
	job.ended(t)
	if _, err := d.ask(t, request); FaultOf(err).Kind != fault.RunUnknown {
		t.Errorf("a request of a run that has ended: %v", err)
	}
}

func TestDetach(t *testing.T) {
	d := start(t, newBareNode())
	run := d.attach(t)
	for range 2 {
		if _, err := d.runs.Detach(within(t), &muxv1.DetachRequest{Run: run}); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.tree.endedRuns(); !slices.Equal(got, []string{run}) {
		t.Errorf("ended %v", got)
	}
	if again := d.attach(t); again == run {
		t.Error("a run came back to life")
	}
}

func TestReset(t *testing.T) {
	d := start(t, newBareNode())
	run := d.attach(t)
	if _, err := d.runs.Reset(within(t), &muxv1.ResetRequest{Run: run, Host: "web1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.runs.Reset(within(t), &muxv1.ResetRequest{Run: run, Host: "web1", Path: sshPath()}); err != nil {
		t.Fatal(err)
	}
	if r := d.tree.resets; len(r) != 2 || r[0].run.ID != run || r[0].host != "web1" || r[0].path != nil || r[1].path[0].SSH.Host != "h1" {
		t.Errorf("resets %+v", r)
	}
	if _, err := d.runs.Reset(within(t), &muxv1.ResetRequest{Run: run, Host: "web1", Account: "app"}); err != nil {
		t.Fatal(err)
	}
	if v := d.tree.vacated; len(v) != 1 || v[0] != run+" web1 app" || len(d.tree.resets) != 2 {
		t.Errorf("vacated %q", v)
	}
	if _, err := d.runs.Reset(within(t), &muxv1.ResetRequest{Run: "none"}); FaultOf(err).Kind != fault.RunUnknown {
		t.Errorf("of no run: %v", err)
	}
	bad := &muxv1.Path{Hops: []*muxv1.Hop{{}}}
	if _, err := d.runs.Reset(within(t), &muxv1.ResetRequest{Run: run, Path: bad}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("of a bad path: %v", err)
	}
}

func TestRelease(t *testing.T) {
	d := start(t, newBareNode())
	run := d.attach(t)
	if _, err := d.runs.Release(within(t), &muxv1.ReleaseRequest{Run: run, Hosts: []string{"web1", "web2"}}); err != nil {
		t.Fatal(err)
	}
	if r := d.tree.released; !slices.Equal(r, []string{run + " web1,web2"}) {
		t.Errorf("released %q", r)
	}
	if _, err := d.runs.Release(within(t), &muxv1.ReleaseRequest{Run: "none"}); FaultOf(err).Kind != fault.RunUnknown {
		t.Errorf("of no run: %v", err)
	}
}

func isStopped(d *daemon) bool {
	select {
	case <-d.stopped:
		return true
	default:
		return false
	}
}

func TestStop(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		d := start(t, newBareNode())
		if _, err := d.status.Stop(within(t), &muxv1.StopRequest{}); err != nil || !isStopped(d) {
			t.Errorf("%v, stopped %v", err, isStopped(d))
		}
		_, err := d.runs.Attach(within(t), &muxv1.AttachRequest{Pid: uint32(os.Getpid())})
		if FaultOf(err).Kind != fault.Draining {
			t.Errorf("a new run: %v", err)
		}
		_, err = d.ask(t, &muxv1.Request{Run: "none"})
		if FaultOf(err).Kind != fault.Draining {
			t.Errorf("a request: %v", err)
		}
	})
	t.Run("with a run", func(t *testing.T) {
		d := start(t, newBareNode())
		run := d.attach(t)
		_, err := d.status.Stop(within(t), &muxv1.StopRequest{})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(FaultOf(err).Message, "1 run is attached") || isStopped(d) {
			t.Errorf("%v, stopped %v", err, isStopped(d))
		}
		if info, err := d.status.Get(within(t), &muxv1.GetStatusRequest{}); err != nil || !info.GetDraining() {
			t.Errorf("%v, %v", info, err)
		}
		if a, err := d.ask(t, d.request(t, shell1("echo on"))); err != nil || a.stdout[0] != "on\n" {
			t.Errorf("the run goes on: %v", err)
		}
		if _, err := d.runs.Detach(within(t), &muxv1.DetachRequest{Run: run}); err != nil || !isStopped(d) {
			t.Errorf("after the last run: %v, stopped %v", err, isStopped(d))
		}
	})
	t.Run("forced", func(t *testing.T) {
		d := start(t, newBareNode())
		request := d.request(t, shell1("true"))
		for range 2 {
			if _, err := d.status.Stop(within(t), &muxv1.StopRequest{Force: true}); err != nil || !isStopped(d) {
				t.Errorf("%v, stopped %v", err, isStopped(d))
			}
		}
		if _, err := d.ask(t, request); FaultOf(err).Kind != fault.Draining {
			t.Errorf("a request afterwards: %v", err)
		}
	})
}

// Close lets a request under way end, or ends it when the time is over.
func TestClose(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		grace  bool
		code   codes.Code
	}{
		"waits":    {"read x <GO; echo $x", true, codes.OK},
		"does not": {"exec sleep 600", false, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, newAgentNode(t))
			job, goOn := newWitness(t), newWitness(t)
			request := d.request(t, shell1(job.script()+strings.ReplaceAll(c.script, "GO", goOn.path)))
			failed := make(chan error, 1)
			go func() {
				_, err := d.ask(t, request)
				failed <- err
			}()
			if err := job.begun(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(within(t))
			if !c.grace {
				cancel(errors.New("now"))
			}
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				d.Close(ctx)
			}()
			if c.grace {
				for !d.Server.runs.isStopping() {
					runtime.Gosched()
				}
				if err := os.WriteFile(goOn.path, []byte("on\n"), 0); err != nil {
					t.Fatal(err)
				}
			}
			<-closed
			cancel(nil)
			if err := <-failed; status.Code(err) != c.code {
				t.Errorf("got %v", err)
			}
			job.ended(t)
			if len(d.tree.endedRuns()) != 1 || d.Busy() {
				t.Errorf("ended %v, busy %v", d.tree.endedRuns(), d.Busy())
			}
		})
	}
}

func TestStatus(t *testing.T) {
	d := start(t, newBareNode())
	since := time.Unix(1_700_000_000, 0)
	d.tree.nodes = []mux.NodeInfo{
		{ID: 1, Name: "ssh h1", State: mux.Ready, Hosts: []string{"web1"}},
		{ID: 2, Parent: 1, Name: "sudo root", State: mux.Ready, Jobs: 1, Python: "3.11.2", BlobBytes: 5, SentBytes: 6, ReceivedBytes: 7, RoundTrips: 8, IdleSince: since},
	}
	got, err := d.status.Get(within(t), &muxv1.GetStatusRequest{Stacks: true})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetVersion() != "v1" || got.GetPid() != uint32(os.Getpid()) || got.GetStartedUnix() == 0 || got.GetCounters().GetDials() != 7 ||
		got.GetCounters().GetGoroutines() == 0 || !strings.Contains(got.GetStacks(), "goroutine") {
		t.Errorf("got %v", got)
	}
	want := []*muxv1.GetStatusReply_Node{
		{Id: "1", Name: "ssh h1", State: muxv1.NodeState_READY, Hosts: []string{"web1"}},
		{
			Id: "2", Parent: "1", Name: "sudo root", State: muxv1.NodeState_READY, Jobs: 1, Python: "3.11.2", BlobsBytes: 5, SentBytes: 6,
			ReceivedBytes: 7, RoundTrips: 8, IdleSinceUnix: since.Unix(),
		},
	}
	for i, n := range got.GetNodes() {
		if !proto.Equal(n, want[i]) {
			t.Errorf("node %v, want %v", n, want[i])
		}
	}
}

// The states of a node have one set of names and numbers.
func TestNodeStates(t *testing.T) {
	for number, name := range muxv1.NodeState_name {
		if number == 0 {
			continue
		}
		if got := mux.State(number).String(); !strings.EqualFold(got, name) {
			t.Errorf("state %d is %s in the tree, %s in the .proto", number, got, name)
		}
	}
}

func (r *registry) isStopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopping
}
