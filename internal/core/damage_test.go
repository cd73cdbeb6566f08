package core

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// meet tells the replica of damage that nobody has read.
func (h *hand) meet() {
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Unreadable(1, errors.New("damaged, for a test")) })
	h.settle(3)
}

// Node 1 is gone for good, node 3 lacks what node 1 and this leader have acknowledged: neither could a peer mend this replica, nor be elected without it.
//
// Mutations with which it was seen to fail: it stops at once; expendable counts the replica itself; passOn hands leadership to who lacks something.
func TestUnreadDamageKeepsTheQuorum(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("x")
	h.deaf = map[uint64]bool{3: true}
	h.submit("y")
	h.gone, h.away = map[uint64]bool{1: true}, map[NodeID]bool{1: true}
	h.settle(20)
	if h.replica().lead == nil {
		t.Fatal("it does not lead any more")
	}
	h.meet()
	h.settle(60)
	var s Status
	h.w.Look(1, &s)
	if h.stopped != nil || s.Role != "leader" || s.Damage == nil || s.Err != nil {
		t.Fatalf("stopped: %v, %s, says of the damage: %v, %v", h.stopped, s.Role, s.Damage, s.Err)
	}
	if h.replica().unread.handedIn != 0 {
		t.Error("leadership was to go to one that lacks something: meanwhile nothing is decided")
	}
	applied := h.replica().applied
	h.deaf = nil
	h.submit("z")
	if h.replica().applied == applied || h.stopped != nil {
		t.Fatalf("applied %d, as before: it does not go on (%v)", applied, h.stopped)
	}
	h.gone, h.away = nil, nil // back, before leadership could be handed over
	h.settle(40)
	if h.stopped == nil || h.stopped.Code != CodeStorage {
		t.Errorf("everybody is back, and it goes on with its damage (%v)", h.stopped)
	}
}

// A leader that may not stop hands over to one that has everything, so that reads do not meet the damage.
//
// Mutation with which it was seen to fail: no passOn.
func TestUnreadDamageHandsOver(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("x")
	h.gone, h.away = map[uint64]bool{1: true}, map[NodeID]bool{1: true}
	h.settle(20)
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Unreadable(1, errors.New("damaged, for a test")) })
	handed := 0
	for range 60 {
		h.in.Ticks = 1
		h.sync()
		h.pass(50)
		sent := h.sent
		h.sent = nil
		for i := range sent {
			if m := &sent[i]; m.Type == raftpb.MsgTimeoutNow && m.To == 3 {
				handed++
			}
			h.answer(&sent[i])
		}
	}
	if handed != 1 || h.stopped != nil {
		t.Errorf("leadership was handed over %d times, stopped: %v", handed, h.stopped)
	}
	// Its follower, node 1 being away, has a majority only with it.
	term := uint64(h.replica().raftTerm) + 1
	lead := func() {
		h.message(raftpb.Message{From: 3, Type: raftpb.MsgHeartbeat, Term: term})
		h.settle(2)
	}
	for range 20 {
		lead()
	}
	if r := h.replica(); h.stopped != nil || r.leader != 3 {
		t.Fatalf("it follows node %d, stopped: %v", r.leader, h.stopped)
	}
	h.away = nil
	lead()
	if h.stopped == nil {
		t.Error("the other two nodes are alive, one of them leads, and it goes on with its damage")
	}
}

// The only voter goes on, however long; whoever reads the damage is told, and ends that.
func TestUnreadDamageOfTheOnlyVoter(t *testing.T) {
	h := newHand(t, Limits{}, 2)
	h.lead()
	h.submit("x")
	h.meet()
	h.settle(200)
	h.submit("y")
	if r := h.replica(); h.stopped != nil || r.lead == nil || r.unread.logged == 0 {
		t.Fatalf("stopped: %v", h.stopped)
	}
	h.replica().unreadable.Store(broken(CodeStorage, nil, "a query has read it"))
	h.settle(2)
	if h.stopped == nil {
		t.Error("a query has read the damage, and it goes on")
	}
}

// A follower that has not heard of a leader has a vote that may be needed; a learner has none.
func TestUnreadDamageWithoutALeader(t *testing.T) {
	h := newHand(t, Limits{})
	h.gone = map[uint64]bool{1: true, 3: true} // nobody is elected
	h.meet()
	h.settle(60)
	if h.stopped != nil {
		t.Error("it stopped where it may be needed for an election")
	}
	h = newHand(t, Limits{}, 1, 3)
	h.meet()
	if h.stopped == nil {
		t.Error("one that has no vote goes on with its damage")
	}
}

// A snapshot takes the place of the damaged table.
//
// Mutation with which it was seen to fail: adopt does not forget the damage.
func TestUnreadDamageIsReplaced(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Unreadable(1, errors.New("damaged, for a test")) })
	h.offer(s, 7)
	h.finishInstall(nil)
	h.settle(1)
	if r := h.replica(); h.stopped != nil || r.applied == 0 || r.unread != nil {
		t.Errorf("applied %d, stopped: %v, the damage is still there: %v", r.applied, h.stopped, r.unread != nil)
	}
}
