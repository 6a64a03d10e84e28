package server

import (
	"bytes"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/moduleexec"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// Bounds on requests. gRPC bounds each message as a whole (maxMessage).
const (
	maxHops      = 32
	maxSteps     = 4096
	maxWords     = 8192
	maxVariables = 8192
	maxShort     = 4096 // names, users, files
	maxGuards    = 16   // of a step
	maxBodyPart  = 128 << 10
)

// step is a muxv1.Step as a value: one of module, command, put, get, folder and ticket is set.
type step struct {
	guards  []guard // all of them must say so; none: no earlier step has failed
	module  *moduleStep
	command *commandStep
	put     *putStep
	get     *getStep
	folder  *folderStep
	ticket  *ticketStep
}

type guard struct {
	moduleexec.Guard
	step int
}

type moduleStep struct {
	payload []byte
	module  moduleexec.Module
	input   string // names the files whose contents are its stdin; empty: it has none
}

type commandStep struct {
	command   moduleexec.Command
	hasBody   bool
	remember  bool
	discovery *hop.Discovery
}

type putStep struct {
	path    string
	hasBody bool
	dest    []byte
	mode    *uint32
	asLogin bool
}

type getStep struct {
	source []byte
	path   string
}

type folderStep struct {
	path    []byte
	remove  bool
	asLogin bool
}

type ticketStep struct {
	shell [][]byte
	host  string
}

// toPath converts and checks a path.
func (k *keyMaker) toPath(p *muxv1.Path, run string) (hop.Path, error) {
	hops := p.GetHops()
	if len(hops) == 0 || len(hops) > maxHops {
		return nil, invalid("the path has %d hops: 1 to %d are allowed", len(hops), maxHops)
	}
	path := make(hop.Path, 0, len(hops))
	for i, h := range hops {
		if h == nil {
			return nil, invalid("hop %d is empty", i)
		}
		out := hop.Hop{Interpreter: h.GetInterpreter()}
		var err error
		switch method := h.GetMethod().(type) {
		case *muxv1.Hop_Ssh:
			out.SSH, err = toSSH(method.Ssh)
		case *muxv1.Hop_Local:
			out.Local = &hop.Local{Run: run}
		case *muxv1.Hop_Become:
			out.Become, err = toBecome(method.Become)
		case *muxv1.Hop_Container:
			out.Container, err = toContainer(method.Container)
		default:
			err = invalid("no method, or one that this daemon does not know")
		}
		if err == nil {
			err = short(h.GetInterpreter())
		}
		if err != nil {
			return nil, invalid("hop %d: %s", i, err)
		}
		out.Account = k.account(h, run)
		path = append(path, out)
	}
	return path, nil
}

func toSSH(h *muxv1.SshHop) (*hop.SSH, error) {
	if h.GetHost() == "" {
		return nil, invalid("no host")
	}
	if h.GetPort() > 65535 {
		return nil, invalid("port %d", h.GetPort())
	}
	if words := len(h.GetArgs()) + len(h.GetLateArgs()); words > maxWords {
		return nil, invalid("%d ssh arguments", words)
	}
	switch h.GetTransport() {
	case "", "native", "openssh", "via":
	default:
		return nil, invalid("mitogen_ssh_transport %q: it is native, openssh or via", h.GetTransport())
	}
	if err := short(h.GetHost(), h.GetUser(), h.GetPrivateKeyFile(), h.GetSshExecutable(), h.GetPkcs11Provider(), h.GetControlPath()); err != nil {
		return nil, err
	}
	return &hop.SSH{
		Host:                 h.GetHost(),
		Port:                 uint16(h.GetPort()),
		User:                 h.GetUser(),
		Password:             hop.NewSecret(h.GetPassword().GetValue()),
		PrivateKeyFile:       h.GetPrivateKeyFile(),
		PrivateKey:           hop.NewSecret(h.GetPrivateKey().GetValue()),
		PrivateKeyPassphrase: hop.NewSecret(h.GetPrivateKeyPassphrase().GetValue()),
		HostKeyChecking:      h.GetHostKeyChecking(),
		Args:                 h.GetArgs(),
		LateArgs:             h.GetLateArgs(),
		Executable:           h.GetSshExecutable(),
		PKCS11Provider:       h.GetPkcs11Provider(),
		ControlPath:          h.GetControlPath(),
		TimeoutSeconds:       h.GetTimeoutSeconds(),
		ReconnectionRetries:  h.GetReconnectionRetries(),
		Verbosity:            h.GetVerbosity(),
		PasswordMechanism:    h.GetPasswordMechanism(),
		Transport:            h.GetTransport(),
	}, nil
}

func toBecome(h *muxv1.BecomeHop) (*hop.Become, error) {
	if h.GetMethod() == "" {
		return nil, invalid("no become method")
	}
	if err := short(h.GetMethod(), h.GetUser(), h.GetExe(), h.GetFlags()); err != nil {
		return nil, err
	}
	if err := words(h.GetArgv()); err != nil {
		return nil, err
	}
	if n := len(h.GetPromptPatterns()) + len(h.GetWrongPassword()) + len(h.GetMissingPassword()); n > maxWords {
		return nil, invalid("%d texts of the become tool", n)
	}
	for _, pattern := range h.GetPromptPatterns() {
		if _, err := regexp.Compile("(?i)" + pattern); err != nil {
			return nil, invalid("a prompt pattern: %s", err)
		}
	}
	return &hop.Become{
		Method:          h.GetMethod(),
		User:            h.GetUser(),
		Exe:             h.GetExe(),
		Flags:           h.GetFlags(),
		Password:        hop.NewSecret(h.GetPassword().GetValue()),
		Argv:            h.GetArgv(),
		Prompt:          h.GetPrompt(),
		PromptPatterns:  h.GetPromptPatterns(),
		Success:         h.GetSuccess(),
		WrongPassword:   h.GetWrongPassword(),
		MissingPassword: h.GetMissingPassword(),
		TimeoutSeconds:  h.GetTimeoutSeconds(),
	}, nil
}

func toContainer(h *muxv1.ContainerHop) (*hop.Container, error) {
	if h.GetMethod() == "" || len(h.GetArgv()) == 0 {
		return nil, invalid("no tool to enter a container with")
	}
	if err := short(h.GetMethod(), h.GetName(), h.GetUser()); err != nil {
		return nil, err
	}
	if err := words(h.GetArgv()); err != nil {
		return nil, err
	}
	return &hop.Container{Method: h.GetMethod(), Name: h.GetName(), User: h.GetUser(), Argv: h.GetArgv()}, nil
}

// toSteps converts and checks a request's steps.
func toSteps(in []*muxv1.Step) ([]step, error) {
	if len(in) == 0 || len(in) > maxSteps {
		return nil, invalid("the request has %d steps: 1 to %d are allowed", len(in), maxSteps)
	}
	steps := make([]step, 0, len(in))
	for i, s := range in {
		out, err := toStep(s)
		if err == nil {
			out.guards, err = toGuards(s.GetGuards(), i)
		}
		if err != nil {
			return nil, invalid("step %d: %s", i, err)
		}
		steps = append(steps, out)
	}
	return steps, nil
}

func toStep(s *muxv1.Step) (out step, err error) {
	switch action := s.GetAction().(type) {
	case *muxv1.Step_Module:
		out.module, err = toModule(action.Module)
	case *muxv1.Step_Command:
		out.command, err = toCommand(action.Command)
	case *muxv1.Step_Put:
		out.put, err = toPut(action.Put)
	case *muxv1.Step_Get:
		g := action.Get
		out.get = &getStep{source: g.GetSource(), path: g.GetPath()}
		if err = words([][]byte{g.GetSource()}); err == nil {
			err = localPath(g.GetPath())
		}
	case *muxv1.Step_Folder:
		f := action.Folder
		out.folder = &folderStep{path: f.GetPath(), remove: f.GetRemove(), asLogin: f.GetAsLogin()}
		if err = words([][]byte{f.GetPath()}); err == nil && !bytes.HasPrefix(f.GetPath(), []byte("/")) {
			err = invalid("not an absolute path: %.80q", f.GetPath())
		}
	case *muxv1.Step_Ticket:
		out.ticket, err = toTicket(action.Ticket)
	default:
		err = invalid("no action, or one that this daemon does not know")
	}
	return out, err
}

func toGuards(in []*muxv1.Guard, at int) ([]guard, error) {
	if len(in) > maxGuards {
		return nil, invalid("%d guards: at most %d are allowed", len(in), maxGuards)
	}
	out := make([]guard, 0, len(in))
	for _, g := range in {
		if int64(g.GetStep()) >= int64(at) {
			return nil, invalid("its guard looks at step %d, which is not an earlier one", g.GetStep())
		}
		guard := guard{
			Guard: moduleexec.Guard{Field: g.GetField(), Value: []byte(g.GetValue()), Unequal: g.GetUnequal()},
			step:  int(g.GetStep()),
		}
		if err := guard.Validate(); err != nil {
			return nil, invalid("%s", err)
		}
		out = append(out, guard)
	}
	return out, nil
}

func toModule(m *muxv1.Module) (*moduleStep, error) {
	if len(m.GetPayload()) == 0 {
		return nil, invalid("no payload")
	}
	if err := short(m.GetName()); err != nil {
		return nil, err
	}
	environment, err := variables(m.GetEnvironment())
	if err != nil {
		return nil, err
	}
	cwd, environ, err := toProcess(m.GetProcess())
	if err != nil {
		return nil, err
	}
	if m.GetInput() != "" {
		if err := localPath(m.GetInput()); err != nil {
			return nil, err
		}
	}
	return &moduleStep{payload: m.GetPayload(), input: m.GetInput(), module: moduleexec.Module{
		Params:       m.GetParams(),
		Name:         m.GetName(),
		Environment:  environment,
		Cwd:          cwd,
		Environ:      environ,
		RlimitNofile: m.GetRlimitNofile(),
		Logging:      m.GetLogging(),
		Glance:       m.GetGlance(),
		Secrets:      m.GetSecrets(),
	}}, nil
}

func toCommand(c *muxv1.Command) (*commandStep, error) {
	if len(c.GetArgv()) == 0 {
		return nil, invalid("no command")
	}
	if err := words(append([][]byte{c.GetPlain()}, c.GetArgv()...)); err != nil {
		return nil, err
	}
	cwd, environ, err := toProcess(c.GetProcess())
	if err != nil {
		return nil, err
	}
	out := &commandStep{hasBody: c.GetHasBody(), remember: c.GetRemember(), command: moduleexec.Command{
		Argv:    c.GetArgv(),
		Plain:   c.GetPlain(),
		TTY:     c.GetTty(),
		Cwd:     cwd,
		Environ: environ,
	}}
	if d := c.GetDiscovery(); d != nil {
		if err := short(d.GetPrefer()...); err != nil {
			return nil, err
		}
		out.discovery = &hop.Discovery{Command: c.GetPlain(), Prefer: d.GetPrefer()}
	}
	return out, nil
}

func toPut(p *muxv1.Put) (*putStep, error) {
	out := &putStep{dest: p.GetDest(), mode: p.Mode, asLogin: p.GetAsLogin()}
	if len(p.GetDest()) == 0 {
		return nil, invalid("no destination")
	}
	if err := words([][]byte{p.GetDest()}); err != nil {
		return nil, err
	}
	if p.Mode != nil && p.GetMode() > 0o7777 {
		return nil, invalid("mode %o", p.GetMode())
	}
	switch source := p.GetSource().(type) {
	case *muxv1.Put_Path:
		out.path = source.Path
		return out, localPath(source.Path)
	case *muxv1.Put_HasBody:
		out.hasBody = true
		if !source.HasBody {
			return nil, invalid("no content")
		}
		return out, nil
	default:
		return nil, invalid("no source, or one that this daemon does not know")
	}
}

func toTicket(t *muxv1.Ticket) (*ticketStep, error) {
	if len(t.GetShell()) == 0 || t.GetHost() == "" {
		return nil, invalid("no shell, or no host")
	}
	if err := words(t.GetShell()); err != nil {
		return nil, err
	}
	return &ticketStep{shell: t.GetShell(), host: t.GetHost()}, short(t.GetHost())
}

func toProcess(p *muxv1.Process) (cwd []byte, environ [][]byte, err error) {
	if err := words([][]byte{p.GetCwd()}); err != nil {
		return nil, nil, err
	}
	environ, err = variables(p.GetEnviron())
	return p.GetCwd(), environ, err
}

// variables makes "name=value" entries.
func variables(in []*muxv1.Variable) ([][]byte, error) {
	if len(in) > maxVariables {
		return nil, invalid("%d environment variables: at most %d are allowed", len(in), maxVariables)
	}
	out := make([][]byte, 0, len(in))
	for _, v := range in {
		name, value := v.GetName(), v.GetValue()
		if len(name) == 0 || bytes.ContainsAny(name, "=\x00") || bytes.IndexByte(value, 0) >= 0 {
			return nil, invalid("an environment variable cannot be named or valued so: %q", name)
		}
		entry := make([]byte, 0, len(name)+1+len(value))
		out = append(out, append(append(append(entry, name...), '='), value...))
	}
	return out, nil
}

// words checks what is to be an argument of a process or the name of a file.
func words(in [][]byte) error {
	if len(in) > maxWords {
		return invalid("%d words: at most %d are allowed", len(in), maxWords)
	}
	for _, w := range in {
		if bytes.IndexByte(w, 0) >= 0 {
			return invalid("a word with a NUL byte")
		}
	}
	return nil
}

func short(in ...string) error {
	for _, s := range in {
		if len(s) > maxShort || strings.IndexByte(s, 0) >= 0 {
			return invalid("a text that is too long or has a NUL byte: %.40q", s)
		}
	}
	return nil
}

func localPath(p string) error {
	if !filepath.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
		return invalid("not an absolute path: %.80q", p)
	}
	return nil
}
