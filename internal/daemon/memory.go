package daemon

import "runtime"

// calmHeap is what the collector takes to be in use besides what is.
const calmHeap = 8 << 20

// CalmCollector keeps the garbage collector from running all the time in a process that has little: it runs when the heap has doubled,
// and packets of a large file double a few MB hundreds of times. The memory that it counts is never touched, so there is none. It lasts
// until what it returns is called.
func CalmCollector() (end func()) {
	untouched := make([]byte, calmHeap)
	return func() { runtime.KeepAlive(untouched) }
}
