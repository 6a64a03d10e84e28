package mux

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
)

const (
	attachLine   = "MUXATTACH " // then the token in hex and LF
	maxAttach    = 80           // bytes of that line
	tokenBytes   = 32
	attachRead   = 5 * time.Second  // for that line to arrive
	attachWait   = 10 * time.Second // for another's agent, before a request is given a token itself
	attachWindow = 60 * time.Second // that a token is good for
)

// enterLocal is enter for a local hop, which nothing here can open: a process of the run must attach itself.
func (w *walk) enterLocal(ctx context.Context, h hop.Hop) error {
	t := w.tree
	t.mu.Lock()
	if t.closing {
		t.mu.Unlock()
		return errClosing()
	}
	n := t.firstLocked(h, w.run.ID)
	if n == nil {
		e, _ := connectionEdge(h, w.run.ID)
		n = t.plantLocked(nil, e, h, 0, opening{run: w.run})
		t.moveLocked(n, Dialing)
		w.stepLocked(n, true)
		err := t.wantLocked(n)
		t.mu.Unlock()
		w.leave()
		return err
	}
	w.stepLocked(n, false)
	t.mu.Unlock()

	timer := time.NewTimer(attachWait)
	defer timer.Stop()
	select {
	case <-n.up:
	case <-ctx.Done():
	case <-timer.C:
		t.mu.Lock()
		if !n.usable && !n.state.Ended() && !n.claimed {
			err := t.wantLocked(n)
			t.mu.Unlock()
			w.leave()
			return err
		}
		t.mu.Unlock()
	}
	select { // an agent that has come is up, or has failed, soon
	case <-n.up:
		return w.usable(n)
	case <-ctx.Done():
		w.leave()
		return n.fault(contextFault(ctx), fault.Cancelled, "")
	}
}

// wantLocked is the error that asks for an agent, with a token of its own: whoever was asked before may be gone.
func (t *Tree) wantLocked(n *node) error {
	token := make([]byte, tokenBytes)
	_, _ = rand.Read(token) // never fails
	n.tokens = append(n.tokens, token)
	return &fault.Error{
		Kind: fault.LocalAgentWanted, Hop: n.level, HopName: n.name(), Message: "no agent of this run is attached", Token: token,
	}
}

// expectLocked lets a local node for which no agent came leave once its last token is too old.
func (t *Tree) expectLocked(n *node) {
	if n.claimed {
		return // it has a goroutine of its own, with its own deadline
	}
	left := time.Until(n.lastUsed.Add(attachWindow))
	if left <= 0 {
		t.downLocked(n, Failed, n.fault(nil, fault.TimedOut, "no agent attached"))
		return
	}
	t.afterLocked(n, left, t.reconsiderLocked)
}

// AttachLocal takes a connection to the agent socket. It returns when the agent is in the tree, which from then on owns conn;
// after an error conn is closed.
func (t *Tree) AttachLocal(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	token, err := readToken(conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	n := t.claim(token, func(ctx context.Context, n *node) (opened, error) {
		link, err := t.bootstrap(ctx, n, conn)
		if err != nil {
			_ = conn.Close()
			return opened{}, n.fault(err, fault.AgentDied, "cannot start the agent")
		}
		return opened{link: link}, nil
	})
	if n == nil {
		_ = conn.Close()
		return errors.New("cannot attach an agent: its token is not, or no longer, known")
	}
	<-n.up
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.state.Ended() {
		return n.err
	}
	return nil
}

// readToken reads the first line, and no byte more: what follows is the link's.
func readToken(conn net.Conn) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(attachRead)); err != nil {
		return nil, err
	}
	line := make([]byte, 0, maxAttach)
	for !bytes.HasSuffix(line, []byte("\n")) {
		if len(line) == maxAttach {
			return nil, errors.New("cannot attach an agent: its first line is too long")
		}
		n, err := conn.Read(line[len(line) : len(line)+1])
		if err != nil {
			return nil, err
		}
		line = line[:len(line)+n]
	}
	text, ok := bytes.CutPrefix(line[:len(line)-1], []byte(attachLine))
	token := make([]byte, tokenBytes)
	if !ok || len(text) != hex.EncodedLen(tokenBytes) {
		return nil, errors.New("cannot attach an agent: its first line is no token")
	}
	if _, err := hex.Decode(token, text); err != nil {
		return nil, errors.New("cannot attach an agent: its first line is no token")
	}
	return token, conn.SetReadDeadline(time.Time{})
}

// claim finds the local node that waits for token and starts opening it; nil if there is none. A token works once, and the first
// of several wins.
func (t *Tree) claim(token []byte, launch func(context.Context, *node) (opened, error)) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.all {
		if n.edge.role != localAgent || n.usable || n.claimed || t.closing {
			continue
		}
		if slices.ContainsFunc(n.tokens, func(known []byte) bool { return subtle.ConstantTimeCompare(known, token) == 1 }) {
			n.claimed, n.tokens = true, nil
			n.opening.launch = launch
			t.growLocked(n)
			return n
		}
	}
	return nil
}
