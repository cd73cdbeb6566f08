package sim

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
)

var (
	seedsFlag  = flag.Int("sim.seeds", 150, "how many seeds TestSim runs")
	firstFlag  = flag.Uint64("sim.first", 1, "the first of them; 0: one that depends on the time")
	procsFlag  = flag.Int("sim.procs", runtime.NumCPU(), "processes that run seeds")
	seedFlag   = flag.Uint64("sim.seed", 0, "one seed to run alone")
	tuneFlag   = flag.String("sim.tune", "", "clusters made for something, see tunes_test.go")
	workerFlag = flag.Bool("sim.worker", false, "be a worker of TestSim, see fleet_test.go")
	shrinkFlag = flag.Int("sim.shrink", 3, "how many of the seeds that fail are shrunk, and their stories told")
	traceFlag  = flag.String("sim.trace", "-", "file for the trace of that seed; - is the standard output, nothing is none")
)

// judgeAll runs n seeds of a tune, from first on, none of which may fail, and returns what they saw together.
func judgeAll(t *testing.T, first, n uint64, tune func(*swarm)) (total Stats) {
	t.Helper()
	for seed := first; seed < first+n; seed++ {
		r := runJudged(seed, Options{tune: tune})
		if r.Failure != nil {
			t.Errorf("seed %d: %v", seed, r.Failure)
		}
		total.add(&r.Stats)
	}
	return total
}

// runJudged runs a seed and has its history judged.
func runJudged(seed uint64, opts Options) *Result {
	collect()
	r := Run(seed, opts)
	if r.Failure == nil {
		if err := judge(&r.History); err != nil {
			r.Failure = &Failure{Rule: "porcupine", Message: err.Error(), At: r.Virtual}
		}
	}
	return r
}

// flagged are the options that the flags ask for.
func flagged() Options { return Options{tune: tunes[*tuneFlag]} }

func TestSim(t *testing.T) {
	if *tuneFlag != "" && tunes[*tuneFlag] == nil {
		t.Fatalf("there is no tune %q", *tuneFlag)
	}
	if *workerFlag {
		if err := work(os.Stdin, os.Stdout); err != nil {
			t.Fatal(err)
		}
		return
	}
	if *seedFlag != 0 {
		one(t, *seedFlag)
		return
	}
	if testing.Short() {
		*seedsFlag = min(*seedsFlag, 30)
	}
	if testkit.Race { // a cluster is one goroutine: more of them show no more
		*seedsFlag = min(*seedsFlag, 6)
	}
	first := *firstFlag
	if first == 0 {
		first = uint64(time.Now().UnixMilli()) // fewer than a thousand seeds a second: other ones each time
	}
	t.Logf("seeds %d to %d", first, first+uint64(*seedsFlag)-1)
	p := newProgress(os.Stderr, *seedsFlag)
	total, err := runFleet(first, *seedsFlag, *procsFlag, p.show)
	p.end()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s\n%s", p.line(total), total.table())
	for i, f := range total.Failures {
		if i < *shrinkFlag { // shrinking takes a while
			if r := runJudged(f.Seed, flagged()); r.Failure != nil {
				t.Error(story(r, flagged()))
				continue
			}
		}
		t.Errorf("seed %d: %s (make sim %s shows it)", f.Seed, f.Failure, again(f.Seed))
	}
	for kind, n := range total.Stats.Faults {
		if n == 0 && total.Seeds >= 100 && *tuneFlag == "" {
			t.Errorf("no fault of kind %s in %d seeds", faultNames[kind], total.Seeds)
		}
	}
}

func one(t *testing.T, seed uint64) {
	opts := flagged()
	switch *traceFlag {
	case "":
	case "-":
		opts.Trace = os.Stdout
	default:
		f, err := os.Create(*traceFlag)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := bufio.NewWriter(f)
		defer w.Flush()
		opts.Trace = w
	}
	r := runJudged(seed, opts)
	t.Logf("seed %d: trace %016x, %d events, %v, %+v", seed, r.Hash, r.Events, r.Virtual, r.Stats)
	if r.Failure != nil {
		t.Errorf("%v\n%s", r.Failure, story(r, flagged()))
	}
}

// story shrinks a failing run and tells it.
func story(r *Result, opts Options) string {
	return fmt.Sprintf("%s\nagain:     make sim %s", Shrink(r, opts, Budget{}, runJudged).Story(), again(r.Seed))
}

func again(seed uint64) string {
	if *tuneFlag != "" {
		return fmt.Sprintf("SEED=%d TUNE=%s", seed, *tuneFlag)
	}
	return fmt.Sprintf("SEED=%d", seed)
}

// add sums everything up, by reflection, so that no counter is forgotten.
func (s *Stats) add(o *Stats) {
	sum, more := reflect.ValueOf(s).Elem(), reflect.ValueOf(o).Elem()
	for i := range sum.NumField() {
		switch f, g := sum.Field(i), more.Field(i); f.Kind() {
		case reflect.Int:
			f.SetInt(f.Int() + g.Int())
		case reflect.Uint64:
			f.SetUint(f.Uint() + g.Uint())
		case reflect.Array:
			for k := range f.Len() {
				f.Index(k).SetInt(f.Index(k).Int() + g.Index(k).Int())
			}
		}
	}
	if s.Codes == nil {
		s.Codes = map[core.Code]int{}
	}
	for code, n := range o.Codes {
		s.Codes[code] += n
	}
}

// TestRegressions runs the seeds that have found something, see docs/bugs.md.
func TestRegressions(t *testing.T) {
	data, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	run := 0
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if run++; testkit.Race && run > 6 {
			break
		}
		number, tune, tuned := strings.Cut(line, " ")
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil || tuned && tunes[tune] == nil {
			t.Fatalf("%q is no seed, or has a tune that there is not", line)
		}
		t.Run(line, func(t *testing.T) {
			if r := runJudged(seed, Options{tune: tunes[tune]}); r.Failure != nil {
				t.Error(r.Failure)
			}
		})
	}
}
