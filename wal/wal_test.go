package wal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wal")
	w, rec := openT(t, dir)
	if !rec.Fresh || len(rec.Shards) != 0 {
		t.Fatalf("a new log holds %+v", rec)
	}
	a, b := entriesOf(1, 1, 3, 20), entriesOf(2, 7, 8, 0)
	appendT(t, w,
		Record{Shard: 1, Entries: a, HardState: HardState{Term: 1, Vote: 2, Commit: 3}},
		Record{Shard: 9, Entries: b})
	appendT(t, w, Record{Shard: 1, HardState: HardState{Term: 1, Vote: 2, Commit: 4}})
	closeT(t, w)

	for range 3 { // opening changes nothing
		w, rec = openT(t, dir)
		if rec.Fresh || rec.Repaired != nil || len(rec.Shards) != 2 {
			t.Fatalf("recovered %+v", rec)
		}
		wantEntries(t, rec, 1, a)
		wantEntries(t, rec, 9, b)
		if h := rec.Shards[1].HardState; h != (HardState{Term: 1, Vote: 2, Commit: 4}) {
			t.Fatalf("hard state %+v", h)
		}
		if h := rec.Shards[9].HardState; !h.IsZero() {
			t.Fatalf("hard state %+v from nowhere", h)
		}
		closeT(t, w)
	}
}

// A conflicting tail is replaced, within a segment and across several.
func TestConflictingTail(t *testing.T) {
	for _, size := range []int{1, 600} {
		dir := t.TempDir()
		w, _ := openT(t, dir)
		for i := uint64(1); i <= 10; i++ {
			appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, i, i, size)})
		}
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(2, 4, 6, size)})
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(3, 6, 7, size)}, Record{Shard: 1, Entries: entriesOf(3, 8, 8, size)})
		closeT(t, w)
		_, rec := openT(t, dir)
		want := append(append(entriesOf(1, 1, 3, size), entriesOf(2, 4, 5, size)...), entriesOf(3, 6, 8, size)...)
		wantEntries(t, rec, 1, want)
	}
}

func TestForgetAndRestart(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 1, 5, 9), HardState: HardState{Term: 1}}, Record{Shard: 2, Entries: entriesOf(1, 1, 5, 9)})
	appendT(t, w, Record{Shard: 1, Forget: true}, Record{Shard: 2, RestartAfter: 3})
	closeT(t, w)
	w, rec := openT(t, dir)
	if rec.Shards[1] != nil {
		t.Fatal("a forgotten shard is back")
	}
	if l := rec.Shards[2]; len(l.Entries) != 0 || l.RestartAfter != 3 {
		t.Fatalf("after a restart: %+v", l)
	}
	// A shard may begin anew at any index, and behind a restart exactly there.
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(4, 40, 41, 9)}, Record{Shard: 2, Entries: entriesOf(4, 4, 6, 9)})
	closeT(t, w)
	_, rec = openT(t, dir)
	wantEntries(t, rec, 1, entriesOf(4, 40, 41, 9))
	wantEntries(t, rec, 2, entriesOf(4, 4, 6, 9))
}

func TestAppendRefuses(t *testing.T) {
	gap := entriesOf(1, 1, 3, 1)
	gap[2].Index = 4
	for name, tc := range map[string]struct {
		records []Record
		want    error
	}{
		"index zero":        {[]Record{{Shard: 2, Entries: []Entry{{Term: 1}}}}, ErrInvalid},
		"gap inside":        {[]Record{{Shard: 2, Entries: gap}}, ErrInvalid},
		"gap behind":        {[]Record{{Shard: 1, Entries: entriesOf(1, 7, 7, 1)}}, ErrInvalid},
		"gap in one append": {[]Record{{Shard: 2, Entries: entriesOf(1, 1, 1, 1)}, {Shard: 2, Entries: entriesOf(1, 3, 3, 1)}}, ErrInvalid},
		"gap after restart": {[]Record{{Shard: 1, RestartAfter: 9, Entries: entriesOf(1, 11, 11, 1)}}, ErrInvalid},
		"below the restart": {[]Record{{Shard: 1, RestartAfter: 3}, {Shard: 1, Entries: entriesOf(1, 3, 3, 1)}}, ErrInvalid},
		"too large":         {[]Record{{Shard: 1, Entries: []Entry{{Index: 6, Data: make([]byte, MaxEntryBytes+1)}}}}, ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := openT(t, t.TempDir())
			for _, l := range []Log{w, NewMemory()} {
				appendT(t, l, Record{Shard: 1, Entries: entriesOf(1, 1, 5, 1)})
				err := l.Append(tc.records)
				if !errors.Is(err, tc.want) {
					t.Fatalf("got %v, want %v", err, tc.want)
				}
				if again := l.Append(nil); again != err {
					t.Fatalf("then got %v, want the same error for ever", again)
				}
			}
		})
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	if _, _, err := Open(Options{Dir: dir, SegmentBytes: tiny}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v", err)
	}
	closeT(t, w)
	closeT(t, w)
	if err := w.Append(nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v", err)
	}
	openT(t, dir)
}

func TestOptions(t *testing.T) {
	for want, size := range map[int64]int64{DefaultSegmentBytes: 0, 4096: 1, 8192: 4097} {
		w, _, err := Open(Options{Dir: t.TempDir(), SegmentBytes: size})
		if err != nil || w.log.bytes != want {
			t.Fatalf("segments of %d bytes are wanted: %+v, %v", size, w, err)
		}
		defer closeT(t, w)
	}
	for _, o := range []Options{{}, {Dir: t.TempDir(), SegmentBytes: -1}, {Dir: t.TempDir(), SegmentBytes: 2 << 30}} {
		if _, _, err := Open(o); err == nil {
			t.Fatalf("%+v is accepted", o)
		}
	}
}

// An Append above splitBytes takes several writes, and its parts come back in order.
func TestSplit(t *testing.T) {
	big := func(shard uint64) Record {
		return Record{Shard: shard, Entries: []Entry{{Index: 1, Term: 1, Data: make([]byte, splitBytes/2)}}}
	}
	if n := split([]Record{big(1), big(2), big(3)}); n != 1 {
		t.Fatalf("split after %d", n)
	}
	if n := split([]Record{{Shard: 1}, {Shard: 2}}); n != 2 {
		t.Fatalf("split after %d", n)
	}
	w, _ := openT(t, t.TempDir())
	appendT(t, w, big(1), big(2), big(3))
	if s := w.Stats(); s.Appends != 3 || s.Fsyncs != 3 || s.Segments != 2 || s.SyncTotal < s.SyncLast || s.SyncLast <= 0 {
		t.Fatalf("stats %+v", s)
	}
	dir := w.opts.Dir
	closeT(t, w)
	_, rec := openT(t, dir)
	for shard := uint64(1); shard <= 3; shard++ {
		wantEntries(t, rec, shard, big(shard).Entries)
	}
}

func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 1, 1, 1)})
	closeT(t, w)
	bad := filepath.Join(dir, segmentDir, "copy.wal")
	writeT(t, bad, nil)
	_, _, err := Open(Options{Dir: dir, SegmentBytes: tiny})
	wantCorrupt(t, err, "copy.wal", 0, 0)
	if err := os.Rename(bad, bad+".old"); err != nil {
		t.Fatal(err)
	}
	openT(t, dir)
}

// What could not be allocated when a segment was begun is tried again when it is needed: a disk that was full for a while does not
// kill the log hours later.
func TestAllocationIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 1, 1, tiny)})
	fail := func(n uint64) {
		t.Helper()
		obstacle := filepath.Join(dir, segmentDir, "1.tmp") // the first is prepared as 0.tmp
		writeT(t, obstacle, nil)
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, n, n, tiny)})
		failed := <-w.log.next.files
		if failed.err == nil {
			t.Fatal("a file was prepared in spite of the obstacle")
		}
		w.log.next.files = make(chan prepared, 1)
		w.log.next.files <- failed
		removeT(t, obstacle)
	}
	fail(2)
	fail(3)
	for i := uint64(4); i < 8; i++ {
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, i, i, tiny)})
	}
	closeT(t, w)
	w, rec := openT(t, dir)
	wantEntries(t, rec, 1, entriesOf(1, 1, 7, tiny))
	// If that fails too, it is the end.
	fail(8)
	w.log.dir = filepath.Join(dir, "missing")
	if err := w.Append([]Record{{Shard: 1, Entries: entriesOf(1, 9, 9, tiny)}}); err == nil {
		t.Fatal("a segment is begun without a file")
	}
	closeT(t, w)
}
