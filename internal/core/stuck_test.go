package core

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// A leader whose flush does not end hands leadership over when it has been unable to decide for some election timeouts, and what waits for it ends as not
// proposed. When the flush ends after all, and nobody has taken over, it goes on.
//
// Mutations with which it was seen to fail: nobody looks; leadership stays; the queue is kept; calls are taken although nothing is decided.
func TestFlushThatHangs(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	h.hung = true
	for c := 'A'; c <= 'H'; c++ {
		h.submit(string(c))
	}
	r := h.replica()
	if !r.stuffed(4) {
		t.Fatal("not stuffed")
	}
	var got []error
	ask := func(q Request) {
		q.Shard, q.Done = 1, func(q *Request) { got = append(got, q.Err) }
		h.in.Requests = append(h.in.Requests, &q)
	}
	refused := func(want int) {
		t.Helper()
		if len(got) != want {
			t.Fatalf("%d calls have ended, want %d", len(got), want)
		}
		for _, err := range got {
			if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeOverloaded || !errors.Is(err, ErrNotProposed) {
				t.Errorf("got %v, want overloaded, not proposed", err)
			}
		}
		got = nil
	}
	ask(Request{Kind: KindCommand, Commands: [][]byte{[]byte("x")}})
	ask(Request{Kind: KindRead})
	h.settle(4 * r.cfg.ElectionTicks)
	if len(got) > 0 || len(h.handedTo) > 0 {
		t.Fatalf("too early: %v, handed to %v", got, h.handedTo)
	}
	h.settle(4 * r.cfg.ElectionTicks)
	refused(2)
	if len(h.handedTo) == 0 {
		t.Error("leadership stays")
	}
	ask(Request{Kind: KindCommand, Commands: [][]byte{[]byte("x")}})
	ask(Request{Kind: KindOpenSession})
	ask(Request{Kind: KindRead})
	h.pass(1)
	refused(3)
	ask(Request{Kind: KindRead, Level: Stale})
	h.pass(1)
	if len(got) != 1 || got[0] != nil {
		t.Errorf("a stale read ends with %v", got)
	}
	got = nil
	h.hung = false
	h.settle(2 * r.cfg.ElectionTicks)
	ask(Request{Kind: KindCommand, Commands: [][]byte{[]byte("x")}})
	h.settle(2)
	if r.lead == nil || len(got) != 1 || got[0] != nil {
		t.Errorf("after the flush: %v, leads %v", got, r.lead != nil)
	}
}

// The last batch of a burst is the one for which the flush has no room: nothing is left to be decided, nobody asks, and the flush hangs. Such a shard does not rest, at which nobody
// would be known to answer who could lead instead.
//
// Mutation with which it was seen to fail: proposeQuiesce does not look at the flush.
func TestFlushThatHangsAtRest(t *testing.T) {
	f := newFew(t, smallCache, 1, 2, 3)
	leader := f.leader()
	leader.hung = true
	for c := 'A'; c <= 'Z' && !leader.replica().stuffed(4); c++ {
		f.submit(string(c), 3)
	}
	r := leader.replica()
	if !r.stuffed(4) || r.lead == nil || len(r.queue) > 0 {
		t.Fatal("not as it is to be")
	}
	f.run(5 * r.cfg.ElectionTicks)
	if r.quiet {
		t.Error("it rests")
	}
	f.run(5 * r.cfg.ElectionTicks)
	if r.lead != nil {
		t.Error("leadership stays")
	}
	if ended, err := f.submit("x", 20); !ended || err != nil {
		t.Errorf("a command has ended: %v, with %v", ended, err)
	}
}

// A follower whose flush hangs takes nothing more from raft, which goes on answering heartbeats: the answers do not gather without bound. When the flush ends it follows as before.
//
// Mutations with which it was seen to fail: deaf is never true; the clock goes on while nothing is heard.
func TestFollowerWhoseFlushHangs(t *testing.T) {
	f := newFew(t, smallCache, 1, 2, 3)
	leader := f.leader()
	follower := f.others(leader)[0]
	term := leader.replica().raftTerm
	follower.hung = true
	for c := 'A'; c <= 'Z' && !follower.replica().full(); c++ {
		f.submit(string(c), 3)
	}
	f.submit("y", 3) // which it does not take, so that the shard does not rest
	f.run(2*maxUntaken*leader.replica().cfg.HeartbeatTicks + 50)
	if !follower.replica().full() {
		t.Fatal("not as it is to be")
	}
	sent := 0
	f.drops = func(from, _ NodeID, _ *raftpb.Message) bool {
		if from == follower.node {
			sent++
		}
		return false
	}
	follower.hung = false
	f.run(3)
	if sent > maxUntaken+20 || sent == 0 {
		t.Errorf("%d answers had gathered, want about %d", sent, maxUntaken)
	}
	if ended, err := f.submit("x", 40); !ended || err != nil {
		t.Errorf("a command has ended: %v, with %v", ended, err)
	}
	if r := follower.replica(); r.untaken != 0 || r.applied != leader.replica().applied || r.raftTerm != term || leader.replica().lead == nil {
		t.Errorf("%d messages are not taken; it has applied %d in term %d; the leader has %d, and was elected in term %d", r.untaken, r.applied, r.raftTerm, leader.replica().applied, term)
	}
}
