package core

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
)

// raftLog is a shard's log as raft reads it: what is not flushed yet, and a
// tail of what is, in memory; everything older in the journal.
// It holds durable entries only: append is called when the WAL has them.
type raftLog struct {
	shard *state.Shard
	conf  raftpb.ConfState
	hard  raftpb.HardState
	// changed: the members are not those that the shard was made with. Then the first entry is never sent: a replica
	// that began with it would not know who the members were. It begins with a snapshot instead.
	changed bool

	// Invariant: entries is contiguous and starts at first; first-1 <= flushed,
	// so that journal and memory together leave no gap.
	entries   []raftpb.Entry
	first     uint64
	firstTerm uint64 // of the entry before first
	flushed   uint64
	bytes     int64                           // of entries
	unflushed int64                           // of those with index > flushed
	offer     func() (raftpb.Snapshot, error) // answers raft when a follower needs what is not there any more
	keep      int64                           // bytes of flushed entries kept for followers that are a little behind
}

// entryOverhead approximates what an entry costs beside its data.
const entryOverhead = 64

func entryBytes(e *raftpb.Entry) int64 { return int64(len(e.Data)) + entryOverhead }

func newRaftLog(shard *state.Shard, flushed Index, flushedTerm Term, keep int64) *raftLog {
	return &raftLog{shard: shard, first: uint64(flushed) + 1, firstTerm: uint64(flushedTerm), flushed: uint64(flushed), keep: keep}
}

func (l *raftLog) last() uint64 { return l.first + uint64(len(l.entries)) - 1 }

// missing returns what the log lacks of entries that raft wants saved. When they replace some that were being written, raft, which has not heard
// of that write, wants those before them saved again, although they are durable by now, acknowledged, and perhaps flushed.
func (l *raftLog) missing(entries []raftpb.Entry) []raftpb.Entry {
	if mutated("save-again") {
		return entries
	}
	for i := range entries {
		e := &entries[i]
		if e.Index >= l.first && (e.Index > l.last() || l.entries[e.Index-l.first].Term != e.Term) {
			return entries[i:]
		}
	}
	if n := len(entries); n > 0 && entries[n-1].Index < l.last() && entries[n-1].Index > l.flushed {
		return entries[n-1:] // raft has fewer than the log: the last that it has ends it
	}
	return nil
}

// append adds entries that the WAL has made durable; they replace what stood at their indices.
func (l *raftLog) append(entries []raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	at := entries[0].Index
	if at <= l.flushed || at > l.last()+1 {
		return fmt.Errorf("entries from %d on do not fit a log that is flushed to %d and ends at %d", at, l.flushed, l.last())
	}
	for i := at - l.first; i < uint64(len(l.entries)); i++ {
		l.bytes -= entryBytes(&l.entries[i])
		l.unflushed -= entryBytes(&l.entries[i])
	}
	// Messages that raft made share the array behind; never write into what they may see.
	if kept := at - l.first; kept < uint64(len(l.entries)) {
		l.entries = append([]raftpb.Entry(nil), l.entries[:kept]...)
	}
	l.entries = append(l.entries, entries...)
	for i := range entries {
		l.bytes += entryBytes(&entries[i])
		l.unflushed += entryBytes(&entries[i])
	}
	return nil
}

// flushedTo records that the journal has everything up to index, and lets
// memory go but for a tail.
func (l *raftLog) flushedTo(index uint64) {
	for i := l.flushed + 1; i <= index; i++ {
		l.unflushed -= entryBytes(&l.entries[i-l.first])
	}
	l.flushed = index
	drop := 0
	for l.first+uint64(drop) <= index && l.bytes > l.keep {
		l.bytes -= entryBytes(&l.entries[drop])
		drop++
	}
	if drop == 0 {
		return
	}
	l.firstTerm = l.entries[drop-1].Term
	l.first += uint64(drop)
	l.entries = append([]raftpb.Entry(nil), l.entries[drop:]...)
}

// slice returns the entries lo..hi (inclusive) from memory.
func (l *raftLog) slice(lo, hi uint64) []raftpb.Entry { return l.entries[lo-l.first : hi-l.first+1] }

// InitialState implements raft.Storage.
func (l *raftLog) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	return l.hard, l.conf, nil
}

// FirstIndex implements raft.Storage. Of a journal that has been truncated, the first entry is there for its term only.
func (l *raftLog) FirstIndex() (uint64, error) {
	least := uint64(1)
	if l.changed && !mutated("log-from-the-first") {
		least = 2
	}
	switch first, _ := l.shard.JournalBounds(); first {
	case 0:
		return max(least, l.first), nil
	case 1:
		return least, nil
	default:
		if mutated("first-in-memory") {
			least = 1
		}
		return max(least, min(first+1, l.first)), nil // all of the log may still be in memory
	}
}

// LastIndex implements raft.Storage.
func (l *raftLog) LastIndex() (uint64, error) { return l.last(), nil }

// Term implements raft.Storage.
func (l *raftLog) Term(i uint64) (uint64, error) {
	switch {
	case i == l.first-1:
		return l.firstTerm, nil
	case i > l.last():
		return 0, raft.ErrUnavailable
	case i >= l.first:
		return l.entries[i-l.first].Term, nil
	case i == 0:
		return 0, nil
	}
	e, err := l.journal(i, i+1, 0)
	if err != nil {
		return 0, err
	}
	return e[0].Term, nil
}

// Entries implements raft.Storage.
func (l *raftLog) Entries(lo, hi, maxSize uint64) ([]raftpb.Entry, error) {
	if hi > l.last()+1 {
		return nil, raft.ErrUnavailable
	}
	if lo < l.first {
		entries, err := l.journal(lo, min(hi, l.first), maxSize)
		if err != nil || uint64(len(entries)) < min(hi, l.first)-lo {
			return entries, err
		}
		// What is in memory continues it: who asks without a limit, as raft does before it campaigns, must get all.
		size := uint64(0)
		for i := range entries {
			size += uint64(entries[i].Size())
		}
		for i := l.first; i < hi; i++ {
			e := &l.entries[i-l.first]
			if size += uint64(e.Size()); size > maxSize {
				break
			}
			entries = append(entries, *e)
		}
		return entries, nil
	}
	entries := l.entries[lo-l.first : hi-l.first : hi-l.first]
	size := uint64(0)
	for i := range entries {
		size += uint64(entries[i].Size())
		if size > maxSize && i > 0 {
			return entries[:i:i], nil
		}
	}
	return entries, nil
}

func (l *raftLog) journal(lo, hi, maxSize uint64) ([]raftpb.Entry, error) {
	stored, err := l.shard.Journal(lo, hi, maxSize)
	if errors.Is(err, state.ErrCompacted) {
		return nil, raft.ErrCompacted
	}
	if err != nil {
		return nil, err
	}
	entries := make([]raftpb.Entry, len(stored))
	for i, e := range stored {
		entries[i] = raftpb.Entry{Index: e.Index, Term: e.Term, Type: raftpb.EntryType(e.Type), Data: e.Data}
	}
	return entries, nil
}

// Snapshot implements raft.Storage, see snapshot.go.
func (l *raftLog) Snapshot() (raftpb.Snapshot, error) { return l.offer() }
