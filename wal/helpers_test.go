package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tiny is the smallest segment: a few records fill it.
const tiny = 4096

func openT(t testing.TB, dir string) (*WAL, *Recovered) {
	t.Helper()
	w, rec, err := Open(Options{Dir: dir, SegmentBytes: tiny})
	if err != nil {
		t.Fatalf("open %s: %v", dir, err)
	}
	t.Cleanup(func() { w.Close() })
	return w, rec
}

func closeT(t testing.TB, l Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func appendT(t testing.TB, l Log, records ...Record) {
	t.Helper()
	if err := l.Append(records); err != nil {
		t.Fatalf("append: %v", err)
	}
}

// entriesOf makes entries first..last of a term with data that has no zero bytes.
func entriesOf(term, first, last uint64, size int) []Entry {
	var es []Entry
	for i := first; i <= last; i++ {
		data := bytes.Repeat([]byte{byte('a' + i%26)}, size)
		copy(data, fmt.Sprintf("%d@%d|", i, term))
		es = append(es, Entry{Index: i, Term: term, Type: uint8(i % 3), Data: data})
	}
	return es
}

func sameEntries(a, b []Entry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Index != b[i].Index || a[i].Term != b[i].Term || a[i].Type != b[i].Type || !bytes.Equal(a[i].Data, b[i].Data) {
			return false
		}
	}
	return true
}

func describe(es []Entry) string {
	if len(es) == 0 {
		return "none"
	}
	var b strings.Builder
	for _, e := range es {
		fmt.Fprintf(&b, "%d@%d ", e.Index, e.Term)
	}
	return b.String()
}

func wantEntries(t testing.TB, rec *Recovered, shard uint64, want []Entry) {
	t.Helper()
	var got []Entry
	if l := rec.Shards[shard]; l != nil {
		got = l.Entries
	}
	if !sameEntries(got, want) {
		t.Fatalf("shard %d: recovered %s, want %s", shard, describe(got), describe(want))
	}
}

// copyLog copies a log's segments into a new directory: what a crash at this moment leaves.
func copyLog(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.MkdirAll(filepath.Join(to, segmentDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range segmentsIn(t, dir) {
		writeT(t, filepath.Join(to, segmentDir, name), readT(t, filepath.Join(dir, segmentDir, name)))
	}
	return to
}

func segmentsIn(t testing.TB, dir string) []string {
	t.Helper()
	ds, err := os.ReadDir(filepath.Join(dir, segmentDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, d := range ds {
		if strings.HasSuffix(d.Name(), ".wal") {
			names = append(names, d.Name())
		}
	}
	return names
}

func readT(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeT(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// frameEnds returns the offset behind each frame of a segment.
func frameEnds(t testing.TB, path string) []int64 {
	t.Helper()
	b := readT(t, path)
	var ends []int64
	for off := int64(0); off+8 <= int64(len(b)); {
		record, pad, ok := splitLength(leUint64(b[off:]))
		if !ok {
			break
		}
		off += 8 + record + pad
		ends = append(ends, off)
	}
	return ends
}

func leUint64(b []byte) (v uint64) {
	for i := 7; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

// wantCorrupt fails unless err names file, and an offset within from..to if to > 0.
func wantCorrupt(t testing.TB, err error, file string, from, to int64) {
	t.Helper()
	var c *CorruptionError
	if !errors.As(err, &c) {
		t.Fatalf("got %v, want a CorruptionError about %s", err, file)
	}
	if filepath.Base(c.File) != file || to > 0 && (c.Offset < from || c.Offset > to) {
		t.Fatalf("got %v, want %s, offset %d..%d", err, file, from, to)
	}
}
