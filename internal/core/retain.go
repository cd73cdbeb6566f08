package core

import (
	"slices"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// What the journal keeps. A committed entry that every member has on disk is needed by no follower ever again: a member
// does not lose what it has acknowledged, or it does not come back under its id. So unless history is wanted for its
// own sake (Config.KeepJournal, JournalBytes, JournalAge), a flush writes into the journal only what some member may lack, which
// with all of them up is next to nothing, and every byte is written once: to the log.
//
// The leader knows what each member has from the acknowledgements, and tells the others, since any of them
// may have to lead next. A replica that knows less keeps more. Somebody who is away for long, or a snapshot that takes long to
// arrive, holds the journal up to its cap (Config.JournalMaxBytes) and no further: whoever is behind that gets a snapshot.

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

// journalMark is what one flush has added to the journal.
type journalMark struct {
	last  Index
	bytes int64
	time  Timestamp
}

// journalFrom returns the first entry that a flush leaves in the journal. That
// one is kept for its term, which raft compares when it sends the next. 0: all are kept.
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
	need := min(r.everywhere, r.appliedInRaft())
	if pin, ok := r.pinned(); ok {
		need = min(need, pin)
	}
	return uint64(r.bounded(r.history(need), need))
}

// appliedInRaft is what raft knows to be applied, which during a write is less than what is: it looks at the entries in between when it campaigns.
func (r *Replica) appliedInRaft() Index {
	if mutated("forget-unapplied") {
		return r.applied
	}
	return min(r.applied, Index(r.rn.BasicStatus().Applied))
}

// history goes back from what is needed as far as the journal is wanted for its own sake.
func (r *Replica) history(need Index) Index {
	if r.cfg.JournalBytes == 0 && r.cfg.JournalAge == 0 {
		return need
	}
	bytes := r.unflushedBytes()
	from := min(need, Index(r.log.flushed)+1)
	for i := len(r.marks) - 1; i >= 0; i-- {
		m := r.marks[i]
		bytes += m.bytes
		if bytes > r.cfg.JournalBytes && int64(r.time-m.time) > int64(r.cfg.JournalAge) {
			return min(need, m.last+1)
		}
		from = 0
	}
	return from
}

// bounded cuts the journal short where it would exceed its cap, and says so if somebody may lack what goes: that one needs a snapshot.
func (r *Replica) bounded(from, need Index) Index {
	if r.cfg.JournalMaxBytes == 0 || mutated("journal-without-cap") {
		return from
	}
	bytes := r.unflushedBytes()
	for i := len(r.marks) - 1; i >= 0; i-- {
		m := r.marks[i]
		if m.last < from {
			break
		}
		if bytes += m.bytes; bytes <= r.cfg.JournalMaxBytes {
			continue
		}
		floor := min(m.last+1, Index(r.log.flushed), r.appliedInRaft())
		if floor > need {
			r.cutShort = true
			r.stats.JournalShort++
			r.logger.Warn("the journal is cut short: a member is so far behind that what it lacks exceeds JournalMaxBytes; it will need a snapshot",
				"from", uint64(floor), "needed_from", uint64(need), "max_bytes", r.cfg.JournalMaxBytes)
		}
		return max(from, floor)
	}
	return from
}

// unflushedBytes is about what the next flush may add to the journal.
func (r *Replica) unflushedBytes() int64 { return r.log.unflushed }

// journalBytes is about how much the journal takes. The store reads its tables for that, so it is asked once per flush.
func (r *Replica) journalBytes() int64 {
	if r.journalAt != r.log.flushed {
		r.journalAt, r.journalSize = r.log.flushed, r.state.JournalBytes()
	}
	return r.journalSize
}

// markJournal notes what a flush adds to the journal, and forgets what it drops.
func (r *Replica) markJournal(added int64, from Index) {
	if r.cfg.KeepJournal {
		return
	}
	if len(r.marks) == 0 {
		// Of what was there at the start only the size is known.
		if _, last := r.state.JournalBounds(); last > 0 {
			r.marks = append(r.marks, journalMark{last: Index(last), bytes: r.state.JournalBytes(), time: r.time})
		}
	}
	r.marks = append(r.marks, journalMark{last: r.applied, bytes: added, time: r.time})
	n := 0
	for n < len(r.marks)-1 && r.marks[n].last < from {
		n++
	}
	r.marks = slices.Delete(r.marks, 0, n)
	if r.cutShort && r.everywhere >= from {
		r.cutShort = false
	}
}

// late reports whether a rejection is of a time before what its sender has acknowledged since. Raft v3.5 would go
// back to where it points, which may lie before the journal (its Progress.MaybeDecrTo has no lower bound in StateProbe).
func (r *Replica) late(m *raftpb.Message) bool {
	if m.Type != raftpb.MsgAppResp || !m.Reject || r.lead == nil {
		return false
	}
	return m.RejectHint < r.matched(NodeID(m.From))
}
