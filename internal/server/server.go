package server

import (
	"context"
	"fmt"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// Limits of the connections of clients, which are processes of the daemon's own user.
const (
	maxMessage     = 4 << 20  // bytes of one message, either way
	maxHeader      = 64 << 10 // bytes of a call's headers
	maxCalls       = 4096     // at the same time on one connection
	streamWindow   = 256 << 10
	connWindow     = 1 << 20
	handshakeTime  = 10 * time.Second
	never          = time.Duration(math.MaxInt64)
	clientPingsMin = time.Second
)

// Options are what a Server is made of. All but Log and Stop must be set.
type Options struct {
	Log      hclog.Logger
	Tree     Tree
	Payloads *moduleexec.Store
	Files    *fileservice.Service
	Version  string // of the build
	// What runs are told of agents.
	Stage1      string
	Stage1Local string
	AgentSocket string
	// Stop is called once, when the daemon has been asked to end (and, unless forced, its last run has ended). It must return at
	// once; Close is its business.
	Stop func()
	Slow time.Duration // a request's wait for its connection that its user is told of; 0: five seconds
}

// Server serves the daemon's gRPC services.
type Server struct {
	o       Options
	log     hclog.Logger
	grpc    *grpc.Server
	keys    *keyMaker
	runs    *registry
	leave   func()
	started time.Time
	jobs    atomic.Uint64  // modules and commands started
	wg      sync.WaitGroup // readers of request streams
}

// New returns a server that serves nothing yet.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Slow == 0 {
		o.Slow = slowAfter
	}
	s := &Server{o: o, log: o.Log.Named("server"), keys: newKeyMaker(), started: time.Now()}
	s.leave = sync.OnceFunc(func() {
		s.runs.stop()
		if o.Stop != nil {
			o.Stop()
		}
	})
	s.runs = newRegistry(s.log, o.Tree, s.leave)
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(handshakeTime),
		// No keepalive: the other end is on this machine, and its death is seen at once.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: never, MaxConnectionAge: never, MaxConnectionAgeGrace: never, Time: never, Timeout: never,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: clientPingsMin, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.guardUnary),
		grpc.StreamInterceptor(s.guardStream),
	)
	muxv1.RegisterRunsServer(s.grpc, &runsService{Server: s})
	muxv1.RegisterJobsServer(s.grpc, &jobsService{Server: s})
	muxv1.RegisterFilesServer(s.grpc, &filesService{Server: s})
	muxv1.RegisterStatusServer(s.grpc, &statusService{Server: s})
	return s
}

// Serve accepts clients until Close. The listener lets only the daemon's own user in: that is internal/daemon's business.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// Busy is the server's vote against an idle exit: a run is attached, or a request is under way.
func (s *Server) Busy() bool { return s.runs.busy() }

// Close refuses what is new, lets requests under way finish until ctx ends, then cancels them and ends all runs. When it returns
// nothing of the server runs.
func (s *Server) Close(ctx context.Context) {
	s.runs.stop()
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.grpc.GracefulStop()
	}()
	select {
	case <-graceful:
	case <-ctx.Done():
		s.grpc.Stop()
		<-graceful
	}
	s.runs.close()
	s.wg.Wait()
}

// guardUnary and guardStream keep a bug in one call from ending the daemon.
func (s *Server) guardUnary(ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (out any, err error) {
	defer func() { s.recovered(ctx, recover(), info.FullMethod, &err) }()
	return next(ctx, in)
}

func (s *Server) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() { s.recovered(stream.Context(), recover(), info.FullMethod, &err) }()
	return next(srv, stream)
}

func (s *Server) recovered(ctx context.Context, reason any, method string, err *error) {
	if reason == nil {
		return
	}
	s.log.Error("panic", "method", method, "reason", reason, "stack", string(debug.Stack()))
	*err = statusOf(ctx, "", &fault.Error{Kind: fault.Internal, Message: fmt.Sprintf("a bug in %s: %v", method, reason)})
}
