package daemon

import (
	"os"
	"strings"
	"testing"
)

func TestLogRotates(t *testing.T) {
	path := testDir(t).LogFile("v")
	const limit = 100
	log, err := OpenLog(path, limit)
	check(t, err)
	var wrote []string
	for i := range 26 {
		entry := strings.Repeat(string(rune('a'+i)), 29) + "\n"
		wrote = append(wrote, entry)
		if _, err := log.Write([]byte(entry)); err != nil {
			t.Fatal(err)
		}
	}
	check(t, log.Close())
	// Three entries fill a file: 26 = 8 × 3 + 2.
	for file, want := range map[string]string{path: strings.Join(wrote[24:], ""), olderLog(path): strings.Join(wrote[21:24], "")} {
		got, err := os.ReadFile(file)
		check(t, err)
		if string(got) != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
		info, err := os.Stat(file)
		check(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
	}
}

func TestLogGoesOnWhereItEnded(t *testing.T) {
	path := testDir(t).LogFile("v")
	for range 3 {
		log, err := OpenLog(path, 10)
		check(t, err)
		_, err = log.Write([]byte("12345\n"))
		check(t, err)
		check(t, log.Close())
	}
	got, err := os.ReadFile(path)
	check(t, err)
	older, err := os.ReadFile(olderLog(path))
	check(t, err)
	if string(got) != "12345\n" || string(older) != "12345\n" {
		t.Errorf("got %q and %q, want one entry in each", got, older)
	}
}

func TestLogThatCannotRotateGoesOn(t *testing.T) {
	path := testDir(t).LogFile("v")
	check(t, os.Mkdir(olderLog(path), 0o700)) // nothing can be renamed over a directory
	write(t, olderLog(path)+"/x")
	log, err := OpenLog(path, 10)
	check(t, err)
	for range 5 {
		if _, err := log.Write([]byte("12345\n")); err != nil {
			t.Fatal(err)
		}
	}
	check(t, log.Close())
	if got, err := os.ReadFile(path); err != nil || string(got) != strings.Repeat("12345\n", 5) {
		t.Errorf("got %q, %v, want all five", got, err)
	}
}

func TestLogDoesNotFollowLinks(t *testing.T) {
	dir := testDir(t)
	write(t, dir.Path()+"/precious")
	check(t, os.Symlink(dir.Path()+"/precious", dir.LogFile("v")))
	if _, err := OpenLog(dir.LogFile("v"), 10); err == nil {
		t.Error("opened a symbolic link")
	}
}
