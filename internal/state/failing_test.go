package state

import (
	"context"
	"errors"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// openFailing opens a store whose disk fails as it is told to; told gets shard and table of the damage that pebble meets by itself.
func openFailing(t *testing.T, fs vfs.FS, compactions bool, fails func(op errorfs.Op) error) (s *Store, told chan string) {
	t.Helper()
	told = make(chan string, 1)
	s, err := Open(Options{Dir: "/s", FS: errorfs.Wrap(fs, errorfs.InjectorFunc(fails)), Logger: quiet(), DisableCompactions: !compactions,
		OnFatal:  func(err error) { t.Errorf("fatal: %v", err) },
		OnDamage: telling(told)})
	if err != nil {
		t.Fatal(err)
	}
	return s, told
}

// TestUnreadableTable: a table in a bad sector is a damaged one, whoever meets it: the shard is to be given another state, and the store goes on.
//
// Mutation with which it was seen to fail: namesFS hands out tables as they are.
func TestUnreadableTable(t *testing.T) {
	r, fs := testkit.Random(t), vfs.NewMem()
	var bad atomic.Pointer[string]
	fails := func(op errorfs.Op) error {
		if b := bad.Load(); b != nil && op.Kind == errorfs.OpFileReadAt && path.Base(op.Path) == *b {
			return syscall.EIO
		}
		return nil
	}
	s, _ := openFailing(t, fs, false, fails)
	d, neighbour, tables, names := fillTwo(t, r, s, fs)

	s, _ = openFailing(t, fs, false, fails)
	bad.Store(&names[0])
	h := openShard(t, s, 1)
	if err, ok := caught(func() { collect(h.Scan(nil, nil), -1) }).(*ReadError); !ok || !IsDamage(err) || !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	h.Close()
	if c, err := s.Cut(1); err == nil {
		_, err = c.Write(t.Context(), CutOptions{Create: func(int) (TableFile, error) { return fs.Create("/vain", vfs.WriteCategoryUnspecified) }})
		c.Close()
		if !IsDamage(err) {
			t.Errorf("cut: %v", err)
		}
	} else if !IsDamage(err) { // there is not much of the shard: what is read first is in that table
		t.Errorf("begin of a cut: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s, told := openFailing(t, fs, true, fails)
	select {
	case got := <-told:
		if want := "1 " + names[0]; got != want {
			t.Errorf("told of shard and table %s, want %s", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody is told")
	}
	other := openShard(t, s, 2)
	neighbour = fill(t, r, other, neighbour, 3)
	j := &InstallJob{store: s, shard: 1, in: Install{Index: d.index, Tables: tables}} // the shard may not open
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = openShard(t, s, 1)
	if err := errors.Join(sameDurable(h, installed(d)), sameDurable(other, neighbour)); err != nil {
		t.Error(err)
	}
	h.Close()
	other.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCompactionWithoutRoom: a compaction that finds the disk full is done when there is room, and nobody else notices [G11].
//
// Mutation with which it was seen to fail: backgroundError sets fatal whatever the error.
func TestCompactionWithoutRoom(t *testing.T) {
	r, fs := testkit.Random(t), vfs.NewMem()
	var full atomic.Bool
	var refused atomic.Int64
	s, _ := openFailing(t, fs, true, func(op errorfs.Op) error {
		// What a flush writes stands in another directory.
		if full.Load() && (op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileWrite) && strings.HasPrefix(op.Path, "/s/"+dbDir) && strings.HasSuffix(op.Path, ".sst") {
			refused.Add(1)
			return syscall.ENOSPC
		}
		return nil
	})
	full.Store(true)
	h := openShard(t, s, 1)
	d := newDurable()
	d = fill(t, r, h, d, 20)
	for began := time.Now(); refused.Load() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("no compaction: %+v", s.Metrics())
		}
	}
	if err := s.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("compacted without room: %v", err)
	}
	d = fill(t, r, h, d, 5)
	if err := sameDurable(h, d); err != nil {
		t.Error(err)
	}
	full.Store(false)
	compact(t, s) // pebble itself waits for half a minute
	if err := sameDurable(h, d); err != nil {
		t.Error(err)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenAfterAFailure: a store that has failed for good, at work or while it was opened, does not keep its directory from being opened again by the same process, and
// changes nothing there any more.
//
// Mutation with which it was seen to fail: leave is not called, by Close or by open.
func TestOpenAfterAFailure(t *testing.T) {
	r, dir := testkit.Random(t), t.TempDir() // the lock that matters is a real one
	var full atomic.Bool
	open := func(ok bool) *Store {
		t.Helper()
		s, err := Open(Options{Dir: dir, Logger: quiet(), FS: errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpFileWrite && strings.HasPrefix(path.Base(op.Path), "MANIFEST-") {
				return syscall.ENOSPC
			}
			return nil
		}))})
		if ok != (err == nil) || !ok && !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("opened: %v", err)
		}
		return s
	}
	s := open(true)
	h := openShard(t, s, 1)
	d := fill(t, r, h, newDurable(), 3)
	before, err := fenced{vfs.Default, s.fence}.Create(path.Join(dir, "before"), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	h.Set([]byte("key"), []byte("value"))
	h.Freeze()
	if err := h.Flush(Flush{Index: d.index + 1}).Run(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("flushed: %v", err)
	}
	h.Close()
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("closed: %v", err)
	}
	for range 2 {
		open(false)
	}
	full.Store(false)
	again := open(true)
	left := fenced{vfs.Default, s.fence}
	_, err = before.Write([]byte("late"))
	_, cerr := left.Create(path.Join(dir, "late"), vfs.WriteCategoryUnspecified)
	for _, err := range []error{err, cerr, left.Rename(path.Join(dir, "before"), path.Join(dir, "late")), left.Remove(path.Join(dir, "before"))} {
		if !errors.Is(err, errFenced) {
			t.Errorf("a store that was left may still change something: %v", err)
		}
	}
	if err := before.Close(); err != nil {
		t.Error(err)
	}
	h = openShard(t, again, 1)
	if err := sameDurable(h, d); err != nil { // the manifest had no room: nothing of the last flush is there
		t.Error(err)
	}
	h.Close()
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// dirsFS tells when a directory is closed, as pebble's Close does first, before it gives the lock back.
type dirsFS struct {
	vfs.FS
	closes func()
}

func (d dirsFS) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	return dirFile{f, d.closes}, err
}

type dirFile struct {
	vfs.File
	closes func()
}

func (f dirFile) Close() error {
	f.closes()
	return f.File.Close()
}

// A store that fails while it is being closed gives its directory back, too.
//
// Mutation with which it was seen to fail: only one that has failed before is left.
func TestOpenAfterAFailureInClose(t *testing.T) {
	dir := t.TempDir()
	var s *Store
	var closing atomic.Bool
	hangs := make(chan struct{})
	t.Cleanup(func() { close(hangs) })
	var err error
	if s, err = Open(Options{Dir: dir, Logger: quiet(), FS: dirsFS{vfs.Default, func() {
		if closing.Load() {
			s.fatal.set(errors.New("the manifest has no room")) // as a compaction may that pebble's Close waits for
			<-hangs
		}
	}}}); err != nil {
		t.Fatal(err)
	}
	closing.Store(true)
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("close: %v", err)
	}
	again, err := Open(Options{Dir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// So does one that met damage once, and that has something to do in its Close which takes longer than it is waited for.
//
// Mutation with which it was seen to fail: what does not end is no fatal error.
func TestOpenAfterALongClose(t *testing.T) {
	r, dir := testkit.Random(t), t.TempDir()
	s, err := Open(Options{Dir: dir, Logger: quiet(), DisableCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	h := openShard(t, s, 1)
	d := fill(t, r, h, newDurable(), 12) // enough for a compaction
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	var slow atomic.Bool
	reading, read := make(chan struct{}, 1), make(chan struct{})
	if s, err = Open(Options{Dir: dir, Logger: quiet(), DisableCompactions: true, closePatience: 100 * time.Millisecond, FS: errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if slow.Load() && op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".sst") {
			select {
			case reading <- struct{}{}:
			default:
			}
			<-read
		}
		return nil
	}))}); err != nil {
		t.Fatal(err)
	}
	s.damage.met.Store(true)
	slow.Store(true)
	go func() { _ = s.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false) }()
	select {
	case <-reading:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is compacted")
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("close: %v", err)
	}
	again, err := Open(Options{Dir: dir, Logger: quiet()})
	close(read)
	if err != nil {
		t.Fatal(err)
	}
	h = openShard(t, again, 1)
	if err := sameDurable(h, d); err != nil {
		t.Error(err)
	}
	h.Close()
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
