package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
)

// TablesVersion names what the tables of a cut look like: the keys of doc.go in tables of
// pebble's format 7. A store installs tables of this version and of those before.
const TablesVersion = 1

// cutTableFormat is named, as the store's own format is, so that an update of pebble does not
// make snapshots that nodes not updated yet cannot read.
const cutTableFormat = sstable.TableFormatPebblev7

// Cut is a shard as of its last durable flush: what a snapshot is written from. It never changes, holds
// up nobody, and may be used on any goroutine, by one at a time. It must be closed: until
// then the tables that it reads stay on disk, those that compactions have replaced too.
type Cut struct {
	store  *Store
	shard  uint64
	meta   meta
	base   *base
	closed atomic.Bool
}

// Cut pins a shard's last durable flush. It takes no part of the shard's owner, which goes on writing
// and flushing: a flush is in the cut whole or not at all. ErrNotFlushed: there has been none. It waits while any shard is being replaced.
func (s *Store) Cut(shard uint64) (*Cut, error) {
	return s.cut(shard, func() bool { s.excise.RLock(); return true })
}

// TryCut is Cut for who must not wait for a disk, but for reads of it. ErrBusy: a shard is being replaced, try again.
func (s *Store) TryCut(shard uint64) (*Cut, error) { return s.cut(shard, s.excise.TryRLock) }

func (s *Store) cut(shard uint64, lock func() bool) (*Cut, error) {
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	if err := s.fatal.get(); err != nil {
		return nil, fmt.Errorf("state: cut shard %d: %w", shard, err)
	}
	if !lock() {
		return nil, fmt.Errorf("state: cut shard %d: %w", shard, ErrBusy)
	}
	b := s.newBase(shard)
	s.excise.RUnlock()
	c := &Cut{store: s, shard: shard, base: b}
	s.versions.Add(1)
	if err := c.load(); err != nil {
		c.Close()
		return nil, fmt.Errorf("state: cut shard %d: %w", shard, err)
	}
	return c, nil
}

// load reads the meta record from what is pinned, and from nowhere else: that is what makes
// index and state belong together.
func (c *Cut) load() (err error) {
	it, err := c.base.snap.NewIter(&pebble.IterOptions{
		LowerBound: prefix(nil, c.shard, kindMeta), UpperBound: prefixEnd(nil, c.shard, kindMeta)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		if err := it.Error(); err != nil {
			return err
		}
		return ErrNotFlushed
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return err
	}
	c.meta, err = decodeMeta(c.shard, v)
	return err
}

// Shard returns the shard's id.
func (c *Cut) Shard() uint64 { return c.shard }

// Index is the last applied entry that is in the cut. The log continues after it.
func (c *Cut) Index() uint64 { return c.meta.index }

// Meta returns the caller's record of the flush. It must not be changed.
func (c *Cut) Meta() []byte { return c.meta.opaque }

// JournalBounds returns the first and the last index of the journal that is in the cut, 0 and 0 if it is empty.
func (c *Cut) JournalBounds() (first, last uint64) { return c.meta.first, c.meta.last }

// Journal yields the entries from lo on, below hi. They are the caller's. An error of yield ends it and is returned. ErrCompacted: lo is below the first;
// and there is nothing beyond the last.
func (c *Cut) Journal(lo, hi uint64, yield func(JournalEntry) error) error {
	assert(!c.closed.Load(), "read of a closed cut")
	first, last := c.JournalBounds()
	if hi = min(hi, last+1); lo >= hi {
		return nil
	}
	if lo < first {
		return fmt.Errorf("%w: %d, the first is %d", ErrCompacted, lo, first)
	}
	return readJournal(c.base.snap, c.shard, lo, hi, func(e JournalEntry) error { return yield(e.clone()) })
}

// Close lets go of what the cut holds. A second call panics; a Write that is under way must have ended.
func (c *Cut) Close() {
	assert(c.closed.CompareAndSwap(false, true), "cut is closed twice")
	err := c.base.release()
	assert(err == nil, "snapshot does not close")
	c.store.versions.Add(-1)
}

// TableFile takes one table. It is written from front to end, then synced and closed.
type TableFile interface {
	io.Writer
	Sync() error
	io.Closer
}

// CutOptions say where a cut is written.
type CutOptions struct {
	// Create returns the file for the table number n, counted from 0. Required.
	Create func(n int) (TableFile, error)
	// TableBytes is at what size a table ends; 0 means 64 MiB. The last key can exceed it.
	TableBytes int64
}

// Contents is what the tables of a cut hold.
type Contents struct {
	Shard, Index uint64
	Meta         []byte // the caller's
	Tables       int
	Sections     []Section // those that are not empty, ascending by kind
}

// Section counts the keys of one kind.
type Section struct {
	Kind        byte   // as in the keys, see doc.go
	Keys, Bytes uint64 // of keys, prefix included, and values
}

func (c *Contents) count(kind byte, key, value int) {
	if n := len(c.Sections); n == 0 || c.Sections[n-1].Kind != kind {
		c.Sections = append(c.Sections, Section{Kind: kind})
	}
	s := &c.Sections[len(c.Sections)-1]
	s.Keys++
	s.Bytes += uint64(key + value)
}

// Write writes everything but the journal as tables, in the order of the keys, for CheckTables and Install.
// The meta record says that there is no journal: it begins anew after Index. What was written
// before an error, ctx's included, is the caller's to remove.
func (c *Cut) Write(ctx context.Context, o CutOptions) (Contents, error) {
	assert(!c.closed.Load(), "write of a closed cut")
	w := cutWriter{cut: c, o: o, out: Contents{Shard: c.shard, Index: c.meta.index, Meta: c.meta.opaque}}
	if w.o.TableBytes == 0 {
		w.o.TableBytes = tableBytes
	}
	err := w.copyKinds(ctx, 0, kindJournal)
	if err == nil {
		err = w.copyKinds(ctx, kindJournal+1, 0xff)
	}
	if err = errors.Join(err, w.finish()); err != nil {
		return Contents{}, fmt.Errorf("state: write a cut of shard %d: %w", c.shard, err)
	}
	return w.out, nil
}

// cutWriter is a Write under way.
type cutWriter struct {
	cut *Cut
	o   CutOptions
	w   *sstable.Writer // the present table, if there is one
	out Contents
}

// ctxEvery is after how many keys a cancelled context is noticed at the latest.
const ctxEvery = 64

// copyKinds writes the keys of the kinds lo <= kind < hi.
func (w *cutWriter) copyKinds(ctx context.Context, lo, hi byte) (err error) {
	it, err := w.cut.base.snap.NewIter(&pebble.IterOptions{
		LowerBound: prefix(nil, w.cut.shard, lo), UpperBound: prefix(nil, w.cut.shard, hi)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%ctxEvery == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := w.add(it.Key(), v); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return it.Error()
}

func (w *cutWriter) add(key, value []byte) error {
	kind := key[prefixLen-1]
	switch kind {
	case kindData, kindSession:
	case kindMeta:
		value = meta{index: w.cut.meta.index, opaque: w.cut.meta.opaque}.encode(w.cut.shard)
	default:
		return fmt.Errorf("%w: key %s is of no known kind", ErrCorrupt, shortKey(key))
	}
	if w.w != nil && w.w.Raw().EstimatedSize() >= uint64(w.o.TableBytes) {
		if err := w.finish(); err != nil {
			return err
		}
	}
	if w.w == nil {
		f, err := w.o.Create(w.out.Tables)
		if err != nil {
			return err
		}
		w.out.Tables++
		w.w = sstable.NewWriter(&tableSink{f: f}, w.cut.store.dbOpts.MakeWriterOptions(cutLevel, cutTableFormat))
	}
	w.out.count(kind, len(key), len(value))
	return w.w.Set(key, value)
}

// cutLevel is where an installed table goes: nothing lies below it, and it replaces what was there.
const cutLevel = 6

// finish ends the present table, if there is one, and syncs it.
func (w *cutWriter) finish() error {
	if w.w == nil {
		return nil
	}
	err := w.w.Close()
	w.w = nil
	return err
}

// tableSink is an objstorage.Writable over a TableFile.
type tableSink struct{ f TableFile }

func (s *tableSink) Write(p []byte) error {
	n, err := s.f.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

func (s *tableSink) Finish() error { return errors.Join(s.f.Sync(), s.f.Close()) }

// Abort is called after an error, which is the one that counts.
func (s *tableSink) Abort() { _ = s.f.Close() }
