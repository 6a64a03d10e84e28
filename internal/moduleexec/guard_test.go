package moduleexec

import (
	"strings"
	"testing"
)

func TestGuard(t *testing.T) {
	const stat = `{"changed": false, "rc": 3, "stat": {"exists": true, "checksum": "abc", "size": 10, "nlink": 1.0, "gone": null, "x": {"a": [1, {"b": 2}]}}}`
	ran := func(stdout string) *Outcome { return &Outcome{RC: 2, Stdout: []byte(stdout)} }
	for name, c := range map[string]struct {
		outcome      *Outcome
		field, value string
		equal        bool // the answer of a guard that asks for equality
		unequal      bool // the answer of one that asks for inequality
	}{
		"rc":                 {ran(stat), "rc", "2", true, false},
		"rc, other":          {ran(stat), "rc", "0", false, true},
		"rc, no number":      {ran(stat), "rc", `"2"`, false, true},
		"rc, no output":      {ran(""), "rc", "2", true, false},
		"string":             {ran(stat), "stat.checksum", `"abc"`, true, false},
		"other string":       {ran(stat), "stat.checksum", `"abd"`, false, true},
		"bool":               {ran(stat), "stat.exists", "true", true, false},
		"bool is no number":  {ran(stat), "stat.exists", "1", false, true},
		"null":               {ran(stat), "stat.gone", "null", true, false},
		"number":             {ran(stat), "stat.size", "10", true, false},
		"number, as float":   {ran(stat), "stat.size", "10.0", true, false},
		"float, as number":   {ran(stat), "stat.nlink", "1", true, false},
		"object":             {ran(stat), "stat.x", `{"a":[1.0,{"b":2}]}`, true, false},
		"other object":       {ran(stat), "stat.x", `{"a":[1,{"b":2,"c":0}]}`, false, true},
		"longer list":        {ran(stat), "stat.x.a", `[1,{"b":2},3]`, false, true},
		"missing field":      {ran(stat), "stat.nothing", `null`, false, true},
		"path through value": {ran(stat), "stat.size.more", `10`, false, true},
		"big numbers differ": {ran(`{"n": 9007199254740993}`), "n", "9007199254740992", false, true},
		"huge exponent":      {ran(`{"n": 1e999999999}`), "n", "1", false, true},
		"garbage around":     {ran("warning: x\n\n  " + stat + "\nbye"), "stat.size", "10", true, false},
		"brace in garbage":   {ran("a {b}\n" + stat), "stat.size", "10", true, false},
		"pretty printed":     {ran("{\n \"a\":\n 1}\n"), "a", "1", true, false},
		"no JSON":            {ran("Traceback"), "stat.size", "10", false, false},
		"cut JSON":           {ran(stat[:40]), "stat.size", "10", false, false},
		"no object":          {ran("[1]"), "stat.size", "10", false, false},
		"no output":          {ran(""), "stat.size", "10", false, false},
		"no outcome":         {nil, "rc", "0", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := Guard{Field: c.field, Value: []byte(c.value)}
			if err := g.Validate(); err != nil {
				t.Fatal(err)
			}
			if got := g.Allows(c.outcome); got != c.equal {
				t.Errorf("equal: got %v", got)
			}
			g.Unequal = true
			if got := g.Allows(c.outcome); got != c.unequal {
				t.Errorf("unequal: got %v", got)
			}
		})
	}
}

func TestGuardValidate(t *testing.T) {
	for name, g := range map[string]Guard{
		"no field":   {Value: []byte("1")},
		"no value":   {Field: "rc"},
		"no JSON":    {Field: "rc", Value: []byte("one")},
		"two values": {Field: "rc", Value: []byte("1 2")},
	} {
		if g.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzGuard(f *testing.F) {
	f.Add("{\"a\": 1}", "a", "1")
	f.Add("x\n{\"a\": {\"b\": [1e3]}}", "a.b", "[1000]")
	f.Fuzz(func(t *testing.T, stdout, field, value string) {
		g := Guard{Field: field, Value: []byte(value)}
		if g.Validate() != nil {
			return
		}
		o := &Outcome{Stdout: []byte(stdout)}
		is := g.Allows(o)
		g.Unequal = true
		isNot := g.Allows(o)
		if is && isNot {
			t.Error("a field both has a value and has it not")
		}
		if !is && !isNot && field == "rc" {
			t.Error("an exit code is always known")
		}
		if (is || isNot) && field != "rc" && !strings.Contains(stdout, "{") {
			t.Error("an object was found where there is none")
		}
	})
}
