package sshlink

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // hashed names in known_hosts are defined by it
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// knownLine is one entry of a known_hosts file. The key is decoded only when the host matches.
type knownLine struct {
	file    string
	line    int
	marker  string // "", "@cert-authority", "@revoked"
	hosts   string
	keyType string
	key     string // base64
}

func (l knownLine) where() string { return fmt.Sprintf("%s:%d", l.file, l.line) }

const (
	markAuthority = "@cert-authority"
	markRevoked   = "@revoked"
)

// readKnownHosts reads files in order. As by ssh, files that cannot be read count as empty, and lines that make no sense are
// passed over.
func readKnownHosts(files []string) []knownLine {
	var all []knownLine
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		n := 0
		for line := range bytes.Lines(data) {
			n++
			fields := strings.Fields(string(line))
			if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
				continue
			}
			known := knownLine{file: file, line: n}
			if strings.HasPrefix(fields[0], "@") {
				known.marker, fields = fields[0], fields[1:]
			}
			if len(fields) < 3 {
				continue
			}
			known.hosts, known.keyType, known.key = fields[0], fields[1], fields[2]
			all = append(all, known)
		}
	}
	return all
}

// public decodes the line's key, nil if it cannot be.
func (l knownLine) public() ssh.PublicKey {
	blob, err := base64.StdEncoding.DecodeString(l.key)
	if err != nil {
		return nil
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil || key.Type() != l.keyType {
		return nil
	}
	return key
}

// matches reports whether the line speaks of host, in the form of known_hosts: "name" or "[name]:port".
func (l knownLine) matches(host string) bool {
	if hashed, ok := strings.CutPrefix(l.hosts, "|1|"); ok {
		salt64, sum64, _ := strings.Cut(hashed, "|")
		salt, err1 := base64.StdEncoding.DecodeString(salt64)
		sum, err2 := base64.StdEncoding.DecodeString(sum64)
		return err1 == nil && err2 == nil && hmac.Equal(hashName(host, salt), sum)
	}
	matched := false
	for pattern := range strings.SplitSeq(l.hosts, ",") {
		negated, isNegated := strings.CutPrefix(pattern, "!")
		switch {
		case isNegated && wildcard(strings.ToLower(negated), host):
			return false
		case !isNegated && wildcard(strings.ToLower(pattern), host):
			matched = true
		}
	}
	return matched
}

func hashName(host string, salt []byte) []byte {
	mac := hmac.New(sha1.New, salt)
	mac.Write([]byte(host))
	return mac.Sum(nil)
}

// wildcard matches with * and ?, of which * stands for any run of characters. It is linear but for backtracking to the last *.
func wildcard(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// appending orders writers of known_hosts within this process; between processes, one write of a line in append mode does.
var appending sync.Mutex

// appendKnownHost adds a line for key, as accept-new and no do.
func appendKnownHost(file, host string, hash bool, key ssh.PublicKey) error {
	appending.Lock()
	defer appending.Unlock()
	if hash {
		salt := make([]byte, sha1.Size)
		_, _ = rand.Read(salt) // never fails
		host = "|1|" + base64.StdEncoding.EncodeToString(salt) + "|" + base64.StdEncoding.EncodeToString(hashName(host, salt))
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("cannot add a host key to %s: %w", file, err)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("cannot add a host key to %s: %w", file, err)
	}
	line := host + " " + string(ssh.MarshalAuthorizedKey(key))
	if unended(f) {
		line = "\n" + line
	}
	if _, err = f.WriteString(line); err != nil {
		_ = f.Close()
		return fmt.Errorf("cannot add a host key to %s: %w", file, err)
	}
	return f.Close()
}

// unended reports whether the file's last line lacks its newline.
func unended(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], info.Size()-1)
	return err == nil && last[0] != '\n'
}
