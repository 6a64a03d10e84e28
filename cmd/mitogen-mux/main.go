// Command mitogen-mux is the daemon that accelerates Ansible, and the commands that look after it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/mitogen-mux/mitogen-mux/internal/daemon"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr}))
}

// stdio is what a command may read and write.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// Exit codes. Those of status are the ones that init scripts have.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNotRunning = 3
)

type commands struct {
	Serve   serveCommand   `cmd:"" help:"Serve until nobody needs it. Ansible's plugins start it when they need it."`
	Status  statusCommand  `cmd:"" help:"Show runs and nodes. Exits 3 if no daemon of this version runs."`
	Stop    stopCommand    `cmd:"" help:"Stop the daemon, unless runs are attached."`
	Version versionCommand `cmd:"" help:"Print the version."`
	SSHExec sshExecCommand `cmd:"" name:"ssh-exec" passthrough:"" help:"Stand in for ssh: run a command on the host of a ticket, for rsync, scp and git."`
}

// program is what every command is given.
type program struct {
	stdio
	version string
	getenv  func(string) string
}

// run is the program: it returns its exit code.
func run(ctx context.Context, args []string, io stdio) (code int) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal finds the system's default

	version, err := buildVersion()
	if err != nil {
		return report(io, err)
	}
	type exit int
	defer func() { // kong prints help and versions by leaving
		switch left := recover().(type) {
		case nil:
		case exit:
			code = int(left)
		default:
			panic(left)
		}
	}()
	parser, err := kong.New(&commands{},
		kong.Name("mitogen-mux"),
		kong.Description("Makes Ansible faster. See https://github.com/mitogen-mux/mitogen-mux."),
		kong.Writers(io.out, io.err),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.UsageOnError(),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(&program{stdio: io, version: version, getenv: os.Getenv}),
	)
	if err != nil {
		return report(io, err)
	}
	command, err := parser.Parse(args)
	if err != nil {
		_, _ = fmt.Fprintf(io.err, "mitogen-mux: %v (see mitogen-mux --help)\n", err)
		return exitUsage
	}
	return report(io, command.Run())
}

// exitError is an error with an exit code of its own. One without a text has been told already.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

// report says what went wrong, on one line, and turns it into an exit code.
func report(io stdio, err error) int {
	if err == nil {
		return exitOK
	}
	own, isOwn := errors.AsType[exitError](err)
	if isOwn && own.text == "" {
		return own.code
	}
	_, _ = fmt.Fprintf(io.err, "mitogen-mux: %v\n", err)
	if isOwn {
		return own.code
	}
	return exitFailed
}

// dir is the daemon's directory, made if it is not there.
func (p *program) dir() (daemon.Dir, error) {
	dir, err := daemon.OpenDir(daemon.DirPath(p.getenv, os.Geteuid()))
	if err != nil {
		return daemon.Dir{}, err
	}
	return dir, dir.CheckVersion(p.version)
}
