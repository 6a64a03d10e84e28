// Command relay stands between a controller and a host and counts what passes: a TCP relay that can delay each direction. It speaks on
// stdin and stdout: it prints the address it listens on, answers "stats" with a line of JSON and "reset" with zeroed counters, and ends
// with its stdin. Delay is by time stamp, so that bytes keep their spacing and pipelining stays honest.
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

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	to := flag.String("to", "", "address of the host")
	delay := flag.Duration("delay", 0, "one-way delay")
	flag.Parse()
	if err := run(*listen, *to, *delay, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
}

func run(listen, to string, delay time.Duration, in io.Reader, out io.Writer) error {
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
				serve(near, to, delay, count)
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
func serve(near net.Conn, to string, delay time.Duration, count *counter) {
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
	both.Go(func() { pass(far, near, delay, c.up) })
	both.Go(func() { pass(near, far, delay, c.down) })
	both.Wait()
}

// part is what was read at once, and when it may leave; no bytes are the end.
type part struct {
	bytes []byte
	due   time.Time
}

// pass copies from in to out, each part delay later than it came, and passes the end on.
func pass(out, in net.Conn, delay time.Duration, counted func(int)) {
	parts := make(chan part, 1024)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(parts)
		for {
			b := make([]byte, 64<<10)
			n, err := in.Read(b)
			if n > 0 {
				counted(n)
				parts <- part{b[:n], time.Now().Add(delay)}
			}
			if err != nil {
				parts <- part{nil, time.Now().Add(delay)}
				return
			}
		}
	})
	var failed error
	for p := range parts {
		time.Sleep(time.Until(p.due))
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
