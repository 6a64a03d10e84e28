package sshlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
)

// outside is a connection that the user's own ssh program holds; it is a mux.Transport. The program is started once: its session
// proves the connection and then becomes the account's first agent. Other commands are further programs, which share the first one's
// connection where it is an OpenSSH.
type outside struct {
	log     hclog.Logger
	program string
	args    []string // before the host
	host    string
	name    string
	place   *place
	hop     *hop.SSH
	environ []string
	dir     string // ours alone: the control socket, the agent
	control string // the control socket that the programs share
	keys    io.Closer
	notes   []mux.Note

	slots chan struct{}
	wg    sync.WaitGroup
	done  chan struct{}

	mu     sync.Mutex
	first  *child // nil if no shell is there: every command is a program of its own
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

// dialOutside connects with the user's ssh; why is said at -v. c is nil where the program is not one to ask for its configuration.
func (d *Dialer) dialOutside(ctx context.Context, c *config, p *place, h *hop.SSH, why string) (*outside, error) {
	if strings.HasPrefix(h.Host, "-") {
		return nil, &fault.Error{Kind: fault.Unreachable, Message: "The host name " + h.Host + " begins with a dash", Hint: "Set ansible_host."}
	}
	program := p.lookPath(sshName(h.Executable))
	if program == "" {
		return nil, &fault.Error{
			Kind: fault.Unreachable, Message: "There is no program " + sshName(h.Executable),
			Hint: "Install OpenSSH's client, or check ansible_ssh_executable.",
		}
	}
	dir, err := os.MkdirTemp("", "mux")
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Message: "Cannot make a folder for ssh's control socket", Cause: err}
	}
	o := &outside{
		log: d.log, program: program, host: h.Host, name: h.Host, place: p, hop: h, dir: dir,
		notes: []mux.Note{{Level: mux.Verbose, Text: fmt.Sprintf("connects through %s: %s", program, why)}},
		slots: make(chan struct{}, maxSessions), done: make(chan struct{}), open: map[*child]struct{}{},
	}
	if h.User != "" {
		o.name = h.User + "@" + h.Host
	}
	if err := o.prepare(c); err != nil {
		_ = o.Close()
		return nil, err
	}
	if err := o.connect(ctx); err != nil {
		_ = o.Close()
		return nil, err
	}
	return o, nil
}

// prepare makes the command line up to the host, and the environment.
func (o *outside) prepare(c *config) error {
	h := o.hop
	option := func(s string) { o.args = append(o.args, "-o", s) }
	option("NumberOfPasswordPrompts=1") // a server that asks again has refused the password
	if c != nil {
		o.control = c.ControlPath
	}
	if !namesControlPath(h) && o.control == "" {
		o.control = filepath.Join(o.dir, "c")
		option("ControlMaster=auto")
		option("ControlPersist=no")
		option(`ControlPath="` + o.control + `"`)
	}
	if usesPKCS11(h) {
		option("KbdInteractiveAuthentication=no")
		option("PreferredAuthentications=publickey")
		option("PasswordAuthentication=no")
		option("PKCS11Provider=" + h.PKCS11Provider)
	}
	if h.Verbosity > 0 {
		o.args = append(o.args, "-"+strings.Repeat("v", int(min(h.Verbosity, 3))))
	}
	key := ""
	if !h.PrivateKey.IsZero() {
		socket := filepath.Join(o.dir, "agent")
		public, server, err := serveKey(h.PrivateKey, h.PrivateKeyPassphrase, socket)
		if err != nil {
			return err
		}
		o.keys, key = server, filepath.Join(o.dir, "key.pub")
		if err := os.WriteFile(key, public, 0o600); err != nil {
			return &fault.Error{Kind: fault.Internal, Message: "Cannot write a public key for ssh", Cause: err}
		}
		option(`IdentityAgent="` + socket + `"`)
	}
	o.args = append(o.args, arguments(h, key)...)
	for _, entry := range o.place.run.Environ {
		if !strings.HasPrefix(entry, "SSH_ASKPASS") {
			o.environ = append(o.environ, entry)
		}
	}
	o.environ = append(o.environ, "SSH_ASKPASS_REQUIRE=never") // questions go to the terminal, where we are
	return nil
}

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
	first, err := o.start(launcher, false)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, first.terminate)
	drained := first.drainStderr()
	noise, ready := readMark(first.stdout)
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
		o.wg.Go(func() {
			<-first.exited
			o.fail(first)
			close(o.done)
		})
		return nil
	}
	_ = first.Close()
	code, said := first.status(), first.said()
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
	c, err := o.start(string(cmd), opts.TTY)
	if err != nil {
		<-o.slots
		return nil, err
	}
	o.wg.Go(func() {
		<-c.exited
		<-o.slots
	})
	return c, nil
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

// Close implements mux.Transport.
func (o *outside) Close() error {
	o.mu.Lock()
	already := o.closed
	o.closed = true
	if o.err == nil {
		o.err = &fault.Error{Kind: fault.Cancelled, Message: "The connection to " + o.name + " was closed by the daemon"}
	}
	running := slices.Collect(maps.Keys(o.open))
	connected := o.first != nil
	o.mu.Unlock()
	for _, c := range running {
		_ = c.Close()
		c.terminate()
	}
	o.wg.Wait()
	if already {
		return nil
	}
	if !connected {
		close(o.done)
	}
	if o.keys != nil {
		_ = o.keys.Close()
	}
	_ = os.RemoveAll(o.dir)
	return nil
}

// fail records why the first session, and the connection with it, has ended.
func (o *outside) fail(first *child) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return
	}
	f := &fault.Error{Kind: fault.AgentDied, Message: fmt.Sprintf("The ssh program that held the connection to %s has ended", o.name)}
	if said := lastLine(fault.Clean(first.said())); said != "" && first.status() == noStatus {
		f.Message = strings.TrimSuffix(said, ".")
		f.Hint = "sshd or the host was stopped, or the network dropped the connection; the next task connects anew."
	}
	o.err = f
}

// forget takes a program off the list. The first one ends with the last that shares its connection, once nobody reads it.
func (o *outside) forget(c *child) {
	o.mu.Lock()
	delete(o.open, c)
	first, others := o.first, len(o.open)
	o.mu.Unlock()
	if first != nil && first != c && others == 1 && first.isClosed() {
		first.terminate()
	}
}

// alone reports whether c is the only program that runs.
func (o *outside) alone(c *child) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, runs := o.open[c]
	return !runs || len(o.open) == 1
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
