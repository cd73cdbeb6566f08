package admit

import (
	"fmt"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/testkit"
)

// A service that answers nobody for a while, and a disk that gets slower or faster for good.
func TestStall(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, b := range []bench{benches[0], benches[2], benches[3]} {
		for _, o := range []Outcome{Answered, Ignored} {
			t.Run(fmt.Sprintf("%s, outcome %d", b.name, o), func(t *testing.T) {
				s := newSim(6)
				c := controller(t, Config{})
				v := b.make(s)
				from, to := 5*sec, 7*sec
				l := &load{name: "a", rate: 1.5 * b.capacity}
				l.outcome = func() Outcome {
					if s.now >= from && s.now < to+2*ms {
						return o
					}
					return Answered
				}
				l.start(s, c, v)
				s.run(from)
				before := limitOf(c)
				v.(interface{ stall(bool) }).stall(true)
				s.run(from + sec)
				l.forget()
				s.run(to)
				for i, w := range l.waits {
					if i > 100 && w < 400*time.Millisecond {
						t.Fatalf("stuck for more than a second, and a refusal says to come back in %v", w)
					}
				}
				v.(interface{ stall(bool) }).stall(false)
				s.run(to + sec)
				l.forget()
				s.run(to + 2*sec)
				t.Logf("before %+v\nafter  %+v\n%v", before, limitOf(c), l)
				if float64(l.done) < 0.8*b.capacity {
					t.Errorf("1 s after a stall of 2 s, %d answers in a second; the service is capable of %.0f", l.done, b.capacity)
				}
			})
		}
	}
}

func TestSpeedChanges(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(7)
	c := controller(t, Config{})
	fsync := 3 * ms / 10
	g := &group{s: s, command: 50e3, fsync: func() int64 { return fsync }}
	l := &load{name: "a", rate: 60000}
	l.start(s, c, g)
	s.run(5 * sec)
	for i, next := range []int64{15 * ms, 5 * ms, 10 * ms, ms} {
		before := limitOf(c).Limit
		fsync = next
		for at := s.now; i == 0 && s.now < at+450*ms; s.run(s.now + 10*ms) {
			if st := limitOf(c); !st.Probing && st.Limit < before*6/10 {
				t.Fatalf("the limit fell from %d to %d before it was known that the disk is slower", before, st.Limit)
			}
		}
		s.run(s.now + 2*sec) // up to 25 times as much has to be at work
		l.forget()
		s.run(s.now + 2*sec)
		st := limitOf(c)
		t.Logf("fsync %v: %v %+v", time.Duration(fsync), l, st)
		if l.done < 0.8*20000*2 {
			t.Errorf("change %d to an fsync of %v: %d answers in 2 s, of 40000", i, time.Duration(fsync), l.done)
		}
	}
}

// A service that loses nine tenths of what it is capable of: the latency comes back to what is tolerated.
func TestCapacityLost(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(8)
	c := controller(t, Config{})
	v := &servers{s: s, n: 40, time: func() int64 { return 5 * ms }}
	l := &load{name: "a", rate: 24000}
	l.start(s, c, v)
	s.run(5 * sec)
	v.n = 4
	s.run(10 * sec)
	l.forget()
	s.run(12 * sec)
	t.Logf("%v %+v", l, limitOf(c))
	if p := l.quantile(0.99); p > 25*time.Millisecond {
		t.Errorf("with a tenth of the servers an answer takes %v", p)
	}
	if l.done < 0.8*800*2 {
		t.Errorf("%d answers in 2 s, of 1600", l.done)
	}
	v.n = 40
	s.run(14 * sec)
	l.forget()
	s.run(15 * sec)
	if l.done < 0.8*8000 {
		t.Errorf("with all servers again %d answers in a second, of 8000", l.done)
	}
}

// A limit that is not used does not grow, and a slow disk with no queue does not shrink it.
func TestUnusedLimit(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(9)
	c := controller(t, Config{})
	slow := false
	v := &servers{s: s, n: 1000, time: func() int64 {
		if slow {
			return 20 * ms
		}
		return ms
	}}
	l := &load{name: "a", rate: 500}
	l.start(s, c, v)
	s.run(30 * sec)
	slow = true
	s.run(60 * sec)
	if st := limitOf(c); st.Limit != 64 || l.refused != 0 || st.Probing {
		t.Errorf("with 10 at work: %+v, refused %d", st, l.refused)
	}
}

// Two proxies before one shard. Neither knows the other's queue; together they keep it short, since they measure at the same time.
func TestTwoProxies(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(10)
	v := &servers{s: s, n: 16, time: func() int64 { return 5 * ms }}
	var loads []*load
	var cs []*Controller
	for i := range 2 {
		c := controller(t, Config{})
		l := &load{name: fmt.Sprint("proxy ", i), rate: 6400}
		l.start(s, c, v)
		loads, cs = append(loads, l), append(cs, c)
	}
	s.run(60 * sec)
	for _, l := range loads {
		l.forget()
	}
	s.run(70 * sec)
	done := 0
	for i, l := range loads {
		t.Logf("%v %+v", l, limitOf(cs[i]))
		done += l.done
		if p := l.quantile(0.99); p > 25*time.Millisecond {
			t.Errorf("after a minute of overload through two proxies an answer takes %v", p)
		}
	}
	if done < 0.8*3200*10 {
		t.Errorf("%d answers in 10 s, of 32000", done)
	}
}

// Refusals from behind lower the limit even though what is answered is fast.
func TestDropped(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(11)
	c := controller(t, Config{InitialLimit: 1000})
	const behind = 50
	atWork := 0
	l := &load{name: "a", rate: 20000}
	v := &servers{s: s, n: 10000, time: func() int64 { return 5 * ms }}
	k := c.Client("a")
	dropped, done := 0, 0
	var arrive func()
	arrive = func() {
		if t, err := k.Admit(1, 0, false, s.now); err == nil {
			if atWork >= behind {
				dropped++
				s.after(ms/2, func() { t.Done(s.now, Dropped) })
			} else {
				atWork++
				v.serve(func() {
					atWork--
					done++
					t.Done(s.now, Answered)
				})
			}
		}
		s.after(s.exp(1e9/l.rate), arrive)
	}
	arrive()
	s.run(5 * sec)
	dropped, done = 0, 0
	s.run(15 * sec)
	t.Logf("%d done, %d dropped, %+v", done, dropped, limitOf(c))
	if dropped > done/10 {
		t.Errorf("%d were refused behind, %d done", dropped, done)
	}
	if done < 0.8*10000*10 {
		t.Errorf("%d done in 10 s, of 100000", done)
	}
}

// A probe that gets no answers ends, even if nothing at all happens meanwhile.
func TestProbeGivenUp(t *testing.T) {
	testkit.SkipUnderRace(t)
	c := controller(t, Config{InitialLimit: 40, ShardCount: 600, Target: 2.5})
	k := c.Client("a")
	now := int64(0)
	for range 100 { // until the first window ends, and with it the base is asked for
		var ts []Ticket
		for range 40 {
			if ticket, err := k.Admit(1, 0, false, now); err == nil {
				ts = append(ts, ticket)
			}
		}
		now += 10 * ms
		for i, ticket := range ts {
			if i == 39 && limitOf(c).Probing {
				ticket.Done(now, Ignored)
				continue
			}
			ticket.Done(now, Answered)
		}
		if limitOf(c).Probing {
			break
		}
	}
	if st := limitOf(c); !st.Probing || st.Limit != 8 {
		t.Fatalf("no probe: %+v", st)
	}
	now += 3 * sec
	ticket, err := k.Admit(1, 0, false, now)
	if err != nil {
		t.Fatal(err)
	}
	if st := limitOf(c); st.Probing || st.Limit != 40 {
		t.Errorf("the probe goes on after 3 s without an answer: %+v", st)
	}
	ticket.Done(now, Ignored)
}

// What began under another limit is no sample, and the window waits for its end; but not for ever.
func TestSettling(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, stuck := range []bool{false, true} {
		c := controller(t, Config{InitialLimit: 100, ShardCount: 600})
		l := newLimiter(&c.cfg)
		l.base, l.nextProbe = float64(ms), 1000*sec
		l.opens(0)
		l.set(0, 50, 20)
		now := ms
		done := func(gen uint32, latency int64, atWork int) {
			l.left(now, gen, atWork)
			l.answered(now, latency, gen, atWork)
		}
		for i := range 19 {
			done(0, sec, 50-i)
		}
		done(l.gen, ms, 40)
		if l.open || l.n != 0 {
			t.Fatalf("a window is open with %d answers while one request from before is at work", l.n)
		}
		if stuck {
			now = int64(settleTime)
			done(l.gen, ms, 40)
		} else {
			done(0, sec, 40)
		}
		if !l.open {
			t.Fatalf("no window is open; stuck: %v", stuck)
		}
		done(0, sec, 40)
		done(l.gen, ms, 40)
		if want := l.sum; want > float64(2*ms) {
			t.Errorf("latencies of %v are counted", time.Duration(want))
		}
	}
}

// Those who come back when they are told do not ask much more often than they are served.
func TestRetryAfter(t *testing.T) {
	s := newSim(12)
	c := controller(t, Config{})
	b := benches[0]
	v := b.make(s)
	l := &load{name: "a", rate: b.capacity * 1.2, retry: true}
	l.start(s, c, v)
	s.run(2 * sec)
	l.rate = b.capacity * 0.9 // and the others come back for 2 s
	l.forget()
	s.run(3 * sec)
	t.Logf("%v, refused first %v last %v", l, l.waits[0], l.waits[len(l.waits)-1])
	if l.refused > 10*l.done {
		t.Errorf("%d refusals for %d answers", l.refused, l.done)
	}
	for _, w := range l.waits {
		if w < minRetry || w > maxRetry {
			t.Fatalf("told to come back in %v", w)
		}
	}
}
