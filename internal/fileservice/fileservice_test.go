package fileservice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// linked is a node with an agent.
type linked struct{ *agent.Link }

func (linked) HasAgent() bool { return true }
func (linked) Exec(context.Context, []byte, bool) (Process, error) {
	return nil, errors.New("this node has an agent")
}

// plain is a node without an agent: this machine's own shell, whose processes meddle may disturb.
type plain struct{ meddle func(*shell) }

func (plain) HasAgent() bool { return false }
func (plain) Open(context.Context, agent.Request) (*agent.Stream, error) {
	return nil, errors.New("there is no agent")
}

func (n plain) Exec(_ context.Context, cmd []byte, _ bool) (Process, error) {
	c := exec.Command("/bin/sh", "-c", string(cmd))
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
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := c.Start()
	for _, f := range theirs {
		_ = f.Close()
	}
	if n.meddle != nil {
		n.meddle(p)
	}
	return p, err
}

type shell struct {
	cmd                   *exec.Cmd
	stdin, stdout, stderr *os.File
	once                  sync.Once
	end                   error
	onWrite               func()
}

func (s *shell) Read(p []byte) (int, error) { return s.stdout.Read(p) }
func (s *shell) CloseWrite() error          { return s.stdin.Close() }
func (s *shell) Stderr() io.Reader          { return s.stderr }

func (s *shell) Write(p []byte) (int, error) {
	n, err := s.stdin.Write(p)
	if s.onWrite != nil {
		s.onWrite()
	}
	return n, err
}

func (s *shell) Wait() (int, error) {
	s.once.Do(func() { s.end = s.cmd.Wait() })
	if e, ok := errors.AsType[*exec.ExitError](s.end); ok {
		if e.ExitCode() < 0 {
			return 0, errors.New("the connection was lost")
		}
		return e.ExitCode(), nil
	}
	return 0, s.end
}

// Close is the end of the connection: the far side sees the end of its stdin.
func (s *shell) Close() error {
	err := errors.Join(s.stdin.Close(), s.stdout.Close(), s.stderr.Close())
	_, _ = s.Wait()
	return err
}

// nodes are both ways to move a file.
func nodes(t *testing.T) map[string]Caller {
	t.Helper()
	return map[string]Caller{"agent": linked{agenttest.Start(t, "")}, "no agent": plain{}}
}

func write(t testing.TB, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func check(t testing.TB, path string, want []byte, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v: want %d other ones", path, len(got), err, len(want))
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode {
		t.Errorf("%s: mode %v, %v: want %v", path, info.Mode(), err, mode)
	}
}

// checkOnly fails the test if a folder has other files: temporary ones, above all.
func checkOnly(t testing.TB, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("%s has %q, want %q", dir, got, names)
	}
}

// content is so many bytes that do not repeat in any chunk's length.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i/251 + i/65521)
	}
	return b
}

// inParts is b as a body.
func inParts(b []byte, size int) Body {
	return func(context.Context) ([]byte, error) {
		if len(b) == 0 {
			return nil, io.EOF
		}
		p := b[:min(size, len(b))]
		b = b[len(p):]
		return p, nil
	}
}

func ptr[T any](v T) *T { return &v }

// umask is that of the processes that the test starts.
func umask() os.FileMode {
	mask := syscall.Umask(0o022)
	syscall.Umask(mask)
	return os.FileMode(mask)
}

func TestSizes(t *testing.T) {
	for name, c := range nodes(t) {
		s := New()
		for _, size := range []int{0, 1, MaxInline, MaxInline + 1, chunkSize, chunkSize + 1, agent.Window, tellEvery + 5} {
			for how, request := range map[string]func(string, []byte) *PutRequest{
				"path": func(path string, _ []byte) *PutRequest { return &PutRequest{Path: path} },
				"body": func(_ string, b []byte) *PutRequest { return &PutRequest{Body: inParts(b, 50_000)} },
			} {
				dir, want := t.TempDir(), content(size)
				local, remote, back := filepath.Join(dir, "local"), filepath.Join(dir, "remote"), filepath.Join(dir, "back")
				write(t, local, want, 0o640)
				r := request(local, want)
				r.Dest = []byte(remote)
				put, err := s.Put(within(t), c, r)
				if err != nil || put.Size != uint64(size) || put.SHA256 != blobcache.Sum(want) {
					t.Fatalf("%s, %s of %d bytes: %+v, %v", name, how, size, put, err)
				}
				check(t, remote, want, 0o666&^umask())
				got, err := s.Get(within(t), c, &GetRequest{Source: []byte(remote), Path: back, Umask: 0o027})
				if err != nil || got.Size != uint64(size) || got.SHA256 != blobcache.Sum(want) {
					t.Fatalf("%s, get of %d bytes: %+v, %v", name, size, got, err)
				}
				check(t, back, want, 0o640)
				checkOnly(t, dir, "back", "local", "remote")
			}
		}
		if len(s.up.links)+len(s.down.links) != 0 {
			t.Errorf("%s: turns are left: %v, %v", name, s.up.links, s.down.links)
		}
	}
}

// A file of at most MaxInline is one write and one round trip.
func TestSmallPutIsOneMessage(t *testing.T) {
	link := agenttest.Start(t, "")
	s, dir := New(), t.TempDir()
	body := func() Body { return inParts(content(MaxInline), MaxInline) }
	put := func() {
		if _, err := s.Put(within(t), linked{link}, &PutRequest{Body: body(), Dest: []byte(filepath.Join(dir, "f"))}); err != nil {
			t.Fatal(err)
		}
	}
	put()
	before := link.Stats().RoundTrips
	put()
	if trips := link.Stats().RoundTrips - before; trips != 1 {
		t.Errorf("%d round trips", trips)
	}
}

func TestPutModes(t *testing.T) {
	for name, c := range nodes(t) {
		t.Run(name, func(t *testing.T) {
			s, dir := New(), t.TempDir()
			dest := filepath.Join(dir, "it's a \"$file\" \\ with; `words`")
			put := func(body string, mode *uint32) {
				t.Helper()
				if _, err := s.Put(within(t), c, &PutRequest{Body: inParts([]byte(body), 3), Dest: []byte(dest), Mode: mode}); err != nil {
					t.Fatal(err)
				}
			}
			put("new", nil)
			check(t, dest, []byte("new"), 0o666&^umask())
			if err := os.Chmod(dest, 0o751); err != nil {
				t.Fatal(err)
			}
			put("same mode", nil)
			check(t, dest, []byte("same mode"), 0o751)
			put("told", ptr[uint32](0o604))
			check(t, dest, []byte("told"), 0o604)
			put("", ptr[uint32](0))
			if info, err := os.Stat(dest); err != nil || info.Mode() != 0 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			checkOnly(t, dir, filepath.Base(dest))
		})
	}
}

func TestSymbolicLinksAreFollowed(t *testing.T) {
	for name, c := range nodes(t) {
		t.Run(name, func(t *testing.T) {
			s, dir := New(), t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			if err := os.Mkdir(in("sub"), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, in("sub/file"), []byte("old"), 0o640)
			for link, target := range map[string]string{"relative": "sub/file", "absolute": in("sub/file"), "twice": "relative", "dangling": "sub/new"} {
				if err := os.Symlink(target, in(link)); err != nil {
					t.Fatal(err)
				}
			}
			for _, link := range []string{"relative", "absolute", "twice"} {
				if _, err := s.Put(within(t), c, &PutRequest{Body: inParts([]byte(link), 3), Dest: []byte(in(link))}); err != nil {
					t.Fatal(err)
				}
				check(t, in("sub/file"), []byte(link), 0o640)
			}
			if _, err := s.Put(within(t), c, &PutRequest{Body: inParts([]byte("x"), 3), Dest: []byte(in("dangling"))}); err != nil {
				t.Fatal(err)
			}
			check(t, in("sub/new"), []byte("x"), 0o666&^umask())
			if _, err := s.Get(within(t), c, &GetRequest{Source: []byte(in("dangling")), Path: in("twice")}); err != nil {
				t.Fatal(err)
			}
			check(t, in("sub/file"), []byte("x"), 0o640)
			checkOnly(t, dir, "absolute", "dangling", "relative", "sub", "twice")
			checkOnly(t, in("sub"), "file", "new")
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range nodes(t) {
		t.Run(name, func(t *testing.T) {
			s, dir := New(), t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			write(t, in("file"), []byte("content"), 0o600)
			if err := syscall.Mkfifo(in("fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
			for what, x := range map[string]struct {
				run  func() error
				want fault.Kind
				says string
			}{
				"put, no source":         {put(t, s, c, in("none"), in("new")), fault.FileNotFound, "on the controller: no such file"},
				"put, folder as source":  {put(t, s, c, dir, in("new")), fault.FileFailed, "ot a regular file"},
				"put, FIFO as source":    {put(t, s, c, in("fifo"), in("new")), fault.FileFailed, "ot a regular file"},
				"put, no folder":         {put(t, s, c, in("file"), in("none/new")), fault.FileFailed, in("none/new")},
				"put, file as folder":    {put(t, s, c, in("file"), in("file/new")), fault.FileFailed, in("file/new")},
				"put, folder as dest":    {put(t, s, c, in("file"), dir), fault.FileFailed, "s a directory"},
				"put, FIFO as dest":      {put(t, s, c, in("file"), in("fifo")), fault.FileFailed, "ot a regular file"},
				"get, no source":         {get(t, s, c, in("none"), in("new")), fault.FileNotFound, "No such file"},
				"get, folder as source":  {get(t, s, c, dir, in("new")), fault.FileFailed, "s a directory"},
				"get, no folder":         {get(t, s, c, in("file"), in("none/new")), fault.FileFailed, "on the controller: no such file"},
				"get, file as folder":    {get(t, s, c, in("file"), in("file/new")), fault.FileFailed, "not a directory"},
				"get, folder as dest":    {get(t, s, c, in("file"), dir), fault.FileFailed, "is a directory"},
				"get, FIFO as dest":      {get(t, s, c, in("file"), in("fifo")), fault.FileFailed, "ot a regular file"},
				"put, broken body":       {putBody(t, s, c, in("new"), errors.New("broken")), fault.FileFailed, "broken"},
				"put, typed broken body": {putBody(t, s, c, in("new"), &fault.Error{Kind: fault.Draining, Message: "leaving"}), fault.Draining, "leaving"},
			} {
				err := x.run()
				if fault.KindOf(err) != x.want || !strings.Contains(err.Error(), x.says) {
					t.Errorf("%s: got %v of kind %d, want kind %d", what, err, fault.KindOf(err), x.want)
				}
			}
			checkOnly(t, dir, "fifo", "file")
			check(t, in("file"), []byte("content"), 0o600)
		})
	}
}

func put(t *testing.T, s *Service, c Caller, from, to string) func() error {
	return func() error {
		_, err := s.Put(within(t), c, &PutRequest{Path: from, Dest: []byte(to)})
		return err
	}
}

func putBody(t *testing.T, s *Service, c Caller, to string, breaks error) func() error {
	return func() error {
		_, err := s.Put(within(t), c, &PutRequest{Dest: []byte(to), Body: func(context.Context) ([]byte, error) { return nil, breaks }})
		return err
	}
}

func get(t *testing.T, s *Service, c Caller, from, to string) func() error {
	return func() error {
		_, err := s.Get(within(t), c, &GetRequest{Source: []byte(from), Path: to})
		return err
	}
}

// Files whose size says nothing, as those of /proc.
func TestPutOfFileWithoutSize(t *testing.T) {
	const source = "/proc/self/status"
	if _, err := os.Stat(source); err != nil {
		t.Skip("no /proc here")
	}
	for name, c := range nodes(t) {
		dest := filepath.Join(t.TempDir(), "f")
		if _, err := New().Put(within(t), c, &PutRequest{Path: source, Dest: []byte(dest)}); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(dest); !bytes.Contains(b, []byte("Name:")) {
			t.Errorf("%s: got %q", name, b)
		}
	}
}

// meddler does something when the transfer is about to begin.
type meddler struct {
	Caller
	meddle func()
}

func (m meddler) Open(ctx context.Context, r agent.Request) (*agent.Stream, error) {
	m.meddle()
	return m.Caller.Open(ctx, r)
}

func (m meddler) Exec(ctx context.Context, cmd []byte, tty bool) (Process, error) {
	m.meddle()
	return m.Caller.Exec(ctx, cmd, tty)
}

func TestSourceChanges(t *testing.T) {
	const size = 3 * chunkSize
	for name, c := range nodes(t) {
		for what, change := range map[string]func(path string) error{
			"longer":  func(path string) error { return os.Truncate(path, size+1) },
			"shorter": func(path string) error { return os.Truncate(path, size-1) },
			"empty":   func(path string) error { return os.Truncate(path, 0) },
			"written": func(path string) error { return os.WriteFile(path, content(size), 0o600) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				dir := t.TempDir()
				source, dest := filepath.Join(dir, "source"), filepath.Join(dir, "dest")
				write(t, source, make([]byte, size), 0o600)
				old := time.Now().Add(-time.Hour)
				if err := os.Chtimes(source, old, old); err != nil {
					t.Fatal(err)
				}
				write(t, dest, []byte("old"), 0o600)
				m := meddler{c, func() {
					if err := change(source); err != nil {
						t.Error(err)
					}
				}}
				_, err := New().Put(within(t), m, &PutRequest{Path: source, Dest: []byte(dest)})
				if fault.KindOf(err) != fault.FileChanged {
					t.Errorf("got %v of kind %d", err, fault.KindOf(err))
				}
				check(t, dest, []byte("old"), 0o600)
				if link, ok := c.(linked); ok {
					if err := link.Ping(within(t)); err != nil { // the CANCEL before it has been heard
						t.Fatal(err)
					}
				}
				checkOnly(t, dir, "dest", "source")
			})
		}
	}
}

func TestCancel(t *testing.T) {
	for name, c := range nodes(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			source, dest := filepath.Join(dir, "source"), filepath.Join(dir, "dest")
			write(t, source, content(3*agent.Window), 0o600)
			write(t, dest, []byte("old"), 0o600)
			ctx, cancel := context.WithCancelCause(within(t))
			m := meddler{c, func() { cancel(nil) }}
			if _, err := New().Put(ctx, m, &PutRequest{Path: source, Dest: []byte(dest)}); fault.KindOf(err) != fault.Cancelled {
				t.Errorf("put: %v", err)
			}
			ctx, cancel = context.WithCancelCause(within(t))
			m = meddler{c, func() { cancel(&fault.Error{Kind: fault.TimedOut}) }}
			if _, err := New().Get(ctx, m, &GetRequest{Source: []byte(source), Path: dest}); fault.KindOf(err) != fault.TimedOut {
				t.Errorf("get: %v", err)
			}
			if link, ok := c.(linked); ok {
				if err := link.Ping(within(t)); err != nil {
					t.Fatal(err)
				}
			}
			check(t, dest, []byte("old"), 0o600)
			checkOnly(t, dir, "dest", "source")
		})
	}
}
