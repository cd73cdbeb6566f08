package admit

import (
	"testing"
	"time"

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
		if can := 100 * v.servers * 1000 / v.way; l.done < can*80/100 {
			t.Errorf("%+v: %d answers in 100 seconds, of %d", v, l.done, can)
		}
	}
}

// Without a floor no probe goes down to it, and one takes as long as its answers.
//
// Mutation with which it was seen to fail: such a probe is given up after two seconds.
func TestLongWayWithoutAFloor(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(26)
	o := asProxy
	o.Floor, o.InitialLimit = 4, 4
	c := controller(t, o)
	l := &load{name: "a", rate: 4000}
	l.start(s, c, &servers{s: s, n: 2000, time: func() int64 { return 1000 * ms }})
	s.run(60 * sec)
	l.forget()
	s.run(160 * sec)
	t.Logf("%v %+v", l, limitOf(c))
	if l.done < 80000 { // the limit began at 4
		t.Errorf("%d answers in 100 seconds, of 200000", l.done)
	}
}

// A spell of a slow disk leaves a limit that is more than what the one client that goes on may have at work, by its own bound. Without a floor, too, it comes down.
//
// Mutation with which it was seen to fail: a probe begins at the limit, and not at what is at work.
func TestLimitComesDownToOne(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(3)
	c := controller(t, Config{ClientCount: 2048, ShardCount: 49152, InitialLimit: 1024, Floor: 4})
	to := 90 * sec
	g := &group{s: s, command: 100e3, fsync: func() int64 {
		if s.now >= 30*sec && s.now < to {
			return 1000 * ms
		}
		return ms
	}}
	loads := make([]*load, 8)
	for i := range loads {
		loads[i] = &load{name: string(rune('a' + i)), rate: 4000}
		loads[i].start(s, c, g)
	}
	s.run(to)
	was := limitOf(c)
	for _, l := range loads[1:] {
		l.rate = 0
	}
	loads[0].rate = 30000
	s.run(to + 40*sec)
	loads[0].forget()
	s.run(to + 50*sec)
	t.Logf("the limit was %+v: %v %+v", was, loads[0], limitOf(c))
	if p := loads[0].quantile(0.5); p > 50*time.Millisecond {
		t.Errorf("p50 is %v 40 s after the slow spell", p)
	}
	if loads[0].done < 50000 {
		t.Errorf("%d are done in 10 s", loads[0].done)
	}
}

// After a time in which the disk was slow the limit, and the latency, come down again: also where all that is asked for comes from one client, whose own bound keeps it from what the limit has become.
//
// Mutations with which it was seen to fail: what a client's bound refuses says nothing to the shard; a probe is as rare as the last one found the service to be slow, however slow.
func TestLimitComesDown(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, v := range []struct {
		clients int
		spell   int64
		fsync   int64
	}{{1, 120 * sec, 300 * ms}, {2, 120 * sec, 300 * ms}, {2, 30 * sec, 1000 * ms}} {
		s := newSim(3)
		c := controller(t, asProxy)
		from := 30 * sec
		to := from + v.spell
		g := &group{s: s, command: 100e3, fsync: func() int64 {
			if s.now >= from && s.now < to {
				return v.fsync
			}
			return ms
		}}
		var first *load
		for i := range v.clients {
			l := &load{name: string(rune('a' + i)), rate: 30000 / float64(v.clients)}
			l.start(s, c, g)
			if first == nil {
				first = l
			}
		}
		s.run(to)
		was := limitOf(c).Limit
		s.run(to + 40*sec)
		first.forget()
		s.run(to + 50*sec)
		t.Logf("%+v: the limit was %d: %v %+v", v, was, first, limitOf(c))
		if p := first.quantile(0.5); p > 300*time.Millisecond {
			t.Errorf("%+v: p50 is %v 40 s after the slow spell", v, p)
		}
	}
}
