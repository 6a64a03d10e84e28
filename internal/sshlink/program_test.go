package sshlink

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// TestNothingShared: an intermediary's programs have a connection each. The first is nothing to the others, and all is over with the last.
func TestNothingShared(t *testing.T) {
	a := startAccount(t, "")
	link := a.dial(t, via)
	if link.Shared() {
		t.Error("it is said to be shared")
	}
	first, err := link.Exec(t.Context(), []byte("cat"), mux.ExecOptions{Agent: true})
	if err != nil {
		t.Fatal(err)
	}
	second, err := link.Exec(t.Context(), []byte("echo here; cat"), mux.ExecOptions{Agent: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(second, make([]byte, len("here\n"))); err != nil {
		t.Fatal(err)
	}
	if n := a.Connections(); n != 2 {
		t.Errorf("%d connections", n)
	}
	_ = first.Close()
	if _, err := first.Wait(); err == nil {
		t.Error("a closed program has an exit code")
	}
	waitFor(t, func() bool { return a.Connections() == 1 })
	select {
	case <-link.Done():
		t.Error("it ended with the first program")
	default:
	}
	_ = second.Close()
	<-link.Done()
	failsAs(t, link.Err(), fault.AgentDied)
}

// TestIntermediary: what can be wrong there, and who is to blame.
func TestIntermediary(t *testing.T) {
	a := startAccount(t, "")
	lost := &fault.Error{Kind: fault.AgentDied, HopName: "ssh near", Message: "gone"}
	for name, c := range map[string]struct {
		set  func(h *hop.SSH, from *mux.Intermediary) *mux.Intermediary
		want fault.Kind
		says string
	}{
		"there is none": {func(*hop.SSH, *mux.Intermediary) *mux.Intermediary { return nil }, fault.Unsupported, "Set mitogen_via"},
		"no ssh there": {func(h *hop.SSH, from *mux.Intermediary) *mux.Intermediary {
			h.Executable = "no-such-ssh"
			return from
		}, fault.Unreachable, "There is no program no-such-ssh\n" + installSSH + " It is no-such-ssh of the hop before (ssh near) that connects"},
		"a folder in its place": {func(h *hop.SSH, from *mux.Intermediary) *mux.Intermediary {
			h.Executable = "/etc"
			return from
		}, fault.Unreachable, "There is no program /etc"},
		"it cannot be started": {func(_ *hop.SSH, from *mux.Intermediary) *mux.Intermediary {
			return &mux.Intermediary{Start: func(context.Context, []string) (*mux.Program, error) { return nil, lost }}
		}, fault.AgentDied, "ssh near: gone"},
		"it is lost meanwhile": {func(_ *hop.SSH, from *mux.Intermediary) *mux.Intermediary {
			return &mux.Intermediary{Start: func(ctx context.Context, _ []string) (*mux.Program, error) {
				p, err := from.Start(ctx, []string{"/bin/sh", "-c", "exit 3"})
				if err == nil {
					wait := p.Wait
					p.Wait = func() (int, error) { _, _ = wait(); return -1, lost }
				}
				return p, err
			}}
		}, fault.AgentDied, "ssh near: gone"},
	} {
		t.Run(name, func(t *testing.T) {
			h := *a.hop
			h.Transport = via
			link, err := New(Options{}).DialThrough(t.Context(), &h, a.run, c.set(&h, intermediary(a.run)))
			if err == nil {
				_ = link.Close()
			}
			f := typed(t, err, c.want)
			if text := f.Error() + "\n" + f.Hint; !strings.Contains(text, c.says) {
				t.Errorf("%q does not say %q", text, c.says)
			}
		})
	}
}

// TestFailedCommand: what the first session's command makes of it is not the connection's fault. The next agent takes its place.
func TestFailedCommand(t *testing.T) {
	a := startAccount(t, "")
	for _, way := range []string{openssh, via} {
		t.Run(way, func(t *testing.T) {
			link := a.dial(t, way)
			for _, cmd := range []string{"sh -c 'exit 3'", "sh -c 'cat; exit 3'"} {
				if got := output(t, link, cmd, "", mux.ExecOptions{Agent: true}); got.code != 3 {
					t.Errorf("%s gave %+v", cmd, got)
				}
			}
			if err := link.Err(); err != nil {
				t.Error(err)
			}
			select {
			case <-link.Done():
				t.Error("the connection has ended")
			default:
			}
			output(t, link, "true", "", mux.ExecOptions{Agent: true})
			<-link.Done()
		})
	}
}
