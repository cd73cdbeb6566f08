package core

import (
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// What the journal keeps. A committed entry that every voter has on disk is needed by no follower ever again: a voter
// does not lose what it has acknowledged, or it does not come back under its id. So unless history is wanted for its
// own sake (Config.KeepJournal), a flush writes into the journal only what some voter may lack, which
// with all voters up is next to nothing, and every byte is written once: to the log.
//
// The leader knows what each voter has from the acknowledgements, and tells the others, since any of them
// may have to lead next. A replica that knows less keeps more.

// tellCommit sends a follower the leader's word with a heartbeat, and under load more often: what a follower does
// not know of yet when it flushes, it writes.
func (r *Replica) tellCommit(m *raftpb.Message) {
	l := r.lead
	if now := r.w.now.Mono; m.Type == raftpb.MsgHeartbeat || m.Type == raftpb.MsgApp && now-l.noted[m.To] > int64(r.cfg.Tick)/4 {
		if l.noted == nil {
			l.noted = map[uint64]int64{}
		}
		l.noted[m.To] = now
		r.learnEverywhere()
		r.w.env.SendCommit(NodeID(m.To), CommitNote{
			Shard: r.shard, Term: l.term, Commit: Index(r.rn.BasicStatus().Commit), Everywhere: r.everywhere, Age: r.age(),
		})
	}
}

// learnEverywhere brings everywhere up to date on a leader. Raft counts what a leader has appended as
// its own before it is durable; the log knows better.
func (r *Replica) learnEverywhere() {
	everywhere := min(r.log.last(), r.rn.BasicStatus().Commit)
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id != uint64(r.cfg.Node) {
			everywhere = min(everywhere, p.Match)
		}
	})
	r.everywhere = max(r.everywhere, Index(everywhere))
}

// journalFrom returns the first entry that a flush leaves in the journal. That
// one is kept for its term, which raft compares when it sends the next.
func (r *Replica) journalFrom() uint64 {
	if r.cfg.KeepJournal {
		return 0
	}
	if r.lead != nil {
		r.learnEverywhere()
	}
	if mutated("forget-journal") {
		return uint64(r.applied)
	}
	// What raft knows to be applied, which during a write is less than what is: it looks at the entries in between when it campaigns.
	applied := min(r.applied, Index(r.rn.BasicStatus().Applied))
	if mutated("forget-unapplied") {
		applied = r.applied
	}
	return uint64(min(r.everywhere, applied))
}

// late reports whether a rejection is of a time before what its sender has acknowledged since. Raft v3.5 would go
// back to where it points, which may lie before the journal (its Progress.MaybeDecrTo has no lower bound in StateProbe).
func (r *Replica) late(m *raftpb.Message) bool {
	if m.Type != raftpb.MsgAppResp || !m.Reject || r.lead == nil {
		return false
	}
	match := uint64(0)
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == m.From {
			match = p.Match
		}
	})
	return m.RejectHint < match
}

// gone is told when a follower needs an entry that every voter had: it has lost what it acknowledged. It
// will not catch up, so it must be heard of.
func (r *Replica) gone() {
	r.stats.Stranded++
	if now := r.w.now.Mono; r.goneAt == 0 || now-r.goneAt > int64(time.Minute) {
		r.goneAt = now
		first, _ := r.log.FirstIndex() // never fails
		r.logger.Error("a voter asks for entries that every voter has had on disk: it has lost part of its log, and cannot catch up; "+
			"remove its data and add it as a new node", "first_index", first)
	}
}
