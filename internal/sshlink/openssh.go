package sshlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// outside is a connection that an ssh program holds, the user's own or an intermediary's; it is a mux.Transport. The program is started
// once: its session proves the connection and then becomes the account's first agent. Other commands are further programs, which share
// the first one's connection where it is an OpenSSH on this machine.
type outside struct {
	log     hclog.Logger
	from    *mux.Intermediary // nil: this machine
	run     func(ctx context.Context, argv []string, tty bool) (*mux.Program, error)
	program string
	args    []string // before the host
	host    string
	name    string
	place   *place
	hop     *hop.SSH
	environ []string
	dir     string // ours alone: the control socket, the agent
	control string // the control socket that the programs share; empty: each makes a connection of its own
	keys    io.Closer
	notes   []mux.Note

	slots chan struct{}
	wg    sync.WaitGroup
	done  chan struct{}
	end   func() // closes done

	mu     sync.Mutex
	first  *child // nil if no shell is there, or its command has failed: every command is a program of its own
	taken  bool   // first is a command already
	closed bool
	err    error
	open   map[*child]struct{} // all that run
}

var _ mux.Transport = (*outside)(nil)

// readyMark is what the first session says. It is spelt so that a terminal that echoes the command does not say it.
const readyMark = "MUX-READY\n"

// launcher is the first session's command: it waits for the agent's command line. The login shell has run already, and shall not twice.
const launcher = `/bin/sh -c 'printf "MUX-%s\n" READY; IFS= read -r c && eval "exec $c"'`

// dialOutside connects with an ssh program; why is said at -v. c is nil where it is not one to ask for its configuration.
func (d *Dialer) dialOutside(ctx context.Context, c *config, p *place, h *hop.SSH, from *mux.Intermediary, why string) (*outside, error) {
	if strings.HasPrefix(h.Host, "-") {
		return nil, &fault.Error{Kind: fault.Unreachable, Message: "The host name " + h.Host + " begins with a dash", Hint: "Set ansible_host."}
	}
	o := &outside{
		log: d.log, from: from, program: sshName(h.Executable), host: h.Host, name: h.Host, place: p, hop: h,
		slots: make(chan struct{}, maxSessions), done: make(chan struct{}), open: map[*child]struct{}{},
	}
	o.end = sync.OnceFunc(func() { close(o.done) })
	if h.User != "" {
		o.name = h.User + "@" + h.Host
	}
	err := o.prepare(c)
	if err == nil {
		o.notes = []mux.Note{{Level: mux.Verbose, Text: fmt.Sprintf("connects through %s: %s", o.whose(), why)}}
		err = o.connect(ctx)
	}
	if err != nil {
		_ = o.Close()
		return nil, err
	}
	return o, nil
}

// whose is the program, for people.
func (o *outside) whose() string {
	if o.from != nil {
		return o.program + " of the hop before (" + o.from.Name + ")"
	}
	return o.program
}

// prepare makes the command line up to the host, and what the program needs besides.
func (o *outside) prepare(c *config) error {
	h, key := o.hop, ""
	o.option("NumberOfPasswordPrompts=1") // a server that asks again has refused the password
	var err error
	if o.from == nil {
		key, err = o.prepareHere(c)
	} else {
		err = o.prepareThere()
	}
	if err != nil {
		return err
	}
	if usesPKCS11(h) {
		o.option("KbdInteractiveAuthentication=no")
		o.option("PreferredAuthentications=publickey")
		o.option("PasswordAuthentication=no")
		o.option("PKCS11Provider=" + h.PKCS11Provider)
	}
	if h.Verbosity > 0 {
		o.args = append(o.args, "-"+strings.Repeat("v", int(min(h.Verbosity, 3))))
	}
	o.args = append(o.args, arguments(h, key)...)
	return nil
}

func (o *outside) option(s string) { o.args = append(o.args, "-o", s) }

// namesControlPath reports whether the user's arguments say where control sockets are.
func namesControlPath(h *hop.SSH) bool {
	for _, arg := range slices.Concat(h.Args, h.LateArgs) {
		if arg == "-S" || strings.Contains(strings.ToLower(arg), "controlpath") {
			return true
		}
	}
	return false
}

// usesPKCS11 is Ansible's rule: the provider counts only with a password, which is the token's PIN.
func usesPKCS11(h *hop.SSH) bool { return h.PKCS11Provider != "" && !h.Password.IsZero() }

// connect starts the first session and waits for its word.
func (o *outside) connect(ctx context.Context) error {
	if o.hop.TimeoutSeconds > 0 { // ssh itself has ConnectTimeout; this is for what comes after it
		limit := time.Duration(o.hop.TimeoutSeconds)*time.Second + authGrace
		timed, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
		defer cancel()
		ctx = timed
	}
	first, err := o.start(ctx, launcher, false)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, first.terminate)
	drained := first.drainStderr()
	noise, ready := readMark(first)
	if !ready {
		<-first.exited
	}
	drained()
	if !stop() {
		_ = first.Close()
		return ctxFault(ctx, "Connecting to "+o.name)
	}
	if ready {
		o.mu.Lock()
		o.first = first
		if !answers(o.control) { // not an OpenSSH, or one that does not share
			o.control = ""
		}
		o.mu.Unlock()
		o.settle()
		return nil
	}
	_ = first.Close()
	if first.lost != nil {
		return first.lost
	}
	code, said := first.code, first.said()
	if first.verdict() == nil && code != noStatus && code >= 0 {
		o.log.Debug("no shell answers", "host", o.hop.Host, "code", code, "stdout", fault.Clean(noise), "stderr", fault.Clean(said))
		return nil // ssh has connected; what the command does there is the command's matter
	}
	return o.explain(first, said)
}

// readMark reads up to the mark, not a byte more.
func readMark(from io.Reader) (noise []byte, ready bool) {
	const most = 64 << 10
	one := make([]byte, 1)
	for len(noise) < most {
		if _, err := io.ReadFull(from, one); err != nil {
			return noise, false
		}
		noise = append(noise, one[0])
		if bytes.HasSuffix(noise, []byte(readyMark)) {
			return noise, true
		}
	}
	return noise, false
}

// Exec implements mux.Transport.
func (o *outside) Exec(ctx context.Context, cmd []byte, opts mux.ExecOptions) (mux.Process, error) {
	if first := o.take(cmd, opts); first != nil {
		if _, err := first.Write(append(slices.Clone(cmd), '\n')); err != nil {
			<-first.exited
			_, err := first.Wait()
			_ = first.Close()
			return nil, cmpErr(err, os.ErrClosed)
		}
		return first, nil
	}
	if !takeSession(ctx, o.slots, o.done, opts.MakeRoom) {
		if ctx.Err() != nil {
			return nil, ctxFault(ctx, "Waiting for a free session on "+o.name)
		}
		return nil, o.Err()
	}
	c, err := o.start(ctx, string(cmd), opts.TTY)
	if err != nil {
		<-o.slots
		return nil, err
	}
	o.wg.Go(func() {
		<-c.exited
		<-o.slots
	})
	if opts.Agent {
		o.lead(c)
	}
	return c, nil
}

// lead puts an agent's program in the place of a first one that has failed.
func (o *outside) lead(c *child) {
	o.settle()
	o.mu.Lock()
	if o.first == nil {
		o.first, o.taken = c, true
	}
	o.mu.Unlock()
	o.settle()
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// take gives the first session to the first agent.
func (o *outside) take(cmd []byte, opts mux.ExecOptions) *child {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first == nil || o.taken || o.closed || !opts.Agent || bytes.ContainsAny(cmd, "\n\x00") {
		return nil
	}
	o.taken = true
	return o.first
}

// Done implements mux.Transport.
func (o *outside) Done() <-chan struct{} { return o.done }

// Err implements mux.Transport.
func (o *outside) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// Notes implements mux.Transport.
func (o *outside) Notes() []mux.Note { return o.notes }

// Shared implements mux.Transport.
func (o *outside) Shared() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.control != ""
}

// Close implements mux.Transport.
func (o *outside) Close() error {
	o.mu.Lock()
	already := o.closed
	o.closed = true
	if o.err == nil {
		o.err = &fault.Error{Kind: fault.Cancelled, Message: "The connection to " + o.name + " was closed by the daemon"}
	}
	running := slices.Collect(maps.Keys(o.open))
	o.mu.Unlock()
	for _, c := range running {
		_ = c.Close()
		c.terminate()
	}
	o.wg.Wait()
	if already {
		return nil
	}
	o.end()
	if o.keys != nil {
		_ = o.keys.Close()
	}
	if o.dir != "" {
		_ = os.RemoveAll(o.dir)
	}
	return nil
}

// settle ends the connection if it is over: with the first session, or where each program has its own, with the last of them.
func (o *outside) settle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first == nil || !o.first.hasExited() {
		return
	}
	if code := o.first.code; code > 0 && code != noStatus && o.first.verdict() == nil { // an interpreter that is none, say
		o.first = nil
		return
	}
	if o.control == "" && len(o.open) > 0 {
		return
	}
	if o.err == nil {
		o.err = o.why()
	}
	o.end()
}

// why is the reason for the end of the first session, and of the connection with it.
func (o *outside) why() error {
	first := o.first
	if first.lost != nil {
		return first.lost
	}
	f := &fault.Error{Kind: fault.AgentDied, Message: fmt.Sprintf("The ssh program that held the connection to %s has ended", o.name)}
	if said := lastLine(fault.Clean(first.said())); said != "" && first.code == noStatus {
		f.Message = strings.TrimSuffix(said, ".")
		f.Hint = "sshd or the host was stopped, or the network dropped the connection; the next task connects anew."
	}
	return f
}

// forget takes a program off the list. The first one ends with the last that shares its connection, once nobody reads it.
func (o *outside) forget(c *child) {
	o.mu.Lock()
	delete(o.open, c)
	first, others := o.first, len(o.open)
	o.mu.Unlock()
	o.settle()
	if first != nil && first != c && others == 1 && first.isClosed() {
		first.terminate()
	}
}

// holds reports whether c has the connection that other programs share.
func (o *outside) holds(c *child) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, runs := o.open[c]
	return o.first == c && o.control != "" && runs && len(o.open) > 1
}

// isLost reports whether the connection that the programs share has ended; it waits until the reason is known.
func (o *outside) isLost() bool {
	o.mu.Lock()
	first, control := o.first, o.control
	o.mu.Unlock()
	if first == nil || control == "" || answers(control) {
		return false
	}
	<-o.done
	return true
}

func (o *outside) isFirst(c *child) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.first == c
}

func lastLine(s string) string {
	if i := strings.LastIndexByte(s, '\n'); i >= 0 {
		return s[i+1:]
	}
	return s
}

// isTimeout reports whether a read ended by its deadline.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
