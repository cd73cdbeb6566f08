//go:build mutants

package sim

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// Each fault of the core that internal/core's mutant_on.go knows must be found, within these bounds.
var (
	mutantFlag  = flag.String("sim.mutant", "", "the only mutant to run")
	mutantSeeds = flag.Uint64("sim.mutant.seeds", 600, "seeds per mutant, at most")
	mutantTime  = flag.Duration("sim.mutant.time", 10*time.Minute, "time per mutant, at most: for one that hangs, as seeds are the bound")
	// Those of which it is known that the simulator does not find them prove nothing, dead or alive.
	mutantSurvivors = flag.Uint64("sim.mutant.survivors", 25, "seeds for mutants that may live")
)

type mutant struct {
	guarantee string
	faults    string // of the core, together
	opts      Options
	from      uint64 // where to begin, for what few seeds find; 0: at 1
	survives  string // why the simulator cannot find it; "" if it must
}

var mutants = []mutant{
	{guarantee: "G1", faults: "decide-before-own-entry"},
	{guarantee: "G2", faults: "decide-on-committed"},
	{guarantee: "G4", faults: "no-rollback"},
	{guarantee: "G4", faults: "compare-roles", survives: "nobody can tell: to win again takes a vote, a vote a write, and a look comes before it"},
	{guarantee: "G4", faults: "no-rollback-when-refused", survives: "raft refuses nothing: the core asks first"},
	{guarantee: "G3 G4", faults: "no-rollback compare-roles no-void-check"},
	{guarantee: "G5", faults: "promote-before-commit"},
	{guarantee: "G5", faults: "early-rejection"},
	{guarantee: "G6", faults: "unknown-as-not-proposed"},
	{guarantee: "G6", faults: "forget-pending"},
	{guarantee: "G7", faults: "local-read"},
	{guarantee: "G7", faults: "read-joins-inflight", opts: Options{tune: restless}, from: 5501},
	{guarantee: "G7", faults: "same-read-context"},
	{guarantee: "G7", faults: "no-read-reset", survives: "an answer holds for who had come when its round began, whoever leads when it arrives, and who gets none asks again; TestReadIndexAsksTheNextLeaderAtOnce finds it"},
	{guarantee: "G7", faults: "unconfirmed-read", opts: Options{tune: lookups}},
	{guarantee: "G7", faults: "read-joins-round", opts: Options{tune: lookups}},
	{guarantee: "G7", faults: "read-overtakes"},
	{guarantee: "G7", faults: "late-answer-for-all", opts: Options{tune: lookups}},
	{guarantee: "G7", faults: "age-of-the-unapplied"},
	{guarantee: "G8", faults: "send-before-sync"},
	{guarantee: "G8", faults: "forget-vote"},
	{guarantee: "G8", faults: "apply-before-sync"},
	{guarantee: "G8", faults: "promote-before-sync"},
	{guarantee: "G9", faults: "flush-early"},
	{guarantee: "G9", faults: "flush-without-sessions"},
	{guarantee: "journal", faults: "forget-journal"},
	{guarantee: "journal", faults: "forget-unapplied", opts: Options{tune: hanging}, from: 1301},
	{guarantee: "sessions", faults: "no-dedup"},
	{guarantee: "sessions", faults: "no-inflight-dedup"},
	{guarantee: "sessions", faults: "no-digest"},
	{guarantee: "sessions", faults: "no-ack-window"},
	{guarantee: "sessions", faults: "no-expiry"},
	{guarantee: "time", faults: "time-goes-back"},
	{guarantee: "rest", faults: "no-wake"},
	{guarantee: "divergence", faults: "no-hash-check", opts: Options{Nondeterministic: true}},
	// What the simulator has found, see docs/bugs.md: it must find it again.
	{guarantee: "bug", faults: "durable-by-index"},
	{guarantee: "bug", faults: "forward-read-index"},
	{guarantee: "bug", faults: "close-only-applied"},
	{guarantee: "bug", faults: "no-expiry-in-flight", opts: Options{tune: crowded}},
	{guarantee: "bug", faults: "ack-only-applied"},
	{guarantee: "bug", faults: "evict-expired", opts: Options{tune: crowded}},
	{guarantee: "bug", faults: "unreadable-leads", opts: Options{tune: rotten}, from: 201},
	{guarantee: "bug", faults: "commit-before-sync", opts: Options{tune: changing}},
	{guarantee: "bug", faults: "first-in-memory", opts: Options{tune: changing}},
	{guarantee: "bug", faults: "offer-when-ready", opts: Options{tune: behind}, from: 801},
	{guarantee: "bug", faults: "no-restart-record", opts: Options{tune: behind}},
	{guarantee: "bug", faults: "ask-once", opts: Options{tune: slowCuts}, from: 1},
	{guarantee: "bug", faults: "ask-the-gone", opts: Options{tune: changing}, survives: "few seeds find it; TestCutOfOneThatIsGone does"},
	{guarantee: "bug", faults: "cut-after-the-change no-first-flush", opts: Options{tune: changing}, survives: "few seeds find it; TestVoterBehindTheLogAfterAChange and TestVoterWithNothingAfterAChange do"},
	{guarantee: "bug", faults: "gone-say-nothing", opts: Options{tune: changing}, from: 351},
	{guarantee: "bug", faults: "keep-changes-secret", opts: Options{tune: changing}, survives: "few seeds find it; TestRemovalIsToldToWhoAsksForAVote does"},
	{guarantee: "bug", faults: "tell-before-sync", opts: Options{tune: changing}, survives: "found by chance only, and by TestRemovalIsToldWhenDurable"},
	{guarantee: "bug", faults: "ask-voters-only", opts: Options{tune: changing}, from: 620},
	{guarantee: "snapshots", faults: "no-restart-after", opts: Options{tune: behind}},
	{guarantee: "snapshots", faults: "ack-before-install", opts: Options{tune: behind}},
	{guarantee: "snapshots", faults: "install-before-promise", opts: Options{tune: arriving}, survives: "its sender has heard this replica reject an entry in its term, and that was on disk before; the simulator checks so much at every installation"},
	{guarantee: "snapshots", faults: "fits-any", opts: Options{tune: changing}},
	{guarantee: "journal", faults: "journal-without-cap", opts: Options{tune: behind}},
	{guarantee: "members", faults: "log-from-the-first", opts: Options{tune: changing}},
	{guarantee: "members", faults: "stay-joint", opts: Options{tune: changing}},
	{guarantee: "members", faults: "promote-unready", opts: Options{tune: changing}},
	{guarantee: "members", faults: "reuse-ids", opts: Options{tune: changing}},
	{guarantee: "members", faults: "remove-the-last-alive", opts: Options{tune: changing}},
	{guarantee: "members", faults: "leave-at-once", opts: Options{tune: changing}, survives: "found by chance only, and by TestRemovedReplicaStaysUntilVotersKnow"},
	{guarantee: "versions", faults: "version-of-the-old-members", opts: Options{tune: joining}},
	{guarantee: "versions", faults: "version-alone", opts: Options{tune: upgrading}},
	{guarantee: "repair", faults: "repair-before-promise", opts: Options{tune: mending}},
	{guarantee: "repair", faults: "repair-forgets-vote", opts: Options{tune: mending}},
	{guarantee: "repair", faults: "repair-forgets-log", opts: Options{tune: mending}},
	{guarantee: "repair", faults: "serve-damage", opts: Options{tune: mending}},
	{guarantee: "bug", faults: "damaged-cuts-again", opts: Options{tune: mending}, survives: "few seeds find it: nothing but the cuts of a leader may meet the damage; TestCutThatMeetsDamage does"},
	{guarantee: "bug", faults: "damaged-journal", opts: Options{tune: mending}},
	{guarantee: "bug", faults: "busy-after-damage", opts: Options{tune: mending}, from: 1340},
	{guarantee: "bug", faults: "save-again", survives: "little is cut in the simulator, and a flush seldom overtakes the log; TestEntriesSavedAgain does"},
	{guarantee: "limits", faults: "limits-of-followers", opts: Options{tune: unlike}},
	{guarantee: "limits", faults: "long-keys-stay", opts: Options{tune: unlike}},
	// Of internal/datadir.
	{guarantee: "restore", faults: "restore-keeps-cluster", opts: Options{tune: restoringTune}},
	{guarantee: "restore", faults: "restore-drops-sessions", opts: Options{tune: restoringTune}},
	{guarantee: "restore", faults: "restore-stops-early", opts: Options{tune: restoringTune}},
	{guarantee: "restore", faults: "restore-names-first", opts: Options{tune: restoringTune}},
	{guarantee: "restore", faults: "restore-keeps-members", opts: Options{tune: restoringTune}},
	{guarantee: "restore", faults: "restore-keeps-changes", opts: Options{tune: restoredAfterChanges}},
	// Of internal/route.
	{guarantee: "G12", faults: "repeat-without-session", opts: Options{tune: proxied}},
	{guarantee: "G12", faults: "doubt-is-forgotten", opts: Options{tune: proxied}},
	{guarantee: "G12", faults: "late-answer", opts: Options{tune: proxied}},
	{guarantee: "G12", faults: "expired-is-not-proposed", opts: Options{tune: proxied}},
}

// TestMutants runs each mutant in a process of its own, as many at a time as there are processors: which one a process is, is a global.
func TestMutants(t *testing.T) {
	if *mutantFlag != "" {
		for i := range mutants {
			if m := &mutants[i]; m.faults == *mutantFlag {
				t.Log(rowOf + m.run(t))
			}
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]string, len(mutants))
	queue := make(chan int)
	var wg sync.WaitGroup
	for range *procsFlag {
		wg.Go(func() {
			for i := range queue {
				out, err := exec.Command(self, "-test.run=^TestMutants$", "-test.v", "-test.timeout=0", "-sim.mutant="+mutants[i].faults,
					fmt.Sprintf("-sim.mutant.seeds=%d", *mutantSeeds), fmt.Sprintf("-sim.mutant.survivors=%d", *mutantSurvivors),
					fmt.Sprintf("-sim.mutant.time=%v", *mutantTime)).CombinedOutput()
				rows[i] = between(string(out), rowOf, "\n")
				if err != nil || rows[i] == "" {
					t.Errorf("mutant %q: %v\n%s", mutants[i].faults, err, out)
				}
			}
		})
	}
	for i := range mutants {
		queue <- i
	}
	close(queue)
	wg.Wait()
	t.Logf("mutants:\n%s", strings.Join(rows, "\n"))
}

// rowOf begins a mutant's row in the table, in the output of its process.
const rowOf = "mutant: "

// run looks for the mutant in seed after seed, and returns its row.
func (m *mutant) run(t *testing.T) string {
	defer func() { core.Mutant = "" }()
	core.Mutant = m.faults
	started := time.Now()
	first := max(m.from, 1)
	seed := first
	var f *Failure
	seeds := *mutantSeeds
	if m.survives != "" {
		seeds = *mutantSurvivors
	}
	for ; f == nil && seed < first+seeds && time.Since(started) < *mutantTime; seed++ {
		f = runJudged(seed, m.opts).Failure
	}
	took := time.Since(started).Round(time.Millisecond)
	if f == nil {
		if m.survives == "" {
			t.Errorf("mutant %q lives after %d seeds", m.faults, seed-first)
		}
		return fmt.Sprintf("%-10s %-45s survived %d seeds, %v %s", m.guarantee, m.faults, seed-first, took, m.survives)
	}
	message, _, _ := strings.Cut(f.Message, "\n")
	return fmt.Sprintf("%-10s %-45s seed %-5d (%d tried) %-8v %-18s %.110s", m.guarantee, m.faults, seed-1, seed-first, took, f.Rule, message)
}
