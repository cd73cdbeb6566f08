package admit

import (
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

// A service that takes long and has no queue, as one far away: a probe that goes down to the floor sees at once that it is as slow with little at work. One that went on
// until there was no time for it would leave the base unknown, and begin again.
//
// Mutation with which it was seen to fail: such a probe lasts for four latencies.
func TestLongWay(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, way := range []int64{300, 500} {
		s := newSim(26)
		c := controller(t, asProxy)
		l := &load{name: "a", rate: 4000}
		l.start(s, c, &servers{s: s, n: 2 * int(way), time: func() int64 { return way * ms }})
		s.run(20 * sec)
		l.forget()
		s.run(80 * sec)
		t.Logf("%d ms: %v %+v", way, l, limitOf(c))
		if l.done < 9*60*2000/10 {
			t.Errorf("%d ms: %d answers in a minute, of 120000", way, l.done)
		}
	}
}
