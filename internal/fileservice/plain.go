package fileservice

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// Without an agent (no interpreter is known yet, or the target has none) files go through cat, as Ansible's piped transfer does, but
// whole or not at all: the content goes to a temporary file beside the destination, which takes its place only if it has the size
// that was announced. There is no digest, for which the target may have no tool: SSH's own integrity has to do. Nothing is fsynced.
// As modes go this equals what the agent does, except that of an existing file also its owner is kept where cp -p can.

// putScript has its arguments after it: destination, temporary name, size, mode ("" for none). noclobber makes the creation
// exclusive; "chmod =rw" without a "who" means less the umask, which POSIX says and every chmod does.
const putScript = `d=$1 t=$2; ` +
	`[ -d "$d" ] && { echo "$d: Is a directory" >&2; exit 1; }; ` +
	`[ -e "$d" ] && [ ! -f "$d" ] && { echo "$d: not a regular file" >&2; exit 1; }; ` +
	`while [ -L "$d" ]; do l=$(readlink "$d") || exit 1; case $l in /*) d=$l ;; *) d=${d%/*}/$l ;; esac; t=$d.$5; done; ` +
	`[ -e "$d" ] && [ ! -w "$d" ] && { echo "$d: Permission denied" >&2; exit 1; }; ` +
	`(umask 077; set -C; : >"$t") || exit 1; ` +
	`trap 'rm -f "$t"' EXIT; trap 'exit 1' HUP INT TERM PIPE; ` +
	`if [ -z "$4" ] && [ -f "$d" ]; then cp -p "$d" "$t" || exit 1; fi; ` +
	`cat >"$t" || exit 1; ` +
	`[ $(wc -c <"$t") -eq "$3" ] || { echo "$d: the content was cut short" >&2; exit 1; }; ` +
	`if [ -n "$4" ]; then chmod "$4" "$t" || exit 1; elif [ ! -f "$d" ]; then chmod =rw "$t" || exit 1; fi; ` +
	`mv -f "$t" "$d"`

// getScript has its argument after it: the source. noSource is the exit code that tells "not there" from all else.
const (
	noSource  = 66
	getScript = `if [ ! -e "$1" ] && [ ! -L "$1" ]; then echo "$1: No such file or directory" >&2; exit 66; fi; ` +
		`if [ -d "$1" ]; then echo "$1: Is a directory" >&2; exit 1; fi; exec cat <"$1"`
)

// script is a command line for any login shell: sh runs text with args.
func script(text string, args ...string) []byte {
	words := []string{"exec", "/bin/sh", "-c", quote(text), "sh"}
	for _, a := range args {
		words = append(words, quote(a))
	}
	return []byte(strings.Join(words, " "))
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func putPlain(ctx context.Context, c Caller, r *PutRequest, src *source, m *meter) (Result, error) {
	var random [8]byte
	_, _ = rand.Read(random[:]) // cannot fail
	suffix := "mux-" + hex.EncodeToString(random[:])
	dest, mode := string(r.Dest), ""
	if !strings.Contains(dest, "/") {
		dest = "./" + dest
	}
	if r.Mode != nil {
		mode = strconv.FormatUint(uint64(*r.Mode&0o7777), 8)
	}
	hash := sha256.New()
	feed := func(w io.Writer) error {
		w = io.MultiWriter(w, hash)
		if src.file == nil {
			_, err := w.Write(src.small)
			return err
		}
		buffer := make([]byte, chunkSize)
		for left := src.size; left > 0; {
			chunk := buffer[:min(left, chunkSize)]
			if err := src.readChunk(chunk); err != nil {
				return err
			}
			if left -= uint64(len(chunk)); left == 0 {
				// Before the last chunk goes, for with it the far side has all it wants.
				if err := src.checkUnchanged(); err != nil {
					return err
				}
			}
			if _, err := w.Write(chunk); err != nil {
				return err
			}
			m.add(len(chunk))
		}
		return nil
	}
	line := script(putScript, dest, dest+"."+suffix, strconv.FormatUint(src.size, 10), mode, suffix)
	rc, stderr, err := run(ctx, c, line, feed, func([]byte) error { return nil })
	if err != nil {
		return Result{}, err
	}
	if rc != 0 {
		return Result{}, plainFault(fault.FileFailed, "write", r.Dest, rc, stderr)
	}
	res := Result{Size: src.size}
	hash.Sum(res.SHA256[:0])
	return res, nil
}

func getPlain(ctx context.Context, c Caller, r *GetRequest, in *incoming) error {
	rc, stderr, err := run(ctx, c, script(getScript, string(r.Source)), func(io.Writer) error { return nil }, in.add)
	switch {
	case err != nil:
		return err
	case rc == noSource:
		return plainFault(fault.FileNotFound, "read", r.Source, rc, stderr)
	case rc != 0:
		return plainFault(fault.FileFailed, "read", r.Source, rc, stderr)
	}
	return nil
}

func plainFault(kind fault.Kind, verb string, path []byte, rc int, stderr string) error {
	e := &fault.Error{Kind: kind, Message: fmt.Sprintf("cannot %s %s", verb, fault.Clean(path)), Stderr: stderr}
	if line, _, _ := strings.Cut(stderr, "\n"); line != "" {
		e.Message += ": " + line
	} else {
		e.Message += fmt.Sprintf(": exit code %d", rc)
	}
	return e
}

// run executes line with feed's input; add gets its output. An error of feed breaks the input off without the end that would make it
// look whole: the process is closed first.
func run(parent context.Context, c Caller, line []byte, feed func(io.Writer) error, add func([]byte) error) (rc int, stderr string, err error) {
	process, err := c.Exec(parent, line, false)
	if err != nil {
		return 0, "", err
	}
	ctx, end := context.WithCancelCause(parent)
	var running sync.WaitGroup
	// In this order: Close unblocks whoever reads or writes, then they are waited for.
	defer running.Wait()
	defer end(nil)
	defer process.Close() // everything of worth has been read, or has failed
	running.Go(func() {
		<-ctx.Done()
		_ = process.Close()
	})
	running.Go(func() {
		err := feed(process)
		if err != nil && ownFault(err) {
			end(err)
			return
		}
		// Any other error is of the process, whose exit code says why.
		_ = process.CloseWrite()
	})
	said := &tail{}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(said, process.Stderr()) })
	_, err = io.CopyBuffer(writerFunc(add), onlyReader{process}, make([]byte, chunkSize))
	if err != nil && ownFault(err) {
		end(err)
	}
	reading.Wait()
	if ctx.Err() != nil {
		return 0, "", fault.OfContext(ctx)
	}
	rc, waitErr := process.Wait()
	if ctx.Err() != nil {
		return 0, "", fault.OfContext(ctx)
	}
	return rc, fault.Clean(said.bytes), waitErr
}

// tail keeps the end of what is written to it.
type tail struct{ bytes []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.bytes = append(t.bytes, p...)
	if over := len(t.bytes) - fault.MaxStderr; over > 0 {
		t.bytes = append(t.bytes[:0], t.bytes[over:]...)
	}
	return len(p), nil
}

type writerFunc func([]byte) error

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// onlyReader hides shortcuts of io.Copy, which would take buffers of any size.
type onlyReader struct{ io.Reader }
