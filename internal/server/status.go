package server

import (
	"context"
	"os"
	"runtime"
	"strconv"

	"google.golang.org/grpc/codes"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// maxStacks bounds the text of all goroutines' stacks, well below maxMessage.
const maxStacks = 2 << 20

// statusService is the service Status.
type statusService struct {
	muxv1.UnimplementedStatusServer
	*Server
}

// Get describes the daemon.
func (s *statusService) Get(ctx context.Context, in *muxv1.GetStatusRequest) (*muxv1.GetStatusReply, error) {
	payloads, blobs := s.o.Payloads.Counts()
	reply := &muxv1.GetStatusReply{
		Version:     s.o.Version,
		Pid:         uint32(os.Getpid()),
		StartedUnix: s.started.Unix(),
		Draining:    s.runs.isDraining(),
		Counters: &muxv1.GetStatusReply_Counters{
			Jobs:       s.jobs.Load(),
			Dials:      s.o.Tree.Dials(),
			Goroutines: uint32(runtime.NumGoroutine()),
			Payloads:   uint64(payloads),
			BlobsBytes: uint64(blobs),
		},
	}
	for _, r := range s.runs.list() {
		reply.Runs = append(reply.Runs, &muxv1.GetStatusReply_Run{
			Id: r.id, Pid: uint32(r.pid), CoreVersion: r.core, Requests: uint32(r.requests),
		})
	}
	for _, n := range s.o.Tree.Nodes() {
		reply.Nodes = append(reply.Nodes, nodeMessage(&n))
	}
	for _, t := range s.o.Files.Transfers() {
		reply.Transfers = append(reply.Transfers, &muxv1.GetStatusReply_Transfer{
			Host: t.Host, Path: fault.Clean([]byte(t.Path)), Up: t.Up, DoneBytes: t.Done, TotalBytes: t.Total, ElapsedMs: uint64(t.Elapsed.Milliseconds()),
		})
	}
	if in.GetStacks() {
		buffer := make([]byte, maxStacks)
		reply.Stacks = string(buffer[:runtime.Stack(buffer, true)])
		reply.Agents = s.o.Tree.Look(ctx)
	}
	return reply, nil
}

func nodeMessage(n *mux.NodeInfo) *muxv1.GetStatusReply_Node {
	m := &muxv1.GetStatusReply_Node{
		Id:            strconv.FormatUint(n.ID, 10),
		Name:          n.Name,
		State:         muxv1.NodeState(n.State),
		Jobs:          uint32(n.Jobs),
		Python:        n.Python,
		BlobsBytes:    uint64(n.BlobBytes),
		MemoryKib:     n.MemoryKiB,
		SentBytes:     uint64(n.SentBytes),
		ReceivedBytes: uint64(n.ReceivedBytes),
		RoundTrips:    uint64(n.RoundTrips),
		Hosts:         n.Hosts,
	}
	if n.Parent != 0 {
		m.Parent = strconv.FormatUint(n.Parent, 10)
	}
	if !n.IdleSince.IsZero() {
		m.IdleSinceUnix = n.IdleSince.Unix()
	}
	return m
}

// Stop ends the daemon. While runs are attached, and unless it is forced, it is refused, and the daemon leaves with its last run, warm
// nodes or not: that is how another version sends this one away. New runs are served until then: where two installations are used by
// turns, a run of this one must not find that its daemon neither serves it nor makes room for another.
func (s *statusService) Stop(_ context.Context, in *muxv1.StopRequest) (*muxv1.StopReply, error) {
	if attached := s.runs.drain(); attached > 0 && !in.GetForce() {
		message := attachedText(attached) + ": the daemon leaves after the last"
		return nil, withDetail(codes.FailedPrecondition, &muxv1.Error{
			Kind: muxv1.Error_DRAINING, Message: message, Hint: "To end them now: mitogen-mux stop --force.",
		}, message)
	}
	s.leave()
	return &muxv1.StopReply{}, nil
}
