package core

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// What operators see of a replica between two passes.

// MembersView is a shard's configuration, with what a leader knows of its members.
type MembersView struct {
	Configuration
	Applied  Index
	Progress map[NodeID]MemberProgress // of a leader; otherwise empty
}

// MemberProgress is how far a member is, as its leader knows it.
type MemberProgress struct {
	Match                        Index
	State                        string // probe, replicate, snapshot
	SnapshotBytes, SnapshotTotal int64  // while it fetches one
}

var progressNames = map[tracker.StateType]string{tracker.StateProbe: "probe", tracker.StateReplicate: "replicate", tracker.StateSnapshot: "snapshot"}

// Members returns who takes part in a shard, or false if the worker has no such shard.
func (w *Worker) Members(id ShardID) (MembersView, bool) {
	r := w.replicas[id]
	if r == nil {
		return MembersView{}, false
	}
	v := MembersView{Configuration: r.conf, Applied: r.applied, Progress: map[NodeID]MemberProgress{}}
	if r.broken != nil || r.lead == nil {
		return v, true
	}
	r.rn.WithProgress(func(node uint64, _ raft.ProgressType, p tracker.Progress) {
		m := MemberProgress{Match: Index(p.Match), State: progressNames[p.State]}
		if NodeID(node) == w.cfg.Node {
			m.Match, m.State = Index(r.log.last()), ""
		} else if t := r.lead.transfers[NodeID(node)]; t != nil {
			m.SnapshotBytes, m.SnapshotTotal = t.bytes, t.total
		}
		v.Progress[NodeID(node)] = m
	})
	return v, true
}

// maxCuts may be waited for at once.
const maxCuts = 64

// Cut has a snapshot of a shard written, as of its last flush or, if fresh, of what is applied now at least. f is told, on the worker's goroutine; perhaps not, if ctx ends first.
func (w *Worker) Cut(ctx context.Context, id ShardID, fresh bool, f func(manifest []byte, err error)) {
	least := Index(1)
	if r := w.replicas[id]; r != nil && fresh {
		least = max(1, r.applied)
	}
	w.cut(id, cutWanted{ctx: ctx, min: least}, f)
}

func (w *Worker) cut(id ShardID, c cutWanted, f func(manifest []byte, err error)) {
	r := w.replicas[id]
	if r != nil { // who has left must not keep others out, while a flush hangs for which all of them wait
		r.cuts = slices.DeleteFunc(r.cuts, func(c cutWanted) bool { return c.ctx != nil && c.ctx.Err() != nil })
	}
	switch {
	case r == nil:
		f(nil, notProposed(CodeNoShard, "node %d hosts no shard %d", w.cfg.Node, id))
	case r.broken != nil:
		f(nil, r.broken)
	case r.applied == 0:
		f(nil, notProposed(CodeNotReached, "shard %d has applied nothing yet", id))
	case len(r.cuts) >= maxCuts:
		f(nil, notProposed(CodeOverloaded, "%d snapshots of shard %d are waited for already", len(r.cuts), id))
	default:
		c.ask = []func([]byte, error){f}
		r.cut(c)
		r.touch()
	}
}

// CutAtLeast has a snapshot written, for a replica that is to be repaired, that has at least an index, or an error if the replica has not applied that much. See Cut.
func (w *Worker) CutAtLeast(ctx context.Context, id ShardID, least Index, f func(manifest []byte, err error)) {
	if r := w.replicas[id]; r != nil && r.broken == nil && r.applied < least {
		f(nil, notProposed(CodeNotReached, "node %d has applied entry %d of shard %d, wanted is %d", w.cfg.Node, r.applied, id, least))
		return
	}
	w.cut(id, cutWanted{ctx: ctx, min: least, hurry: true}, f)
}

// LogEntry is a committed entry of a shard's log, taken apart.
type LogEntry struct {
	Index    Index
	Term     Term
	Time     Timestamp // 0: the entry has none
	Sequence uint64    // of decided entries; 0: it is none
	Kind     string    // decision, reads (nothing but reads rode on it), empty (a leader's first), members
	Note     string    // for people: what a change of members did, or which version became active
	Events   []Event   // of a decision
	Hash     uint64    // the running hash after it, as its leader computed it
}

// journalBytes is about how much one call of Journal returns.
const journalBytes = 1 << 20

// JournalBounds returns the first and the last entry of a replica's journal on disk, 0 and 0 if there is none, also of one that has stopped: serves reports whether it has not.
func (w *Worker) JournalBounds(id ShardID) (first, last Index, serves bool) {
	r := w.replicas[id]
	if r == nil {
		return 0, 0, false
	}
	lo, hi := r.state.JournalBounds()
	return Index(lo), Index(hi), r.broken == nil && r.damaged == nil
}

// Journal returns applied entries from an index on, as far as they are there, and where the log begins.
func (w *Worker) Journal(id ShardID, from Index, limit int) (entries []LogEntry, first Index, err error) {
	r := w.replicas[id]
	switch {
	case r == nil:
		return nil, 0, notProposed(CodeNoShard, "node %d hosts no shard %d", w.cfg.Node, id)
	case r.broken != nil:
		return nil, 0, r.broken
	}
	lo, _ := r.log.FirstIndex() // never fails
	first = Index(lo)
	if from < first {
		return nil, first, notProposed(CodeCompacted, "entries before %d of shard %d are not kept any more on node %d (Config.KeepJournal, JournalBytes and JournalAge keep more)", first, id, w.cfg.Node)
	}
	if from > r.applied {
		return nil, first, nil
	}
	stored, err := r.log.Entries(uint64(from), min(uint64(from)+uint64(limit), uint64(r.applied)+1), journalBytes)
	if err != nil {
		return nil, first, broken(CodeStorage, err, "the journal of shard %d", id)
	}
	for i := range stored {
		e, err := takeApart(id, &stored[i])
		if err != nil {
			return entries, first, broken(CodeCorruption, err, "entry %d of shard %d", stored[i].Index, id)
		}
		entries = append(entries, e)
	}
	return entries, first, nil
}

// takeApart reads an entry without applying it.
func takeApart(shard ShardID, stored *raftpb.Entry) (LogEntry, error) {
	e := LogEntry{Index: Index(stored.Index), Term: Term(stored.Term)}
	switch {
	case stored.Type != raftpb.EntryNormal:
		cc, note, err := decodeChange(stored.Type, stored.Data)
		e.Kind, e.Note = "members", describeChange(&cc, note)
		return e, err
	case len(stored.Data) == 0:
		e.Kind = "empty"
		return e, nil
	}
	rd := reader{b: stored.Data}
	h := rd.header()
	e.Kind, e.Time, e.Sequence, e.Hash = "decision", h.time, h.seq, h.chain
	if h.requests == 0 {
		e.Kind = "reads"
	}
	position := Position{Shard: shard, Index: e.Index}
	for range h.requests {
		q := rd.request()
		if q.flags&flagVersion != 0 {
			e.Note = fmt.Sprintf("version %d of the machine becomes active", q.version)
		}
		for range q.events {
			data, _ := rd.event()
			if rd.err != nil {
				break
			}
			e.Events = append(e.Events, Event{Data: data, Position: position, Time: h.time})
			position.Ordinal++
		}
	}
	if rd.err == nil && len(rd.b) > 0 {
		return e, errors.New("bytes after the last request")
	}
	return e, rd.err
}

// describeChange says what a change of members does.
func describeChange(cc *raftpb.ConfChangeV2, note changeNote) string {
	s := note.kind.String()
	for _, c := range cc.Changes {
		s += fmt.Sprintf(" %v(%d)", c.Type, c.NodeID)
	}
	return s
}
