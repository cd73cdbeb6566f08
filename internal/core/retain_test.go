package core

import (
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/wal"
)

// smallCache lets go of what is flushed at once, and flushes often.
var smallCache = Limits{FlushBytes: 64 << 10, LogCacheBytes: 1}

// Raft hears at the end of a write what was applied during it, and looks at all entries since if it campaigns meanwhile. The journal's cap leaves it those too.
//
// Mutations with which it was seen to fail: "forget-unapplied"; bounded goes up to what is flushed.
func TestCampaignWhileTheDiskHangs(t *testing.T) {
	h := newHand(t, smallCache)
	entries := func(from, to uint64) (es []raftpb.Entry) {
		for i := from; i <= to; i++ {
			es = append(es, raftpb.Entry{Term: 1, Index: i})
		}
		return es
	}
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: entries(1, 1200)})
	h.pass(1)
	h.sync()
	h.pass(1) // 1 to 1200 are durable, and acknowledged
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Index: 1200, LogTerm: 1, Entries: entries(1201, 1210), Commit: 1200})
	h.in.Commits = []CommitNote{{From: 1, Shard: 1, Term: 1, Commit: 1200, Everywhere: 1200, At: 1}}
	h.pass(1)
	if len(h.flushes) != 1 {
		t.Fatalf("%d flushes are under way, want one", len(h.flushes))
	}
	h.flush()
	h.pass(1)
	r := h.replica()
	r.cfg.JournalMaxBytes = 1
	if from, has := r.bounded(1, 1), Index(r.rn.BasicStatus().Applied); from > max(1, has) {
		t.Errorf("the cap of the journal leaves what is from %d on, and raft has taken note of entries up to %d", from, has)
	}
	r.cfg.JournalMaxBytes = 0
	for range 40 { // the leader has died, the write of 1201 hangs
		h.in.Ticks = 1
		h.pass(50)
	}
	if h.stopped != nil {
		t.Fatalf("the replica stopped: %v", h.stopped)
	}
}

func TestJournalForgetsWhatEverybodyHas(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	for range 3000 {
		h.submit("x")
	}
	if first, last := h.replica().state.JournalBounds(); last < 1000 || first < last-100 {
		t.Errorf("the journal has %d to %d, and all have everything", first, last)
	}
}

// What follows a snapshot that is on its way is of use when it has arrived: without it, the next one would be due.
func TestSnapshotOnItsWayKeepsTheJournal(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	for range 1500 {
		h.submit("x")
	}
	l := h.replica().lead
	l.offered = &offered{index: h.replica().applied}
	for range 1500 {
		l.offeredAt = h.now.Mono // somebody is still at it
		h.submit("x")
	}
	if first, last := h.replica().state.JournalBounds(); Index(first) > l.offered.index || Index(last) < l.offered.index+1000 {
		t.Errorf("the journal has %d to %d, and a snapshot at %d is on its way", first, last, l.offered.index)
	}
}

// A rejection that comes late, from before its sender caught up, must not send the leader back to what is not there any more.
func TestLateRejection(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	for range 3000 {
		h.submit("x")
	}
	match := h.last[3]
	h.in.Unreachable = []NodeID{3}
	h.pass(1) // now raft probes it
	h.message(raftpb.Message{Type: raftpb.MsgAppResp, From: 3, Term: uint64(h.replica().raftTerm), Index: match, Reject: true, RejectHint: 5, LogTerm: 1})
	h.settle(5)
	for range 50 {
		h.submit("y")
	}
	h.settle(50)
	if last := h.replica().log.last(); h.last[3] != last {
		t.Errorf("the follower has entries up to %d of %d", h.last[3], last)
	}
}

// A voter that lost what it had acknowledged cannot be helped without a snapshot. It must be heard of.
func TestVoterThatLostItsLog(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	for range 3000 {
		h.submit("x")
	}
	h.last[3] = 10
	h.message(raftpb.Message{Type: raftpb.MsgAppResp, From: 1, Term: uint64(h.replica().raftTerm) + 5, Index: 1})
	h.settle(100) // a new term, whose leader knows nothing of who has what
	if h.replica().lead == nil {
		t.Fatal("not elected again")
	}
	for range 50 {
		h.submit("y")
	}
	h.settle(100)
	if h.replica().stats.Stranded == 0 {
		t.Error("nobody was told")
	}
}

// What is rolled back takes memory until a flush, and must lead to one.
func TestRejectionsLeadToFlushes(t *testing.T) {
	h := newHand(t, Limits{FlushBytes: 8 << 20})
	h.lead()
	for range 300 { // 30 MB
		h.submit("A", "no")
	}
	if n := h.replica().stats.Flushes; n < 3 {
		t.Errorf("%d flushes for 30 MB that were rolled back, with a limit of 8", n)
	}
}

// A flush that ends when its replica has stopped counts for the log too: what it wrote is in the way of everybody's segments else, for as long as the
// replica is out of service.
//
// Mutation with which it was seen to fail: flushed does not tell the log of a replica that has stopped.
func TestFlushEndsAfterStop(t *testing.T) {
	h := newHand(t, smallCache)
	log := wal.NewMemory()
	write := func() {
		h.t.Helper()
		h.logTo(log)
		h.in.Written, h.writes = append(h.in.Written, h.writes...), nil
	}
	entries := entriesOf(1, 2000, 1)
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: entries, Commit: 2000})
	h.pass(1)
	write()
	h.pass(1)
	if len(h.flushes) != 1 {
		t.Fatalf("%d flushes are under way, want one", len(h.flushes))
	}
	for { // other shards go on, and begin segments
		if segments, _ := log.Size(); segments > 2 {
			break
		}
		if err := log.Append([]wal.Record{{Shard: 2, HardState: wal.HardState{Term: 1}, Entries: []wal.Entry{{Index: 1, Term: 1, Data: make([]byte, 64<<10)}}}}); err != nil {
			t.Fatal(err)
		}
	}
	h.damage(CodeDivergence)
	h.flush()
	h.pass(1)
	log.Flushed(1, uint64(h.released))
	h.in.Pinned = []ShardID{1}
	h.pass(1)
	write()
	h.pass(1)
	for _, p := range log.Pinned() {
		if p.Shard == 1 {
			t.Errorf("the log still holds %+v", p)
		}
	}
	h.reopen(&log)
	if r := h.replica(); r.applied != 2000 || r.log.last() != 2000 {
		t.Errorf("after a restart %d entries are applied, and the log ends at %d", r.applied, r.log.last())
	}
}

// The log asks again and again for what keeps its oldest segment. A little is written again once: if nothing has come since, it is flushed, or an idle node with thousands of shards
// would write their logs again for ever.
//
// Mutations with which it was seen to fail: unpin does not ask whether it is the second time; it flushes at once; Config.RewriteBytes is not looked at.
func TestLogIsWrittenAgainOnce(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	ask := func() (entries int, flushed bool) {
		t.Helper()
		h.in.Pinned = []ShardID{1}
		h.pass(1)
		for _, w := range h.writes {
			for _, r := range w.Records {
				entries += len(r.Entries)
			}
		}
		flushed = len(h.flushes) > 0
		h.settle(1)
		return entries, flushed
	}
	for range 2 {
		h.submit("x")
		if n, flushed := ask(); n == 0 || flushed {
			t.Fatalf("asked for the first time: %d entries were written again, flushed: %v", n, flushed)
		}
	}
	if n, flushed := ask(); n > 0 || !flushed {
		t.Errorf("asked again: %d entries were written again, flushed: %v", n, flushed)
	}
	if n, flushed := ask(); n > 0 || flushed {
		t.Errorf("all is flushed: %d entries were written again, flushed: %v", n, flushed)
	}
	h.w.cfg.RewriteBytes = 1000
	h.submit(string(make([]byte, 2000)))
	if n, flushed := ask(); n > 0 || !flushed {
		t.Errorf("more than may be written again: %d entries were, flushed: %v", n, flushed)
	}
}
