package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// writer appends frames to the newest segment in dir, and begins the next one when the next frame does not fit. It is used
// by one goroutine.
//
// A frame is one write and one fdatasync, from the buffer in which it was encoded. After an error nothing may be
// written any more, not even the same again.
type writer struct {
	dir   string
	bytes int64 // of a segment
	enc   encoder
	tail  *os.File // locked; preallocated, and zero behind end
	seq   uint64   // of the tail
	end   int64    // where its frames end
	begun bool     // whether it has entries
	next  *preparer
	slow  func(took time.Duration)

	syncDir func(dir string) error
}

// slowSync is how long a sync may take without a warning, as with etcd.
const slowSync = time.Second

// openWriter opens the tail of a log that was found whole.
func openWriter(dir string, tail *segmentScan, bytes int64, slow func(time.Duration), syncDir func(string) error) (*writer, error) {
	w := &writer{dir: dir, bytes: bytes, enc: encoder{crc: tail.crc}, seq: tail.seq, end: tail.end, begun: tail.entries > 0, slow: slow, syncDir: syncDir}
	var err error
	if w.tail, err = lockFile(tail.path, os.O_WRONLY); err != nil {
		return nil, fmt.Errorf("wal: open %s: %w", tail.path, err)
	}
	// A repair may have cut off what was allocated.
	if err := preallocate(w.tail, bytes); err != nil {
		return nil, errors.Join(fmt.Errorf("wal: allocate %s: %w", tail.path, err), w.tail.Close())
	}
	w.next = prepare(dir, bytes)
	return w, nil
}

// fits reports whether the payload in buf, from headSpace on, still goes into a segment of limit bytes whose frames end at end.
func fits(end, limit int64, buf []byte) bool { return end+int64(len(buf)+len(zeros)) <= limit }

// full reports whether a segment must be begun for the payload in buf: one that is too large for any has one of its own.
func (w *writer) full(buf []byte) bool { return w.begun && !fits(w.end, w.bytes, buf) }

// save makes the payload in buf durable as physical entry index, and returns the buffer and the size of the frame that
// was made around the payload.
func (w *writer) save(index uint64, buf []byte) (all []byte, size int64, err error) {
	buf, frame := w.enc.seal(buf, index)
	w.begun = true
	return buf, int64(len(frame)), w.write(frame)
}

// mark writes the record that etcd starts to read from, behind a header that a crash has left without.
func (w *writer) mark(first uint64) error { return w.write(w.enc.mark(nil, first)) }

func (w *writer) write(b []byte) error {
	if _, err := w.tail.WriteAt(b, w.end); err != nil {
		return err
	}
	w.end += int64(len(b))
	return w.sync(w.tail)
}

func (w *writer) sync(f *os.File) error {
	start := time.Now()
	err := syncData(f)
	if took := time.Since(start); took > slowSync {
		w.slow(took)
	}
	return err
}

// cut begins the segment of which first will be the first entry. It is complete up to its header before it can be seen. What is
// preallocated and not used in the one before stays there, as zeros.
func (w *writer) cut(first uint64) error {
	f, err := w.next.take()
	if err != nil {
		// It was tried long ago, when the segment before was begun. There may be room again.
		w.next = prepare(w.dir, w.bytes)
		if f, err = w.next.take(); err != nil {
			return fmt.Errorf("allocate a segment: %w", err)
		}
	}
	header := w.enc.begin(nil, first)
	if _, err := f.WriteAt(header, 0); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := w.sync(f); err != nil {
		return errors.Join(err, f.Close())
	}
	name := filepath.Join(w.dir, segmentName(w.seq+1, first))
	if err := os.Rename(f.Name(), name); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := w.syncDir(w.dir); err != nil {
		// The next Open must not find it, and acknowledge what it writes there: its sync might not write the name (see makeDir).
		return errors.Join(err, os.Rename(name, f.Name()), f.Close())
	}
	old := w.tail
	w.tail, w.seq, w.end, w.begun = f, w.seq+1, int64(len(header)), false
	return old.Close()
}

// close gives up files and locks. All is durable.
func (w *writer) close() error { return errors.Join(w.next.close(), w.tail.Close()) }

// preparer allocates the file of the next segment ahead, on a goroutine of its own. It takes one that was released, if there is
// one: to free blocks and allocate others holds up the file system's journal, and with it every fsync, for
// 25 to 100 ms per 32 MiB where it is mounted with discard.
type preparer struct {
	spare chan string // what was released, under a temporary name
	files chan prepared
	quit  chan struct{}
	done  chan error
}

type prepared struct {
	f   *os.File
	err error
}

func prepare(dir string, bytes int64) *preparer {
	p := &preparer{spare: make(chan string, 1), files: make(chan prepared), quit: make(chan struct{}), done: make(chan error, 1)}
	go func() { p.done <- p.run(dir, bytes) }()
	return p
}

func (p *preparer) run(dir string, bytes int64) error {
	for n := 0; ; n++ {
		// Two names: the file before may not have got its own yet.
		f, err := p.allocate(filepath.Join(dir, fmt.Sprintf("%d.tmp", n%2)), bytes)
		select {
		case p.files <- prepared{f, err}:
			if err != nil {
				return nil // who took it begins anew, or dies of it
			}
		case <-p.quit:
			select {
			case path := <-p.spare:
				_ = os.Remove(path) // or the next Open does
			default:
			}
			if err != nil {
				return nil // nobody needs it any more
			}
			return errors.Join(os.Remove(f.Name()), f.Close())
		}
	}
}

// allocate returns a file of zeros. What a spare one held is durably gone: behind the end of a segment nothing may appear.
func (p *preparer) allocate(path string, bytes int64) (*os.File, error) {
	select {
	case spare := <-p.spare:
		f, err := reuse(spare, bytes)
		if !errors.Is(err, errors.ErrUnsupported) {
			return f, err
		}
	default:
	}
	f, err := lockFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := preallocate(f, bytes); err != nil {
		return nil, errors.Join(err, os.Remove(path), f.Close())
	}
	return f, nil
}

// reuse makes the file that is to become a segment of one that was one, which is gone after an error. The error is ErrUnsupported if
// that is not possible here.
func reuse(path string, bytes int64) (*os.File, error) {
	f, err := lockFile(path, os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Size() != bytes:
		err = errors.ErrUnsupported
	default:
		if err = zeroRange(f, bytes); err == nil {
			err = fsyncFile(f)
		}
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path), f.Close())
	}
	return f, nil
}

// recycle offers a released segment for the next one, and reports whether it was taken.
func (p *preparer) recycle(path string) bool {
	select {
	case p.spare <- path:
		return true
	default:
		return false
	}
}

// take returns the next file, which belongs to the caller. After an error it must not be called again.
func (p *preparer) take() (*os.File, error) {
	got := <-p.files
	return got.f, got.err
}

func (p *preparer) close() error {
	close(p.quit)
	return <-p.done
}
