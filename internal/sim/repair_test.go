package sim

import (
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

// mending damages disks again and again, and has nodes crash in the middle of being repaired.
func mending(s *swarm) {
	direct(s)
	membersStay(s)
	s.nodes, s.repairs, s.rotForGood, s.programs = max(s.nodes, 3), true, 0.02, 0
	s.every[faultRot], s.every[faultStep], s.every[faultCut] = 100*millisecond, 150*millisecond, 300*millisecond
	s.every[faultUpgrade], s.every[faultDowngrade] = 0, 0
	s.core.Limits.FlushBytes, s.core.Limits.LogCacheBytes = 64<<10, 1
	s.pad, s.padChance = 6000, 0.6
	if s.core.JournalMaxBytes > 16<<10 {
		s.core.JournalMaxBytes = 1
	}
}

// TestRepair damages disks while their nodes run, again and again: replicas that meet the damage are given the state of a peer, by the code of
// production, with crashes between any two operations on files, and every rule holds as if nothing had been.
func TestRepair(t *testing.T) {
	testkit.SkipUnderRace(t)
	seeds := uint64(60)
	if testing.Short() {
		seeds = 15
	}
	total := judgeAll(t, 1, seeds, mending)
	t.Logf("%d files damaged, %d replicas stopped, %d repaired, %d nodes refused to start; %d damaged snapshots found; %d crashes between two operations on files",
		total.Rotten, total.RotStopped, total.Repaired, total.RotRefused, total.SnapshotsDamaged, total.StepCrashes)
	if n := int(seeds); total.Rotten < n || total.Repaired < n/4 || total.StepCrashes < n || total.SnapshotsDamaged == 0 && !testing.Short() {
		t.Error("the runs have not seen enough damage")
	}
}

// TestRuin damages more disks than can be spared, at once: what can be mended is, and where nothing can, the cluster stands still and names what is damaged. It
// never answers with it.
func TestRuin(t *testing.T) {
	testkit.SkipUnderRace(t)
	seeds := uint64(40)
	if testing.Short() {
		seeds = 10
	}
	total := judgeAll(t, 1, seeds, ruined)
	t.Logf("%d files damaged, %d replicas stopped, %d repaired, %d nodes refused to start; %d clusters stood still", total.Rotten, total.RotStopped, total.Repaired, total.RotRefused, total.Ruined)
	if total.Ruined == 0 || total.Repaired == 0 {
		t.Error("the runs have not seen enough damage")
	}
}

// TestToldOfDamage tells replicas of damage that nobody has read, on more disks than can be spared: they stop, and are repaired, where the others can do without them, and every rule holds
// meanwhile.
func TestToldOfDamage(t *testing.T) {
	testkit.SkipUnderRace(t)
	seeds := uint64(40)
	if testing.Short() {
		seeds = 10
	}
	total := judgeAll(t, 1, seeds, toldOfDamage)
	t.Logf("%d files damaged, told of %d times, %d replicas stopped for what was read or told, %d repaired; %d clusters stood still", total.Rotten, total.Told, total.RotStopped, total.Repaired, total.Ruined)
	if total.Told < int(seeds) || total.Repaired == 0 {
		t.Error("the runs have not seen enough damage")
	}
}

func toldOfDamage(s *swarm) {
	ruined(s)
	s.tells = true
}

func ruined(s *swarm) {
	mending(s)
	s.every[faultRot], s.ruin = 30*millisecond, true
}
