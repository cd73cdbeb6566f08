package wal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// brokenLog is a log of one segment whose last record can be damaged at will.
type brokenLog struct {
	dir, path  string
	whole      []byte // the segment, preallocated zeros included
	start, end int64  // of the last record
	before     []Entry
	last       []Entry
}

// lastRecord makes a log of a few records and a last one with data.
func lastRecord(t testing.TB, data []byte) *brokenLog {
	t.Helper()
	w, _ := openT(t, t.TempDir())
	b := &brokenLog{dir: w.opts.Dir, before: entriesOf(1, 1, 4, 50)}
	b.path = filepath.Join(b.dir, segmentDir, segmentName(0, 0))
	appendT(t, w, Record{Shard: 1, Entries: b.before[:2], HardState: HardState{Term: 1}})
	appendT(t, w, Record{Shard: 1, Entries: b.before[2:]})
	closeT(t, w)
	ends := frameEnds(t, b.path)
	b.start = ends[len(ends)-1]
	w, _ = openT(t, b.dir)
	b.last = []Entry{{Index: 5, Term: 2, Data: data}}
	appendT(t, w, Record{Shard: 1, Entries: b.last, HardState: HardState{Term: 2}})
	closeT(t, w)
	ends = frameEnds(t, b.path)
	b.end = ends[len(ends)-1]
	b.whole = readT(t, b.path)
	return b
}

// try puts content in the place of the segment and recovers. Full also opens, appends and
// opens again.
func (b *brokenLog) try(t testing.TB, content []byte, full bool) (*Recovered, error) {
	t.Helper()
	writeT(t, b.path, content)
	if !full {
		_, rec, err := recoverDir(filepath.Dir(b.path), discard)
		return rec, err
	}
	w, rec, err := Open(Options{Dir: b.dir, SegmentBytes: tiny})
	if err != nil {
		return nil, err
	}
	next := uint64(5)
	if n := len(rec.Shards[1].Entries); n > 4 {
		next = 6
	}
	more := entriesOf(9, next, next, 30)
	appendT(t, w, Record{Shard: 1, Entries: more})
	closeT(t, w)
	w, again := openT(t, b.dir)
	closeT(t, w)
	wantEntries(t, again, 1, append(append([]Entry(nil), rec.Shards[1].Entries...), more...))
	if again.Repaired != nil {
		t.Fatalf("repaired twice: %+v", again.Repaired)
	}
	return rec, nil
}

// wantTorn demands that content opens without the last record, or with it if it is whole.
func (b *brokenLog) wantTorn(t testing.TB, content []byte, full bool, what string) {
	t.Helper()
	rec, err := b.try(t, content, full)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	want := b.before
	if int64(len(content)) >= b.end && bytes.Equal(content[:b.end], b.whole[:b.end]) {
		want = append(append([]Entry(nil), want...), b.last...)
	}
	if got := rec.Shards[1].Entries; !sameEntries(got, want) {
		t.Fatalf("%s: recovered %s, want %s", what, describe(got), describe(want))
	}
	left := bytes.TrimRight(content[b.start:], "\x00")
	if len(want) > len(b.before) || len(left) == 0 {
		if rec.Repaired != nil && rec.Repaired.Bytes != 0 {
			t.Fatalf("%s: repaired %+v, and nothing was torn", what, rec.Repaired)
		}
		return
	}
	r := rec.Repaired
	if r == nil || r.File != b.path || r.Offset != b.start || r.Bytes != int64(len(left)) {
		t.Fatalf("%s: repair %+v", what, r)
	}
	if kept := readT(t, r.Kept); !bytes.Equal(kept, left) {
		t.Fatalf("%s: kept %d bytes of %d", what, len(kept), len(left))
	}
}

// payloads that could confuse: no zeros, only zeros, zeros in between.
func tornData(size int) map[string][]byte {
	mixed := bytes.Repeat([]byte{0, 0, 0, 7, 0}, size/5)
	return map[string][]byte{
		"letters": bytes.Repeat([]byte("abcdefg"), size/7),
		"zeros":   make([]byte, size),
		"mixed":   mixed,
		"none":    nil,
	}
}

// Every prefix of the last record is what a crash can leave: the rest being zeros, as it was
// preallocated, or the file ending there.
func TestTornAtEveryByte(t *testing.T) {
	step := int64(1)
	if testing.Short() {
		step = 7
	}
	for name, data := range tornData(150) {
		t.Run(name, func(t *testing.T) {
			b := lastRecord(t, data)
			for n := b.start; n <= b.end; n += step {
				full := (n-b.start)%24 < 2
				zeros := append(bytes.Clone(b.whole[:n]), make([]byte, len(b.whole)-int(n))...)
				b.wantTorn(t, zeros, full, fmt.Sprintf("zeros from %d", n-b.start))
				b.wantTorn(t, b.whole[:n], full, fmt.Sprintf("file ends at %d", n-b.start))
			}
		})
	}
}

// Longer records have only their end judged; without files this is fast.
func TestTornLongRecord(t *testing.T) {
	for name, data := range tornData(3000) {
		b := lastRecord(t, data)
		for n := b.start + 1; n < b.end; n++ {
			left := b.whole[b.start:n]
			zeros := append(bytes.Clone(left), make([]byte, 1000)...)
			if len(bytes.TrimRight(left, "\x00")) == 0 || bytes.HasPrefix(zeros, b.whole[b.start:b.end]) {
				continue // clean
			}
			if v := judgeTail(zeros, b.start, 2); !v.torn {
				t.Fatalf("%s: zeros from %d: %+v", name, n-b.start, v)
			}
			if v := judgeTail(left, b.start, 2); !v.torn {
				t.Fatalf("%s: file ends at %d: %+v", name, n-b.start, v)
			}
		}
	}
}

// A disk may write the sectors of one write in any order.
func TestTornSectors(t *testing.T) {
	for name, data := range tornData(2000) {
		t.Run(name, func(t *testing.T) {
			b := lastRecord(t, data)
			chunks := chunksOf(b.start, b.end)
			for kept := range 1 << len(chunks) {
				content := bytes.Clone(b.whole)
				for i, c := range chunks {
					if kept&(1<<i) == 0 {
						clear(content[c.from:c.to])
					}
				}
				b.wantTorn(t, content, kept%5 == 0, fmt.Sprintf("sectors kept %b", kept))
			}
		})
	}
}

// chunksOf cuts a range of a file at its sectors.
func chunksOf(from, to int64) []extent {
	var cs []extent
	for from < to {
		next := min(from/sectorBytes*sectorBytes+sectorBytes, to)
		cs = append(cs, extent{from, next})
		from = next
	}
	return cs
}

// A segment whose mark was torn in a crash, as etcd's cut leaves it, is no obstacle. One without what comes before the mark is no
// crash's work: a cut makes it durable before the segment can be seen, and there may have been entries behind it.
func TestTornCut(t *testing.T) {
	w, _ := openT(t, t.TempDir())
	es := entriesOf(1, 1, 2, tiny)
	appendT(t, w, Record{Shard: 1, Entries: es[:1]})
	appendT(t, w, Record{Shard: 1, Entries: es[1:]})
	from := ""
	w.opts.onStep = func(step string) {
		if step == "cut" {
			from = copyLog(t, w.opts.Dir)
		}
	}
	appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 3, 3, tiny)}) // needs a segment of its own
	closeT(t, w)
	name := segmentName(2, 3)
	path := filepath.Join(from, segmentDir, name)
	whole := readT(t, path)
	ends := frameEnds(t, path)
	if len(ends) != 3 {
		t.Fatalf("the new segment has %d frames, want checksum, metadata and mark", len(ends))
	}
	for n := int64(0); n <= ends[2]; n++ {
		for _, zeros := range []bool{true, false} {
			content := bytes.Clone(whole[:n])
			if zeros {
				content = append(content, make([]byte, len(whole)-int(n))...)
			}
			dir := copyLog(t, from)
			writeT(t, filepath.Join(dir, segmentDir, name), content)
			writeT(t, filepath.Join(dir, segmentDir, "0.tmp"), bytes.Repeat([]byte{7}, 100))
			if !bytes.HasPrefix(content, whole[:ends[1]]) { // the padding may be cut off, and is zero
				_, _, err := recoverDir(filepath.Join(dir, segmentDir), discard)
				wantCorrupt(t, err, name, 0, 0)
				continue
			}
			full := n%8 == 0 || n == ends[1]
			if !full {
				_, rec, err := recoverDir(filepath.Join(dir, segmentDir), discard)
				if err != nil {
					t.Fatalf("header cut at %d: %v", n, err)
				}
				wantEntries(t, rec, 1, es)
				continue
			}
			w, rec := openT(t, dir)
			wantEntries(t, rec, 1, es)
			appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 3, 3, 10)})
			closeT(t, w)
			w, rec = openT(t, dir)
			wantEntries(t, rec, 1, append(append([]Entry(nil), es...), entriesOf(1, 3, 3, 10)...))
			closeT(t, w)
		}
	}
}

// The number of files with cut-off ends has a limit.
func TestBrokenFilesAreFew(t *testing.T) {
	b := lastRecord(t, bytes.Repeat([]byte("x"), 100))
	for n := range maxBroken + 5 {
		writeT(t, filepath.Join(b.dir, fmt.Sprintf("old-%d%s", n, brokenExt)), []byte("x"))
	}
	b.wantTorn(t, b.whole[:b.end-20], true, "torn")
	ds, err := os.ReadDir(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range ds {
		if filepath.Ext(d.Name()) == brokenExt {
			n++
		}
	}
	if n != maxBroken {
		t.Fatalf("%d files are kept, want %d", n, maxBroken)
	}
}

// The length of a frame and the header behind it may lie in two sectors, of which either can be lost.
func TestTornHeaderAcrossSectors(t *testing.T) {
	for shift := range 8 {
		w, _ := openT(t, t.TempDir())
		b := &brokenLog{dir: w.opts.Dir, before: entriesOf(1, 1, 4, 50)}
		b.path = filepath.Join(b.dir, segmentDir, segmentName(0, 0))
		appendT(t, w, Record{Shard: 1, Entries: b.before})
		b.start = lastEnd(t, b.path)
		// Fill up with a second shard, until the next frame begins shift*8 bytes before a sector.
		const overhead = 56 // of the frame of the filler, about
		fill := int((3*sectorBytes-b.start-int64(shift)*8-overhead)/8) * 8
		for lastEnd(t, b.path)%sectorBytes != (sectorBytes-int64(shift)*8)%sectorBytes {
			closeT(t, w)
			writeT(t, b.path, append(readT(t, b.path)[:b.start], make([]byte, tiny-b.start)...))
			w, _ = openT(t, b.dir)
			appendT(t, w, Record{Shard: 2, Entries: entriesOf(1, 1, 1, fill)})
			fill++
		}
		b.start = lastEnd(t, b.path)
		b.last = entriesOf(2, 5, 5, 900)
		appendT(t, w, Record{Shard: 1, Entries: b.last})
		closeT(t, w)
		b.whole, b.end = readT(t, b.path), lastEnd(t, b.path)
		chunks := chunksOf(b.start, b.end)
		for kept := range 1 << len(chunks) {
			content := bytes.Clone(b.whole)
			for i, c := range chunks {
				if kept&(1<<i) == 0 {
					clear(content[c.from:c.to])
				}
			}
			b.wantTorn(t, content, false, fmt.Sprintf("shift %d, sectors kept %b", shift, kept))
		}
	}
}

func lastEnd(t testing.TB, path string) int64 {
	t.Helper()
	ends := frameEnds(t, path)
	return ends[len(ends)-1]
}

// What no crash leaves is corruption, one case for each way to tell.
func TestJudgeTail(t *testing.T) {
	b := lastRecord(t, bytes.Repeat([]byte("abcdefg"), 200))
	for name, tc := range map[string]struct {
		change func(c []byte) []byte
		torn   bool
	}{
		"a flipped bit":                        {func(c []byte) []byte { c[700] ^= 4; return c }, false},
		"a flipped bit, a lost sector":         {func(c []byte) []byte { c[300] ^= 4; clear(c[512:1024]); return c }, true},
		"an end that is lost, and data":        {func(c []byte) []byte { c[len(c)-9] = 0; return append(c, 0, 0, 7) }, false},
		"data behind":                          {func(c []byte) []byte { c[700] ^= 4; clear(c[512:1024]); return append(c, 0, 0, 7) }, false},
		"no length, the sector is there":       {func(c []byte) []byte { clear(c[:8]); return c }, false},
		"no length, the sector is lost":        {func(c []byte) []byte { clear(c[:512]); return c }, true},
		"a longer length, the file ends":       {func(c []byte) []byte { c[2] |= 1; return c }, false},
		"a shorter length":                     {func(c []byte) []byte { c[1] = 0; return c }, false},
		"half a length":                        {func(c []byte) []byte { clear(c[1:]); return c }, true},
		"the file ends in the data":            {func(c []byte) []byte { return c[:900] }, true},
		"the file ends, and the length is off": {func(c []byte) []byte { c[0] ^= 8; return c[:900] }, false},
		"the file ends in the length":          {func(c []byte) []byte { return c[:5] }, true},
		"an impossible length":                 {func(c []byte) []byte { c[6] = 1; return c }, false},
	} {
		// The frame is moved to the start of a sector.
		c := tc.change(bytes.Clone(b.whole[b.start:b.end]))
		if v := judgeTail(c, 0, 2); v.torn != tc.torn {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// A value may hold frames of a log, of this one even. They do not follow the torn record that they are in.
func TestTornRecordWithFrames(t *testing.T) {
	var data []byte
	for i := range uint64(16) {
		var enc encoder
		index := 3 + i%2 // the torn record is entry 3
		_, f := enc.seal(encodePayload(make([]byte, headSpace), index, 0, []Record{{Shard: 1, HardState: HardState{Term: i + 1}}}), index)
		data = append(append(data, f...), 'x') // each in another place between two multiples of 8
	}
	b := lastRecord(t, data)
	for n := b.start + lengthBytes + headerMax; n < b.end; n += 5 {
		left := b.whole[b.start:n]
		b.wantTorn(t, append(bytes.Clone(b.whole[:n]), make([]byte, len(b.whole)-int(n))...), n%8 == 0, fmt.Sprintf("zeros from %d", n-b.start))
		// What follows it is found all the same.
		behind := append(append(bytes.Clone(left), make([]byte, b.end-n)...), b.following()...)
		if v := judgeTail(behind, b.start, 2); v.torn {
			t.Fatalf("zeros from %d, and another record: %+v", n-b.start, v)
		}
	}
	// Without the sector of its length, what no frame behind it could be is passed over.
	var enc encoder
	_, far := enc.seal(encodePayload(make([]byte, headSpace), 1000, 0, nil), 1000)
	rest := append(make([]byte, 2*sectorBytes), far...)
	if v := judgeTail(rest, 0, 2); !v.torn {
		t.Errorf("entry 1000 behind entry 2: %+v", v)
	}
	_, near := enc.seal(encodePayload(make([]byte, headSpace), 4, 0, nil), 4)
	if v := judgeTail(append(rest[:2*sectorBytes], near...), 0, 2); v.torn {
		t.Errorf("entry 4 behind entry 2: %+v", v)
	}
}

// following is a record that may follow the last one.
func (b *brokenLog) following() []byte {
	var enc encoder
	_, f := enc.seal(encodePayload(make([]byte, headSpace), 4, 0, []Record{{Shard: 7, HardState: HardState{Term: 1}}}), 4)
	return f
}
