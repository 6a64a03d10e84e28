package fileservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// source is a file's content on its way to a node: in memory if it is small, else a file that is read as it is sent.
type source struct {
	name   string // for people
	small  []byte // the content; nil if file is set
	file   *os.File
	size   uint64
	before fs.FileInfo // of a file that others may write to; nil otherwise
}

// open makes a source of what a request names.
func open(ctx context.Context, r *PutRequest) (*source, error) {
	if r.Body != nil {
		return gather("the content", func() ([]byte, error) { return r.Body(ctx) })
	}
	// O_NONBLOCK, for a FIFO would else wait for a writer; it changes nothing for a regular file.
	file, err := os.OpenFile(r.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, localFault("read", r.Path, err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		_ = file.Close()
		return nil, localFault("read", r.Path, err)
	}
	s := &source{name: r.Path, file: file, size: uint64(info.Size()), before: info}
	if s.size > MaxInline {
		return s, nil
	}
	defer file.Close() //nolint:errcheck // only read
	if s.size == 0 {
		// Files of /proc and the like have a size only for who reads them.
		buffer := make([]byte, MaxInline)
		return gather(r.Path, func() ([]byte, error) {
			n, err := file.Read(buffer)
			return buffer[:n], err
		})
	}
	s.small = make([]byte, s.size)
	if err := s.readChunk(s.small); err != nil {
		return nil, err
	}
	if err := s.checkUnchanged(); err != nil {
		return nil, err
	}
	s.file = nil
	return s, nil
}

// gather takes content whose size is not known beforehand. What is more than small waits in a file that has no name, not in memory.
func gather(name string, next func() ([]byte, error)) (*source, error) {
	s := &source{name: name, small: []byte{}}
	for {
		part, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = s.append(part)
		}
		if err != nil {
			s.Close()
			if _, typed := errors.AsType[*fault.Error](err); typed {
				return nil, err
			}
			return nil, localFault("read", name, err)
		}
	}
	if s.file != nil {
		if _, err := s.file.Seek(0, io.SeekStart); err != nil {
			s.Close()
			return nil, localFault("read", name, err)
		}
	}
	return s, nil
}

func (s *source) append(part []byte) error {
	s.size += uint64(len(part))
	if s.file == nil && s.size <= MaxInline {
		s.small = append(s.small, part...)
		return nil
	}
	if s.file == nil {
		file, err := unnamed()
		if err != nil {
			return err
		}
		s.file = file
		part = append(s.small, part...)
		s.small = nil
	}
	_, err := s.file.Write(part)
	return err
}

// unnamed returns a file that only we can see and that leaves with us.
func unnamed() (*os.File, error) {
	file, err := os.CreateTemp("", "mitogen-mux-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// readChunk fills p from the file; less is there only if somebody cut the file short.
func (s *source) readChunk(p []byte) error {
	_, err := io.ReadFull(s.file, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return s.changed()
	}
	if err != nil {
		return localFault("read", s.name, err)
	}
	return nil
}

// checkUnchanged reports FileChanged if the file was written to since it was opened.
func (s *source) checkUnchanged() error {
	if s.before == nil {
		return nil
	}
	after, err := s.file.Stat()
	if err != nil {
		return localFault("read", s.name, err)
	}
	if after.Size() != s.before.Size() || !after.ModTime().Equal(s.before.ModTime()) {
		return s.changed()
	}
	return nil
}

// identity is the same for two sources that, as far as can be told without reading them, have the same content; "" is like no other.
func (s *source) identity() string {
	if s.before == nil {
		return ""
	}
	return fmt.Sprintf("%d %d %s", s.size, s.before.ModTime().UnixNano(), s.name)
}

func (s *source) changed() error {
	return &fault.Error{
		Kind:    fault.FileChanged,
		Message: fmt.Sprintf("%s changed while it was read", s.name),
		Hint:    "Run the task again when nobody writes to the file.",
	}
}

// Close lets go of the file.
func (s *source) Close() {
	if s.file != nil {
		_ = s.file.Close() // only read, or without a name
	}
}

// localFault is an error of the controller's own file system.
func localFault(verb, path string, err error) error {
	e := &fault.Error{Kind: fault.FileFailed, Message: fmt.Sprintf("cannot %s %s on the controller: %s", verb, path, reason(err)), Cause: nil}
	if verb == "read" && errors.Is(err, fs.ErrNotExist) {
		e.Kind = fault.FileNotFound
	}
	return e
}

// reason is an error without the path that os puts before it.
func reason(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	return err.Error()
}
