package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

func ticket1(host string) *muxv1.Step {
	return &muxv1.Step{Action: &muxv1.Step_Ticket{Ticket: &muxv1.Ticket{Shell: [][]byte{[]byte("/bin/sh"), []byte("-c")}, Host: host}}}
}

// ticket gets one for a host of a run.
func (d *daemon) ticket(t *testing.T, run, host string) string {
	t.Helper()
	a, err := d.ask(t, &muxv1.Request{Run: run, Host: "h1", Path: sshPath(), Steps: []*muxv1.Step{ticket1(host)}})
	if err != nil {
		t.Fatal(err)
	}
	return a.stdout[0]
}

func starting(ticket, host, command string) *muxv1.ExecRequest {
	return &muxv1.ExecRequest{Part: &muxv1.ExecRequest_Start_{Start: &muxv1.ExecRequest_Start{Ticket: ticket, Host: host, Command: []byte(command)}}}
}

func stdin(data []byte) *muxv1.ExecRequest {
	return &muxv1.ExecRequest{Part: &muxv1.ExecRequest_Stdin{Stdin: data}}
}

// execution is a command that runs.
type execution struct {
	muxv1.Jobs_ExecClient
	stdout, stderr bytes.Buffer
}

func (d *daemon) exec(ctx context.Context, t *testing.T, first *muxv1.ExecRequest) *execution {
	t.Helper()
	stream, err := d.jobs.Exec(ctx)
	if err == nil && first != nil {
		err = stream.Send(first)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &execution{Jobs_ExecClient: stream}
}

// next takes another message.
func (e *execution) next() (*muxv1.ExecReply, error) {
	reply, err := e.Recv()
	e.stdout.Write(reply.GetStdout())
	e.stderr.Write(reply.GetStderr())
	return reply, err
}

// wait returns the exit code; the call is over then.
func (e *execution) wait() (int, error) {
	for {
		reply, err := e.next()
		if err != nil {
			return -1, err
		}
		if reply.Rc == nil {
			continue
		}
		if _, err := e.Recv(); !errors.Is(err, io.EOF) {
			return -1, errors.Join(errors.New("there is something behind the exit code"), err)
		}
		return int(reply.GetRc()), nil
	}
}

func bothNodes(t *testing.T) map[string]Node {
	t.Helper()
	return map[string]Node{"agent": newAgentNode(t), "no agent": newBareNode()}
}

func TestExec(t *testing.T) {
	for name, node := range bothNodes(t) {
		t.Run(name, func(t *testing.T) {
			d := start(t, node)
			ticket := d.ticket(t, d.attach(t), "web1")
			for command, want := range map[string]struct {
				rc             int
				stdout, stderr string
			}{
				"echo said; echo complained >&2; exit 7": {7, "said\n", "complained\n"},
				"tr a-z A-Z":                             {0, "WORDS", ""},
				"kill -9 $$":                             {137, "", ""},
			} {
				e := d.exec(within(t), t, starting(ticket, "web1", command))
				_ = e.Send(stdin([]byte("wor")))
				_ = e.Send(stdin([]byte("ds")))
				_ = e.CloseSend()
				rc, err := e.wait()
				if name == "no agent" && want.rc == 137 {
					want.rc = -1 // the shell of this test says no more
				}
				if err != nil || rc != want.rc || e.stdout.String() != want.stdout || e.stderr.String() != want.stderr {
					t.Errorf("%s: %d, %v, %q, %q", command, rc, err, &e.stdout, &e.stderr)
				}
			}
		})
	}
}

// A conversation: each side waits for the other's word, and stdin ends before stdout does.
func TestExecIsLive(t *testing.T) {
	for name, node := range bothNodes(t) {
		t.Run(name, func(t *testing.T) {
			d := start(t, node)
			e := d.exec(within(t), t, starting(d.ticket(t, d.attach(t), "web1"), "web1", `while read word; do echo "<$word>"; done; echo over; exit 3`))
			for _, word := range []string{"one", "two", "three"} {
				if err := e.Send(stdin([]byte(word + "\n"))); err != nil {
					t.Fatal(err)
				}
				e.stdout.Reset()
				for e.stdout.String() != "<"+word+">\n" {
					if reply, err := e.next(); err != nil || reply.Rc != nil {
						t.Fatalf("%v, %v", reply, err)
					}
				}
			}
			_ = e.CloseSend()
			if rc, err := e.wait(); err != nil || rc != 3 || !strings.HasSuffix(e.stdout.String(), "over\n") {
				t.Errorf("%d, %v, %q", rc, err, &e.stdout)
			}
		})
	}
}

func TestExecCarriesEveryByte(t *testing.T) {
	size := 64 << 20
	if testing.Short() {
		size = 4 << 20
	}
	content := make([]byte, size)
	_, _ = rand.Read(content)
	for name, node := range bothNodes(t) {
		t.Run(name, func(t *testing.T) {
			d := start(t, node)
			e := d.exec(within(t), t, starting(d.ticket(t, d.attach(t), "web1"), "web1", "exec cat"))
			var sending sync.WaitGroup
			defer sending.Wait()
			sending.Go(func() {
				for rest := content; len(rest) > 0; {
					n := min(len(rest), 100_000)
					if e.Send(stdin(rest[:n])) != nil {
						return
					}
					rest = rest[n:]
				}
				_ = e.CloseSend()
			})
			if rc, err := e.wait(); err != nil || rc != 0 || !bytes.Equal(e.stdout.Bytes(), content) {
				t.Errorf("%d, %v, %d bytes", rc, err, e.stdout.Len())
			}
		})
	}
}

func TestTicketsAreRefused(t *testing.T) {
	d := start(t, newAgentNode(t))
	p, end := child(t)
	other, err := d.runs.Attach(within(t), &muxv1.AttachRequest{Pid: uint32(p.pid), StartTime: p.start})
	if err != nil {
		t.Fatal(err)
	}
	mine := d.attach(t)
	ticket := d.ticket(t, mine, "web1")
	if again := d.ticket(t, mine, "web1"); again != ticket {
		t.Errorf("%q, then %q", ticket, again)
	}
	theirs, web2 := d.ticket(t, other.GetRun(), "web1"), d.ticket(t, mine, "web2")
	if theirs == ticket || web2 == ticket {
		t.Errorf("%q, %q, %q", ticket, theirs, web2)
	}
	if rc, err := d.exec(within(t), t, starting(theirs, "web1", "true")).wait(); rc != 0 || err != nil {
		t.Errorf("while the other run is attached: %d, %v", rc, err)
	}
	end()
	<-d.tree.endings
	_, secret, _ := strings.Cut(theirs, ".")
	swapped := mine + "." + secret
	for name, c := range map[string]struct {
		first *muxv1.ExecRequest
		code  codes.Code
		says  string
	}{
		"none":                 {starting("", "web1", "true"), codes.FailedPrecondition, "the ticket is not good"},
		"a wrong one":          {starting(ticket+"0", "web1", "true"), codes.FailedPrecondition, "the ticket is not good"},
		"of no run":            {starting("."+secret, "web1", "true"), codes.FailedPrecondition, "the ticket is not good"},
		"of a run that ended":  {starting(theirs, "web1", "true"), codes.FailedPrecondition, "the ticket is not good"},
		"of another run":       {starting(swapped, "web1", "true"), codes.FailedPrecondition, "the ticket is not good"},
		"for another host":     {starting(ticket, "web2", "true"), codes.InvalidArgument, "the ticket is for web1, not for \"web2\""},
		"NUL":                  {starting(ticket, "web1", "a\x00b"), codes.InvalidArgument, "NUL"},
		"stdin before a start": {stdin([]byte("x")), codes.InvalidArgument, "what to start"},
		"nothing":              {nil, codes.InvalidArgument, "what to start"},
	} {
		e := d.exec(within(t), t, c.first)
		_ = e.CloseSend()
		if _, err := e.wait(); status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, second := range map[string]*muxv1.ExecRequest{
		"a second start": starting(ticket, "web1", "true"), "too much": stdin(make([]byte, maxBodyPart+1)),
	} {
		e := d.exec(within(t), t, starting(ticket, "web1", "exec cat"))
		if err := e.Send(second); err != nil {
			t.Fatal(err)
		}
		if _, err := e.wait(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Without an agent an account behind a become tool has no way for commands, when the ticket is asked for and later.
func TestTicketsNeedAWay(t *testing.T) {
	d := start(t, newAgentNode(t))
	request := d.request(t, ticket1("web1"))
	request.Path.Hops = append(request.Path.Hops, &muxv1.Hop{Method: &muxv1.Hop_Become{Become: &muxv1.BecomeHop{Method: "sudo", User: "root"}}})
	a, err := d.ask(t, request)
	if err != nil {
		t.Fatal(err)
	}
	d.tree.node = newBareNode()
	_, later := d.exec(within(t), t, starting(a.stdout[0], "web1", "true")).wait()
	_, now := d.ask(t, request)
	for _, err := range []error{now, later} {
		if e := FaultOf(err); e.Kind != fault.InterpreterMissing || e.HopName != "sudo root" {
			t.Errorf("got %v", err)
		}
	}
	d.tree.err = &fault.Error{Kind: fault.Unreachable, HopName: "ssh h1", Message: "no route to host"}
	if _, err := d.exec(within(t), t, starting(a.stdout[0], "web1", "true")).wait(); FaultOf(err).Kind != fault.Unreachable {
		t.Errorf("got %v", err)
	}
}

// Whoever goes takes the command along: its client, its run, its agent; whatever the command does at that moment.
func TestExecEnds(t *testing.T) {
	commands := map[string]string{
		"sleeps":          "exec sleep 600",
		"talks unheard":   "exec cat /dev/zero",
		"does not listen": "exec sleep 600 <&0",
	}
	for name, c := range map[string]struct {
		end  func(d *daemon, run string, cancel context.CancelCauseFunc, process *agenttest.Process)
		code codes.Code
	}{
		"client":     {func(_ *daemon, _ string, cancel context.CancelCauseFunc, _ *agenttest.Process) { cancel(nil) }, codes.Canceled},
		"connection": {func(d *daemon, _ string, _ context.CancelCauseFunc, _ *agenttest.Process) { _ = d.conn.Close() }, codes.Canceled},
		"run": {func(d *daemon, run string, _ context.CancelCauseFunc, _ *agenttest.Process) {
			_, _ = d.runs.Detach(context.Background(), &muxv1.DetachRequest{Run: run})
		}, codes.Canceled},
		"agent": {func(_ *daemon, _ string, _ context.CancelCauseFunc, process *agenttest.Process) { _ = process.Kill() }, codes.Unavailable},
	} {
		for what, command := range commands {
			t.Run(name+"/"+what, func(t *testing.T) {
				process := agenttest.Spawn(t, "", "-c", agent.Stage1(), "mitogen-mux: test")
				node := &agentNode{bareNode: newBareNode()}
				var err error
				if node.Link, err = agent.Connect(within(t), process, agent.Options{Name: "test"}); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = node.Link.Close() })
				d := start(t, node)
				run := d.attach(t)
				ticket := d.ticket(t, run, "web1")
				ctx, cancel := context.WithCancelCause(within(t))
				defer cancel(nil)
				job := newWitness(t)
				e := d.exec(ctx, t, starting(ticket, "web1", job.script()+command))
				if err := job.begun(); err != nil {
					t.Fatal(err)
				}
				var sending sync.WaitGroup
				defer sending.Wait()
				sending.Go(func() { // until there is no more room on the way, and then some
					for e.Send(stdin(make([]byte, maxBodyPart))) == nil {
						continue
					}
				})
				c.end(d, run, cancel, process)
				if _, err := e.wait(); status.Code(err) != c.code {
					t.Errorf("got %v", err)
				}
				if name != "agent" { // who was killed cannot kill: the command notices by itself that nobody speaks to it
					job.ended(t)
				}
			})
		}
	}
}
