package wal

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// Cold shards do not keep segments: what they have is written again, and nothing of it is lost.
func TestColdShardsNeverPin(t *testing.T) {
	const cold, hot = 40, 99
	dir := t.TempDir()
	w, _ := openT(t, dir)
	m := &model{shards: map[uint64]*modelShard{}}
	save := func(records ...Record) {
		appendT(t, w, records...)
		for _, r := range records {
			m.apply(r)
		}
	}
	for shard := uint64(1); shard <= cold; shard++ {
		save(Record{Shard: shard, Entries: entriesOf(1, 5, 6, 10), HardState: HardState{Term: shard, Vote: 1}})
	}
	for i := uint64(1); i <= 300; i++ {
		save(Record{Shard: hot, Entries: entriesOf(1, i, i, 200), HardState: HardState{Term: 1, Commit: i}})
		m.shards[hot].flushed = i
		w.Flushed(hot, i)
		if n, _ := w.Size(); n <= 3 {
			continue
		}
		var records []Record
		for _, p := range w.Pinned() {
			records = append(records, m.again(t, p))
		}
		save(records...)
		if n, _ := w.Size(); n > 5 {
			t.Fatalf("%d segments after %d appends, pinned by %+v", n, i, w.Pinned())
		}
	}
	s := w.Stats()
	if s.Segments < 10 || s.Released < s.Segments-4 {
		t.Fatalf("stats %+v", s)
	}
	closeT(t, w)
	_, rec := openT(t, dir)
	if err := m.check(rec); err != nil {
		t.Fatal(err)
	}
	if len(rec.Shards) != cold+1 {
		t.Fatalf("%d shards", len(rec.Shards))
	}
}

// A crash between any two steps, with any of the released segments back that a crash
// may bring back, loses nothing and shows nothing that was replaced.
func TestCrashBetweenSteps(t *testing.T) {
	runs := 3
	if testing.Short() {
		runs = 1
	}
	steps := map[string]int{}
	for i := range runs {
		seed := seedOf(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { crashSteps(t, seed, steps) })
	}
	for _, step := range []string{"saved", "cut", "released"} {
		if steps[step] == 0 {
			t.Errorf("never crashed after step %q: %v", step, steps)
		}
	}
}

func crashSteps(t *testing.T, seed uint64, steps map[string]int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := &model{shards: map[uint64]*modelShard{}}
	before := m.clone()         // the last Append
	gone := map[string][]byte{} // every segment there was
	dir := t.TempDir()
	crash := func(step string) {
		steps[step]++
		for _, name := range segmentsIn(t, dir) {
			gone[name] = readT(t, filepath.Join(dir, segmentDir, name))
		}
		for _, which := range []int{0, 1, 2} { // none, all, some of the removed ones are back
			copied := copyLog(t, dir)
			for _, name := range slices.Sorted(maps.Keys(gone)) {
				if which == 1 || which == 2 && rng.IntN(2) == 0 {
					writeT(t, filepath.Join(copied, segmentDir, name), gone[name])
				}
			}
			if step == "cut" { // for what is not written yet
				before.crashed(t, copied, step)
			} else {
				m.crashed(t, copied, step)
			}
			if len(gone) == len(segmentsIn(t, dir)) || step != "released" && rng.IntN(8) > 0 {
				break
			}
		}
	}
	w, _, err := Open(Options{Dir: dir, SegmentBytes: tiny, onStep: crash})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	save := func(records ...Record) {
		before = m.clone()
		for _, r := range records {
			m.apply(r)
		}
		appendT(t, w, records...)
	}
	for i := range 50 {
		save(m.random(rng, uint64(i+1), 1500, nil))
		if rng.IntN(2) == 0 && len(m.shards) > 0 {
			shard := pick(rng, m.shards)
			if s := m.shards[shard]; s.last() > s.flushed {
				s.flushed = s.last()
				w.Flushed(shard, s.flushed)
			}
		}
		if i%5 == 0 {
			for _, p := range w.Pinned() {
				save(m.again(t, p))
			}
		}
	}
}

// crashed opens what a crash left, checks it, and crashes once more in opening.
func (m *model) crashed(t *testing.T, dir, step string) {
	t.Helper()
	again := func(string) {
		copied := copyLog(t, dir)
		w, rec := openT(t, copied)
		if err := m.check(rec); err != nil {
			t.Fatalf("after %q and a crash in opening: %v", step, err)
		}
		closeT(t, w)
	}
	w, rec, err := Open(Options{Dir: dir, SegmentBytes: tiny, onStep: again})
	if err != nil {
		t.Fatalf("after %q: %v", step, err)
	}
	defer closeT(t, w)
	if err := m.check(rec); err != nil {
		t.Fatalf("after %q: %v", step, err)
	}
	if rec.Repaired != nil {
		t.Fatalf("after %q: repaired %+v, though nothing was torn", step, rec.Repaired)
	}
}

// A released segment that came back must not be read: it holds a tail that was replaced
// in a segment that did not come back.
func TestReleasedSegmentIsNotRead(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 1, 20, 150)}) // segment 0, with what follows
	appendT(t, w, Record{Shard: 2, Entries: entriesOf(1, 1, 2, tiny)})
	first := segmentsIn(t, dir)[0]
	old := readT(t, filepath.Join(dir, segmentDir, first))
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(2, 5, 6, tiny)})
	appendT(t, w, Record{Shard: 2, Entries: entriesOf(1, 3, 4, tiny)})
	w.Flushed(1, 6)
	w.Flushed(2, 4)
	for range 4 {
		appendT(t, w)
	}
	if n, _ := w.Size(); n != 1 {
		t.Fatalf("%d segments, pinned by %+v", n, w.Pinned())
	}
	closeT(t, w)
	writeT(t, filepath.Join(dir, segmentDir, first), old)
	_, rec := openT(t, dir)
	for shard, l := range rec.Shards {
		t.Errorf("shard %d is back with %s", shard, describe(l.Entries))
	}
	if slices.Contains(segmentsIn(t, dir), first) {
		t.Error("the released segment is still there")
	}
}

// Nothing is removed on the strength of a record that is not durable yet: it takes an
// Append behind the one that wrote the pinned shard again.
func TestReleaseFollowsTheRewrite(t *testing.T) {
	dir := t.TempDir()
	var w *WAL
	hard := HardState{Term: 7, Vote: 3}
	check := func(step string) {
		copied := copyLog(t, dir)
		c, rec := openT(t, copied)
		defer closeT(t, c)
		if l := rec.Shards[1]; l == nil || l.HardState != hard {
			t.Fatalf("after %q the hard state is lost", step)
		}
	}
	w, _ = openT(t, dir)
	appendT(t, w, Record{Shard: 1, HardState: hard})
	w.opts.onStep = check
	for i := uint64(1); i <= 4; i++ {
		appendT(t, w, Record{Shard: 2, Entries: entriesOf(1, i, i, tiny)})
		w.Flushed(2, i)
	}
	pins := w.Pinned()
	if len(pins) != 1 || pins[0] != (Pin{Shard: 1, HardState: true}) {
		t.Fatalf("pins %+v", pins)
	}
	before, _ := w.Size()
	appendT(t, w, Record{Shard: 1, HardState: hard})
	if n, _ := w.Size(); n < before {
		t.Fatal("released by the very Append that wrote the hard state again")
	}
	before, _ = w.Size()
	appendT(t, w)
	if n, _ := w.Size(); n != before-1 {
		t.Fatalf("%d segments, want %d", n, before-1)
	}
}

// Everything but Append may be called from anywhere at any time.
func TestConcurrentCalls(t *testing.T) {
	for _, l := range []Log{mustOpen(t), NewMemory()} {
		done := make(chan struct{})
		var wg sync.WaitGroup
		for g := range 3 {
			wg.Go(func() {
				for i := uint64(0); ; i++ {
					select {
					case <-done:
						return
					default:
					}
					l.Flushed(uint64(g), i/50)
					l.Pinned()
					l.Size()
					l.Stats()
				}
			})
		}
		for i := uint64(1); i <= 100; i++ {
			appendT(t, l, Record{Shard: i % 3, Entries: entriesOf(1, (i+2)/3, (i+2)/3, 500), HardState: HardState{Term: i}})
		}
		close(done)
		wg.Wait()
		closeT(t, l)
	}
}

func mustOpen(t *testing.T) *WAL {
	w, _ := openT(t, t.TempDir())
	return w
}

// A Memory that was reopened fences the handle before.
func TestMemoryFences(t *testing.T) {
	m := NewMemory()
	appendT(t, m, Record{Shard: 1, Entries: entriesOf(1, 1, 1, 5)})
	n, rec, err := m.Reopen()
	if err != nil || rec.Fresh {
		t.Fatal(rec, err)
	}
	wantEntries(t, rec, 1, entriesOf(1, 1, 1, 5))
	if err := m.Append(nil); err != ErrClosed {
		t.Fatalf("the old handle: %v", err)
	}
	appendT(t, n, Record{Shard: 1, Entries: entriesOf(1, 2, 2, 5)})
	if _, rec, _ = m.Reopen(); !bytes.Equal(rec.Shards[1].Entries[0].Data, entriesOf(1, 1, 1, 5)[0].Data) || len(rec.Shards[1].Entries) != 1 {
		t.Fatal("the old handle sees what the new one wrote")
	}
	if _, rec, _ := NewMemory().Reopen(); !rec.Fresh {
		t.Fatal("an empty log is not fresh")
	}
}

// Entries that a flush has overtaken while they were appended again hold nothing.
func TestAppendAgainBehindAFlush(t *testing.T) {
	m := NewMemory()
	appendT(t, m, Record{Shard: 1, Entries: entriesOf(1, 1, 6, 10)})
	m.Flushed(1, 4)
	appendT(t, m, Record{Shard: 1, Entries: entriesOf(1, 3, 6, 10)})
	appendT(t, m, Record{Shard: 2, Entries: entriesOf(1, 1, 1, memorySegmentBytes)})
	if pins := m.Pinned(); len(pins) != 1 || pins[0].First != 5 || pins[0].Last != 6 {
		t.Fatalf("pins %+v", pins)
	}
	m.Flushed(1, 6)
	appendT(t, m, Record{Shard: 1, Entries: entriesOf(1, 5, 6, 10)})
	m.Flushed(2, 1)
	if pins := m.Pinned(); pins != nil {
		t.Fatalf("pins %+v", pins)
	}
}

// A released segment becomes a later one, of which nothing is left but its blocks: what it held must not be behind the
// end of the new one.
func TestReleasedSegmentsAreUsedAgain(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	probe, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	if err := preallocate(probe, tiny); err != nil {
		t.Fatal(err)
	}
	if err := zeroRange(probe, tiny); err != nil {
		t.Skip("this file system cannot make zeros of what is there: ", err)
	}
	var released []os.FileInfo
	again := 0
	for i := uint64(1); i <= 60; i++ {
		names := segmentsIn(t, dir)
		oldest, err := os.Stat(filepath.Join(dir, segmentDir, names[0]))
		if err != nil {
			t.Fatal(err)
		}
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, i, i, 900)})
		w.Flushed(1, i)
		now := segmentsIn(t, dir)
		if now[0] != names[0] {
			released = append(released, oldest)
		}
		tail := filepath.Join(dir, segmentDir, now[len(now)-1])
		info, err := os.Stat(tail)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(released, func(old os.FileInfo) bool { return os.SameFile(old, info) }) {
			again++
		}
		if b := readT(t, tail); !allZero(b[lastEnd(t, tail):]) {
			t.Fatalf("behind the end of %s there is something", tail)
		}
	}
	if again == 0 {
		t.Fatalf("none of %d released segments was used again", len(released))
	}
	closeT(t, w)
	if left, err := filepath.Glob(filepath.Join(dir, segmentDir, "*.tmp")); err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	_, rec := openT(t, dir)
	if got := rec.Shards[1].Entries; got[len(got)-1].Index != 60 {
		t.Fatalf("recovered %s", describe(got))
	}
}
