package core

import (
	"fmt"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
)

// applyCommitted applies committed entries, in order, but for those already applied.
func (r *Replica) applyCommitted(entries []raftpb.Entry) {
	for i := range entries {
		e := &entries[i]
		if Index(e.Index) <= r.applied {
			continue
		}
		if Index(e.Index) != r.applied+1 {
			panic(broken(CodeCorruption, nil, "entry %d is to be applied after %d", e.Index, r.applied))
		}
		if l := r.lead; l != nil && l.ready {
			// Everything after the first entry of a leader's term is its own.
			if b := l.inflight; len(b) > 0 && b[0].change != nil {
				r.promoteChange(e)
			} else {
				r.promote()
			}
		} else {
			r.applyEntry(e)
		}
	}
}

// promoteCommitted promotes what is committed as soon as raft knows it, without waiting for the next
// Ready, which must wait for a write. Not before it is durable here: raft counts a leader's own vote early.
func (r *Replica) promoteCommitted() {
	l := r.lead
	if l == nil || !l.ready || len(l.inflight) == 0 {
		return
	}
	upTo := Index(min(r.rn.BasicStatus().Commit, r.log.last()))
	if mutated("promote-before-commit") {
		upTo = Index(r.log.last())
	}
	if mutated("promote-before-sync") {
		upTo = Index(r.rn.BasicStatus().Commit)
	}
	// A change of members waits for the Ready: raft must not be ahead of what it calls applied.
	for r.lead == l && len(l.inflight) > 0 && l.inflight[0].index <= upTo && l.inflight[0].change == nil {
		r.promote()
	}
}

// promote makes the oldest entry in flight final. What applying does was done when it was decided.
func (r *Replica) promote() {
	l := r.lead
	if len(l.inflight) == 0 || l.inflight[0].index != r.applied+1 {
		panic(broken(CodeCorruption, nil, "entry %d was committed in this leader's term, but is not its next", r.applied+1))
	}
	b := l.inflight[0]
	if b.seq != r.seq+1 {
		// Every replica finds it void [G3]. It takes a fault of this program, so this replica had better not go on.
		r.countVoid(b.index, b.term, b.seq)
		panic(broken(CodeCorruption, nil, "this leader's own entry %d is void", b.index))
	}
	b.observe(StepCommitted)
	r.forget(b)
	r.sessions.expire(b.time)
	for i := range b.decided {
		if h := b.decided[i].header; h != nil {
			r.sessions.apply(h, b.time, b.index, i)
		}
	}
	r.state.Release(b.end)
	r.committed = b.end
	r.applied, r.meta.term = b.index, b.term
	r.seq, r.time, r.chain = b.seq, b.time, b.chain
	if b.nextMachine != 0 {
		r.meta.machine = b.nextMachine
		l.raising = 0
	}
	r.stats.Entries++
	// Not before here: should anything above panic, stop finds the batch and ends its calls.
	l.inflight[0] = nil
	l.inflight = l.inflight[1:]
	r.answer(b)
	r.maybeFlush()
}

// promoteChange makes a leader's own change of members final, or finds that raft has put an empty entry in its place.
func (r *Replica) promoteChange(e *raftpb.Entry) {
	l := r.lead
	b := l.inflight[0]
	if uint64(b.index) != e.Index || uint64(b.term) != e.Term {
		panic(broken(CodeCorruption, nil, "entry %d of term %d was committed where this leader's change of members should be, at %d", e.Index, e.Term, b.index))
	}
	b.observe(StepCommitted)
	var err error
	if e.Type == raftpb.EntryNormal {
		err = notProposed(CodeChangePending, "raft did not take the change: another is under way")
	}
	r.applied, r.meta.term = b.index, b.term
	r.stats.Entries++
	if err == nil {
		r.applyChange(e)
	}
	// Not before here: should anything above panic, stop finds the batch and ends its call.
	l.inflight[0] = nil
	l.inflight = l.inflight[1:]
	l.changing = false
	for _, d := range b.decided {
		r.finish(d.req, d.result, err)
	}
	r.maybeFlush()
}

func (r *Replica) countVoid(index Index, term Term, seq uint64) {
	r.stats.Voids++
	r.logger.Error("void entry", "index", uint64(index), "term", uint64(term), "sequence", seq, "expected_sequence", r.seq+1)
}

// answer lets out what depended on the entry, now that it is committed and applied [G5].
func (r *Replica) answer(b *batch) {
	for i := range b.decided {
		d := &b.decided[i]
		r.stats.Commands++
		if d.err != nil {
			r.stats.Rejections++
		}
		r.finish(d.req, d.result, d.err)
	}
	for i := range b.riders {
		d := &b.riders[i]
		r.finish(d.req, d.result, d.err)
	}
	if len(b.reads) > 0 {
		r.stats.LogReads += uint64(len(b.reads))
		r.query(b.version, b.reads, Result{Index: b.index})
		b.version = nil
	}
}

// applyEntry folds an entry that this replica has not decided itself.
func (r *Replica) applyEntry(e *raftpb.Entry) {
	index, term := Index(e.Index), Term(e.Term)
	void := false
	if e.Type == raftpb.EntryNormal && len(e.Data) > 0 {
		void = !r.applyDecision(index, term, e.Data)
	}
	r.applied, r.meta.term = index, term
	r.stats.Entries++
	if e.Type != raftpb.EntryNormal {
		r.applyChange(e)
	}
	r.settle(index, term, void, e.Type != raftpb.EntryNormal)
	if l := r.lead; l != nil && !l.ready && e.Type == raftpb.EntryNormal && len(e.Data) == 0 && term == l.term {
		r.becomeReady()
	}
}

// applyDecision reports whether the entry was valid; a void one changes nothing.
func (r *Replica) applyDecision(index Index, term Term, data []byte) bool {
	rd := reader{b: data}
	h := rd.header()
	if rd.err != nil {
		panic(broken(CodeCorruption, rd.err, "entry %d", index))
	}
	if (h.term != term || h.seq != r.seq+1) && !mutated("no-void-check") {
		r.countVoid(index, term, h.seq)
		return false
	}
	r.sessions.expire(h.time)
	event := Event{Time: h.time, Version: r.meta.machine, Position: Position{Shard: r.shard, Index: index}}
	machine := r.meta.machine // what comes after this entry is decided under it
	for i := range h.requests {
		q := rd.request()
		if q.flags&flagVersion != 0 && rd.err == nil {
			machine = q.version
			r.checkVersion(machine, index)
		}
		for range q.events {
			data, digests := rd.event()
			if rd.err != nil {
				break
			}
			event.Data = data
			r.applyEvent(&event, digests)
			event.Position.Ordinal++
		}
		if rd.err == nil {
			r.sessions.apply(&q, h.time, index, i)
		}
	}
	if rd.err == nil && len(rd.b) > 0 {
		rd.fail("bytes after the last request")
	}
	if rd.err != nil {
		panic(broken(CodeCorruption, rd.err, "entry %d", index))
	}
	r.seq, r.time, r.meta.machine = h.seq, h.time, machine
	r.chain = chainEntry(r.apply.chain, h.seq, h.time)
	r.apply.chain = r.chain
	if r.chain != h.chain && !mutated("no-hash-check") {
		panic(broken(CodeDivergence, nil, "after entry %d the state hash is %016x here and %016x on the leader, "+
			"although every key of the entry agrees: the replicas differed before", index, r.chain, h.chain))
	}
	return true
}

func (r *Replica) applyEvent(e *Event, digests []byte) {
	r.apply.check(digests)
	r.applying = e
	r.machine.Apply(&r.apply, *e)
	r.state.EndScans()
	r.applying = nil
	if m := r.apply.mismatch; m != nil && !mutated("no-hash-check") {
		panic(broken(CodeDivergence, nil, "the event at %v %v", e.Position, m))
	}
	if n := len(r.apply.expected) / 2; n > 0 {
		panic(broken(CodeDivergence, nil, "the event at %v wrote %d keys here and %d on the leader", e.Position, len(digests)/2-n, len(digests)/2))
	}
}

// stuffed reports whether a flush is under way and cannot keep up: so much has gathered behind it.
func (r *Replica) stuffed(times int64) bool {
	return (r.flushing || r.freezing) && r.state.LayerBytes()+r.log.unflushed > times*r.cfg.Limits.FlushBytes
}

// stuffedFollower is from how many times FlushBytes on a follower takes nothing more until the flush has ended; a leader decides nothing more from the half of that on.
const stuffedFollower = 8

// full reports whether a follower takes nothing from raft for now.
func (r *Replica) full() bool { return r.lead == nil && r.stuffed(stuffedFollower) }

// maxUntaken bounds what raft hears meanwhile: it has an answer for each message, and they wait. What else comes is as good as lost; the clock that would have it campaign, which
// it cannot, stands still. These are the entries that a leader sends without an answer, and the heartbeats of some seconds.
const maxUntaken = 256

// deaf reports whether raft is told nothing more until the flush has ended.
func (r *Replica) deaf() bool { return r.untaken >= maxUntaken && r.full() }

// stuckElections is for how many election timeouts no flush may end on a leader that is stuffed, before somebody else is to lead.
const stuckElections = 8

// stuck reports whether a leader's flush has held it up for so long that it may never end: a bad sector, or a disk that is gone.
func (r *Replica) stuck() bool {
	return r.lead != nil && r.stuffedTicks >= stuckElections*r.cfg.ElectionTicks
}

// watchFlush keeps a leader that cannot decide any more, while its heartbeats go on, from leading for ever: calls that wait end, and another
// voter leads if one answers.
func (r *Replica) watchFlush() {
	if r.lead == nil || !r.stuffed(4) {
		r.stuffedTicks = 0
		return
	}
	if r.stuffedTicks++; !r.stuck() {
		return
	}
	still := r.queue[:0]
	for _, q := range r.queue {
		if q.Kind == kindVersion { // its own
			still = append(still, q)
		} else {
			r.finish(q, Result{}, r.stuckError())
		}
	}
	clear(r.queue[len(still):])
	r.queue = still
	if r.stuffedTicks%r.cfg.ElectionTicks != 0 || r.lead.transferee != 0 {
		return // once per election timeout, after which raft gives a transfer up
	}
	to := r.bestVoter()
	if to != 0 && r.answers(to) {
		r.lead.transferee = to
		r.touch()
	}
	r.logger.Error("a flush does not end, and nothing can be decided: leadership is to go", "ticks", r.stuffedTicks, "to", uint64(r.lead.transferee))
}

func (r *Replica) stuckError() *Error {
	e := notProposed(CodeOverloaded, "no flush of shard %d has ended on node %d for %v, and no more fits into memory: its disk may hang", r.shard, r.cfg.Node, time.Duration(r.stuffedTicks)*r.cfg.Tick)
	e.RetryAfter = time.Duration(r.cfg.ElectionTicks) * r.cfg.Tick
	return e
}

// maybeFreeze starts a flush when enough has gathered: the state is frozen at the head,
// and written out when the head is committed.
func (r *Replica) maybeFreeze() {
	if r.freezing || r.flushing || r.broken != nil || r.installing != nil {
		return
	}
	if r.freezeWanted || r.state.LayerBytes()+r.log.unflushed > r.cfg.Limits.FlushBytes {
		r.freeze()
	}
}

func (r *Replica) freeze() {
	at := r.applied
	if l := r.lead; l != nil && l.ready {
		if l.open != nil {
			return // its first effects would be frozen without the rest
		}
		at = l.head.index
	}
	r.freezeWanted = false
	if at == Index(r.log.flushed) || !r.state.Freeze() {
		return
	}
	r.freezing, r.freezeAt = true, at
	r.maybeFlush()
}

// maybeFlush hands the frozen state out for writing at the moment when exactly it is applied:
// sessions, journal and applied index of that moment go with it, atomically [G9].
func (r *Replica) maybeFlush() {
	if !r.freezing || r.applied != r.freezeAt && !mutated("flush-early") {
		return
	}
	r.freezing, r.flushing = false, true
	f := state.Flush{Index: uint64(r.applied), Meta: r.meta.encode(), Sessions: r.sessions.flushed()}
	if mutated("flush-without-sessions") {
		f.Sessions = nil
	}
	f.TruncateJournalBelow = r.journalFrom()
	for _, e := range r.log.slice(max(r.log.flushed+1, f.TruncateJournalBelow), uint64(r.applied)) {
		f.Journal = append(f.Journal, state.JournalEntry{Index: e.Index, Term: e.Term, Type: uint8(e.Type), Data: e.Data})
	}
	added := int64(0)
	for i := range f.Journal {
		added += int64(len(f.Journal[i].Data)) + entryOverhead
	}
	r.markJournal(added, Index(f.TruncateJournalBelow))
	r.w.env.Flush(&FlushDone{Shard: r.shard, Job: r.state.Flush(f), index: r.applied})
}

// flushed continues after a flush has become durable.
func (r *Replica) flushed(f *FlushDone) {
	defer r.contain()
	r.flushing, r.stuffedTicks = false, 0
	if r.broken != nil {
		if f.Err == nil { // it counts all the same, should the replica be repaired
			r.state.Flushed(f.Job)
			r.log.flushedTo(uint64(f.index))
			r.w.env.Flushed(r.shard, f.index) // else the log keeps these entries, of which unpin writes none again
		} else {
			r.state.AbandonFlush(f.Job)
		}
		return
	}
	defer r.continueInstall()
	if f.Err != nil {
		// A damaged table lies below what was to be written: nothing has been, and the next flush would meet it again.
		if !mutated("busy-after-damage") {
			r.state.AbandonFlush(f.Job)
		}
		panic(broken(CodeStorage, f.Err, "flushing the state at index %d", f.index))
	}
	r.state.Flushed(f.Job)
	r.log.flushedTo(uint64(f.index))
	r.stats.Flushes++
	r.w.env.Flushed(r.shard, f.index)
	r.nextCut()
}

// unpin frees the WAL segment that this shard's entries keep from being
// released: a little is written again, much is flushed.
func (r *Replica) unpin() {
	defer r.contain()
	if r.writing || r.repairing != nil || r.broken == nil && (r.freezing || r.flushing) {
		return // a repair begins the log anew: what is here would come behind that
	}
	// A replica that is out of service does not flush, and must not fill the disk of the others.
	// Nor can one flush that has applied nothing since the last time: what it holds is not committed.
	last := r.log.last()
	again := r.rewritten == last // since then nothing has come, and the log has been all around
	if (r.log.unflushed > r.cfg.RewriteBytes || again) && r.broken == nil && uint64(r.applied) > r.log.flushed {
		r.freezeWanted = true
		r.maybeFreeze()
		return
	}
	if r.log.unflushed > maxRewriteBytes {
		return // it waits for room in the log, and the disk's watermark for it: a record that cannot be written would stop the node
	}
	// Invariant: nothing of this shard is being written, so this record cannot replace newer entries.
	r.rewritten = last
	r.w.write(nil, record(r.shard, r.log.hard, r.log.slice(r.log.flushed+1, last)))
}

// maxRewriteBytes keeps what is written again, which must be one record, within the log's limit.
const maxRewriteBytes = 512 << 20

// String names the replica in messages.
func (r *Replica) String() string { return fmt.Sprintf("shard %d on node %d", r.shard, r.cfg.Node) }
