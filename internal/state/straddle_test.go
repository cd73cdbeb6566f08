package state

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// shardsOf returns the ids of the shards with which the keys of a table begin and end.
func shardsOf(i pebble.SSTableInfo) (first, last uint64) {
	return binary.BigEndian.Uint64(i.Smallest.UserKey), binary.BigEndian.Uint64(i.Largest.UserKey)
}

// TestTablesEndWithTheirShard: no table that a compaction writes holds keys of two shards, and there are not many more of them for it.
//
// Mutation with which it was seen to fail: no SpanPolicyFunc.
func TestTablesEndWithTheirShard(t *testing.T) {
	const shards = 64
	r := testkit.Random(t)
	s := open(t, vfs.NewMem())
	var hs [shards]*Shard
	var was [shards]durable
	id := func(i int) uint64 { return []uint64{1, 1 << 8, 1 << 56, 1<<64 - shards}[i%4] + uint64(i) }
	for i := range hs {
		hs[i], was[i] = openShard(t, s, id(i)), newDurable()
	}
	for range 3 {
		for i, h := range hs {
			was[i] = fill(t, r, h, was[i], 1)
		}
		compact(t, s)
	}
	levels, err := s.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	tables := 0
	for n, level := range levels {
		for _, table := range level {
			if first, last := shardsOf(table); first != last {
				t.Errorf("level %d: table %d has keys of the shards %d to %d", n, table.BackingSSTNum, first, last)
			}
			tables++
		}
	}
	if tables > 2*shards {
		t.Errorf("%d tables of %d shards", tables, shards)
	}
	t.Logf("%d tables", tables)
	for i, h := range hs {
		if err := sameDurable(h, was[i]); err != nil {
			t.Errorf("shard %d: %v", id(i), err)
		}
		h.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestInstallBesideDamage replaces a shard while some block is damaged, each in turn, of the table that it has alone or, as programs left it before
// tables ended with their shard, together with its neighbours. Whether it can be done or not: what the neighbours have is never absent.
//
// Mutations with which it was seen to fail: no SpanPolicyFunc ("apart": refused); replace does not ask mayExcise ("together"); both (both).
func TestInstallBesideDamage(t *testing.T) {
	t.Run("apart", func(t *testing.T) { installBesideDamage(t, false) })
	t.Run("together", func(t *testing.T) { installBesideDamage(t, true) })
}

func installBesideDamage(t *testing.T, together bool) {
	seed := testkit.Random(t).Uint64()
	done, refused := 0, 0
	for block := 0; ; block++ {
		b := besides{together: together, r: rand.New(rand.NewPCG(seed, 0)), fs: vfs.NewMem()}
		b.write(t)
		if !b.damage(t, block) {
			break
		}
		switch err := b.install(t); {
		case err == nil:
			done++
		case together && IsDamage(err):
			refused++
		default:
			t.Errorf("block %d: %v", block, err)
		}
	}
	t.Logf("%d times done, %d times refused", done, refused)
	if done < 3 || together && refused < 2 {
		t.Error("there is nothing to see")
	}
}

// TestInstallDuringCompaction: a table of several shards that a compaction takes apart, just before it is looked at, is not taken for damaged.
//
// Mutation with which it was seen to fail: mayExcise lists the tables once.
func TestInstallDuringCompaction(t *testing.T) {
	b := besides{together: true, r: testkit.Random(t), fs: vfs.NewMem()}
	b.write(t)
	s := b.open(t)
	h := openShard(t, s, 1)
	b.was[1] = fill(t, b.r, h, b.was[1], 1) // something to be compacted into the table
	h.Close()
	names, err := s.Tables(2)
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	gone := false
	mem := s.opts.FS
	s.opts.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind != errorfs.OpOpen || mem.PathBase(op.Path) != names[0] || gone {
			return nil
		}
		gone = true
		compact(t, s)
		for began := time.Now(); ; time.Sleep(time.Millisecond) { // pebble removes it on a goroutine of its own
			if _, err := mem.Stat(op.Path); err != nil {
				return nil
			}
			if time.Since(began) > 20*time.Second {
				t.Error("the table is still there")
				return nil
			}
		}
	}))
	j := &InstallJob{store: s, shard: 2, in: Install{Index: b.was[2].index, Tables: b.tables}}
	if err := j.Run(t.Context()); err != nil || !gone {
		t.Errorf("%v (the table is gone: %v)", err, gone)
	}
	b.intact(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// besides are three shards of one store, of which the second is to be replaced.
type besides struct {
	together bool
	r        *rand.Rand
	fs       *vfs.MemFS
	was      [4]durable
	tables   []string // of the second
	name     string   // of the table that is damaged
}

func (b *besides) open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(Options{Dir: "/s", FS: b.fs, Logger: quiet(), DisableCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *besides) write(t *testing.T) {
	t.Helper()
	s := b.open(t)
	for id := uint64(1); id <= 3; id++ {
		h := openShard(t, s, id)
		b.was[id] = fill(t, b.r, h, newDurable(), 3)
		h.Close()
	}
	b.tables, _ = cutTo(t, s, b.fs, 2, "/cut", 0)
	if !b.together {
		compact(t, s)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if b.together {
		o := *s.dbOpts
		o.Cache, o.Experimental.SpanPolicyFunc = nil, nil
		o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
		db, err := pebble.Open(s.path(dbDir), &o)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Compact(t.Context(), []byte{0}, []byte{0xff}, false), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// damage flips a byte in the n-th block of the second shard's only table, if there is one.
func (b *besides) damage(t *testing.T, n int) bool {
	t.Helper()
	s := b.open(t)
	names, err := s.Tables(2)
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	b.name = s.opts.FS.PathJoin(s.path(dbDir), names[0])
	r, err := openTable(t.Context(), b.fs, b.name, s.dbOpts.MakeReaderOptions())
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.Layout()
	if err := errors.Join(err, r.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if n >= len(l.Data) {
		return false
	}
	bytes, err := b.fs.UnsafeGetFileDataBuffer(b.name)
	if err != nil {
		t.Fatal(err)
	}
	bytes[l.Data[n].Offset+l.Data[n].Length/2] ^= 1
	return true
}

// install replaces the second shard and looks at the others, now and after a restart.
func (b *besides) install(t *testing.T) error {
	t.Helper()
	s := b.open(t)
	b.intact(t, s)
	j := &InstallJob{store: s, shard: 2, in: Install{Index: b.was[2].index, Tables: b.tables}} // the shard may not open
	err := j.Run(t.Context())
	b.intact(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = b.open(t)
	b.intact(t, s)
	if err == nil {
		h := openShard(t, s, 2)
		if err := sameDurable(h, installed(b.was[2])); err != nil {
			t.Error(err)
		}
		h.Close()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return err
}

// intact: each key of the neighbours reads as before or, where the damage is theirs, says that it cannot be read.
func (b *besides) intact(t *testing.T, s *Store) {
	t.Helper()
	for _, id := range []uint64{1, 3} {
		h, err := s.Shard(id)
		if err != nil {
			if !b.together || !IsDamage(err) {
				t.Errorf("shard %d: %v", id, err)
			}
			continue
		}
		if h.FlushedIndex() != b.was[id].index {
			t.Errorf("shard %d is at %d, it was at %d", id, h.FlushedIndex(), b.was[id].index)
		}
		for k, v := range b.was[id].state {
			var got []byte
			var ok bool
			switch p := caught(func() { got, ok = h.Get([]byte(k)) }).(type) {
			case nil:
				if !ok || string(got) != v {
					t.Errorf("shard %d: key %q is there: %v, %d bytes, it had %d", id, k, ok, len(got), len(v))
				}
			case *ReadError:
				if !b.together {
					t.Errorf("shard %d: %v", id, p)
				}
			default:
				t.Errorf("shard %d: %v", id, p)
			}
		}
		h.Close()
	}
}

// TestDamageOfSeveral: of the shards that share a damaged table those are told of it that cannot be read.
//
// Mutations with which it was seen to fail: damagedShards returns none; it returns all that the table has.
func TestDamageOfSeveral(t *testing.T) {
	seed := testkit.Random(t).Uint64()
	spared := 0
	for block := 0; ; block++ {
		b := besides{together: true, r: rand.New(rand.NewPCG(seed, 0)), fs: vfs.NewMem()}
		b.write(t)
		damaged := b.damage(t, block)
		s := b.open(t)
		var want []uint64
		for id := uint64(1); id <= 3; id++ {
			s.shards[id] = &Shard{} // as if it were open: it may not open
			span := shardSpan(id)
			it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: span.Start, UpperBound: span.End})
			if err != nil {
				t.Fatal(err)
			}
			for ok := it.First(); ok; ok = it.Next() {
			}
			if it.Error() != nil {
				want = append(want, id)
			} else {
				spared++
			}
			_ = it.Close()
		}
		if got := s.damagedShards(b.fs.PathBase(b.name), 1, 3); !slices.Equal(got, want) || damaged != (len(want) > 0) {
			t.Errorf("block %d: the damage is said to be of the shards %v, want %v", block, got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !damaged {
			break
		}
	}
	if spared <= 3 {
		t.Error("there is nothing to see")
	}
}
