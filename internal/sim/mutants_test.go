//go:build mutants

package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// Each fault of the core that internal/core's mutant_on.go knows must be found, within these bounds.
var (
	mutantFlag  = flag.String("sim.mutant", "", "the only mutant to run")
	mutantSeeds = flag.Uint64("sim.mutant.seeds", 2000, "seeds per mutant, at most")
	mutantTime  = flag.Duration("sim.mutant.time", time.Minute, "time per mutant, at most")
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
	{guarantee: "G7", faults: "no-read-reset"},
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
	{guarantee: "time", faults: "time-goes-back"},
	{guarantee: "rest", faults: "no-wake"},
	{guarantee: "divergence", faults: "no-hash-check", opts: Options{Nondeterministic: true}},
	// What the simulator has found, see docs/bugs.md: it must find it again.
	{guarantee: "bug", faults: "durable-by-index"},
	{guarantee: "bug", faults: "forward-read-index"},
	{guarantee: "bug", faults: "close-only-applied"},
	{guarantee: "bug", faults: "no-expiry-in-flight"},
	{guarantee: "bug", faults: "ack-only-applied"},
	{guarantee: "bug", faults: "evict-expired", opts: Options{tune: crowded}},
	{guarantee: "bug", faults: "unreadable-leads", opts: Options{tune: rotten}, from: 201},
	{guarantee: "bug", faults: "commit-before-sync", opts: Options{tune: changing}},
	{guarantee: "bug", faults: "first-in-memory", opts: Options{tune: changing}},
	{guarantee: "bug", faults: "offer-when-ready", opts: Options{tune: behind}},
	{guarantee: "bug", faults: "no-restart-record", opts: Options{tune: behind}},
	{guarantee: "bug", faults: "ask-once", opts: Options{tune: slowCuts}, from: 1},
	{guarantee: "bug", faults: "ask-the-gone", opts: Options{tune: changing}},
	{guarantee: "snapshots", faults: "keep-contradicted", opts: Options{tune: behind}, survives: "not found in 900 clusters: it takes a crash between installation and record where a stale log reaches beyond the snapshot"},
	{guarantee: "snapshots", faults: "no-restart-after", opts: Options{tune: behind}},
	{guarantee: "snapshots", faults: "ack-before-install", opts: Options{tune: behind}},
	{guarantee: "snapshots", faults: "install-before-promise", opts: Options{tune: behind}, survives: "nothing is said before the record that comes after the installation, and that has the promise too"},
	{guarantee: "snapshots", faults: "fits-any", opts: Options{tune: changing}},
	{guarantee: "snapshots", faults: "no-snapshot-pin", opts: Options{tune: behind}, survives: "it costs another snapshot, and the next one fits once less is flushed"},
	{guarantee: "journal", faults: "journal-without-cap", opts: Options{tune: behind}},
	{guarantee: "members", faults: "log-from-the-first", opts: Options{tune: changing}},
	{guarantee: "members", faults: "stay-joint", opts: Options{tune: changing}},
	{guarantee: "members", faults: "promote-unready", opts: Options{tune: changing}},
	{guarantee: "members", faults: "reuse-ids", opts: Options{tune: changing}},
	{guarantee: "members", faults: "remove-the-last-alive", opts: Options{tune: changing}},
	{guarantee: "members", faults: "leave-at-once", opts: Options{tune: changing}},
	{guarantee: "versions", faults: "version-of-the-old-members", opts: Options{tune: joining}},
	{guarantee: "versions", faults: "version-alone", opts: Options{tune: upgrading}},
	// Of internal/route.
	{guarantee: "G12", faults: "repeat-without-session", opts: Options{tune: proxied}},
	{guarantee: "G12", faults: "doubt-is-forgotten", opts: Options{tune: proxied}},
	{guarantee: "G12", faults: "late-answer", opts: Options{tune: proxied}},
	{guarantee: "G12", faults: "expired-is-rejected", opts: Options{tune: proxied}},
}

// proxied has clients that ask through proxies only, over streams that break, with sessions that are few.
func proxied(s *swarm) {
	s.proxies, s.proxied, s.silence = 2, 1, 200*millisecond
	s.every[faultProxy], s.every[faultStream] = 400*millisecond, 50*millisecond
	s.core.Sessions.Max, s.sessions, s.clients, s.clientLoss = 3, 0.7, 6, 0.05
}

// direct has none: what needs many seeds is looked for in the clusters in which it was first found.
func direct(s *swarm) { s.proxies, s.every[faultProxy], s.every[faultStream] = 0, 0, 0 }

// restless makes for entries in flight on leaders that are none any more.
func restless(s *swarm) {
	direct(s)
	s.nodes = max(s.nodes, 3)
	s.every[faultSleepyLeader], s.every[faultIsolate], s.every[faultTransfer] = 200*millisecond, 300*millisecond, 150*millisecond
	s.core.Limits.PipelineDepth, s.core.Limits.BatchBytes = 16, 1
	s.fsync, s.net = latency{mean: 2 * millisecond}, latency{mean: 300 * microsecond}
	s.think, s.loss = millisecond/2, 0
}

// hanging has disks that hang while much is being applied and flushed.
func hanging(s *swarm) {
	direct(s)
	s.nodes = 3
	s.every[faultSlowDisk], s.every[faultTransfer], s.every[faultCrash] = 100*millisecond, 0, 300*millisecond
	s.core.Limits.FlushBytes, s.core.Limits.LogCacheBytes, s.core.KeepJournal = 64<<10, 1, false
	s.core.Limits.PipelineDepth, s.core.Limits.BatchBytes = 16, 500
	s.padChance, s.pad = 1, 2000
	s.think, s.loss = millisecond/4, 0
}

// crowded makes for more sessions than there may be, whose time is over all at once.
func crowded(s *swarm) {
	direct(s)
	s.every[faultClock] = 30 * millisecond
	s.core.Sessions.Max, s.core.Limits.PipelineDepth, s.core.Limits.BatchBytes = 3, 16, 1
	s.sessions, s.clients, s.think = 1, 8, millisecond/2
}

// behind makes for followers that need snapshots: journals without room, much that is flushed, nodes that are away.
func behind(s *swarm) {
	direct(s)
	s.nodes, s.spares, s.core.KeepJournal, s.core.JournalMaxBytes = 3, 0, false, 1
	s.core.Limits.FlushBytes, s.core.Limits.LogCacheBytes = 64<<10, 1
	s.every[faultCut], s.every[faultCrash], s.every[faultIsolate], s.every[faultSleepyLeader] = 40*millisecond, 200*millisecond, 300*millisecond, 500*millisecond
	s.every[faultRot], s.every[faultUnreachable] = 0, 0
	s.pad, s.padChance, s.loss = 2000, 0.3, 0
	s.last = 200 * millisecond
}

// slowCuts makes for nodes that are restarted while a leader waits for their cut.
func slowCuts(s *swarm) {
	changing(s)
	s.nodes = 3
	s.flush, s.tick, s.core.Tick = 100*millisecond, 20*time.Millisecond, 20*time.Millisecond
	s.core.ElectionTicks = 16
	s.every[faultRemove], s.every[faultReplace], s.every[faultStop], s.every[faultCrash] = 0, 0, 100*millisecond, 150*millisecond
}

// changing has many changes of members, and nodes that fail meanwhile.
func changing(s *swarm) {
	direct(s)
	s.nodes, s.spares = pick(rand.New(rand.NewPCG(uint64(s.chaos), 1)), 1, 2, 3), 3
	s.every[faultRot], s.every[faultCut] = 0, 200*millisecond
	s.every[faultAddLearner], s.every[faultPromote], s.every[faultRemove], s.every[faultReplace] = 150*millisecond, 100*millisecond, 300*millisecond, 150*millisecond
	s.every[faultCrash], s.every[faultIsolate], s.every[faultPause] = 300*millisecond, 300*millisecond, 200*millisecond
}

// upgrading has nodes with other programs all the time.
func upgrading(s *swarm) {
	s.nodes, s.programs = 3, 2
	s.every[faultRot], s.every[faultUpgrade], s.every[faultDowngrade] = 0, 150*millisecond, 300*millisecond
}

// joining has nodes with older programs added meanwhile.
func joining(s *swarm) {
	changing(s)
	s.programs = 2
	s.every[faultUpgrade] = 300 * millisecond
}

func TestMutants(t *testing.T) {
	defer func() { core.Mutant = "" }()
	var table strings.Builder
	for _, m := range mutants {
		if *mutantFlag != "" && *mutantFlag != m.faults {
			continue
		}
		core.Mutant = m.faults
		started := time.Now()
		first := max(m.from, 1)
		seed := first
		var f *Failure
		seeds := *mutantSeeds
		if m.survives != "" {
			seeds = min(seeds, 200)
		}
		for ; f == nil && seed < first+seeds && time.Since(started) < *mutantTime; seed++ {
			f = runJudged(seed, m.opts).Failure
		}
		took := time.Since(started).Round(time.Millisecond)
		if f == nil {
			fmt.Fprintf(&table, "%-10s %-45s survived %d seeds, %v %s\n", m.guarantee, m.faults, seed-first, took, m.survives)
			if m.survives == "" {
				t.Errorf("mutant %q lives after %d seeds", m.faults, seed-first)
			}
			continue
		}
		message, _, _ := strings.Cut(f.Message, "\n")
		fmt.Fprintf(&table, "%-10s %-45s seed %-5d (%d tried) %-8v %-18s %.110s\n", m.guarantee, m.faults, seed-1, seed-first, took, f.Rule, message)
	}
	t.Logf("mutants:\n%s", table.String())
}
