package state

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	markerName = "FORMAT"
	dbDir      = "pebble"
	ingestDir  = "ingest"

	defaultCacheBytes = 64 << 20
	defaultOpenFiles  = 1000
)

// Options say where a store lives and how much memory it may take.
type Options struct {
	// Dir is created if missing. Required. One store per directory: pebble holds a lock on it.
	Dir string
	// FS is vfs.Default if nil.
	FS vfs.FS
	// Cache, if set, is used instead of an own cache, and CacheBytes must be 0.
	Cache *Cache
	// CacheBytes is the size of the own block cache; 0 means 64 MiB.
	CacheBytes int64
	// OpenFiles is how many tables are kept open, about; 0 means 1000. A shard has one for each level and more at the top.
	OpenFiles int
	// Logger is slog.Default if nil.
	Logger *slog.Logger
	// DisableCompactions keeps pebble from any work of its own, for simulations: files are
	// never merged, so that it must not be set where flushes go on for long.
	DisableCompactions bool
	// ReadOnly opens what is there and changes nothing, not even what a crash has left. The store must exist. Only Cut, ShardIDs and reads
	// of shards are allowed; a flush or an install fails.
	ReadOnly bool
	// OnFatal is called at most once, on any goroutine, with the first error
	// that leaves the store unfit for use: of a compaction, of the manifest. Damaged tables are not, see OnDamage; nor is a compaction without room.
	// It must not call the store. The node must stop. Nil: logged only.
	OnFatal func(error)
	// OnDamage is called, again and again, but once in five seconds at most, on a goroutine of its own, when work of the store's own meets a damaged
	// table (the name of its file), for each shard whose keys the damage is among. Reads of that shard may not have met it, and it may have been replaced meanwhile. Close
	// does not wait for it, and it may come later: of the store it may call Tables and Replaced.
	OnDamage func(shard uint64, table string, err error)

	failedPause, closePatience time.Duration // instead of the usual ones, for tests
}

// Cache is a block cache for several stores of one process.
type Cache struct{ c *pebble.Cache }

// NewCache returns a cache of that many bytes.
func NewCache(bytes int64) *Cache { return &Cache{pebble.NewCache(bytes)} }

// Close gives the memory back when the last store that uses it is closed too.
func (c *Cache) Close() { c.c.Unref() }

// Store is the durable state of all shards of a node. Its methods may be called on
// any goroutine, Close last.
type Store struct {
	opts   Options
	db     *pebble.DB
	dbOpts *pebble.Options
	fatal  *fatal
	damage damage
	fence  *fence // around pebble
	// patience sees to it that compactions which fail are not run again at once.
	patience *patience

	closing  chan struct{} // closed by Close
	tableSeq atomic.Uint64 // names of tables to ingest
	versions atomic.Int64  // that are open
	pins     pins
	replaced atomic.Uint64 // shards, since Open
	figures  figures

	running sync.RWMutex // held for reading while a flush or an install runs, by Close for writing
	closed  bool         // guarded by running

	// excise is held for writing while a shard is being replaced. Flushes do not take it: they are
	// seen whole or not at all.
	excise sync.RWMutex

	mu     sync.Mutex
	shards map[uint64]*Shard // that are open
}

// Open opens or creates the store in o.Dir. A directory in a newer format is
// refused with ErrNewerFormat and left alone.
func Open(o Options) (*Store, error) {
	if o.Dir == "" {
		return nil, errors.New("state: Options.Dir is empty")
	}
	if o.CacheBytes < 0 || (o.Cache != nil && o.CacheBytes != 0) {
		return nil, errors.New("state: Options.CacheBytes is negative, or set together with Cache")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.OpenFiles = cmp.Or(o.OpenFiles, defaultOpenFiles)
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	s := &Store{opts: o, shards: make(map[uint64]*Shard), closing: make(chan struct{}), fence: &fence{}, patience: newPatience(cmp.Or(o.failedPause, failedPause))}
	s.fatal = &fatal{log: o.Logger, notify: o.OnFatal, broken: make(chan struct{})}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("state: open %s: %w", o.Dir, err)
	}
	return s, nil
}

// Close waits for flushes and installs under way and closes the files. With versions or cuts open
// it does nothing and returns ErrInUse. What was not flushed is gone: it is
// in the write-ahead log of the node. A second call returns ErrClosed. After a fatal error (see Options.OnFatal) it returns that, and leaves files open, but the directory
// can be opened again. A store that has met damage, or had no room, may not end; that counts as one.
func (s *Store) Close() error {
	s.running.Lock()
	defer s.running.Unlock()
	if s.closed {
		return ErrClosed
	}
	if n := s.versions.Load(); n > 0 {
		return fmt.Errorf("%w: %d", ErrInUse, n)
	}
	s.closed = true
	close(s.closing)
	var late <-chan time.Time
	if s.damage.met.Load() { // a compaction that fails and is run again may keep pebble from ending
		late = time.After(cmp.Or(s.opts.closePatience, closePatience))
	}
	err := s.fatal.guardUntil(late, s.db.Close)
	if ferr := s.fatal.get(); ferr != nil { // before, or meanwhile
		// Pebble may hold its locks for ever after a fatal error: leave it.
		s.leave()
		return fmt.Errorf("state: close after a fatal error: %w", ferr)
	}
	return err
}

// ShardIDs returns the ids of all shards that have been flushed, ascending.
func (s *Store) ShardIDs() (ids []uint64, err error) {
	s.excise.RLock()
	defer s.excise.RUnlock()
	it, err := s.db.NewIter(nil)
	if err != nil {
		return nil, fmt.Errorf("state: list shards: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; {
		if len(it.Key()) < prefixLen {
			return nil, fmt.Errorf("%w: key %s", ErrCorrupt, shortKey(it.Key()))
		}
		id := binary.BigEndian.Uint64(it.Key())
		metaKey := prefix(nil, id, kindMeta)
		if !it.SeekGE(metaKey) {
			if err := it.Error(); err != nil { // which the next seek would forget
				return nil, fmt.Errorf("state: list shards: shard %d: %w", id, err)
			}
		} else if string(it.Key()) == string(metaKey) {
			ids = append(ids, id)
		}
		if id++; id == 0 {
			break
		}
		ok = it.SeekGE(prefix(nil, id, 0))
	}
	return ids, it.Error()
}

// Shard opens a shard, which may be new, for one owner. It is closed with Shard.Close.
func (s *Store) Shard(id uint64) (*Shard, error) {
	if id == 0 {
		return nil, errors.New("state: shard 0 is no shard")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shards[id] != nil {
		return nil, fmt.Errorf("%w: %d", ErrShardOpen, id)
	}
	h := &Shard{store: s, id: id, active: newLayer()}
	h.keyBuf = prefix(nil, id, kindData)
	if err := h.load(); err != nil {
		return nil, fmt.Errorf("state: open shard %d: %w", id, err)
	}
	s.shards[id] = h
	return h, nil
}

// Metrics are figures for monitoring.
type Metrics struct {
	DiskBytes      uint64 // all files of the store
	CompactionDebt uint64 // bytes that wait to be compacted
	L0Files        int64
	L0Sublevels    int32
	ReadAmp        int // tables that a read may have to look into
	OpenVersions   int64
	OldestVersion  time.Duration // for how long that is kept, with all tables that it reads, of which most may have been replaced; 0: none
	Levels         [levels]Level // 0 first
	Compactions    int64         // since the store was opened, as all that follows
	Failed         int64         // compactions
	Ingested       uint64        // bytes of tables that flushes and installations brought
	Compacted      uint64        // bytes of tables that compactions wrote
	CacheBytes     int64         // now
	CacheHits      int64         // blocks that were found in memory
	CacheMisses    int64         // and those that were read from disk
}

// levels of the tree of tables.
const levels = 7

// Level is one of them.
type Level struct {
	Tables, Bytes int64
}

// Tables returns the names of the files that hold a shard's keys, without the directory, ascending: whose a damaged file is. It may be called at any time, as OnDamage may
// be: after Close it returns ErrClosed.
func (s *Store) Tables(shard uint64) (names []string, err error) {
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	span := shardSpan(shard)
	var all [][]pebble.SSTableInfo
	err = s.fatal.guard(func() (err error) { // else Close would wait for a lock that pebble never lets go
		all, err = s.db.SSTables(pebble.WithKeyRangeFilter(span.Start, span.End))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("state: list the tables of shard %d: %w", shard, err)
	}
	for _, level := range all {
		for i := range level {
			names = append(names, tableName(&level[i]))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// tableName is the name of the file that a table is, or is a part of.
func tableName(t *pebble.SSTableInfo) string { return fmt.Sprintf("%06d.sst", uint64(t.BackingSSTNum)) }

// figures are what pebble has told of itself last.
type figures struct {
	mu    sync.Mutex
	last  Metrics
	asked time.Time     // when it was asked for the next
	told  chan struct{} // closed when it has answered; nil: it was not asked
}

// metricsPatience is for a pebble that writes its manifest, which it does not interrupt to tell.
const metricsPatience = time.Second

// Metrics returns present figures. It is cheap enough for every few seconds, not for every command. If a write of the store's hangs, it waits no longer than
// metricsPatience, all calls together, and has the figures of before; those of versions are present ones all the same.
func (s *Store) Metrics() Metrics {
	f := &s.figures
	f.mu.Lock()
	if f.told == nil {
		f.asked, f.told = time.Now(), make(chan struct{})
		go s.askPebble(f.told)
	}
	told, late := f.told, time.NewTimer(time.Until(f.asked.Add(metricsPatience)))
	f.mu.Unlock()
	defer late.Stop()
	select {
	case <-told:
	case <-late.C:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.last
	out.OpenVersions, out.OldestVersion = s.versions.Load(), s.pins.oldest()
	return out
}

// askPebble gets figures for all who ask meanwhile.
func (s *Store) askPebble(told chan struct{}) {
	var m *pebble.Metrics
	err := s.fatal.guard(func() error { m = s.db.Metrics(); return nil })
	f := &s.figures
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil { // else pebble has failed, and tells nothing any more
		f.last = metricsOf(m)
	}
	f.told = nil
	close(told)
}

func metricsOf(m *pebble.Metrics) Metrics {
	out := Metrics{
		DiskBytes:      m.DiskSpaceUsage(),
		CompactionDebt: m.Compact.EstimatedDebt,
		L0Files:        m.Levels[0].TablesCount,
		L0Sublevels:    m.Levels[0].Sublevels,
		ReadAmp:        m.ReadAmp(),
		Compactions:    m.Compact.Count,
		Failed:         m.Compact.FailedCount,
		CacheBytes:     m.BlockCache.Size,
		CacheHits:      m.BlockCache.Hits,
		CacheMisses:    m.BlockCache.Misses,
	}
	for i := range min(levels, len(m.Levels)) {
		l := &m.Levels[i]
		out.Levels[i] = Level{Tables: l.TablesCount, Bytes: l.TablesSize}
		out.Ingested += l.TableBytesIngested
		out.Compacted += l.TableBytesCompacted
	}
	return out
}

// OpenFiles returns how many tables are kept open, at most.
func (s *Store) OpenFiles() int { return s.opts.OpenFiles }

// ingest makes the tables part of the store, all or none, durably.
func (s *Store) ingest(paths []string) error {
	return s.fatal.guard(func() error { return s.db.Ingest(context.Background(), paths) })
}
