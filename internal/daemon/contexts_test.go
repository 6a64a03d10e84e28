package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestContextLogs(t *testing.T) {
	folder := testDir(t).ContextLogs("v")
	check(t, os.Mkdir(folder, 0o700))
	check(t, os.WriteFile(filepath.Join(folder, "9.log"), []byte("of a daemon before"), 0o600))
	sink, err := NewContextLogs(folder)
	check(t, err)
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Trace, Output: &strings.Builder{}})
	log.RegisterSink(sink)
	log.Trace("about nobody")
	log.With(ContextKey, 1).Trace("one", "bytes", 3)
	log.With(ContextKey, 2).Debug("two")
	log.Named("agent").Info("one again", "type", "DATA", ContextKey, 1, "bytes", 4)

	entries, err := os.ReadDir(folder)
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != "1.log 2.log" {
		t.Fatalf("there are %v", names)
	}
	text, err := os.ReadFile(filepath.Join(folder, "1.log"))
	check(t, err)
	for _, want := range []string{"one: bytes=3", "one again: type=DATA bytes=4"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if strings.Contains(string(text), "nobody") || strings.Contains(string(text), "two") {
		t.Errorf("what is not about it is in %s", text)
	}
	info, err := os.Stat(filepath.Join(folder, "1.log"))
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v", info.Mode())
	}
}
