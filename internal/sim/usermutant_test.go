//go:build mutants

package sim

import (
	"testing"

	"github.com/decree-raft/decree/internal/core"
)

// TestMutantsWithUser: the rules that hold for every machine find faults of the core under a user's machine too. Not among them
// are no-wake, which 400 seeds with the one shard of a user's machine did not find, and no-read-reset, which no seed finds any more (mutants_test.go).
func TestMutantsWithUser(t *testing.T) {
	defer func() { core.Mutant = "" }()
	for _, fault := range []string{
		"decide-before-own-entry", "decide-on-committed", "no-rollback", "promote-before-commit", "early-rejection",
		"unknown-as-not-proposed", "forget-pending", "local-read", "same-read-context", "send-before-sync", "forget-vote",
		"apply-before-sync", "promote-before-sync", "flush-without-sessions", "no-dedup", "no-inflight-dedup", "no-digest", "no-ack-window", "time-goes-back",
	} {
		core.Mutant = fault
		var f *Failure
		seed := uint64(1)
		for ; f == nil && seed <= 400; seed++ {
			f = Run(seed, Options{User: sumsUser()}).Failure
		}
		if f == nil {
			t.Errorf("mutant %q lives after 400 seeds", fault)
			continue
		}
		t.Logf("%-25s seed %-4d %-18s %.120s", fault, seed-1, f.Rule, f.Message)
	}
}
