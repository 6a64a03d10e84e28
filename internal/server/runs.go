package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// defaultPersist is how long idle nodes stay if a run does not say: as long as Ansible's ControlPersist.
const defaultPersist = 60

// runsService is the service Runs.
type runsService struct {
	muxv1.UnimplementedRunsServer
	*Server
}

// Attach makes a run known.
func (s *runsService) Attach(ctx context.Context, in *muxv1.AttachRequest) (*muxv1.AttachReply, error) {
	settings, err := toRun(in)
	if err != nil {
		return nil, statusOf(ctx, "", err)
	}
	id, err := s.runs.attach(process{pid: int(in.GetPid()), start: in.GetStartTime()}, in.GetCoreVersion(), settings)
	if err != nil {
		return nil, statusOf(ctx, "", err)
	}
	return &muxv1.AttachReply{
		Run:         id,
		Version:     s.o.Version,
		DaemonPid:   uint32(os.Getpid()),
		Stage1:      s.o.Stage1,
		Stage1Local: s.o.Stage1Local,
		AgentSocket: s.o.AgentSocket,
		AgentName:   settings.AgentName,
	}, nil
}

// toRun converts and checks what a run says of itself.
func toRun(in *muxv1.AttachRequest) (hop.Run, error) {
	if in.GetPid() == 0 || in.GetPid() > 1<<30 {
		return hop.Run{}, invalid("process %d", in.GetPid())
	}
	if err := short(in.GetCwd(), in.GetUser(), in.GetCoreVersion()); err != nil {
		return hop.Run{}, err
	}
	if in.GetCwd() != "" && !filepath.IsAbs(in.GetCwd()) {
		return hop.Run{}, invalid("the run's folder %q is not absolute", in.GetCwd())
	}
	entries, err := variables(in.GetEnviron())
	if err != nil {
		return hop.Run{}, err
	}
	run := hop.Run{
		Cwd:           in.GetCwd(),
		PersistFor:    defaultPersist,
		PersistBecome: true,
		MaxInterp:     int(in.GetMaxInterpreters()),
		AgentName:     agentName(in.GetUser()),
	}
	for _, e := range entries {
		run.Environ = append(run.Environ, string(e))
	}
	if in.PersistSeconds != nil {
		run.PersistFor = int64(in.GetPersistSeconds())
	}
	if in.PersistBecome != nil {
		run.PersistBecome = in.GetPersistBecome()
	}
	return run, nil
}

// agentName is what the agents' argv shows of whose they are. Whatever user holds, it stays one short word without quotes.
func agentName(user string) string {
	word := strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !(unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("@.-_", r)) {
			return '_'
		}
		return r
	}, user)
	return "mitogen-mux: " + word[:min(len(word), 64)]
}

// Detach ends a run in good order.
func (s *runsService) Detach(_ context.Context, in *muxv1.DetachRequest) (*muxv1.DetachReply, error) {
	s.runs.ended(in.GetRun(), "it has detached")
	return &muxv1.DetachReply{}, nil
}

// Reset makes nodes Draining.
func (s *runsService) Reset(ctx context.Context, in *muxv1.ResetRequest) (*muxv1.ResetReply, error) {
	if _, err := s.runs.lookUp(in.GetRun()); err != nil {
		return nil, statusOf(ctx, in.GetHost(), err)
	}
	if account := in.GetAccount(); account != "" {
		if err := s.o.Tree.Vacate(ctx, in.GetRun(), in.GetHost(), account); err != nil {
			return nil, statusOf(ctx, in.GetHost(), err)
		}
		return &muxv1.ResetReply{}, nil
	}
	var path hop.Path
	if len(in.GetPath().GetHops()) > 0 {
		var err error
		if path, err = s.keys.toPath(in.GetPath(), in.GetRun()); err != nil {
			return nil, statusOf(ctx, in.GetHost(), err)
		}
	}
	s.o.Tree.Reset(in.GetRun(), in.GetHost(), path)
	return &muxv1.ResetReply{}, nil
}

// Release lets what a run has done with leave.
func (s *runsService) Release(ctx context.Context, in *muxv1.ReleaseRequest) (*muxv1.ReleaseReply, error) {
	if _, err := s.runs.lookUp(in.GetRun()); err != nil {
		return nil, statusOf(ctx, "", err)
	}
	s.o.Tree.Release(in.GetRun(), in.GetHosts())
	return &muxv1.ReleaseReply{}, nil
}
