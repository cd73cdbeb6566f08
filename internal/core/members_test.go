package core

import (
	"errors"
	"slices"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

func changeEntry(t *testing.T, index, term uint64, kind raftpb.ConfChangeType, node NodeID) raftpb.Entry {
	t.Helper()
	note := changeNote{kind: ChangeAddLearner, addresses: map[NodeID]string{node: "a:1"}}
	cc := raftpb.ConfChangeV2{Context: note.encode(), Changes: []raftpb.ConfChangeSingle{{Type: kind, NodeID: uint64(node)}}}
	data, err := cc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raftpb.Entry{Index: index, Term: term, Type: raftpb.EntryConfChangeV2, Data: data}
}

// A single voter commits what it appends, at once: its learner must not hear of that before it is on the voter's own disk.
func TestLearnerHearsOfWhatIsDurable(t *testing.T) {
	h := newHand(t, Limits{}, 2)
	h.lead()
	h.last[5] = 100 // it has all there will be, by a snapshot say
	h.change(Change{Kind: ChangeAddLearner, Node: 5, Address: "a:1"})
	for range 3 {
		h.submit("x")
		h.settle(10)
	}
	durable := h.replica().log.last()
	h.sent = nil
	h.in.Requests = append(h.in.Requests, &Request{Kind: KindCommand, Shard: 1, Commands: [][]byte{[]byte("y")}, Done: func(*Request) {}})
	h.pass(1)
	if len(h.writes) == 0 || h.replica().log.last() != durable {
		t.Fatal("there is no write under way")
	}
	sent := 0
	for _, m := range h.sent {
		sent += len(m.Entries)
		if m.Commit > durable {
			t.Errorf("%v tells node %d that %d is committed, and the disk has %d", m.Type, m.To, m.Commit, durable)
		}
	}
	h.sent = nil
	h.sync()
	h.pass(1)
	for _, m := range h.sent {
		sent += len(m.Entries)
	}
	if sent == 0 {
		t.Error("the learner was never sent the entry")
	}
}

// Raft looks at all entries since what it calls applied when it campaigns, the first one too, although a change of members hides it from then on.
func TestCampaignAfterTheFirstChange(t *testing.T) {
	h := newHand(t, Limits{})
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Entries: []raftpb.Entry{{Index: 1, Term: 5}, changeEntry(t, 2, 5, raftpb.ConfChangeAddLearnerNode, 5)}})
	h.pass(10)
	h.sync()
	h.pass(10)
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Index: 2, LogTerm: 5, Commit: 2, Entries: []raftpb.Entry{{Index: 3, Term: 5}}})
	h.pass(10)
	if r := h.replica(); r.applied != 2 || !r.writing {
		t.Fatalf("applied %d, writing %v", r.applied, r.writing)
	}
	for i := 0; i < 40 && h.stopped == nil; i++ { // the disk hangs
		h.in.Ticks = 1
		h.pass(50)
	}
	if h.stopped != nil {
		t.Fatal(h.stopped)
	}
	h.sync()
	h.pass(10)
	if first, _ := h.replica().log.FirstIndex(); first != 2 {
		t.Errorf("the log begins with entry %d: a newcomer that is sent the first would not know the members", first)
	}
}

// Raft takes a message without a term for a word of its own node.
func TestMessagesWithoutATerm(t *testing.T) {
	h := newHand(t, Limits{})
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: 5})
	h.settle(1)
	before := h.replica().stats.Strange
	for _, m := range []raftpb.Message{
		{Type: raftpb.MsgSnap, Snapshot: raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: 9, Term: 5, ConfState: raftpb.ConfState{Voters: []uint64{1, 2, 3}}}}},
		{Type: raftpb.MsgApp, Entries: []raftpb.Entry{{Index: 1, Term: 9}}, Commit: 1},
	} {
		m.From = 1
		h.message(m)
		h.settle(1)
	}
	if r := h.replica(); h.stopped != nil || r.applied != 0 || r.stats.Strange != before+2 {
		t.Errorf("stopped: %v, applied %d, strange messages %d", h.stopped, r.applied, r.stats.Strange-before)
	}
}

// What peers that lie, or are confused, have to say in notes changes nothing.
func TestStrangeNotes(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	for _, from := range []NodeID{1, 3, 77} {
		for kind := NoteKind(0); kind < 20; kind++ {
			for _, data := range [][]byte{nil, {0}, []byte("DECSNAPS and no more")} {
				h.in.Notes = append(h.in.Notes, Note{From: from, Shard: 1, Kind: kind, A: 1 << 63, B: 1 << 63, C: 1 << 63, Data: data})
			}
		}
	}
	h.settle(3)
	h.submit("x")
	r := h.replica()
	if h.stopped != nil || r.lead == nil || len(r.cuts) > 0 || r.busy() || r.meta.machine != 0 {
		t.Errorf("stopped: %v, leads: %v, %d cuts, machine %d", h.stopped, r.lead != nil, len(r.cuts), r.meta.machine)
	}
}

// A change of members hides the first entry: a voter that has nothing yet needs a snapshot from then on, and may be needed for whatever is in flight on top
// of the change. So there must be one that does not wait for that.
func TestVoterWithNothingAfterAChange(t *testing.T) {
	for name, proposes := range map[string]bool{"by the leader that proposed it": true, "by the next leader": false} {
		t.Run(name, func(t *testing.T) {
			h := newHand(t, Limits{})
			h.deaf = map[uint64]bool{3: true}
			if proposes {
				h.lead()
				h.submit("x")
				c := Change{Kind: ChangeRemove, Node: 1} // node 3 is heard of
				h.in.Requests = append(h.in.Requests, &Request{Kind: KindChange, Shard: 1, Change: &c, Done: func(*Request) {}})
				h.pass(1)
				for h.replica().log.last() < 3 {
					h.in.Written, h.writes = append(h.in.Written, h.writes...), nil
					h.pass(1)
				}
				// The next command is decided before the change is committed.
			} else {
				h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Entries: []raftpb.Entry{{Index: 1, Term: 5}, changeEntry(t, 2, 5, raftpb.ConfChangeRemoveNode, 1)}, Commit: 1})
				h.settle(1)
				h.last[1] = 2
				h.lead()
			}
			h.submit("y")
			h.submit("z")
			r := h.replica()
			if len(r.lead.inflight) == 0 || len(r.conf.Voters) != 2 {
				t.Fatalf("%d entries in flight, voters %v", len(r.lead.inflight), r.conf.Voters)
			}
			h.deaf[3] = false
			for i := 0; i < 20 && len(h.cuts) == 0; i++ {
				h.settle(3)
			}
			if len(h.cuts) == 0 {
				t.Fatal("no snapshot is cut for node 3, which is needed for what is in flight")
			}
		})
	}
}

// A voter without which nothing is committed may be behind the log when the members change. It gets a snapshot of before the change: one of after it would wait for what is in flight.
func TestVoterBehindTheLogAfterAChange(t *testing.T) {
	h := newHand(t, smallCache)
	h.w.cfg.JournalMaxBytes = 1
	h.gone = map[uint64]bool{3: true}
	h.lead()
	for range 20 {
		h.submit("A")
	}
	h.w.cfg.Limits.FlushBytes = 1 << 30
	r := h.replica()
	if first, _ := r.log.FirstIndex(); first <= 2 || r.log.flushed == 0 {
		t.Fatalf("the log begins with entry %d, flushed are %d", first, r.log.flushed)
	}
	r.lead.heard[3] = h.now.Mono // it answers, and is gone again before it has got anything
	c := Change{Kind: ChangeRemove, Node: 1}
	h.in.Requests = append(h.in.Requests, &Request{Kind: KindChange, Shard: 1, Change: &c, Done: func(*Request) {}})
	for at := r.log.last(); r.log.last() == at; h.in.Written, h.writes = append(h.in.Written, h.writes...), nil {
		h.pass(1)
	}
	h.submit("y") // the first is decided before the change is committed
	h.submit("z")
	if len(h.cuts) > 0 || len(r.lead.inflight) == 0 || len(r.conf.Voters) != 2 || Index(r.log.flushed) >= r.conf.Index {
		t.Fatalf("%d entries in flight, voters %v as of %d, flushed %d", len(r.lead.inflight), r.conf.Voters, r.conf.Index, r.log.flushed)
	}
	h.gone[3] = false
	for i := 0; i < 20 && len(h.cuts) == 0; i++ {
		h.settle(3)
	}
	if len(h.cuts) == 0 {
		t.Fatal("no snapshot is cut for node 3, which is needed for what is in flight")
	}
	// A newcomer is not in that one: it is not sent there.
	r.lead.offered = &offered{source: 2, index: Index(r.log.flushed)}
	m := raftpb.Message{Type: raftpb.MsgSnap, From: 2, To: 9, Snapshot: raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{ConfState: raftpb.ConfState{Voters: []uint64{1, 2, 3}}}}}
	h.sent = nil
	r.lead.newerWanted = false
	r.send(&m)
	if len(h.sent) > 0 || !r.lead.newerWanted || r.leastCut() != r.conf.Index {
		t.Errorf("a newcomer is sent %v; a newer one is wanted: %v, of at least %d", h.sent, r.lead.newerWanted, r.leastCut())
	}
}

// Who was asked for a snapshot and was removed meanwhile is not waited for.
func TestCutOfOneThatIsGone(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("x")
	l := h.replica().lead
	for from, stays := range map[NodeID]bool{3: true, 9: false} {
		l.cutting, l.snapWanted = &cutting{from: from, min: 1, moved: h.now.Mono, asked: h.now.Mono}, true
		h.replica().wantSnapshot()
		if (l.cutting.from == from) != stays {
			t.Errorf("node %d was asked, and now node %d is", from, l.cutting.from)
		}
	}
}

// A replica may have stopped on a node that is alive: then it is not one of those who can go on, nor is leadership handed to it.
func TestReplicaThatStoppedDoesNotCount(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("x")
	h.gone = map[uint64]bool{1: true}
	ask := func(n NodeID) (code Code, leader NodeID) {
		var err error
		done := false
		c := Change{Kind: ChangeRemove, Node: n}
		h.in.Requests = append(h.in.Requests, &Request{Kind: KindChange, Shard: 1, Change: &c, Done: func(q *Request) { err, done = q.Err, true }})
		for i := 0; i < 500 && !done; i++ {
			h.settle(1)
		}
		var e *Error
		if !done || err != nil && !errors.As(err, &e) {
			t.Fatal(done, err)
		}
		if e == nil {
			return "", 0
		}
		return e.Code, e.Leader
	}
	h.settle(60) // nothing was heard of it for longer than anybody would wait
	if code, to := ask(2); code != CodeTransfer || to != 3 {
		t.Errorf("asked to go it answered %v and names node %d", code, to)
	}
	h.settle(60) // the transfer is given up
	if h.replica().lead == nil {
		t.Fatal("it does not lead any more")
	}
	if code, _ := ask(3); code != CodeChangeRefused {
		t.Errorf("the only other voter that answers may go: %q", code)
	}
	h.gone = nil // now both have been silent for longer than an election takes, as after a rest
	for n := range h.replica().lead.heard {
		h.replica().lead.heard[n] = -1 << 60
	}
	if code, _ := ask(3); code != "" {
		t.Errorf("everybody answers, and node 3 may not go: %v", code)
	}
}

// removed has node 2 apply its own removal from a shard of these voters.
func removed(t *testing.T, voters ...NodeID) *hand {
	h := newHand(t, Limits{}, voters...)
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Entries: []raftpb.Entry{{Index: 1, Term: 5}, changeEntry(t, 2, 5, raftpb.ConfChangeRemoveNode, 2)}, Commit: 2})
	h.settle(1)
	if !h.replica().leaving || h.stopped != nil {
		t.Fatalf("leaving %v, stopped %v", h.replica().leaving, h.stopped)
	}
	h.notes, h.noted = nil, nil
	return h
}

// told has a node say that node 2 was removed, and who are voters.
func (h *hand) told(by NodeID, index Index, voters ...NodeID) {
	m := map[NodeID]string{}
	for _, v := range voters {
		m[v] = "a:1"
	}
	h.in.Notes = append(h.in.Notes, Note{From: by, Shard: 1, Kind: noteRemoved, A: uint64(index), Data: appendAddresses(nil, m)})
	h.settle(1)
}

func (h *hand) patience() {
	for range (departurePatience + 1) * h.replica().cfg.ElectionTicks {
		h.in.Ticks = 1
		h.pass(int64(h.replica().cfg.Tick / 1e6))
	}
}

// A removed replica is counted on by whoever does not know. One voter that knows is not enough to stop: were it to die, the others could not elect.
func TestRemovedReplicaStaysUntilVotersKnow(t *testing.T) {
	h := removed(t, 1, 2, 3, 4)
	h.told(1, 2, 1, 3, 4)
	h.patience()
	if h.stopped != nil {
		t.Fatal("it stopped when one of three voters knew:", h.stopped)
	}
	h.told(3, 2, 1, 3, 4)
	if h.stopped != nil {
		t.Fatal("it stopped at once when two of three voters knew:", h.stopped)
	}
	h.patience()
	if h.stopped == nil || h.stopped.Code != CodeRemoved {
		t.Error("it goes on although a majority has known for long:", h.stopped)
	}

	h = removed(t, 1, 2, 3)
	h.told(1, 2, 1, 3)
	h.told(3, 2, 1, 3)
	if h.stopped == nil {
		t.Error("it goes on although every voter knows")
	}
	// Those who were voters after it are of no account when others are now. It asks those.
	h = removed(t, 1, 2, 3)
	h.told(1, 9, 3, 7, 8)
	h.told(3, 9, 3, 7, 8)
	h.patience()
	if h.stopped != nil {
		t.Error("it stopped when one of the present voters knew")
	}
	asked := map[NodeID]bool{}
	for i, n := range h.notes {
		asked[h.noted[i]] = asked[h.noted[i]] || n.Kind == noteAwake
	}
	if !asked[7] || !asked[8] {
		t.Errorf("it asked %v", asked)
	}
	h.told(7, 9, 3, 7, 8)
	h.told(8, 9, 3, 7, 8)
	if h.stopped == nil {
		t.Error("it goes on although every present voter knows")
	}
}

// Nobody is told that it was removed before a restart would know: who is told stops, and must not be counted on again.
func TestRemovalIsToldWhenDurable(t *testing.T) {
	h := newHand(t, Limits{})
	entries := []raftpb.Entry{{Index: 1, Term: 5}, changeEntry(t, 2, 5, raftpb.ConfChangeRemoveNode, 3)}
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Entries: entries})
	h.settle(1)
	told := func() bool {
		h.in.Notes = append(h.in.Notes, Note{From: 3, Shard: 1, Kind: noteAwake})
		h.pass(1)
		return slices.ContainsFunc(h.notes, func(n Note) bool { return n.Kind == noteRemoved })
	}
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: 5, Commit: 2})
	h.pass(1)
	if h.replica().conf.Has(3) || told() {
		t.Errorf("members %v, and it told before its disk knew", h.replica().conf.Members())
	}
	h.sync()
	h.pass(1)
	if !told() {
		t.Error("it does not tell")
	}
}

// Two that were removed must not tell each other for ever.
func TestRemovedReplicasDoNotArgue(t *testing.T) {
	h := newHand(t, Limits{})
	h.message(raftpb.Message{From: 3, Type: raftpb.MsgApp, Term: 5, Entries: []raftpb.Entry{{Index: 1, Term: 5},
		changeEntry(t, 2, 5, raftpb.ConfChangeRemoveNode, 1), changeEntry(t, 3, 5, raftpb.ConfChangeAddLearnerNode, 4), changeEntry(t, 4, 5, raftpb.ConfChangeRemoveNode, 2)}, Commit: 4})
	h.settle(1)
	h.notes, h.noted = nil, nil
	h.in.Notes = append(h.in.Notes, Note{From: 1, Shard: 1, Kind: noteAwake})
	h.pass(1)
	if len(h.notes) != 1 || h.notes[0].Kind != noteRemoved {
		t.Fatalf("node 1 was told %v", h.notes)
	}
	h.notes, h.noted = nil, nil
	h.told(1, 9, 3)
	if len(h.notes) > 0 || len(h.replica().departure.told) > 0 {
		t.Errorf("it answered %v", h.notes)
	}
}

// Who knows of nobody but such as were removed too is pointed on by these, also when they have stopped.
func TestRemovedReplicaPointsOn(t *testing.T) {
	h := removed(t, 1, 2, 3, 4)
	for _, stopped := range []bool{false, true} {
		if stopped {
			for _, v := range []NodeID{1, 3, 4} {
				h.told(v, 2, 1, 3, 4)
			}
		}
		if stopped != (h.stopped != nil) {
			t.Fatal(h.stopped)
		}
		h.notes, h.noted = nil, nil
		h.in.Notes = append(h.in.Notes, Note{From: 4, Shard: 1, Kind: noteAwake})
		h.pass(1)
		var said []uint64
		for _, n := range h.notes {
			if n.Kind == noteKnown && n.B == 2 {
				said = append(said, n.A)
			}
		}
		if !slices.Equal(said, []uint64{1, 3, 4}) {
			t.Errorf("stopped: %v; it answered %v", stopped, h.notes)
		}
	}
	// One that was told, and has not the entry itself, says what it was told.
	h = newHand(t, Limits{}, 1, 2, 3)
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: 5})
	h.told(3, 9, 3, 5)
	h.told(5, 9, 3, 5)
	if h.stopped == nil {
		t.Fatal("it goes on")
	}
	h.notes, h.noted = nil, nil
	h.in.Notes = append(h.in.Notes, Note{From: 1, Shard: 1, Kind: noteAwake})
	h.pass(1)
	if len(h.notes) != 2 || h.notes[1].Kind != noteKnown || h.notes[1].A != 5 || h.notes[1].B != 9 || string(h.notes[1].Data) != "a:1" {
		t.Errorf("it answered %v", h.notes)
	}
}

// A voter that was restarted may not know that a removal is committed, and lack what the removed one has after it: that one does not vote for it. But it says so.
func TestRemovalIsToldToWhoAsksForAVote(t *testing.T) {
	h := removed(t, 1, 2)
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgPreVote, Term: 6, Index: 2, LogTerm: 5})
	h.pass(1)
	if !slices.ContainsFunc(h.notes, func(n Note) bool { return n.Kind == noteChanged && n.A == 2 && n.B == 5 }) {
		t.Errorf("it says %v", h.notes)
	}

	h = newHand(t, Limits{}, 1, 2)
	entries := []raftpb.Entry{{Index: 1, Term: 5}, changeEntry(t, 2, 5, raftpb.ConfChangeRemoveNode, 1)}
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Entries: entries, Commit: 1})
	h.settle(1)
	h.gone = map[uint64]bool{1: true}
	h.last[1] = 3
	for _, n := range []Note{{A: 3, B: 5}, {A: 2, B: 4}, {A: 1 << 62, B: 5}} {
		n.From, n.Shard, n.Kind = 1, 1, noteChanged
		h.in.Notes = append(h.in.Notes, n)
	}
	h.settle(60)
	if r := h.replica(); r.applied != 1 || r.lead != nil {
		t.Fatalf("applied %d, leads %v, and has no word and no vote for that", r.applied, r.lead != nil)
	}
	h.in.Notes = append(h.in.Notes, Note{From: 1, Shard: 1, Kind: noteChanged, A: 2, B: 5})
	h.settle(60)
	h.submit("x")
	if r := h.replica(); h.stopped != nil || r.lead == nil || r.applied < 4 || r.conf.Has(1) {
		t.Errorf("stopped %v, leads %v, applied %d, members %v", h.stopped, r.lead != nil, r.applied, r.conf.Members())
	}
}

func (h *hand) change(c Change) {
	h.t.Helper()
	var err error
	done := 0
	h.in.Requests = append(h.in.Requests, &Request{Kind: KindChange, Shard: 1, Change: &c, Done: func(q *Request) { done++; err = q.Err }})
	h.settle(5)
	if done != 1 || err != nil {
		h.t.Fatalf("%v: answered %d times, %v", &c, done, err)
	}
}

// A transfer that is given up before raft was told of it does not happen: of who gave it up was said that he goes on leading. What came meanwhile is decided. One that raft has begun cannot be taken back.
//
// Mutations with which it was seen to fail: nothing is taken back; whatever was begun counts as taken back.
func TestTransferIsTakenBack(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	write := func() *Request {
		q := &Request{Kind: KindCommand, Shard: 1, Commands: [][]byte{[]byte("x")}, Done: func(*Request) {}}
		h.in.Requests = append(h.in.Requests, q)
		h.pass(1)
		return q
	}
	write() // and the disk takes its time
	if err := h.w.Transfer(1, 3); err != nil {
		t.Fatal(err)
	}
	h.pass(1)
	waiting := write()
	if !h.w.CancelTransfer(1, 3) {
		t.Fatal("a transfer that has not begun cannot be taken back")
	}
	h.settle(4)
	if len(h.handedTo) > 0 || waiting.Err != nil || waiting.Result.Index == 0 {
		t.Errorf("it was taken back: %v were told to campaign, and a call that waited ended with %v at %d", h.handedTo, waiting.Err, waiting.Result.Index)
	}
	if err := h.w.Transfer(1, 3); err != nil {
		t.Fatal(err)
	}
	h.pass(1)
	if h.w.CancelTransfer(1, 3) || !slices.Equal(h.handedTo, []NodeID{3}) {
		t.Errorf("one that is under way was taken back; %v were told to campaign", h.handedTo)
	}
	h.replica().lead.transferee, h.replica().lead.transferSent = 0, false // as when raft has given it up
	if h.w.CancelTransfer(1, 3) {
		t.Error("one that was given up, of which another replica was told, counts as taken back")
	}
}
