package wal

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// filesIn has the content of every file of a log.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out[path] = string(readT(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRead: a log is read as Open would read it, torn end included, and not a byte of it is changed.
//
// Mutations with which it was seen to fail, one by one: a torn end is cut off on disk; the lock is not taken.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	for i := range uint64(40) {
		appendT(t, w, Record{Shard: 1, HardState: HardState{Term: 1, Commit: i + 1}, Entries: entriesOf(1, i+1, i+1, 500)})
	}
	appendT(t, w, Record{Shard: 2, HardState: HardState{Term: 3}})
	if _, err := Read(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a log that is open: %v", err)
	}
	closeT(t, w)
	segments := segmentsIn(t, dir)
	last := filepath.Join(dir, segmentDir, segments[len(segments)-1])
	ends := frameEnds(t, last)
	b := readT(t, last)
	torn := ends[len(ends)-1] - 4 // the last record, that of shard 2, is not whole
	clear(b[torn:])
	writeT(t, last, b)
	before := filesIn(t, dir)
	rec, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(before, filesIn(t, dir)) {
		t.Error("reading has changed the log")
	}
	if rec.Fresh || rec.Repaired == nil {
		t.Errorf("recovered %+v", rec)
	}
	_, opened := openT(t, dir)
	wantEntries(t, rec, 1, opened.Shards[1].Entries)
	if rec.Shards[2] != nil || rec.Shards[1].HardState != opened.Shards[1].HardState {
		t.Errorf("read %+v, opened %+v", rec.Shards, opened.Shards)
	}
	if rec, err := Read(filepath.Join(dir, "nothing")); err != nil || !rec.Fresh {
		t.Errorf("without a log: %+v, %v", rec, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nothing")); err == nil {
		t.Error("reading has made a directory")
	}
}
