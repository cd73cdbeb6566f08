package wal

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
	etcdwal "go.etcd.io/etcd/server/v3/wal"
	"go.etcd.io/etcd/server/v3/wal/walpb"
)

// etcdRead opens a log with etcd's own package, from the mark of the segment that begins with entry first, and returns the payloads.
func etcdRead(t *testing.T, dir string, first uint64) (*etcdwal.WAL, [][]byte) {
	t.Helper()
	start := walpb.Snapshot{Index: first, Term: min(first, segmentTerm)}
	w, err := etcdwal.Open(nil, filepath.Join(dir, segmentDir), start)
	if err != nil {
		t.Fatal(err)
	}
	meta, state, entries, err := w.ReadAll()
	if err != nil || string(meta) != metadata || state != (raftpb.HardState{}) {
		t.Fatalf("etcd reads metadata %q, state %+v: %v", meta, state, err)
	}
	var payloads [][]byte
	for i, e := range entries {
		// The mark has the index of the first entry, which etcd takes for one that the snapshot has.
		if want := first + uint64(i) + 1; e.Index != want || e.Term != segmentTerm {
			t.Fatalf("etcd reads entry %d@%d in place of %d", e.Index, e.Term, want)
		}
		payloads = append(payloads, e.Data)
	}
	return w, payloads
}

// TestEtcdReads: what is written here is etcd's format, over cuts and restarts: etcd reads it, and goes on with it.
func TestEtcdReads(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	rng := rand.New(rand.NewPCG(1, 1))
	var written [][]byte
	var all []Entry
	for i := uint64(1); i <= 60; i++ {
		es := entriesOf(1, i, i, rng.IntN(1800))
		appendT(t, w, Record{Shard: 1, Entries: es})
		written, all = append(written, bytes.Clone(w.buf[headSpace:])), append(all, es...)
		if i%17 == 0 {
			closeT(t, w)
			w, _ = openT(t, dir)
		}
	}
	if w.Stats().Segments == 0 {
		t.Fatal("no segment was cut")
	}
	// While it is open, etcd's lock is respected by both.
	if _, err := etcdwal.Open(nil, filepath.Join(dir, segmentDir), walpb.Snapshot{}); err == nil {
		t.Fatal("etcd opens a log that is in use")
	}
	closeT(t, w)
	segments, err := listSegments(filepath.Join(dir, segmentDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range segments {
		e, payloads := etcdRead(t, dir, s.first)
		if want := written[s.first:]; len(payloads) != len(want) {
			t.Fatalf("from %d on etcd reads %d entries, want %d", s.first, len(payloads), len(want))
		}
		for i, p := range payloads {
			// Padding may have been appended to the buffer.
			if want := written[int(s.first)+i]; !bytes.HasPrefix(want, p) || len(want)-len(p) >= 8 {
				t.Fatalf("from %d on, entry %d is not what was written", s.first, i)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, rec := openT(t, dir)
	wantEntries(t, rec, 1, all)
}

// TestEtcdWrites: what etcd writes behind what was written here, segments included, is read here and gone on with; so is
// what a crash leaves of etcd's cut, a segment without its mark.
func TestEtcdWrites(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	es := entriesOf(1, 1, 40, 500)
	appendT(t, w, Record{Shard: 1, Entries: es[:1]})
	closeT(t, w)
	defer func(was int64) { etcdwal.SegmentSizeBytes = was }(etcdwal.SegmentSizeBytes)
	etcdwal.SegmentSizeBytes = tiny
	e, _ := etcdRead(t, dir, 0)
	segments := func() int { return len(segmentsIn(t, dir)) }
	for i := uint64(2); i <= 40; i++ {
		data := encodePayload(nil, i, 0, []Record{{Shard: 1, Entries: es[i-1 : i]}})
		before := segments()
		if err := e.Save(raftpb.HardState{}, []raftpb.Entry{{Term: segmentTerm, Index: i, Data: data}}); err != nil {
			t.Fatal(err)
		}
		if segments() == before {
			continue
		}
		crashed := copyLog(t, dir)
		w, rec := openT(t, crashed)
		wantEntries(t, rec, 1, es[:i])
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(2, i+1, i+2, 300)})
		closeT(t, w)
		_, rec = openT(t, crashed)
		wantEntries(t, rec, 1, append(es[:i:i], entriesOf(2, i+1, i+2, 300)...))
		if err := e.SaveSnapshot(walpb.Snapshot{Index: i + 1, Term: segmentTerm, ConfState: &raftpb.ConfState{}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if segments() < 3 {
		t.Fatalf("etcd has cut %d segments only", segments())
	}
	w, rec := openT(t, dir)
	wantEntries(t, rec, 1, es)
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 41, 50, 700)})
	closeT(t, w)
	_, rec = openT(t, dir)
	wantEntries(t, rec, 1, append(es, entriesOf(1, 41, 50, 700)...))
}

// A checksum continued without looking at the bytes is the one that looking gives.
func TestContinueSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	for _, n := range []int{0, 1, 2, 3, 7, 8, 9, 255, 256, 4096, 65537, 1<<20 - 1, 1 << 20} {
		for range 20 {
			from, crc := rng.Uint32(), rng.Uint32()
			to := crc32.Update(from, castagnoli, b[:n])
			if got, want := continueSum(crc, from, to, n), crc32.Update(crc, castagnoli, b[:n]); got != want {
				t.Fatalf("%d bytes: %08x, want %08x", n, got, want)
			}
		}
	}
}
