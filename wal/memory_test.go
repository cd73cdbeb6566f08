package wal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestMemoryIsTheDisk: what Memory holds is what etcd writes, byte for byte, over cuts, releases and restarts. So what is
// found out with logs in memory holds for those on disk.
func TestMemoryIsTheDisk(t *testing.T) {
	dir := t.TempDir()
	open := func() *WAL {
		w, _, err := Open(Options{Dir: dir, SegmentBytes: memorySegmentBytes})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w, m := open(), NewMemory()
	defer func() { closeT(t, w) }()
	compare := func() {
		t.Helper()
		names := segmentsIn(t, dir)
		if len(names) != len(m.segments) {
			t.Fatalf("on disk %v, in memory %d segments", names, len(m.segments))
		}
		for i, name := range names {
			disk, memory := readT(t, filepath.Join(dir, segmentDir, name)), m.segments[i]
			if name != memory.path || len(disk) < len(memory.b) || !bytes.Equal(disk[:len(memory.b)], memory.b) || !allZero(disk[len(memory.b):]) {
				t.Fatalf("%s on disk is not %s in memory (%d and %d bytes)", name, memory.path, len(disk), len(memory.b))
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	compare()
	for i := uint64(1); i <= 300; i++ {
		r := Record{Shard: 1 + i%3, Entries: entriesOf(1+i/100, (i+2)/3, (i+2)/3, rng.IntN(9000)), HardState: HardState{Term: 1 + i/100, Commit: i}}
		appendT(t, w, r)
		appendT(t, m, r)
		if i%20 == 0 {
			for s := uint64(1); s <= 3; s++ {
				w.Flushed(s, i/3-3)
				m.Flushed(s, i/3-3)
			}
			for range 9 { // the disk lets go of one segment per Append
				appendT(t, w)
			}
			appendT(t, m)
			compare()
		}
		if i == 150 {
			closeT(t, w)
			w = open()
			var err error
			if m, _, err = m.Reopen(); err != nil {
				t.Fatal(err)
			}
			for s := uint64(1); s <= 3; s++ {
				w.Flushed(s, 40)
				m.Flushed(s, 40)
			}
		}
	}
	compare()
	if m.Stats().Released == 0 || m.Stats().Segments < 3 {
		t.Fatalf("the test has not seen enough: %+v", m.Stats())
	}
}

// TestMemoryTorn: a torn Append is cut off, and nothing else.
func TestMemoryTorn(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		m := NewMemory()
		appendT(t, m, Record{Shard: 1, Entries: entriesOf(1, 1, 4, 300)})
		err := m.Tear([]Record{{Shard: 1, Entries: entriesOf(1, 5, 6, 10+rng.IntN(2000))}}, func(b []byte, _ int) []byte {
			n := rng.IntN(len(b) - 8)
			if rng.IntN(2) == 0 {
				return b[:n]
			}
			clear(b[n:])
			return b
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Append(nil); err != ErrClosed {
			t.Fatalf("append after the power cut: %v", err)
		}
		n, rec, err := m.Reopen()
		if err != nil {
			t.Fatal(err)
		}
		wantEntries(t, rec, 1, entriesOf(1, 1, 4, 300))
		appendT(t, n, Record{Shard: 1, Entries: entriesOf(2, 5, 5, 10)})
		if _, rec, err = n.Reopen(); err != nil || rec.Repaired != nil {
			t.Fatalf("after the repair: %v, %+v", err, rec)
		}
	}
}

// TestMemoryDamaged: a bit that is another is found, wherever it is, or it was of no consequence.
func TestMemoryDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	refused := 0
	for range 300 {
		m := NewMemory()
		for i := uint64(1); i <= 20; i++ {
			appendT(t, m, Record{Shard: 1, Entries: entriesOf(1, i, i, 30_000)})
		}
		which := rng.IntN(len(m.segments))
		name, i := m.segments[which].path, 0
		m.Damage(func(_ string, b []byte) []byte {
			if i == which {
				b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			}
			i++
			return b
		})
		_, rec, err := m.Reopen()
		if err == nil {
			wantEntries(t, rec, 1, entriesOf(1, 1, 20, 30_000))
			continue
		}
		refused++
		if c := (*CorruptionError)(nil); !errors.As(err, &c) || c.File != name {
			t.Fatalf("%s was damaged: %v", name, err)
		}
	}
	if refused < 250 { // the mark of an empty segment can be written again
		t.Fatalf("%d of 300 damaged logs were refused", refused)
	}
}
