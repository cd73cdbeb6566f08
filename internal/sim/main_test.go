package sim

import (
	"flag"
	"os"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

// TestMain sets the runtime up for what a run is: one goroutine that allocates much and keeps little. A second processor would
// only wake and sleep for it, and collecting at twice the live heap, a few megabytes, costs a quarter of the time.
func TestMain(m *testing.M) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(600)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if flag.Parse(); flag.Lookup("test.memprofile").Value.String() == "" {
		runtime.MemProfileRate = 0 // nobody looks at the stacks that are taken of every 512 KiB
	}
	os.Exit(m.Run())
}

// skipUnderRace leaves out what would take minutes and show nothing: a run is one goroutine.
func skipUnderRace(t *testing.T) {
	t.Helper()
	if testkit.Race {
		t.Skip("skipped under the race detector: a run is one goroutine")
	}
}
