package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
)

const (
	bloomBitsPerKey = 10
	closePatience   = 10 * time.Second
)

// pebbleOptions: nothing is ever written through the memtable, so it is as
// small as pebble allows in practice, and there is no log.
func (s *Store) pebbleOptions(cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS:         namesFS{fenced{s.opts.FS, s.fence}},
		Cache:      cache,
		DisableWAL: true,
		ReadOnly:   s.opts.ReadOnly,
		// Pebble takes it out of the cache. The simulator relies on that: its smallCache is as large, so that nothing is cached.
		MemTableSize: 256 << 10,
		MaxOpenFiles: s.opts.OpenFiles,
		BytesPerSync: bytesPerSync,
		// By name and not FormatNewest, so that an update of pebble does not
		// by itself write files that yesterday's program cannot open.
		FormatMajorVersion: pebble.FormatValueSeparation,
		// A flush adds at most one sublevel to L0, and only over its own
		// shard's keys, so the depth seen by a read is that of one shard.
		L0CompactionThreshold:       8,
		L0StopWritesThreshold:       1 << 10,
		LBaseMaxBytes:               256 << 20,
		CompactionConcurrencyRange:  func() (lower, upper int) { return 1, 1 },
		DisableAutomaticCompactions: s.opts.DisableCompactions,
		DisableTableStats:           s.opts.DisableCompactions,
		Logger:                      s.fatal,
		EventListener: &pebble.EventListener{
			BackgroundError: s.backgroundError,
			CompactionEnd:   s.patience.ended,
			// Pebble's default is to exit. Whoever reads gets the error too:
			// a shard's read panics with ReadError, a compaction's is a BackgroundError.
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				if s.damage.news(i.Path, saidPause) {
					s.opts.Logger.Error("corrupt file in the state store", "path", i.Path, "err", i.Details)
				}
			},
		},
	}
	o.Experimental.CompactionScheduler = s.patience
	o.Experimental.SpanPolicyFunc = oneShard
	o.Levels[0].FilterPolicy = bloom.FilterPolicy(bloomBitsPerKey)
	o.Levels[0].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	o.EnsureDefaults()
	return o
}

// backgroundError is told what pebble's own work meets: compactions, and the look at every table's end that follows an Open. It holds pebble's lock if it is a compaction.
//
// Damage is one shard's: the others go on, and that one is mended, or waits for it. A compaction that finds no room has changed nothing, and is done again
// later: reads go on meanwhile [G11]. (If it is the manifest that finds none, pebble calls Fatalf before this.) Anything else leaves the store unfit.
func (s *Store) backgroundError(err error) {
	damaged := pebble.IsCorruptionError(err)
	switch {
	case damaged:
		s.damage.met.Store(true)
		s.tellDamage(err)
	case errors.Is(err, syscall.ENOSPC):
		s.damage.met.Store(true) // Close may have to wait as well
		if s.damage.news(compactionNews, saidPause) {
			s.opts.Logger.Error("the state store has no room to be compacted", "err", err)
		}
	default:
		s.fatal.set(err)
	}
	// Pebble does again at once what has failed, and so for ever, except compactions below the top level, which it leaves alone for minutes.
	if s.patience.noteFailure(err) || !damaged {
		return
	}
	select { // the look at the tables' ends, which holds no lock
	case <-time.After(s.patience.first):
	case <-s.closing:
	}
}

// tellDamage says whose table is damaged. It is met again and again, and told seldom.
func (s *Store) tellDamage(err error) {
	i := pebble.ExtractDataCorruptionInfo(err)
	if i == nil {
		if s.damage.news("", saidPause) {
			s.opts.Logger.Error("damage in the state store", "err", err)
		}
		return
	}
	first, last := i.Bounds.Start, i.Bounds.End.Key
	if s.opts.OnDamage == nil || len(first) < prefixLen || len(last) < prefixLen || !s.damage.news("tell "+i.Path, tellPause) {
		return
	}
	go func() { // pebble's lock may be held
		table := s.opts.FS.PathBase(i.Path)
		for _, shard := range s.damagedShards(table, binary.BigEndian.Uint64(first), binary.BigEndian.Uint64(last)) {
			s.opts.OnDamage(shard, table, err)
		}
	}()
}

// damagedShards returns those of the open shards from first to last that the damage of a table is in. Who has a table alone has its damage too; one of several
// shards, as earlier programs wrote them, is read.
func (s *Store) damagedShards(table string, first, last uint64) (ids []uint64) {
	if first == last {
		return []uint64{first}
	}
	s.mu.Lock()
	for id := range s.shards {
		if first <= id && id <= last {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	slices.Sort(ids)
	return slices.DeleteFunc(ids, func(id uint64) bool { return s.readOf(table, id) == nil })
}

// readOf reads what a table has of a shard. It may go on after Close, since it has nothing of pebble's but the file: these options have no cache.
func (s *Store) readOf(table string, shard uint64) (err error) {
	r, err := openTable(context.Background(), s.opts.FS, s.opts.FS.PathJoin(s.path(dbDir), table), s.dbOpts.MakeReaderOptions())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has been replaced
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	span := shardSpan(shard)
	it, err := r.NewIter(sstable.NoTransforms, span.Start, span.End, sstable.AssertNoBlobHandles)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for kv := it.First(); kv != nil; kv = it.Next() {
		select {
		case <-s.closing:
			return nil
		default:
		}
	}
	return it.Error()
}

// damage is what pebble has met of it.
type damage struct {
	met atomic.Bool // by work of its own

	mu   sync.Mutex
	said map[string]time.Time
}

// compactionNews is no file's name.
const compactionNews = "compaction"

// What is not mended is met again and again: how often it is logged, and told. What was told may have come too early for who was told.
const (
	saidPause = time.Minute
	tellPause = 5 * time.Second
)

// news reports whether something has not been said for that long.
func (d *damage) news(what string, pause time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if at, ok := d.said[what]; ok && now.Sub(at) < pause {
		return false
	}
	if d.said == nil {
		d.said = make(map[string]time.Time)
	}
	d.said[what] = now
	return true
}

// oneShard has a compaction end its table where the next shard begins, and changes nothing else. A table with the keys of several would have to be
// read when one of them is replaced, perhaps because it cannot be (see mayExcise). Flushes and installs write one shard's tables anyway.
func oneShard(key []byte) (_ pebble.SpanPolicy, end []byte, _ error) {
	var id [8]byte
	copy(id[:], key) // shorter ones are none of ours
	next := binary.BigEndian.Uint64(id[:]) + 1
	if next == 0 {
		return pebble.SpanPolicy{}, nil, nil
	}
	return pebble.SpanPolicy{}, binary.BigEndian.AppendUint64(nil, next), nil
}

// fatal keeps the first error after which the store is unfit, and is
// pebble's logger, whose Fatalf must not return. Ending the goroutine
// instead of the process lets the node, and a test with three nodes in one process, decide.
type fatal struct {
	log    *slog.Logger
	notify func(error)

	broken chan struct{} // closed when err is set

	mu  sync.Mutex
	err error
}

func (f *fatal) set(err error) {
	f.mu.Lock()
	first := f.err == nil
	if first {
		f.err = err
		close(f.broken)
	}
	f.mu.Unlock()
	if !first {
		return
	}
	f.log.Error("the state store is unfit for use", "err", err)
	if f.notify != nil {
		f.notify(err)
	}
}

func (f *fatal) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fatal) Infof(format string, args ...any) {
	if f.log.Enabled(context.Background(), slog.LevelDebug) { // pebble says much that nobody reads
		f.log.Debug(fmt.Sprintf(format, args...))
	}
}

func (f *fatal) Errorf(format string, args ...any) { f.log.Warn(fmt.Sprintf(format, args...)) }

func (f *fatal) Fatalf(format string, args ...any) {
	f.set(fmt.Errorf("state: pebble: "+format, args...))
	runtime.Goexit()
}

// guard runs fn on a goroutine of its own and waits for it, so that Fatalf
// ends that one and not the caller's. After a fatal error nothing is run, nor waited for: as long as a compaction fails
// and is run again, pebble's Close does not return.
func (f *fatal) guard(fn func() error) error { return f.guardUntil(nil, fn) }

// guardUntil waits no longer than late, and takes what has not ended by then for a fatal error.
func (f *fatal) guardUntil(late <-chan time.Time, fn func() error) error {
	if err := f.get(); err != nil {
		return err
	}
	err := errors.New("state: pebble gave up without a reason")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				f.set(fmt.Errorf("state: panic in pebble: %v\n%s", r, debug.Stack()))
			}
		}()
		err = fn()
	}()
	select {
	case <-done:
	case <-f.broken:
	case <-late:
		f.set(errors.New("state: pebble does not end"))
	}
	if ferr := f.get(); ferr != nil {
		return ferr
	}
	return err
}
