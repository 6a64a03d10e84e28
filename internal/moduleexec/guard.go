package moduleexec

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
)

// Guard lets a step run only if a field of an earlier step's result has a value.
type Guard struct {
	Field   string // "rc", or a dotted path into the JSON object that the module printed
	Value   []byte // JSON text
	Unequal bool   // run if the field does not have the value
}

// Outcome is what a guard may look at of an earlier step. Skipped and failed steps have none.
type Outcome struct {
	RC     int
	Stdout []byte // whole; nil where it was not kept
	Failed bool   // it was to be judged, and has not succeeded
}

// MaxGuarded is how much of a step's stdout is kept for guards to look at.
const MaxGuarded = 1 << 20

// NeedsStdout reports whether the guard looks into what the step printed.
func (g *Guard) NeedsStdout() bool { return g.Field != "rc" }

// Validate reports a guard that could never be evaluated.
func (g *Guard) Validate() error {
	if g.Field == "" {
		return errors.New("a guard names no field")
	}
	if _, err := decode(g.Value); err != nil {
		return errors.New("a guard's value is not JSON")
	}
	return nil
}

// Allows evaluates the guard over the outcome of the step it names, nil if that step has none. Without an outcome, or without a JSON
// object to look into, nothing is known, and the step does not run, whichever way the guard asks. A field that the object lacks is not
// equal to any value.
func (g *Guard) Allows(o *Outcome) bool {
	if o == nil {
		return false
	}
	want, err := decode(g.Value)
	if err != nil {
		return false
	}
	if g.Field == "rc" {
		return equal(json.Number(strconv.Itoa(o.RC)), want) != g.Unequal
	}
	object, ok := printedObject(o.Stdout)
	if !ok {
		return false
	}
	got, ok := lookUp(object, g.Field)
	return (ok && equal(got, want)) != g.Unequal
}

// printedObject finds the JSON object in what a module printed, which may have garbage before it and after it, as Ansible allows: it
// starts on the first line that starts with a brace.
func printedObject(out []byte) (map[string]any, bool) {
	for line := range bytes.Lines(out) {
		if trimmed := bytes.TrimLeft(line, " \t\r"); len(trimmed) > 0 && trimmed[0] == '{' {
			d := json.NewDecoder(bytes.NewReader(out))
			d.UseNumber()
			var object map[string]any
			return object, d.Decode(&object) == nil
		}
		out = out[len(line):]
	}
	return nil, false
}

func lookUp(object map[string]any, dotted string) (any, bool) {
	var at any = object
	for name := range strings.SplitSeq(dotted, ".") {
		inner, ok := at.(map[string]any)
		if !ok {
			return nil, false
		}
		if at, ok = inner[name]; !ok {
			return nil, false
		}
	}
	return at, true
}

func decode(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return v, nil
}

// equal compares as Python's == would: 1 and 1.0 are equal, the order of an object's fields is nothing.
func equal(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return ok && sameNumber(a, b)
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equal(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for name, value := range a {
			other, ok := b[name]
			if !ok || !equal(value, other) {
				return false
			}
		}
		return true
	default: // nil, bool, string
		return a == b
	}
}

func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	_, errA := a.Int64()
	_, errB := b.Int64()
	if errA == nil && errB == nil {
		return false // two integers that are written differently differ; -0 does not occur in what Python prints
	}
	x, errA := a.Float64()
	y, errB := b.Float64()
	return errA == nil && errB == nil && x == y
}
