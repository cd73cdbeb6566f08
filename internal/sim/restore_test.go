package sim

import (
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

// restoring makes backups, of which clusters are restored.
func restoringTune(s *swarm) {
	s.every[faultBackup], s.every[faultCut] = 200*millisecond, 200*millisecond
	s.core.Limits.FlushBytes = 64 << 10
	s.sessions = max(s.sessions, 0.7)
}

// restoredAfterChanges has backups of clusters whose members have changed, so that their logs say so.
func restoredAfterChanges(s *swarm) {
	changing(s)
	restoringTune(s)
	s.core.Limits.FlushBytes = 1 << 20
}

// TestRestore makes a second cluster from a backup of the first, with crashes at every step of it, and lets it go on under all rules: at the position that was asked for,
// it has the state, the sessions and the log of the first.
func TestRestore(t *testing.T) {
	testkit.SkipUnderRace(t)
	seeds := uint64(60)
	if testing.Short() {
		seeds = 15
	}
	total := judgeAll(t, 1, seeds, restoringTune)
	t.Logf("%d backups, %d clusters restored, %d of them from histories, %d crashes meanwhile; %d sessions went on, %d commands were asked for again",
		total.Backups, total.Restored, total.RestoredHistories, total.RestoreCrashes, total.Inherited, total.AskedAgain)
	if n := int(seeds); total.Restored < n/2 || total.RestoreCrashes < n/2 || total.Inherited < n/2 || total.AskedAgain < n/2 || total.RestoredHistories < n/20 {
		t.Error("the runs have not seen enough")
	}
}
