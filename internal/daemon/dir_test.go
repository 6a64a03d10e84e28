package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDirPath(t *testing.T) {
	own := t.TempDir()
	notDir := filepath.Join(own, "file")
	write(t, notDir)
	for name, c := range map[string]struct {
		env  map[string]string
		uid  int
		want string
	}{
		"nothing set":           {nil, 1000, "/tmp/mitogen-mux-1000"},
		"runtime directory":     {map[string]string{"XDG_RUNTIME_DIR": own}, os.Geteuid(), own + "/mitogen-mux"},
		"of somebody else":      {map[string]string{"XDG_RUNTIME_DIR": own}, os.Geteuid() + 1, "/tmp/mitogen-mux-" + itoa(os.Geteuid()+1)},
		"gone":                  {map[string]string{"XDG_RUNTIME_DIR": own + "/no"}, 7, "/tmp/mitogen-mux-7"},
		"a file":                {map[string]string{"XDG_RUNTIME_DIR": notDir}, os.Geteuid(), "/tmp/mitogen-mux-" + itoa(os.Geteuid())},
		"relative":              {map[string]string{"XDG_RUNTIME_DIR": "."}, os.Geteuid(), "/tmp/mitogen-mux-" + itoa(os.Geteuid())},
		"ours goes before all":  {map[string]string{"XDG_RUNTIME_DIR": own, "MITOGEN_MUX_DIR": "/x"}, os.Geteuid(), "/x"},
		"ours is taken as said": {map[string]string{"MITOGEN_MUX_DIR": "x/y"}, os.Geteuid(), "x/y"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := DirPath(func(k string) string { return c.env[k] }, c.uid); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestOpenDir(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, base string) (path string)
		want    Reason // 0: it can be used
	}{
		"new": {func(_ *testing.T, base string) string { return base + "/d" }, 0},
		"there already": {func(t *testing.T, base string) string {
			mkdir(t, base+"/d", 0o700)
			return base + "/d"
		}, 0},
		"trailing slash": {func(_ *testing.T, base string) string { return base + "/d/" }, 0},
		"relative":       {func(*testing.T, string) string { return "d" }, Relative},
		"blank":          {func(_ *testing.T, base string) string { return base + "/a b" }, Blank},
		"newline":        {func(_ *testing.T, base string) string { return base + "/a\nb" }, Blank},
		"no parent":      {func(_ *testing.T, base string) string { return base + "/no/d" }, NoParent},
		"symlink to our own": {func(t *testing.T, base string) string {
			mkdir(t, base+"/real", 0o700)
			check(t, os.Symlink(base+"/real", base+"/d"))
			return base + "/d"
		}, Symlink},
		"symlink to our own, with a slash": {func(t *testing.T, base string) string {
			mkdir(t, base+"/real", 0o700)
			check(t, os.Symlink(base+"/real", base+"/d"))
			return base + "/d/"
		}, Symlink},
		"dangling symlink": {func(t *testing.T, base string) string {
			check(t, os.Symlink(base+"/no", base+"/d"))
			return base + "/d"
		}, Symlink},
		"a file": {func(t *testing.T, base string) string {
			write(t, base+"/d")
			return base + "/d"
		}, NotDir},
		"group may write": {func(t *testing.T, base string) string {
			mkdir(t, base+"/d", 0o770)
			return base + "/d"
		}, Mode},
		"others may look": {func(t *testing.T, base string) string {
			mkdir(t, base+"/d", 0o701)
			return base + "/d"
		}, Mode},
		"everybody may replace it": {func(t *testing.T, base string) string {
			mkdir(t, base+"/p", 0o777)
			return base + "/p/d"
		}, OpenParent},
		"sticky parent": {func(t *testing.T, base string) string {
			mkdir(t, base+"/p", 0o777|os.ModeSticky)
			return base + "/p/d"
		}, 0},
		"of another user": {func(t *testing.T, base string) string {
			if os.Geteuid() != 0 {
				t.Skip("giving a directory away needs root")
			}
			mkdir(t, base+"/d", 0o700)
			check(t, os.Chown(base+"/d", 65534, 65534))
			return base + "/d"
		}, Owner},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.prepare(t, t.TempDir())
			dir, err := OpenDir(path)
			if c.want == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if info, err := os.Lstat(dir.Path()); err != nil || info.Mode() != 0o700|os.ModeDir {
					t.Errorf("got %v, %v; want a directory of mode 0700", info.Mode(), err)
				}
				return
			}
			got, ok := errors.AsType[*Error](err)
			if !ok || got.Reason != c.want {
				t.Fatalf("got %v, want reason %d", err, c.want)
			}
			if got.Remedy == "" || strings.Contains(strings.ReplaceAll(got.Error(), path, ""), "\n") {
				t.Errorf("want one line with a remedy, got %q", got)
			}
		})
	}
}

func TestCheckVersion(t *testing.T) {
	dir := testDir(t)
	room := maxSocketPath - len(dir.AgentSocket(""))
	for version, want := range map[string]Reason{
		"v1.2.3":                        0,
		"v1.2.3-4-gabcdef-dirty+0a1b":   0,
		"":                              BadVersion,
		"../x":                          BadVersion,
		"a b":                           BadVersion,
		"é":                             BadVersion,
		strings.Repeat("v", room):       0,
		strings.Repeat("v", room+1):     TooLong,
		strings.Repeat("v", room+10000): TooLong,
	} {
		t.Run(version[:min(len(version), 40)], func(t *testing.T) {
			err := dir.CheckVersion(version)
			if got, _ := errors.AsType[*Error](err); (got == nil) != (want == 0) || got != nil && got.Reason != want {
				t.Errorf("got %v, want reason %d", err, want)
			}
		})
	}
}

func TestSweep(t *testing.T) {
	dir := testDir(t)
	for _, version := range []string{"own", "live", "dead"} {
		for _, path := range []string{dir.Socket(version), dir.AgentSocket(version), dir.LogFile(version), olderLog(dir.LogFile(version))} {
			write(t, path)
		}
	}
	longAgo := time.Now().Add(-2 * keepLogs)
	check(t, os.Chtimes(olderLog(dir.LogFile("dead")), longAgo, longAgo))
	write(t, dir.Path()+"/unrelated")
	write(t, dir.Path()+"/socket-of-half.123")
	for _, version := range []string{"live", "dead"} {
		check(t, os.WriteFile(dir.Path()+"/socket-of-"+version, []byte(dir.Socket(version)), 0o600))
	}
	lock, err := dir.Lock("live")
	check(t, err)
	defer lock.Release()

	check(t, dir.Sweep("own"))

	want := []string{
		"agent-live.sock", "agent-own.sock", "mux-dead.log", "mux-live.lock", "mux-live.log", "mux-live.log.1", "mux-live.sock",
		"mux-own.log", "mux-own.log.1", "mux-own.sock", "socket-of-live", "unrelated",
	}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func names(t *testing.T, dir Dir) []string {
	t.Helper()
	entries, err := os.ReadDir(dir.Path())
	check(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	return got
}

func mkdir(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	check(t, os.Mkdir(path, 0o700))
	check(t, os.Chmod(path, mode))
}

func write(t *testing.T, path string) {
	t.Helper()
	check(t, os.WriteFile(path, nil, 0o600))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
