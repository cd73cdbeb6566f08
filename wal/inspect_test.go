package wal

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// contents are all files below dir, by name.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[path] = string(readT(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Inspect finds what Open finds, and changes nothing, whatever a crash has left.
func TestInspect(t *testing.T) {
	b := lastRecord(t, []byte("data of the last record"))
	writeT(t, filepath.Join(b.dir, segmentDir, "0.tmp"), []byte("being prepared"))
	for name, c := range map[string]struct {
		content []byte
		want    []Entry
		torn    bool
	}{
		"whole": {b.whole, append(b.before[:4:4], b.last...), false},
		"torn":  {append(append([]byte{}, b.whole[:b.end-8]...), make([]byte, 512)...), b.before, true},
	} {
		writeT(t, b.path, c.content)
		before := contents(t, b.dir)
		rec, size, err := Inspect(b.dir)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantEntries(t, rec, 1, c.want)
		if (rec.Repaired != nil) != c.torn || rec.Fresh || size.Segments != 1 || size.Bytes != int64(len(c.content)) {
			t.Errorf("%s: repaired %+v, fresh %v, %+v", name, rec.Repaired, rec.Fresh, size)
		}
		if !maps.Equal(before, contents(t, b.dir)) {
			t.Errorf("%s: the log was changed", name)
		}
		w, opened := openT(t, b.dir) // the lock was given back
		wantEntries(t, opened, 1, c.want)
		closeT(t, w)
	}
}

// A segment that was released, and that a crash has brought back, is not counted as data, and stays.
func TestInspectReleased(t *testing.T) {
	w, _ := openT(t, t.TempDir())
	first := filepath.Join(w.opts.Dir, segmentDir, segmentName(0, 0))
	var old []byte
	for i := uint64(1); len(segmentsIn(t, w.opts.Dir)) < 4 || i < 20; i++ {
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, i, i, 1000), HardState: HardState{Term: 1, Commit: i}})
		if i == 10 {
			old = readT(t, first)
			w.Flushed(1, 10)
		}
	}
	if _, err := os.Stat(first); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the first segment was not released: %v", err)
	}
	closeT(t, w)
	writeT(t, first, old)
	before := contents(t, w.opts.Dir)
	if _, _, err := Inspect(w.opts.Dir); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(before, contents(t, w.opts.Dir)) {
		t.Error("the log was changed")
	}
}

func TestInspectRefuses(t *testing.T) {
	if _, _, err := Inspect(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
	w, _ := openT(t, t.TempDir())
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 1, 3, 100)})
	if _, _, err := Inspect(w.opts.Dir); !errors.Is(err, ErrLocked) {
		t.Errorf("an open log: %v", err)
	}
	closeT(t, w)
	// A damaged log is named as Open names it.
	path := filepath.Join(w.opts.Dir, segmentDir, segmentName(0, 0))
	b := readT(t, path)
	b[200] ^= 1
	writeT(t, path, b)
	_, _, err := Inspect(w.opts.Dir)
	wantCorrupt(t, err, segmentName(0, 0), 0, 0)
	_, _, again := Open(Options{Dir: w.opts.Dir, SegmentBytes: tiny})
	if again == nil || again.Error() != err.Error() {
		t.Errorf("Open says %v, Inspect %v", again, err)
	}
	// A directory that has lost its segments is no new one.
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	_, _, err = Inspect(w.opts.Dir)
	wantCorrupt(t, err, segmentDir, 0, 0)
}
