package rsmtest

import (
	"flag"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/sim"
)

var (
	seedsFlag  = flag.Int("rsmtest.seeds", 0, "how many seeds rsmtest.Run runs; 0: as the test says")
	firstFlag  = flag.Uint64("rsmtest.first", 1, "the first seed that rsmtest.Run runs")
	seedFlag   = flag.Uint64("rsmtest.seed", 0, "the only seed that rsmtest.Run runs; 0: many")
	updateFlag = flag.Bool("rsmtest.update", false, "have rsmtest.Golden write the file of this version, if there is none")
)

const (
	defaultSeeds  = 50
	shortSeeds    = 10
	progressEvery = 10 * time.Second
)

// Run simulates clusters that run the machine, one for each seed, and fails the test with the story of the first that breaks a rule.
// Under -v it says every ten seconds how far it is.
func Run(t testing.TB, c Config) {
	t.Helper()
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	from, seeds := c.seeds()
	var sum totals
	var last *sim.Result
	started := time.Now()
	said := started
	for seed := from; seed < from+seeds; seed++ {
		if last = c.run(t, seed); last == nil {
			return
		}
		sum.add(last)
		if time.Since(said) > progressEvery {
			said = time.Now()
			t.Logf("rsmtest: %d of %d seeds in %v: %v", seed-from+1, seeds, time.Since(started).Round(time.Second), &sum)
		}
	}
	t.Logf("rsmtest: %d clusters in %v: %v", seeds, time.Since(started).Round(time.Millisecond), &sum)
	if sum.acked == 0 {
		t.Fatalf("rsmtest: no command of %d was accepted, so nothing was tested: let Config.Command draw some that Decide does not reject", sum.rejected)
	}
	c.anotherDate(t, last)
}

// seeds returns which ones to run.
func (c *Config) seeds() (from, n uint64) {
	switch {
	case *seedFlag != 0:
		return *seedFlag, 1
	case *seedsFlag > 0:
		return *firstFlag, uint64(*seedsFlag)
	case c.Seeds > 0:
		return *firstFlag, uint64(c.Seeds)
	case testing.Short():
		return *firstFlag, shortSeeds
	}
	return *firstFlag, defaultSeeds
}

// budget is what shrinking may cost.
var budget sim.Budget

// run returns nil if the seed failed, and the test with it.
func (c *Config) run(t testing.TB, seed uint64) *sim.Result {
	t.Helper()
	opts := sim.Options{User: c.user()}
	r := sim.Run(seed, opts)
	if r.Failure == nil {
		return r
	}
	t.Fatalf("%s\nagain:     %s", sim.Shrink(r, opts, budget, nil).Story(), again(t.Name(), seed))
	return nil
}

// again is the command line that replays a seed.
func again(test string, seed uint64) string {
	parts := strings.Split(test, "/")
	for i := range parts {
		parts[i] = "^" + regexp.QuoteMeta(parts[i]) + "$"
	}
	pkg := "."
	if info, ok := debug.ReadBuildInfo(); ok && strings.HasSuffix(info.Path, ".test") {
		pkg = strings.TrimSuffix(info.Path, ".test")
	}
	return fmt.Sprintf("go test %s -run '%s' -rsmtest.seed=%d", pkg, strings.Join(parts, "/"), seed)
}

// totals sum up what the runs did, so that it can be seen whether they did anything.
type totals struct {
	virtual                                 time.Duration
	acked, rejected, reads, entries, faults int
	crashes, leaders                        int
}

func (s *totals) add(r *sim.Result) {
	st := &r.Stats
	s.virtual += r.Virtual
	s.acked += st.Acked
	s.rejected += st.Rejected
	s.reads += st.Reads
	s.entries += st.Entries
	s.crashes += st.Crashes
	s.leaders += st.Leaders
	for _, n := range st.Faults {
		s.faults += n
	}
}

func (s *totals) String() string {
	return fmt.Sprintf("%v of virtual time, %d commands accepted and %d rejected in %d entries, %d queries answered, %d leaders, %d faults, %d of them crashes",
		s.virtual.Round(time.Second), s.acked, s.rejected, s.entries, s.reads, s.leaders, s.faults, s.crashes)
}
