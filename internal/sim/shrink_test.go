package sim

import (
	"slices"
	"strings"
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

func TestMinimize(t *testing.T) {
	list := make([]int, 500)
	for i := range list {
		list[i] = i
	}
	calls := 0
	needs := func(all ...int) func([]int) bool {
		calls = 0
		return func(rest []int) bool {
			calls++
			for _, n := range all {
				if !slices.Contains(rest, n) {
					return false
				}
			}
			return true
		}
	}
	for _, want := range [][]int{{}, {0}, {499}, {3, 4}, {0, 250, 499}, {17, 99, 100, 301, 302, 498}} {
		if got := minimize(list, needs(want...)); !slices.Equal(got, want) {
			t.Errorf("%v is left of what takes %v", got, want)
		}
		if calls > 300 {
			t.Errorf("%v took %d calls", want, calls)
		}
	}
	if got := minimize(list, func(rest []int) bool { return false }); !slices.Equal(got, list) {
		t.Errorf("%d are left of what takes all", len(got))
	}
	if got := minimize([]int(nil), needs()); got != nil {
		t.Errorf("%v is left of nothing", got)
	}
}

// TestPlanOfAllIsTheRun: a plan that leaves nothing out is the run that it was made of.
func TestPlanOfAllIsTheRun(t *testing.T) {
	testkit.SkipUnderRace(t)
	for seed := uint64(1); seed <= 10; seed++ {
		r := Run(seed, Options{})
		all := planOf(r.run)
		again := Run(seed, Options{plan: all})
		if r.Failure != nil || again.Failure != nil {
			t.Fatalf("seed %d: %v, %v", seed, r.Failure, again.Failure)
		}
		repeated := planOf(again.run)
		if !slices.Equal(all.ops, repeated.ops) || !slices.Equal(all.faults, repeated.faults) || r.Stats.Acked != again.Stats.Acked {
			t.Errorf("seed %d: %d operations and %d faults with %d commands acknowledged; again: %d, %d and %d", seed,
				len(all.ops), len(all.faults), r.Stats.Acked, len(repeated.ops), len(repeated.faults), again.Stats.Acked)
		}
	}
}

// TestPlanWithoutAny: without operations and faults there is nothing to tell but elections.
func TestPlanWithoutAny(t *testing.T) {
	r := Run(3, Options{plan: &plan{quiet: true}})
	if r.Failure != nil {
		t.Fatal(r.Failure)
	}
	if len(r.run.broke) > 0 || len(planOf(r.run).ops) > 0 {
		t.Errorf("%d faults, %d operations", len(r.run.broke), len(planOf(r.run).ops))
	}
	for _, l := range r.run.told {
		if strings.HasPrefix(l.text, "fault") {
			t.Errorf("told: %s", l.text)
		}
	}
}
