package agent

import (
	"bytes"
	"embed"
	"strings"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
)

var (
	//go:embed agent*.py
	agentPy embed.FS
	//go:embed stage1.py
	stage1Py string
	//go:embed stage1_local.py
	stage1LocalPy string
	//go:embed relay.py
	relayPy string
)

// sections is the agent in the order that agent.py gives.
var sections = []string{"agent_frames.py", "agent_payload.py", "agent_pages.py", "agent_child.py", "agent_fresh.py", "agent_streams.py", "agent_chain.py", "agent_jobs.py", "agent.py"}

// Stage1 returns the argument of `python -c` that starts an agent on its stdio; the agent's name follows it.
func Stage1() string { return oneLine(stage1Py) }

// Stage1Local returns the argument of `python -c` that starts the controller's own agent; its name, the daemon's socket and the
// token in hex follow it.
func Stage1Local() string { return oneLine(stage1LocalPy) }

// Relay returns the argument of `python -c` that connects to the host and port which follow it, writes one byte, and passes bytes on
// between that connection and its stdio. On failure it says why on stderr.
func Relay() string { return relayPy }

// oneLine makes a program one line: login shells of the csh family take no line feed between single quotes. The only backslashes
// are those of its \n, which no shell takes for an escape there.
func oneLine(program string) string {
	var lines []string
	for line := range strings.Lines(program) {
		line = strings.TrimRight(line, " \n")
		if code := strings.TrimLeft(line, " "); code != "" && code[0] != '#' {
			lines = append(lines, line)
		}
	}
	return `exec("""` + strings.Join(lines, `\n`) + `\n""")`
}

var source = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, zlib.BestCompression)
	if err == nil {
		for i, section := range sections {
			text, missing := agentPy.ReadFile(section)
			if missing != nil {
				panic("agent: " + missing.Error()) // embedded above
			}
			if i > 0 {
				text = append([]byte{0}, text...)
			}
			if _, err = w.Write(text); err != nil {
				break
			}
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic("agent: cannot compress the embedded agent: " + err.Error()) // memory only: nothing can fail
	}
	return b.Bytes()
})

// Source returns the agent as stage 1 reads it: its sections with a zero byte between two of them, compressed. Nobody may change it.
func Source() []byte { return source() }

var sourceDigest = sync.OnceValue(func() blobcache.Digest { return blobcache.Sum(source()) })
