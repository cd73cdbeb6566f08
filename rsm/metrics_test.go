package rsm

import (
	"testing"
	"time"
)

// A shard's time that is ahead of the clock is measured, and one that is behind it, as almost always, is not.
// Mutation with which it was seen to fail: the metric without max.
func TestMetricOfTimeAhead(t *testing.T) {
	for _, m := range shardMetrics {
		if m.name != "time_ahead_seconds" {
			continue
		}
		if got := m.value(&ShardStatus{Time: Timestamp(time.Now().Add(time.Hour).UnixNano())}); got > 3600 || got < 3000 {
			t.Errorf("an hour ahead: %v s", got)
		}
		for _, at := range []Timestamp{0, Timestamp(time.Now().UnixNano())} {
			if got := m.value(&ShardStatus{Time: at}); got != 0 {
				t.Errorf("at %d: %v s", at, got)
			}
		}
		return
	}
	t.Error("there is no such metric")
}
