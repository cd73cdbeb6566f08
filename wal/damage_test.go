package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

var discard = slog.New(slog.DiscardHandler)

// severalSegments makes a log of at least n segments, with an entry in the last.
func severalSegments(t testing.TB, n int, letter byte) (dir string, entries []Entry) {
	t.Helper()
	w, _ := openT(t, t.TempDir())
	for i := uint64(1); ; i++ {
		es := entriesOf(1, i, i, 700)
		es[0].Data[0] = letter
		appendT(t, w, Record{Shard: 3, Entries: es, HardState: HardState{Term: 1, Commit: i}})
		entries = append(entries, es...)
		if have, _ := w.Size(); have == n && w.tracker.tail().bytes > 1500 {
			closeT(t, w)
			return w.opts.Dir, entries
		}
	}
}

// A flipped bit in any byte, in any segment, is refused and its place is named.
func TestFlippedBits(t *testing.T) {
	dir, entries := severalSegments(t, 2, 'q')
	for _, name := range segmentsIn(t, dir) {
		path := filepath.Join(dir, segmentDir, name)
		whole := readT(t, path)
		ends := frameEnds(t, path)
		start, frame := int64(0), 0
		for off := int64(0); off < ends[len(ends)-1]; off++ {
			if off >= ends[frame] {
				start = ends[frame]
				frame++
			}
			bits := []int{int(off+off/8) % 8}
			switch {
			case off-start < 32: // lengths, types and checksums
				bits = []int{0, 1, 2, 3, 4, 5, 6, 7}
			case testing.Short() && off%11 > 0:
				continue
			}
			for _, bit := range bits {
				content := bytes.Clone(whole)
				content[off] ^= 1 << bit
				writeT(t, path, content)
				_, rec, err := recoverDir(filepath.Join(dir, segmentDir), discard)
				if err == nil {
					t.Fatalf("%s, byte %d, bit %d: opens with %s", name, off, bit, describe(rec.Shards[3].Entries))
				}
				// Damage to the first checksum shows in the frame behind it.
				wantCorrupt(t, err, name, start, ends[frame])
			}
		}
		writeT(t, path, whole)
	}
	_, rec := openT(t, dir)
	wantEntries(t, rec, 3, entries)
}

// What etcd had prepared for the next segment when the process died does not get into it.
func TestLeftoverTemporaryFiles(t *testing.T) {
	dir, entries := severalSegments(t, 1, 'q')
	for _, name := range []string{"0.tmp", "1.tmp"} {
		writeT(t, filepath.Join(dir, segmentDir, name), bytes.Repeat([]byte{7}, tiny))
	}
	w, _, err := Open(Options{Dir: dir, SegmentBytes: tiny, onStep: func(step string) {
		c, rec := openT(t, copyLog(t, dir))
		if n := len(rec.Shards[3].Entries); rec.Repaired != nil || n < len(entries) {
			t.Fatalf("after %q: %d entries, repaired %+v", step, n, rec.Repaired)
		}
		closeT(t, c)
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(len(entries)) + 1; w.Stats().Segments < 3; i++ {
		appendT(t, w, Record{Shard: 3, Entries: entriesOf(1, i, i, 700)})
	}
	closeT(t, w)
}

// Whatever appears in the preallocated space, nothing is lost.
func TestDamageBehindTheEnd(t *testing.T) {
	b := lastRecord(t, bytes.Repeat([]byte("abc"), 50))
	all := append(append([]Entry(nil), b.before...), b.last...)
	for off := b.end; off < min(b.end+1100, int64(len(b.whole))); off++ {
		content := bytes.Clone(b.whole)
		content[off] = 0x40
		rec, err := b.try(t, content, false)
		if err != nil {
			wantCorrupt(t, err, filepath.Base(b.path), b.end, off)
			continue
		}
		wantEntries(t, rec, 1, all)
	}
}

// A record that is damaged, with others behind it, was durable: it is no torn end, even if
// it looks like one.
func TestZeroedRecordsInTheMiddle(t *testing.T) {
	dir, _ := severalSegments(t, 2, 'q')
	for _, name := range segmentsIn(t, dir) {
		path := filepath.Join(dir, segmentDir, name)
		whole := readT(t, path)
		ends := frameEnds(t, path)
		if len(ends) < 5 {
			t.Fatalf("only %d frames in %s", len(ends), name)
		}
		for i := range ends[:len(ends)-1] {
			start := int64(0)
			if i > 0 {
				start = ends[i-1]
			}
			for _, from := range []int64{start, start + 8, min(start+20, ends[i]-9), ends[i] - 16} {
				content := bytes.Clone(whole)
				clear(content[from:ends[i]])
				writeT(t, path, content)
				_, _, err := recoverDir(filepath.Join(dir, segmentDir), discard)
				wantCorrupt(t, err, name, start, ends[i])
			}
		}
		writeT(t, path, whole)
	}
}

// Damage to an earlier segment is refused even where it would be a torn end in the last.
func TestEarlierSegmentCutShort(t *testing.T) {
	dir, _ := severalSegments(t, 3, 'q')
	names := segmentsIn(t, dir)
	for _, name := range names[:2] {
		path := filepath.Join(dir, segmentDir, name)
		whole := readT(t, path)
		ends := frameEnds(t, path)
		for _, n := range []int64{0, 8, ends[0], ends[2], ends[3] + 9, ends[len(ends)-2], ends[len(ends)-1] - 1} {
			writeT(t, path, whole[:n])
			_, _, err := recoverDir(filepath.Join(dir, segmentDir), discard)
			wantCorrupt(t, err, name, 0, 0)
		}
		writeT(t, path, whole)
	}
}

// A last segment that has become zeros, or empty, is not one that a crash has left so: what was acknowledged in it is gone.
func TestLastSegmentLost(t *testing.T) {
	dir, _ := severalSegments(t, 2, 'q')
	name := segmentsIn(t, dir)[1]
	for _, size := range []int{0, 5, 100, tiny} {
		writeT(t, filepath.Join(dir, segmentDir, name), make([]byte, size))
		_, _, err := Open(Options{Dir: dir, SegmentBytes: tiny})
		wantCorrupt(t, err, name, 0, 0)
	}
}

// A file that has grown beyond all bounds is refused before it is read.
func TestHugeSegment(t *testing.T) {
	dir, _ := severalSegments(t, 1, 'q')
	_, _, err := recoverLog(grownFiles{dirFiles(filepath.Join(dir, segmentDir))}, discard)
	wantCorrupt(t, err, segmentsIn(t, dir)[0], maxFileBytes, maxFileBytes)
}

// grownFiles say that they have more than they have.
type grownFiles struct{ dirFiles }

func (g grownFiles) open(path string) (io.ReadSeekCloser, int64, error) {
	f, _, err := g.dirFiles.open(path)
	return f, maxFileBytes + 1, err
}

func TestMissingSegments(t *testing.T) {
	dir, _ := severalSegments(t, 4, 'q')
	names := segmentsIn(t, dir)
	for _, name := range names[:3] {
		copied := copyLog(t, dir)
		removeT(t, filepath.Join(copied, segmentDir, name))
		_, _, err := Open(Options{Dir: copied, SegmentBytes: tiny})
		var c *CorruptionError
		if !errors.As(err, &c) {
			t.Fatalf("without %s: %v", name, err)
		}
	}
	copied := copyLog(t, dir)
	for _, name := range names[:3] {
		removeT(t, filepath.Join(copied, segmentDir, name))
	}
	_, _, err := Open(Options{Dir: copied, SegmentBytes: tiny})
	wantCorrupt(t, err, names[3], 0, 0)
	copied = copyLog(t, dir)
	for _, name := range names {
		removeT(t, filepath.Join(copied, segmentDir, name))
	}
	_, _, err = Open(Options{Dir: copied, SegmentBytes: tiny})
	wantCorrupt(t, err, segmentDir, 0, 0)
}

// A segment of the right name from another log, or twice the same number, is refused.
func TestForeignSegments(t *testing.T) {
	dir, _ := severalSegments(t, 3, 'q')
	other, _ := severalSegments(t, 3, 'r')
	for i, name := range segmentsIn(t, dir) {
		copied := copyLog(t, dir)
		writeT(t, filepath.Join(copied, segmentDir, name), readT(t, filepath.Join(other, segmentDir, name)))
		_, _, err := Open(Options{Dir: copied, SegmentBytes: tiny})
		var c *CorruptionError
		if !errors.As(err, &c) {
			t.Fatalf("segment %d of another log: %v", i, err)
		}
	}
	name := segmentsIn(t, dir)[1]
	copied := copyLog(t, dir)
	writeT(t, filepath.Join(copied, segmentDir, segmentName(1, 999)), readT(t, filepath.Join(dir, segmentDir, name)))
	_, _, err := Open(Options{Dir: copied, SegmentBytes: tiny})
	wantCorrupt(t, err, segmentName(1, 999), 0, 0)
}

// A refused Open leaves every byte as it is.
func TestRefusalChangesNothing(t *testing.T) {
	dir, _ := severalSegments(t, 3, 'q')
	names := segmentsIn(t, dir)
	first, last := filepath.Join(dir, segmentDir, names[0]), filepath.Join(dir, segmentDir, names[2])
	b := readT(t, first)
	b[len(b)/2] ^= 1
	writeT(t, first, b)
	ends := frameEnds(t, last)
	torn := readT(t, last)[:ends[len(ends)-1]-30] // would be repaired
	writeT(t, last, torn)
	before := snapshotDir(t, dir)
	if _, _, err := Open(Options{Dir: dir, SegmentBytes: tiny}); err == nil {
		t.Fatal("a damaged log opens")
	}
	if after := snapshotDir(t, dir); after != before {
		t.Fatalf("changed:\n%s\nwas:\n%s", after, before)
	}
}

func snapshotDir(t testing.TB, dir string) string {
	t.Helper()
	var s string
	for _, name := range segmentsIn(t, dir) {
		s += fmt.Sprintf("%s %x\n", name, payloadSum(0, readT(t, filepath.Join(dir, segmentDir, name))))
	}
	return s
}

func removeT(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// Data behind the end of an earlier segment is refused: nothing was ever written there.
func TestDataBehindAnEarlierSegment(t *testing.T) {
	dir, _ := severalSegments(t, 3, 'q')
	for _, name := range segmentsIn(t, dir)[:2] {
		path := filepath.Join(dir, segmentDir, name)
		whole := readT(t, path)[:lastEnd(t, path)]
		for _, more := range [][]byte{{9}, make([]byte, 3), {8: 1}, bytes.Repeat([]byte{0x55}, 600)} {
			writeT(t, path, append(bytes.Clone(whole), more...))
			_, _, err := recoverDir(filepath.Join(dir, segmentDir), discard)
			wantCorrupt(t, err, name, int64(len(whole)), int64(len(whole)))
		}
		// Zeros may be there: what was preallocated.
		writeT(t, path, append(bytes.Clone(whole), make([]byte, 800)...))
		if _, _, err := recoverDir(filepath.Join(dir, segmentDir), discard); err != nil {
			t.Fatal(err)
		}
		writeT(t, path, whole)
	}
}

// A segment under a wrong name is refused, even if it has no entries yet.
func TestRenamedSegment(t *testing.T) {
	w, _ := openT(t, t.TempDir())
	for i := uint64(1); w.Stats().Segments == 0; i++ {
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, i, i, 900)})
	}
	closeT(t, w)
	dir := filepath.Join(w.opts.Dir, segmentDir)
	names := segmentsIn(t, w.opts.Dir)
	if err := os.Rename(filepath.Join(dir, names[1]), filepath.Join(dir, segmentName(1, 77))); err != nil {
		t.Fatal(err)
	}
	_, _, err := Open(Options{Dir: w.opts.Dir, SegmentBytes: tiny})
	var c *CorruptionError
	if !errors.As(err, &c) {
		t.Fatalf("got %v", err)
	}
}
