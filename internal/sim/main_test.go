package sim

import (
	"flag"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

// TestMain sets the runtime up for what a run is: one goroutine that allocates much and keeps little. A second processor would
// only wake and sleep for it. Garbage is collected between runs, see collect, and not during one unless it is large.
func TestMain(m *testing.M) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(-1)
		debug.SetMemoryLimit(mostMemory)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if flag.Parse(); flag.Lookup("test.memprofile").Value.String() == "" {
		runtime.MemProfileRate = 0 // nobody looks at the stacks that are taken of every 512 KiB
	}
	os.Exit(m.Run())
}

const (
	mostMemory     = 512 << 20 // of a process, about: most runs take 20 MB in all, some more than 100
	collectedAfter = 64 << 20  // bytes that runs have taken together
)

// collected is what had been taken from the heap when it was last collected. Runs do not overlap, and nor do those who call collect.
var collected uint64

// collect frees what earlier runs have left, if that is much. Between two runs next to nothing is alive, and so has to be marked.
func collect() {
	if os.Getenv("GOGC") != "" {
		return
	}
	taken := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(taken)
	if now := taken[0].Value.Uint64(); now-collected > collectedAfter {
		runtime.GC()
		collected = now
	}
}
