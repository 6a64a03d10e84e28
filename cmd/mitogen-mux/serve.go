package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/daemon"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/server"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink"
)

const (
	startTimeout = 12 * time.Second // less than the plugins wait for the handshake line
	idleGrace    = 30 * time.Second
	stopGrace    = 5 * time.Second
)

type serveCommand struct {
	LogLevel string `help:"What to log: ${enum}." enum:"trace,debug,info,warn,error" default:"info" env:"MITOGEN_LOG_LEVEL"`
	Contexts bool   `help:"Log what goes over each link, without its content, to a file for each context." name:"router-debug" env:"MITOGEN_ROUTER_DEBUG"`
	PoolSize int    `help:"How many connections are made at the same time." default:"32" env:"MITOGEN_POOL_SIZE"`
}

// Run is the daemon's life in this process.
func (c *serveCommand) Run(ctx context.Context, p *program) error {
	defer daemon.CalmCollector()()
	if err := daemon.Detach(); err != nil {
		return err
	}
	dir, err := p.dir()
	if err != nil {
		return err
	}
	// The terminal or the plugin that started us may go; that is not ours to follow.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE)

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	log := hclog.NewNullLogger()
	err = daemon.Run(ctx, daemon.Options{
		Dir:     dir,
		Version: p.version,
		Ready: func(handshake string) error {
			if _, err := io.WriteString(p.out, handshake); err != nil {
				return fmt.Errorf("cannot print the handshake line: %w", err)
			}
			return daemon.Silence(syscall.Stdin, syscall.Stderr, syscall.Stdout) // its end says that all is done
		},
		Refused: func(err error) { log.Warn("refused a connection", "reason", err) },
		Open: func() (daemon.Service, error) {
			if log, err = c.openLog(dir, p.version); err != nil {
				return nil, err
			}
			return openHouse(dir, p.version, c.PoolSize, log, stop), nil
		},
		StartTimeout: startTimeout,
		IdleGrace:    idleGrace,
		StopGrace:    stopGrace,
	})
	if err != nil {
		log.Error("the daemon failed", "error", err)
	}
	return err
}

// openLog opens the daemon's log, and those of its contexts if they are wanted.
func (c *serveCommand) openLog(dir daemon.Dir, version string) (hclog.Logger, error) {
	file, err := daemon.OpenLog(dir.LogFile(version), daemon.MaxLog)
	if err != nil {
		return nil, err
	}
	options := &hclog.LoggerOptions{Name: "mitogen-mux", Level: hclog.LevelFromString(c.LogLevel), Output: file}
	if !c.Contexts {
		return hclog.New(options), nil
	}
	contexts, err := daemon.NewContextLogs(dir.ContextLogs(version))
	if err != nil {
		return nil, err
	}
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: options.Name, Level: hclog.Trace, Output: io.Discard})
	log.RegisterSink(hclog.NewSinkAdapter(options))
	log.RegisterSink(contexts)
	return log, nil
}

// house is what the daemon serves: the only place where the rooms meet.
type house struct {
	log    hclog.Logger
	tree   *mux.Tree
	server *server.Server

	ctx  context.Context // of what the house does by itself; ends with Shutdown
	end  context.CancelCauseFunc
	ends sync.WaitGroup // goroutines under ctx
}

// blobsMax is how much memory module files may take, between runs too.
const blobsMax = 128 << 20

func openHouse(dir daemon.Dir, version string, poolSize int, log hclog.Logger, stop func(error)) *house {
	log.Info("serving", "version", version, "pid", os.Getpid(), "directory", dir.Path())
	h := &house{log: log}
	h.ctx, h.end = context.WithCancelCause(context.Background())
	h.tree = mux.New(mux.Options{Dialer: sshlink.New(sshlink.Options{Log: log.Named("ssh")}), Log: log.Named("mux"), PoolSize: poolSize})
	h.server = server.New(server.Options{
		Log:         log,
		Tree:        server.Over(h.tree),
		Payloads:    moduleexec.NewStore(blobcache.New(blobsMax)),
		Files:       fileservice.New(),
		Version:     version,
		Stage1:      agent.Stage1(),
		Stage1Local: agent.Stage1Local(),
		AgentSocket: dir.AgentSocket(version),
		Stop:        func() { stop(errors.New("told to stop")) },
	})
	h.ends.Go(func() { h.succeed(dir, version) })
	return h
}

// Serve implements daemon.Service.
func (h *house) Serve(rpc, agents net.Listener) error {
	failed := make(chan error, 2)
	h.ends.Go(func() { failed <- h.server.Serve(rpc) })
	h.ends.Go(func() { failed <- h.attachAgents(agents) })
	h.ends.Go(func() {
		<-h.ctx.Done()
		_ = agents.Close()
	})
	select {
	case err := <-failed:
		if h.ctx.Err() == nil {
			return err
		}
	case <-h.ctx.Done():
	}
	return nil
}

// attachAgents takes the controller's own agents in.
func (h *house) attachAgents(agents net.Listener) error {
	for {
		conn, err := agents.Accept()
		if err != nil {
			return err
		}
		h.ends.Go(func() {
			if err := h.tree.AttachLocal(h.ctx, conn); err != nil {
				h.log.Warn("an agent did not attach", "error", err)
			}
		})
	}
}

// Busy implements daemon.Service: runs and requests, then nodes that are kept warm.
func (h *house) Busy() bool { return h.server.Busy() || h.tree.Busy() }

// Shutdown implements daemon.Service.
func (h *house) Shutdown(ctx context.Context) {
	h.log.Info("leaving")
	h.end(errors.New("the daemon is leaving"))
	h.server.Close(ctx)
	_ = h.tree.Close() // never fails
	h.ends.Wait()
	h.log.Info("left")
}

// succeed tells daemons of other versions to leave, which they do after their last run, and tidies up after those that were killed.
func (h *house) succeed(dir daemon.Dir, version string) {
	if err := dir.Sweep(version); err != nil {
		h.log.Warn("cannot tidy up", "error", err)
	}
	others, err := dir.Versions()
	if err != nil {
		h.log.Warn("cannot look for other versions", "error", err)
	}
	for _, other := range others {
		if other == version {
			continue
		}
		if err := tellToLeave(h.ctx, dir, other); err != nil {
			h.log.Info("another version stays for now", "version", other, "reason", err)
		}
	}
}

func tellToLeave(ctx context.Context, dir daemon.Dir, version string) error {
	client, err := connect(ctx, dir, version)
	if err != nil {
		return err
	}
	defer client.close()
	return client.stop(ctx, false)
}
