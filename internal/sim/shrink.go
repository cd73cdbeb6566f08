package sim

import (
	"slices"
	"time"

	"github.com/decree-raft/decree/internal/probe"
)

// Budget bounds the work of shrinking.
type Budget struct {
	Runs int           // default 400
	Time time.Duration // real; default 30 s
}

// Shrunk is a failing run without most of what it does not take to fail.
type Shrunk struct {
	Result                 *Result
	Operations, Faults     int  // that are left
	OfOperations, OfFaults int  // that there were
	Quiet                  bool // messages were neither lost nor late
	Runs                   int
}

// enough time after a failure for one that comes a little later.
const enough = 300 * time.Millisecond

type shrinker struct {
	seed  uint64
	opts  Options
	rule  string
	calm  bool // it was broken after the faults had ended
	run   func(uint64, Options) *Result
	tries int // of one plan: a machine that is not deterministic does not fail each time
	left  int // runs
	until time.Time
	best  *Result
	plan  *plan
	runs  int
}

// Shrink repeats a failing run with ever fewer faults and operations, as long as it breaks the same rule (delta
// debugging: Zeller and Hildebrandt, 2002). Run runs and judges a seed; nil is Run. If the failure does not come again, the
// result is the run that was given.
func Shrink(r *Result, opts Options, b Budget, run func(uint64, Options) *Result) *Shrunk {
	if run == nil {
		run = Run
	}
	if b.Runs == 0 {
		b.Runs = 400
	}
	if b.Time == 0 {
		b.Time = 30 * time.Second
	}
	opts.Trace = nil
	all := planOf(r.run)
	all.until = r.Failure.At + enough
	sh := &shrinker{seed: r.Seed, opts: opts, rule: r.Failure.Rule, calm: r.run.calm, run: run, tries: 3, left: b.Runs, until: time.Now().Add(b.Time), plan: all}
	out := &Shrunk{Result: r, OfOperations: len(all.ops), OfFaults: len(all.faults)}
	if sh.fails(*all) {
		sh.shrink()
		out.Result = sh.best
	}
	out.Operations, out.Faults, out.Quiet, out.Runs = len(sh.plan.ops), len(sh.plan.faults), sh.plan.quiet, sh.runs
	return out
}

func (sh *shrinker) shrink() {
	if sh.best.Hash == sh.lastHash() {
		sh.tries = 1 // the same twice: no chance is involved
	}
	quiet := *sh.plan
	quiet.quiet = true
	sh.fails(quiet)
	for range 3 {
		before := len(sh.plan.faults) + len(sh.plan.ops)
		minimize(sh.plan.faults, func(f []plannedFault) bool {
			p := *sh.plan
			p.faults = f
			return sh.fails(p)
		})
		minimize(sh.plan.ops, func(ops []plannedOp) bool {
			p := *sh.plan
			p.ops = ops
			return sh.fails(p)
		})
		if len(sh.plan.faults)+len(sh.plan.ops) == before {
			return
		}
	}
}

// lastHash repeats the best run once more.
func (sh *shrinker) lastHash() uint64 {
	opts := sh.opts
	opts.plan = sh.plan
	sh.runs++
	sh.left--
	return sh.run(sh.seed, opts).Hash
}

// fails reports whether a plan breaks the rule, and keeps it if so.
func (sh *shrinker) fails(p plan) bool {
	for range sh.tries {
		if sh.left <= 0 || time.Now().After(sh.until) {
			return false
		}
		sh.left--
		sh.runs++
		opts := sh.opts
		opts.plan = &p
		if sh.best != nil {
			p.until = sh.best.Failure.At + enough
		}
		if r := sh.run(sh.seed, opts); r.Failure != nil && kind(r.Failure.Rule) == kind(sh.rule) && (sh.calm || !r.run.calm) {
			sh.best, sh.plan = r, &p
			return true
		}
	}
	return false
}

// kind makes one rule of those of which a machine that is not deterministic breaks now the one, now the other.
func kind(rule string) string {
	switch rule {
	case probe.RuleDiffers:
		return probe.RuleApplyTwice
	case probe.RuleHidden:
		return probe.RuleDecideTwice
	}
	return rule
}

// minimize leaves out as much of a list as it can while fails reports true for the rest.
func minimize[T any](list []T, fails func([]T) bool) []T {
	if len(list) == 0 || fails(nil) {
		return nil
	}
	for parts := 2; len(list) > 1; {
		size := (len(list) + parts - 1) / parts
		smaller := false
		for from := 0; from < len(list); from += size {
			rest := slices.Concat(list[:from], list[min(from+size, len(list)):])
			if len(rest) > 0 && fails(rest) {
				list, smaller = rest, true
				parts = max(parts-1, 2)
				break
			}
		}
		switch {
		case smaller:
		case size == 1:
			return list
		default:
			parts = min(2*parts, len(list))
		}
	}
	return list
}
