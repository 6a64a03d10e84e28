// Package daemon is the shell around whatever a daemon serves: where its files are and whether that place is safe, that there is one
// daemon of a version at a time, its sockets and who may connect, the line it prints once it listens, its log, and when it leaves. It
// knows nothing of gRPC, runs, nodes or Ansible.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Service is what a daemon serves.
type Service interface {
	// Serve answers on both listeners until Shutdown; it returns earlier only with an error.
	Serve(rpc, agents net.Listener) error
	// Busy is the vote on staying. It is asked a few times a second.
	Busy() bool
	// Shutdown closes the listeners at once, so that the next client starts another daemon, and then ends everything: in good
	// order until ctx is done, the hard way after that. Nothing is left when it returns.
	Shutdown(ctx context.Context)
}

// Options say which daemon to run.
type Options struct {
	Dir     Dir
	Version string
	// Ready is told the handshake line once clients can connect, to this daemon or to one of the same version that was there first.
	Ready func(handshake string) error
	// Refused is told who was turned away. It may be called from several goroutines.
	Refused func(err error)
	// Open makes the service once this daemon has the place for itself.
	Open func() (Service, error)

	StartTimeout time.Duration // for another daemon of this version to answer, or to leave
	IdleGrace    time.Duration // how long to wait for a first client
	StopGrace    time.Duration // for Service.Shutdown's good order
}

// ErrIdle is why a daemon left that nobody needed.
var ErrIdle = errors.New("nobody needs this daemon")

// ErrStuck says that the service has not ended long after its grace.
var ErrStuck = errors.New("the service does not end")

// Run is the whole life of a daemon. It ends when ctx does, when nobody needs the service, or when the service fails; only the last,
// and a daemon that could not start, is an error. If a daemon of this version serves already, Run gives its handshake and returns.
func Run(ctx context.Context, o Options) error {
	lock, err := elect(ctx, o)
	if err != nil {
		return err
	}
	if lock == nil {
		return o.Ready(o.Dir.Handshake(o.Version))
	}
	defer lock.Release()

	rpc, err := Listen(o.Dir.Socket(o.Version), o.Refused)
	if err != nil {
		return err
	}
	defer closeQuietly(rpc)
	agents, err := Listen(o.Dir.AgentSocket(o.Version), o.Refused)
	if err != nil {
		return err
	}
	defer closeQuietly(agents)
	service, err := o.Open()
	if err != nil {
		return err
	}
	return live(ctx, o, service, rpc, agents)
}

// live serves until there is a reason not to.
func live(ctx context.Context, o Options, service Service, rpc, agents net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan error, 1)
	go func() {
		err := service.Serve(rpc, agents)
		served <- err
		cancel(err)
	}()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		if waitIdle(ctx, o.IdleGrace, service.Busy) == nil {
			cancel(ErrIdle)
		}
	}()
	failed := o.Ready(o.Dir.Handshake(o.Version))
	if failed != nil {
		cancel(failed)
	}
	<-ctx.Done()

	gone := make(chan error, 1)
	go func() {
		grace, release := context.WithTimeoutCause(context.WithoutCancel(ctx), o.StopGrace, errors.New("the daemon's grace is over"))
		defer release()
		service.Shutdown(grace)
		<-idle
		gone <- <-served
	}()
	hard := time.NewTimer(2 * o.StopGrace)
	defer hard.Stop()
	select {
	case err := <-gone:
		return errors.Join(failed, err)
	case <-hard.C:
		return errors.Join(failed, ErrStuck) // the process is about to end, and all of this with it
	}
}

// elect takes the version's lock. It returns nil if a daemon that answers has it: then that one serves. One that has the lock and does
// not answer is starting or leaving, so elect waits for it to do either.
func elect(ctx context.Context, o Options) (*Lock, error) {
	deadline := time.NewTimer(o.StartTimeout)
	defer deadline.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		lock, err := o.Dir.Lock(o.Version)
		if !errors.Is(err, ErrLocked) {
			return lock, err
		}
		if conn, err := Dial(ctx, o.Dir.Socket(o.Version)); err == nil {
			closeQuietly(conn)
			return nil, nil
		}
		select {
		case <-again.C:
		case <-deadline.C:
			path := o.Dir.LockFile(o.Version)
			return nil, &Error{
				Reason: Stuck, Path: path,
				Message: fmt.Sprintf("another daemon (process %s) holds %s and answers nobody", o.Dir.Holder(o.Version), path),
				Remedy:  "end that process",
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

const (
	votePeriod = 250 * time.Millisecond
	votesNo    = 4 // in a row: who only changes hands is not gone
)

// waitIdle returns nil when busy has said no for a second after it had once said yes, or has said no throughout grace.
func waitIdle(ctx context.Context, grace time.Duration, busy func() bool) error {
	tick := time.NewTicker(votePeriod)
	defer tick.Stop()
	start, wasBusy, quiet := time.Now(), false, 0
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			if busy() {
				wasBusy, quiet = true, 0
				continue
			}
			quiet++
			if quiet >= votesNo && (wasBusy || now.Sub(start) >= grace) {
				return nil
			}
		}
	}
}

type closer interface{ Close() error }

// closeQuietly is for what is closed a second time, or only to be rid of it.
func closeQuietly(c closer) { _ = c.Close() }
