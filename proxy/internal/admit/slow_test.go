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

// The same where so few calls are done that few may be at work in a probe: it waits for them, with less to do than the service can, and so it comes rarely.
//
// Mutations with which it was seen to fail: a probe is given up after two seconds, or three latencies; only one that goes down to the floor waits for them; it is due every ten seconds.
func TestLongWayOfFew(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, v := range []struct{ servers, way, limit int }{{200, 500, 1024}, {200, 1000, 1024}, {12, 500, 1024}, {12, 600, 16}} {
		s := newSim(26)
		o := asProxy
		o.InitialLimit = v.limit
		c := controller(t, o)
		l := &load{name: "a", rate: 1000}
		l.start(s, c, &servers{s: s, n: v.servers, time: func() int64 { return int64(v.way) * ms }})
		s.run(50 * sec)
		l.forget()
		s.run(150 * sec)
		t.Logf("%+v: %v %+v", v, l, limitOf(c))
		if can := 100 * v.servers * 1000 / v.way; l.done < can*85/100 {
			t.Errorf("%+v: %d answers in 100 seconds, of %d", v, l.done, can)
		}
	}
}
