package agent_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds a test that would otherwise wait for ever.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

type gathered struct {
	stdout, stderr, tty string
	ended               bool
	result              *agent.Result
}

// gather receives all there is.
func gather(ctx context.Context, t *testing.T, s *agent.Stream) gathered {
	t.Helper()
	var g gathered
	for {
		e, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return g
		}
		if err != nil {
			t.Fatalf("cannot receive: %v", err)
		}
		switch e.Channel {
		case agent.Stdout:
			g.stdout += string(e.Data)
		case agent.Stderr:
			g.stderr += string(e.Data)
		case agent.TTY:
			g.tty += string(e.Data)
		case agent.End:
			g.ended = true
		case agent.Final:
			g.result = e.Result
		}
	}
}

func open(ctx context.Context, t *testing.T, l *agent.Link, r agent.Request) *agent.Stream {
	t.Helper()
	s, err := l.Open(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func argv(words ...string) [][]byte {
	out := make([][]byte, len(words))
	for i, w := range words {
		out[i] = []byte(w)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRealHelloAndPing(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	h, err := l.Hello(ctx)
	must(t, err)
	if h.UID != os.Getuid() || h.PID <= 0 || h.Executable == "" || strings.Count(h.Python, ".") != 2 {
		t.Errorf("HELLO is %+v", h)
	}
	must(t, l.Ping(ctx))
}

func TestRealCommand(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	_, err := l.Hello(ctx)
	must(t, err)
	before := l.Stats()
	s := open(ctx, t, l, agent.Command{Argv: argv("/bin/sh", "-c", "cat; echo err >&2; pwd; exit 7"), Cwd: []byte("/")})
	must(t, s.Send(ctx, []byte("from stdin\n")))
	must(t, s.CloseSend())
	g := gather(ctx, t, s)
	if g.stdout != "from stdin\n/\n" || g.stderr != "err\n" || g.result.Failed || g.result.ExitCode != 7 {
		t.Errorf("got %+v %+v", g, g.result)
	}
	if st := l.Stats(); st.Jobs != 0 || st.RoundTrips != before.RoundTrips+1 {
		t.Errorf("before %+v, after %+v: a command is one round trip", before, st)
	}
}

func TestRealCommandWithManyBytes(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	const size = 20 << 20
	s := open(ctx, t, l, agent.Command{Argv: argv("/bin/cat")})
	in := make([]byte, size)
	_, _ = rand.Read(in)
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(s.Send(ctx, in), s.CloseSend()) }()
	g := gather(ctx, t, s)
	must(t, <-sent)
	if g.stdout != string(in) {
		t.Errorf("%d bytes came back, or others", len(g.stdout))
	}
}

// TestRealOutputsShareCredit: two outputs that use up one stream's credit together are both whole.
func TestRealOutputsShareCredit(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	const size = 6 << 20
	s := open(ctx, t, l, agent.Command{Argv: argv("/bin/sh", "-c", "head -c 6291456 /dev/zero >&2 & head -c 6291456 /dev/zero; wait")})
	must(t, s.CloseSend())
	if g := gather(ctx, t, s); len(g.stdout) != size || len(g.stderr) != size {
		t.Errorf("%d bytes of stdout, %d of stderr", len(g.stdout), len(g.stderr))
	}
}

func TestRealModule(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	const name = "ansible.modules.probe"
	main := []byte("import sys, ansible.module_utils.part as part\nif __name__ == '__main__':\n" +
		"    import ansible.module_utils.basic as basic\n    print('%d %s' % (len(basic._ANSIBLE_ARGS), part.WORD))\n    sys.exit(3)\n")
	cache := blobcache.New(1 << 20)
	var manifest strings.Builder
	manifest.WriteString("module\t" + name + "\n")
	var want []blobcache.Digest
	for _, f := range []struct{ path, text string }{
		{"ansible/__init__.py", ""},
		{"ansible/modules/__init__.py", ""},
		{"ansible/module_utils/__init__.py", ""},
		{"ansible/module_utils/part.py", "WORD = 'part'\n"},
		{"ansible/module_utils/basic.py", "_ANSIBLE_ARGS = None\n_ANSIBLE_PROFILE = None\n"},
		{"ansible/modules/probe.py", string(main)},
	} {
		d := cache.Put([]byte(f.text))
		want = append(want, d)
		manifest.WriteString("file\t" + f.path + "\t" + d.String() + "\n")
	}
	m := cache.Put([]byte(manifest.String()))
	want = append(want, m)
	for _, size := range []int{10, agent.MaxPayload, 3 << 20} {
		_, err := l.SendBlobs(ctx, want, cache)
		must(t, err)
		params := []byte(`{"ANSIBLE_MODULE_ARGS": {"a": "` + strings.Repeat("x", size) + `"}}`)
		g := gather(ctx, t, open(ctx, t, l, agent.Module{Manifest: m, Params: params, Name: "probe"}))
		if g.result.Failed || g.result.ExitCode != 3 || g.stdout != strconv.Itoa(len(params))+" part\n" {
			t.Errorf("params of %d: got %+v %+v", len(params), g, g.result)
		}
	}
	if st := l.Stats(); st.BlobBytes == 0 {
		t.Errorf("%+v", st)
	}
}

func TestRealPutAndGet(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	dir := t.TempDir()
	for name, size := range map[string]int{"empty": 0, "small": 10, "chunks": 5<<20 + 17} {
		t.Run(name, func(t *testing.T) {
			body := make([]byte, size)
			_, _ = rand.Read(body)
			path := filepath.Join(dir, name)
			mode := uint32(0o640)
			s := open(ctx, t, l, agent.Put{Dest: []byte(path), Size: uint64(size), Mode: &mode, SHA256: sha256.Sum256(body)})
			must(t, s.Send(ctx, body))
			must(t, s.CloseSend())
			g := gather(ctx, t, s)
			if g.result.Failed || g.result.Size != uint64(size) || g.result.SHA256 != sha256.Sum256(body) {
				t.Fatalf("put: %+v", g.result)
			}
			info, err := os.Stat(path)
			must(t, err)
			if info.Mode().Perm() != 0o640 {
				t.Errorf("mode is %v", info.Mode())
			}
			g = gather(ctx, t, open(ctx, t, l, agent.Get{Source: []byte(path)}))
			if g.result.Failed || g.stdout != string(body) || !g.ended || g.result.SHA256 != sha256.Sum256(body) {
				t.Errorf("get: %d bytes, %+v", len(g.stdout), g.result)
			}
		})
	}
	s := open(ctx, t, l, agent.Put{Dest: []byte(filepath.Join(dir, "small")), Size: 3, SHA256: sha256.Sum256([]byte("abc"))})
	must(t, s.Send(ctx, []byte("abd")))
	must(t, s.CloseSend())
	if g := gather(ctx, t, s); g.result.Failure != agent.FailDigest || fault.KindOf(g.result.Err()) != fault.FileFailed {
		t.Errorf("a wrong digest: %+v", g.result)
	}
	if g := gather(ctx, t, open(ctx, t, l, agent.Get{Source: []byte(filepath.Join(dir, "absent"))})); g.result.Failure != agent.FailNotFound {
		t.Errorf("an absent file: %+v", g.result)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 3 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestRealSpawnedAgent(t *testing.T) {
	ctx, parent := within(t), agenttest.Start(t, "")
	h, err := parent.Hello(ctx)
	must(t, err)
	s := open(ctx, t, parent, agent.Spawn{
		Argv: argv(h.Executable, "-c", agent.Stage1(), "mitogen-mux: child"), Terminal: agent.ControllingTerminal,
	})
	child, err := agent.Connect(ctx, s.Conn(), agent.Options{Name: "child"})
	must(t, err)
	hc, err := child.Hello(ctx)
	must(t, err)
	if hc.PID == h.PID {
		t.Error("the child is the parent")
	}
	c := open(ctx, t, child, agent.Command{Argv: argv("/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; test -t 0 || echo none >&2")})
	must(t, c.CloseSend())
	if g := gather(ctx, t, c); len(g.stdout) != 3000000 || g.stderr != "none\n" || g.result.ExitCode != 0 {
		t.Errorf("%d bytes, %q, %+v", len(g.stdout), g.stderr, g.result)
	}
	must(t, child.Close())
	must(t, parent.Ping(ctx))
	if st := parent.Stats(); st.Jobs != 0 {
		t.Errorf("%+v", st)
	}
}

func TestRealCancel(t *testing.T) {
	ctx, l := within(t), agenttest.Start(t, "")
	s := open(ctx, t, l, agent.Command{Argv: argv("/bin/sh", "-c", "echo started; sleep 1000")})
	must(t, s.CloseSend())
	e, err := s.Recv(ctx)
	must(t, err)
	if string(e.Data) != "started\n" {
		t.Fatalf("got %q", e.Data)
	}
	s.Cancel()
	if g := gather(ctx, t, s); g.result.Failure != agent.FailCancelled {
		t.Errorf("got %+v", g.result)
	}
	must(t, l.Ping(ctx))
}

func TestRealAgentKilled(t *testing.T) {
	ctx := within(t)
	p := agenttest.Spawn(t, "", "-c", agent.Stage1(), "mitogen-mux: test")
	l, err := agent.Connect(ctx, p, agent.Options{})
	must(t, err)
	s := open(ctx, t, l, agent.Command{Argv: argv("/bin/sh", "-c", "echo started; exec cat")}) // cat ends when the agent does
	e, err := s.Recv(ctx)
	must(t, err)
	if string(e.Data) != "started\n" {
		t.Fatalf("got %q", e.Data)
	}
	must(t, p.Kill())
	if _, err = s.Recv(ctx); fault.KindOf(err) != fault.AgentDied {
		t.Errorf("got %v", err)
	}
	<-l.Done()
	if fault.KindOf(l.Err()) != fault.AgentDied {
		t.Errorf("the link ended with %v", l.Err())
	}
	must(t, l.Close())
}

// TestRealLocalAgent: the controller's own agent comes to a socket, shows its token and is an agent like any other.
func TestRealLocalAgent(t *testing.T) {
	ctx := within(t)
	dir, err := os.MkdirTemp("", "mux") // the paths of t.TempDir are too long for sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent.sock")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	defer func() { _ = listener.Close() }()
	agenttest.Spawn(t, "", "-c", agent.Stage1Local(), "mitogen-mux: local", socket, "00ff")
	conn, err := listener.Accept()
	must(t, err)
	line := make([]byte, len("MUXATTACH 00ff\n"))
	_, err = io.ReadFull(conn, line)
	must(t, err)
	if string(line) != "MUXATTACH 00ff\n" {
		t.Fatalf("it says %q", line)
	}
	l, err := agent.Connect(ctx, conn, agent.Options{})
	must(t, err)
	_, err = l.Hello(ctx)
	must(t, err)
	must(t, l.Close())
}

func TestRealInterpreterMissing(t *testing.T) {
	p := agenttest.Spawn(t, "sh", "-c", "exec 2>&1; /no/such/python3 -c x")
	_, err := agent.Connect(within(t), p, agent.Options{})
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Kind != fault.InterpreterMissing || !strings.Contains(e.Stderr, "/no/such/python3") || e.Hint == "" {
		t.Errorf("got %#v", err)
	}
}

func TestStage1IsOneWordForEveryShell(t *testing.T) {
	for name, text := range map[string]string{"stage 1": agent.Stage1(), "local": agent.Stage1Local()} {
		if strings.ContainsAny(text, "'\n\r!$`") {
			t.Errorf("%s: %q", name, text)
		}
		if strings.Contains(strings.ReplaceAll(text, `\n`, ""), `\`) {
			t.Errorf("%s has a backslash that fish takes for an escape: %q", name, text)
		}
		if len(text) > 1500 {
			t.Errorf("%s has %d bytes", name, len(text))
		}
	}
}
