package server

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

func TestPutAndGet(t *testing.T) {
	for name, node := range map[string]Node{"agent": newAgentNode(t), "no agent": newBareNode()} {
		t.Run(name, func(t *testing.T) {
			d, dir := start(t, node), t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			large := bytes.Repeat([]byte("0123456789"), 300_000)
			if err := os.WriteFile(in("large"), large, 0o600); err != nil {
				t.Fatal(err)
			}
			steps := []*muxv1.Step{
				{Action: &muxv1.Step_Put{Put: &muxv1.Put{Source: &muxv1.Put_Path{Path: in("large")}, Dest: []byte(in("a")), Mode: proto.Uint32(0o640)}}},
				{Action: &muxv1.Step_Put{Put: &muxv1.Put{Source: &muxv1.Put_HasBody{HasBody: true}, Dest: []byte(in("b"))}}},
				{Action: &muxv1.Step_Get{Get: &muxv1.Get{Source: []byte(in("a")), Path: in("c")}}},
			}
			in1 := d.request(t, steps...)
			stream, err := d.files.Transfer(within(t))
			if err != nil {
				t.Fatal(err)
			}
			a, err := gather(t, stream, in1, []*muxv1.Body{{Step: 1, Data: []byte("small "), Last: false}, {Step: 1, Data: []byte("file"), Last: true}})
			if err != nil || len(a.results) != 3 {
				t.Fatalf("%v, %v", a.results, err)
			}
			for i, want := range [][]byte{large, []byte("small file"), large} {
				sum := sha256.Sum256(want)
				if r := a.results[i]; r.GetSize() != uint64(len(want)) || !bytes.Equal(r.GetSha256(), sum[:]) || r.GetSpans().GetWire() == 0 {
					t.Errorf("step %d: %v", i, r)
				}
				if got, err := os.ReadFile(in(string(rune('a' + i)))); err != nil || !bytes.Equal(got, want) {
					t.Errorf("step %d: %d bytes, %v", i, len(got), err)
				}
			}
			if info, err := os.Stat(in("a")); err != nil || info.Mode() != 0o640 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			steps[2].GetGet().Source = []byte(in("none"))
			_, err = d.ask(t, d.request(t, steps[2]))
			if e := FaultOf(err); e.Kind != fault.FileNotFound || e.HopName != "ssh deploy@h1:22" {
				t.Errorf("get of nothing: %v", err)
			}
		})
	}
}

// Files of a become account cannot go through the SSH account's shell.
func TestFilesOfBecomeAccountWithoutAgent(t *testing.T) {
	d := start(t, newBareNode())
	request := d.request(t, &muxv1.Step{Action: &muxv1.Step_Get{Get: &muxv1.Get{Source: []byte("/etc/passwd"), Path: "/none/x"}}})
	request.Path.Hops = append(request.Path.Hops, &muxv1.Hop{Method: &muxv1.Hop_Become{Become: &muxv1.BecomeHop{Method: "sudo", User: "root"}}})
	_, err := d.ask(t, request)
	if e := FaultOf(err); e.Kind != fault.InterpreterMissing || e.Hop != 1 || e.HopName != "sudo root" {
		t.Errorf("got %v", err)
	}
}

func TestTransferOnlyMovesFiles(t *testing.T) {
	d := start(t, newBareNode())
	stream, err := d.files.Transfer(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gather(t, stream, d.request(t, shell1("true")), nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
}

// A large file is in the status while it is moved.
func TestTransfersInStatus(t *testing.T) {
	begun, looked := make(chan struct{}), make(chan struct{})
	node := &agentNode{bareNode: newBareNode()}
	node.Link = agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		id, _ := f.Open()
		f.Expect(agent.TypeData)
		close(begun)
		<-looked
		f.Result(id, agent.Result{Failed: true, Failure: agent.FailIO, Text: "No space left on device"})
		f.Drain()
	})
	d := start(t, node)
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	request := d.request(t, &muxv1.Step{Action: &muxv1.Step_Put{Put: &muxv1.Put{Source: &muxv1.Put_Path{Path: path}, Dest: []byte("/srv/\x1b[2Ja")}}})
	failed := make(chan error, 1)
	go func() {
		_, err := d.ask(t, request)
		failed <- err
	}()
	<-begun
	info, err := d.status.Get(within(t), &muxv1.GetStatusRequest{})
	close(looked)
	if all := info.GetTransfers(); err != nil || len(all) != 1 || all[0].GetHost() != "web1" || !all[0].GetUp() || all[0].GetTotalBytes() != 4<<20 ||
		!strings.HasPrefix(all[0].GetPath(), "/srv/") || strings.Contains(all[0].GetPath(), "\x1b") {
		t.Errorf("%v, %v", all, err)
	}
	if err := <-failed; FaultOf(err).Kind != fault.FileFailed {
		t.Error(err)
	}
	if info, err := d.status.Get(within(t), &muxv1.GetStatusRequest{}); err != nil || len(info.GetTransfers()) != 0 {
		t.Errorf("%v, %v", info.GetTransfers(), err)
	}
}

func TestProgressText(t *testing.T) {
	for want, p := range map[string]fileservice.Progress{
		"f: 512.0 MiB of 1024.0 MiB, 102.4 MiB/s, 5s left": {Done: 512 << 20, Total: 1 << 30, Elapsed: 5 * time.Second},
		"f: 10.0 MiB, 1.0 MiB/s":                           {Done: 10 << 20, Elapsed: 10 * time.Second},
	} {
		if got := progressText("f", p); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
