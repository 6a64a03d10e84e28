package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// ContextKey is the key under which an entry of the log names the context that it is about.
const ContextKey = "context"

// contextLogs is a sink that gives every context a log of its own, for whoever wants to see what goes over one link.
type contextLogs struct {
	folder string

	mu   sync.Mutex
	logs map[string]hclog.Logger // by context
}

// NewContextLogs makes the folder anew and returns the sink that writes to it: one file for each context, readable by its owner only,
// bounded as the daemon's log is.
func NewContextLogs(folder string) (hclog.SinkAdapter, error) {
	if err := os.RemoveAll(folder); err != nil {
		return nil, fmt.Errorf("cannot remove the contexts' logs: %w", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make a folder for the contexts' logs: %w", err)
	}
	return &contextLogs{folder: folder, logs: map[string]hclog.Logger{}}, nil
}

// Accept implements hclog.SinkAdapter. Entries about no context are the daemon's log's.
func (c *contextLogs) Accept(_ string, level hclog.Level, message string, args ...any) {
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == ContextKey {
			c.logOf(fmt.Sprint(args[i+1])).Log(level, message, append(args[:i:i], args[i+2:]...)...)
			return
		}
	}
}

// logOf opens the log of a context when it is first spoken of; one that cannot be opened swallows what it is told.
func (c *contextLogs) logOf(context string) hclog.Logger {
	c.mu.Lock()
	defer c.mu.Unlock()
	log, ok := c.logs[context]
	if !ok {
		log = hclog.NewNullLogger()
		if file, err := openLog(filepath.Join(c.folder, filepath.Base(context)+".log"), MaxLog, false); err == nil {
			log = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: file})
		}
		c.logs[context] = log
	}
	return log
}
