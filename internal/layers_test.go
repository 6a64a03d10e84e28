// Package internal holds the rooms of the daemon. Here are only the tests that all of them keep the rules of the house.
package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mitogen-mux/mitogen-mux/"

// room says what one package may know besides the standard library. What it does not name it may not know; why says what that keeps.
type room struct {
	may []string
	why string
}

const (
	hclog = "github.com/hashicorp/go-hclog"
	sync  = "golang.org/x/sync"
	sys   = "golang.org/x/sys"
	grpc  = "google.golang.org/grpc"
	pb    = "google.golang.org/protobuf"
	ssh   = "golang.org/x/crypto/ssh"
	proto = module + "proto/mitogen_mux/v1"
)

var rooms = map[string]room{
	"internal/hop":             {nil, "values that every room shares must not drag anything along"},
	"internal/fault":           {nil, "errors that every room shares must not drag anything along"},
	"internal/become":          {nil, "the dialogue is pure, so that every split of its input can be tried"},
	"internal/blobcache":       {[]string{sync}, "content by digest has nothing to do with what it is for"},
	"internal/daemon":          {[]string{hclog, sys}, "the shell does not know what it is the shell of"},
	"internal/agent":           {[]string{hclog, "github.com/klauspost/compress/zlib", module + "internal/blobcache", module + "internal/fault"}, "a link knows neither the tree nor what its jobs mean"},
	"internal/agent/agenttest": {[]string{hclog, module + "internal/agent", module + "internal/blobcache", module + "internal/fault"}, "as its room"},
	"internal/mux": {
		[]string{hclog, sync, module + "internal/agent", module + "internal/become", module + "internal/blobcache", module + "internal/fault", module + "internal/hop"},
		"the tree knows nothing of gRPC, SSH's insides or modules",
	},
	"internal/moduleexec": {
		[]string{sync, sys, module + "internal/agent", module + "internal/blobcache", module + "internal/fault"},
		"a module runs the same on any node, so it needs no tree",
	},
	"internal/fileservice": {
		[]string{sync, sys, module + "internal/agent", module + "internal/blobcache", module + "internal/fault"},
		"a file goes the same way to any node, so it needs no tree",
	},
	"internal/sshlink": {
		[]string{hclog, sync, sys, ssh, "github.com/skeema/knownhosts", "github.com/creack/pty", module + "internal/fault", module + "internal/hop", module + "internal/mux"},
		"it dials, and leaves to others what for",
	},
	"internal/sshlink/sshtest": {[]string{ssh}, "a peer must not be made of what it tests"},
	"internal/server": {
		[]string{
			hclog, sync, sys, grpc, pb, proto, module + "internal/agent", module + "internal/blobcache", module + "internal/fault",
			module + "internal/fileservice", module + "internal/hop", module + "internal/moduleexec", module + "internal/mux",
		},
		"clients meet the rooms here, and SSH is not one of them",
	},
}

func TestLayers(t *testing.T) {
	seen := map[string]bool{}
	for dir, files := range packages(t, ".") {
		name := filepath.ToSlash(filepath.Join("internal", dir))
		rules, known := rooms[name]
		if !known {
			t.Errorf("%s is in no layer: say in this test what it may import", name)
			continue
		}
		seen[name] = true
		for path, file := range files {
			for _, spec := range file.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if isStd(imported) || slices.ContainsFunc(rules.may, func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") }) {
					continue
				}
				t.Errorf("%s imports %s, which %s may not: %s", path, imported, name, rules.why)
			}
		}
	}
	for name := range rooms {
		if !seen[name] {
			t.Errorf("%s has a layer and no files", name)
		}
	}
}

// Every package says once what it is for, in the words "Package name" (or "Command name").
func TestPackageDocs(t *testing.T) {
	for _, root := range []string{".", "../cmd", "../bench"} {
		for dir, files := range packages(t, root) {
			var docs []string
			for path, file := range files {
				if file.Doc == nil {
					continue
				}
				docs = append(docs, path)
				want := "Package " + file.Name.Name + " "
				if file.Name.Name == "main" {
					want = "Command " + filepath.Base(dir) + " "
				}
				if !strings.HasPrefix(file.Doc.Text(), want) {
					t.Errorf("%s: the package's doc does not start with %q", path, want)
				}
			}
			if len(docs) != 1 {
				t.Errorf("%s has %d package docs %v, want one", filepath.Join(root, dir), len(docs), docs)
			}
		}
	}
}

// A test may sleep where time is a fake that waits for all to be at rest, and nowhere else.
func TestTestsDoNotSleep(t *testing.T) {
	for _, root := range []string{".", "../cmd", "../bench"} {
		for _, files := range parse(t, root, func(name string) bool { return strings.HasSuffix(name, "_test.go") }) {
			for path, file := range files {
				fake := slices.ContainsFunc(file.Imports, func(spec *ast.ImportSpec) bool { return spec.Path.Value == `"testing/synctest"` })
				ast.Inspect(file, func(n ast.Node) bool {
					if call, ok := n.(*ast.SelectorExpr); ok && !fake && call.Sel.Name == "Sleep" {
						if pkg, ok := call.X.(*ast.Ident); ok && pkg.Name == "time" {
							t.Errorf("%s calls time.Sleep without testing/synctest: wait for what you want to see", path)
						}
					}
					return true
				})
			}
		}
	}
}

// packages parses the files of all packages below root, tests aside.
func packages(t *testing.T, root string) map[string]map[string]*ast.File {
	t.Helper()
	return parse(t, root, func(name string) bool { return !strings.HasSuffix(name, "_test.go") })
}

// parse returns the files below root that are wanted, by folder and path.
func parse(t *testing.T, root string, wanted func(name string) bool) map[string]map[string]*ast.File {
	t.Helper()
	found := map[string]map[string]*ast.File{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || !wanted(path) {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		if found[dir] == nil {
			found[dir] = map[string]*ast.File{}
		}
		found[dir][path] = file
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// isStd tells standard packages by their first element, which has no dot.
func isStd(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}
