package route

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

const ms = int64(time.Millisecond)

// taker is a target that keeps what it is sent.
type taker struct {
	name string
	deaf bool
	got  []sent
}

type sent struct {
	c      *Call
	number uint32
}

func (t *taker) Send(c *Call, number uint32) bool {
	if t.deaf {
		return false
	}
	t.got = append(t.got, sent{c, number})
	return true
}

func (t *taker) last() sent { return t.got[len(t.got)-1] }

// answer has the target's latest attempt answered.
func (t *taker) answer(now int64, err error) {
	s := t.last()
	s.c.Answer(now, s.number, core.Result{Index: 7}, err)
}

func refusal(code core.Code) *core.Error { return &core.Error{Kind: core.ErrNotProposed, Code: code} }

func doubt() *core.Error { return &core.Error{Kind: core.ErrUnknown, Code: core.CodeLeadershipLost} }

// call is a submit whose end is counted.
func call(deadline int64, session core.SessionID) (*Call, *int) {
	n := new(int)
	c := &Call{Kind: Submit, Shard: 1, Commands: [][]byte{[]byte("x")}, Deadline: deadline, Done: func(*Call) { *n++ }}
	if session != 0 {
		c.Session, c.Sequence = session, 1
	}
	return c, n
}

func newPair(cfg Config) (*Router, *taker, *taker) {
	a, b := &taker{name: "a"}, &taker{name: "b"}
	cfg.Shard = 1
	if cfg.Resolve == nil {
		cfg.Resolve = func(e *core.Error) Target { return []Target{nil, a, b}[e.Leader] }
	}
	r := New(cfg)
	r.Targets(0, []Target{a, b})
	return r, a, b
}

func wantKind(t *testing.T, c *Call, done *int, kind error) {
	t.Helper()
	if *done != 1 {
		t.Fatalf("Done was called %d times", *done)
	}
	for _, k := range []error{core.ErrNotProposed, core.ErrUnknown, core.ErrRejected, core.ErrBroken} {
		if errors.Is(c.Err, k) != (k == kind) {
			t.Errorf("the error is %q: want %v and nothing else", c.Err, kind)
		}
	}
}

// What was decided, and cannot be answered, is not asked again, session or not: the answer would be as large.
func TestAnswerTooLarge(t *testing.T) {
	for session := range core.SessionID(2) {
		r, a, _ := newPair(Config{})
		r.Learn(0, a, 1)
		c, done := call(200*ms, session)
		r.Submit(0, c)
		a.answer(ms, &core.Error{Kind: core.ErrUnknown, Code: core.CodeAnswerTooLarge})
		wantKind(t, c, done, core.ErrUnknown)
	}
}

// Without a leader a call waits until there is one, and is sent once.
func TestWaitsForLeader(t *testing.T) {
	wanted := 0
	r, a, b := newPair(Config{Lead: func() { wanted++ }})
	c, done := call(1000*ms, 0)
	r.Submit(0, c)
	if len(a.got)+len(b.got) != 0 || wanted == 0 || r.Stats().Waiting != 1 {
		t.Fatalf("sent %d, leader wanted %d times, %+v", len(a.got)+len(b.got), wanted, r.Stats())
	}
	if !r.Learn(10*ms, b, 3) || len(b.got) != 1 {
		t.Fatal("it is not sent to the leader")
	}
	b.answer(11*ms, nil)
	if *done != 1 || c.Err != nil || c.Result.Index != 7 || r.Stats().Calls != 0 {
		t.Errorf("done %d, %v, %+v", *done, c.Err, r.Stats())
	}
}

// A call without a session is never sent again once it may have happened, whatever becomes of its leader.
func TestWithoutSession(t *testing.T) {
	for name, ends := range map[string]func(*Router, *taker, *taker){
		"lost":    func(_ *Router, a, _ *taker) { a.last().c.Lost(2*ms, a.last().number, true, errors.New("reset")) },
		"unknown": func(_ *Router, a, _ *taker) { a.answer(2*ms, doubt()) },
		"broken": func(_ *Router, a, _ *taker) {
			a.answer(2*ms, &core.Error{Kind: core.ErrBroken, Code: core.CodeStorage})
		},
		"another term": func(r *Router, _, b *taker) { r.Learn(2*ms, b, 9) },
		"close":        func(r *Router, _, _ *taker) { r.Close(refusal(core.CodeClosed)) },
		"the stream said not proposed": func(_ *Router, a, _ *taker) {
			a.last().c.Lost(2*ms, a.last().number, true, refusal(core.CodeClosed))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, a, b := newPair(Config{})
			r.Learn(0, a, 1)
			c, done := call(50*ms, 0)
			r.Submit(0, c)
			ends(r, a, b)
			for now := 3 * ms; now < 60*ms; now += ms {
				r.Learn(now, b, core.Term(10+now))
				r.Tick(now)
			}
			kind := core.ErrUnknown
			if name == "broken" {
				kind = core.ErrBroken
			}
			wantKind(t, c, done, kind)
			if len(a.got)+len(b.got) != 1 {
				t.Errorf("it was sent %d times", len(a.got)+len(b.got))
			}
		})
	}
}

// With a session it is sent again, and what an earlier attempt still says counts for nothing.
func TestWithSession(t *testing.T) {
	r, a, b := newPair(Config{})
	r.Learn(0, a, 1)
	c, done := call(1000*ms, 5)
	mark := uint64(0)
	c.Mark = func(*Call) uint64 { mark++; return mark }
	r.Submit(0, c)
	first := a.last()
	r.Learn(ms, b, 2)
	if len(b.got) != 1 || c.Acknowledged != 2 {
		t.Fatalf("sent to the new leader %d times, acknowledges %d", len(b.got), c.Acknowledged)
	}
	c.Answer(2*ms, first.number, core.Result{}, refusal(core.CodeNotLeader))
	c.Lost(2*ms, first.number, true, nil)
	if len(a.got) != 1 || len(b.got) != 1 || *done != 0 {
		t.Fatal("an answer to an earlier attempt was taken")
	}
	b.answer(3*ms, nil)
	b.answer(3*ms, nil)
	if *done != 1 || c.Err != nil {
		t.Errorf("done %d, %v", *done, c.Err)
	}
}

// Whatever ends a call that may have happened does not say that it did not.
func TestDoubtStays(t *testing.T) {
	expired, acked := refusal(core.CodeSessionExpired), refusal(core.CodeSequenceAcked)
	for name, err := range map[string]error{
		"not leader": refusal(core.CodeNotLeader), "too large": refusal(core.CodeCommandTooLarge), "overloaded": refusal(core.CodeOverloaded), "answer": refusal(core.CodeAnswerTooLarge),
		"expired": expired, "acknowledged": acked, "too high": refusal(core.CodeSequenceTooHigh), "silence": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r, a, b := newPair(Config{})
			r.Learn(0, a, 1)
			c, done := call(200*ms, 5)
			r.Submit(0, c)
			a.answer(ms, doubt())
			r.Learn(ms, b, 2)
			for now := ms; now < 205*ms; now += ms {
				r.Tick(now)
				if len(b.got) > 0 && *done == 0 && err != nil {
					b.answer(now, err)
					r.Learn(now, b, 2)
				}
			}
			wantKind(t, c, done, core.ErrUnknown)
			if len(b.got) == 0 {
				t.Error("it was not sent again")
			}
		})
	}
	// Without a doubt they are what they say.
	r, a, _ := newPair(Config{})
	r.Learn(0, a, 1)
	c, done := call(200*ms, 5)
	r.Submit(0, c)
	a.answer(ms, expired)
	wantKind(t, c, done, core.ErrNotProposed)
	// What asking again does not help is told at once.
	for _, code := range []core.Code{core.CodeCommandTooLarge, core.CodeTooManyCommands, core.CodeBadRequest, core.CodeForbidden} {
		c, done := call(200*ms, 5)
		r.Submit(0, c)
		a.answer(ms, refusal(code))
		wantKind(t, c, done, core.ErrNotProposed)
	}
}

// A router that is closed is so for good: what may have happened ends as unknown, and everything else as not proposed, also what comes later. Nothing is sent any more.
//
// Mutations with which it was seen to fail: what was sent counts as not happened; what comes later is sent.
func TestCloseIsForGood(t *testing.T) {
	r, a, _ := newPair(Config{})
	parked, parkedDone := call(200*ms, 5)
	r.Submit(0, parked) // nobody leads
	a.deaf = true
	r.Learn(0, a, 1)
	a.deaf = false
	sent, sentDone := call(200*ms, 6)
	r.Submit(0, sent)
	if len(a.got) != 1 || r.Stats().Waiting != 1 {
		t.Fatalf("%d sent, %+v", len(a.got), r.Stats())
	}
	r.Close(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeSessionExpired})
	wantKind(t, parked, parkedDone, core.ErrNotProposed)
	wantKind(t, sent, sentDone, core.ErrUnknown)
	late, lateDone := call(200*ms, 6)
	r.Submit(ms, late)
	wantKind(t, late, lateDone, core.ErrNotProposed)
	a.answer(ms, nil)
	r.Up(ms)
	r.Tick(100 * ms)
	if st := r.Stats(); len(a.got) != 1 || *sentDone != 1 || st.Waiting != 0 || st.Calls != 0 || st.WaitingBytes != 0 {
		t.Errorf("%d sent, %+v", len(a.got), st)
	}
}

// A doubt that comes with a code that is final by itself is still one, and a call that may be repeated is.
func TestUnknownIsNotFinal(t *testing.T) {
	r, a, b := newPair(Config{})
	r.Learn(0, a, 1)
	c, done := call(200*ms, 5)
	r.Submit(0, c)
	a.answer(ms, &core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded})
	r.Learn(ms, b, 2)
	r.Tick(150 * ms)
	if *done != 0 || len(b.got) != 1 {
		t.Errorf("done %d times, sent again %d times (%v)", *done, len(b.got), c.Err)
	}
}

// A read that any replica may answer leaves a leader that refuses it, as it leaves, or has no such shard: where anybody is asked, the leader is asked first.
//
// Mutation with which it was seen to fail: only linearizable calls make the router forget who leads.
func TestReadsLeaveALeader(t *testing.T) {
	for _, level := range []core.Level{core.Stale, core.ReadIndex, core.AtToken} {
		for _, code := range []core.Code{core.CodeClosed, core.CodeNoShard, core.CodeRemoved} {
			r, old, fresh := newPair(Config{Any: true})
			r.Targets(0, []Target{old})
			first, _ := call(1000*ms, 1)
			r.Submit(0, first)
			old.answer(0, nil)
			r.Targets(0, []Target{fresh}) // as the other leaves, or is not one of those that the client was given
			done := 0
			c := &Call{Kind: Read, Level: level, Shard: 1, Deadline: 1000 * ms, Done: func(*Call) { done++ }}
			r.Submit(0, c)
			for now, asked := int64(0), 1; now < 500*ms && len(fresh.got) == 0; now += ms {
				if len(old.got) > asked {
					asked = len(old.got)
					old.answer(now, refusal(code))
				}
				r.Tick(now)
			}
			if len(old.got) != 2 || len(fresh.got) != 1 {
				t.Fatalf("%v, %s: the one that refuses was asked %d times, the other %d times", level, code, len(old.got)-1, len(fresh.got))
			}
			fresh.answer(500*ms, nil)
			if done != 1 || c.Err != nil {
				t.Errorf("%v, %s: %d, %v", level, code, done, c.Err)
			}
		}
	}
}

// A call that comes after its deadline is not sent to anybody, so that nothing is in doubt.
//
// Mutation with which it was seen to fail: it is sent.
func TestTooLateToAsk(t *testing.T) {
	r, a, b := newPair(Config{})
	r.Learn(0, a, 1)
	for _, deadline := range []int64{9 * ms, 10 * ms} {
		c, done := call(deadline, 5)
		r.Submit(10*ms, c)
		wantKind(t, c, done, core.ErrNotProposed)
	}
	if len(a.got)+len(b.got) != 0 || r.Stats().Calls != 0 {
		t.Errorf("%d sent, %+v", len(a.got)+len(b.got), r.Stats())
	}
}

// Without a deadline's help nothing is said to be certain that is not: openings and closings count, too.
func TestExpire(t *testing.T) {
	for kind, want := range map[Kind]error{Submit: core.ErrUnknown, OpenSession: core.ErrUnknown, CloseSession: core.ErrUnknown, Read: core.ErrNotProposed} {
		r, a, _ := newPair(Config{})
		r.Learn(0, a, 1)
		c, done := call(50*ms, 5)
		c.Kind = kind
		r.Submit(0, c)
		r.Tick(49 * ms)
		if *done != 0 {
			t.Fatal("too early")
		}
		r.Tick(50 * ms)
		wantKind(t, c, done, want)
	}
	r, _, _ := newPair(Config{})
	c, done := call(50*ms, 5)
	r.Submit(0, c)
	r.Tick(50 * ms)
	wantKind(t, c, done, core.ErrNotProposed)
	if s := r.Stats(); s.Waiting != 0 || s.WaitingBytes != 0 {
		t.Errorf("%+v", s)
	}
}

// More calls than may wait are refused, and say so; those that a leader had taken wait when it goes.
func TestBoundedWaiting(t *testing.T) {
	for name, cfg := range map[string]Config{"count": {MaxWaiting: 10}, "bytes": {MaxWaitingBytes: 10 * 89}} {
		r, a, b := newPair(cfg)
		var calls []*Call
		var dones []*int
		submit := func(n int) {
			for range n {
				c, done := call(1000*ms, 5)
				calls, dones = append(calls, c), append(dones, done)
				r.Submit(0, c)
			}
		}
		submit(15)
		if s := r.Stats(); s.Waiting != 10 || s.Refused != 5 {
			t.Fatalf("%s: %+v", name, s)
		}
		for i := 10; i < 15; i++ {
			wantKind(t, calls[i], dones[i], core.ErrNotProposed)
			if e := calls[i].Err.(*core.Error); e.Code != core.CodeOverloaded || e.RetryAfter <= 0 {
				t.Errorf("%s: %v", name, e)
			}
		}
		r.Learn(0, a, 1)
		submit(20)
		if len(a.got) != 30 {
			t.Fatalf("%s: %d sent", name, len(a.got))
		}
		b.deaf = true
		r.Learn(0, b, 2) // all 30 are in doubt, and wait
		if s := r.Stats(); s.Waiting != 30 || s.Refused != 5 {
			t.Errorf("%s: %+v", name, s)
		}
		b.deaf = false
		r.Up(ms)
		if len(b.got) != 30 || r.Stats().WaitingBytes != 0 {
			t.Errorf("%s: %d sent again, %+v", name, len(b.got), r.Stats())
		}
	}
}

// A leader that has no room for a call gets it soon after.
func TestRoom(t *testing.T) {
	r, a, _ := newPair(Config{Lead: func() { t.Error("a leader is known") }})
	r.Learn(0, a, 1)
	a.deaf = true
	c, _ := call(1000*ms, 5)
	r.Submit(0, c)
	a.deaf = false
	for now := int64(0); now <= 10*ms; now += 5 * ms {
		r.Tick(now)
	}
	if len(a.got) != 1 {
		t.Error("not sent within 10 ms")
	}
}

// Nobody's word takes a shard away for ever: who is said to lead, in whatever term, and denies it, is not believed to any more.
func TestLiar(t *testing.T) {
	r, liar, leader := newPair(Config{})
	r.Learn(0, leader, 5)
	r.Learn(0, liar, 1<<60)
	c, done := call(1000*ms, 5)
	r.Submit(0, c)
	if len(liar.got) != 1 {
		t.Fatal("the higher term is believed first")
	}
	liar.answer(ms, refusal(core.CodeNotLeader))
	for now := ms; now < 20*ms && len(leader.got) == 0; now += ms {
		r.Learn(now, leader, 5) // both say again what they said
		r.Learn(now, liar, 1<<60)
		r.Tick(now)
	}
	if len(leader.got) != 1 || len(liar.got) != 1 {
		t.Fatalf("the leader was asked %d times, the liar %d times", len(leader.got), len(liar.got))
	}
	leader.answer(20*ms, nil)
	if *done != 1 || c.Err != nil {
		t.Errorf("%d %v", *done, c.Err)
	}
	// What was a lie may come true.
	r.Down(leader)
	if !r.Learn(1000*ms, liar, 1<<60) {
		t.Error("a hint that was wrong once is never believed again")
	}
}

// A refusal from before the election says nothing about the one who was elected.
func TestLateRefusal(t *testing.T) {
	r, a, _ := newPair(Config{})
	c, _ := call(1000*ms, 5)
	r.Learn(0, a, 1)
	r.Submit(0, c)
	r.Learn(ms, a, 2) // elected again, which the answer on its way does not know
	a.answer(2*ms, refusal(core.CodeNoLeader))
	if !r.Learn(3*ms, a, 2) {
		t.Fatal("the hint is not taken")
	}
	for now := 3 * ms; now < 20*ms; now += ms {
		r.Tick(now)
	}
	if len(a.got) != 2 {
		t.Errorf("sent %d times", len(a.got))
	}
}

// Replicas that point at each other are not asked without a pause.
func TestBounces(t *testing.T) {
	r, a, b := newPair(Config{})
	r.Learn(0, a, 1)
	c, _ := call(1000*ms, 5)
	r.Submit(0, c)
	for range 100 {
		for _, x := range []*taker{a, b} {
			if len(x.got) > 0 && x.last().number == c.attempt && !c.parked {
				e := refusal(core.CodeNotLeader)
				e.Leader = core.NodeID(1)
				if x == a {
					e.Leader = 2
				}
				x.answer(ms, e)
			}
		}
	}
	if n := len(a.got) + len(b.got); n > maxBounces+2 {
		t.Errorf("%d attempts in one instant", n)
	}
}

// A read that any replica may answer goes to all of them in turn, on to the next when one fails, and to the leader when no others are known.
func TestSpread(t *testing.T) {
	r, a, b := newPair(Config{})
	read := func() (*Call, *int) {
		c, done := call(1000*ms, 0)
		c.Kind, c.Level = Read, core.Stale
		r.Submit(0, c)
		return c, done
	}
	for range 10 {
		read()
	}
	if len(a.got) != 5 || len(b.got) != 5 {
		t.Errorf("%d and %d", len(a.got), len(b.got))
	}
	c, done := read()
	x, y := a, b
	if b.last().c == c {
		x, y = b, a
	}
	x.answer(0, doubt())
	if y.last().c != c {
		t.Fatal("not sent to the other")
	}
	y.answer(0, nil)
	if *done != 1 || c.Err != nil {
		t.Error(*done, c.Err)
	}
	r.Targets(0, nil)
	r.Learn(0, a, 1)
	if c, _ = read(); a.last().c != c {
		t.Error("not sent to the leader")
	}
}

// resend of more than may wait once walked off the ring of calls.
func TestResendAll(t *testing.T) {
	r, a, b := newPair(Config{MaxWaiting: 1})
	r.Learn(0, a, 1)
	for range 5 {
		c, _ := call(1000*ms, 5)
		r.Submit(0, c)
	}
	b.deaf = true
	r.Learn(0, b, 2)
	r.Close(refusal(core.CodeClosed))
	if s := r.Stats(); s.Calls != 0 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	c, done := call(1000*ms, 5)
	r.Submit(0, c)
	wantKind(t, c, done, core.ErrNotProposed)
}

// The model: targets that answer, lose, lie about leaders and are late, under one clock. What they really do is known.
type world struct {
	t      *testing.T
	r      *rand.Rand
	router *Router
	now    int64
	nodes  []*member
	leader *member
	later  []happening
	calm   bool
}

type happening struct {
	at int64
	do func()
}

// member is a node of the model.
type member struct {
	w    *world
	id   core.NodeID
	down bool
}

// truth is what really became of a call.
type truth struct {
	c        *Call
	executed int
	open     int // attempts that may still happen, or have and said nothing
	done     int
	begun    int64
	decided  bool // by a session that knows it
}

var truths = map[*Call]*truth{} // of one test at a time

func (w *world) after(d int64, do func()) { w.later = append(w.later, happening{w.now + d, do}) }

func (m *member) Send(c *Call, number uint32) bool {
	w, tr := m.w, truths[c]
	if m.down || w.r.IntN(20) == 0 && !w.calm {
		return false
	}
	if tr.done > 0 {
		w.t.Errorf("a call is sent after its end")
	}
	if c.Kind == Submit && c.Session == 0 && (tr.open > 0 || tr.executed > 0) {
		w.t.Errorf("a call without a session is sent again, and %d attempts may have happened", tr.open+tr.executed)
	}
	tr.open++
	delay := 1 + w.r.Int64N(20*ms)
	reply := func(extra int64, err error) {
		w.after(extra, func() { c.Answer(w.now, number, core.Result{Index: 1}, err) })
		if w.r.IntN(10) == 0 { // once more
			w.after(extra+w.r.Int64N(50*ms), func() { c.Answer(w.now, number, core.Result{Index: 1}, err) })
		}
	}
	kind := w.r.IntN(10)
	if w.calm {
		kind = 9
	}
	execute := func() {
		if c.Kind == Submit && (c.Session == 0 || !tr.decided) {
			tr.executed++
			tr.decided = true
		}
	}
	w.after(delay, func() {
		switch {
		case kind == 0: // not sent
			tr.open--
			c.Lost(w.now, number, false, refusal(core.CodeClosed))
		case kind == 1: // lost before it came, or after
			if w.r.IntN(2) == 0 {
				execute()
			}
			c.Lost(w.now, number, true, refusal(core.CodeClosed))
		case kind == 2: // lost, and happens much later
			c.Lost(w.now, number, true, nil)
			w.after(w.r.Int64N(200*ms), execute)
		case kind == 3: // for ever silent
			if w.r.IntN(2) == 0 {
				execute()
			}
		case kind == 4:
			reply(w.r.Int64N(5*ms), doubt())
		case m != w.leader && !c.anywhere() || kind == 5:
			tr.open--
			e := refusal([]core.Code{core.CodeNotLeader, core.CodeNoLeader, core.CodeTransfer, core.CodeNoShard}[w.r.IntN(4)])
			if w.calm {
				e.Code = core.CodeNotLeader
			}
			if w.r.IntN(2) == 0 {
				e.Leader = core.NodeID(1 + w.r.IntN(len(w.nodes)))
			}
			reply(w.r.Int64N(5*ms), e)
		case kind == 6 && c.Session != 0:
			if tr.executed == 0 {
				tr.open--
			}
			reply(w.r.Int64N(5*ms), refusal(core.CodeSessionExpired))
		case kind == 7:
			tr.open--
			reply(w.r.Int64N(5*ms), refusal(core.CodeOverloaded))
		default:
			execute()
			reply(w.r.Int64N(5*ms), nil)
		}
	})
	return true
}

func (w *world) submit() {
	c := &Call{Shard: 1, Kind: Submit, Commands: [][]byte{make([]byte, w.r.IntN(100))}}
	switch w.r.IntN(6) {
	case 0:
		c.Kind, c.Level = Read, core.Level(w.r.IntN(4))
	case 1:
		c.Kind = OpenSession
	case 2, 3:
		c.Session, c.Sequence = 7, 1
	}
	tr := &truth{c: c, begun: w.now}
	truths[c] = tr
	c.Deadline = w.now + w.r.Int64N(400*ms)
	if w.calm {
		c.Deadline = w.now + 2000*ms
	}
	c.Done = func(*Call) {
		tr.done++
		if tr.done > 1 {
			w.t.Errorf("Done was called %d times", tr.done)
		}
		if late := w.now - max(c.Deadline, tr.begun); late > 5*ms {
			w.t.Errorf("a call ended %v after its deadline", time.Duration(late))
		}
		// Whoever is told that it did not happen was told the truth: nothing has, and nothing can any more.
		not := errors.Is(c.Err, core.ErrNotProposed) || errors.Is(c.Err, core.ErrRejected)
		if not && c.changes() && (tr.executed > 0 || tr.open > 0) {
			w.t.Errorf("%v call is told %v: it was executed %d times, %d attempts may be yet", c.Kind, c.Err, tr.executed, tr.open)
		}
		if c.Err == nil && c.Kind == Submit && tr.executed == 0 {
			w.t.Errorf("a call is told that it happened")
		}
		if errors.Is(c.Err, core.ErrUnknown) && !c.changes() {
			w.t.Errorf("of a read is said: %v", c.Err)
		}
	}
	w.router.Submit(w.now, c)
}

func (w *world) step() {
	w.now += ms
	for i := 0; i < len(w.later); i++ {
		if h := w.later[i]; h.at <= w.now {
			w.later[i] = w.later[len(w.later)-1]
			w.later = w.later[:len(w.later)-1]
			i--
			h.do()
		}
	}
	if s := w.router.Stats(); s.Waiting > s.Calls {
		w.t.Errorf("%+v", s)
	}
	if w.now%(5*ms) == 0 {
		w.router.Tick(w.now)
	}
}

func TestModel(t *testing.T) {
	seeds := uint64(300)
	if testing.Short() {
		seeds = 60
	}
	for seed := range seeds {
		w := &world{t: t, r: rand.New(rand.NewPCG(seed, 1))}
		truths = map[*Call]*truth{}
		for i := range 3 {
			w.nodes = append(w.nodes, &member{w: w, id: core.NodeID(i + 1)})
		}
		w.leader = w.nodes[0]
		lead := func() {}
		w.router = New(Config{Shard: 1, Any: seed%4 == 0, MaxWaiting: 20,
			Resolve: func(e *core.Error) Target {
				if e.Leader == 0 {
					return nil
				}
				return w.nodes[e.Leader-1]
			}, Lead: func() { lead() }})
		var targets []Target
		for _, m := range w.nodes {
			targets = append(targets, m)
		}
		w.router.Targets(0, targets)
		term := core.Term(1)
		tell := func() {
			about, in := w.leader, term
			if !w.calm && w.r.IntN(3) == 0 { // a lie, or old news
				about, in = w.nodes[w.r.IntN(3)], term+core.Term(w.r.IntN(5))-2
			}
			w.router.Learn(w.now, about, in)
		}
		asked := false
		lead = func() {
			if !asked {
				asked = true
				w.after(25*ms, func() { asked = false; tell() })
			}
		}
		for w.now < 1500*ms {
			switch w.r.IntN(30) {
			case 0:
				w.leader = w.nodes[w.r.IntN(3)]
				term++
			case 1:
				tell()
			case 2:
				m := w.nodes[w.r.IntN(3)]
				if m.down = !m.down; m.down {
					w.router.Down(m)
				} else {
					w.router.Up(w.now)
				}
			case 3, 4, 5, 6, 7, 8:
				w.submit()
			}
			w.step()
		}
		// Now nothing fails any more: whoever asks is answered, and soon.
		w.calm = true
		term += 10
		for _, m := range w.nodes {
			m.down = false
		}
		w.router.Up(w.now)
		calmAt := w.now
		for w.now < calmAt+1000*ms {
			if w.now == calmAt+500*ms {
				for range 10 {
					w.submit()
				}
			}
			w.step()
		}
		for _, tr := range truths {
			switch {
			case tr.done == 0:
				t.Errorf("a call has no end: %+v", tr.c)
			case tr.begun >= calmAt && tr.c.Err != nil:
				t.Errorf("without a fault: %v", tr.c.Err)
			}
		}
		if s := w.router.Stats(); s.Calls != 0 || s.Waiting != 0 || s.WaitingBytes != 0 {
			t.Errorf("at the end: %+v", s)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// What is said of a call has the words of the last refusal, and not its kind.
func TestWords(t *testing.T) {
	r, a, _ := newPair(Config{})
	r.Learn(0, a, 1)
	c, done := call(20*ms, 5)
	r.Submit(0, c)
	a.answer(0, doubt())
	r.Learn(0, a, 1)
	r.Tick(5 * ms)
	a.answer(6*ms, refusal("odd"))
	r.Tick(20 * ms)
	wantKind(t, c, done, core.ErrUnknown)
	if !strings.Contains(fmt.Sprint(c.Err), "odd") {
		t.Error(c.Err)
	}
}

// What a call waited for is in its error: the code of the last refusal, when to come back, and whether anything may have happened.
func TestLateSaysWhy(t *testing.T) {
	low := refusal(core.CodeDiskLow)
	low.RetryAfter = 30 * time.Millisecond
	for name, tt := range map[string]struct {
		answers []error
		kind    error
		code    core.Code
		after   time.Duration
	}{
		"nothing":                 {nil, core.ErrUnknown, core.CodeCancelled, 0},
		"no leader":               {[]error{refusal(core.CodeNoLeader)}, core.ErrNotProposed, core.CodeNoLeader, 0},
		"in doubt, then low":      {[]error{doubt(), low}, core.ErrUnknown, core.CodeDiskLow, low.RetryAfter},
		"in doubt, then bad":      {[]error{doubt(), refusal(core.CodeBadRequest)}, core.ErrUnknown, core.CodeBadRequest, 0},
		"in doubt, then too high": {[]error{doubt(), refusal(core.CodeSequenceTooHigh)}, core.ErrUnknown, core.CodeCancelled, 0},
	} {
		r, a, _ := newPair(Config{})
		r.Learn(0, a, 1)
		c, done := call(500*ms, 5)
		r.Submit(0, c)
		now := int64(0)
		for i, err := range tt.answers {
			a.answer(now, err)
			if i+1 < len(tt.answers) {
				now += 200 * ms
				r.Learn(now, a, core.Term(i+2))
				r.Tick(now)
			}
		}
		r.Tick(500 * ms)
		wantKind(t, c, done, tt.kind)
		if e, _ := core.Verdict(c.Err); e == nil || e.Code != tt.code || e.RetryAfter != tt.after || !c.Late {
			t.Errorf("%s: %v, late: %v", name, c.Err, c.Late)
		}
	}
	// Refused, and asked for again later, when nobody leads any more.
	r, a, _ := newPair(Config{})
	r.Learn(0, a, 1)
	first, _ := call(100*ms, 5)
	r.Submit(0, first)
	a.answer(0, low)
	if first.Late || !errors.Is(first.Err, low) {
		t.Fatalf("refused with %v, late: %v", first.Err, first.Late)
	}
	r.Down(a)
	again := first.Again()
	ended := new(int)
	again.Done = func(*Call) { *ended++ }
	r.Submit(30*ms, again)
	r.Tick(100 * ms)
	wantKind(t, again, ended, core.ErrNotProposed)
	if e, _ := core.Verdict(again.Err); e.Code != core.CodeDiskLow || e.RetryAfter != low.RetryAfter {
		t.Error(again.Err)
	}
}

// A call that only waited says for what: a leader, or anybody, and that its deadline has ended it. What may have happened is not made certain by that.
//
// Mutations with which it was seen to fail: only the last answer is a reason; the deadline is no cause; whoever is parked waits for a leader; the kind is that of the reason.
func TestLateWaitedForALeader(t *testing.T) {
	for name, tt := range map[string]struct {
		any   bool
		call  Call
		doubt bool // the leader had it, and has gone
		kind  error
		code  core.Code
		words string
	}{
		"submit":          {call: Call{Kind: Submit, Session: 5}, kind: core.ErrNotProposed, code: core.CodeNoLeader, words: "lead shard 1"},
		"session":         {call: Call{Kind: OpenSession}, kind: core.ErrNotProposed, code: core.CodeNoLeader, words: "lead shard 1"},
		"read":            {call: Call{Kind: Read, Level: core.Linearizable}, kind: core.ErrNotProposed, code: core.CodeNoLeader, words: "lead shard 1"},
		"in doubt":        {call: Call{Kind: Submit, Session: 5}, doubt: true, kind: core.ErrUnknown, code: core.CodeNoLeader, words: "lead shard 1"},
		"any replica":     {call: Call{Kind: Read, Level: core.Stale}, kind: core.ErrNotProposed, code: core.CodeCancelled, words: "nobody is reached"},
		"through proxies": {any: true, call: Call{Kind: Submit, Session: 5}, kind: core.ErrNotProposed, code: core.CodeCancelled, words: "nobody is reached"},
	} {
		t.Run(name, func(t *testing.T) {
			r, a, b := newPair(Config{Any: tt.any})
			c, done := &tt.call, 0
			c.Deadline, c.Done = 500*ms, func(*Call) { done++ }
			b.deaf = true
			if a.deaf = !tt.doubt; tt.doubt {
				r.Learn(0, a, 1)
			}
			r.Submit(0, c)
			if tt.doubt { // its successor is known, and gone before it could be asked
				r.Learn(ms, b, 2)
				r.Down(b)
			}
			r.Tick(500 * ms)
			wantKind(t, c, &done, tt.kind)
			if e, _ := core.Verdict(c.Err); e == nil || e.Code != tt.code || !strings.Contains(e.Message, tt.words) || !errors.Is(c.Err, context.DeadlineExceeded) {
				t.Error(c.Err)
			}
		})
	}
}

// Whoever asked has the same deadline: a call that waits for a leader ends a little before it, and what somebody has does not.
//
// Mutations with which it was seen to fail: Notice counts for nothing; it counts for what was sent; it is not looked at when a call is put off.
func TestNotice(t *testing.T) {
	for name, tt := range map[string]struct {
		sent, put bool
		at        int64
	}{"waits": {at: 480 * ms}, "sent": {sent: true, at: 500 * ms}, "put off": {sent: true, put: true, at: 480 * ms}} {
		r, a, b := newPair(Config{Missing: func() string { return "node 7 is away" }})
		b.deaf = true
		if tt.sent {
			r.Learn(0, a, 1)
		}
		c, done := call(500*ms, 5)
		c.Notice = NoticeOf(500 * ms)
		r.Submit(0, c)
		other, _ := call(490*ms, 5) // has the clock look in between
		r.Submit(0, other)
		if tt.put {
			r.Tick(478 * ms)
			a.got = a.got[:1]
			a.answer(478*ms, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNoLeader, RetryAfter: time.Second})
		}
		a.deaf = true
		at := int64(0)
		for *done == 0 && at <= 500*ms { // as the clock has it
			at = r.Due()
			r.Tick(at)
		}
		if *done != 1 || at != tt.at {
			t.Fatalf("%s: it has ended %d times, at %d", name, *done, at)
		}
		if name == "waits" && !strings.Contains(c.Err.Error(), "node 7 is away") {
			t.Error(c.Err)
		}
	}
	for wait, want := range map[int64]int64{-5: 0, 0: 0, 40 * ms: 10 * ms, 80 * ms: 20 * ms, int64(MaxPatience): 20 * ms} {
		if got := NoticeOf(wait); got != want {
			t.Errorf("of %d: %d", wait, got)
		}
	}
}

// A call whose time is over says if a leader had it to the end: not if that one does not lead any more, nor if the call waited.
func TestHeld(t *testing.T) {
	r, a, b := newPair(Config{})
	r.Learn(0, a, 1)
	had, _ := call(100*ms, 0)
	r.Submit(0, had)
	r.Tick(100 * ms)
	if !had.Held || !errors.Is(had.Err, core.ErrUnknown) {
		t.Errorf("the leader had it: %v, %v", had.Held, had.Err)
	}
	overtaken, _ := call(200*ms, 0)
	r.Submit(100*ms, overtaken)
	r.Learn(110*ms, b, 2)
	r.Tick(200 * ms)
	if overtaken.Held || !errors.Is(overtaken.Err, core.ErrUnknown) {
		t.Errorf("another leads: %v, %v", overtaken.Held, overtaken.Err)
	}
	r.Down(b)
	waited, _ := call(300*ms, 0)
	r.Submit(200*ms, waited)
	r.Tick(300 * ms)
	if waited.Held || !errors.Is(waited.Err, core.ErrNotProposed) {
		t.Errorf("it waited: %v, %v", waited.Held, waited.Err)
	}
}
