package admit

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/decree-raft/decree/rsm"

	"github.com/decree-raft/decree/internal/testkit"
)

// A discrete-event simulation: virtual time, one seeded random source, services with a queue that has no bound.

const (
	ms  = int64(time.Millisecond)
	sec = int64(time.Second)
)

type event struct {
	at, seq int64
	do      func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

type sim struct {
	now, seq int64
	queue    events
	rnd      *rand.Rand
}

func newSim(seed uint64) *sim { return &sim{rnd: rand.New(rand.NewPCG(seed, 1))} }

func (s *sim) after(d int64, do func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now + max(d, 0), s.seq, do})
}

func (s *sim) run(until int64) {
	for len(s.queue) > 0 && s.queue[0].at <= until {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.do()
	}
	s.now = until
}

func (s *sim) exp(mean float64) int64 { return int64(s.rnd.ExpFloat64() * mean) }

// service answers requests in their order.
type service interface{ serve(done func()) }

// servers is so many of them with one queue: what a machine with so many cores, or a disk with so many channels, does.
type servers struct {
	s       *sim
	n, busy int
	time    func() int64
	waiting []func()
	stalled bool
}

func (v *servers) serve(done func()) {
	v.waiting = append(v.waiting, done)
	v.next()
}

func (v *servers) next() {
	for !v.stalled && v.busy < v.n && len(v.waiting) > 0 {
		done := v.waiting[0]
		v.waiting = v.waiting[1:]
		v.busy++
		v.s.after(v.time(), func() {
			v.busy--
			done()
			v.next()
		})
	}
}

func (v *servers) stall(stalled bool) {
	v.stalled = stalled
	v.next()
}

// group commits in batches: whoever came while one was being written is in the next, of 4096 at most. One takes
// the time of its fsync, or that of its commands if they need longer: they are decided meanwhile.
type group struct {
	s       *sim
	command int64
	fsync   func() int64
	waiting []func()
	writing bool
	stalled bool
}

func (g *group) serve(done func()) {
	g.waiting = append(g.waiting, done)
	g.next()
}

func (g *group) next() {
	if g.writing || g.stalled || len(g.waiting) == 0 {
		return
	}
	n := min(len(g.waiting), 4096)
	batch := slices.Clone(g.waiting[:n])
	g.waiting = g.waiting[n:]
	g.writing = true
	g.s.after(max(g.fsync(), int64(n)*g.command), func() {
		g.writing = false
		for _, done := range batch {
			done()
		}
		g.next()
	})
}

func (g *group) stall(stalled bool) {
	g.stalled = stalled
	g.next()
}

// load is one client that sends at a rate, whatever comes back.
type load struct {
	name      string
	rate      float64 // per second
	makesRoom bool
	retry     bool           // what is refused comes back when it was told to
	outcome   func() Outcome // nil: Answered

	done, refused int
	latencies     []int64
	most          int // at work
	atWork        int
	waits         []time.Duration
}

func (l *load) start(s *sim, c *Controller, v service) {
	k := c.Client(l.name)
	var try func()
	try = func() {
		start := s.now
		t, err := k.Admit(1, 100, l.makesRoom, s.now)
		if err != nil {
			l.refused++
			wait := retryOf(err)
			l.waits = append(l.waits, time.Duration(wait))
			if l.retry {
				s.after(wait, try)
			}
			return
		}
		l.atWork++
		l.most = max(l.most, l.atWork)
		v.serve(func() {
			l.atWork--
			o := Answered
			if l.outcome != nil {
				o = l.outcome()
			}
			t.Done(s.now, o)
			if o == Answered {
				l.done++
				l.latencies = append(l.latencies, s.now-start)
			}
		})
	}
	var arrive func()
	arrive = func() {
		if l.rate > 0 {
			try()
			s.after(s.exp(1e9/l.rate), arrive)
		} else {
			s.after(10*ms, arrive)
		}
	}
	s.after(s.exp(1e9/max(l.rate, 1)), arrive)
}

// retryOf is when a refusal says to come back.
func retryOf(err error) int64 {
	var e *rsm.Error
	errors.As(err, &e)
	return int64(e.RetryAfter)
}

// forget starts the counts again.
func (l *load) forget() { l.done, l.refused, l.latencies, l.waits, l.most = 0, 0, nil, nil, l.atWork }

func (l *load) quantile(q float64) time.Duration {
	if len(l.latencies) == 0 {
		return 0
	}
	s := slices.Clone(l.latencies)
	slices.Sort(s)
	return time.Duration(s[min(int(q*float64(len(s))), len(s)-1)])
}

func (l *load) String() string {
	return fmt.Sprintf("%s: %d done, %d refused, p50 %v, p99 %v, most at work %d", l.name, l.done, l.refused, l.quantile(0.5), l.quantile(0.99), l.most)
}

func uniform(s *sim, from, to float64) func() int64 {
	return func() int64 { return int64((from + (to-from)*s.rnd.Float64()) * 1e6) }
}

// bench is a kind of service under test.
type bench struct {
	name     string
	capacity float64 // answers per second at most
	make     func(*sim) service
}

var benches = []bench{
	{"16 servers, 2 ms exponential", 8000, func(s *sim) service {
		return &servers{s: s, n: 16, time: func() int64 { return s.exp(2e6) }}
	}},
	{"8 servers, 5 ms constant", 1600, func(s *sim) service {
		return &servers{s: s, n: 8, time: func() int64 { return 5 * ms }}
	}},
	{"group commit, fsync 1 ms, 50 us a command", 20000, func(s *sim) service {
		return &group{s: s, command: 50e3, fsync: func() int64 { return ms }}
	}},
	{"group commit, fsync 0.3 to 15 ms", 20000, func(s *sim) service {
		return &group{s: s, command: 50e3, fsync: uniform(s, 0.3, 15)}
	}},
	{"group commit, fsync 0.3 ms, one in 50 takes 15", 20000, func(s *sim) service {
		return &group{s: s, command: 50e3, fsync: func() int64 {
			if s.rnd.IntN(50) == 0 {
				return 15 * ms
			}
			return 3 * ms / 10
		}}
	}},
	{"group commit, fsync 0.3 ms and 15 ms in turns of 2 s", 20000, func(s *sim) service {
		return &group{s: s, command: 50e3, fsync: func() int64 {
			if s.now/(2*sec)%2 == 1 {
				return 15 * ms
			}
			return 3 * ms / 10
		}}
	}},
}

func controller(t testing.TB, cfg Config) *Controller {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func limitOf(c *Controller) ShardStat {
	for _, s := range c.Snapshot().Shards {
		return s
	}
	return ShardStat{}
}

func TestOverload(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, b := range benches {
		t.Run(b.name, func(t *testing.T) {
			run := func(times float64) (*load, *Controller) {
				s := newSim(1)
				c := controller(t, Config{})
				l := &load{name: "a", rate: times * b.capacity}
				l.start(s, c, b.make(s))
				s.run(4 * sec)
				l.forget()
				s.run(16 * sec)
				return l, c
			}
			calm, _ := run(0.05)
			for _, times := range []float64{0.9, 1.5, 3} {
				l, c := run(times)
				goodput := float64(l.done) / 12 / b.capacity
				t.Logf("%.1f x: goodput %.2f, %v, unloaded p99 %v, %+v", times, goodput, l, calm.quantile(0.99), limitOf(c))
				if goodput < 0.9*min(times, 1) {
					t.Errorf("%.1f x capacity: goodput is %.2f of it", times, goodput)
				}
				if p := l.quantile(0.99); p > 5*calm.quantile(0.99) {
					t.Errorf("%.1f x capacity: p99 is %v, it was %v without load", times, p, calm.quantile(0.99))
				}
			}
		})
	}
}
