package moduleexec

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

// Bounds on what a payload may consist of. Ansible's largest payloads have some 200 files of together 2 MiB.
const (
	MaxEntries  = 20_000
	MaxInputs   = 50_000
	MaxBlobSize = 64 << 20
	maxNameLen  = 4096
)

// Manifest is what a module needs: its files, each at its path in Ansible's payload, in the payload's order.
type Manifest struct {
	Entries  []Entry
	Module   string   // full name of the module, whose file runs as __main__
	Loader   string   // the payload's own entry point; empty: runpy
	Profile  string   // serialization profile, for the loader
	Preload  []string // modules of this manifest that may be imported before the fork
	RealPath bool     // _modlib_path must be a real file
}

// Entry is a file of a payload.
type Entry struct {
	Path   string
	Digest blobcache.Digest
	Size   uint64
}

// Validate reports what the agent would refuse, or what would read as something else in the manifest's text.
func (m *Manifest) Validate() error {
	if m.Module == "" {
		return fmt.Errorf("the manifest names no module")
	}
	if len(m.Entries) == 0 || len(m.Entries) > MaxEntries {
		return fmt.Errorf("the manifest has %d files: 1 to %d are allowed", len(m.Entries), MaxEntries)
	}
	if len(m.Preload) > len(m.Entries) {
		return fmt.Errorf("the manifest preloads %d modules of %d files", len(m.Preload), len(m.Entries))
	}
	for _, word := range append([]string{m.Module, m.Loader, m.Profile}, m.Preload...) {
		if !plainWord(word) {
			return fmt.Errorf("the manifest has a name that is no name: %q", word)
		}
	}
	seen := make(map[string]struct{}, len(m.Entries))
	for _, e := range m.Entries {
		if e.Path == "" || !plainWord(e.Path) || path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || e.Path == ".." || strings.HasPrefix(e.Path, "../") {
			return fmt.Errorf("the manifest has a file at %q, which is no path in a payload", e.Path)
		}
		if _, again := seen[e.Path]; again {
			return fmt.Errorf("the manifest has two files at %q", e.Path)
		}
		seen[e.Path] = struct{}{}
		if e.Size > MaxBlobSize {
			return fmt.Errorf("the manifest's file %s has %d bytes: at most %d are allowed", e.Path, e.Size, MaxBlobSize)
		}
	}
	return nil
}

// plainWord reports whether s can stand in a field of the manifest's text.
func plainWord(s string) bool {
	return len(s) <= maxNameLen && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// Text is the manifest as docs/agent-protocol.md lays it down: the blob that the agent reads.
func (m *Manifest) Text() []byte {
	var b bytes.Buffer
	line := func(fields ...string) {
		b.WriteString(strings.Join(fields, "\t"))
		b.WriteByte('\n')
	}
	line("module", m.Module)
	if m.Loader != "" {
		line("loader", m.Loader)
	}
	if m.Profile != "" {
		line("profile", m.Profile)
	}
	if m.RealPath {
		line("real", "1")
	}
	for _, name := range m.Preload {
		line("preload", name)
	}
	for _, e := range m.Entries {
		line("file", e.Path, e.Digest.String())
	}
	return b.Bytes()
}
