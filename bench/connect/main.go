// Command connect reaches so many hosts with the rooms of the daemon, without Ansible, and runs one command on each: what
// bench/connections.py times. The hosts are addresses of this machine, 127.0.0.1 and following.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mitogen-mux/mitogen-mux/bench/rooms"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "connect:", err)
		os.Exit(1)
	}
}

func run() error {
	port := flag.Uint("port", 22, "of every host")
	user := flag.String("user", "", "whose login")
	key := flag.String("key", "", "private key file")
	config := flag.String("config", "", "ssh_config")
	python := flag.String("python", "/usr/bin/python3", "interpreter on the hosts; empty: SSH alone")
	count := flag.Int("hosts", 1, "how many")
	pool := flag.Int("pool", 0, "MITOGEN_POOL_SIZE; 0: its default")
	flag.Parse()
	start := time.Now()
	tree := mux.New(mux.Options{Dialer: sshlink.New(sshlink.Options{}), PoolSize: *pool})
	defer tree.Close() //nolint:errcheck // nothing is left to be done about it
	failed := make([]error, *count)
	var all sync.WaitGroup
	for n := range *count {
		all.Go(func() {
			failed[n] = one(tree, &hop.SSH{
				Host: fmt.Sprintf("127.0.%d.%d", n/250, n%250+1), Port: uint16(*port), User: *user, PrivateKeyFile: *key,
				HostKeyChecking: true, TimeoutSeconds: 60, Args: []string{"-F", *config}, Executable: "ssh",
			}, *python, n)
		})
	}
	all.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	seconds := time.Since(start).Seconds()
	cpu := 0.0
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var usage syscall.Rusage
		if err := syscall.Getrusage(who, &usage); err != nil {
			return fmt.Errorf("cannot tell what it cost: %w", err)
		}
		cpu += time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{"seconds": seconds, "cpu": cpu}) //nolint:wrapcheck // of stdout
}

// one reaches a host and runs a command there. Its key is its number: no two are one node.
func one(tree *mux.Tree, host *hop.SSH, python string, n int) error {
	ctx := context.Background()
	h := hop.Hop{SSH: host, Interpreter: python}
	h.Account[0], h.Account[1] = byte(n), byte(n>>8)
	node, err := tree.Acquire(ctx, rooms.Run(), host.Host, hop.Path{h})
	if err != nil {
		return fmt.Errorf("cannot reach %s: %w", host.Host, err)
	}
	defer node.Release()
	if python == "" {
		process, err := node.Exec(ctx, []byte("true"), mux.ExecOptions{})
		if err != nil {
			return fmt.Errorf("cannot run a command: %w", err)
		}
		defer process.Close()
		_, err = process.Wait()
		return err //nolint:wrapcheck // the bench's own
	}
	return rooms.Command(ctx, node) //nolint:wrapcheck // it says what it could not do
}
