package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds a test that would otherwise wait for ever.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// fakeTree gives every request the same node, or the same error, but for a path with a discovery.
type fakeTree struct {
	node Node
	err  error

	discovers func() (Node, error) // nil: as any other
	wait      func()               // nil: nobody has to

	mu       sync.Mutex
	acquired []acquisition
	resets   []acquisition
	ended    []string
	vacated  []string
	released []string
	endings  chan string // gets each ended run
	nodes    []mux.NodeInfo
}

type acquisition struct {
	run  hop.Run
	host string
	path hop.Path
}

func (f *fakeTree) Acquire(_ context.Context, run hop.Run, host string, path hop.Path) (Node, error) {
	if f.wait != nil {
		f.wait()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acquired = append(f.acquired, acquisition{run, host, path})
	if f.discovers != nil && path[len(path)-1].Discovery != nil {
		return f.discovers()
	}
	return f.node, f.err
}

func (f *fakeTree) Reset(run, host string, path hop.Path) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resets = append(f.resets, acquisition{hop.Run{ID: run}, host, path})
}

func (f *fakeTree) Release(run string, hosts []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, run+" "+strings.Join(hosts, ","))
}

func (f *fakeTree) Vacate(_ context.Context, run, host, account string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vacated = append(f.vacated, run+" "+host+" "+account)
	return f.err
}

func (f *fakeTree) EndRun(run string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = append(f.ended, run)
	f.endings <- run
}

func (f *fakeTree) Nodes() []mux.NodeInfo { return f.nodes }
func (f *fakeTree) Dials() uint64         { return 7 }

func (f *fakeTree) Look(context.Context) []string { return []string{"an agent:\nno job"} }

func (f *fakeTree) endedRuns() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.ended...)
}

// agentNode is a node with a real agent.
type agentNode struct {
	*agent.Link
	bareNode
}

// bareNode is a node without an agent: this machine's own shell.
type bareNode struct{ state *nodeState }

type nodeState struct {
	held, retired atomic.Int32
	log           atomic.Pointer[func(level int, text string)]
	onLog         func()

	memory mux.Memory
}

// say is what the agent logs.
func (s *nodeState) say(level int, text string) {
	if f := s.log.Load(); f != nil {
		(*f)(level, text)
	}
}

func newAgentNode(t *testing.T) *agentNode {
	t.Helper()
	n := &agentNode{bareNode: newBareNode()}
	n.Link = agenttest.StartWith(t, "", agent.Options{Name: "test", OnLog: n.state.say})
	return n
}

func newBareNode() bareNode { return bareNode{&nodeState{}} }

func (n *agentNode) HasAgent() bool { return true }
func (n *agentNode) CanExec() bool  { return false }
func (n *agentNode) Open(ctx context.Context, r agent.Request) (*agent.Stream, error) {
	return n.Link.Open(ctx, r)
}

func (n *agentNode) SendBlobs(ctx context.Context, want []blobcache.Digest, from agent.BlobSource) (release func(), err error) {
	return n.Link.SendBlobs(ctx, want, from)
}

func (bareNode) HasAgent() bool { return false }
func (bareNode) CanExec() bool  { return true }
func (bareNode) Open(context.Context, agent.Request) (*agent.Stream, error) {
	return nil, errors.New("there is no agent")
}

func (bareNode) SendBlobs(context.Context, []blobcache.Digest, agent.BlobSource) (func(), error) {
	return nil, errors.New("there is no agent")
}

func (n bareNode) Log(f func(level int, text string)) {
	n.state.log.Store(&f)
	if n.state.onLog != nil {
		n.state.onLog()
	}
}
func (n bareNode) Retire()                  { n.state.retired.Add(1) }
func (n bareNode) Memory() *mux.Memory      { return &n.state.memory }
func (bareNode) Discovered() ([]byte, bool) { return nil, false }

func (bareNode) LoginUID(context.Context) (uint32, error) { return 0, nil }
func (bareNode) Shares() bool                             { return false }

func (n bareNode) Release() { n.state.held.Add(-1) }

func (bareNode) Exec(_ context.Context, cmd []byte, o mux.ExecOptions) (mux.Process, error) {
	c := exec.Command("/bin/sh", "-c", string(cmd))
	if o.TTY {
		c.Env = append(os.Environ(), "TTY=yes")
	}
	p := &shell{cmd: c}
	var theirs [3]*os.File
	for i, ours := range []**os.File{&p.stdin, &p.stdout, &p.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if i == 0 {
			theirs[i], *ours = r, w
		} else {
			theirs[i], *ours = w, r
		}
	}
	c.Stdin, c.Stdout, c.Stderr = theirs[0], theirs[1], theirs[2]
	err := c.Start()
	for _, f := range theirs {
		_ = f.Close()
	}
	return p, err
}

type shell struct {
	cmd                   *exec.Cmd
	stdin, stdout, stderr *os.File
	once                  sync.Once
	end                   error
}

func (s *shell) Read(p []byte) (int, error)  { return s.stdout.Read(p) }
func (s *shell) Write(p []byte) (int, error) { return s.stdin.Write(p) }
func (s *shell) CloseWrite() error           { return s.stdin.Close() }
func (s *shell) Stderr() io.Reader           { return s.stderr }

func (s *shell) Wait() (int, error) {
	s.once.Do(func() { s.end = s.cmd.Wait() })
	if e, ok := errors.AsType[*exec.ExitError](s.end); ok {
		return e.ExitCode(), nil
	}
	return 0, s.end
}

func (s *shell) Close() error {
	_ = s.cmd.Process.Kill() // perhaps it has ended
	err := errors.Join(s.stdin.Close(), s.stdout.Close(), s.stderr.Close())
	_, _ = s.Wait()
	return err
}

// daemon is a server on a socket, with a client.
type daemon struct {
	*Server
	tree    *fakeTree
	store   *moduleexec.Store
	stopped chan struct{}
	conn    *grpc.ClientConn
	runs    muxv1.RunsClient
	jobs    muxv1.JobsClient
	files   muxv1.FilesClient
	status  muxv1.StatusClient
}

func start(t *testing.T, node Node) *daemon {
	t.Helper()
	d := &daemon{tree: &fakeTree{node: node, endings: make(chan string, 16)}, store: moduleexec.NewStore(blobcache.New(64 << 20)), stopped: make(chan struct{})}
	d.Server = New(Options{
		Tree: d.tree, Payloads: d.store, Files: fileservice.New(), Version: "v1", Stage1: "stage 1", Stage1Local: "stage 1 local",
		AgentSocket: "/the/socket", Stop: func() { close(d.stopped) },
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(l) }()
	t.Cleanup(func() {
		if d.conn != nil {
			_ = d.conn.Close()
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(nil) // now
		d.Close(ctx)
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	d.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	d.runs, d.jobs = muxv1.NewRunsClient(d.conn), muxv1.NewJobsClient(d.conn)
	d.files, d.status = muxv1.NewFilesClient(d.conn), muxv1.NewStatusClient(d.conn)
	return d
}

// attach makes this test a run.
func (d *daemon) attach(t *testing.T) string {
	t.Helper()
	reply, err := d.runs.Attach(within(t), &muxv1.AttachRequest{Pid: uint32(os.Getpid()), StartTime: startTime(os.Getpid()), User: "me@here"})
	if err != nil {
		t.Fatal(err)
	}
	return reply.GetRun()
}

func sshPath() *muxv1.Path {
	return &muxv1.Path{Hops: []*muxv1.Hop{{
		Method: &muxv1.Hop_Ssh{Ssh: &muxv1.SshHop{Host: "h1", User: "deploy", Port: 22}}, Interpreter: "/usr/bin/python3",
	}}}
}

// request is one for the run of this test.
func (d *daemon) request(t *testing.T, steps ...*muxv1.Step) *muxv1.Request {
	t.Helper()
	return &muxv1.Request{Run: d.attach(t), Host: "web1", Path: sshPath(), Steps: steps}
}

// answer is what came of a request.
type answer struct {
	results []*muxv1.StepResult
	stdout  map[uint32]string // whole, by step
	stderr  map[uint32]string
	logs    []*muxv1.Log
	outputs int
}

// ask sends a request and its bodies and gathers what comes of it.
func (d *daemon) ask(t *testing.T, in *muxv1.Request, bodies ...*muxv1.Body) (*answer, error) {
	t.Helper()
	stream, err := d.jobs.Run(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return gather(t, stream, in, bodies)
}

type clientStream = grpc.BidiStreamingClient[muxv1.RunRequest, muxv1.RunReply]

func gather(t *testing.T, stream clientStream, in *muxv1.Request, bodies []*muxv1.Body) (*answer, error) {
	t.Helper()
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		if in != nil {
			_ = stream.Send(&muxv1.RunRequest{Part: &muxv1.RunRequest_Request{Request: in}})
		}
		for _, b := range bodies {
			if stream.Send(&muxv1.RunRequest{Part: &muxv1.RunRequest_Body{Body: b}}) != nil {
				return // Recv says why
			}
		}
		_ = stream.CloseSend()
	})
	a := &answer{stdout: map[uint32]string{}, stderr: map[uint32]string{}}
	for {
		reply, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		switch event := reply.GetEvent().(type) {
		case *muxv1.RunReply_Output:
			a.outputs++
			a.stdout[event.Output.GetStep()] += string(event.Output.GetStdout())
			a.stderr[event.Output.GetStep()] += string(event.Output.GetStderr())
		case *muxv1.RunReply_Result:
			a.results = append(a.results, event.Result)
			a.stdout[event.Result.GetStep()] += string(event.Result.GetStdout())
			a.stderr[event.Result.GetStep()] += string(event.Result.GetStderr())
		case *muxv1.RunReply_Log:
			a.logs = append(a.logs, event.Log)
		}
	}
}

func sh(script string) *muxv1.Command {
	return &muxv1.Command{Argv: [][]byte{[]byte("/bin/sh"), []byte("-c"), []byte(script)}, Plain: []byte(script)}
}

func shell1(script string) *muxv1.Step {
	return &muxv1.Step{Action: &muxv1.Step_Command{Command: sh(script)}}
}

// witness is a FIFO that a job holds open: it tells when the job has begun, and when it has ended.
type witness struct {
	path string
	file *os.File
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{path: filepath.Join(t.TempDir(), "fifo")}
	if err := syscall.Mkfifo(w.path, 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// script goes before what the job does.
func (w *witness) script() string { return "exec 9>" + w.path + "; echo up >&9; " }

// begun waits until the job has begun.
func (w *witness) begun() error {
	file, err := os.Open(w.path)
	if err != nil {
		return err
	}
	w.file = file
	_, err = io.ReadFull(file, make([]byte, len("up\n")))
	return err
}

// ended waits until the job has ended.
func (w *witness) ended(t *testing.T) {
	t.Helper()
	_, _ = io.Copy(io.Discard, w.file)
	_ = w.file.Close()
}
