package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Install is what a shard is to be replaced with.
type Install struct {
	// Index is the last applied entry that is in the tables, which must say the same.
	Index uint64
	// Tables are paths of files as Cut.Write made them, in the same order, in the store's file system. They are linked
	// or copied, never changed, and are the caller's to remove afterwards.
	Tables []string
}

// Install prepares the replacement of everything that there is of the shard: state, sessions, meta, journal,
// and what is in memory. The job is then Run elsewhere and handed back with Installed, or with AbandonInstall if Run failed.
//
// Until then the shard is as it was: it can be read, in versions too, but not written to or flushed.
// Versions and cuts that are open, or are taken until Installed, keep the old state for as long as they live.
//
// ErrBusy: a flush or an install is under way. A flush that came after the replacement would mix two states, so it has to end first.
// ErrStale: the shard has a later index on disk than the tables.
func (h *Shard) Install(in Install) (*InstallJob, error) {
	assert(h.scans == 0, "install during a scan")
	switch {
	case h.job != nil || h.install != nil:
		return nil, fmt.Errorf("%w: shard %d", ErrBusy, h.id)
	case in.Index < h.meta.index:
		return nil, fmt.Errorf("%w: shard %d is flushed up to %d, the tables end at %d", ErrStale, h.id, h.meta.index, in.Index)
	case len(in.Tables) == 0:
		return nil, fmt.Errorf("state: install of shard %d without tables", h.id)
	}
	j := &InstallJob{store: h.store, shard: h.id, in: in}
	if h.durable {
		j.old = h.acquireBase()
		h.store.versions.Add(1)
	}
	h.install = j
	return j, nil
}

// InstallJob is one install between Install and Installed.
type InstallJob struct {
	store *Store
	shard uint64
	in    Install
	meta  meta
	old   *base // what the shard shows meanwhile; nil if nothing was durable

	started atomic.Bool
	done    atomic.Bool
}

// Run checks the tables, all of their bytes, and puts them in the place of the shard in one step: after nil that has happened and is
// durable, after an error nothing has, except that an error in the very act (see Options.OnFatal)
// leaves it open until the next Open, which then finds the old state or the new one.
//
// It may be called once, on any goroutine. ctx ends the checking, not the step. ErrNotSynced: the same tables must not be installed again.
func (j *InstallJob) Run(ctx context.Context) error {
	assert(j.started.CompareAndSwap(false, true), "install job is run twice")
	s := j.store
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closed {
		return ErrClosed
	}
	paths, err := j.link()
	if err == nil {
		err = j.check(ctx, paths)
	}
	if err == nil {
		err = s.replace(j.shard, paths)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("state: install shard %d at %d: %w", j.shard, j.in.Index, err), j.discard(paths))
	}
	j.done.Store(true)
	return nil
}

// link gives the tables names of our own: pebble takes away the names that it is given.
func (j *InstallJob) link() (paths []string, err error) {
	fs := j.store.opts.FS
	for _, from := range j.in.Tables {
		name := fmt.Sprintf("%d-%d.sst", j.shard, j.store.tableSeq.Add(1))
		to := fs.PathJoin(j.store.path(ingestDir), name)
		paths = append(paths, to)
		if err := vfs.LinkOrCopy(fs, from, to); err != nil {
			return paths, err
		}
		if err := syncFile(fs, to); err != nil {
			return paths, fmt.Errorf("%w: %w", ErrNotSynced, err)
		}
	}
	return paths, nil
}

// syncFile makes sure of what the caller should have done: pebble names a table in its manifest without asking.
func syncFile(fs vfs.FS, name string) error {
	f, err := fs.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (j *InstallJob) check(ctx context.Context, paths []string) error {
	c, err := CheckTables(ctx, j.store.opts.FS, paths, j.shard)
	if bad := (*tableError)(nil); errors.As(err, &bad) {
		bad.path = j.in.Tables[slices.Index(paths, bad.path)] // our own names are gone when somebody reads this
	}
	if err != nil {
		return err
	}
	if c.Index != j.in.Index {
		return fmt.Errorf("%w: the tables are of index %d, expected was %d", ErrCorrupt, c.Index, j.in.Index)
	}
	j.meta = meta{index: c.Index, opaque: nonNil(c.Meta)}
	return nil
}

func (j *InstallJob) discard(paths []string) (err error) {
	for _, p := range paths {
		if rerr := j.store.opts.FS.Remove(p); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// replace makes the tables all that there is of the shard, in one edit of pebble's manifest, durably.
//
// Between the edit and the moment when pebble makes it visible, a new reader would find the shard empty.
// The shard itself and its versions read what they pinned before, and whoever else looks for shards takes excise.
func (s *Store) replace(shard uint64, paths []string) error {
	s.excise.Lock()
	defer s.excise.Unlock()
	return s.fatal.guard(func() error {
		span := shardSpan(shard)
		if err := s.mayExcise(span); err != nil {
			return err
		}
		if _, err := s.db.IngestAndExcise(context.Background(), paths, nil, nil, span); err != nil {
			return err
		}
		s.replaced.Add(1)
		s.patience.resume() // what has failed may be gone
		return nil
	})
}

// Replaced returns how many shards have been replaced since the store was opened. As long as it is the same, a damaged table that was a shard's still is.
func (s *Store) Replaced() uint64 { return s.replaced.Load() }

// mayExcise refuses to cut out a span if a table that reaches beyond it cannot be read at its ends. Pebble looks there for the last key before and
// the first after, and takes a block that it cannot read, which may be the shard's own, for the end of the table: the neighbours' keys would
// be gone, without an error. A table that lies in the span goes without being read.
//
// No compaction writes tables that reach beyond a shard (see oneShard), so what is read here cannot change before it is cut. Programs before that one did.
//
// A table that a compaction has split and removed since it was listed is none to look at any more.
func (s *Store) mayExcise(span pebble.KeyRange) (err error) {
	for range listsAtMost {
		if err = s.readBorders(span); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// listsAtMost: a table that is still listed after that, and is not there, was removed by somebody else.
const listsAtMost = 5

// readBorders looks at all tables that reach beyond the span.
func (s *Store) readBorders(span pebble.KeyRange) error {
	all, err := s.db.SSTables(pebble.WithKeyRangeFilter(span.Start, span.End))
	if err != nil {
		return err
	}
	for _, level := range all {
		for i := range level {
			t := &level[i]
			if bytes.Compare(t.Smallest.UserKey, span.Start) >= 0 && bytes.Compare(t.Largest.UserKey, span.End) < 0 {
				continue
			}
			if err := s.readAround(tableName(t), span); err != nil {
				return fmt.Errorf("table %s holds keys of other shards too and is damaged where they meet; to replace one would lose the others', so replace the node: %w",
					tableName(t), err)
			}
		}
	}
	return nil
}

// readAround does with a table what pebble will do, and looks at the errors.
func (s *Store) readAround(name string, span pebble.KeyRange) (err error) {
	ctx := context.Background()
	r, err := openTable(ctx, namesFS{fenced{s.opts.FS, s.fence}}, s.opts.FS.PathJoin(s.path(dbDir), name), s.dbOpts.MakeReaderOptions())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	it, err := r.NewIter(sstable.NoTransforms, nil, nil, sstable.AssertNoBlobHandles)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	it.SeekLT(span.Start, 0)
	if err := it.Error(); err != nil {
		return err
	}
	it.SeekGE(span.End, 0)
	return it.Error()
}

// Installed takes over a job whose Run returned nil: everything is as the tables say, nothing is in memory, and there are no
// marks to go back to. The journal is empty, and continues with the first entry after FlushedIndex.
func (h *Shard) Installed(j *InstallJob) {
	assert(h.scans == 0, "installed during a scan")
	assert(j == h.install && j.done.Load(), "installed with a job that is not this shard's or has not succeeded")
	h.endInstall()
	h.active, h.frozen, h.clean = newLayer(), nil, nil
	h.undo.release(h.undo.end())
	h.durable, h.meta, h.base = true, j.meta, nil
}

// AbandonInstall goes on with the old state after a Run that returned an error, or was not called.
// If the store is unfit (see Options.OnFatal) there is nothing to go on with.
func (h *Shard) AbandonInstall(j *InstallJob) {
	assert(j == h.install && !j.done.Load(), "abandoned install is not this shard's, or has happened")
	h.endInstall()
}

func (h *Shard) endInstall() {
	if old := h.install.old; old != nil {
		err := old.release()
		assert(err == nil, "snapshot does not close")
		h.store.versions.Add(-1)
	}
	h.install = nil
}

// reader is what the owner reads durable state from.
func (h *Shard) reader() pebble.Reader {
	if h.install != nil {
		return h.install.old.snap
	}
	return h.store.db
}

// getDurable reads what earlier flushes left under a whole key.
func (h *Shard) getDurable(key []byte) ([]byte, bool) {
	if h.install != nil {
		return h.install.old.get(key)
	}
	return getDurable(h.store.db, key)
}
