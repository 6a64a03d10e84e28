package fileservice

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// unbundled is one file as it comes out of a bundle.
type unbundled struct {
	content []byte
	intact  bool
}

// unbundle reads a bundle to its end; between is called before each part but the first.
func unbundle(t *testing.T, b *Bundle, between func()) []unbundled {
	t.Helper()
	var whole []byte
	for parts := 0; ; parts++ {
		if parts == 1 && between != nil {
			between()
		}
		part, err := b.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(part) > chunkSize {
			t.Fatalf("a part of %d bytes", len(part))
		}
		whole = append(whole, part...)
	}
	var files []unbundled
	for len(whole) > 0 {
		size := binary.BigEndian.Uint64(whole)
		content, digest := whole[8:8+size], blobcache.Digest(whole[8+size:8+size+32])
		if digest != (blobcache.Digest{}) && digest != sha256.Sum256(content) {
			t.Fatal("a digest is of something else")
		}
		files = append(files, unbundled{content, digest != blobcache.Digest{}})
		whole = whole[8+size+32:]
	}
	return files
}

// index writes contents to files of their own, and a file that names these and then more.
func index(t *testing.T, contents [][]byte, more ...string) (name string, files []string) {
	t.Helper()
	folder := t.TempDir()
	var text strings.Builder
	for i, c := range contents {
		file := filepath.Join(folder, strings.Repeat("é\n", i%2)+string(rune('a'+i)))
		if err := os.WriteFile(file, c, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	for _, file := range append(files, more...) {
		text.WriteString(file + "\x00")
	}
	name = filepath.Join(folder, "index")
	if err := os.WriteFile(name, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name, files
}

func TestBundle(t *testing.T) {
	for name, sizes := range map[string][]int{
		"nothing":    {},
		"one":        {7},
		"empty ones": {0, 0, 0},
		"small":      {1, MaxInline - 1, MaxInline, 0, 5},
		"large":      {MaxInline + 1, chunkSize - 40, chunkSize, 3 * chunkSize, 1},
		"seams":      {chunkSize - 8 - 32, chunkSize - 8 - 31, chunkSize - 1, chunkSize - 81, 1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var contents [][]byte
			for i, size := range sizes {
				contents = append(contents, bytes.Repeat([]byte{byte('0' + i)}, size))
			}
			path, _ := index(t, contents)
			b, err := OpenBundle(path)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			files := unbundle(t, b, nil)
			if len(files) != len(contents) {
				t.Fatalf("%d files, want %d", len(files), len(contents))
			}
			for i, f := range files {
				if !f.intact || !bytes.Equal(f.content, contents[i]) {
					t.Errorf("file %d: %d bytes, intact %v", i, len(f.content), f.intact)
				}
			}
		})
	}
}

func TestBundleOfWhatIsNotThere(t *testing.T) {
	path, files := index(t, [][]byte{[]byte("a"), []byte("b")}, "/no/such/file", "/", "/dev/null")
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBundle(path)
	if err != nil {
		t.Fatal(err)
	}
	got := unbundle(t, b, nil)
	want := []bool{false, true, false, false, false}
	for i, f := range got {
		if f.intact != want[i] {
			t.Errorf("file %d: intact %v, %q", i, f.intact, f.content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	if _, err := OpenBundle("/no/such/index"); fault.KindOf(err) != fault.FileNotFound {
		t.Errorf("without an index: %v", err)
	}
}

func TestBundleOfWhatChanges(t *testing.T) {
	content := bytes.Repeat([]byte{'x'}, 3*chunkSize)
	for name, change := range map[string]func(string) error{
		"shorter": func(file string) error { return os.Truncate(file, chunkSize+1) },
		"longer": func(file string) error {
			return os.WriteFile(file, append(content, 'y'), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, files := index(t, [][]byte{content, []byte("after")})
			b, err := OpenBundle(path)
			if err != nil {
				t.Fatal(err)
			}
			got := unbundle(t, b, func() {
				if err := change(files[0]); err != nil {
					t.Fatal(err)
				}
			})
			if got[0].intact || len(got[0].content) != len(content) || !got[1].intact {
				t.Errorf("%d bytes, intact %v; the next one intact %v", len(got[0].content), got[0].intact, got[1].intact)
			}
		})
	}
}

func TestBundleIsCancelled(t *testing.T) {
	path, _ := index(t, [][]byte{bytes.Repeat([]byte{'x'}, 3*chunkSize)})
	b, err := OpenBundle(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := b.Next(ctx); err != nil {
		t.Fatal(err)
	}
	cancel(nil)
	if _, err := b.Next(ctx); fault.KindOf(err) != fault.Cancelled {
		t.Errorf("got %v", err)
	}
	b.Close()
}
