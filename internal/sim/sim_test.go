package sim

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

var (
	seedsFlag = flag.Int("sim.seeds", 150, "how many seeds TestSim runs")
	firstFlag = flag.Uint64("sim.first", 1, "the first of them")
	seedFlag  = flag.Uint64("sim.seed", 0, "one seed to run alone")
	traceFlag = flag.String("sim.trace", "-", "file for the trace of that seed; - is the standard output, nothing is none")
)

// runJudged runs a seed and has its history judged.
func runJudged(seed uint64, opts Options) *Result {
	r := Run(seed, opts)
	if r.Failure == nil {
		if err := judge(&r.History); err != nil {
			r.Failure = &Failure{Rule: "porcupine", Message: err.Error(), At: r.Virtual}
		}
	}
	return r
}

func TestSim(t *testing.T) {
	if *seedFlag != 0 {
		one(t, *seedFlag)
		return
	}
	if testing.Short() {
		*seedsFlag = min(*seedsFlag, 30)
	}
	started := time.Now()
	var virtual time.Duration
	var total Stats
	failed := 0
	for seed := *firstFlag; seed < *firstFlag+uint64(*seedsFlag); seed++ {
		r := runJudged(seed, Options{})
		virtual += r.Virtual
		total.add(&r.Stats)
		if r.Failure != nil {
			t.Error(story(r, Options{}))
			if failed++; failed == 10 {
				break
			}
		}
	}
	took := time.Since(started).Seconds()
	t.Logf("%.1f seeds/s, %.0f simulated seconds per second", float64(*seedsFlag)/took, virtual.Seconds()/took)
	t.Logf("%+v", total)
	for kind, n := range total.Faults {
		if n == 0 && *seedsFlag >= 100 {
			t.Errorf("no fault of kind %s in %d seeds", faultNames[kind], *seedsFlag)
		}
	}
}

func one(t *testing.T, seed uint64) {
	opts := Options{}
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
		t.Errorf("%v\n%s", r.Failure, story(r, Options{}))
	}
}

// story shrinks a failing run and tells it.
func story(r *Result, opts Options) string {
	return fmt.Sprintf("%s\nagain:     make sim SEED=%d", Shrink(r, opts, Budget{}, runJudged).Story(), r.Seed)
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
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		seed, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if r := runJudged(seed, Options{}); r.Failure != nil {
				t.Error(r.Failure)
			}
		})
	}
}
