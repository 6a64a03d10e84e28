package fileservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Put and Get in any order do what plain writes in a plain folder do. More of it: -rapid.checks=5000.
func TestModel(t *testing.T) {
	hop := agenttest.Start(t, "")
	behind := &inTurn{all: []linked{{nest(t, hop, true)}, {nest(t, hop, true)}}}
	for name, c := range map[string]struct {
		Caller
		each int // of so many rounds one is played
	}{
		"agent":             {linked{agenttest.Start(t, "")}, 1},
		"agents behind one": {behind, 4},
		"no agent":          {plain{}, 8}, // it takes a process for each operation
	} {
		t.Run(name, func(t *testing.T) {
			dir, rounds := inMemory(t), 0
			rapid.Check(t, func(t *rapid.T) {
				if rounds++; rounds%c.each == 0 {
					model(t, c.Caller, filepath.Join(dir, fmt.Sprint(rounds)))
				}
			})
		})
	}
}

// inTurn is each of some nodes in turn.
type inTurn struct {
	linked
	all  []linked
	next int
}

func (n *inTurn) Open(ctx context.Context, r agent.Request) (*agent.Stream, error) {
	n.next = (n.next + 1) % len(n.all)
	return n.all[n.next].Open(ctx, r)
}

// inMemory is a folder where fsync costs nothing, if there is one.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mitogen-mux-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

type file struct {
	content string
	mode    os.FileMode
}

func model(t *rapid.T, c Caller, dir string) {
	here, there := filepath.Join(dir, "here"), filepath.Join(dir, "there")
	for _, folder := range []string{here, there} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the test's folder goes anyway
	s, ctx := New(), t.Context()
	local, remote := map[string]file{}, map[string]file{}
	names := rapid.SampledFrom([]string{"a", "b", "c d'", "none/x"})
	sizes := rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(0, 10), rapid.IntRange(100, 1000), rapid.IntRange(MaxInline-1, MaxInline+1), rapid.IntRange(chunkSize-1, chunkSize+1),
		rapid.IntRange(agent.Window, agent.Window+1))
	fresh := 0o666 &^ umask()
	// written is what a write of content leaves.
	written := func(files map[string]file, name, content string, mode os.FileMode) {
		if old, ok := files[name]; ok && mode == fresh {
			mode = old.mode
		}
		files[name] = file{content, mode}
	}
	t.Repeat(map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			name, n := names.Filter(func(n string) bool { return n[0] != 'n' }).Draw(t, "name"), sizes.Draw(t, "size")
			mode := rapid.SampledFrom([]os.FileMode{0o600, 0o644, 0o755}).Draw(t, "mode")
			b := content(n)
			if n > 0 {
				b[n/2] = byte(len(local) + len(remote)*16)
			}
			if err := os.WriteFile(filepath.Join(here, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(here, name), mode); err != nil {
				t.Fatal(err)
			}
			local[name] = file{string(b), mode}
		},
		"remove": func(t *rapid.T) {
			name := names.Draw(t, "name")
			_ = os.Remove(filepath.Join(there, name))
			delete(remote, name)
		},
		"put": func(t *rapid.T) {
			from, to := names.Draw(t, "from"), names.Draw(t, "to")
			r := &PutRequest{Path: filepath.Join(here, from), Dest: []byte(filepath.Join(there, to))}
			mode := fresh
			if rapid.Bool().Draw(t, "with a mode") {
				mode = 0o700
				r.Mode = ptr(uint32(mode))
			}
			_, err := s.Put(ctx, c, r)
			source, known := local[from]
			switch {
			case !known:
				expect(t, err, fault.FileNotFound)
			case to == "none/x":
				expect(t, err, fault.FileFailed)
			default:
				expect(t, err, fault.Unspecified)
				written(remote, to, source.content, mode)
			}
		},
		"put content": func(t *rapid.T) {
			to, n := names.Filter(func(n string) bool { return n[0] != 'n' }).Draw(t, "to"), sizes.Draw(t, "size")
			b := content(n)
			_, err := s.Put(ctx, c, &PutRequest{Body: inParts(b, 100_000), Dest: []byte(filepath.Join(there, to))})
			expect(t, err, fault.Unspecified)
			written(remote, to, string(b), fresh)
		},
		"get": func(t *rapid.T) {
			from, to := names.Draw(t, "from"), names.Draw(t, "to")
			_, err := s.Get(ctx, c, &GetRequest{Source: []byte(filepath.Join(there, from)), Path: filepath.Join(here, to), Umask: uint32(umask())})
			source, known := remote[from]
			switch {
			case to == "none/x":
				expect(t, err, fault.FileFailed)
			case !known:
				expect(t, err, fault.FileNotFound)
			default:
				expect(t, err, fault.Unspecified)
				written(local, to, source.content, fresh)
			}
		},
		"": func(t *rapid.T) {
			same(t, here, local)
			same(t, there, remote)
		},
	})
}

func expect(t *rapid.T, err error, want fault.Kind) {
	if fault.KindOf(err) != want {
		t.Fatalf("got %v of kind %d, want kind %d", err, fault.KindOf(err), want)
	}
}

func same(t *rapid.T, dir string, want map[string]file) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(want) {
		t.Fatalf("%s has %d files, %v: want %d", dir, len(entries), err, len(want))
	}
	for name, f := range want {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != f.content {
			t.Fatalf("%s: %d bytes, %v: want %d", name, len(b), err, len(f.content))
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != f.mode {
			t.Fatalf("%s: %v, %v: want %v", name, info.Mode(), err, f.mode)
		}
	}
}
