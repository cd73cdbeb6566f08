package core

import (
	"errors"
	"math"
	"slices"
	"testing"
	"time"

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

// age asks for a stale read, and how old its answer may be.
func (h *hand) age() time.Duration {
	h.t.Helper()
	q := &Request{Kind: KindRead, Level: Stale, Shard: 1, Done: func(*Request) {}}
	h.in.Requests = append(h.in.Requests, q)
	h.pass(0)
	if q.Err != nil {
		h.t.Fatal(q.Err)
	}
	return q.Result.Age
}

// follow makes the replica a follower of node 1 that has applied what there is.
func (h *hand) follow() {
	h.t.Helper()
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: []raftpb.Entry{{Term: 1, Index: 1}}, Commit: 1})
	h.pass(1)
	h.sync()
	h.in.Ticks = 1 // all nodes are alive
	h.pass(1)
	if r := h.replica(); r.applied != 1 || r.leader != 1 {
		h.t.Fatalf("applied %d under %d", r.applied, r.leader)
	}
}

// restsTenHours has the replica follow node 1, and rest.
func (h *hand) restsTenHours() {
	h.t.Helper()
	h.follow()
	h.in.Quiesces = []Quiesce{{From: 1, Shard: 1, Term: 1, Last: 1}}
	h.pass(1)
	for range 10 {
		h.in.Ticks = 1
		h.pass(3600e3)
	}
}

// A follower at rest that does not hear a voter wakes, and says how old its state may be, though its leader's node goes on beating: that voter may have been
// made the leader meanwhile.
//
// Mutations with which it was seen to fail: peerSilent wakes for the leader's node only; the age is as of the leader's beat; what rest has said of the age is forgotten when it ends.
func TestRestWithoutAVoter(t *testing.T) {
	h := newHand(t, Limits{})
	h.restsTenHours()
	r := h.replica()
	if age := h.age(); !r.quiet || age != 0 {
		t.Fatalf("after ten hours at rest: quiet %v, %v old", r.quiet, age)
	}
	h.awaySince = map[NodeID]int64{3: h.now.Mono}
	h.pass(500)
	if age := h.age(); !r.quiet || age != 500*time.Millisecond {
		t.Errorf("a voter is silent for half a second: quiet %v, %v old", r.quiet, age)
	}
	h.in.Ticks = 1
	h.notes, h.noted = nil, nil
	h.pass(1000)
	if age := h.age(); r.quiet || age != 1500*time.Millisecond {
		t.Errorf("a voter is silent for 1.5 s: quiet %v, %v old", r.quiet, age)
	}
	if !slices.Equal(h.noted, []NodeID{1}) || h.notes[0].Kind != noteAwake {
		t.Errorf("told %v to %v, and the leader sleeps on", h.notes, h.noted)
	}
}

// Where a voter's connection is another one, a follower at rest wakes, although the node was hardly silent: what it had to say may have been lost. Until the leader
// has spoken, its state is as old as the last word before.
//
// Mutations with which it was seen to fail: Pass does not look at gaps; missed takes the time of the new connection; it tells nobody; it looks at the voters' nodes after the notes; it forgets a gap
// that it meets awake; who was told to rest agrees at once.
func TestGapEndsRest(t *testing.T) {
	for _, from := range []NodeID{1, 3} {
		h := newHand(t, Limits{})
		h.restsTenHours()
		h.in.Gaps = []Gap{{Peer: 4, Heard: h.now.Mono}} // no voter
		h.pass(1)
		if age := h.age(); !h.replica().quiet || age != 0 {
			t.Fatalf("a gap of somebody else: quiet %v, %v old", h.replica().quiet, age)
		}
		h.in.Gaps = []Gap{{Peer: from, Heard: h.now.Mono}}
		h.in.Notes = []Note{{From: 3, Shard: 1, Kind: noteAwake}} // that came with the new connection
		h.notes, h.noted = nil, nil
		h.pass(200)
		h.pass(100)
		if age := h.age(); h.replica().quiet || age != 300*time.Millisecond {
			t.Errorf("0.3 s after the last that was heard of node %d: quiet %v, %v old", from, h.replica().quiet, age)
		}
		if !slices.Equal(h.noted, []NodeID{1}) || h.notes[0].Kind != noteAwake {
			t.Errorf("told %v to %v", h.notes, h.noted)
		}
		h.in.Commits = []CommitNote{{From: 1, Shard: 1, Term: 1, Commit: 1, At: h.now.Mono}}
		h.pass(1)
		if age := h.age(); age != time.Millisecond {
			t.Errorf("1 ms after the leader's word: %v old", age)
		}
		// Until whoever leads has had the time to say so, it does not rest again.
		rest := func(ms int64) bool {
			h.in.Quiesces = []Quiesce{{From: 1, Shard: 1, Term: 1, Last: 1}}
			h.notes, h.noted = nil, nil
			h.pass(ms)
			return h.replica().quiet
		}
		timeout := h.replica().electionNanos() / 1e6
		h.pass(timeout)
		h.in.Gaps = []Gap{{Peer: from, Heard: h.now.Mono}}
		if rest(1) || rest(100) || !slices.Equal(h.noted, []NodeID{1}) {
			t.Errorf("a gap, and it rests right away, or says nothing: %v", h.noted)
		}
		if !rest(timeout) {
			t.Error("it does not rest any more")
		}
	}
}

// What ends the rest may be the first of much that came while the last pass took its time: that the voters were heard with it is no word for the rest of it.
//
// Mutations with which it was seen to fail: wake takes what was heard with this pass; so does missed.
func TestWakeSaysNothingOfWhatWokeIt(t *testing.T) {
	for name, wake := range map[string]func(h *hand){
		"entries": func(h *hand) {
			h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, LogTerm: 1, Index: 1, Entries: []raftpb.Entry{{Term: 1, Index: 2}}, Commit: 1})
		},
		"a note": func(h *hand) { h.in.Notes = []Note{{From: 3, Shard: 1, Kind: noteAwake}} },
		"a gap":  func(h *hand) { h.in.Gaps = []Gap{{Peer: 3, Heard: h.now.Mono + 2900e6}} },
	} {
		h := newHand(t, Limits{})
		h.restsTenHours()
		wake(h)
		h.pass(3000) // and all were heard at its end
		if age := h.age(); h.replica().quiet || age != 3*time.Second {
			t.Errorf("%s after a pass of 3 s: quiet %v, %v old", name, h.replica().quiet, age)
		}
	}
}

// Who brings the news of another leader is heard with it. That is no word for what was committed before.
//
// Mutation with which it was seen to fail: wakeFor looks at nobody's name.
func TestNewsEndsRest(t *testing.T) {
	h := newHand(t, Limits{})
	h.restsTenHours()
	h.message(raftpb.Message{From: 3, Type: raftpb.MsgHeartbeat, Term: 2, Commit: 1})
	h.pass(1)
	if age := h.age(); h.replica().quiet || age < 10*time.Hour {
		t.Errorf("after the news: quiet %v, %v old", h.replica().quiet, age)
	}
}

// Nor does it agree to rest, and the leader goes on.
//
// Mutations with which it was seen to fail: agreeToQuiesce looks at the leader's node only; it tells nobody.
func TestNoRestWithoutAVoter(t *testing.T) {
	h := newHand(t, Limits{})
	h.follow()
	h.away = map[NodeID]bool{3: true}
	h.in.Ticks, h.in.Quiesces = 1, []Quiesce{{From: 1, Shard: 1, Term: 1, Last: 1}}
	h.notes, h.noted = nil, nil
	h.pass(1)
	if h.replica().quiet || !slices.Equal(h.noted, []NodeID{1}) || h.notes[0].Kind != noteAwake {
		t.Errorf("quiet %v, told %v to %v", h.replica().quiet, h.notes, h.noted)
	}
}

// A leader's age is as of what its replicas have said: their nodes go on beating whomever they follow. Before its first entry is committed it has none, as others may have
// committed what it has not applied.
//
// Mutations with which it was seen to fail: the age is as of the nodes' beats; it is a leader's as soon as it leads; an answer is heard with the pass that takes it in, or when its node was
// last heard; whatever a replica says counts, or is an answer to this leader.
func TestAgeOfALeader(t *testing.T) {
	h := newHand(t, Limits{})
	h.deaf = map[uint64]bool{1: true, 3: true}
	h.message(raftpb.Message{Type: raftpb.MsgVote, From: 3, Term: 4, Index: 1, LogTerm: 1}) // there have been others
	h.settle(60)
	if l := h.replica().lead; l == nil || l.ready {
		t.Fatal("not elected, or ready already")
	}
	if age := h.age(); age != math.MaxInt64 {
		t.Errorf("a leader that is not ready says its state is %v old", age)
	}
	h.deaf = nil
	h.settle(4)
	h.gone = map[uint64]bool{1: true, 3: true}
	before := h.age()
	h.pass(300)
	if age := h.age(); before > 100*time.Millisecond || age != before+300*time.Millisecond {
		t.Errorf("replicas that say nothing for 0.3 s: %v old, and %v before that", age, before)
	}
	// What a long pass has kept waiting is as old as it is, although the node of who said it went on beating meanwhile.
	h.message(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: 3, Term: uint64(h.replica().raftTerm)})
	h.in.Messages[0].At = h.now.Mono + 100e6
	h.pass(400)
	if age := h.age(); age != 300*time.Millisecond {
		t.Errorf("heard 0.3 s ago: %v old", age)
	}
	// Who asks for votes may have followed another leader, which has committed what this one lacks.
	before = h.age()
	h.message(raftpb.Message{Type: raftpb.MsgPreVote, From: 3, Term: uint64(h.replica().raftTerm) + 1, Index: 9, LogTerm: 9})
	h.pass(100)
	h.message(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: 3, Term: uint64(h.replica().raftTerm) - 1})
	h.pass(300)
	if age := h.age(); age != before+400*time.Millisecond {
		t.Errorf("a vote is asked for, a former leader is answered: %v old, and %v before that", age, before)
	}
	h.replica().quiet = true
	if age := h.age(); age != 0 {
		t.Errorf("at rest, where all nodes are alive: %v old", age)
	}
}
