package sshlink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

// resolver finds the configuration for a hop by asking `ssh -G`, and remembers the answers.
type resolver struct {
	mu     sync.Mutex
	known  map[[32]byte]*config // by all that an answer depends on
	asking map[[32]byte]*question
}

// question is an `ssh -G` that runs. The last of its askers to leave ends it.
type question struct {
	askers int
	cancel context.CancelCauseFunc
	done   chan struct{} // closed once cfg and err are there
	cfg    *config
	err    error
}

// maxAnswers bounds the memory of answers; a run over more targets asks again.
const maxAnswers = 4096

func newResolver() *resolver {
	return &resolver{known: make(map[[32]byte]*config), asking: make(map[[32]byte]*question)}
}

// resolve returns what ssh would do for h. The result is shared: nobody changes it.
func (r *resolver) resolve(ctx context.Context, h *hop.SSH, p *place) (*config, error) {
	users := slices.Concat(h.Args, h.LateArgs)
	args, configFile := controlled(h, arguments(h, givenKey)), configFileOf(users)
	files := configFiles(p, configFile)
	stamp, volatile := stampOf(files)
	if stamp == "" && onlyMoot(users) && h.ControlPath == "" {
		return plainConfig(h, p), nil
	}
	c, err := r.ask(ctx, p, h.Executable, args, h.Host, stamp, volatile)
	if err != nil {
		return nil, err
	}
	if configFile != "" {
		own := *c
		own.ConfigFile = configFile
		c = &own
	}
	return c, nil
}

// ask runs `ssh -G args host`, or returns what it said before under the same circumstances. An answer that may depend on more
// than the files we see (Include, Match) counts for its run only.
func (r *resolver) ask(ctx context.Context, p *place, executable string, args []string, host, stamp string, volatile bool) (*config, error) {
	parts := slices.Concat([]string{executable, host, p.run.Cwd}, args, []string{"\x00"}, p.run.Environ)
	if volatile {
		parts = append(parts, "\x00run", p.run.ID)
	}
	name := sha256.Sum256([]byte(strings.Join(append(parts, "\x00", stamp), "\x00")))
	r.mu.Lock()
	if known, ok := r.known[name]; ok {
		r.mu.Unlock()
		return known, nil
	}
	q := r.asking[name]
	if q == nil {
		q = r.start(name, func(ctx context.Context) (*config, error) { return ask(ctx, p, executable, args, host) })
	}
	q.askers++
	r.mu.Unlock()

	select {
	case <-q.done:
		return q.cfg, q.err
	case <-ctx.Done():
	}
	r.mu.Lock()
	q.askers--
	last := q.askers == 0
	if last && r.asking[name] == q {
		delete(r.asking, name)
	}
	r.mu.Unlock()
	if last {
		q.cancel(context.Cause(ctx))
		<-q.done
	}
	return nil, ctxFault(ctx, "Reading the SSH configuration of "+host)
}

// start runs ask for all who come while it runs; r.mu is held.
func (r *resolver) start(name [32]byte, ask func(context.Context) (*config, error)) *question {
	ctx, cancel := context.WithCancelCause(context.Background())
	q := &question{cancel: cancel, done: make(chan struct{})}
	r.asking[name] = q
	go func() {
		defer close(q.done)
		defer cancel(nil)
		ctx, stop := context.WithTimeoutCause(ctx, askTimeout, errTimeout)
		defer stop()
		q.cfg, q.err = ask(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.asking[name] == q {
			delete(r.asking, name)
		}
		if q.err != nil {
			return
		}
		if len(r.known) >= maxAnswers {
			clear(r.known)
		}
		r.known[name] = q.cfg
	}()
	return q
}

// standard is what this ssh does without any configuration, to tell its defaults from choices. It is asked once a program.
func (r *resolver) standard(p *place, executable string) *config {
	bare := &place{home: p.home, user: p.user, uid: p.uid, run: hop.Run{Environ: []string{"PATH=" + p.env("PATH")}}}
	c, err := r.ask(context.Background(), bare, executable, []string{"-F", os.DevNull}, "standard", "", false)
	if err != nil {
		return &config{}
	}
	return c
}

// askTimeout bounds one `ssh -G`, which may look names up and run the commands of Match exec.
const askTimeout = 60 * time.Second

// lateOutput is how long the program's output may take to be read once it has ended. Whoever it has left behind with its output open is
// not waited for; a machine that has five hundred other things to do must not be taken for that.
const lateOutput = 10 * time.Second

func ask(ctx context.Context, p *place, executable string, args []string, host string) (*config, error) {
	path := p.lookPath(sshName(executable))
	if path == "" {
		return nil, unsupported("An SSH configuration without an ssh program to read it", "Install OpenSSH's client, or put it on PATH.")
	}
	cmd := exec.CommandContext(ctx, path, slices.Concat([]string{"-G"}, args, []string{"--", host})...) // the user's own ssh
	cmd.Env, cmd.Dir = append([]string{}, p.run.Environ...), p.run.Cwd
	cmd.WaitDelay = lateOutput
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := fault.Clean(stderr.Bytes())
		return nil, &fault.Error{
			Kind: fault.Unreachable, Message: "ssh does not accept the configuration for " + host, Cause: err, Stderr: text,
			Hint: firstLine(text),
		}
	}
	c, err := parseConfig(host, stdout.Bytes())
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Message: "Cannot read the SSH configuration of " + host, Cause: err}
	}
	return c, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// arguments are those that Ansible's ssh plugin would pass before the host, in its order, without those about multiplexing. key is
// the file of a key that was given as content.
func arguments(h *hop.SSH, key string) []string {
	args := slices.Clone(h.Args)
	option := func(s string) { args = append(args, "-o", s) }
	if !h.HostKeyChecking {
		option("StrictHostKeyChecking=no")
	}
	if h.Port != 0 {
		option("Port=" + strconv.Itoa(int(h.Port)))
	}
	switch {
	case !h.PrivateKey.IsZero():
		option("IdentitiesOnly=yes")
		option(`IdentityFile="` + key + `"`)
	case h.PrivateKeyFile != "":
		option(`IdentityFile="` + h.PrivateKeyFile + `"`)
	}
	if h.Password.IsZero() {
		option("KbdInteractiveAuthentication=no")
		option("PreferredAuthentications=" + strings.Join(withoutPassword, ","))
		option("PasswordAuthentication=no")
	}
	if h.User != "" {
		option(`User="` + h.User + `"`)
	}
	if h.TimeoutSeconds != 0 {
		option("ConnectTimeout=" + strconv.Itoa(int(h.TimeoutSeconds)))
	}
	return append(args, h.LateArgs...)
}

// controlled adds Ansible's own ControlPath option, if the user has set one, as its plugin does: ssh -G then says whether a control
// connection of the user's may be there.
func controlled(h *hop.SSH, args []string) []string {
	if h.ControlPath == "" || namesControlPath(h) || !slices.ContainsFunc(args, func(arg string) bool {
		return strings.Contains(strings.ToLower(arg), "controlpersist")
	}) {
		return args
	}
	return append(slices.Clip(args), "-o", `ControlPath="`+h.ControlPath+`"`)
}

// withoutPassword are the methods that Ansible lets ssh try when there is no password.
var withoutPassword = []string{"gssapi-with-mic", "gssapi-keyex", "hostbased", "publickey"}

// plainConfig is what `ssh -G` would say for h where nothing is configured.
func plainConfig(h *hop.SSH, p *place) *config {
	c := defaultConfig(h.Host, p.user)
	c.ConnectTimeout = time.Duration(h.TimeoutSeconds) * time.Second
	if !h.HostKeyChecking {
		c.StrictHostKeys = "no"
	}
	if h.Port != 0 {
		c.Port = int(h.Port)
	}
	if h.User != "" {
		c.User = h.User
	}
	switch {
	case !h.PrivateKey.IsZero():
		c.IdentitiesOnly, c.IdentityFiles = true, []string{givenKey}
	case h.PrivateKeyFile != "":
		c.IdentityFiles = []string{h.PrivateKeyFile}
	}
	if h.Password.IsZero() {
		c.KbdInteractiveAuth, c.PasswordAuth, c.PreferredAuths = false, false, withoutPassword
	}
	return c
}

// onlyMoot reports whether args say nothing that matters here: compression and the control connection of Ansible's defaults,
// verbosity, and terminals, which are Exec's business.
func onlyMoot(args []string) bool {
	for i := 0; i < len(args); i++ {
		option := ""
		switch arg := args[i]; {
		case arg == "-F" && i+1 < len(args) && args[i+1] == "none":
			i++
			continue
		case len(arg) > 1 && arg[0] == '-' && strings.Trim(arg[1:], "CqTtv") == "":
			continue
		case arg == "-o" && i+1 < len(args):
			i++
			option = args[i]
		case strings.HasPrefix(arg, "-o"):
			option = arg[2:]
		default:
			return false
		}
		name, _, _ := strings.Cut(strings.TrimSpace(option), "=")
		name, _, _ = strings.Cut(name, " ")
		switch strings.ToLower(name) {
		case "controlmaster", "controlpersist", "compression":
		default:
			return false
		}
	}
	return true
}

// valueFlags are ssh's options that take a value.
const valueFlags = "BbcDEeFIiJLlmOoPpQRSWw"

// configFileOf finds the value of -F.
func configFileOf(args []string) string {
	file := ""
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			continue
		}
		for j := 1; j < len(arg); j++ {
			if !strings.ContainsRune(valueFlags, rune(arg[j])) {
				continue
			}
			value := arg[j+1:]
			if value == "" && i+1 < len(args) {
				i++
				value = args[i]
			}
			if arg[j] == 'F' {
				file = value
			}
			break
		}
	}
	return file
}

const systemDropIns = "/etc/ssh/ssh_config.d/*.conf"

// configFiles are the files ssh starts from.
func configFiles(p *place, given string) []string {
	if given == "none" {
		return nil
	}
	if given != "" {
		return []string{p.abs(given)}
	}
	files := []string{filepath.Join(p.home, ".ssh", "config"), "/etc/ssh/ssh_config"}
	more, _ := filepath.Glob(systemDropIns)
	return append(files, more...)
}

// stampOf identifies the contents of files, empty if there are none. volatile: they refer to what the stamp does not cover.
func stampOf(files []string) (stamp string, volatile bool) {
	var all strings.Builder
	for _, file := range files {
		info, err := os.Stat(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			volatile = true
			fmt.Fprintf(&all, "%s: %v\n", file, err)
			continue
		}
		fmt.Fprintf(&all, "%s %d %d\n", file, info.Size(), info.ModTime().UnixNano())
		volatile = volatile || refersElsewhere(file)
	}
	return all.String(), volatile
}

// refersElsewhere reports whether a file has an Include (but for the drop-ins that are watched), a Match or asks the DNS.
func refersElsewhere(file string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return true
	}
	for line := range strings.Lines(strings.ToLower(string(data))) {
		words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n=\"", r) })
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "include":
			if len(words) != 2 || words[1] != systemDropIns {
				return true
			}
		case "match", "canonicalizehostname":
			return true
		}
	}
	return false
}

func sshName(executable string) string {
	if executable == "" {
		return "ssh"
	}
	return executable
}

// isStockSSH reports whether executable is the ssh that PATH finds, by whatever name.
func (p *place) isStockSSH(executable string) bool {
	if executable == "" || executable == "ssh" {
		return true
	}
	given, err1 := os.Stat(p.lookPath(executable))
	stock, err2 := os.Stat(p.lookPath("ssh"))
	return err1 == nil && err2 == nil && os.SameFile(given, stock)
}

// lookPath finds a program by the run's PATH, not the daemon's; empty if there is none.
func (p *place) lookPath(name string) string {
	if strings.Contains(name, "/") {
		return p.abs(name)
	}
	path := p.env("PATH")
	if path == "" {
		path = "/usr/local/bin:/usr/bin:/bin"
	}
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(p.abs(dir), name)
		if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return full
		}
	}
	return ""
}
