package agent

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

var update = flag.Bool("update", false, "write the golden files anew")

const goldenDir = "testdata/golden"

// goldenMessage is one message of the page: its frame, and the value that its record stands for, if it has one.
type goldenMessage struct {
	name  string
	way   direction
	frame Frame
	value any // Request, Hello or Result
}

// goldenEntry is what golden.json says of a message, for the other end's tests.
type goldenEntry struct {
	Name    string      `json:"name"`
	File    string      `json:"file"`
	Way     string      `json:"way"`
	Type    FrameType   `json:"type"`
	Frame   string      `json:"frame"`
	Stream  uint32      `json:"stream"`
	Payload string      `json:"payload"`          // hex
	Kind    int         `json:"kind,omitempty"`   // of OPEN
	Fields  []goldenTag `json:"fields,omitempty"` // of the record, in its order
}

type goldenTag struct {
	Tag   int    `json:"tag"`
	Value string `json:"value"` // hex
}

func words(s ...string) [][]byte {
	out := make([][]byte, 0, len(s))
	for _, w := range s {
		out = append(out, []byte(w))
	}
	return out
}

func goldenMessages() []goldenMessage {
	mode := uint32(0o640)
	noMode := uint32(0)
	sum := blobcache.Sum([]byte("content"))
	hello := Hello{
		Protocol: Protocol, Python: "3.11.2", PID: 4711, UID: 1000, Source: blobcache.Sum([]byte("source")),
		Executable: "/usr/bin/python3", Account: "deploy", SpareKiB: 524288,
	}
	messages := []goldenMessage{
		{"hello", up, Frame{TypeHello, 0, nil}, hello},
		{"hello-bare", up, Frame{TypeHello, 0, nil}, Hello{Protocol: Protocol, Python: "2.7.18", PID: 1, Source: blobcache.Sum(nil)}},
		{"open-module", down, Frame{TypeOpen, 1, nil}, Module{
			Manifest: sum, Params: []byte(`{"ANSIBLE_MODULE_ARGS": {"_raw_params": "echo h\u00e9"}}`), Name: "ansible.builtin.command",
			Environment: words("LANG=C.UTF-8", "EMPTY="), Cwd: []byte("/srv/a b"), Environ: words("PATH=/bin", "X=\xff"), RlimitNofile: 1024,
		}},
		{"open-module-bare", down, Frame{TypeOpen, 2, nil}, Module{Manifest: sum, Params: []byte(`{}`), Name: "ping"}},
		{"open-module-long", down, Frame{TypeOpen, 3, nil}, Module{Manifest: sum, Params: []byte(`{"a":`), Name: "copy", ParamsFollow: true}},
		{"open-module-logging", down, Frame{TypeOpen, 3, nil}, Module{Manifest: sum, Params: []byte(`{}`), Name: "ping", Logging: true}},
		{"open-module-judged", down, Frame{TypeOpen, 3, nil}, Module{Manifest: sum, Params: []byte(`{}`), Name: "ping", Judged: true}},
		{"open-module-glance", down, Frame{TypeOpen, 3, nil}, Module{Manifest: sum, Params: []byte(`{}`), Name: "stat", Glance: true}},
		{"open-module-secrets", down, Frame{TypeOpen, 3, nil}, Module{
			Manifest: sum, Params: []byte(`{"a": "pass\\nword", "b": "\\u00e9t\\u00e9"}`), Name: "ping", Secrets: words("pass\nword", "été", "\xed\xa0\x80"),
		}},
		{"open-module-stdin", down, Frame{TypeOpen, 3, nil}, Module{Manifest: sum, Params: []byte(`{}`), Name: "ping", Stdin: true}},
		{"open-command", down, Frame{TypeOpen, 4, nil}, Command{
			Argv: words("/bin/sh", "-c", "echo 'x'; \xfe", ""), TTY: true, Cwd: []byte("/"), Environ: words("A=b"),
		}},
		{"open-command-bare", down, Frame{TypeOpen, 5, nil}, Command{Argv: words("/bin/true")}},
		{"open-put", down, Frame{TypeOpen, 6, nil}, Put{Dest: []byte("/tmp/é\xff"), Size: 7, Mode: &mode, SHA256: sum}},
		{"open-put-mode-0", down, Frame{TypeOpen, 7, nil}, Put{Dest: []byte("/tmp/a"), Mode: &noMode, SHA256: blobcache.Sum(nil)}},
		{"open-put-trailer", down, Frame{TypeOpen, 8, nil}, Put{Dest: []byte("/tmp/a"), Size: 1 << 40}},
		{"open-get", down, Frame{TypeOpen, 9, nil}, Get{Source: []byte("/etc/hosts")}},
		{"open-spawn", down, Frame{TypeOpen, 10, nil}, Spawn{Argv: words("sudo", "-u", "root", "sh"), Terminal: ControllingTerminal}},
		{"open-spawn-bare", down, Frame{TypeOpen, 11, nil}, Spawn{Argv: words("true")}},
		{"open-spawn-stdio", down, Frame{TypeOpen, 12, nil}, Spawn{Argv: words("su", "-"), Terminal: StdioTerminal}},
		{"open-blobs", down, Frame{TypeOpen, 4294967295, nil}, Blobs{}},
		{"open-folder", down, Frame{TypeOpen, 13, nil}, Folder{Path: []byte("/home/é/.ansible/tmp/a"), UID: 1000}},
		{"open-folder-remove", down, Frame{TypeOpen, 14, nil}, Folder{Path: []byte("/tmp/a"), Remove: true}},
		{"open-put-uid", down, Frame{TypeOpen, 15, nil}, Put{Dest: []byte("/tmp/a"), Size: 7, Mode: &mode, SHA256: sum, UID: 1000}},
		{"open-look", down, Frame{TypeOpen, 18, nil}, Look{}},
		{"open-chained", down, Frame{TypeOpen, 16, nil}, Chained{Request: Folder{Path: []byte("/a")}, Chain: &Chain{id: 1, length: 2}}},
		{"open-chained-guard", down, Frame{TypeOpen, 17, nil}, Chained{
			Request: Module{Manifest: sum, Params: []byte(`{}`), Name: "file"}, Chain: &Chain{id: 2, length: 3}, Index: 2,
			Guards: []Guard{{Index: 1, Field: "stat.checksum", Value: []byte(`"ab"`), Unequal: true}, {Index: 0, Field: "rc", Value: []byte("0")}},
		}},
		{"open-chained-follows", down, Frame{TypeOpen, 19, nil}, Chained{
			Request: Module{Manifest: sum, Params: []byte(`{}`), Name: "ping"}, Chain: &Chain{id: 3, length: 1, waits: []uint32{15, 16}, decides: []uint32{17}},
		}},
		{"data", down, Frame{TypeData, 1, []byte("to stdin\x00\xff")}, nil},
		{"data-up", up, Frame{TypeData, 1, []byte("from stdout\x00\xff")}, nil},
		{"err", up, Frame{TypeErr, 1, []byte("from stderr\n")}, nil},
		{"tty", down, Frame{TypeTTY, 10, []byte("secret\n")}, nil},
		{"tty-up", up, Frame{TypeTTY, 10, []byte("Password: ")}, nil},
		{"end", down, Frame{TypeEnd, 1, nil}, nil},
		{"end-up", up, Frame{TypeEnd, 1, nil}, nil},
		{"credit", down, Frame{TypeCredit, 9, []byte{0, 4, 0, 0}}, nil},
		{"credit-up", up, Frame{TypeCredit, 6, []byte{0, 0x10, 0, 0}}, nil},
		{"cancel", down, Frame{TypeCancel, 1, nil}, nil},
		{"result", up, Frame{TypeResult, 1, nil}, Result{ExitCode: 137, QueueMicros: 900, JobMicros: 120000, CPUMicros: 80000, MaxRSSKiB: 20480}},
		{"result-bare", up, Frame{TypeResult, 1, nil}, Result{}},
		{"result-logged", up, Frame{TypeResult, 1, nil}, Result{JobMicros: 5, Logged: []string{"root: é", "a.b: two\nlines"}}},
		{"result-succeeded", up, Frame{TypeResult, 1, nil}, Result{JobMicros: 5, Succeeded: true}},
		{"result-memory", up, Frame{TypeResult, 1, nil}, Result{JobMicros: 5, AgentKiB: 25600}},
		{"result-file", up, Frame{TypeResult, 6, nil}, Result{Size: 7, SHA256: sum}},
		{"ping", down, Frame{TypePing, 0, []byte("\x00\x01\x02\x03\x04\x05\x06\x07")}, nil},
		{"pong", up, Frame{TypePong, 0, []byte("\x00\x01\x02\x03\x04\x05\x06\x07")}, nil},
		{"drop", down, Frame{TypeDrop, 0, append(append([]byte{}, sum[:]...), make([]byte, len(sum))...)}, nil},
		{"log", up, Frame{TypeLog, 0, []byte("\x01disk is nearly full: é")}, nil},
		{"log-vvvv", up, Frame{TypeLog, 0, []byte("\x04forked 4712")}, nil},
		{"window", down, Frame{TypeWindow, 6, []byte{0, 0x20, 0, 0}}, nil},
		{"keep", down, Frame{TypeKeep, 10, []byte("for another one\x00\xff")}, nil},
		{"kept", down, Frame{TypeKept, 10, []byte{0, 0, 1, 2}}, nil},
		{"forget", down, Frame{TypeForget, 0, []byte{0, 0, 1, 2}}, nil},
	}
	for _, f := range []Failure{
		FailNotFound, FailChanged, FailDigest, FailIO, FailBlobMissing, FailCancelled, FailBadRequest, FailFork, FailStale, FailSkipped, FailNotBegun,
	} {
		messages = append(messages, goldenMessage{"result-" + string(f), up, Frame{TypeResult, 1, nil}, Result{Failed: true, Failure: f, Text: "so it is"}})
	}
	for i := range messages {
		switch v := messages[i].value.(type) {
		case Request:
			messages[i].frame.Payload = EncodeRequest(v)
		case Hello:
			messages[i].frame.Payload = EncodeHello(v)
		case Result:
			messages[i].frame.Payload = EncodeResult(v)
		}
	}
	return messages
}

func (m goldenMessage) entry() goldenEntry {
	e := goldenEntry{
		Name: m.name, File: m.name + ".bin", Way: "down", Type: m.frame.Type, Frame: m.frame.Type.String(), Stream: m.frame.Stream,
		Payload: hex.EncodeToString(m.frame.Payload),
	}
	if m.way == up {
		e.Way = "up"
	}
	if m.value == nil {
		return e
	}
	b := m.frame.Payload
	if r, ok := m.value.(Request); ok {
		e.Kind = int(r.kind())
		b = b[1:]
		if r.kind()&chained != 0 { // the place is a record of its own
			b = b[2+int(b[0])<<8+int(b[1]):]
		}
	}
	for len(b) > 0 {
		n := int(b[1])<<24 | int(b[2])<<16 | int(b[3])<<8 | int(b[4])
		e.Fields = append(e.Fields, goldenTag{int(b[0]), hex.EncodeToString(b[5 : 5+n])})
		b = b[5+n:]
	}
	return e
}

// TestGolden holds both ends to the same bytes: what is encoded here is what is in the files, and the files decode to the values.
func TestGolden(t *testing.T) {
	messages := goldenMessages()
	if *update {
		writeGolden(t, messages)
	}
	var entries []goldenEntry
	text, err := os.ReadFile(filepath.Join(goldenDir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &entries); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(goldenDir, "*.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(messages) || len(entries) != len(messages) {
		t.Errorf("%d messages, %d files, %d entries", len(messages), len(files), len(entries))
	}
	for i, m := range messages {
		t.Run(m.name, func(t *testing.T) {
			if i < len(entries) && !reflect.DeepEqual(entries[i], m.entry()) {
				t.Errorf("golden.json has %+v", entries[i])
			}
			want, err := os.ReadFile(filepath.Join(goldenDir, m.name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			if got := AppendFrame(nil, m.frame); !bytes.Equal(got, want) {
				t.Errorf("encoded:\n%x\nwant:\n%x", got, want)
			}
			f, err := readFrame(bytes.NewReader(want), m.way, allocate)
			if err != nil {
				t.Fatal(err)
			}
			var value any
			switch m.value.(type) {
			case Request:
				value, err = DecodeRequest(f.Payload)
			case Hello:
				value, err = DecodeHello(f.Payload)
			case Result:
				value, err = DecodeResult(f.Payload)
			}
			if err != nil || !reflect.DeepEqual(value, m.value) {
				t.Errorf("decoded %+v, %v; want %+v", value, err, m.value)
			}
			if f.Type != m.frame.Type || f.Stream != m.frame.Stream || !bytes.Equal(f.Payload, m.frame.Payload) {
				t.Errorf("read %v on %d with %d bytes", f.Type, f.Stream, len(f.Payload))
			}
		})
	}
}

// TestGoldenIsWhole looks that no type, kind or failure is without its file.
func TestGoldenIsWhole(t *testing.T) {
	types, kinds, failures := map[FrameType]bool{}, map[Kind]bool{}, map[Failure]bool{}
	for _, m := range goldenMessages() {
		types[m.frame.Type] = true
		switch v := m.value.(type) {
		case Request:
			kinds[v.kind()&^chained] = true
		case Result:
			failures[v.Failure] = true
		}
	}
	delete(failures, "")
	if len(types) != len(layouts) || len(kinds) != len(answers) || len(failures) != len(failureKinds) {
		t.Errorf("%d of %d types, %d of %d kinds, %d of %d failures", len(types), len(layouts), len(kinds), len(answers), len(failures), len(failureKinds))
	}
}

func writeGolden(t *testing.T, messages []goldenMessage) {
	t.Helper()
	if err := os.RemoveAll(goldenDir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(goldenDir, 0o755); err != nil {
		t.Fatal(err)
	}
	var entries []goldenEntry
	for _, m := range messages {
		entries = append(entries, m.entry())
		if err := os.WriteFile(filepath.Join(goldenDir, m.name+".bin"), AppendFrame(nil, m.frame), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.MarshalIndent(entries, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(goldenDir, "golden.json"), append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
