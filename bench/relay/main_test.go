package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestCounts sends three questions through the relay to a host that answers each, and looks at every counter.
func TestCounts(t *testing.T) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		c, err := host.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for b := make([]byte, 5); ; {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if _, err := c.Write([]byte("answer!")); err != nil {
				return
			}
		}
	}()
	in, say := io.Pipe()
	hear, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run("127.0.0.1:0", host.Addr().String(), newPath(time.Millisecond, 0, 0), in, out) }()
	lines := bufio.NewReader(hear)
	address, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", strings.TrimSpace(address))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Write([]byte("quest")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 7)); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(word string) (s Stats) {
		t.Helper()
		if _, err := io.WriteString(say, word+"\n"); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	got, want := ask("stats"), Stats{UpBytes: 15, DownBytes: 21, Connections: 1, Turns: 2}
	if got.Packets < 4 { // one for each time somebody spoke, more if a line came in parts
		t.Errorf("%d packets", got.Packets)
	}
	got.Packets = 0
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := ask("reset"); got != (Stats{}) {
		t.Errorf("after a reset: %+v", got)
	}
	// The relay ends with its stdin, an open connection with it.
	if err := say.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived the relay")
	}
}

// TestRate: bytes leave one after the other at the line's rate, whoever sends them, and no more than the queue wait.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, queue, piece = 1e6, 100_000, 4_000
		way := newPath(0, rate, queue)
		start := time.Now()
		var senders sync.WaitGroup
		var mu sync.Mutex
		var last time.Time
		for range 4 {
			senders.Go(func() {
				for range 250 {
					left := way.up.take(piece)
					if waits := time.Until(left); waits > time.Duration(queue+4*piece)*time.Second/rate {
						t.Errorf("a byte waits for %v", waits)
					}
					mu.Lock()
					last = left
					mu.Unlock()
				}
			})
		}
		senders.Wait()
		if took := last.Sub(start); took < 3990*time.Millisecond || took > 4010*time.Millisecond {
			t.Errorf("4,000,000 bytes took %v at 1,000,000 a second", took)
		}
		if time.Until(way.down.take(1)) > time.Millisecond {
			t.Error("one direction waits for the other")
		}
	})
}
