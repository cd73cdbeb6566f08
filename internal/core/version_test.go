package core

import (
	"slices"
	"testing"
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
