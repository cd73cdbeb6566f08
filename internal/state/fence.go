package state

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// errFenced is what pebble gets after it was left.
var errFenced = errors.New("state: this store has failed, and was left: it may not write any more")

// fence is between pebble and the disk. Pebble cannot be closed after a fatal error: what waits for the goroutine that met it waits for ever, and an Open may
// not return. It is left as it is, and nothing of it may reach the files any more, so that the directory can be opened again by the same process.
type fence struct {
	mu   sync.RWMutex // held for reading by whoever changes something
	down bool
	lock *lockOnce // pebble's, on its directory; nil: it has none
}

// pass begins a change of the disk, which leave ends.
func (f *fence) pass() error {
	f.mu.RLock()
	if f.down {
		f.mu.RUnlock()
		return errFenced
	}
	return nil
}

func (f *fence) leave() { f.mu.RUnlock() }

// change runs a change of the disk.
func (f *fence) change(run func() error) error {
	if err := f.pass(); err != nil {
		return err
	}
	defer f.leave()
	return run()
}

// fencePatience is how long a change that is under way is waited for. A disk that hangs keeps its lock.
const fencePatience = time.Second

// close lets nothing pass any more and gives the directory's lock back.
func (f *fence) close() error {
	for until := time.Now().Add(fencePatience); !f.mu.TryLock(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			return errors.New("a write of it does not end, so that its directory stays locked as long as this process lives")
		}
	}
	f.down = true
	lock := f.lock
	f.mu.Unlock()
	if lock == nil {
		return nil
	}
	return lock.Close()
}

// leave gives up on a store that has failed for good. Its files stay open.
func (s *Store) leave() {
	s.patience.end()
	if err := s.fence.close(); err != nil {
		s.opts.Logger.Error("the state store cannot be left", "dir", s.opts.Dir, "reason", err)
	}
}

// lockOnce is a lock that two may give back.
type lockOnce struct {
	io.Closer
	once sync.Once
}

func (l *lockOnce) Close() (err error) {
	l.once.Do(func() { err = l.Closer.Close() })
	return err
}

// fenced is a file system behind a fence.
type fenced struct {
	vfs.FS
	fence *fence
}

// Unwrap is part of vfs.FS.
func (d fenced) Unwrap() vfs.FS { return d.FS }

func (d fenced) Lock(name string) (io.Closer, error) {
	if err := d.fence.pass(); err != nil {
		return nil, err
	}
	defer d.fence.leave()
	l, err := d.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	d.fence.lock = &lockOnce{Closer: l} // pebble has one, and before anything else
	return d.fence.lock, nil
}

// open opens a file for writing.
func (d fenced) open(f func() (vfs.File, error)) (vfs.File, error) {
	if err := d.fence.pass(); err != nil {
		return nil, err
	}
	defer d.fence.leave()
	file, err := f()
	if err != nil {
		return nil, err
	}
	return fencedFile{file, d.fence}, nil
}

func (d fenced) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.open(func() (vfs.File, error) { return d.FS.Create(name, c) })
}

func (d fenced) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.open(func() (vfs.File, error) { return d.FS.OpenReadWrite(name, c, opts...) })
}

func (d fenced) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.open(func() (vfs.File, error) { return d.FS.ReuseForWrite(from, to, c) })
}

func (d fenced) Link(from, to string) error {
	return d.fence.change(func() error { return d.FS.Link(from, to) })
}

func (d fenced) Rename(from, to string) error {
	return d.fence.change(func() error { return d.FS.Rename(from, to) })
}

func (d fenced) Remove(name string) error {
	return d.fence.change(func() error { return d.FS.Remove(name) })
}

func (d fenced) RemoveAll(name string) error {
	return d.fence.change(func() error { return d.FS.RemoveAll(name) })
}

// fencedFile is one that was opened for writing.
type fencedFile struct {
	vfs.File
	fence *fence
}

func (f fencedFile) Write(b []byte) (int, error) {
	if err := f.fence.pass(); err != nil {
		return 0, err
	}
	defer f.fence.leave()
	return f.File.Write(b)
}

func (f fencedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fence.pass(); err != nil {
		return 0, err
	}
	defer f.fence.leave()
	return f.File.WriteAt(b, off)
}
