package testkit

import "testing"

// SkipUnderRace skips a test whose work is done by one goroutine: the race detector has nothing to find in it, and makes it ten times as slow.
func SkipUnderRace(t testing.TB) {
	t.Helper()
	if Race {
		t.Skip("skipped under the race detector: one goroutine does all of it")
	}
}
