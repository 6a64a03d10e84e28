package become

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
)

// What follows is what tools say, each in its own way, and what their become plugins have of it.

// literal is a plugin with a prompt that anybody could print.
func literal(prompt string, refusals ...string) Spec {
	s := Spec{Prompt: []byte(prompt), Success: []byte(success), HasPassword: true}
	for _, r := range refusals {
		s.WrongPassword = append(s.WrongPassword, []byte(r))
	}
	return s
}

// pattern is a plugin with an expression for its prompts.
func pattern(expression string, refusals ...string) Spec {
	s := literal("", refusals...)
	s.Patterns = []*regexp.Regexp{regexp.MustCompile("(?i)" + expression)}
	return s
}

func withoutPassword(s Spec) Spec {
	s.HasPassword = false
	return s
}

// anyPassword is what stands for a plugin that keeps its prompts to itself.
const anyPassword = `password[^:：]*[:：]`

var (
	polkit = literal("Password: ", "==== AUTHENTICATION FAILED ====")
	dzdo   = Spec{
		Prompt: []byte("[dzdo via ansible, key=abc] password:"), Anywhere: true, Success: []byte(success), HasPassword: true,
		WrongPassword: [][]byte{[]byte("Sorry, try again.")},
	}
	doas = func() Spec {
		s := pattern(anyPassword, "Permission denied")
		s.MissingPassword = [][]byte{[]byte("Authorization required")}
		return s
	}()
	ksu = func() Spec {
		s := pattern(anyPassword, "Password incorrect")
		s.MissingPassword = [][]byte{[]byte("No password given")}
		return s
	}()
	sesu = func() Spec {
		s := literal("Please enter your password:", "Sorry, try again with sesu.")
		s.MissingPassword = s.WrongPassword
		return s
	}()
)

const (
	polkitAsks = "\x1b[0;1;31m==== AUTHENTICATING FOR org.freedesktop.machine1.shell ====\x1b[0m\r\n" +
		"Authentication is required to acquire a shell in a local host.\r\nAuthenticating as: root\r\nPassword: "
	polkitPleased = "\r\n\x1b[0;1;31m==== AUTHENTICATION COMPLETE ====\x1b[0m\r\n"
	polkitAngry   = "\r\n\x1b[0;1;31m==== AUTHENTICATION FAILED ====\x1b[0m\r\n"
	ksuWarns      = "WARNING: Your password may be exposed if you enter it here and are logged\n         in remotely using an unsecure (non-encrypted) channel.\n"
)

func init() { maps.Copy(dialogues, tools) }

var tools = map[string]struct {
	spec   Spec
	script []said
	want   string
	text   string
}{
	"dzdo": {
		dzdo,
		[]said{{Stderr, "[dzdo via ansible, key=abc] password:", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=""`, "",
	},
	"dzdo, wrong": {
		dzdo,
		[]said{{TTY, "[dzdo via ansible, key=abc] password:\r\nSorry, try again.\r\n", 0}, {exited, "", 1}},
		`send tty=true, fail the password was refused`, "Sorry, try again.",
	},
	"pbrun": {
		literal("Password:"),
		[]said{{TTY, "Password:", 0}, {TTY, "\r\n", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"pbrun on a terminal as its stdio": {
		literal("Password:"),
		[]said{{Stdout, "Password:", 0}, {Stdout, "\r\n" + success + "\r\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=""`, "",
	},
	"pbrun, wrong": {
		literal("Password:"),
		[]said{{TTY, "Password:\r\nPassword:", 0}},
		`send tty=true, fail the password was refused`, "",
	},
	"pbrun, refused by its policy": {
		literal("Password:"),
		[]said{{Stderr, "pbrun8.0: Request rejected by pbmasterd on h1.\n", 0}, {exited, "", 1}},
		`fail refused`, "Request rejected",
	},
	"pbrun, no password": {
		withoutPassword(literal("Password:")),
		[]said{{TTY, "Password:", 0}},
		`fail a password is required`, "Password:",
	},
	"pmrun": {
		literal("Enter UPM user password:"),
		[]said{{TTY, "Enter UPM user password: ", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"pfexec, which never asks": {
		withoutPassword(Spec{Success: []byte(success)}),
		[]said{{Stdout, success + "\nMUX", 0}},
		`done rest="MUX" stderr=""`, "",
	},
	"sesu": {
		sesu,
		[]said{{Stderr, "Please enter your password:", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=""`, "",
	},
	"sesu, wrong": {
		sesu,
		[]said{{Stderr, "Please enter your password:\nSorry, try again with sesu.\n", 0}},
		`send tty=false, fail the password was refused`, "again with sesu",
	},
	"machinectl and run0, in colours": {
		polkit,
		[]said{{TTY, polkitAsks, 0}, {TTY, polkitPleased, 0}, {Stdout, success + "\r\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"machinectl and run0, wrong": {
		polkit,
		[]said{{TTY, polkitAsks, 0}, {TTY, polkitAngry, 0}, {exited, "", 1}},
		`send tty=true, fail the password was refused`, "AUTHENTICATION FAILED",
	},
	"machinectl, no password": {
		withoutPassword(polkit),
		[]said{{TTY, polkitAsks, 0}},
		`fail a password is required`, "Authenticating as: root",
	},
	"doas": {
		doas,
		[]said{{TTY, "\rdoas (bob@h1) password: ", 0}, {TTY, "\r\n", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"doas of BSD": {
		doas,
		[]said{{TTY, "Password:", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"doas, wrong": {
		doas,
		[]said{{TTY, "\rdoas (bob@h1) password: \r\n", 0}, {Stderr, "doas: Authentication failed\n", 0}, {exited, "", 1}},
		`send tty=true, fail refused`, "doas: Authentication failed",
	},
	"doas -n, needed": {
		withoutPassword(doas),
		[]said{{Stderr, "doas: Authorization required\n", 0}, {exited, "", 1}},
		`fail a password is required`, "Authorization required",
	},
	"doas, not permitted": {
		doas,
		[]said{{Stderr, "doas: Operation not permitted\n", 0}, {exited, "", 1}},
		`fail refused`, "Operation not permitted",
	},
	"ksu, with a warning before": {
		ksu,
		[]said{{Stderr, ksuWarns, 0}, {TTY, "Kerberos password for bob@EXAMPLE.COM: ", 0}, {Stdout, success + "\nMUX", 0}},
		fmt.Sprintf(`send tty=true, done rest="MUX" stderr=%q`, ksuWarns), "",
	},
	"ksu, wrong": {
		ksu,
		[]said{{Stderr, "Kerberos password for bob@EXAMPLE.COM: \nksu: Password incorrect\n", 0}, {exited, "", 1}},
		`send tty=false, fail the password was refused`, "Password incorrect",
	},
	"sudo-rs": {
		sudoSpec(true),
		[]said{{TTY, "[sudo: " + prompt + "] Password: ", 0}, {TTY, "\r\n", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"sudo-rs, wrong": {
		sudoSpec(true),
		[]said{{TTY, "[sudo: " + prompt + "] Password: \r\n", 0}, {Stderr, "sudo-rs: Authentication failed, try again.\n", 0}, {TTY, "[sudo: " + prompt + "] Password: ", 0}},
		`send tty=true, fail the password was refused`, "Authentication failed",
	},
	"sudo-rs, no password": {
		sudoSpec(false),
		[]said{{TTY, "[sudo: authenticate] Password: ", 0}},
		`fail a password is required`, "authenticate",
	},
	"sudosu, sudo before su": {
		sudoSpec(true),
		[]said{{Stderr, prompt, 0}, {TTY, "Last login: today\r\n", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr=""`, "",
	},
	"a plugin of its own": {
		pattern(`^(?:Wer da\?|Qui vive \?)`, "Falsch!"),
		[]said{{Stderr, "note: Wer da? may come\nQui vive ?", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=false, done rest="MUX" stderr="note: Wer da? may come\n"`, "",
	},
	"a banner with the prompt's words in it": {
		literal("Password:"),
		[]said{{TTY, "Your Password: is your own.\r\nNever say 'Password:' aloud.\r\n  Password:", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
	"output with the prompt's words in it, and no prompt": {
		literal("Password:"),
		[]said{{Stdout, "last Password: change\nnew Password:\n" + success + "\nMUX", 0}},
		`done rest="MUX" stderr=""`, "",
	},
	"a line that was written over": {
		literal("Password:"),
		[]said{{TTY, "checking...\rPassword:", 0}, {Stdout, success + "\nMUX", 0}},
		`send tty=true, done rest="MUX" stderr=""`, "",
	},
}

// TestAskedInAnyLanguage: the words of Ansible's su plugin, with both colons and the blank before it that some languages want; and
// what sudo asks where no password is there to give.
func TestAskedInAnyLanguage(t *testing.T) {
	words := []string{
		"Password", "암호", "パスワード", "Adgangskode", "Contraseña", "Contrasenya", "Hasło", "Heslo", "Jelszó", "Lösenord", "Mật khẩu", "Mot de passe",
		"Parola", "Parool", "Pasahitza", "Passord", "Passwort", "Salasana", "Sandi", "Senha", "Wachtwoord", "ססמה", "Лозинка", "Парола", "Пароль",
		"गुप्तशब्द", "शब्दकूट", "సంకేతపదము", "හස්පදය", "密码", "密碼", "口令",
	}
	escaped := make([]string, len(words))
	for i, w := range words {
		escaped[i] = regexp.QuoteMeta(w)
	}
	su := pattern("(?:"+strings.Join(escaped, "|")+`)\s*[:：]`, "Authentication failure")
	byByte := func(s string) []string { return strings.Split(s, "") }
	for _, w := range words {
		for _, asks := range []string{w + ":", w + " : ", w + "：", strings.ToUpper(w) + ":"} {
			script := []said{{TTY, asks, 0}, {TTY, "\r\n", 0}, {Stdout, success + "\n", 0}}
			for _, cut := range []func(string) []string{whole, byByte} {
				if got, _ := converse(su, script, cut); got != `send tty=true, done rest="" stderr=""` {
					t.Errorf("%q: %s", asks, got)
				}
				if got, _ := converse(withoutPassword(su), script, cut); got != `fail a password is required` {
					t.Errorf("%q, no password: %s", asks, got)
				}
			}
		}
	}
	for _, asks := range []string{
		"[sudo] password for bob: ", "[sudo] Passwort für bob: ", "[sudo] Mot de passe de bob : ", "[sudo] contraseña para bob: ", "[sudo] пароль для bob: ",
		"[sudo] bob 的密码：", "[sudo] bob のパスワード: ", "[sudo] senha para bob: ", "[sudo] password di bob: ",
	} {
		if got, _ := converse(sudoSpec(false), []said{{TTY, asks, 0}}, byByte); got != `fail a password is required` {
			t.Errorf("%q: %s", asks, got)
		}
	}
}

// TestEndsAnywhere has every tool end, and every caller lose patience, after each byte: what was decided until then stays, and otherwise
// the tool's own words are told.
func TestEndsAnywhere(t *testing.T) {
	for name, c := range dialogues {
		t.Run(name, func(t *testing.T) {
			for end, reason := range map[string]Reason{"exit": ToolRefused, "timeout": TimedOut} {
				d := New(c.spec)
				var before []byte
				var over, sent bool
				check := func() { // of a dialogue like d that ends here
					if over || len(before) > 1<<10 {
						return
					}
					last := New(c.spec)
					replay(last, c.script, len(before))
					var actions []Action
					if end == "exit" {
						actions = last.Exit(7)
					} else {
						actions = append(actions, last.Timeout())
					}
					f, ok := actions[0].(Fail)
					if !ok || f.Reason != reason || !bytes.Equal(f.Text, before) || f.Asked != sent || (f.Code == 7) != (end == "exit") {
						t.Fatalf("%s after %q: %+v", end, before, actions)
					}
					if more := last.Feed(Stdout, []byte(success+"\n")); more != nil {
						t.Fatalf("%s after %q: it goes on with %+v", end, before, more)
					}
				}
				for _, s := range c.script {
					for i := range len(s.text) {
						check()
						before = append(before, s.text[i])
						for _, a := range d.Feed(s.ch, []byte(s.text[i:i+1])) {
							_, asks := a.(SendPassword)
							sent = sent || asks
							over = over || !asks
						}
					}
				}
				check()
			}
		})
	}
}

// replay feeds d the first n bytes of a script.
func replay(d *Dialogue, script []said, n int) {
	for _, s := range script {
		part := s.text[:min(n, len(s.text))]
		d.Feed(s.ch, []byte(part))
		n -= len(part)
	}
}
