package become

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	success = "BECOME-SUCCESS-abcdefghijklmnopqrstuvwxyzabcdef"
	prompt  = "[sudo via ansible, key=abcdefghijklmnopqrstuvwxyzabcdef] password:"
	lecture = "\r\nWe trust you have received the usual lecture. It usually boils down to:\r\n\r\n    #1) Respect the privacy of others.\r\n\r\n"
)

// said is one thing that a tool says; exit ends it.
type said struct {
	ch   Channel
	text string
	exit int // code, if ch is exited
}

const exited Channel = 99

func sudoSpec(password bool) Spec {
	s := Spec{
		Success:         []byte(success),
		WrongPassword:   [][]byte{[]byte("Sorry, try again."), []byte("Désolé, essayez de nouveau."), nil},
		MissingPassword: [][]byte{[]byte("Sorry, a password is required to run sudo"), []byte("sudo: a password is required"), {}},
		HasPassword:     password,
	}
	if password {
		s.Prompt, s.Anywhere = []byte(" "+prompt+" "), true
	}
	return s
}

func suSpec(password bool) Spec {
	return Spec{
		Success:       []byte(success),
		Patterns:      []*regexp.Regexp{regexp.MustCompile(`(?i)(?:Password|パスワード|Mot de passe|密码)\s*[:：]`)},
		WrongPassword: [][]byte{[]byte("Authentication failure")},
		HasPassword:   password,
	}
}

// outcome is everything that a dialogue answered, as text, so that two ways of cutting can be compared.
func outcome(actions []Action, rest []byte) string {
	var out []string
	for _, a := range actions {
		switch a := a.(type) {
		case SendPassword:
			out = append(out, fmt.Sprintf("send tty=%v", a.TTY))
		case Done:
			out = append(out, fmt.Sprintf("done rest=%q stderr=%q", rest, a.Stderr))
		case Fail:
			out = append(out, fmt.Sprintf("fail %v", a.Reason))
		}
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

// converse plays a script, each text cut by cut, and collects what follows the marker as a caller would.
func converse(s Spec, script []said, cut func(string) []string) (string, []Action) {
	d := New(s)
	var all []Action
	var rest []byte
	done := false
	for _, line := range script {
		if line.ch == exited {
			all = append(all, d.Exit(line.exit)...)
			continue
		}
		for _, part := range cut(line.text) {
			if done {
				if line.ch == Stdout {
					rest = append(rest, part...)
				}
				continue
			}
			got := d.Feed(line.ch, []byte(part))
			all = append(all, got...)
			for _, a := range got {
				if a, ok := a.(Done); ok {
					done, rest = true, append(rest, a.Rest...)
				}
			}
		}
	}
	return outcome(all, rest), all
}

func whole(s string) []string { return []string{s} }

var dialogues = map[string]struct {
	spec   Spec
	script []said
	want   string
	text   string // must be in a failure's text
}{
	"sudo, no password needed": {
		sudoSpec(false),
		[]said{{Stdout, success + "\nMUX\x00\n\r", 0}},
		`done rest="MUX\x00\n\r" stderr=""`, "",
	},
	"sudo, password not asked for": {
		sudoSpec(true),
		[]said{{Stdout, success + "\nMUX", 0}},
		`done rest="MUX" stderr=""`, "",
	},
	"sudo -S, password on stderr": {
		sudoSpec(true),
		[]said{{Stderr, prompt, 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=""`, "",
	},
	"sudo, password on the terminal": {
		sudoSpec(true),
		[]said{{TTY, prompt + " ", 0}, {TTY, "\r\n", 0}, {Stdout, success + "\n", 0}},
		`send tty=true, done rest="" stderr=""`, "",
	},
	"sudo-rs, prompt within its own": {
		sudoSpec(true),
		[]said{{Stderr, "[sudo: " + prompt + "] Password: ", 0}, {Stdout, success + "\n", 0}},
		`send tty=false, done rest="" stderr="] Password: "`, "",
	},
	"lecture before the prompt": {
		sudoSpec(true),
		[]said{{Stderr, lecture + prompt, 0}, {Stdout, success + "\nMUX", 0}},
		fmt.Sprintf(`send tty=false, done rest="MUX" stderr=%q`, lecture), "",
	},
	"lecture on the terminal, prompt on stderr": {
		sudoSpec(true),
		[]said{{TTY, lecture, 0}, {Stderr, prompt, 0}, {Stdout, success + "\n", 0}},
		`send tty=false, done rest="" stderr=""`, "",
	},
	"one prompt on two channels": {
		sudoSpec(true),
		[]said{{TTY, prompt, 0}, {Stderr, prompt, 0}, {Stdout, success + "\n", 0}},
		`send tty=true, done rest="" stderr=""`, "",
	},
	"wrong password, its text": {
		sudoSpec(true),
		[]said{{Stderr, prompt, 0}, {Stderr, "\nSorry, try again.\n" + prompt, 0}, {exited, "", 1}},
		`send tty=false, fail the password was refused`, "Sorry, try again.",
	},
	"wrong password, translated text": {
		sudoSpec(true),
		[]said{{Stderr, prompt + "\nDésolé, essayez de nouveau.\n", 0}},
		`send tty=false, fail the password was refused`, "Désolé",
	},
	"wrong password, asked again": {
		sudoSpec(true),
		[]said{{Stderr, prompt + "\n???\n" + prompt, 0}},
		`send tty=false, fail the password was refused`, "???",
	},
	"wrong password, then its end of input": {
		sudoSpec(true),
		[]said{{Stderr, prompt + "\nsudo: a password is required\n", 0}, {exited, "", 1}},
		`send tty=false, fail the password was refused`, "a password is required",
	},
	"missing password, its text": {
		sudoSpec(false),
		[]said{{Stderr, "sudo: a password is required\n", 0}, {exited, "", 1}},
		`fail a password is required`, "sudo: a password is required",
	},
	"missing password, a default prompt on the terminal": {
		sudoSpec(false),
		[]said{{TTY, "[sudo] Mot de passe de bob : ", 0}},
		`fail a password is required`, "Mot de passe",
	},
	"missing password, doas on the terminal": {
		sudoSpec(false),
		[]said{{TTY, "doas (bob@h1) password: ", 0}},
		`fail a password is required`, "doas",
	},
	"a word like a prompt on stderr is none": {
		sudoSpec(false),
		[]said{{Stderr, "note: your password: it expires soon\n", 0}, {Stdout, success + "\n", 0}},
		`done rest="" stderr="note: your password: it expires soon\n"`, "",
	},
	"not in sudoers": {
		sudoSpec(true),
		[]said{{Stderr, prompt, 0}, {Stderr, "\nbob is not in the sudoers file.\n", 0}, {exited, "", 1}},
		`send tty=false, fail refused`, "bob is not in the sudoers file.",
	},
	"tool missing": {
		sudoSpec(true),
		[]said{{Stderr, "/bin/sh: 1: sudo: not found\n", 0}, {exited, "", 127}},
		`fail refused`, "sudo: not found",
	},
	"ends without a word": {
		sudoSpec(true), []said{{exited, "", 0}}, `fail refused`, "",
	},
	"su, password on stderr": {
		suSpec(true),
		[]said{{Stderr, "Password: ", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=" "`, "",
	},
	"su of busybox, prompt on stdout, marker glued to it": {
		suSpec(true),
		[]said{{Stdout, "Password: " + success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=""`, "",
	},
	"su, translated, wide colon": {
		suSpec(true),
		[]said{{TTY, "密码：", 0}, {Stdout, success + "\n", 0}},
		`send tty=true, done rest="" stderr=""`, "",
	},
	"su, pattern in any case": {
		suSpec(true),
		[]said{{TTY, "MOT DE PASSE :", 0}, {Stdout, success + "\n", 0}},
		`send tty=true, done rest="" stderr=""`, "",
	},
	"su, wrong password": {
		suSpec(true),
		[]said{{Stderr, "Password: \nsu: Authentication failure\n", 0}, {exited, "", 1}},
		`send tty=false, fail the password was refused`, "su: Authentication failure",
	},
	"su, no password": {
		suSpec(false),
		[]said{{Stderr, "Password: ", 0}},
		`fail a password is required`, "Password:",
	},
	"su, refused unasked": {
		suSpec(true),
		[]said{{Stderr, "su: Authentication failure\n", 0}, {exited, "", 1}},
		`fail refused`, "su: Authentication failure",
	},
	"noise of a login shell before the marker": {
		sudoSpec(false),
		[]said{{Stdout, "welcome\nno newline here" + success + "\r\nMUX", 0}},
		`done rest="MUX" stderr=""`, "",
	},
	"the command shown before it runs": {
		sudoSpec(false),
		[]said{{Stdout, "+ echo " + success + " ; python\n" + success + " \nMUX", 0}},
		`done rest="MUX" stderr=""`, "",
	},
	"marker on the wrong channel": {
		sudoSpec(false),
		[]said{{Stderr, success + "\n", 0}, {TTY, success + "\n", 0}},
		`nothing`, "",
	},
	"marker without its line's end": {
		sudoSpec(false),
		[]said{{Stdout, success, 0}, {exited, "", 0}},
		`fail refused`, "",
	},
	"output after success that looks like prompts and errors": {
		sudoSpec(true),
		[]said{{Stdout, success + "\n" + prompt + "\nSorry, try again.\n", 0}, {Stderr, prompt, 0}, {exited, "", 1}},
		fmt.Sprintf(`done rest=%q stderr=""`, prompt+"\nSorry, try again.\n"), "",
	},
	"a prompt that never comes": {
		sudoSpec(true), []said{{Stderr, "please wait\n", 0}}, `nothing`, "",
	},
	"a prompt that is not the one expected": {
		sudoSpec(true), []said{{TTY, "Verification code: ", 0}, {Stderr, "Password:", 0}}, `nothing`, "",
	},
	"endless noise": {
		sudoSpec(true), []said{{Stderr, strings.Repeat("x\n", MaxNoise), 0}}, `fail refused`, "x",
	},
}

func TestDialogues(t *testing.T) {
	for name, c := range dialogues {
		t.Run(name, func(t *testing.T) {
			got, actions := converse(c.spec, c.script, whole)
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if c.text == "" {
				return
			}
			f, ok := actions[len(actions)-1].(Fail)
			if !ok || !bytes.Contains(f.Text, []byte(c.text)) {
				t.Errorf("got %+v, want a text with %q", actions[len(actions)-1], c.text)
			}
		})
	}
}

// TestSplitAnywhere cuts every text in two at every byte, and into single bytes.
func TestSplitAnywhere(t *testing.T) {
	for name, c := range dialogues {
		t.Run(name, func(t *testing.T) {
			longest := 0
			for _, s := range c.script {
				longest = max(longest, len(s.text))
			}
			stride := 1
			if longest > MaxNoise { // of endless noise not at every byte
				stride = MaxNoise / 8
			}
			for at := 0; at <= longest; at += stride {
				cut := func(s string) []string {
					if at >= len(s) {
						return []string{s}
					}
					return []string{s[:at], s[at:]}
				}
				if got, _ := converse(c.spec, c.script, cut); got != c.want {
					t.Fatalf("cut at %d: got %s\nwant %s", at, got, c.want)
				}
			}
			if got, _ := converse(c.spec, c.script, func(s string) []string { return strings.Split(s, "") }); got != c.want {
				t.Fatalf("byte by byte: got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestSplitAtRandom(t *testing.T) {
	names := make([]string, 0, len(dialogues))
	for name := range dialogues {
		if name != "endless noise" {
			names = append(names, name)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		c := dialogues[rapid.SampledFrom(names).Draw(t, "dialogue")]
		cut := func(s string) []string {
			var parts []string
			for len(s) > 0 {
				n := rapid.IntRange(1, len(s)).Draw(t, "part")
				parts, s = append(parts, s[:n]), s[n:]
			}
			return parts
		}
		if got, _ := converse(c.spec, c.script, cut); got != c.want {
			t.Fatalf("got %s\nwant %s", got, c.want)
		}
	})
}

func TestTimeout(t *testing.T) {
	d := New(sudoSpec(true))
	d.Feed(TTY, []byte("Verification code: "))
	f, ok := d.Timeout().(Fail)
	if !ok || f.Reason != TimedOut || f.Asked || !bytes.Contains(f.Text, []byte("Verification code")) {
		t.Errorf("got %+v", f)
	}
	if a := d.Timeout(); a != nil {
		t.Errorf("a second end: %+v", a)
	}
	if a := d.Exit(0); a != nil {
		t.Errorf("an exit after the end: %+v", a)
	}

	d = New(sudoSpec(true))
	d.Feed(Stderr, []byte(prompt))
	if f, ok := d.Timeout().(Fail); !ok || !f.Asked {
		t.Errorf("after a prompt: got %+v", f)
	}
}

// FuzzDialogue checks what must hold whatever is said: the password is sent once at most, nothing follows the end, a second
// way of cutting gives the same answer, and what is kept stays bounded.
func FuzzDialogue(f *testing.F) {
	for _, c := range dialogues {
		for _, s := range c.script {
			f.Add([]byte(s.text), uint8(s.ch), 7)
		}
	}
	f.Add([]byte(prompt+prompt+success+"\n"), uint8(0), 1)
	f.Fuzz(func(t *testing.T, b []byte, ch uint8, at int) {
		c := Channel(ch % uint8(channels))
		for _, spec := range []Spec{sudoSpec(true), suSpec(true), sudoSpec(false)} {
			d := New(spec)
			once := d.Feed(c, b)
			sent, ended := 0, false
			for _, a := range once {
				if ended {
					t.Fatalf("%T after the end", a)
				}
				switch a := a.(type) {
				case SendPassword:
					sent++
				case Fail:
					ended = true
					if len(a.Text) > 2*maxText+1 {
						t.Fatalf("a text of %d bytes", len(a.Text))
					}
				case Done:
					ended = true
					if !bytes.HasSuffix(b, a.Rest) {
						t.Fatalf("rest %q is not the end of %q", a.Rest, b)
					}
				}
			}
			if sent > 1 || (sent == 1 && !spec.HasPassword) {
				t.Fatalf("password sent %d times", sent)
			}
			at = min(max(at, 0), len(b))
			d = New(spec)
			twice := append(d.Feed(c, b[:at]), d.Feed(c, b[at:])...)
			if got, want := outcome(twice, nil), outcome(once, nil); got != want {
				t.Fatalf("cut at %d: %s, whole: %s", at, got, want)
			}
		}
	})
}
