package mux

import "fmt"

// State is where a node stands. The numbers are those of NodeState in runs.proto: append only.
type State uint8

// The states. A node has one life: Closed and Failed are its end, and the next request for its edge makes another node.
const (
	Idle           State = 1 // waits for its turn: a place in the pool, or among the target's interpreters
	Dialing        State = 2
	Authenticating State = 3 // a become tool was given the password
	Bootstrapping  State = 4 // the agent's source is sent; frames may follow, its HELLO has not arrived
	Ready          State = 5
	Draining       State = 6 // serves those who have it; the next request dials anew
	Closed         State = 7
	Failed         State = 8
)

var stateNames = map[State]string{
	Idle: "idle", Dialing: "dialing", Authenticating: "authenticating", Bootstrapping: "bootstrapping", Ready: "ready",
	Draining: "draining", Closed: "closed", Failed: "failed",
}

// String names the state as status and top do.
func (s State) String() string {
	if name, ok := stateNames[s]; ok {
		return name
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Ended reports whether the node's life is over.
func (s State) Ended() bool { return s == Closed || s == Failed }

// moves is the transition table.
var moves = map[State][]State{
	Idle:           {Dialing, Draining, Closed, Failed},
	Dialing:        {Authenticating, Bootstrapping, Ready, Draining, Closed, Failed},
	Authenticating: {Bootstrapping, Draining, Closed, Failed},
	Bootstrapping:  {Ready, Draining, Closed, Failed},
	Ready:          {Draining, Closed},
	Draining:       {Closed, Failed},
	Closed:         {},
	Failed:         {},
}

// canMove reports whether the table has the move.
func (s State) canMove(to State) bool {
	for _, m := range moves[s] {
		if m == to {
			return true
		}
	}
	return false
}
