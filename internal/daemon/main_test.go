package daemon

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// serveEnv makes the test program the daemon of that directory, until it is killed.
const serveEnv = "MUX_TEST_SERVE"

func TestMain(m *testing.M) {
	if path := os.Getenv(serveEnv); path != "" {
		serveForever(path)
	}
	goleak.VerifyTestMain(m)
}

func serveForever(path string) {
	dir, err := OpenDir(path)
	if err == nil {
		err = Run(context.Background(), testOptions(dir, func(line string) error {
			_, err := os.Stdout.WriteString(line)
			return err
		}))
	}
	panic(err)
}

// testDir is a directory as a user would have it. t.TempDir's paths are too long for sockets on some systems.
func testDir(t *testing.T) Dir {
	t.Helper()
	dir, err := OpenDir(t.TempDir() + "/d")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
