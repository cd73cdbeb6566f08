package state

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// lazyFS is the disk of a process that is killed before it syncs some of its files.
type lazyFS struct {
	vfs.FS
	which func(name string) bool
	lazy  atomic.Bool
}

func (l *lazyFS) wrap(f vfs.File, name string, err error) (vfs.File, error) {
	if err != nil || !l.which(name) {
		return f, err
	}
	return &lazyFile{f, l}, nil
}

func (l *lazyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, c)
	return l.wrap(f, name, err)
}

func (l *lazyFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := l.FS.OpenReadWrite(name, c, opts...)
	return l.wrap(f, name, err)
}

func (l *lazyFS) OpenDir(name string) (vfs.File, error) {
	f, err := l.FS.OpenDir(name)
	return l.wrap(f, name, err)
}

type lazyFile struct {
	vfs.File
	l *lazyFS
}

func (f *lazyFile) Sync() error     { return f.unlessLazy(f.File.Sync) }
func (f *lazyFile) SyncData() error { return f.unlessLazy(f.File.SyncData) }

func (f *lazyFile) unlessLazy(sync func() error) error {
	if f.l.lazy.Load() {
		return nil
	}
	return sync()
}

// A flush whose record in the manifest a killed process has not synced is there when the store is opened again, out of the kernel's memory, and
// the log lets go of what was flushed. So it has to be durable then. Pebble begins another manifest when it opens; this notices if it does not.
func TestPowerCutAfterKill(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fs := &lazyFS{FS: mem, which: func(name string) bool { return strings.Contains(name, "MANIFEST-") }}
	s := open(t, fs)
	h := openShard(t, s, 1)
	for i := range uint64(3) {
		fs.lazy.Store(i == 2)
		h.Set([]byte("k"), []byte{byte(i)})
		flush(t, h, Flush{Index: i + 1, Meta: []byte("m"), Journal: []JournalEntry{{Index: i + 1, Term: 1}}})
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if lost := flushedIn(t, mem.CrashClone(vfs.CrashCloneCfg{})); lost != 2 {
		t.Fatalf("flushed up to %d without the sync, so it is not what this test is about", lost)
	}
	s = open(t, mem)
	h = openShard(t, s, 1)
	told, kept := h.FlushedIndex(), flushedIn(t, mem.CrashClone(vfs.CrashCloneCfg{}))
	if told != 3 || kept != told {
		t.Errorf("opened, it is flushed up to %d; after a power cut up to %d", told, kept)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// flushedIn opens an image and returns up to where its shard is flushed.
func flushedIn(t *testing.T, image *vfs.MemFS) uint64 {
	t.Helper()
	s := open(t, image)
	h := openShard(t, s, 1)
	defer func() {
		h.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	return h.FlushedIndex()
}

// The same of the names that a process makes at its first start: a store that was found is not lost later.
func TestPowerCutAfterKillAtTheFirstStart(t *testing.T) {
	for _, dir := range []string{"/data", "/data/state"} {
		mem := vfs.NewCrashableMem()
		fs := &lazyFS{FS: mem, which: func(name string) bool { return name == dir }}
		fs.lazy.Store(true)
		if err := open(t, fs).Close(); err != nil {
			t.Fatal(err)
		}
		s := open(t, mem)
		h := openShard(t, s, 1)
		flush(t, h, Flush{Index: 1, Meta: []byte("m"), Journal: []JournalEntry{{Index: 1, Term: 1}}})
		if kept := flushedIn(t, mem.CrashClone(vfs.CrashCloneCfg{})); kept != 1 {
			t.Errorf("without the names in %s that the first had not synced: flushed up to %d", dir, kept)
		}
		h.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
