// Command transfer moves files with the rooms of the daemon, without Ansible: what bench/transfers.py times. Each line of its stdin is
// "put" or "get", source, destination and, if commands are to run all the while, "busy", separated by tabs; each line of its stdout says
// what that came to.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mitogen-mux/mitogen-mux/bench/rooms"
	"github.com/mitogen-mux/mitogen-mux/internal/daemon"
	"github.com/mitogen-mux/mitogen-mux/internal/fileservice"
	"github.com/mitogen-mux/mitogen-mux/internal/hop"
	"github.com/mitogen-mux/mitogen-mux/internal/mux"
	"github.com/mitogen-mux/mitogen-mux/internal/sshlink"
)

// said is what a transfer came to.
type said struct {
	Seconds  float64 `json:"seconds"`
	Alone    float64 `json:"alone"`  // seconds of a command before it, median
	Beside   float64 `json:"beside"` // seconds of a command while it was under way, median
	Worst    float64 `json:"worst"`  // and the slowest
	Commands int     `json:"commands"`
	Resident int     `json:"resident_kib"` // of this process, at most so far
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "transfer:", err)
		os.Exit(1)
	}
}

func run() error {
	port := flag.Uint("port", 22, "of 127.0.0.1")
	user := flag.String("user", "", "whose login")
	key := flag.String("key", "", "private key file")
	known := flag.String("known-hosts", "", "file with the host's key")
	python := flag.String("python", "/usr/bin/python3", "interpreter on the host")
	flag.Parse()
	defer daemon.CalmCollector()()
	ctx := context.Background()
	tree := mux.New(mux.Options{Dialer: sshlink.New(sshlink.Options{})})
	defer tree.Close() //nolint:errcheck // nothing is left to be done about it
	path := hop.Path{{
		SSH: &hop.SSH{
			Host: "127.0.0.1", Port: uint16(*port), User: *user, PrivateKeyFile: *key, HostKeyChecking: true, TimeoutSeconds: 30,
			Args: []string{"-F", "none", "-o", "UserKnownHostsFile=" + *known}, Executable: "ssh",
		},
		Interpreter: *python,
	}}
	node, err := tree.Acquire(ctx, rooms.Run(), "host", path)
	if err != nil {
		return fmt.Errorf("cannot connect: %w", err)
	}
	defer node.Release()
	files := fileservice.New()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Split(lines.Text(), "\t")
		if len(words) < 3 {
			return fmt.Errorf("cannot do %q", lines.Text())
		}
		do := measure
		if len(words) > 3 {
			do = measureBusy
		}
		answer, err := do(ctx, node, files, words[0], words[1], words[2])
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			return fmt.Errorf("cannot answer: %w", err)
		}
	}
	return lines.Err() //nolint:wrapcheck // of stdin
}

// caller is a node as the file service wants it.
type caller struct{ *mux.Context }

// Exec implements fileservice.Caller.
func (c caller) Exec(ctx context.Context, cmd []byte, tty bool) (fileservice.Process, error) {
	return c.Context.Exec(ctx, cmd, mux.ExecOptions{TTY: tty}) //nolint:wrapcheck // the bench's own
}

// measure moves a file.
func measure(ctx context.Context, node *mux.Context, files *fileservice.Service, verb, from, to string) (*said, error) {
	start := time.Now()
	var err error
	if verb == "put" {
		_, err = files.Put(ctx, caller{node}, &fileservice.PutRequest{Path: from, Dest: []byte(to)})
	} else {
		_, err = files.Get(ctx, caller{node}, &fileservice.GetRequest{Source: []byte(from), Path: to})
	}
	return &said{Seconds: time.Since(start).Seconds(), Resident: resident()}, err //nolint:wrapcheck // it says what it could not do
}

// measureBusy is measure with commands before it and beside it.
func measureBusy(ctx context.Context, node *mux.Context, files *fileservice.Service, verb, from, to string) (*said, error) {
	var alone []float64
	for range 5 {
		took, err := command(ctx, node)
		if err != nil {
			return nil, err
		}
		alone = append(alone, took)
	}
	beside, stop := []float64{}, make(chan struct{})
	var asking sync.WaitGroup
	var failed error
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			took, err := command(ctx, node)
			if err != nil {
				failed = err
				return
			}
			select {
			case <-stop: // it may have been alone
				return
			default:
				beside = append(beside, took)
			}
		}
	})
	out, err := measure(ctx, node, files, verb, from, to)
	close(stop)
	asking.Wait()
	if err == nil {
		err = failed
	}
	out.Alone, out.Beside, out.Commands = median(alone), median(beside), len(beside)
	if len(beside) > 0 {
		out.Worst = slices.Max(beside)
	}
	return out, err
}

// command is how long one takes, in seconds.
func command(ctx context.Context, node *mux.Context) (float64, error) {
	start := time.Now()
	err := rooms.Command(ctx, node)
	return time.Since(start).Seconds(), err //nolint:wrapcheck // it says what it could not do
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// resident is the most memory that this process has had resident, in KiB; 0 where the system does not say.
func resident() int {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}
