package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mitogen-mux/mitogen-mux/internal/daemon"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// answerTimeout is how long a daemon may take to answer.
const answerTimeout = 10 * time.Second

// existingDir is the daemon's directory, if there is one: to look for a daemon must not make anything. It returns a *daemon.Error with
// NotRunning otherwise.
func (p *program) existingDir() (daemon.Dir, error) {
	path := daemon.DirPath(p.getenv, os.Geteuid())
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return daemon.Dir{}, &daemon.Error{Reason: daemon.NotRunning, Path: path, Message: "there is no " + path}
	}
	return p.dir()
}

// client is a connection to the daemon of one version.
type client struct {
	muxv1.StatusClient
	dir     daemon.Dir
	version string
	conn    *grpc.ClientConn
}

// connect returns a *daemon.Error with NotRunning if there is no daemon of that version.
func connect(ctx context.Context, dir daemon.Dir, version string) (*client, error) {
	conn, err := dial(ctx, dir.Socket(version))
	if err != nil {
		return nil, err
	}
	return &client{muxv1.NewStatusClient(conn), dir, version, conn}, nil
}

// dial returns a *daemon.Error with NotRunning if no daemon listens there.
func dial(ctx context.Context, path string) (*grpc.ClientConn, error) {
	probe, err := daemon.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	_ = probe.Close()
	conn, err := grpc.NewClient("passthrough:///mitogen-mux",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket is ours alone
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return daemon.Dial(ctx, path) }))
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", path, err)
	}
	return conn, nil
}

func (c *client) close() { _ = c.conn.Close() }

// get asks for the daemon's status.
func (c *client) get(ctx context.Context, request *muxv1.GetStatusRequest) (*muxv1.GetStatusReply, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	reply, err := c.Get(ctx, request)
	return reply, c.explain(err)
}

// stop asks the daemon to leave. One that is gone before its answer has left is fine.
func (c *client) stop(ctx context.Context, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := c.Stop(ctx, &muxv1.StopRequest{Force: force})
	if status.Code(err) == codes.Unavailable {
		return nil
	}
	return c.explain(err)
}

// explain turns a call's error into words for people.
func (c *client) explain(err error) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.DeadlineExceeded:
		return fmt.Errorf("the daemon of version %s (process %s) does not answer: end that process", c.version, c.dir.Holder(c.version))
	case codes.Unavailable:
		return fmt.Errorf("the daemon of version %s is leaving, or has just gone", c.version)
	default:
		return fmt.Errorf("the daemon of version %s refuses: %s", c.version, status.Convert(err).Message())
	}
}

func isNotRunning(err error) bool {
	e, ok := errors.AsType[*daemon.Error](err)
	return ok && e.Reason == daemon.NotRunning
}
