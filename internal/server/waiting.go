package server

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	muxv1 "github.com/mitogen-mux/mitogen-mux/proto/mitogen_mux/v1"
)

// slowAfter is how long a request may wait for its connection before its user is told, at -v, what it waits for.
const slowAfter = 5 * time.Second

// waits are what a node in a state is waited for; the states in which nobody waits have no words.
var waits = map[mux.State]string{
	mux.Idle:           "waits for its turn: as many connections, or interpreters of this host, are being opened as may be",
	mux.Dialing:        "does not answer yet",
	mux.Authenticating: "has the password and has not let us in yet",
	mux.Bootstrapping:  "is starting the interpreter",
}

// tellOfWaiting tells the client what it waits for if that takes long. Call what it returns when the wait is over.
func (r *request) tellOfWaiting() (over func()) {
	var telling sync.WaitGroup
	telling.Add(1)
	timer := time.AfterFunc(r.server.o.Slow, func() {
		defer telling.Done()
		if text := waitText(r.server.o.Tree.Nodes(), r.host, time.Since(r.arrived)); text != "" {
			r.replies.log(int(muxv1.Log_V), text)
			_ = r.replies.send(nil) // a client that is gone is noticed by the call's context
		}
	})
	return func() {
		if timer.Stop() {
			telling.Done()
		}
		telling.Wait()
	}
}

// waitText names what a host waits for: the last of its nodes that is not ready.
func waitText(nodes []mux.NodeInfo, host string, so time.Duration) string {
	for _, n := range slices.Backward(nodes) {
		if words := waits[n.State]; words != "" && slices.Contains(n.Hosts, host) {
			return fmt.Sprintf("still connecting after %s: %s %s", so.Round(time.Second), n.Name, words)
		}
	}
	return ""
}
