package wal

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/internal/histogram"
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
	// SegmentBytes is the size of a segment: what does not fit begins the next one. Only a single write that is larger has a
	// segment of its own, of its size. Two segments are preallocated. It is rounded up to a multiple of 4096. Zero means
	// DefaultSegmentBytes. Limit: 1 GiB.
	SegmentBytes int64
	// Logger gets repairs, slow syncs and errors. Zero means none.
	Logger *slog.Logger

	// onStep, in tests, is told each step between which a crash could come.
	onStep func(step string)
	// syncDir makes the names in a directory durable. Tests have it fail.
	syncDir func(dir string) error
}

func (o Options) resolve() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("wal: Options.Dir is empty")
	}
	if o.SegmentBytes < 0 || o.SegmentBytes > maxSegmentBytes {
		return o, fmt.Errorf("wal: Options.SegmentBytes is %d, the limits are 0 and %d", o.SegmentBytes, maxSegmentBytes)
	}
	o.SegmentBytes = (cmp.Or(o.SegmentBytes, DefaultSegmentBytes) + pageBytes - 1) / pageBytes * pageBytes
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.onStep == nil {
		o.onStep = func(string) {}
	}
	if o.syncDir == nil {
		o.syncDir = syncDir
	}
	return o, nil
}

// WAL is the log on disk. See Log for its contract.
type WAL struct {
	opts Options
	lg   *slog.Logger

	// Owned by the goroutine that calls Append.
	log    *writer
	next   uint64 // physical index of the next payload
	based  uint64 // Invariant: a durable payload says that no segment below is needed
	buf    []byte // the payload is encoded from headSpace on
	unlock func() error

	tracker *tracker
	closing sync.WaitGroup // files that are removed

	mu     sync.Mutex // fail
	failed error
	closed bool

	stats struct {
		appends, bytes, lastNanos, segments, released atomic.Uint64
		syncs                                         histogram.Histogram
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
	if err := makeDir(opts.Dir, opts.syncDir); err != nil {
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
	w.lg.Info("wal: opened", "dir", opts.Dir, "segment_bytes", opts.SegmentBytes, "segments", segments,
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
	// Even if it is there: whoever made it may have died before.
	if err := w.opts.syncDir(w.opts.Dir); err != nil {
		if !exists { // see makeDir
			err = errors.Join(err, os.Rename(dir, filepath.Join(w.opts.Dir, createDir)))
		}
		return nil, err
	}
	found, rec, err := recoverDir(dir, w.lg)
	if err != nil {
		return nil, err
	}
	rec.Fresh = !exists
	if err := checkEtcd(dir, found, w.lg); err != nil {
		return nil, err
	}
	if w.log, err = openWriter(dir, found.tail, w.opts.SegmentBytes, w.slow, w.opts.syncDir); err != nil {
		return nil, err
	}
	w.next, w.based, w.tracker = found.last+1, found.base, found.tracker
	if !found.tail.marked {
		// An earlier version wrote the mark behind the cut, and a crash came between them.
		w.opts.onStep("unmarked")
		if err := w.log.mark(w.next); err != nil {
			return nil, fmt.Errorf("wal: mark the tail: %w", err)
		}
	}
	return rec, nil
}

// create makes a log with a first segment, under another name: etcd's Create makes the directory's name durable, but not
// the segment's in it. A crash could leave the one without the other, or take the
// segment away later, with all that was acknowledged in it. The caller makes the name dir durable.
func (w *WAL) create(dir string) error {
	building := filepath.Join(w.opts.Dir, createDir)
	if err := os.RemoveAll(building); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	if err := createEtcd(building, w.opts.SegmentBytes, w.lg); err != nil {
		return err
	}
	if err := w.opts.syncDir(building); err != nil {
		return err
	}
	if err := os.Rename(building, dir); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	return nil
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
	if w.buf == nil {
		w.buf = make([]byte, headSpace, 64<<10)
	}
	w.buf = encodePayload(w.buf[:headSpace], w.next, base, records)
	size := len(w.buf) - headSpace
	if w.log.full(w.buf) {
		if err := w.cut(); err != nil {
			return err
		}
	}
	start := time.Now()
	buf, frame, err := w.log.save(w.next, w.buf)
	if err != nil {
		return fmt.Errorf("wal: write entry %d: %w", w.next, err)
	}
	w.buf = buf
	w.count(size, time.Since(start))
	w.tracker.add(records, frame)
	w.next++
	w.based = base
	if cap(w.buf) > keepBuffer {
		w.buf = nil
	}
	w.opts.onStep("saved")
	return nil
}

// cut begins a segment with the next entry.
func (w *WAL) cut() error {
	size := w.log.end
	if err := w.log.cut(w.next); err != nil {
		return fmt.Errorf("wal: cut segment %d: %w", w.log.seq+1, err)
	}
	w.tracker.cutTo(segment{seq: w.log.seq, first: w.next}, size)
	w.stats.segments.Add(1)
	w.opts.onStep("cut")
	return nil
}

// slow tells of a sync that took long: the disk is at its limit, or ill.
func (w *WAL) slow(took time.Duration) {
	w.lg.Warn("wal: slow fdatasync", "dir", w.opts.Dir, "took", took, "expected", slowSync)
}

// removeOldest removes the oldest segment if a durable payload says that nobody needs
// it. One at a time, so that no Append waits long. If the removal is lost in a crash the
// segment is back, and Open removes it again: it goes by the base, not by what it sees.
func (w *WAL) removeOldest() error {
	oldest, more := w.tracker.oldest()
	if !more || oldest.seq >= w.based {
		return nil
	}
	path := filepath.Join(w.log.dir, segmentName(oldest.seq, oldest.first))
	if err := os.Rename(path, path+".tmp"); err != nil {
		return fmt.Errorf("wal: release segment %d: %w", oldest.seq, err)
	}
	if !w.log.next.recycle(path + ".tmp") {
		if err := w.removeFile(path + ".tmp"); err != nil {
			return fmt.Errorf("wal: release segment %d: %w", oldest.seq, err)
		}
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
	times := s.syncs.Counts()
	return Stats{
		Appends: n, Bytes: s.bytes.Load(), Fsyncs: n,
		SyncTotal: times.Sum, SyncLast: time.Duration(s.lastNanos.Load()), SyncTimes: times,
		Segments: s.segments.Load(), Released: s.released.Load(),
	}
}

func (w *WAL) count(bytes int, took time.Duration) {
	w.stats.appends.Add(1)
	w.stats.bytes.Add(uint64(bytes))
	w.stats.syncs.Record(took)
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
