package sim

import (
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

// rotten makes for much on disks, and early damage to it.
func rotten(s *swarm) {
	asUsual(s)
	s.nodes = max(s.nodes, 3)
	s.every[faultRot] = 300 * millisecond
	s.core.Limits.FlushBytes, s.core.Limits.LogCacheBytes = 64<<10, 1
	s.pad, s.padChance = 6000, 0.6
	membersStay(s) // each must be able to come back, and a damaged one may not
}

// membersStay leaves changes of members out.
func membersStay(s *swarm) {
	s.spares = 0
	for _, kind := range []int{faultAddLearner, faultPromote, faultRemove, faultReplace, faultAddress} {
		s.every[kind] = 0
	}
}

// TestRot damages a disk in every run, when there is much on it: clusters of which a minority cannot read all that it has
// must go on, and serve nothing of it.
func TestRot(t *testing.T) {
	testkit.SkipUnderRace(t)
	seeds := uint64(60)
	if testing.Short() {
		seeds = 15
	}
	total := judgeAll(t, 201, seeds, rotten) // 221 and 243 have found something, see docs/bugs.md
	t.Logf("%d disks damaged, %d nodes refused to start, %d replicas stopped", total.Rotten, total.RotRefused, total.RotStopped)
	if total.Rotten < int(seeds)/2 || total.RotRefused == 0 || total.RotStopped == 0 {
		t.Error("the runs have not seen enough damage")
	}
}
