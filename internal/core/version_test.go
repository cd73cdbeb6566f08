package core

import (
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// newer is bulky in a program that can run version 2.
type newer struct{ bulky }

func (newer) MaxVersion() uint64 { return 2 }

// A shard does not rest before a version is active that all can run: those who said so long ago say it again. One member with an older program, and it may.
//
// Mutations with which it was seen to fail: the leader rests all the same; it does not wake for the last member's word; who agrees to rest says nothing.
func TestVersionsAndRest(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	r := h.replica()
	r.machine = newer{}
	says := func(version uint64, members ...NodeID) {
		for _, m := range members {
			h.in.Notes = append(h.in.Notes, Note{From: m, Shard: 1, Kind: noteVersions, A: version})
		}
		h.pass(1)
	}
	says(2, 1)
	says(0, 3)
	if r.proposeQuiesce(); !r.quiet {
		t.Error("one has an older program: no rest")
	}
	h.pass(3600e3)
	says(2, 3) // it has been restarted with the newer one
	if r.quiet || r.lead.raising != 0 {
		t.Errorf("all have said once that they can run version 2: at rest %v, version %d is on its way", r.quiet, r.lead.raising)
	}
	if r.proposeQuiesce(); r.quiet {
		t.Error("rest, and nobody has said it again")
	}
	says(2, 1, 3)
	h.settle(2)
	if r.meta.machine != 2 {
		t.Errorf("version %d is active", r.meta.machine)
	}
	if r.proposeQuiesce(); !r.quiet {
		t.Error("the version is active: no rest")
	}

	h = newHand(t, Limits{})
	h.follow()
	r = h.replica()
	r.machine, r.toldVersion = newer{}, true
	h.in.Quiesces = []Quiesce{{From: 1, Shard: 1, Term: 1, Last: 1}}
	h.notes, h.noted = nil, nil
	h.pass(1)
	if !r.quiet || !slices.Equal(h.noted, []NodeID{1}) || h.notes[0].Kind != noteVersions || h.notes[0].A != 2 {
		t.Errorf("a follower that agrees to rest (%v) says %v to %v", r.quiet, h.notes, h.noted)
	}
}

// A member that once said it can run more, and does not say so any more, does not keep the shard awake for ever: it has an older program by now, or has stopped. Nor does the word of
// another, who says it again as the shard comes to rest, wake it. The shard goes on as soon as that member says it again.
//
// Mutations with which it was seen to fail, one by one: a word is believed for ever; it is believed for a time of the clock, which goes on while the shard rests.
func TestOldWordsOfVersions(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	r := h.replica()
	r.machine = newer{}
	says := func(members ...NodeID) {
		for _, m := range members {
			h.in.Notes = append(h.in.Notes, Note{From: m, Shard: 1, Kind: noteVersions, A: 2})
		}
		h.pass(1)
	}
	says(1)
	for range 20 {
		h.settle(r.cfg.ElectionTicks)
		says(3)
	}
	if !r.quiet || r.lead == nil || r.meta.machine != 0 {
		t.Fatalf("at rest %v, leading %v, version %d is active", r.quiet, r.lead != nil, r.meta.machine)
	}
	h.pass(3600e3)
	if says(1); r.quiet {
		t.Error("all have said that they can run a later version, and the shard rests")
	}
	says(1, 3)
	h.settle(2)
	if r.meta.machine != 2 {
		t.Errorf("version %d is active", r.meta.machine)
	}
}

// What one leadership has asked for is not what the next decides, should a replica lose and win between two looks: version 0 would become active on every other replica.
//
// Mutation with which it was seen to fail: decideVersion takes whatever this leadership has asked for.
func TestVersionOfAnEarlierLeadership(t *testing.T) {
	h := newHand(t, Limits{}, 2)
	h.lead()
	r := h.replica()
	r.machine = newer{}
	h.in.Calls = append(h.in.Calls, func(*Worker) {
		term := r.lead.term
		r.raiseVersion()
		if err := r.rn.Step(raftpb.Message{Type: raftpb.MsgHeartbeat, From: 1, Term: uint64(term) + 1}); err != nil {
			t.Error(err)
		}
		if err := r.rn.Campaign(); err != nil {
			t.Error(err)
		}
		if r.observe(); r.lead == nil || r.lead.term == term || len(r.queue) != 1 {
			t.Errorf("%+v, and %d wait", r.lead, len(r.queue))
		}
	})
	h.settle(0)
	entries, _, err := h.w.Journal(1, 1, 100)
	if err != nil || len(entries) < 3 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if strings.Contains(e.Note, "version 0") {
			t.Errorf("entry %d: %s", e.Index, e.Note)
		}
	}
	h.settle(10)
	if r.meta.machine != 2 {
		t.Errorf("version %d is active", r.meta.machine)
	}
}
