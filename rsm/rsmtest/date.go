package rsmtest

import (
	"testing"
	"testing/synctest"

	"github.com/decree-raft/decree/internal/sim"
)

// anotherDate applies the log of a run once more, in the year 2000: a clock that only shows days or hours
// hardly ever differs between two replicas within a test.
func (c *Config) anotherDate(tb testing.TB, r *sim.Result) {
	tb.Helper()
	t, ok := tb.(*testing.T)
	if !ok {
		return
	}
	if f := replayInTheYear2000(t, r); f != nil {
		t.Fatalf("seed %d, whose log was applied once more under another date (1 January 2000):\nwhere:     %s\nexpected:  %s\nseen:      %s\nagain:     %s",
			r.Seed, f.Message, f.Expected, f.Seen, again(t.Name(), r.Seed))
	}
}

// replayInTheYear2000 uses that the clock of a synctest bubble begins there.
func replayInTheYear2000(t *testing.T, r *sim.Result) (f *sim.Failure) {
	synctest.Test(t, func(*testing.T) { f = r.Replay() })
	return f
}
