package wal

import (
	"cmp"
	"slices"
	"sync"
)

// tracker knows which segment is still needed, and by whom.
//
// The obvious design, counting for each segment the highest index per shard, looks at
// every shard of a segment for every question. Here each shard instead has its live
// entries as runs, one per segment, and each segment only a count of who points at it:
// appending, flushing and releasing are then a few steps per shard that changed.
//
// It is used by *WAL and *Memory; safe for concurrent use.
type tracker struct {
	mu     sync.Mutex
	shards map[uint64]*shardTrack
	// Invariant: ascending seq without gaps; the last one is the tail. Never empty.
	segments []segment
}

// segment is a file, or in Memory a slice of payloads.
type segment struct {
	seq   uint64
	first uint64 // physical index of its first entry, once it has one
	bytes int64
	// pins is the number of runs and hard states in it.
	pins int
}

// shardTrack is what one shard keeps in the log.
type shardTrack struct {
	flushed uint64
	end     logEnd
	hard    uint64 // seq of the segment with the newest hard state
	hasHard bool
	// Invariant: runs are contiguous, ascending, above flushed, one per segment.
	runs []run
}

// run is a range of live, unflushed entries in one segment.
type run struct {
	first, last uint64
	seq         uint64
	bytes       int64 // an estimate once the run has been cut
}

func newTracker(first segment) *tracker {
	return &tracker{shards: make(map[uint64]*shardTrack), segments: []segment{first}}
}

func (t *tracker) tail() *segment { return &t.segments[len(t.segments)-1] }

// at returns the segment with that seq, which must exist.
func (t *tracker) at(seq uint64) *segment { return &t.segments[seq-t.segments[0].seq] }

// end returns where a shard's log ends.
func (t *tracker) end(shard uint64) logEnd {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.shards[shard]; s != nil {
		return s.end
	}
	return logEnd{}
}

// add accounts for a payload of size bytes that is durable in the tail.
func (t *tracker) add(records []Record, size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tail().bytes += size
	for i := range records {
		t.addRecord(&records[i])
	}
}

func (t *tracker) addRecord(r *Record) {
	s := t.shards[r.Shard]
	if r.Forget && s != nil {
		t.drop(s)
		delete(t.shards, r.Shard)
		s = nil
	}
	if r.RestartAfter == 0 && r.HardState.IsZero() && len(r.Entries) == 0 {
		return
	}
	if s == nil {
		s = &shardTrack{}
		t.shards[r.Shard] = s
	}
	tail := t.tail()
	if r.RestartAfter != 0 {
		t.truncate(s, 0)
		s.flushed = r.RestartAfter
	}
	if !r.HardState.IsZero() {
		if s.hasHard {
			t.at(s.hard).pins--
		}
		s.hard, s.hasHard = tail.seq, true
		tail.pins++
	}
	end, err := s.end.after(&Record{RestartAfter: r.RestartAfter, Entries: r.Entries})
	if err != nil {
		panic("wal: tracking an unchecked record: " + err.Error())
	}
	s.end = end
	t.addEntries(s, r.Entries)
}

// addEntries replaces the shard's runs from the first entry on.
func (t *tracker) addEntries(s *shardTrack, entries []Entry) {
	if len(entries) == 0 {
		return
	}
	t.truncate(s, entries[0].Index)
	// Entries may be appended again while a flush overtakes them; the flushed ones hold nothing.
	for len(entries) > 0 && entries[0].Index <= s.flushed {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return
	}
	n := run{first: entries[0].Index, last: entries[len(entries)-1].Index, seq: t.tail().seq}
	for i := range entries {
		n.bytes += int64(len(entries[i].Data)) + entryOverhead
	}
	if k := len(s.runs); k > 0 && s.runs[k-1].seq == n.seq {
		s.runs[k-1].last = n.last
		s.runs[k-1].bytes += n.bytes
		return
	}
	s.runs = append(s.runs, n)
	t.tail().pins++
}

// truncate drops the shard's live entries from index on.
func (t *tracker) truncate(s *shardTrack, index uint64) {
	for k := len(s.runs); k > 0 && s.runs[k-1].last >= index; k-- {
		r := &s.runs[k-1]
		if r.first < index {
			r.cut(r.first, index-1)
			return
		}
		t.at(r.seq).pins--
		s.runs = s.runs[:k-1]
	}
}

// cut shortens a run; its bytes shrink in proportion.
func (r *run) cut(first, last uint64) {
	had, has := r.last-r.first+1, last-first+1
	r.bytes = int64(float64(r.bytes) * float64(has) / float64(had))
	r.first, r.last = first, last
}

// drop removes all of a shard's pins.
func (t *tracker) drop(s *shardTrack) {
	t.truncate(s, 0)
	if s.hasHard {
		t.at(s.hard).pins--
		s.hasHard = false
	}
}

// flush drops a shard's live entries up to index.
func (t *tracker) flush(shard, index uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.shards[shard]
	if s == nil || index <= s.flushed {
		return
	}
	s.flushed = index
	n := 0
	for n < len(s.runs) && s.runs[n].last <= index {
		t.at(s.runs[n].seq).pins--
		n++
	}
	s.runs = append(s.runs[:0], s.runs[n:]...)
	if len(s.runs) > 0 && s.runs[0].first <= index {
		s.runs[0].cut(index+1, s.runs[0].last)
	}
}

// base returns the seq of the oldest segment that is needed: what the next payload says.
func (t *tracker) base() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.oldestPinned().seq
}

// oldestPinned returns the oldest segment with a pin, or the tail.
func (t *tracker) oldestPinned() *segment {
	for i := range t.segments {
		if t.segments[i].pins > 0 {
			return &t.segments[i]
		}
	}
	return t.tail()
}

// cutTo makes a new segment the tail; the old one takes bytes in the end.
func (t *tracker) cutTo(next segment, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tail().bytes = bytes
	t.segments = append(t.segments, next)
}

// oldest returns the oldest segment, and whether there is one behind it.
func (t *tracker) oldest() (s segment, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.segments[0], len(t.segments) > 1
}

// removed forgets the oldest segment, which is gone.
func (t *tracker) removed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.segments[0].pins != 0 {
		panic("wal: removed a segment that is needed")
	}
	t.segments = append(t.segments[:0], t.segments[1:]...)
}

func (t *tracker) size() (segments int, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.segments {
		bytes += t.segments[i].bytes
	}
	return len(t.segments), bytes
}

// pinned implements Log.Pinned.
func (t *tracker) pinned() []Pin {
	t.mu.Lock()
	defer t.mu.Unlock()
	oldest := t.oldestPinned()
	if oldest.seq == t.tail().seq {
		return nil
	}
	pins := make([]Pin, 0, oldest.pins)
	for shard, s := range t.shards { // any order: they are sorted below
		p := Pin{Shard: shard, HardState: s.hasHard && s.hard == oldest.seq}
		// The oldest pinned segment can hold a shard's first run only.
		if len(s.runs) > 0 && s.runs[0].seq == oldest.seq {
			p.First, p.Last, p.Bytes = s.runs[0].first, s.runs[0].last, s.runs[0].bytes
			for _, r := range s.runs {
				p.TailBytes += r.bytes
			}
		}
		if p.HardState || p.First != 0 {
			pins = append(pins, p)
		}
	}
	slices.SortFunc(pins, func(a, b Pin) int { return cmp.Compare(a.Shard, b.Shard) })
	return pins
}
