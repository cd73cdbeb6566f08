package testkit

import (
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// ForgetfulDirs is a file system of which one sync of a directory fails, with errorfs.ErrInjected. As a kernel that calls clean what it could not write, it says of the next syncs of that directory
// that they have succeeded, and writes nothing, until a name in it changes again.
type ForgetfulDirs struct {
	vfs.FS
	Mem *vfs.MemFS // below it

	mu   sync.Mutex
	left int // syncs until the one that fails; below 1: it has
	lost map[string]bool
}

// NewForgetfulDirs returns an empty one whose nth sync of a directory fails.
func NewForgetfulDirs(nth int) *ForgetfulDirs {
	f := &ForgetfulDirs{Mem: vfs.NewCrashableMem(), lost: map[string]bool{}, left: nth}
	f.FS = f.Mem
	return f
}

// FailNext has the nth sync of a directory from now on fail.
func (f *ForgetfulDirs) FailNext(nth int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = nth
}

// Failed reports whether it has.
func (f *ForgetfulDirs) Failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left <= 0
}

// Synced returns an image of what is synced now.
func (f *ForgetfulDirs) Synced() *vfs.MemFS { return f.Mem.CrashClone(vfs.CrashCloneCfg{}) }

// change runs something that changes the names in the directory of a file.
func (f *ForgetfulDirs) change(name string, run func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := run()
	if err == nil {
		delete(f.lost, f.dirOf(name))
	}
	return err
}

func (f *ForgetfulDirs) dirOf(name string) string { return f.clean(f.PathDir(name)) }

func (f *ForgetfulDirs) clean(dir string) string { return f.PathJoin("/", dir) }

func (f *ForgetfulDirs) opened(name string, open func() (vfs.File, error)) (file vfs.File, err error) {
	_, before := f.Stat(name)
	if before == nil {
		return open()
	}
	err = f.change(name, func() (err error) { file, err = open(); return err })
	return file, err
}

// Create is part of vfs.FS.
func (f *ForgetfulDirs) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.opened(name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

// OpenReadWrite is part of vfs.FS.
func (f *ForgetfulDirs) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.opened(name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

// Link is part of vfs.FS.
func (f *ForgetfulDirs) Link(from, to string) error {
	return f.change(to, func() error { return f.FS.Link(from, to) })
}

// Remove is part of vfs.FS.
func (f *ForgetfulDirs) Remove(name string) error {
	return f.change(name, func() error { delete(f.lost, f.clean(name)); return f.FS.Remove(name) })
}

// RemoveAll is part of vfs.FS.
func (f *ForgetfulDirs) RemoveAll(name string) error {
	return f.change(name, func() error { delete(f.lost, f.clean(name)); return f.FS.RemoveAll(name) })
}

// Rename is part of vfs.FS. Both names are of one directory, in all that is tested with this.
func (f *ForgetfulDirs) Rename(from, to string) error {
	return f.change(to, func() error {
		if err := f.FS.Rename(from, to); err != nil {
			return err
		}
		if f.lost[f.clean(from)] {
			f.lost[f.clean(to)] = true
		}
		delete(f.lost, f.clean(from))
		return nil
	})
}

// MkdirAll is part of vfs.FS. It makes no more than one directory, in all that is tested with this.
func (f *ForgetfulDirs) MkdirAll(dir string, perm os.FileMode) error {
	if _, err := f.Stat(dir); err == nil {
		return nil
	}
	return f.change(dir, func() error { return f.FS.MkdirAll(dir, perm) })
}

// OpenDir is part of vfs.FS.
func (f *ForgetfulDirs) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	return forgetfulDir{d, f, f.clean(name)}, err
}

// Unwrap is part of vfs.FS.
func (f *ForgetfulDirs) Unwrap() vfs.FS { return f.FS }

type forgetfulDir struct {
	vfs.File
	fs   *ForgetfulDirs
	name string
}

func (d forgetfulDir) Sync() error {
	f := d.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left == 0 {
		f.lost[d.name] = true
		return errorfs.ErrInjected
	}
	if f.lost[d.name] {
		return nil
	}
	return d.File.Sync()
}
