package mux

import (
	"context"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// maxMemory is how many answers are remembered for a target, each of at most maxAnswer bytes.
const (
	maxMemory = 256
	maxAnswer = 4096
)

// Memory is what commands have said about the accounts of a target that does not change while its connection lives, such as home
// directories. It is safe for concurrent use.
type Memory struct {
	mu      sync.Mutex
	answers map[string][]byte
}

// Recall returns the answer to a question.
func (m *Memory) Recall(question string) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	answer, ok := m.answers[question]
	return answer, ok
}

// Remember keeps an answer, unless there are too many or it is too long.
func (m *Memory) Remember(question string, answer []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.answers) >= maxMemory || len(answer) > maxAnswer {
		return
	}
	if m.answers == nil {
		m.answers = map[string][]byte{}
	}
	m.answers[question] = answer
}

// Memory returns the memory of the target that the context is on.
func (c *Context) Memory() *Memory { return &c.node.root.memory }

// LoginUID waits until it is known, and returns, which account the last hop has become another one from.
func (c *Context) LoginUID(ctx context.Context) (uint32, error) {
	n := c.node
	if n.edge.role == becomeAgent {
		n = n.parent
	}
	if n.link == nil {
		return 0, c.fault(&fault.Error{Kind: fault.Internal, Message: "the login account has no agent"}, "")
	}
	hello, err := n.link.Hello(ctx)
	if err != nil {
		return 0, c.fault(err, "the agent was lost")
	}
	return uint32(hello.UID), nil //nolint:gosec // DecodeHello bounds it
}
