package fault

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"plain":        {"sudo: no\nway\t!", "sudo: no\nway\t!"},
		"colour":       {"\x1b[31mred\x1b[0m", "red"},
		"title":        {"\x1b]0;owned\x07text", "text"},
		"title st":     {"\x1b]0;owned\x1b\\text", "text"},
		"unended":      {"a\x1b[31", "a"},
		"lone escape":  {"a\x1b", "a"},
		"c1":           {"a\u009b31mb", "a31mb"},
		"invalid utf8": {"a\xff\xfeb", "ab"},
		"bidi":         {"a\u202eb", "ab"},
		"carriage":     {"a\r\nb", "a\nb"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Clean([]byte(c.in)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	f.Add([]byte("\x1b[1mx"))
	f.Add([]byte(strings.Repeat("é", MaxStderr)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := Clean(b)
		if len(got) > MaxStderr || !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\x00\x07\r") {
			t.Errorf("not clean: %q", got)
		}
	})
}

func TestKindOf(t *testing.T) {
	inner := &Error{Kind: AuthFailed, Message: "refused"}
	if got := KindOf(fmt.Errorf("cannot dial: %w", inner)); got != AuthFailed {
		t.Errorf("wrapped: got %d", got)
	}
	if got := KindOf(errors.New("x")); got != Internal {
		t.Errorf("untyped: got %d", got)
	}
	if got := KindOf(nil); got != Unspecified {
		t.Errorf("nil: got %d", got)
	}
}
