package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

func TestStatusText(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	type (
		run  = muxv1.GetStatusReply_Run
		node = muxv1.GetStatusReply_Node
	)
	for name, c := range map[string]struct {
		reply *muxv1.GetStatusReply
		want  string
	}{
		"nothing yet": {
			&muxv1.GetStatusReply{Version: "v1", Pid: 7, StartedUnix: now.Unix()},
			`
mitogen-mux v1, process 7, up 0s, in /d
jobs 0, dials 0, payloads 0, blobs 0B, goroutines 0

Runs: 0

Nodes: 0
`,
		},
		"a tree": {
			&muxv1.GetStatusReply{
				Version: "v1", Pid: 7, StartedUnix: now.Unix() - 3700, Draining: true,
				Counters: &muxv1.GetStatusReply_Counters{Jobs: 12, Dials: 3, Payloads: 2, BlobsBytes: 3 << 19, Goroutines: 40},
				Runs:     []*run{{Id: "r1", Pid: 4242, CoreVersion: "2.16.19", Requests: 3}, {Id: "r22", Pid: 43, CoreVersion: "2.21.5"}},
				Nodes: []*node{
					{Id: "4", Parent: "3", Name: "sudo root", State: muxv1.NodeState_BOOTSTRAPPING, Jobs: 1},
					{Id: "2", Name: "ssh b@h2:22", State: muxv1.NodeState_FAILED, Hosts: []string{"h2", "alias", "third", "x", "y"}},
					{Id: "3", Parent: "1", Name: "/usr/bin/python3", State: muxv1.NodeState_READY, Python: "3.11.7", MemoryKib: 25600, BlobsBytes: 1023, SentBytes: 1 << 40, ReceivedBytes: 1 << 50, RoundTrips: 9},
					{Id: "1", Name: "ssh a@h1", State: muxv1.NodeState_READY, IdleSinceUnix: now.Unix() - 61, Hosts: []string{"h1"}},
					{Id: "9", Parent: "gone", Name: "zsudo", State: muxv1.NodeState_DRAINING},
				},
				Transfers: []*muxv1.GetStatusReply_Transfer{
					{Host: "h1", Path: "/srv/a", Up: true, DoneBytes: 3 << 20, TotalBytes: 1 << 30, ElapsedMs: 1500},
					{Host: "h2", Path: "/srv/b", DoneBytes: 10},
				},
				Agents: []string{"ssh a@h1:\nno job"},
				Stacks: "goroutine 1 [running]:\n",
			},
			`
mitogen-mux v1, process 7, up 1h1m40s, in /d
draining: leaves after its last run
jobs 12, dials 3, payloads 2, blobs 1.5MiB, goroutines 40

Runs: 2
RUN  PROCESS  ANSIBLE  REQUESTS
r1   4242     2.16.19  3
r22  43       2.21.5   0

Nodes: 5
NODE                STATE          JOBS  PYTHON  RAM      BLOBS  SENT    RECEIVED   TRIPS  IDLE  HOSTS
ssh a@h1            ready          0     -       -        0B     0B      0B         0      1m1s  h1
  /usr/bin/python3  ready          0     3.11.7  25.0MiB  1023B  1.0TiB  1024.0TiB  9      -     -
    sudo root       bootstrapping  1     -       -        0B     0B      0B         0      -     -
ssh b@h2:22         failed         0     -       -        0B     0B      0B         0      -     h2,alias,third,+2
zsudo               draining       0     -       -        0B     0B      0B         0      -     -

Files: 2
HOST  WAY  DONE    OF      A SECOND  FILE
h1    put  3.0MiB  1.0GiB  2.0MiB    /srv/a
h2    get  10B     -       9.8KiB    /srv/b

Agents
ssh a@h1:
no job

goroutine 1 [running]:
`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), statusText(c.reply, now, "/d")); diff != "" {
				t.Error(diff)
			}
		})
	}
}
