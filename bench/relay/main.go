// Command relay stands between a controller and a host and counts what passes: a TCP relay that can delay each direction, and
// let pass so much a second and no more. It speaks on stdin and stdout: it prints the address it listens on, answers "stats" with a line of
// JSON and "reset" with zeroed counters, and ends with its stdin. Delay is by time stamp, so that bytes keep their spacing and pipelining
// stays honest. What is faster than the rate waits in a queue that all connections share, and while that is full nothing more is read.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what passed since the last reset.
type Stats struct {
	UpBytes     int64 `json:"up_bytes"`
	DownBytes   int64 `json:"down_bytes"`
	Connections int64 `json:"connections"`
	// Packets is how many of at most 1,448 bytes what was read at once would fill, both ways.
	Packets int64 `json:"packets"`
	// Turns counts how often the controller spoke after the host had, over all connections: an upper bound of the round trips waited for.
	Turns int64 `json:"turns"`
}

// counter guards Stats.
type counter struct {
	mu sync.Mutex
	Stats
}

// conn is one relayed connection. hostSpoke says who spoke last, for Turns; counter.mu guards it.
type conn struct {
	counter   *counter
	hostSpoke bool
}

func (c *conn) up(n int) {
	c.counter.mu.Lock()
	defer c.counter.mu.Unlock()
	c.counter.UpBytes += int64(n)
	c.counter.Packets += packets(n)
	if c.hostSpoke {
		c.counter.Turns++
	}
	c.hostSpoke = false
}

func (c *conn) down(n int) {
	c.counter.mu.Lock()
	defer c.counter.mu.Unlock()
	c.counter.DownBytes += int64(n)
	c.counter.Packets += packets(n)
	c.hostSpoke = true
}

// packets is how many segments of Ethernet's usual size n bytes take.
func packets(n int) int64 {
	return int64(n+1447) / 1448
}

// line is one direction of what a relay stands for.
type line struct {
	rate  float64       // bytes a second; 0: no limit
	queue time.Duration // the most that a byte waits for the line

	mu   sync.Mutex
	free time.Time // when the line has carried all that came
}

// take gives n bytes their place on the line, and returns when the last of them has left it. It waits while the queue is full.
func (l *line) take(n int) time.Time {
	if l.rate == 0 {
		return time.Now()
	}
	for {
		l.mu.Lock()
		now := time.Now()
		if l.free.Before(now) {
			l.free = now
		}
		full := l.free.Sub(now) - l.queue
		if full <= 0 {
			l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			defer l.mu.Unlock()
			return l.free
		}
		l.mu.Unlock()
		time.Sleep(full)
	}
}

// path is a relay's two directions and how long a byte is on its way.
type path struct {
	up, down line
	delay    time.Duration
}

func newPath(delay time.Duration, rate, queue float64) *path {
	p := &path{delay: delay}
	for _, l := range []*line{&p.up, &p.down} {
		l.rate = rate
		if rate > 0 {
			l.queue = time.Duration(queue / rate * float64(time.Second))
		}
	}
	return p
}

// atOnce is how much is read at once: of a line that has a rate little, so that it is shared fairly.
func (l *line) atOnce() int {
	if l.rate > 0 {
		return 4 << 10
	}
	return 64 << 10
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	to := flag.String("to", "", "address of the host")
	delay := flag.Duration("delay", 0, "one-way delay")
	rate := flag.Float64("rate", 0, "bytes a second that each direction carries; 0: as many as come")
	queue := flag.Float64("queue", 256<<10, "bytes that may wait for a direction that has a rate")
	flag.Parse()
	if err := run(*listen, *to, newPath(*delay, *rate, *queue), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
}

func run(listen, to string, way *path, in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	count := &counter{}
	var open sync.Map // net.Conn → nothing: what ends with the relay
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			open.Store(near, nil)
			all.Go(func() {
				defer open.Delete(near)
				serve(near, to, way, count)
			})
		}
	})
	_, err = fmt.Fprintln(out, listener.Addr())
	lines := bufio.NewScanner(in)
	for err == nil && lines.Scan() {
		count.mu.Lock()
		if lines.Text() == "reset" {
			count.Stats = Stats{}
		}
		err = json.NewEncoder(out).Encode(count.Stats)
		count.mu.Unlock()
	}
	err = errors.Join(err, lines.Err(), listener.Close())
	open.Range(func(c, _ any) bool {
		_ = c.(net.Conn).Close()
		return true
	})
	all.Wait()
	return err
}

// serve relays one connection until both directions have ended.
func serve(near net.Conn, to string, way *path, count *counter) {
	defer near.Close()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	count.mu.Lock()
	count.Connections++
	count.mu.Unlock()
	c := &conn{counter: count}
	var both sync.WaitGroup
	both.Go(func() { pass(far, near, &way.up, way.delay, c.up) })
	both.Go(func() { pass(near, far, &way.down, way.delay, c.down) })
	both.Wait()
}

// part is what was read at once, and when it may leave; no bytes are the end.
type part struct {
	bytes []byte
	due   time.Time
}

// coarse is how late Go's own timers can be: it waits for the network in whole milliseconds.
const coarse = time.Millisecond

// pause waits until due. A delay alone is kept to some tens of microseconds; on a line that has a rate what is late makes nothing later.
func pause(due time.Time, exact bool) {
	left := time.Until(due)
	if !exact {
		time.Sleep(left)
		return
	}
	if left > coarse {
		time.Sleep(left - coarse)
		left = time.Until(due)
	}
	for left > 0 { // a signal may end it early
		rest := unix.NsecToTimespec(left.Nanoseconds())
		_ = unix.Nanosleep(&rest, nil)
		left = time.Until(due)
	}
}

// pass copies from in to out, each part delay later than the line has carried it, and passes the end on.
func pass(out, in net.Conn, l *line, delay time.Duration, counted func(int)) {
	parts := make(chan part, 1024)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(parts)
		for {
			b := make([]byte, l.atOnce())
			n, err := in.Read(b)
			if n > 0 {
				counted(n)
				parts <- part{b[:n], l.take(n).Add(delay)}
			}
			if err != nil {
				parts <- part{nil, l.take(0).Add(delay)}
				return
			}
		}
	})
	var failed error
	for p := range parts {
		pause(p.due, l.rate == 0)
		switch {
		case p.bytes == nil:
			_ = out.(*net.TCPConn).CloseWrite()
		case failed == nil:
			if _, failed = out.Write(p.bytes); failed != nil {
				_ = in.Close()
			}
		}
	}
	reader.Wait()
}
