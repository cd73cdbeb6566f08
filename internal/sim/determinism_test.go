package sim

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

var hashesFlag = flag.Bool("sim.hashes", false, "print the trace hashes of the seeds of TestDeterminism, and do nothing else")

const determinismSeeds = 20

func hashes() string {
	var b strings.Builder
	for seed := uint64(1); seed <= determinismSeeds; seed++ {
		r := Run(seed, Options{})
		fmt.Fprintf(&b, "%d %016x %d\n", seed, r.Hash, r.Events)
	}
	for seed := uint64(1); seed <= determinismSeeds/10; seed++ { // with crashes in the middle of operations on files
		mended, restored := Run(seed, Options{tune: mending}), Run(seed, Options{tune: restoringTune})
		fmt.Fprintf(&b, "%d %016x %d %016x %d\n", seed, mended.Hash, mended.Events, restored.Hash, restored.Events)
	}
	return b.String()
}

// TestDeterminism runs seeds twice in this process and once in another one: a seed is a run, to the byte.
func TestDeterminism(t *testing.T) {
	testkit.SkipUnderRace(t)
	if *hashesFlag {
		fmt.Print("hashes:\n", hashes(), "end\n")
		return
	}
	first := hashes()
	if second := hashes(); second != first {
		t.Errorf("the second time is another:\n%s\nthe first was:\n%s", second, first)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(self, "-test.run=^TestDeterminism$", "-sim.hashes").Output()
	if err != nil {
		t.Fatal(err)
	}
	if other := between(string(out), "hashes:\n", "end\n"); other != first {
		t.Errorf("another process gives:\n%s\nthis one:\n%s", other, first)
	}
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// TestTraceChangesNothing: looking at a run must not make it another.
func TestTraceChangesNothing(t *testing.T) {
	testkit.SkipUnderRace(t)
	var out bytes.Buffer
	with, without := Run(7, Options{Trace: &out}), Run(7, Options{})
	if with.Hash != without.Hash || out.Len() == 0 {
		t.Errorf("hash %x with a trace of %d bytes, %x without", with.Hash, out.Len(), without.Hash)
	}
}

// TestNondeterminismIsFound: replicas whose machine errs stop, and nobody gets a wrong answer.
func TestNondeterminismIsFound(t *testing.T) {
	testkit.SkipUnderRace(t)
	stopped := 0
	for seed := uint64(1); seed <= 30; seed++ {
		r := runJudged(seed, Options{Nondeterministic: true})
		if r.Failure != nil {
			t.Errorf("seed %d: %v", seed, r.Failure)
		}
		stopped += r.Stats.Stopped
	}
	if stopped == 0 {
		t.Error("no replica stopped")
	}
}
