package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/mitogen-mux/mitogen-mux/internal/daemon"
)

const (
	startTimeout = 12 * time.Second // less than the plugins wait for the handshake line
	idleGrace    = 30 * time.Second
	stopGrace    = 5 * time.Second
)

type serveCommand struct {
	LogLevel string `help:"What to log: ${enum}." enum:"trace,debug,info,warn,error" default:"info" env:"MITOGEN_LOG_LEVEL"`
}

// Run is the daemon's life in this process.
func (c *serveCommand) Run(ctx context.Context, p *program) error {
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
			return daemon.Silence(syscall.Stdin, syscall.Stdout, syscall.Stderr)
		},
		Refused: func(err error) { log.Warn("refused a connection", "reason", err) },
		Open: func() (daemon.Service, error) {
			file, err := daemon.OpenLog(dir.LogFile(p.version), daemon.MaxLog)
			if err != nil {
				return nil, err
			}
			log = hclog.New(&hclog.LoggerOptions{Name: "mitogen-mux", Level: hclog.LevelFromString(c.LogLevel), Output: file})
			return openHouse(dir, p.version, log, stop), nil
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

// house is what the daemon serves: the only place where the rooms meet.
type house struct {
	log  hclog.Logger
	rpc  *grpc.Server
}

func openHouse(dir daemon.Dir, version string, log hclog.Logger, stop func(error)) *house {
	log.Info("serving", "version", version, "pid", os.Getpid(), "directory", dir.Path())
	return &house{log: log, rpc: grpc.NewServer()}
}

// Serve implements daemon.Service.
func (h *house) Serve(rpc, agents net.Listener) error {
	err := h.rpc.Serve(rpc)
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil
	}
	return err
}

// Busy implements daemon.Service.
func (h *house) Busy() bool { return false }

// Shutdown implements daemon.Service.
func (h *house) Shutdown(ctx context.Context) { h.rpc.Stop() }
