package core

import (
	"bytes"
	"math"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/wal"
)

// A follower that took nothing for a while finds more than a gigabyte in one Ready. It goes into several records of the log, of which a crash leaves
// the first few: the promise with the first, the entries in their order, and nothing committed that is not there.
//
// Mutations with which it was seen to fail: all in one record; the commit index of all in each.
func TestLargeReady(t *testing.T) {
	h := newHand(t, Limits{MaxEntryBytes: 32 << 20})
	data := make([]byte, 32<<20) // the same in all: nothing reads it
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 7, Entries: []raftpb.Entry{{Term: 7, Index: 1}}})
	h.pass(1) // the log is writing
	const last = 40
	for i := uint64(2); i <= last; i++ {
		h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 7, Index: i - 1, LogTerm: 7, Entries: []raftpb.Entry{{Term: 7, Index: i, Type: raftpb.EntryConfChange, Data: data}}, Commit: 30})
	}
	h.pass(1)
	h.in.Written, h.writes = h.writes, nil
	h.pass(1)
	if len(h.writes) != 1 || len(h.writes[0].replicas) != 1 {
		t.Fatalf("%d writes", len(h.writes))
	}
	next, commit := uint64(2), uint64(0)
	for i, rec := range h.writes[0].Records {
		size := 0
		for _, e := range rec.Entries {
			if e.Index != next {
				t.Errorf("record %d has entry %d where %d was due", i, e.Index, next)
			}
			next++
			size += len(e.Data)
		}
		if size > maxRecordBytes || len(rec.Entries) == 0 {
			t.Errorf("record %d has %d entries with %d bytes", i, len(rec.Entries), size)
		}
		if rec.HardState.Term != 7 || rec.HardState.Commit >= next || rec.HardState.Commit < commit {
			t.Errorf("record %d, up to entry %d, says %+v", i, next-1, rec.HardState)
		}
		commit = rec.HardState.Commit
	}
	if next != last+1 || commit != 30 {
		t.Errorf("the records end with entry %d, committed are %d", next-1, commit)
	}
	h.writes = nil
}

// A leader of another term takes entries back that are being written. Raft, which has not heard of that write, then wants those before them saved again: they are
// on disk, acknowledged, perhaps flushed, and no crash may take them back; nor is it damage that they are there.
//
// Mutations with which it was seen to fail: all that raft wants is written again, with and without the second write being large.
func TestEntriesSavedAgain(t *testing.T) {
	for _, large := range []bool{false, true} {
		t.Run(map[bool]string{false: "flushed", true: "cut"}[large], func(t *testing.T) {
			h := newHand(t, Limits{MaxEntryBytes: 32 << 20})
			disk := wal.NewMemory()
			commit := uint64(4)
			entry := func(term, index uint64) raftpb.Entry { return raftpb.Entry{Term: term, Index: index} }
			if large {
				data := make([]byte, 30<<20)
				commit = 1
				entry = func(term, index uint64) raftpb.Entry {
					return raftpb.Entry{Term: term, Index: index, Type: raftpb.EntryConfChange, Data: data}
				}
			}
			h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 7, Entries: []raftpb.Entry{{Term: 7, Index: 1}}})
			h.pass(1)
			h.logTo(disk)
			h.sync()
			h.pass(1)

			first := raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 7, Index: 1, LogTerm: 7, Commit: commit}
			for i := uint64(2); i <= 8; i++ {
				first.Entries = append(first.Entries, entry(7, i))
			}
			h.message(first)
			h.pass(1)
			h.logTo(disk) // it is being written
			other := raftpb.Message{Type: raftpb.MsgApp, From: 3, Term: 8, Index: 6, LogTerm: 7, Commit: commit, Entries: []raftpb.Entry{entry(8, 7), entry(8, 8), entry(8, 9)}}
			h.message(other)
			h.pass(1)
			h.in.Written, h.writes = h.writes, nil
			h.pass(1) // what was written is acknowledged, and the next write begins
			if len(h.writes) != 1 {
				t.Fatalf("%d writes", len(h.writes))
			}
			for _, rec := range h.writes[0].Records {
				if err := disk.Append([]wal.Record{rec}); err != nil {
					t.Fatal(err)
				}
				next, found, err := disk.Reopen()
				if err != nil {
					t.Fatal(err)
				}
				disk = next
				es := found.Shards[1].Entries
				if len(es) < 6 || es[5].Index != 6 || es[5].Term != 7 {
					t.Fatalf("a crash now leaves %d entries of those that were acknowledged, 6 of which nobody took back", len(es))
				}
			}
			h.replica().freezeWanted = true
			h.replica().touch()
			h.pass(1)
			h.flush() // told before the write is
			h.pass(1)
			h.in.Written, h.writes = h.writes, nil
			h.pass(1)
			if err := h.replica().broken; err != nil {
				t.Fatal(err)
			}
			if l := h.replica().log; l.last() != 9 || l.flushed < commit {
				t.Errorf("the log ends at %d, and is flushed to %d", l.last(), l.flushed)
			}
		})
	}
}

// Whatever a crash leaves of a record that was cut, the log knows the promise and a beginning of the entries, with nothing committed that is not there; what stood in
// their place before is gone, as raft has it. All of them together are as good as the record that was cut.
//
// Mutations with which it was seen to fail: the commit index of all in each; each begins anew after the snapshot; the promise comes with the last.
func TestCutRecord(t *testing.T) {
	entries := func(from, to, term uint64, size int) (es []wal.Entry) {
		for i := from; i <= to; i++ {
			es = append(es, wal.Entry{Index: i, Term: term, Data: bytes.Repeat([]byte{byte(i)}, size)})
		}
		return es
	}
	for _, restart := range []uint64{0, 9} {
		whole := wal.Record{Shard: 1, HardState: wal.HardState{Term: 5, Vote: 3, Commit: 16}, RestartAfter: restart, Entries: entries(10, 20, 5, 100)}
		whole.Entries[4].Data = make([]byte, 5000) // larger than a record
		records := cutRecord(whole, 400)
		if len(records) < 4 || len(records) > 11 {
			t.Fatalf("%d records", len(records))
		}
		for n := 1; n <= len(records); n++ {
			log := wal.NewMemory()
			for _, recs := range [][]wal.Record{{{Shard: 1, HardState: wal.HardState{Term: 2, Vote: 1, Commit: 8}, Entries: entries(1, 15, 2, 10)}}, records[:n]} {
				if err := log.Append(recs); err != nil {
					t.Fatal(err)
				}
			}
			_, found, err := log.Reopen()
			if err != nil {
				t.Fatal(err)
			}
			got, last := found.Shards[1], uint64(9)
			for _, e := range got.Entries {
				if restart == 0 && e.Index < 10 {
					continue
				}
				if last++; e.Index != last || e.Term != 5 {
					t.Errorf("%d records: entry %d of term %d where %d of term 5 was due", n, e.Index, e.Term, last)
				}
			}
			want := wal.HardState{Term: 5, Vote: 3, Commit: min(16, last)}
			if got.HardState != want || got.RestartAfter != restart || last < 9+uint64(n) || n == len(records) && last != 20 {
				t.Errorf("%d records of %d, after %d: up to %d, %+v, restart after %d; want %+v", n, len(records), restart, last, got.HardState, got.RestartAfter, want)
			}
		}
	}
	if one := cutRecord(wal.Record{Shard: 1, HardState: wal.HardState{Term: 1, Commit: 9}}, 1); len(one) != 1 || one[0].HardState.Commit != 9 {
		t.Errorf("a promise alone became %+v", one)
	}
}

// Raft gets all entries that it asks for, where a part of them is in the journal and the rest in memory.
//
// Mutation with which it was seen to fail: what is in memory is left out.
func TestEntriesOfJournalAndMemory(t *testing.T) {
	h := newHand(t, smallCache)
	h.mute = 3 // the journal keeps what it lacks
	h.lead()
	for range 1500 {
		h.submit("x")
	}
	l := h.replica().log
	first, _ := h.replica().state.JournalBounds()
	if first == 0 || l.first <= first || l.last() < l.first {
		t.Fatalf("the journal begins with %d, memory has %d to %d", first, l.first, l.last())
	}
	lo, hi := max(first, l.first-10), l.last()+1
	for _, c := range []struct{ limit, want uint64 }{{math.MaxUint64, hi - lo}, {0, 1}} {
		entries, err := l.Entries(lo, hi, c.limit)
		if err != nil || uint64(len(entries)) != c.want {
			t.Fatalf("%d to %d within %d bytes: %d entries, want %d: %v", lo, hi-1, c.limit, len(entries), c.want, err)
		}
		for i, e := range entries {
			if e.Index != lo+uint64(i) {
				t.Errorf("entry %d where %d was due", e.Index, lo+uint64(i))
			}
		}
	}
	some, err := l.Entries(lo, hi, 1<<62)
	size := uint64(0)
	for i := range some[:11] {
		size += uint64(some[i].Size())
	}
	if got, _ := l.Entries(lo, hi, size); err != nil || len(got) != 11 {
		t.Errorf("%d entries within the size of 11", len(got))
	}
}

// Raft may want fewer entries saved than the log has, and of the same terms: then the others must go from the log, or a restart would bring them back.
//
// Mutation with which it was seen to fail: as all that raft wants is there, nothing is written.
func TestFewerEntriesAreSaved(t *testing.T) {
	h := newHand(t, Limits{})
	l := h.replica().log
	if err := l.append(entriesOf(1, 5, 1)); err != nil {
		t.Fatal(err)
	}
	if got := l.missing(entriesOf(2, 5, 1)); len(got) > 0 {
		t.Errorf("%d entries that are there are written again", len(got))
	}
	got := l.missing(entriesOf(2, 3, 1))
	if len(got) != 1 || got[0].Index != 3 {
		t.Fatalf("written are %v, want entry 3", got)
	}
	if err := l.append(got); err != nil || l.last() != 3 {
		t.Errorf("the log ends at %d, with %v", l.last(), err)
	}
}
