package moduleexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

func manifestOf(module string, files ...string) (Manifest, map[blobcache.Digest][]byte) {
	m := Manifest{Module: module}
	blobs := map[blobcache.Digest][]byte{}
	for i := 0; i < len(files); i += 2 {
		content := []byte(files[i+1])
		d := blobcache.Sum(content)
		blobs[d] = content
		m.Entries = append(m.Entries, Entry{Path: files[i], Digest: d, Size: uint64(len(content))})
	}
	return m, blobs
}

// bring offers a payload and brings what is missing.
func bring(t *testing.T, s *Store, key string, m Manifest, blobs map[blobcache.Digest][]byte, inputs ...Input) {
	t.Helper()
	missing, err := s.Offer([]byte(key), m, inputs)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range missing {
		if err := s.AddBlob(d, blobs[d]); err != nil {
			t.Fatal(err)
		}
	}
}

func mustPin(t *testing.T, s *Store, key string) *Pinned {
	t.Helper()
	p, err := s.Pin([]byte(key), &Seen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Release)
	return p
}

func TestManifestText(t *testing.T) {
	empty, a := blobcache.Sum(nil), blobcache.Sum([]byte("a"))
	m := Manifest{
		Module: "ansible.modules.ping", Loader: "l.oader", Profile: "legacy", RealPath: true, Preload: []string{"p.one", "p.two"},
		Entries: []Entry{{Path: "ansible/__init__.py", Digest: empty}, {Path: "ansible/modules/ping.py", Digest: a}},
	}
	want := "module\tansible.modules.ping\nloader\tl.oader\nprofile\tlegacy\nreal\t1\npreload\tp.one\npreload\tp.two\n" +
		"file\tansible/__init__.py\t" + empty.String() + "\nfile\tansible/modules/ping.py\t" + a.String() + "\n"
	if got := string(m.Text()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	least := Manifest{Module: "m", Entries: m.Entries[:1]}
	if got, want := string(least.Text()), "module\tm\nfile\tansible/__init__.py\t"+empty.String()+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestManifestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"no module":        func(m *Manifest) { m.Module = "" },
		"module of two":    func(m *Manifest) { m.Module = "a\nfile\tb" },
		"tab in loader":    func(m *Manifest) { m.Loader = "a\tb" },
		"newline, profile": func(m *Manifest) { m.Profile = "a\n" },
		"newline, preload": func(m *Manifest) { m.Preload = []string{"\n"} },
		"many preloads":    func(m *Manifest) { m.Preload = []string{"a", "b"} },
		"no file":          func(m *Manifest) { m.Entries = nil },
		"many files":       func(m *Manifest) { m.Entries = make([]Entry, MaxEntries+1) },
		"no path":          func(m *Manifest) { m.Entries[0].Path = "" },
		"absolute path":    func(m *Manifest) { m.Entries[0].Path = "/etc/passwd" },
		"path upwards":     func(m *Manifest) { m.Entries[0].Path = "../a" },
		"path up and down": func(m *Manifest) { m.Entries[0].Path = "a/../../b" },
		"dots":             func(m *Manifest) { m.Entries[0].Path = ".." },
		"slash at the end": func(m *Manifest) { m.Entries[0].Path = "a/" },
		"newline in path":  func(m *Manifest) { m.Entries[0].Path = "a\nb" },
		"long path":        func(m *Manifest) { m.Entries[0].Path = strings.Repeat("a", maxNameLen+1) },
		"large file":       func(m *Manifest) { m.Entries[0].Size = MaxBlobSize + 1 },
		"one path twice":   func(m *Manifest) { m.Entries = append(m.Entries, m.Entries[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := manifestOf("m", "m.py", "x")
			if err := m.Validate(); err != nil {
				t.Fatalf("as it was: %v", err)
			}
			spoil(&m)
			if m.Validate() == nil {
				t.Error("accepted")
			}
		})
	}
}

func wantPayload(t *testing.T, s *Store, key string) {
	t.Helper()
	p, err := s.Pin([]byte(key), &Seen{})
	if fault.KindOf(err) != fault.PayloadWanted {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestStoreAsksForWhatIsMissing(t *testing.T) {
	s := NewStore(blobcache.New(1 << 20))
	wantPayload(t, s, "k")
	m, blobs := manifestOf("m", "m.py", "one", "n.py", "two", "o.py", "one")
	missing, err := s.Offer([]byte("k"), m, nil)
	if err != nil || len(missing) != 2 {
		t.Fatalf("missing %v, %v: want each blob once", missing, err)
	}
	wantPayload(t, s, "k")
	if err := s.AddBlob(missing[0], []byte("something else")); err == nil {
		t.Error("a blob under another's name was accepted")
	}
	for _, d := range missing {
		if err := s.AddBlob(d, blobs[d]); err != nil {
			t.Fatal(err)
		}
	}
	p := mustPin(t, s, "k")
	text, ok := p.Get(p.manifest)
	if !ok || string(text) != string(m.Text()) {
		t.Errorf("the manifest is no blob: %q", text)
	}
	if b, ok := p.Get(missing[1]); !ok || string(b) != "two" {
		t.Errorf("got %q", b)
	}
	if len(p.want()) != 3 {
		t.Errorf("an agent needs %v", p.want())
	}
	if again, err := s.Offer([]byte("k"), m, nil); err != nil || len(again) != 0 {
		t.Errorf("offered again: missing %v, %v", again, err)
	}
	for _, key := range []string{"", strings.Repeat("k", 257)} {
		if _, err := s.Offer([]byte(key), m, nil); err == nil {
			t.Errorf("a key of %d bytes was accepted", len(key))
		}
	}
	if _, err := s.Offer([]byte("k"), m, make([]Input, MaxInputs+1)); err == nil {
		t.Error("too many inputs were accepted")
	}
}

func TestStoreForgetsTheOldest(t *testing.T) {
	s := NewStore(blobcache.New(1 << 20))
	m, blobs := manifestOf("m", "m.py", "one")
	for i := range maxPayloads {
		bring(t, s, fmt.Sprint(i), m, blobs)
	}
	mustPin(t, s, "0")
	bring(t, s, "one more", m, blobs)
	mustPin(t, s, "0")
	wantPayload(t, s, "1")
	if n, bytes := s.Counts(); n != maxPayloads || bytes != 3 {
		t.Errorf("%d payloads, %d bytes", n, bytes)
	}
}

func TestStoreSurvivesEviction(t *testing.T) {
	s := NewStore(blobcache.New(10))
	m, blobs := manifestOf("m", "m.py", "12345678")
	bring(t, s, "k", m, blobs)
	p := mustPin(t, s, "k")
	other, otherBlobs := manifestOf("o", "o.py", "abcdefgh")
	bring(t, s, "o", other, otherBlobs)
	if b, ok := p.Get(m.Entries[0].Digest); !ok || string(b) != "12345678" {
		t.Error("a blob in use was evicted")
	}
	p.Release()
	bring(t, s, "o", other, otherBlobs)
	evicted, other2 := s.Pin([]byte("k"), &Seen{})
	if evicted != nil {
		evicted.Release()
		_, other2 = s.Pin([]byte("o"), &Seen{})
	}
	if fault.KindOf(other2) != fault.PayloadWanted {
		t.Error("both payloads fit into a cache for one")
	}
}

// TestSeen: what another run brings under the same key is nothing to a run that has seen the one before, until that has lost its files.
func TestSeen(t *testing.T) {
	s := NewStore(blobcache.New(64))
	first, firstBlobs := manifestOf("m", "m.py", "12345678")
	second, secondBlobs := manifestOf("m", "m.py", "abcdefgh")
	var seen Seen
	expect := func(by *Seen, want Manifest) {
		t.Helper()
		p, err := s.Pin([]byte("k"), by)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release()
		if p.manifest != blobcache.Sum(want.Text()) {
			t.Error("it is the other one")
		}
	}
	bring(t, s, "k", first, firstBlobs)
	expect(&seen, first)
	bring(t, s, "k", second, secondBlobs)
	expect(&seen, first)
	expect(&Seen{}, second)
	large := strings.Repeat("x", 60)
	crowd, crowdBlobs := manifestOf("c", "c.py", large)
	bring(t, s, "c", crowd, crowdBlobs)
	if _, err := s.Pin([]byte("k"), &seen); fault.KindOf(err) != fault.PayloadWanted {
		t.Fatalf("without its files: %v", err)
	}
	bring(t, s, "k", second, secondBlobs)
	expect(&seen, second)
}

// inputOf is what a run would say of a path.
func inputOf(t *testing.T, path string) Input {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Input{Path: path, Absent: true}
	}
	return Input{
		Path: path, Dev: uint64(st.Dev), Ino: st.Ino, Size: uint64(st.Size), //nolint:unconvert // differs on darwin
		MtimeNs: st.Mtim.Nano(), CtimeNs: st.Ctim.Nano(), Directory: uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR,
	}
}

func TestStoreChecksInputs(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		change func(dir string) error
		kept   bool
	}{
		"nothing":      {func(string) error { return nil }, true},
		"file read":    {func(d string) error { _, err := os.ReadFile(filepath.Join(d, "in", "file")); return err }, true},
		"other folder": {func(d string) error { return os.WriteFile(filepath.Join(d, "other"), nil, 0o600) }, true},
		"file written": {func(d string) error { return os.WriteFile(filepath.Join(d, "in", "file"), []byte("X2"), 0o600) }, false},
		"file written, times put back": {func(d string) error {
			f := filepath.Join(d, "in", "file")
			if err := os.WriteFile(f, []byte("xy"), 0o600); err != nil {
				return err
			}
			return os.Chtimes(f, old, old)
		}, false},
		"file gone":     {func(d string) error { return os.Remove(filepath.Join(d, "in", "file")) }, false},
		"file a folder": {func(d string) error { f := filepath.Join(d, "in", "file"); _ = os.Remove(f); return os.Mkdir(f, 0o700) }, false},
		"file shadowed": {func(d string) error { return os.WriteFile(filepath.Join(d, "in", "new"), nil, 0o600) }, false},
		"absent there":  {func(d string) error { return os.WriteFile(filepath.Join(d, "absent"), nil, 0o600) }, false},
		"folder gone":   {func(d string) error { return os.RemoveAll(filepath.Join(d, "in")) }, false},
		"folder a file": {func(d string) error {
			f := filepath.Join(d, "bare")
			_ = os.Remove(f)
			return os.WriteFile(f, nil, 0o600)
		}, false},
		"folder's owner": {func(d string) error { return os.Chmod(filepath.Join(d, "bare"), 0o755) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, sub := range []string{"in", "bare"} {
				if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, "in", "file")
			if err := os.WriteFile(file, []byte("xx"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{file, filepath.Join(dir, "in"), filepath.Join(dir, "bare")} {
				if err := os.Chtimes(path, old, old); err != nil {
					t.Fatal(err)
				}
			}
			s := NewStore(blobcache.New(1 << 20))
			m, blobs := manifestOf("m", "m.py", "one")
			bring(t, s, "k", m, blobs, inputOf(t, file), inputOf(t, filepath.Join(dir, "in")), inputOf(t, filepath.Join(dir, "bare")),
				inputOf(t, filepath.Join(dir, "absent")), inputOf(t, filepath.Join(file, "below a file")))
			var seen Seen
			goOn := func() {
				p, err := s.Pin([]byte("k"), &seen)
				if err != nil {
					t.Fatal(err)
				}
				p.Release()
			}
			goOn()
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			goOn()
			if c.kept {
				mustPin(t, s, "k")
				return
			}
			wantPayload(t, s, "k")
			if n, _ := s.Counts(); n != 0 {
				t.Error("it is still known")
			}
		})
	}
}

func BenchmarkPin(b *testing.B) {
	s := NewStore(blobcache.New(1 << 20))
	m := Manifest{Module: "m", Entries: []Entry{{Path: "m.py", Digest: blobcache.Sum([]byte("x"))}}}
	inputs := make([]Input, 0, 60)
	for range 60 {
		inputs = append(inputs, Input{Path: filepath.Join(b.TempDir(), "absent"), Absent: true})
	}
	if _, err := s.Offer([]byte("k"), m, inputs); err != nil {
		b.Fatal(err)
	}
	if err := s.AddBlob(m.Entries[0].Digest, []byte("x")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p, err := s.Pin([]byte("k"), &Seen{})
		if err != nil {
			b.Fatal(err)
		}
		p.Release()
	}
}
