package admit

import (
	"fmt"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/testkit"
)

// A flood from one client takes nothing from those who ask for less than their share, and they do not see its queue.
func TestFlood(t *testing.T) {
	testkit.SkipUnderRace(t)
	for _, b := range []bench{benches[0], benches[2]} {
		for _, room := range []float64{0, 0.3, 1} { // how much of the flood makes room, or says so
			t.Run(fmt.Sprintf("%s, makes room: %v", b.name, room), func(t *testing.T) {
				s := newSim(2)
				c := controller(t, Config{})
				v := b.make(s)
				flood := &load{name: "flood", rate: 3 * b.capacity * (1 - room)}
				rooms := &load{name: "flood", rate: 3 * b.capacity * room, makesRoom: true}
				modest := &load{name: "modest", rate: 0.1 * b.capacity}
				busier := &load{name: "busier", rate: 0.2 * b.capacity}
				for _, l := range []*load{flood, rooms, modest, busier} {
					l.start(s, c, v)
				}
				s.run(3 * sec)
				for _, l := range []*load{flood, rooms, modest, busier} {
					l.forget()
				}
				s.run(9 * sec) // between two probes
				t.Logf("%v\n%v\n%v\n%v\n%+v", flood, rooms, modest, busier, limitOf(c))
				for _, l := range []*load{modest, busier} {
					if asked := l.done + l.refused; l == modest && l.refused*500 > asked || l.refused*40 > asked {
						t.Errorf("%s was refused %d times of %d", l.name, l.refused, asked)
					}
					if p := l.quantile(0.99); p > 5*10*time.Millisecond {
						t.Errorf("%s waits for %v", l.name, p)
					}
				}
				if sum := float64(flood.done+rooms.done+modest.done+busier.done) / 6; sum < 0.8*b.capacity {
					t.Errorf("all of them get %.0f per second, the service is capable of %.0f", sum, b.capacity)
				}
			})
		}
	}
}

// Clients that all ask for more get the same.
func TestEqualShares(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(3)
	c := controller(t, Config{})
	v := benches[0].make(s)
	var loads []*load
	for i := range 10 {
		// From 0.3 to 3 times the capacity each.
		l := &load{name: fmt.Sprint("client ", i), rate: 0.3 * float64(i+1) * benches[0].capacity}
		l.start(s, c, v)
		loads = append(loads, l)
	}
	s.run(3 * sec)
	for _, l := range loads {
		l.forget()
	}
	s.run(9 * sec)
	fair := benches[0].capacity * 6 / 10
	for _, l := range loads {
		t.Logf("%v", l)
		if d := float64(l.done); d < 0.5*fair || d > 1.8*fair {
			t.Errorf("%s gets %.2f of its share", l.name, d/fair)
		}
	}
}

// A crowd of clients that each have one request at work is too many in sum; the limit and its probes hold for them too.
func TestCrowd(t *testing.T) {
	testkit.SkipUnderRace(t)
	s := newSim(4)
	c := controller(t, Config{})
	v := &servers{s: s, n: 8, time: func() int64 { return 5 * ms }}
	var loads []*load
	for i := range 400 {
		l := &load{name: fmt.Sprint(i), rate: 12}
		l.start(s, c, v)
		loads = append(loads, l)
	}
	s.run(3 * sec)
	done := 0
	var worst time.Duration
	for _, l := range loads {
		l.forget()
	}
	s.run(13 * sec)
	for _, l := range loads {
		done += l.done
		worst = max(worst, l.quantile(0.99))
	}
	t.Logf("%d done, slowest %v, %+v", done, worst, limitOf(c))
	if float64(done) < 0.8*1600*10 {
		t.Errorf("400 clients got %d answers in 10 s, the service is capable of 16000", done)
	}
	if worst > 25*time.Millisecond {
		t.Errorf("an answer took %v, 5ms without load", worst)
	}
}

// A client that makes one call at a time is gone after each: it is the same one when it comes back, not one more among whom the limit is shared.
func TestComesAndGoes(t *testing.T) {
	c := controller(t, Config{InitialLimit: 40})
	for i := range int64(100) {
		k := c.Client("comes and goes")
		ticket, err := k.Admit(1, 1, false, i)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Done(i, Answered)
		k.Release()
	}
	if s := c.Snapshot(); s.Clients != 0 || limitOf(c).Active != 1 {
		t.Errorf("%d clients are known, and %d active: there is one, which is gone just now", s.Clients, limitOf(c).Active)
	}
}

// What makes room is taken under a flood of what does not, from the same client and from another, and is bounded itself.
func TestMakingRoom(t *testing.T) {
	testkit.SkipUnderRace(t)
	b := benches[0]
	for _, who := range []string{"flood", "other"} {
		t.Run(who, func(t *testing.T) {
			s := newSim(5)
			c := controller(t, Config{})
			v := b.make(s)
			flood := &load{name: "flood", rate: 3 * b.capacity}
			second := &load{name: "second", rate: 3 * b.capacity}
			room := &load{name: who, rate: 0.05 * b.capacity, makesRoom: true}
			flood.start(s, c, v)
			second.start(s, c, v)
			room.start(s, c, v)
			s.run(3 * sec)
			flood.forget()
			room.forget()
			s.run(13 * sec)
			t.Logf("%v\n%v\n%+v", flood, room, limitOf(c))
			if room.refused*200 > room.done {
				t.Errorf("%d requests that make room were refused, %d done", room.refused, room.done)
			}
			if flood.refused == 0 {
				t.Error("there was no flood")
			}
		})
	}
}

// The ceilings, one by one, without time: the limit does not move.
func TestCeilings(t *testing.T) {
	newOne := func() (*Controller, *Client, *Client) {
		c := controller(t, Config{InitialLimit: 80, ShardCount: 600})
		return c, c.Client("a"), c.Client("b")
	}
	fill := func(k *Client, n int, room bool) (got int) {
		for range n {
			if _, err := k.Admit(1, 0, room, 0); err == nil {
				got++
			}
		}
		return got
	}
	c, a, b := newOne()
	if n := fill(a, 500, false); n != 80 {
		t.Errorf("a client alone gets %d of a limit of 80", n)
	}
	if n := fill(b, 500, false); n != 20 {
		t.Errorf("a client that comes after a flood gets %d; the overcommitment is 20", n)
	}
	if n := fill(a, 500, false); n != 0 {
		t.Errorf("over its share, beyond the limit, a client gets %d", n)
	}
	// Of the reserve of 20, each gets its half: both make room.
	fill(b, 1, true)
	if n := fill(a, 500, true); n != 10 {
		t.Errorf("one client gets %d of the reserve, its share is 10", n)
	}
	if n := fill(b, 500, true); n != 9 {
		t.Errorf("the other gets %d more of the reserve, its share is 10", n)
	}
	if n := fill(c.Client("c"), 500, true); n != 0 {
		t.Errorf("beyond the last ceiling a client gets %d", n)
	}
	if s := limitOf(c); s.AtWork != 120 || s.Refused[ShardLimit] == 0 {
		t.Errorf("at the last ceiling: %+v", s)
	}

	c, a, b = newOne()
	fill(b, 1, false)
	if n := fill(a, 500, false); n != 69 {
		t.Errorf("with others about, a flood gets %d; it is to leave a step of 10", n)
	}
	if n := fill(b, 500, false); n != 30 {
		t.Errorf("the other gets %d more, it is to have 30 up to the overcommitment", n)
	}
	if s := limitOf(c); s.Refused[FairShare] == 0 {
		t.Errorf("a client over its share was told %+v", s.Refused)
	}
	// Between a share and one and a half of it, bursts find the step that the flood left.
	c, a, b = newOne()
	fill(a, 45, false)
	fill(b, 1, false)
	if n := fill(c.Client("c"), 500, false); n != 34 {
		t.Errorf("of 3 clients, one gets %d; up to the limit of 80 there are 34, its share is 26", n)
	}
	// Beyond its share of the reserve, what makes room is treated like anything else.
	_, a, b = newOne()
	fill(b, 1, false)
	if n := fill(a, 500, true); n != 69 {
		t.Errorf("a flood of what makes room gets %d; it is to leave a step of 10 like any other", n)
	}
	if n := fill(b, 500, false); n != 30 {
		t.Errorf("the other gets %d more, it is to have 30 up to the overcommitment", n)
	}
	if n := fill(a, 500, true); n != 0 {
		t.Errorf("a flood of what makes room gets %d more", n)
	}

	// Who asked long ago shares nothing any more.
	c = controller(t, Config{InitialLimit: 80, ShardCount: 600})
	ticket, err := c.Client("a").Admit(1, 0, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	ticket.Done(0, Answered)
	b = c.Client("b")
	for _, at := range []int64{sec, 2 * sec} {
		ticket, err := b.Admit(1, 0, false, at+1)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Done(at+1, Answered)
	}
	n := 0
	for range 200 {
		if _, err := b.Admit(1, 0, false, 2*sec+2); err == nil {
			n++
		}
	}
	if s := limitOf(c); n != 80 || s.Active != 1 {
		t.Errorf("%d of 80 for a client that is alone since 2 s; %+v", n, s)
	}

	// And who made room long ago has no share of the reserve, even if it asks for other things.
	c = controller(t, Config{InitialLimit: 80, ShardCount: 600})
	a, b = c.Client("a"), c.Client("b")
	for i, at := range []int64{0, sec, 2 * sec, 2*sec + 1} {
		ticket, err := a.Admit(1, 0, i == 0, at)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Done(at, Answered)
	}
	n = 0
	for i := range 500 {
		if _, err := b.Admit(1, 0, i >= 250, 2*sec+2); err == nil {
			n++
		}
	}
	if n != 70+20 {
		t.Errorf("%d for a client that alone makes room; a flood of 70 and a reserve of 20 are to be", n)
	}
}
