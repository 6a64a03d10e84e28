package server

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// Requests that break what the .proto says are refused before anything is run, with a text that names the place.
func TestHostileRequests(t *testing.T) {
	d := start(t, newBareNode())
	base := d.request(t, shell1("true"))
	put := func(p *muxv1.Put) []*muxv1.Step { return []*muxv1.Step{{Action: &muxv1.Step_Put{Put: p}}} }
	ssh := func(h *muxv1.SshHop) *muxv1.Path {
		return &muxv1.Path{Hops: []*muxv1.Hop{{Method: &muxv1.Hop_Ssh{Ssh: h}}}}
	}
	become := func(h *muxv1.BecomeHop) *muxv1.Path {
		return &muxv1.Path{Hops: append(sshPath().GetHops(), &muxv1.Hop{Method: &muxv1.Hop_Become{Become: h}})}
	}
	guarded := func(guards ...*muxv1.Guard) []*muxv1.Step {
		s := shell1("true")
		s.Guards = guards
		return []*muxv1.Step{shell1("true"), s}
	}
	command := func(change func(*muxv1.Command)) []*muxv1.Step {
		s := shell1("true")
		change(s.GetCommand())
		return []*muxv1.Step{s}
	}
	unknownField := []byte{0xa2, 0x01, 0x00} // field 20, a message
	newerHop := &muxv1.Hop{}
	newerHop.ProtoReflect().SetUnknown(unknownField)
	newerStep := &muxv1.Step{}
	newerStep.ProtoReflect().SetUnknown(unknownField)
	long := strings.Repeat("x", maxShort+1)
	for name, c := range map[string]struct {
		change func(*muxv1.Request)
		says   string
	}{
		"no path":          {func(r *muxv1.Request) { r.Path = nil }, "0 hops"},
		"many hops":        {func(r *muxv1.Request) { r.Path.Hops = make([]*muxv1.Hop, maxHops+1) }, "33 hops"},
		"empty hop":        {func(r *muxv1.Request) { r.Path.Hops = []*muxv1.Hop{{}} }, "hop 0: no method"},
		"newer hop":        {func(r *muxv1.Request) { r.Path.Hops = []*muxv1.Hop{newerHop} }, "hop 0: no method, or one that this daemon does not know"},
		"no ssh host":      {func(r *muxv1.Request) { r.Path = ssh(&muxv1.SshHop{}) }, "hop 0: no host"},
		"long ssh host":    {func(r *muxv1.Request) { r.Path = ssh(&muxv1.SshHop{Host: long}) }, "too long"},
		"NUL in ssh user":  {func(r *muxv1.Request) { r.Path = ssh(&muxv1.SshHop{Host: "h", User: "a\x00b"}) }, "NUL"},
		"ssh port":         {func(r *muxv1.Request) { r.Path = ssh(&muxv1.SshHop{Host: "h", Port: 65536}) }, "port 65536"},
		"ssh args":         {func(r *muxv1.Request) { r.Path = ssh(&muxv1.SshHop{Host: "h", Args: make([]string, maxWords+1)}) }, "8193 ssh arguments"},
		"long interpreter": {func(r *muxv1.Request) { r.Path.Hops[0].Interpreter = long }, "too long"},
		"no become method": {func(r *muxv1.Request) { r.Path = become(&muxv1.BecomeHop{}) }, "hop 1: no become method"},
		"prompt pattern": {func(r *muxv1.Request) {
			r.Path = become(&muxv1.BecomeHop{Method: "sudo", PromptPatterns: []string{"("}})
		}, "prompt pattern"},
		"become argv": {func(r *muxv1.Request) { r.Path = become(&muxv1.BecomeHop{Method: "sudo", Argv: [][]byte{{0}}}) }, "NUL"},
		"become texts": {func(r *muxv1.Request) {
			r.Path = become(&muxv1.BecomeHop{Method: "x", WrongPassword: make([][]byte, maxWords+1)})
		}, "8193 texts"},
		"long host":      {func(r *muxv1.Request) { r.Host = long }, "too long"},
		"no steps":       {func(r *muxv1.Request) { r.Steps = nil }, "0 steps"},
		"many steps":     {func(r *muxv1.Request) { r.Steps = make([]*muxv1.Step, maxSteps+1) }, "4097 steps"},
		"empty step":     {func(r *muxv1.Request) { r.Steps = []*muxv1.Step{{}} }, "step 0: no action"},
		"newer step":     {func(r *muxv1.Request) { r.Steps = []*muxv1.Step{newerStep} }, "step 0: no action, or one that this daemon does not know"},
		"no payload":     {func(r *muxv1.Request) { r.Steps = []*muxv1.Step{{Action: &muxv1.Step_Module{Module: &muxv1.Module{}}}} }, "no payload"},
		"no shell":       {func(r *muxv1.Request) { r.Steps = []*muxv1.Step{{Action: &muxv1.Step_Ticket{Ticket: &muxv1.Ticket{}}}} }, "no shell"},
		"long name":      {func(r *muxv1.Request) { r.Steps = []*muxv1.Step{ticket1(long)} }, "too long"},
		"no command":     {func(r *muxv1.Request) { r.Steps = command(func(c *muxv1.Command) { c.Argv = nil }) }, "no command"},
		"NUL in command": {func(r *muxv1.Request) { r.Steps = command(func(c *muxv1.Command) { c.Plain = []byte("a\x00") }) }, "NUL"},
		"many words": {func(r *muxv1.Request) {
			r.Steps = command(func(c *muxv1.Command) { c.Argv = make([][]byte, maxWords+1) })
		}, "words"},
		"NUL in cwd": {func(r *muxv1.Request) {
			r.Steps = command(func(c *muxv1.Command) { c.Process = &muxv1.Process{Cwd: []byte("\x00")} })
		}, "NUL"},
		"variable":          {func(r *muxv1.Request) { r.Steps = command(func(c *muxv1.Command) { c.Process = environ("A=B", "c") }) }, "environment variable"},
		"variable, no name": {func(r *muxv1.Request) { r.Steps = command(func(c *muxv1.Command) { c.Process = environ("", "c") }) }, "environment variable"},
		"variable, NUL":     {func(r *muxv1.Request) { r.Steps = command(func(c *muxv1.Command) { c.Process = environ("A", "\x00") }) }, "environment variable"},
		"put, nothing":      {func(r *muxv1.Request) { r.Steps = put(&muxv1.Put{Dest: []byte("/x")}) }, "no source"},
		"put, no dest":      {func(r *muxv1.Request) { r.Steps = put(&muxv1.Put{Source: &muxv1.Put_Path{Path: "/x"}}) }, "no destination"},
		"put, relative": {func(r *muxv1.Request) {
			r.Steps = put(&muxv1.Put{Source: &muxv1.Put_Path{Path: "x"}, Dest: []byte("/x")})
		}, "not an absolute path"},
		"put, no body": {func(r *muxv1.Request) { r.Steps = put(&muxv1.Put{Source: &muxv1.Put_HasBody{}, Dest: []byte("/x")}) }, "no content"},
		"put, mode": {func(r *muxv1.Request) {
			r.Steps = put(&muxv1.Put{Source: &muxv1.Put_Path{Path: "/x"}, Dest: []byte("/x"), Mode: proto.Uint32(0o10000)})
		}, "mode"},
		"put, NUL": {func(r *muxv1.Request) {
			r.Steps = put(&muxv1.Put{Source: &muxv1.Put_Path{Path: "/x\x00"}, Dest: []byte("/x")})
		}, "not an absolute path"},
		"get, relative": {func(r *muxv1.Request) {
			r.Steps = []*muxv1.Step{{Action: &muxv1.Step_Get{Get: &muxv1.Get{Source: []byte("/x"), Path: "x"}}}}
		}, "not an absolute path"},
		"guard on itself":     {func(r *muxv1.Request) { r.Steps = guarded(&muxv1.Guard{Step: 1, Field: "rc", Value: "0"}) }, "step 1: its guard looks at step 1"},
		"guard, far away":     {func(r *muxv1.Request) { r.Steps = guarded(&muxv1.Guard{Step: 1 << 31, Field: "rc", Value: "0"}) }, "not an earlier one"},
		"guard without field": {func(r *muxv1.Request) { r.Steps = guarded(&muxv1.Guard{Value: "0"}) }, "names no field"},
		"many guards":         {func(r *muxv1.Request) { r.Steps = guarded(make([]*muxv1.Guard, maxGuards+1)...) }, "17 guards"},
		"a second guard":      {func(r *muxv1.Request) { r.Steps = guarded(&muxv1.Guard{Field: "rc", Value: "0"}, &muxv1.Guard{}) }, "names no field"},
		"guard without JSON":  {func(r *muxv1.Request) { r.Steps = guarded(&muxv1.Guard{Field: "rc", Value: "zero"}) }, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			request, ok := proto.Clone(base).(*muxv1.Request)
			if !ok {
				t.Fatal("no request")
			}
			c.change(request)
			_, err := d.ask(t, request)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(FaultOf(err).Message, c.says) {
				t.Errorf("got %v, want it to say %q", err, c.says)
			}
		})
	}
	if len(d.tree.acquired) != 0 {
		t.Errorf("the tree was asked %d times", len(d.tree.acquired))
	}
}

func environ(name, value string) *muxv1.Process {
	return &muxv1.Process{Environ: []*muxv1.Variable{{Name: []byte(name), Value: []byte(value)}}}
}

func TestStreamWithoutRequest(t *testing.T) {
	d := start(t, newBareNode())
	if _, err := d.ask(t, nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("nothing: %v", err)
	}
	if _, err := d.ask(t, nil, &muxv1.Body{Last: true}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a body first: %v", err)
	}
	if _, err := d.ask(t, &muxv1.Request{Run: "none"}); FaultOf(err).Kind != 22 || status.Code(err) != codes.FailedPrecondition {
		t.Errorf("no run: %v", err)
	}
	large := d.request(t, tiny(strings.Repeat("x", maxMessage)))
	if _, err := d.ask(t, large); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit: %v", err)
	}
}

func TestHostileAttach(t *testing.T) {
	d := start(t, newBareNode())
	for name, in := range map[string]*muxv1.AttachRequest{
		"no process":   {},
		"huge process": {Pid: 1 << 31},
		"gone":         {Pid: 1 << 29},
		"relative cwd": {Pid: 1, Cwd: "x"},
		"NUL in user":  {Pid: 1, User: "\x00"},
		"variable":     {Pid: 1, Environ: []*muxv1.Variable{{}}},
	} {
		if _, err := d.runs.Attach(within(t), in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if name := agentName(strings.Repeat("é'", 100)); len(name) > 80 || strings.ContainsAny(name, "'\"\\ é") == false && !strings.HasPrefix(name, "mitogen-mux: ____") {
		t.Errorf("name %q", name)
	}
	if d.Busy() {
		t.Error("a run is attached")
	}
}

func TestHostilePayloads(t *testing.T) {
	d := start(t, newBareNode())
	sum := sha256.Sum256([]byte("content"))
	manifest := func(path string, digest []byte) *muxv1.Manifest {
		return &muxv1.Manifest{Module: "m", Entries: []*muxv1.Manifest_Entry{{Path: path, Sha256: digest}}}
	}
	for name, in := range map[string]*muxv1.OfferRequest{
		"nothing":     {},
		"no key":      {Manifest: manifest("m.py", sum[:])},
		"no manifest": {Payload: []byte("k")},
		"bad digest":  {Payload: []byte("k"), Manifest: manifest("m.py", sum[:31])},
		"bad path":    {Payload: []byte("k"), Manifest: manifest("/etc/passwd", sum[:])},
	} {
		if _, err := d.files.Offer(within(t), in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := sha256.Sum256([]byte("other"))
	for name, parts := range map[string][]*muxv1.Blob{
		"wrong content": {{Sha256: sum[:], Data: []byte("contents"), Last: true}},
		"bad digest":    {{Sha256: sum[:5], Data: []byte("content"), Last: true}},
		"ends early":    {{Sha256: sum[:], Data: []byte("content")}},
		"mixed":         {{Sha256: sum[:], Data: []byte("con")}, {Sha256: other[:], Data: []byte("other"), Last: true}},
		"large part":    {{Sha256: sum[:], Data: bytes.Repeat([]byte("x"), maxBodyPart+1), Last: true}},
	} {
		stream, err := d.files.Upload(within(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			_ = stream.Send(p) // CloseAndRecv says why not
		}
		if _, err := stream.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n, bytes := d.store.Counts(); n != 0 || bytes != 0 {
		t.Errorf("%d payloads, %d bytes are kept", n, bytes)
	}
}

// A bug in one call is that call's error.
func TestPanic(t *testing.T) {
	d := start(t, nil) // a tree that gives no node
	for range 2 {
		_, err := d.ask(t, d.request(t, shell1("true")))
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a bug in") {
			t.Errorf("got %v", err)
		}
	}
}

// Whatever bytes a client sends as a request: it is refused, or it becomes values.
func FuzzRequest(f *testing.F) {
	k := newKeyMaker()
	for _, r := range []*muxv1.Request{
		{Path: sshPath(), Steps: []*muxv1.Step{shell1("true"), tiny("{}", &muxv1.Guard{Field: "rc", Value: "0"})}},
		{Path: &muxv1.Path{Hops: []*muxv1.Hop{{Method: &muxv1.Hop_Local{Local: &muxv1.LocalHop{}}}}}},
		{Path: &muxv1.Path{Hops: []*muxv1.Hop{{Method: &muxv1.Hop_Become{Become: &muxv1.BecomeHop{Method: "sudo", PromptPatterns: []string{"p.*"}}}}}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &muxv1.Request{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		path, err := k.toPath(r.GetPath(), "run")
		if err == nil && len(path) != len(r.GetPath().GetHops()) {
			t.Error("a hop was lost")
		}
		steps, err := toSteps(r.GetSteps())
		if err == nil && len(steps) != len(r.GetSteps()) {
			t.Error("a step was lost")
		}
	})
}
