package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
)

// stamp is the version, set by the Makefile through the linker.
var stamp string

// buildVersion names this build. It is part of the sockets' names, so two builds that differ must have two: without a stamp it is made
// of the executable's content.
func buildVersion() (string, error) {
	if stamp != "" {
		return stamp, nil
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot tell this build's version: %w", err)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot tell this build's version: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fmt.Errorf("cannot tell this build's version: %w", err)
	}
	return "dev-" + hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

type versionCommand struct{}

// Run prints the version alone on the first line, for programs.
func (versionCommand) Run(p *program) error {
	_, err := fmt.Fprintf(p.out, "%s\n%s %s/%s\n", p.version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
