package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// maxSocketPath is the longest path of a socket that every system we know can bind (Linux has 107 bytes, macOS 103).
const maxSocketPath = 100

// keepLogs is how long the log of a version that no longer runs is kept.
const keepLogs = 7 * 24 * time.Hour

const chooseAnother = "set MITOGEN_MUX_DIR to a directory of your own"

// Dir is a directory that was checked: it is ours and nobody else's.
type Dir struct{ path string }

// DirPath says which directory to use: MITOGEN_MUX_DIR, else mitogen-mux in XDG_RUNTIME_DIR, else one in /tmp named after uid. An
// XDG_RUNTIME_DIR that is not the user's (as after su or sudo) is not used: it would lock its owner out.
func DirPath(getenv func(string) string, uid int) string {
	if path := getenv("MITOGEN_MUX_DIR"); path != "" {
		return path
	}
	if path := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(path) {
		if info, err := os.Stat(path); err == nil && info.IsDir() && ownerOf(info) == uid {
			return filepath.Join(path, "mitogen-mux")
		}
	}
	return fmt.Sprintf("/tmp/mitogen-mux-%d", uid)
}

// OpenDir checks the directory, which it makes if it is not there. The errors are *Error.
func OpenDir(path string) (Dir, error) {
	refuse := func(r Reason, remedy, format string, args ...any) (Dir, error) {
		what := fmt.Sprintf(format, args...)
		return Dir{}, &Error{Reason: r, Path: path, Message: fmt.Sprintf("cannot use the directory %s: %s", path, what), Remedy: remedy}
	}
	if !filepath.IsAbs(path) {
		return refuse(Relative, "set MITOGEN_MUX_DIR to an absolute path", "it is not an absolute path")
	}
	if strings.ContainsFunc(path, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return refuse(Blank, chooseAnother+" without blanks", "there is a blank or a control character in its path")
	}
	path = filepath.Clean(path)
	parent, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return refuse(NoParent, "create the directory above it, or "+chooseAnother, "%v", err)
	}
	if parent.Mode().Perm()&0o002 != 0 && parent.Mode()&fs.ModeSticky == 0 {
		return refuse(OpenParent, chooseAnother, "everybody may replace it, since %s is writable for all and not sticky", filepath.Dir(path))
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return refuse(Unavailable, chooseAnother, "%v", err)
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return refuse(Unavailable, chooseAnother, "%v", err)
	case info.Mode()&fs.ModeSymlink != 0:
		return refuse(Symlink, chooseAnother+", or remove the link", "it is a symbolic link")
	case !info.IsDir():
		return refuse(NotDir, chooseAnother+", or remove it", "it is not a directory")
	case ownerOf(info) != os.Geteuid():
		return refuse(Owner, chooseAnother, "it belongs to uid %d and we are uid %d", ownerOf(info), os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return refuse(Mode, "run chmod 700 "+path, "its mode %04o gives others access", info.Mode().Perm())
	}
	return Dir{path}, nil
}

// Path is the directory's.
func (d Dir) Path() string { return d.path }

// Socket is the path of a version's socket for clients.
func (d Dir) Socket(version string) string { return d.file("mux-", version, ".sock") }

// AgentSocket is the path of a version's socket for agents of the controller itself.
func (d Dir) AgentSocket(version string) string { return d.file("agent-", version, ".sock") }

// LockFile is the path of a version's lock.
func (d Dir) LockFile(version string) string { return d.file("mux-", version, ".lock") }

// LogFile is the path of a version's log.
func (d Dir) LogFile(version string) string { return d.file("mux-", version, ".log") }

// ContextLogs is the folder of a version's logs of single contexts.
func (d Dir) ContextLogs(version string) string { return d.file("mux-", version, ".contexts") }

func (d Dir) file(before, version, after string) string {
	return filepath.Join(d.path, before+version+after)
}

// Handshake is the line that a version's daemon prints once it listens.
func (d Dir) Handshake(version string) string {
	return fmt.Sprintf("mitogen-mux 1 %s unix %s grpc\n", version, d.Socket(version))
}

// CheckVersion tells whether the files of a version can exist in the directory.
func (d Dir) CheckVersion(version string) error {
	odd := func(r rune) bool {
		return !strings.ContainsRune("+-._~", r) && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}
	if version == "" || strings.ContainsFunc(version, odd) {
		return &Error{
			Reason: BadVersion, Path: d.path, Message: fmt.Sprintf("this build's version %q cannot be part of a file name", version),
			Remedy: "build it with make build",
		}
	}
	if path := d.AgentSocket(version); len(path) > maxSocketPath {
		return &Error{
			Reason: TooLong, Path: path, Message: fmt.Sprintf("the socket's path %s has %d bytes and %d are possible", path, len(path), maxSocketPath),
			Remedy: "set MITOGEN_MUX_DIR to a shorter path",
		}
	}
	return nil
}

// Versions lists the versions that have a socket in the directory, sorted; whether a daemon still answers on it is another question.
func (d Dir) Versions() ([]string, error) { return d.versionsWith(".sock") }

func (d Dir) versionsWith(suffix string) ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("cannot list daemons: %w", err)
	}
	var versions []string
	for _, e := range entries {
		name, isMux := strings.CutPrefix(e.Name(), "mux-")
		version, found := strings.CutSuffix(name, suffix)
		if isMux && found && version != "" {
			versions = append(versions, version)
		}
	}
	return versions, nil
}

// Sweep removes what daemons of other versions than own left behind when they were killed, and logs that nobody will read any more.
func (d Dir) Sweep(own string) error {
	var all []string
	for _, suffix := range []string{".sock", ".lock", ".log", ".contexts"} {
		versions, err := d.versionsWith(suffix)
		if err != nil {
			return err
		}
		all = append(all, versions...)
	}
	slices.Sort(all)
	for _, version := range slices.Compact(all) {
		if version == own {
			continue
		}
		lock, err := d.Lock(version)
		if err != nil {
			continue // it runs
		}
		for _, path := range []string{d.Socket(version), d.AgentSocket(version)} {
			_ = os.Remove(path)
		}
		for _, path := range []string{d.LogFile(version), olderLog(d.LogFile(version)), d.ContextLogs(version)} {
			if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > keepLogs {
				_ = os.RemoveAll(path)
			}
		}
		lock.Release()
	}
	return d.sweepNotes()
}

// sweepNotes removes the plugins' notes of sockets that are not there any more.
func (d Dir) sweepNotes() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("cannot list notes: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "socket-of-") {
			continue
		}
		note := filepath.Join(d.path, e.Name())
		socket, err := os.ReadFile(note)
		if err != nil {
			continue // another has been quicker
		}
		if _, err := os.Lstat(string(socket)); errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(note)
		}
	}
	return nil
}

// ownerOf returns the uid of a file's owner.
func ownerOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}
