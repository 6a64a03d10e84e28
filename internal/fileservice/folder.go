package fileservice

import (
	"context"
	"io"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// FolderRequest makes a folder that only its owner may enter, and the parents it lacks likewise; or removes one with all that is in it.
type FolderRequest struct {
	Path   []byte
	Remove bool
	UID    uint32 // whose it shall be, if the account is root; 0: the account's own
}

// As plain Ansible does it; the argument after it is the folder.
const (
	makeFolder   = `umask 77 && mkdir -p "$(dirname "$1")" && mkdir "$1"`
	removeFolder = `rm -rf "$1"`
)

// Folder makes or removes a folder. Errors are *fault.Error.
func (s *Service) Folder(ctx context.Context, c Caller, r *FolderRequest) error {
	verb := "make"
	if r.Remove {
		verb = "remove"
	}
	if !c.HasAgent() {
		text := makeFolder
		if r.Remove {
			text = removeFolder
		}
		rc, stderr, err := run(ctx, c, script(text, string(r.Path)), func(io.Writer) error { return nil }, func([]byte) error { return nil })
		if err != nil {
			return typed(ctx, err)
		}
		if rc != 0 {
			return plainFault(fault.FileFailed, verb, r.Path, rc, stderr)
		}
		return nil
	}
	stream, err := c.Open(ctx, &agent.Folder{Path: r.Path, Remove: r.Remove, UID: r.UID})
	if err != nil {
		return typed(ctx, err)
	}
	defer stream.Close()
	res, err := result(ctx, stream)
	if err != nil {
		return typed(ctx, err)
	}
	if res.Failed {
		return remoteFault(verb, r.Path, res)
	}
	return nil
}
