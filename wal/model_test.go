package wal

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// seedFlag repeats a run: go test -run 'TestModel|TestCrashBetweenSteps' -wal.seed=N.
var seedFlag = flag.Uint64("wal.seed", 0, "seed of the random tests")

// seedOf returns the seed of the i-th run: first a fixed one, then new ones.
func seedOf(i int) uint64 {
	switch {
	case *seedFlag != 0:
		return *seedFlag
	case i == 0:
		return 1
	}
	return rand.Uint64()
}

// model is what a log must hold, in the simplest way.
type model struct {
	shards map[uint64]*modelShard
}

type modelShard struct {
	hard    HardState
	restart uint64
	flushed uint64
	first   uint64  // index of entries[0]
	entries []Entry // everything ever saved that was not replaced
}

func (m *model) apply(r Record) {
	if r.Forget {
		delete(m.shards, r.Shard)
	}
	if r.RestartAfter == 0 && r.HardState.IsZero() && len(r.Entries) == 0 {
		return
	}
	s := m.shards[r.Shard]
	if s == nil {
		s = &modelShard{}
		m.shards[r.Shard] = s
	}
	if r.RestartAfter != 0 {
		s.restart, s.flushed, s.entries = r.RestartAfter, r.RestartAfter, nil
	}
	if !r.HardState.IsZero() {
		s.hard = r.HardState
	}
	for _, e := range r.Entries {
		if len(s.entries) == 0 {
			s.first = e.Index
		}
		s.entries = append(s.entries[:e.Index-s.first], e)
	}
}

// clone returns a copy that shares entries.
func (m *model) clone() *model {
	c := &model{shards: make(map[uint64]*modelShard, len(m.shards))}
	for shard, s := range m.shards {
		one := *s
		one.entries = slices.Clone(s.entries)
		c.shards[shard] = &one
	}
	return c
}

func (s *modelShard) last() uint64 {
	if len(s.entries) == 0 {
		return max(s.restart, s.flushed)
	}
	return s.first + uint64(len(s.entries)) - 1
}

// from returns the entries from index on.
func (s *modelShard) from(index uint64) []Entry {
	if len(s.entries) == 0 || index > s.last() {
		return nil
	}
	return s.entries[max(index, s.first)-s.first:]
}

// check compares what was recovered: all that is not flushed must be there; what is flushed
// may be, if it is as it was.
func (m *model) check(rec *Recovered) error {
	for shard := range rec.Shards {
		if m.shards[shard] == nil {
			return fmt.Errorf("shard %d from nowhere", shard)
		}
	}
	for shard, s := range m.shards {
		got := rec.Shards[shard]
		if got == nil {
			got = &ShardLog{}
		}
		if got.HardState != s.hard {
			return fmt.Errorf("shard %d: hard state %+v, want %+v", shard, got.HardState, s.hard)
		}
		if got.RestartAfter != 0 && got.RestartAfter != s.restart {
			return fmt.Errorf("shard %d: restart %d, want %d", shard, got.RestartAfter, s.restart)
		}
		need := s.from(s.flushed + 1)
		if len(got.Entries) > len(need) {
			need = s.from(got.Entries[0].Index)
		}
		if !sameEntries(got.Entries, need) {
			return fmt.Errorf("shard %d, flushed %d: recovered %s, want %s", shard, s.flushed, describe(got.Entries), describe(need))
		}
	}
	return nil
}

// subject is a log under test and how to restart it.
type subject struct {
	log    Log
	reopen func() (Log, *Recovered)
}

func diskSubject(t *testing.T) *subject {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	s := &subject{log: w}
	s.reopen = func() (Log, *Recovered) {
		closeT(t, s.log)
		w, rec := openT(t, dir)
		return w, rec
	}
	return s
}

func memorySubject(t *testing.T) *subject {
	s := &subject{log: NewMemory()}
	s.reopen = func() (Log, *Recovered) {
		n, rec, err := s.log.(*Memory).Reopen()
		if err != nil {
			t.Fatal(err)
		}
		return n, rec
	}
	return s
}

func TestModel(t *testing.T) {
	runs := 12
	if testing.Short() {
		runs = 3
	}
	for name, make := range map[string]func(*testing.T) *subject{"disk": diskSubject, "memory": memorySubject} {
		for i := range runs {
			seed := seedOf(i)
			t.Run(fmt.Sprintf("%s/seed=%d", name, seed), func(t *testing.T) {
				runModel(t, make(t), rand.New(rand.NewPCG(seed, 0)))
			})
		}
	}
}

func runModel(t *testing.T, s *subject, rng *rand.Rand) {
	m := &model{shards: map[uint64]*modelShard{}}
	term := uint64(1)
	big := 400
	if _, ok := s.log.(*Memory); ok {
		big = 40_000
	}
	save := func(records ...Record) {
		appendT(t, s.log, records...)
		for _, r := range records {
			m.apply(r)
		}
	}
	reopen := func() {
		var rec *Recovered
		s.log, rec = s.reopen()
		if err := m.check(rec); err != nil {
			t.Fatal(err)
		}
		for shard, ms := range m.shards {
			s.log.Flushed(shard, ms.flushed)
		}
	}
	for range 300 {
		switch n := rng.IntN(100); {
		case n < 60:
			var records []Record
			for range 1 + rng.IntN(4) {
				term += uint64(rng.IntN(2))
				records = append(records, m.random(rng, term, big, records))
			}
			save(records...)
		case n < 80:
			if len(m.shards) == 0 {
				continue
			}
			shard := pick(rng, m.shards)
			ms := m.shards[shard]
			if ms.last() > ms.flushed {
				ms.flushed += 1 + rng.Uint64N(ms.last()-ms.flushed)
				s.log.Flushed(shard, ms.flushed)
			}
		case n < 92:
			for _, p := range s.log.Pinned() {
				save(m.again(t, p))
			}
		case n < 94:
			save()
		default:
			reopen()
		}
	}
	m.drain(t, s.log, save)
	reopen()
}

// random makes a record that is valid behind pending, which are not applied yet.
func (m *model) random(rng *rand.Rand, term uint64, big int, pending []Record) Record {
	r := Record{Shard: rng.Uint64N(6)}
	at := &modelShard{}
	if s := m.shards[r.Shard]; s != nil {
		c := *s
		c.entries = slices.Clone(s.entries)
		at = &c
	}
	sim := &model{shards: map[uint64]*modelShard{r.Shard: at}}
	for _, p := range pending {
		if p.Shard == r.Shard {
			sim.apply(p)
		}
	}
	if at = sim.shards[r.Shard]; at == nil {
		at = &modelShard{}
	}
	switch n := rng.IntN(30); {
	case n == 0:
		r.Forget, at = true, &modelShard{}
	case n == 1:
		r.RestartAfter = at.last() + 1 + rng.Uint64N(5)
		at = &modelShard{restart: r.RestartAfter, flushed: r.RestartAfter}
	}
	if rng.IntN(2) == 0 {
		r.HardState = HardState{Term: term, Vote: rng.Uint64N(3), Commit: rng.Uint64N(9)}
	}
	if rng.IntN(5) > 0 {
		first := at.last() + 1
		if unflushed := at.last() - at.flushed; rng.IntN(4) == 0 && unflushed > 0 && len(at.entries) > 0 {
			first -= min(rng.Uint64N(unflushed+1), uint64(len(at.entries)))
		}
		r.Entries = entriesOf(term, first, first+rng.Uint64N(4), rng.IntN(big))
	}
	return r
}

// again makes the record that frees the oldest segment of a shard's pin.
func (m *model) again(t *testing.T, p Pin) Record {
	s := m.shards[p.Shard]
	if s == nil {
		t.Fatalf("pin of an unknown shard: %+v", p)
	}
	r := Record{Shard: p.Shard}
	if p.HardState {
		r.HardState = s.hard
	}
	if p.First != 0 {
		if p.First != max(s.flushed+1, s.first) || p.Last > s.last() || p.Bytes > p.TailBytes {
			t.Fatalf("pin %+v of a shard that is flushed to %d and ends at %d", p, s.flushed, s.last())
		}
		r.Entries = s.from(p.First)
	}
	return r
}

// drain flushes everything, saves the hard states again and demands that the log becomes small.
func (m *model) drain(t *testing.T, l Log, save func(...Record)) {
	for shard, s := range m.shards {
		s.flushed = s.last()
		l.Flushed(shard, s.flushed)
	}
	for round := 0; ; round++ {
		segments, _ := l.Size()
		pins := l.Pinned()
		if segments <= 2 && pins == nil {
			return
		}
		if round > 200 {
			t.Fatalf("still %d segments, pinned by %+v", segments, pins)
		}
		for _, p := range pins {
			if p.First != 0 {
				t.Fatalf("everything is flushed, and yet: %+v", p)
			}
			save(m.again(t, p))
		}
		save()
	}
}

func pick(rng *rand.Rand, shards map[uint64]*modelShard) uint64 {
	keys := slices.Sorted(maps.Keys(shards))
	return keys[rng.IntN(len(keys))]
}
