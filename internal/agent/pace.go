package agent

import "time"

// pace says how many bytes of one direction of a stream may be under way: twice what the way there and back holds by itself. Then the
// line is never idle, and what else wants to pass waits for no more than that. On a fast line it is what passes in a turn, up to the first
// window. It learns from how long bytes are under way. The link's mutex guards it.
type pace struct {
	limit  int           // bytes
	least  int           // that the limit may become; 0: it stays what it is
	under  int           // bytes under way: sent without credit, or credit without use
	asked  time.Time     // when the first creditAt of them left
	quick  time.Duration // the shortest way there and back; 0: not known yet
	began  time.Time     // when the round did: the time that it takes for all that is under way to arrive
	amount int           // bytes of the round
	left   int           // of them not arrived yet; 0: there is no round
	rate   float64       // bytes a second that a round has made, the best of late
}

// turn is how long a process on the way may have to wait for a processor, while those before it and behind it should not.
const turn = 8 * time.Millisecond

// paces are those of a new stream, down and up. A command's output says when it was made rather than how long it was under way, so it
// teaches nothing. An agent behind another keeps the pace itself, and is not to be slowed down by the one before it.
func paces(r Request) (down, up pace) {
	down, up = pace{limit: Window}, pace{limit: Window}
	switch r := r.(type) {
	case Put:
		down.least = leastWindow
	case Get:
		up.least = leastWindow
	case Module:
		if r.Stdin {
			down.least = leastWindow
		}
	case Spawn:
		down.least, up.least = Window, Window
	}
	return down, up
}

// room is how many bytes more may leave.
func (p *pace) room() int { return max(p.limit-p.under, 0) }

// leave notes that n bytes more are under way.
func (p *pace) leave(n int) {
	p.under += n
	if p.least == 0 {
		return
	}
	if p.asked.IsZero() && p.under >= creditAt {
		p.asked = time.Now()
	}
	if p.left == 0 && p.under >= p.limit/4*3 {
		p.began, p.amount, p.left = time.Now(), p.under, p.under
	}
}

// arrive notes that n bytes are not under way any more.
func (p *pace) arrive(n int) {
	p.under -= n
	if p.least == 0 {
		return
	}
	if p.quick == 0 && !p.asked.IsZero() {
		p.quick = time.Since(p.asked)
	}
	if p.left == 0 {
		return
	}
	if p.left -= n; p.left > 0 {
		return
	}
	p.left = 0
	took := max(time.Since(p.began), time.Microsecond)
	if p.quick == 0 || took < p.quick {
		p.quick = took
	}
	rate := float64(p.amount) / took.Seconds()
	p.rate = max(rate, p.rate*7/8)
	limit := max(2*rate*p.quick.Seconds(), min(p.rate*turn.Seconds(), Window))
	p.limit = min(max(int(limit)/creditAt*creditAt, p.least), maxWindow)
}
