// Package become is the dialogue with a tool that opens another account (sudo, su, doas …): it is fed what the tool says and
// answers what to do. Prompts, success marker and error texts come from Ansible's become plugin; nothing here knows a tool by its
// name, a process, a clock or the password itself.
package become

import (
	"bytes"
	"regexp"
	"slices"
)

// Channel is where the tool said something.
type Channel uint8

// The channels. A prompt on TTY is answered on the TTY, any other on stdin.
const (
	Stdout Channel = iota
	Stderr
	TTY
	channels
)

// Reason says why a dialogue failed.
type Reason uint8

// The reasons.
const (
	PasswordRequired Reason = iota + 1 // the tool wants a password and there is none
	PasswordWrong                      // it refused the one it was given
	ToolRefused                        // it said no, for a reason of its own, or is not there
	TimedOut                           // neither prompt nor success in time
)

// String names the reason as an error message would.
func (r Reason) String() string {
	switch r {
	case PasswordRequired:
		return "a password is required"
	case PasswordWrong:
		return "the password was refused"
	case ToolRefused:
		return "refused"
	case TimedOut:
		return "timed out"
	default:
		return "unknown"
	}
}

// Limits of what is kept and looked at. They bound the memory and time that a tool, or whoever poses as it, can take.
const (
	MaxNoise = 64 << 10 // bytes before the success marker, on all channels together
	maxText  = 8 << 10  // tail kept for the error
	maxLine  = 1 << 10  // tail of an unfinished line that patterns are matched against
)

// Spec is what the become plugin knows of the tool.
type Spec struct {
	Prompt          []byte           // literal, at the start of a line; empty if the tool is not expected to ask
	Anywhere        bool             // nobody but the tool can know the prompt: it is one wherever it stands
	Patterns        []*regexp.Regexp // for prompts that are translated
	Success         []byte           // marker, the end of a line on stdout
	WrongPassword   [][]byte         // texts that mean: refused
	MissingPassword [][]byte         // texts that mean: needed
	HasPassword     bool
}

// Action is what the caller must do next: SendPassword, Done or Fail. After Done or Fail there are no more.
type Action interface{ action() }

// SendPassword asks for the password and a newline to be written, once in a dialogue.
type SendPassword struct{ TTY bool } // to the terminal, else to stdin

// Done says that the command runs.
type Done struct {
	Rest   []byte // of the bytes fed with this call: what followed the marker's line on stdout
	Stderr []byte // what was said on stderr besides the prompt
}

// Fail says that it does not, and why.
type Fail struct {
	Reason Reason
	Text   []byte // all that was said, as it was said: clean it before showing it
	Asked  bool   // a prompt was seen
	Code   int    // the tool's exit code, -1 if it has not exited
}

func (SendPassword) action() {}
func (Done) action()         {}
func (Fail) action()         {}

// unansweredPrompt recognises the default prompts on a terminal. It serves only dialogues for which there is neither a password
// nor any prompt to expect: a tool that reads the terminal would otherwise wait there until the timeout. It has no part in
// deciding where a password goes.
var unansweredPrompt = regexp.MustCompile(`(?i)\[sudo[^\]\n]*\][^\n:：]*[:：]|\bpassword(?: for [^\s:：]+)?\s*[:：]`)

// Dialogue is one conversation. It is not safe for concurrent use.
type Dialogue struct {
	spec    Spec
	longest int // of the literals
	heard   [channels]heard
	text    []byte // all channels, in the order of arrival
	stderr  []byte // for Done
	noise   int
	marker  bool // the last thing on stdout, but for blanks, was the marker
	sent    bool
	sentFor Channel // the channel of the prompt that was answered
	asked   bool
	over    bool
}

// heard is what is remembered of one channel.
type heard struct {
	window []byte // tail, as long as the longest literal; cut at a recognised prompt
	line   []byte // the unfinished line; cut at a recognised prompt
	start  int    // where the unfinished line starts in Dialogue.stderr (Stderr only)
}

// New starts a dialogue. Prompts are compared without the blanks around them, as Ansible does.
func New(s Spec) *Dialogue {
	s.Prompt = bytes.TrimSpace(s.Prompt)
	s.WrongPassword = withoutEmpty(s.WrongPassword)
	s.MissingPassword = withoutEmpty(s.MissingPassword)
	d := &Dialogue{spec: s, longest: max(len(s.Prompt), len(s.Success))}
	for _, b := range slices.Concat(s.WrongPassword, s.MissingPassword) {
		d.longest = max(d.longest, len(b))
	}
	return d
}

// withoutEmpty drops texts that would be found everywhere.
func withoutEmpty(texts [][]byte) [][]byte {
	return slices.DeleteFunc(slices.Clone(texts), func(b []byte) bool { return len(b) == 0 })
}

// Feed takes what arrived on a channel, split anywhere: it is looked at byte by byte, so that the answer depends on what was said
// and never on how it was cut.
func (d *Dialogue) Feed(ch Channel, p []byte) []Action {
	var out []Action
	for i, c := range p {
		if d.over {
			break
		}
		if a := d.step(ch, c); a != nil {
			if done, ok := a.(Done); ok {
				done.Rest = p[i+1:]
				a = done
			}
			out = append(out, a)
		}
	}
	return out
}

// Exit takes the end of the tool. Without the marker it is a refusal, whatever the code: 0 would have run the command.
func (d *Dialogue) Exit(code int) []Action {
	if d.over {
		return nil
	}
	f := d.fail(ToolRefused)
	f.Code = code
	return []Action{f}
}

// Timeout takes the end of the caller's patience.
func (d *Dialogue) Timeout() Action {
	if d.over {
		return nil
	}
	return d.fail(TimedOut)
}

func (d *Dialogue) step(ch Channel, c byte) Action {
	h := &d.heard[ch]
	if ch == Stdout && d.marker {
		switch c {
		case '\n':
			d.over = true
			return Done{Stderr: d.stderr}
		case ' ', '\t', '\r':
		default: // a tool that shows the command it runs, marker and all
			d.marker = false
		}
	}
	d.noise++
	d.text = appendTail(d.text, c, maxText)
	h.window = appendTail(h.window, c, d.longest)
	if c == '\n' {
		h.line = h.line[:0]
	} else {
		h.line = appendTail(h.line, c, maxLine)
	}
	if ch == Stderr {
		d.stderr = append(d.stderr, c)
		if c == '\n' {
			h.start = len(d.stderr)
		}
	}
	if ch == Stdout && len(d.spec.Success) > 0 && bytes.HasSuffix(h.window, d.spec.Success) {
		d.marker = true
		return nil
	}
	if d.says(h, d.spec.WrongPassword) {
		return d.fail(d.afterPassword(ToolRefused))
	}
	if d.says(h, d.spec.MissingPassword) {
		return d.fail(d.afterPassword(PasswordRequired))
	}
	if d.prompts(ch, c) {
		return d.prompted(ch)
	}
	if d.noise >= MaxNoise {
		return d.fail(ToolRefused)
	}
	return nil
}

func (d *Dialogue) says(h *heard, texts [][]byte) bool {
	return slices.ContainsFunc(texts, func(b []byte) bool { return bytes.HasSuffix(h.window, b) })
}

// prompts reports whether what was heard on ch now ends in a prompt.
func (d *Dialogue) prompts(ch Channel, c byte) bool {
	h := &d.heard[ch]
	if len(d.spec.Prompt) > 0 && bytes.HasSuffix(h.window, d.spec.Prompt) {
		return d.spec.Anywhere || bytes.Equal(lineStart(h.line), d.spec.Prompt)
	}
	if c == '\n' {
		return false // a prompt is an unfinished line
	}
	for _, re := range d.spec.Patterns {
		if re.Match(h.line) {
			return true
		}
	}
	expected := d.spec.HasPassword || len(d.spec.Prompt) > 0 || len(d.spec.Patterns) > 0
	return !expected && ch == TTY && unansweredPrompt.Match(h.line)
}

// lineStart is an unfinished line as people see it: behind the last carriage return, without blanks and colours.
func lineStart(line []byte) []byte {
	line = line[bytes.LastIndexByte(line, '\r')+1:]
	return line[len(paint.Find(line)):]
}

var paint = regexp.MustCompile(`^(?:\s|\x1b\[[0-9;]*m)*`)

func (d *Dialogue) prompted(ch Channel) Action {
	h := &d.heard[ch]
	h.window, h.line = h.window[:0], h.line[:0]
	if ch == Stderr {
		d.stderr = d.stderr[:h.start]
	}
	d.asked = true
	switch {
	case !d.spec.HasPassword:
		return d.fail(PasswordRequired)
	case !d.sent:
		d.sent, d.sentFor = true, ch
		return SendPassword{TTY: ch == TTY}
	case ch == d.sentFor:
		return d.fail(PasswordWrong)
	default: // one prompt, said on two channels
		return nil
	}
}

// afterPassword is PasswordWrong if one was given, else r: what was never given cannot have been wrong.
func (d *Dialogue) afterPassword(r Reason) Reason {
	if d.sent {
		return PasswordWrong
	}
	return r
}

func (d *Dialogue) fail(r Reason) Fail {
	d.over = true
	return Fail{Reason: r, Text: d.text, Asked: d.asked, Code: -1}
}

// appendTail appends c to b and keeps at least the last limit bytes, at most twice as many: they are moved only now and then.
func appendTail(b []byte, c byte, limit int) []byte {
	b = append(b, c)
	if len(b) >= 2*limit+1 {
		return append(b[:0], b[len(b)-limit:]...)
	}
	return b
}
