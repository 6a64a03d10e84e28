package blobcache

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestDigest(t *testing.T) {
	const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if got := Sum(nil).String(); got != emptySum {
		t.Errorf("Sum(nil) = %s", got)
	}
	if !(Digest{}).IsZero() || Sum(nil).IsZero() {
		t.Error("only the zero digest names nothing")
	}
}

func blobOf(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

func TestLeastRecentlyUsedLeavesFirst(t *testing.T) {
	c := New(10)
	a, b := c.Put(blobOf('a', 4)), c.Put(blobOf('b', 4))
	if _, ok := c.Get(a); !ok {
		t.Fatal("a is gone though it fits")
	}
	d := c.Put(blobOf('d', 4))
	if c.Has(b) || !c.Has(a) || !c.Has(d) || c.Bytes() != 8 {
		t.Errorf("has a %v, b %v, d %v, %d bytes", c.Has(a), c.Has(b), c.Has(d), c.Bytes())
	}
}

func TestHasDoesNotCountAsUse(t *testing.T) {
	c := New(8)
	a, b := c.Put(blobOf('a', 4)), c.Put(blobOf('b', 4))
	c.Has(a)
	c.Put(blobOf('c', 4))
	if c.Has(a) || !c.Has(b) {
		t.Errorf("has a %v, b %v", c.Has(a), c.Has(b))
	}
}

func TestPinnedStaysUntilReleased(t *testing.T) {
	c := New(4)
	a := c.Put(blobOf('a', 4))
	release, missing := c.Pin([]Digest{a, Sum([]byte("absent"))})
	if len(missing) != 1 || missing[0] != Sum([]byte("absent")) {
		t.Fatalf("missing is %v", missing)
	}
	again, _ := c.Pin([]Digest{a})
	b := c.Put(blobOf('b', 4))
	if !c.Has(a) || !c.Has(b) {
		t.Fatal("the pinned or the newest blob left")
	}
	release()
	release() // must not count twice
	if !c.Has(a) || c.Has(b) {
		t.Fatalf("after one release: has a %v (pinned still), b %v", c.Has(a), c.Has(b))
	}
	again()
	c.Put(blobOf('c', 4))
	if c.Has(a) || c.Bytes() != 4 {
		t.Errorf("after both releases: has a %v, %d bytes", c.Has(a), c.Bytes())
	}
}

func TestTooLargeABlobStaysOnlyUntilTheNext(t *testing.T) {
	c := New(4)
	big := c.Put(blobOf('a', 100))
	if b, ok := c.Get(big); !ok || len(b) != 100 {
		t.Fatal("the newest blob is not there")
	}
	c.Put(blobOf('b', 1))
	if c.Has(big) || c.Bytes() != 1 {
		t.Errorf("has big %v, %d bytes", c.Has(big), c.Bytes())
	}
}

func TestConcurrentUse(t *testing.T) {
	c := New(1000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				d := c.Put(blobOf(byte(i), j))
				release, missing := c.Pin([]Digest{d})
				if len(missing) == 0 {
					if b, ok := c.Get(d); !ok || Sum(b) != d {
						t.Error("a pinned blob is not there")
					}
				}
				release()
			}
		})
	}
	wg.Wait()
	if c.Bytes() > 1000 {
		t.Errorf("%d bytes with nothing pinned", c.Bytes())
	}
}

// TestModel compares the cache with a plain map: what it returns is what was put, pinned blobs are there, and the size is the sum.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New(rapid.Int64Range(0, 64).Draw(t, "max"))
		content := map[Digest]string{}
		pins := map[Digest]int{}
		var releases []func()
		text := rapid.Custom(func(t *rapid.T) string {
			return strings.Repeat(rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "letter"), rapid.IntRange(0, 20).Draw(t, "n"))
		})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				s := text.Draw(t, "blob")
				d := c.Put([]byte(s))
				content[d] = s
				if !c.Has(d) {
					t.Fatal("what was put last is not there")
				}
			},
			"pin": func(t *rapid.T) {
				d := Sum([]byte(text.Draw(t, "blob")))
				release, missing := c.Pin([]Digest{d})
				if len(missing) == 0 {
					pins[d]++
					releases = append(releases, func() { release(); pins[d]-- })
				}
			},
			"release": func(t *rapid.T) {
				if len(releases) == 0 {
					t.Skip("nothing is pinned")
				}
				i := rapid.IntRange(0, len(releases)-1).Draw(t, "which")
				releases[i]()
				releases = append(releases[:i], releases[i+1:]...)
			},
			"": func(t *rapid.T) {
				var sum int64
				for d, s := range content {
					b, ok := c.Get(d)
					if ok && string(b) != s {
						t.Fatalf("%s is %q", d, b)
					}
					if !ok && pins[d] > 0 {
						t.Fatalf("pinned %q is gone", s)
					}
					if ok {
						sum += int64(len(b))
					}
				}
				if sum != c.Bytes() {
					t.Fatalf("holds %d bytes, says %d", sum, c.Bytes())
				}
			},
		})
	})
}
