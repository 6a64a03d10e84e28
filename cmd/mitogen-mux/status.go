package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

type statusCommand struct {
	JSON   bool `help:"Print it as JSON, with the names of the .proto." name:"json"`
	Stacks bool `help:"Add what the agents are doing, and the stacks of all goroutines."`
}

// Run prints the status of this version's daemon.
func (c *statusCommand) Run(ctx context.Context, p *program) error {
	dir, err := p.existingDir()
	if isNotRunning(err) {
		return exitError{exitNotRunning, fmt.Sprintf("no daemon runs: %v", err)}
	}
	if err != nil {
		return err
	}
	client, err := connect(ctx, dir, p.version)
	if isNotRunning(err) {
		gone := exitError{exitNotRunning, fmt.Sprintf("no daemon of version %s runs in %s", p.version, dir.Path())}
		return errors.Join(gone, p.nameOthers(dir))
	}
	if err != nil {
		return err
	}
	defer client.close()
	reply, err := client.get(ctx, &muxv1.GetStatusRequest{Stacks: c.Stacks})
	if err != nil {
		return err
	}
	if c.JSON {
		text, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true, EmitUnpopulated: true}.Marshal(reply)
		if err != nil {
			return fmt.Errorf("cannot write the status: %w", err)
		}
		return p.say("%s\n", text)
	}
	if err := p.say("%s", statusText(reply, time.Now(), dir.Path())); err != nil {
		return err
	}
	return p.nameOthers(dir)
}

// statusText is the status for people.
func statusText(s *muxv1.GetStatusReply, now time.Time, dir string) string {
	var out strings.Builder
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(&out, format, args...) }

	say("mitogen-mux %s, process %d, up %v, in %s\n", s.GetVersion(), s.GetPid(), since(now, s.GetStartedUnix()), dir)
	if s.GetDraining() {
		say("draining: leaves after its last run\n")
	}
	counters := s.GetCounters()
	say("jobs %d, dials %d, payloads %d, blobs %s, goroutines %d\n",
		counters.GetJobs(), counters.GetDials(), counters.GetPayloads(), bytesText(counters.GetBlobsBytes()), counters.GetGoroutines())

	say("\nRuns: %d\n", len(s.GetRuns()))
	if len(s.GetRuns()) > 0 {
		table(&out, func(row func(cells ...any)) {
			row("RUN", "PROCESS", "ANSIBLE", "REQUESTS")
			for _, run := range s.GetRuns() {
				row(run.GetId(), run.GetPid(), run.GetCoreVersion(), run.GetRequests())
			}
		})
	}
	say("\nNodes: %d\n", len(s.GetNodes()))
	if len(s.GetNodes()) > 0 {
		table(&out, func(row func(cells ...any)) {
			row("NODE", "STATE", "JOBS", "PYTHON", "RAM", "BLOBS", "SENT", "RECEIVED", "TRIPS", "IDLE", "HOSTS")
			walk(s.GetNodes(), func(depth int, n *muxv1.GetStatusReply_Node) {
				idle := "-"
				if n.GetIdleSinceUnix() != 0 {
					idle = since(now, n.GetIdleSinceUnix()).String()
				}
				row(strings.Repeat("  ", depth)+n.GetName(), strings.ToLower(n.GetState().String()), n.GetJobs(), cmp.Or(n.GetPython(), "-"), memoryText(n.GetMemoryKib()),
					bytesText(n.GetBlobsBytes()), bytesText(n.GetSentBytes()), bytesText(n.GetReceivedBytes()), n.GetRoundTrips(), idle,
					cmp.Or(hostsText(n.GetHosts()), "-"))
			})
		})
	}
	if len(s.GetTransfers()) > 0 {
		say("\nFiles: %d\n", len(s.GetTransfers()))
		table(&out, func(row func(cells ...any)) {
			row("HOST", "WAY", "DONE", "OF", "A SECOND", "FILE")
			for _, t := range s.GetTransfers() {
				way, of := "get", "-"
				if t.GetUp() {
					way = "put"
				}
				if t.GetTotalBytes() > 0 {
					of = bytesText(t.GetTotalBytes())
				}
				rate := t.GetDoneBytes() * 1000 / max(t.GetElapsedMs(), 1)
				row(t.GetHost(), way, bytesText(t.GetDoneBytes()), of, bytesText(rate), t.GetPath())
			}
		})
	}
	if len(s.GetAgents()) > 0 {
		say("\nAgents\n")
		for _, text := range s.GetAgents() {
			say("%s\n", text)
		}
	}
	if s.GetStacks() != "" {
		say("\n%s\n", strings.TrimSpace(s.GetStacks()))
	}
	return out.String()
}

// memoryText is an agent's memory, as far as it is known.
func memoryText(kib uint64) string {
	if kib == 0 {
		return "-"
	}
	return bytesText(kib << 10)
}

// table writes aligned rows.
func table(out io.Writer, fill func(row func(cells ...any))) {
	writer := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.StripEscape)
	fill(func(cells ...any) {
		for i, cell := range cells {
			if i > 0 {
				_, _ = io.WriteString(writer, "\t")
			}
			_, _ = fmt.Fprint(writer, cell)
		}
		_, _ = io.WriteString(writer, "\n")
	})
	_ = writer.Flush()
}

// walk visits the nodes as a tree, children by name behind their parent. A node whose parent is not in the list is a root.
func walk(nodes []*muxv1.GetStatusReply_Node, visit func(depth int, n *muxv1.GetStatusReply_Node)) {
	known := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		known[n.GetId()] = true
	}
	children := make(map[string][]*muxv1.GetStatusReply_Node)
	for _, n := range nodes {
		parent := n.GetParent()
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], n)
	}
	var below func(parent string, depth int)
	below = func(parent string, depth int) {
		slices.SortFunc(children[parent], func(a, b *muxv1.GetStatusReply_Node) int {
			return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
		})
		for _, n := range children[parent] {
			visit(depth, n)
			if n.GetId() != "" {
				below(n.GetId(), depth+1)
			}
		}
	}
	below("", 0)
}

func since(now time.Time, unix int64) time.Duration {
	return max(0, now.Sub(time.Unix(unix, 0)).Truncate(time.Second))
}

// hostsText names the hosts of a node: a few, and how many more.
func hostsText(hosts []string) string {
	const few = 3
	if len(hosts) <= few {
		return strings.Join(hosts, ",")
	}
	return fmt.Sprintf("%s,+%d", strings.Join(hosts[:few], ","), len(hosts)-few)
}

func bytesText(n uint64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%dB", n)
	}
	value, unit := float64(n)/step, 0
	for units := len("KMGT"); value >= step && unit < units-1; unit++ {
		value /= step
	}
	return fmt.Sprintf("%.1f%ciB", value, "KMGT"[unit])
}
