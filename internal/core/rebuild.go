package core

import (
	"fmt"
	"slices"

	"go.etcd.io/etcd/raft/v3/confchange"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// What backup, restore and recovery need of a replica's records. They work on data at rest, without a machine and without raft.

// Stored is what a flush records of a replica beside state, sessions and journal.
type Stored struct {
	Applied        Index
	Term           Term // of the entry at Applied
	Time           Timestamp
	Hash           uint64 // running hash of all state changes up to Applied
	MachineVersion uint64
	Members        Configuration
}

// DecodeStored reads the record of a flush.
func DecodeStored(data []byte) (Stored, error) {
	m, err := decodeMeta(data)
	if err != nil {
		return Stored{}, err
	}
	return Stored{Applied: m.applied, Term: m.term, Time: m.time, Hash: m.chain, MachineVersion: m.machine, Members: m.conf}, nil
}

// Continuing returns the entries of a log that continue a state, of which the last entry applied has this index and term. A crash between the installation of
// a snapshot and the record of it leaves a log that the snapshot may contradict: nothing of it counts any more, and raft had dropped it already.
func Continuing(applied Index, term Term, log []wal.Entry) []wal.Entry {
	for i, e := range log {
		if Index(e.Index) == applied && Term(e.Term) != term {
			return nil
		}
		if Index(e.Index) > applied {
			return log[i:]
		}
	}
	return nil
}

// RewriteMeta returns the record of a flush for a shard that is restored, with other members, and all else as it was.
func RewriteMeta(data []byte, members Configuration) ([]byte, error) {
	m, err := decodeMeta(data)
	if err != nil {
		return nil, err
	}
	if len(members.Voters) == 0 || len(members.Outgoing)+len(members.Learners)+len(members.LearnersNext) > 0 {
		return nil, fmt.Errorf("a rebuilt shard has voters and nobody else; got %+v", members)
	}
	// Whoever was removed from the old cluster has never been in this one.
	m.conf = Configuration{Voters: members.Voters}
	m.restored = true
	return m.encode(), nil
}

// NeutralEntry returns an entry of a log as it is in a cluster that is rebuilt from it: changes of members, which were those of another cluster, become
// empty entries of the same index and term. It reports whether the entry was one.
func NeutralEntry(e wal.Entry) (wal.Entry, bool) {
	switch raftpb.EntryType(e.Type) {
	case raftpb.EntryConfChange, raftpb.EntryConfChangeV2:
		return wal.Entry{Index: e.Index, Term: e.Term, Type: uint8(raftpb.EntryNormal)}, true
	}
	return e, false
}

// MemberChange is a change of members that stands in a log.
type MemberChange struct {
	Index   Index
	Change  string        // in words
	Members Configuration // after it
}

// MemberChanges returns the changes of members that the entries of a log make, one after the other, beginning with those who took part before them.
// Whether an entry is committed, and so whether it took effect, is for the caller to know.
func MemberChanges(members Configuration, entries []wal.Entry) (changes []MemberChange, err error) {
	for _, e := range entries {
		if raftpb.EntryType(e.Type) == raftpb.EntryNormal {
			continue
		}
		cc, note, err := decodeChange(raftpb.EntryType(e.Type), e.Data)
		var cs raftpb.ConfState
		if err == nil {
			cs, err = members.raftAfter(cc)
		}
		if err != nil {
			return changes, fmt.Errorf("the change of members at entry %d: %w", e.Index, err)
		}
		members = members.after(Index(e.Index), &cs, note)
		changes = append(changes, MemberChange{Index: Index(e.Index), Change: describeChange(&cc, note), Members: members})
	}
	return changes, nil
}

// raftAfter is what raft makes of a change (raft.applyConfChange, v3.5).
func (c *Configuration) raftAfter(cc raftpb.ConfChangeV2) (raftpb.ConfState, error) {
	changer := confchange.Changer{Tracker: tracker.MakeProgressTracker(1), LastIndex: 1}
	var err error
	if changer.Tracker.Config, changer.Tracker.Progress, err = confchange.Restore(changer, c.confState()); err != nil {
		return raftpb.ConfState{}, err
	}
	next := changer.Tracker
	if joint, ok := cc.EnterJoint(); cc.LeaveJoint() {
		next.Config, next.Progress, err = changer.LeaveJoint()
	} else if ok {
		next.Config, next.Progress, err = changer.EnterJoint(joint, cc.Changes...)
	} else {
		next.Config, next.Progress, err = changer.Simple(cc.Changes...)
	}
	return next.ConfState(), err
}

// EntryTime returns the leader's clock in an entry, or false if the entry has none: an empty one, or a change of members.
func EntryTime(entryType uint8, data []byte) (Timestamp, bool) {
	if raftpb.EntryType(entryType) != raftpb.EntryNormal || len(data) == 0 {
		return 0, false
	}
	r := reader{b: data}
	h := r.header()
	return h.time, r.err == nil
}

// Committed returns the entries after an index that this replica has applied, which it has in memory since its last flush, and the applied index. Their
// data must not be changed. Together with a cut of the state store that was taken on the same goroutine in the same
// pass, from the cut's index on, that is all there is of the shard up to applied: entries are let go of when a flush has ended, which is for
// this goroutine to say. CodeNotReached: the index is not applied here yet.
func (w *Worker) Committed(id ShardID, after Index) (entries []state.JournalEntry, applied Index, err error) {
	r := w.replicas[id]
	switch {
	case r == nil:
		return nil, 0, notProposed(CodeNoShard, "node %d hosts no shard %d", w.cfg.Node, id)
	case r.broken != nil:
		return nil, 0, r.broken
	case after > r.applied:
		// A snapshot is in place, and this replica has not been told yet.
		return nil, 0, notProposed(CodeNotReached, "shard %d has applied up to %d, which is before %d", id, r.applied, after)
	case uint64(after)+1 < r.log.first:
		return nil, 0, fmt.Errorf("shard %d has the entries after %d in memory, asked for are those after %d", id, r.log.first-1, after)
	}
	for _, e := range r.log.slice(uint64(after)+1, uint64(r.applied)) {
		entries = append(entries, state.JournalEntry{Index: e.Index, Term: e.Term, Type: uint8(e.Type), Data: e.Data})
	}
	return slices.Clip(entries), r.applied, nil
}
