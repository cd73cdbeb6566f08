//go:build mutants

package sim

import (
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// TestMutantsAreShrunk: what a fault of the core does is shrunk to something that a person can read.
func TestMutantsAreShrunk(t *testing.T) {
	defer func() { core.Mutant = "" }()
	for _, m := range []struct {
		fault string
		from  uint64 // a run that takes few operations to break is among the next seeds
		most  int    // operations
	}{{"no-rollback", 11, 30}, {"unknown-as-not-proposed", 1, 30}, {"decide-on-committed", 1, 10}, {"no-dedup", 1, 10}} {
		core.Mutant = m.fault
		var r *Result
		for seed := m.from; r == nil && seed < m.from+200; seed++ {
			if one := runJudged(seed, Options{}); one.Failure != nil {
				r = one
			}
		}
		if r == nil {
			t.Errorf("%s is not found", m.fault)
			continue
		}
		sh := Shrink(r, Options{}, Budget{Time: time.Hour}, runJudged) // whose runs are the bound, on any machine
		t.Logf("%s: %d of %d operations, %d of %d faults, %d runs\n%s", m.fault, sh.Operations, sh.OfOperations, sh.Faults, sh.OfFaults, sh.Runs, sh.Story())
		if sh.Result.Failure.Rule != r.Failure.Rule {
			t.Errorf("%s breaks %q, and shrunk %q", m.fault, r.Failure.Rule, sh.Result.Failure.Rule)
		}
		if sh.Operations > m.most {
			t.Errorf("%s: %d operations are left, at most %d are readable", m.fault, sh.Operations, m.most)
		}
	}
}
