package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultSegmentBytes is half of etcd's: a segment is the unit of release, and two are
// preallocated per node.
const DefaultSegmentBytes = 32 << 20

// maxSegmentBytes is a limit on Options.SegmentBytes.
const maxSegmentBytes = 1 << 30

// pageBytes is what SegmentBytes is rounded up to a multiple of: no file may end in the middle of a length.
const pageBytes = 4096

// keepBuffer is the capacity above which the encoding buffer is not kept between Appends.
const keepBuffer = 8 << 20

// Options are the settings of Open.
type Options struct {
	// Dir is the log's directory; it is created if absent. Required.
	Dir string
	// SegmentBytes is the size at which a segment ends: the Append after the one that
	// reached it is the segment's last. Two segments are preallocated. It is rounded up to a multiple of 4096. Zero means that of the logs open in
	// this process, or else DefaultSegmentBytes; all of them must have the same, because
	// etcd keeps it in a package variable. Limit: 1 GiB.
	SegmentBytes int64
	// Logger gets repairs, slow syncs and errors. Zero means none.
	Logger *slog.Logger

	// onStep, in tests, is told each step between which a crash could come.
	onStep func(step string)
}

func (o Options) resolve() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("wal: Options.Dir is empty")
	}
	if o.SegmentBytes < 0 || o.SegmentBytes > maxSegmentBytes {
		return o, fmt.Errorf("wal: Options.SegmentBytes is %d, the limits are 0 and %d", o.SegmentBytes, maxSegmentBytes)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.onStep == nil {
		o.onStep = func(string) {}
	}
	return o, nil
}

// WAL is the log on disk. See Log for its contract.
type WAL struct {
	opts Options
	lg   *slog.Logger

	// Owned by the goroutine that calls Append.
	log    *etcdLog
	next   uint64 // physical index of the next payload
	based  uint64 // Invariant: a durable payload says that no segment below is needed
	buf    []byte
	unlock func() error

	tracker *tracker
	closing sync.WaitGroup // files that are removed

	mu     sync.Mutex // fail
	failed error
	closed bool

	stats struct {
		appends, bytes, syncNanos, lastNanos, segments, released atomic.Uint64
	}
}

var _ Log = (*WAL)(nil)

// Open opens the log in Options.Dir, or creates it if there is none, and returns what
// it holds. An end that was torn by a crash is cut off (Recovered.Repaired); any other
// damage is a *CorruptionError, and nothing is changed on disk then.
func Open(opts Options) (*WAL, *Recovered, error) {
	opts, err := opts.resolve()
	if err != nil {
		return nil, nil, err
	}
	if err := makeDir(opts.Dir); err != nil {
		return nil, nil, err
	}
	unlock, err := lockDir(filepath.Join(opts.Dir, lockName))
	if err != nil {
		return nil, nil, err
	}
	w := &WAL{opts: opts, lg: opts.Logger, unlock: unlock}
	rec, err := w.open()
	if err != nil {
		return nil, nil, errors.Join(err, w.Close())
	}
	segments, bytes := w.Size()
	w.lg.Info("wal: opened", "dir", opts.Dir, "segment_bytes", w.log.bytes, "segments", segments,
		"bytes", bytes, "shards", len(rec.Shards), "next", w.next, "fresh", rec.Fresh)
	return w, rec, nil
}

func (w *WAL) open() (*Recovered, error) {
	dir := filepath.Join(w.opts.Dir, segmentDir)
	exists, err := hasSegments(dir)
	if err != nil {
		return nil, err
	}
	if !exists {
		if err := w.create(dir); err != nil {
			return nil, err
		}
	}
	found, rec, err := recoverDir(dir, w.lg)
	if err != nil {
		return nil, err
	}
	rec.Fresh = !exists
	if w.log, err = openEtcd(dir, found, w.opts.SegmentBytes, w.lg); err != nil {
		return nil, err
	}
	w.next, w.based, w.tracker = found.last+1, found.base, found.tracker
	if !found.tail.marked {
		// The crash came between the cut and its mark.
		w.opts.onStep("unmarked")
		if err := w.log.mark(w.next); err != nil {
			return nil, fmt.Errorf("wal: mark the tail: %w", err)
		}
	}
	return rec, nil
}

// create makes a log with a first segment, under another name: etcd's Create makes the directory's name durable, but not
// the segment's in it. A crash could leave the one without the other, or take the
// segment away later, with all that was acknowledged in it.
func (w *WAL) create(dir string) error {
	building := filepath.Join(w.opts.Dir, createDir)
	if err := os.RemoveAll(building); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	if err := createEtcd(building, w.opts.SegmentBytes, w.lg); err != nil {
		return err
	}
	if err := syncDir(building); err != nil {
		return err
	}
	if err := os.Rename(building, dir); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	return syncDir(w.opts.Dir)
}

// Append implements Log.
func (w *WAL) Append(records []Record) error {
	if err := w.dead(); err != nil {
		return err
	}
	if err := w.append(records); err != nil {
		return w.fail(err)
	}
	return nil
}

func (w *WAL) append(records []Record) error {
	if len(records) == 0 && w.tracker.base() == w.based {
		return w.removeOldest()
	}
	if err := w.tracker.validate(records); err != nil {
		return err
	}
	for {
		n := split(records)
		if err := w.write(records[:n]); err != nil {
			return err
		}
		if records = records[n:]; len(records) == 0 {
			return w.removeOldest()
		}
	}
}

// write makes one payload durable. It is one frame and one fsync: recovery relies on
// there never being two payloads of which neither is known to be durable.
func (w *WAL) write(records []Record) error {
	base := w.tracker.base()
	w.buf = encodePayload(w.buf, w.next, base, records)
	start := time.Now()
	cut, err := w.log.save(w.next, w.buf)
	if err != nil {
		return fmt.Errorf("wal: write entry %d: %w", w.next, err)
	}
	w.count(len(w.buf), time.Since(start))
	w.tracker.add(records, frameBytes(len(w.buf)))
	w.next++
	w.based = base
	if cap(w.buf) > keepBuffer {
		w.buf = nil
	}
	w.opts.onStep("saved")
	if cut {
		return w.markTail()
	}
	return nil
}

// markTail makes the segment that was just cut the place where a later Open starts.
func (w *WAL) markTail() error {
	w.opts.onStep("cut")
	old := w.tracker.tail()
	info, err := os.Stat(filepath.Join(w.log.dir, segmentName(old.seq, old.first)))
	if err != nil {
		return fmt.Errorf("wal: cut segment: %w", err)
	}
	w.tracker.cutTo(segment{seq: old.seq + 1, first: w.next}, info.Size())
	w.stats.segments.Add(1)
	if err := w.log.mark(w.next); err != nil {
		return fmt.Errorf("wal: mark segment %d: %w", old.seq+1, err)
	}
	w.opts.onStep("marked")
	return nil
}

// removeOldest removes the oldest segment if a durable payload says that nobody needs
// it. One at a time, so that no Append waits long. If the removal is lost in a crash the
// segment is back, and Open removes it again: it goes by the base, not by what it sees.
func (w *WAL) removeOldest() error {
	oldest, next, more := w.tracker.oldest()
	if !more || oldest.seq >= w.based {
		return nil
	}
	if err := w.log.unlock(next.first); err != nil {
		return fmt.Errorf("wal: unlock segment %d: %w", oldest.seq, err)
	}
	if err := w.removeFile(filepath.Join(w.log.dir, segmentName(oldest.seq, oldest.first))); err != nil {
		return fmt.Errorf("wal: release segment %d: %w", oldest.seq, err)
	}
	w.tracker.removed()
	w.stats.released.Add(1)
	w.opts.onStep("released")
	return nil
}

// removeFile removes a file whose blocks are given back later, on another goroutine: to free 32 MiB takes
// the file system 10 ms or more, for which no Append should wait. Whoever has the file open last pays.
func (w *WAL) removeFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return os.Remove(path) // for want of descriptors, say
	}
	err = os.Remove(path)
	w.closing.Go(func() { _ = f.Close() }) // was only read
	return err
}

// Flushed implements Log.
func (w *WAL) Flushed(shard, index uint64) { w.tracker.flush(shard, index) }

// Pinned implements Log.
func (w *WAL) Pinned() []Pin { return w.tracker.pinned() }

// Size implements Log. The tail counts what is written, not what is preallocated.
func (w *WAL) Size() (segments int, bytes int64) { return w.tracker.size() }

// Stats implements Log.
func (w *WAL) Stats() Stats {
	s := &w.stats
	n := s.appends.Load()
	return Stats{
		Appends: n, Bytes: s.bytes.Load(), Fsyncs: n,
		SyncTotal: time.Duration(s.syncNanos.Load()), SyncLast: time.Duration(s.lastNanos.Load()),
		Segments: s.segments.Load(), Released: s.released.Load(),
	}
}

func (w *WAL) count(bytes int, took time.Duration) {
	w.stats.appends.Add(1)
	w.stats.bytes.Add(uint64(bytes))
	w.stats.syncNanos.Add(uint64(took))
	w.stats.lastNanos.Store(uint64(took))
}

// dead returns why the log takes nothing any more.
func (w *WAL) dead() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// fail makes err the answer to every later Append.
func (w *WAL) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
		w.lg.Error("wal: the log is dead", "dir", w.opts.Dir, "error", err)
	}
	return w.failed
}

// Close implements Log.
func (w *WAL) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	if w.failed == nil {
		w.failed = ErrClosed
	}
	w.closing.Wait()
	var errs []error
	if w.log != nil {
		errs = append(errs, w.log.close())
	}
	return errors.Join(append(errs, w.unlock())...)
}
