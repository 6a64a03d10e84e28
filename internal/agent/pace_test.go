package agent

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// line is a way to the far side and back: so many bytes a second, one after the other, so long on their way.
type line struct {
	rate  float64
	there time.Duration // and back again as long
	free  time.Time     // when it takes the next byte

	mu   sync.Mutex
	owed int // arrived, without credit
}

// carry calls back when credit for what has arrived is here again.
func (l *line) carry(n int, credit func(int)) {
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	time.AfterFunc(l.free.Add(l.there).Sub(now), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.owed += n; l.owed >= creditAt {
			n := l.owed
			l.owed = 0
			time.AfterFunc(l.there, func() { credit(n) })
		}
	})
}

// TestPace: a large transfer uses the line whatever it is like, and never has more under way than twice what the line holds, and little
// more, or what a fast line carries in a turn.
func TestPace(t *testing.T) {
	const mbit = 1e6 / 8
	for name, c := range map[string]struct {
		rate float64
		back time.Duration
	}{
		"100 Mbit/s, 20 ms":  {100 * mbit, 20 * time.Millisecond},
		"100 Mbit/s, 80 ms":  {100 * mbit, 80 * time.Millisecond},
		"100 Mbit/s, 150 ms": {100 * mbit, 150 * time.Millisecond},
		"10 Mbit/s, 20 ms":   {10 * mbit, 20 * time.Millisecond},
		"10 Mbit/s, 600 ms":  {10 * mbit, 600 * time.Millisecond},
		"100 Mbit/s, 0.2 ms": {100 * mbit, 200 * time.Microsecond},
		"10 Gbit/s, 0.1 ms":  {10000 * mbit, 100 * time.Microsecond},
		"10 Gbit/s, 80 ms":   {10000 * mbit, 80 * time.Millisecond}, // more than a window may be
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _ := paces(Put{})
				l := &line{rate: c.rate, there: c.back / 2}
				holds := c.rate * c.back.Seconds()
				wake := make(chan int, 1000)
				credit := func(n int) { wake <- n }
				var sent, most int
				run := func(for_ time.Duration) {
					for end := time.Now().Add(for_); time.Now().Before(end); {
						for p.room() > 0 {
							n := min(p.room(), MaxPayload)
							p.leave(n)
							l.carry(n, credit)
							sent += n
							most = max(most, p.under)
						}
						p.arrive(<-wake)
					}
				}
				rounds := 20 * max(c.back, time.Duration(Window/c.rate*float64(time.Second)))
				run(rounds)
				sent, most = 0, 0
				start := time.Now()
				run(rounds)
				got, able := float64(sent)/time.Since(start).Seconds(), min(c.rate, maxWindow/c.back.Seconds())
				if got < 0.9*able {
					t.Errorf("%.0f of %.0f bytes a second", got, able)
				}
				// The fastest way that is seen is that of a whole credit, and the limit goes by as much.
				if allowed := max(2*(holds+creditAt)+creditAt, min(c.rate*turn.Seconds(), Window)); float64(most) > allowed {
					t.Errorf("%d bytes are under way on a line that holds %.0f", most, holds)
				}
				for p.under > 0 && len(wake) > 0 {
					p.arrive(<-wake)
				}
			})
		})
	}
}

// TestPaceOfOutput: what a command says late teaches nothing of the way.
func TestPaceOfOutput(t *testing.T) {
	for name, r := range map[string]Request{"module": Module{}, "command": Command{}} {
		synctest.Test(t, func(t *testing.T) {
			down, up := paces(r)
			for _, p := range []*pace{&down, &up} {
				p.leave(Window)
				time.Sleep(time.Hour)
				p.arrive(Window)
				if p.limit != Window || p.room() != Window {
					t.Errorf("%s: %+v", name, p)
				}
			}
		})
	}
}
