package core

import (
	"errors"
	"slices"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// A follower does not agree to rest under a leader whose node has fallen silent in the same pass: nothing would ever wake it.
//
// Mutation with which it was seen to fail: agreeToQuiesce does not look at the node.
func TestRestUnderASilentLeader(t *testing.T) {
	for _, silent := range []bool{false, true} {
		h := newHand(t, Limits{})
		h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: []raftpb.Entry{{Term: 1, Index: 1}}, Commit: 1})
		h.pass(1)
		h.sync()
		h.pass(1)
		h.in.Ticks = 1
		h.pass(1) // the leader's node is alive
		h.now.Mono += 3600e9
		if silent {
			h.away = map[NodeID]bool{1: true}
		}
		h.in.Ticks, h.in.Quiesces = 1, []Quiesce{{From: 1, Shard: 1, Term: 1, Last: 1}}
		h.pass(1)
		if r := h.replica(); r.applied != 1 || r.leader != 1 || r.quiet == silent {
			t.Errorf("silent %v: applied %d under %d, quiet %v", silent, r.applied, r.leader, r.quiet)
		}
	}
}

// When the replica of a leader stops, its node goes on beating: the others are told, as they may rest.
//
// Mutation with which it was seen to fail: stop tells nobody.
func TestLeaderThatStopsAtRest(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.replica().quiet = true
	h.w.Unreadable(1, errors.New("rotten"))
	h.in.Ticks = 1
	h.notes, h.noted = nil, nil
	h.pass(1)
	if h.stopped == nil || !slices.Equal(h.noted, []NodeID{1, 3}) || h.notes[0].Kind != noteAwake {
		t.Errorf("stopped with %v, told %v", h.stopped, h.notes)
	}
}
