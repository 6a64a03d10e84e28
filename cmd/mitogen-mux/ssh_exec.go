package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mitogen-mux/mitogen-mux/internal/server"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// exitConnection is ssh's exit code for all that is no command's own.
const exitConnection = 255

// stdinPart is how much of stdin goes into a message.
const stdinPart = 64 << 10

type sshExecCommand struct {
	Words []string `arg:"" optional:"" help:"--ticket=TICKET [--socket=PATH], and what one would say to ssh."`
}

// Run runs a command on the host of a ticket, as ssh would. Its exit code is the command's.
func (c *sshExecCommand) Run(ctx context.Context, p *program) error {
	call, err := parseSSH(c.Words)
	if err != nil {
		return exitError{exitConnection, "ssh-exec: " + err.Error()}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() { // until the process ends
		if awaitParent() {
			stop(errors.New("the program that asked for it has ended"))
		}
	}()
	rc, err := call.run(ctx, p)
	switch {
	case err != nil && ctx.Err() != nil:
		return exitError{exitConnection, fmt.Sprintf("%s: ended: %v", call.host, context.Cause(ctx))}
	case err != nil:
		return exitError{exitConnection, call.host + ": " + err.Error()}
	case rc != 0:
		return exitError{code: rc}
	}
	return nil
}

// run is the call. Whatever ends it ends the command.
func (c *sshCall) run(ctx context.Context, p *program) (rc int, err error) {
	path, err := c.daemonSocket(p)
	if err != nil {
		return 0, err
	}
	conn, err := dial(ctx, path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	stream, err := muxv1.NewJobsClient(conn).Exec(ctx)
	if err != nil {
		return 0, told(err)
	}
	start := &muxv1.ExecRequest_Start{Ticket: c.ticket, Host: c.host, Command: []byte(c.command)}
	if err := stream.Send(&muxv1.ExecRequest{Part: &muxv1.ExecRequest_Start_{Start: start}}); err != nil {
		_, err = stream.Recv()
		return 0, told(err)
	}
	if c.noInput {
		_ = stream.CloseSend() // never fails
	} else {
		go sendInput(p.in, stream) // it may wait for input longer than the command lives; then it ends with the process
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return 0, told(err)
		}
		if err := errors.Join(write(p.out, reply.GetStdout()), write(p.err, reply.GetStderr())); err != nil {
			return 0, fmt.Errorf("cannot write what the command says: %w", err)
		}
		if reply.Rc != nil {
			return int(reply.GetRc()), nil
		}
	}
}

// write writes what there is: nothing, written to a reader that has gone, would be an error.
func write(to io.Writer, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	_, err := to.Write(data)
	return err
}

// daemonSocket is the socket that was named, or else that of this version's daemon.
func (c *sshCall) daemonSocket(p *program) (string, error) {
	if c.socket != "" {
		return c.socket, nil
	}
	dir, err := p.existingDir()
	if err != nil {
		return "", err
	}
	return dir.Socket(p.version), nil
}

// sendInput sends what there is to read as it comes, and then its end.
func sendInput(in io.Reader, stream muxv1.Jobs_ExecClient) {
	buffer := make([]byte, stdinPart)
	for {
		n, err := in.Read(buffer)
		if n > 0 && stream.Send(&muxv1.ExecRequest{Part: &muxv1.ExecRequest_Stdin{Stdin: buffer[:n]}}) != nil {
			return // Recv says why
		}
		if err != nil {
			_ = stream.CloseSend() // never fails
			return
		}
	}
}

// told is a call's error in words for people.
func told(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the daemon ended the command without its exit code")
	}
	if status.Code(err) == codes.Unavailable && len(status.Convert(err).Details()) == 0 {
		return errors.New("the connection to the mitogen-mux daemon was lost")
	}
	e := server.FaultOf(err)
	text := e.Error()
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return errors.New(text)
}
