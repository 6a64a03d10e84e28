package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// record is a list of fields under construction. A field with its zero value is left out.
type record struct{ bytes []byte }

func (r *record) put(tag byte, value []byte) {
	r.bytes = append(r.bytes, tag)
	r.bytes = binary.BigEndian.AppendUint32(r.bytes, uint32(len(value))) //nolint:gosec // bounded by MaxPayload where it leaves
	r.bytes = append(r.bytes, value...)
}

func (r *record) putBytes(tag byte, value []byte) {
	if len(value) > 0 {
		r.put(tag, value)
	}
}

func (r *record) putUint(tag byte, n uint64) {
	if n > 0 {
		r.put(tag, strconv.AppendUint(nil, n, 10))
	}
}

func (r *record) putBool(tag byte, v bool) {
	if v {
		r.put(tag, []byte("1"))
	}
}

func (r *record) putDigest(tag byte, d blobcache.Digest) {
	if !d.IsZero() {
		r.put(tag, d[:])
	}
}

func (r *record) putEach(tag byte, values [][]byte) {
	for _, v := range values {
		r.put(tag, v)
	}
}

// field is how one tag is read: set stores the value or says what is wrong with it.
type field struct {
	set    func([]byte) error
	repeat bool
}

// schema is the table of a record on the protocol's page.
type schema map[byte]field

var errCut = errors.New("record is cut short")

// read takes b apart. It refuses what the table does not name: unknown tags, a second one where one is allowed, leftovers.
func (s schema) read(b []byte) error {
	var seen [256]bool
	for len(b) > 0 {
		if len(b) < 5 {
			return errCut
		}
		tag, n := b[0], binary.BigEndian.Uint32(b[1:5])
		b = b[5:]
		if uint64(n) > uint64(len(b)) {
			return errCut
		}
		value := b[:n]
		b = b[n:]
		f, ok := s[tag]
		if !ok {
			return fmt.Errorf("record has an unknown field %d", tag)
		}
		if seen[tag] && !f.repeat {
			return fmt.Errorf("record has field %d twice", tag)
		}
		seen[tag] = true
		if err := f.set(value); err != nil {
			return fmt.Errorf("field %d: %w", tag, err)
		}
	}
	return nil
}

func asBytes(to *[]byte) field {
	return field{set: func(v []byte) error {
		*to = append([]byte(nil), v...)
		return nil
	}}
}

func asList(to *[][]byte) field {
	return field{repeat: true, set: func(v []byte) error {
		*to = append(*to, append([]byte{}, v...))
		return nil
	}}
}

// asText reads words of the far side for people: capped, then cleaned.
func asText(to *string, most int) field {
	return field{set: func(v []byte) error {
		if len(v) > most {
			return fmt.Errorf("%d bytes where %d are allowed", len(v), most)
		}
		*to = fault.Clean(v)
		return nil
	}}
}

// asTexts is asText for a tag that repeats.
func asTexts(to *[]string, most int) field {
	return field{repeat: true, set: func(v []byte) error {
		var text string
		if err := asText(&text, most).set(v); err != nil {
			return err
		}
		*to = append(*to, text)
		return nil
	}}
}

// asUint reads a decimal number in its one spelling.
func asUint[T int | uint32 | uint64 | Terminal](to *T, most uint64) field {
	return field{set: func(v []byte) error {
		n, err := strconv.ParseUint(string(v), 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != string(v) {
			return errors.New("not a decimal number")
		}
		if n > most {
			return fmt.Errorf("%d where %d is the most", n, most)
		}
		*to = T(n)
		return nil
	}}
}

func asString(to *string) field {
	return field{set: func(v []byte) error {
		*to = string(v)
		return nil
	}}
}

// asMode reads a number whose absence is not 0.
func asMode(to **uint32) field {
	return field{set: func(v []byte) error {
		*to = new(uint32)
		return asUint(*to, 0o7777).set(v)
	}}
}

// asUints reads one of a list of numbers.
func asUints(to *[]uint32) field {
	return field{repeat: true, set: func(v []byte) error {
		var n uint32
		if err := asUint(&n, math.MaxUint32).set(v); err != nil {
			return err
		}
		*to = append(*to, n)
		return nil
	}}
}

func asBool(to *bool) field {
	return field{set: func(v []byte) error {
		if string(v) != "0" && string(v) != "1" {
			return errors.New("neither 0 nor 1")
		}
		*to = v[0] == '1'
		return nil
	}}
}

func asDigest(to *blobcache.Digest) field {
	return field{set: func(v []byte) error {
		if len(v) != len(to) {
			return fmt.Errorf("a digest of %d bytes", len(v))
		}
		copy(to[:], v)
		return nil
	}}
}

// maxCount is the most that a number counting bytes or microseconds may be; it fits a signed integer on every side.
const maxCount = math.MaxInt64

func (Module) kind() Kind  { return KindModule }
func (Command) kind() Kind { return KindCommand }
func (Put) kind() Kind     { return KindPut }
func (Get) kind() Kind     { return KindGet }
func (Spawn) kind() Kind   { return KindSpawn }
func (Blobs) kind() Kind   { return KindBlobs }
func (Folder) kind() Kind  { return KindFolder }
func (Look) kind() Kind    { return KindLook }

func (m Module) fields(r *record) {
	r.putDigest(1, m.Manifest)
	r.putBytes(2, m.Params)
	r.putBytes(3, []byte(m.Name))
	r.putEach(4, m.Environment)
	r.putBytes(5, m.Cwd)
	r.putEach(6, m.Environ)
	r.putUint(7, m.RlimitNofile)
	r.putBool(8, m.ParamsFollow)
	r.putBool(9, m.Logging)
	r.putBool(10, m.Stdin)
	r.putBool(11, m.Judged)
	r.putBool(12, m.Glance)
	r.putEach(13, m.Secrets)
}

func (c Command) fields(r *record) {
	r.putEach(1, c.Argv)
	r.putBool(2, c.TTY)
	r.putBytes(5, c.Cwd)
	r.putEach(6, c.Environ)
}

func (p Put) fields(r *record) {
	r.putBytes(1, p.Dest)
	r.putUint(2, p.Size)
	if p.Mode != nil { // mode 0 is a mode
		r.put(3, strconv.AppendUint(nil, uint64(*p.Mode), 10))
	}
	r.putDigest(4, p.SHA256)
	r.putUint(5, uint64(p.UID))
}

func (g Get) fields(r *record) { r.putBytes(1, g.Source) }

func (s Spawn) fields(r *record) {
	r.putEach(1, s.Argv)
	r.putUint(2, uint64(s.Terminal))
}

func (Blobs) fields(*record) {}
func (Look) fields(*record)  {}

func (f Folder) fields(r *record) {
	r.putBytes(1, f.Path)
	r.putBool(2, f.Remove)
	r.putUint(3, uint64(f.UID))
}

// EncodeRequest returns the payload of the OPEN that asks for r.
func EncodeRequest(r Request) []byte {
	rec := record{[]byte{byte(r.kind())}}
	r.fields(&rec)
	return rec.bytes
}

// DecodeRequest is the agent's half of EncodeRequest, for agents written in Go: the scripted ones of tests. It returns values, not
// pointers.
func DecodeRequest(payload []byte) (Request, error) {
	if len(payload) == 0 {
		return nil, errors.New("cannot read OPEN: it has no kind")
	}
	if Kind(payload[0])&chained != 0 {
		return decodeChained(payload)
	}
	fields := payload[1:]
	switch Kind(payload[0]) {
	case KindModule:
		var m Module
		return decodeRequest(&m, fields, schema{
			1: asDigest(&m.Manifest), 2: asBytes(&m.Params), 3: asString(&m.Name), 4: asList(&m.Environment), 5: asBytes(&m.Cwd),
			6: asList(&m.Environ), 7: asUint(&m.RlimitNofile, maxCount), 8: asBool(&m.ParamsFollow),
			9: asBool(&m.Logging), 10: asBool(&m.Stdin), 11: asBool(&m.Judged), 12: asBool(&m.Glance), 13: asList(&m.Secrets),
		})
	case KindCommand:
		var c Command
		return decodeRequest(&c, fields, schema{1: asList(&c.Argv), 2: asBool(&c.TTY), 5: asBytes(&c.Cwd), 6: asList(&c.Environ)})
	case KindPut:
		var p Put
		return decodeRequest(&p, fields, schema{
			1: asBytes(&p.Dest), 2: asUint(&p.Size, maxCount), 3: asMode(&p.Mode), 4: asDigest(&p.SHA256), 5: asUint(&p.UID, math.MaxUint32),
		})
	case KindGet:
		var g Get
		return decodeRequest(&g, fields, schema{1: asBytes(&g.Source)})
	case KindSpawn:
		var s Spawn
		return decodeRequest(&s, fields, schema{1: asList(&s.Argv), 2: asUint(&s.Terminal, uint64(StdioTerminal))})
	case KindBlobs:
		return decodeRequest(&Blobs{}, fields, schema{})
	case KindLook:
		return decodeRequest(&Look{}, fields, schema{})
	case KindFolder:
		var f Folder
		return decodeRequest(&f, fields, schema{1: asBytes(&f.Path), 2: asBool(&f.Remove), 3: asUint(&f.UID, math.MaxUint32)})
	default:
		return nil, fmt.Errorf("cannot read OPEN: unknown kind %d", payload[0])
	}
}

func decodeRequest[R Request](r *R, fields []byte, s schema) (Request, error) {
	if err := s.read(fields); err != nil {
		return nil, fmt.Errorf("cannot read OPEN: %w", err)
	}
	return *r, nil
}

// EncodeHello returns the payload of HELLO.
func EncodeHello(h Hello) []byte {
	var r record
	r.putUint(1, uint64(h.Protocol)) //nolint:gosec // never negative
	r.putBytes(2, []byte(h.Python))
	r.putUint(3, uint64(h.PID)) //nolint:gosec // never negative
	r.putUint(4, uint64(h.UID)) //nolint:gosec // never negative
	r.putDigest(5, h.Source)
	r.putBytes(6, []byte(h.Executable))
	r.putBytes(7, []byte(h.Account))
	r.putUint(8, h.SpareKiB)
	return r.bytes
}

// DecodeHello reads the payload of HELLO.
func DecodeHello(payload []byte) (Hello, error) {
	var h Hello
	err := schema{
		1: asUint(&h.Protocol, math.MaxInt32), 2: asText(&h.Python, maxVersion), 3: asUint(&h.PID, math.MaxInt32),
		4: asUint(&h.UID, math.MaxUint32), 5: asDigest(&h.Source), 6: asText(&h.Executable, maxPath), 7: asText(&h.Account, maxAccount),
		8: asUint(&h.SpareKiB, maxCount),
	}.read(payload)
	if err != nil {
		return Hello{}, fmt.Errorf("cannot read HELLO: %w", err)
	}
	return h, nil
}

// EncodeResult returns the payload of RESULT.
func EncodeResult(res Result) []byte {
	var r record
	r.putBool(1, res.Failed)
	r.putBytes(2, []byte(res.Failure))
	r.putBytes(3, []byte(res.Text))
	r.putUint(4, uint64(res.ExitCode)) //nolint:gosec // never negative
	r.putUint(5, res.QueueMicros)
	r.putUint(6, res.JobMicros)
	r.putUint(7, res.CPUMicros)
	r.putUint(8, res.MaxRSSKiB)
	r.putUint(9, res.Size)
	r.putDigest(10, res.SHA256)
	for _, text := range res.Logged {
		r.put(11, []byte(text))
	}
	r.putUint(12, res.AgentKiB)
	r.putBool(13, res.Succeeded)
	return r.bytes
}

// DecodeResult reads the payload of RESULT.
func DecodeResult(payload []byte) (Result, error) {
	var (
		res     Result
		failure string
	)
	err := schema{
		1: asBool(&res.Failed), 2: asText(&failure, maxVersion), 3: asText(&res.Text, maxText), 4: asUint(&res.ExitCode, 255),
		5: asUint(&res.QueueMicros, maxCount), 6: asUint(&res.JobMicros, maxCount), 7: asUint(&res.CPUMicros, maxCount),
		8: asUint(&res.MaxRSSKiB, maxCount), 9: asUint(&res.Size, maxCount), 10: asDigest(&res.SHA256),
		11: asTexts(&res.Logged, maxText), 12: asUint(&res.AgentKiB, maxCount), 13: asBool(&res.Succeeded),
	}.read(payload)
	if err != nil {
		return Result{}, fmt.Errorf("cannot read RESULT: %w", err)
	}
	res.Failure = Failure(failure)
	if _, known := failureKinds[res.Failure]; known != res.Failed {
		return Result{}, fmt.Errorf("cannot read RESULT: status and failure %q contradict each other", failure)
	}
	return res, nil
}

// failureKinds are the failures and what each is to those who decide by kind.
var failureKinds = map[Failure]fault.Kind{
	FailNotFound:    fault.FileNotFound,
	FailChanged:     fault.FileChanged,
	FailDigest:      fault.FileFailed,
	FailIO:          fault.FileFailed,
	FailBlobMissing: fault.Internal,
	FailCancelled:   fault.Cancelled,
	FailBadRequest:  fault.Internal,
	FailFork:        fault.Internal,
	FailStale:       fault.Internal,
	FailSkipped:     fault.Cancelled,
	FailNotBegun:    fault.NotBegun,
}

// Err returns nil for a result that is done, else a *fault.Error of the failure's kind with the agent's words.
func (r *Result) Err() error {
	if !r.Failed {
		return nil
	}
	text := r.Text
	if text == "" {
		text = string(r.Failure)
	}
	return &fault.Error{Kind: failureKinds[r.Failure], Message: text}
}
