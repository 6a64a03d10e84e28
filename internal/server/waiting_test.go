package server

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// A user who waits for a connection is told what it waits for, once, while it waits.
func TestLongWaitIsTold(t *testing.T) {
	d := start(t, newBareNode())
	d.o.Slow = time.Millisecond
	d.tree.nodes = []mux.NodeInfo{
		{ID: 1, Name: "ssh deploy@h1:22", State: mux.Ready, Hosts: []string{"web1"}},
		{ID: 2, Name: "sudo root", State: mux.Authenticating, Hosts: []string{"web1"}},
		{ID: 3, Name: "ssh deploy@h2:22", State: mux.Dialing, Hosts: []string{"web2"}},
	}
	told := make(chan struct{})
	d.tree.wait = func() { <-told }
	stream, err := d.jobs.Run(within(t))
	if err == nil {
		err = stream.Send(&muxv1.RunRequest{Part: &muxv1.RunRequest_Request{Request: d.request(t, shell1("true"))}})
	}
	if err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	close(told)
	log := reply.GetLog()
	if err != nil || log.GetLevel() != muxv1.Log_V || log.GetHost() != "web1" || !strings.HasSuffix(log.GetText(), ": sudo root has the password and has not let us in yet") {
		t.Errorf("%v, %v", reply, err)
	}
	for err == nil {
		if reply, err = stream.Recv(); reply.GetLog() != nil {
			t.Errorf("and again: %v", reply)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestWaitText(t *testing.T) {
	for state, want := range map[mux.State]bool{
		mux.Idle: true, mux.Dialing: true, mux.Authenticating: true, mux.Bootstrapping: true, mux.Ready: false, mux.Draining: false, mux.Closed: false, mux.Failed: false,
	} {
		text := waitText([]mux.NodeInfo{{Name: "n", State: state, Hosts: []string{"h"}}}, "h", 5*time.Second)
		if (text != "") != want || want && !strings.HasPrefix(text, "still connecting after 5s: n ") {
			t.Errorf("%v: %q", state, text)
		}
	}
}
