package main

import (
	"os"
	"strings"
	"sync/atomic"

	"github.com/lni/vfs"
)

// countingFS is the operating system's file system with a counter on Sync.
//
// tan preallocates its log files only if what it gets from Create is an *os.File, so this does the same in its place:
// the counted dragonboat must not be slower than the uncounted one. pebble goes further, calling fdatasync past the
// file system on the file's descriptor; under a wrapper it would fall back to fsync without preallocation. It is
// therefore never run on one, and its fsyncs stay uncounted.
type countingFS struct {
	vfs.FS
	syncs atomic.Int64
}

// tanLogSize is what tan preallocates: internal/tan, MaxLogFileSize+indexBlockSize.
const tanLogSize = 64<<20 + 128<<10

func newCountingFS() *countingFS { return &countingFS{FS: vfs.Default} }

// Create implements vfs.FS.
func (c *countingFS) Create(name string) (vfs.File, error) {
	f, err := c.FS.Create(name)
	if err != nil {
		return nil, err
	}
	if file, ok := f.(*os.File); ok && strings.HasSuffix(name, ".log") {
		if err := preallocate(file, tanLogSize); err != nil {
			return nil, err
		}
	}
	return countingFile{f, c}, nil
}

// Open implements vfs.FS.
func (c *countingFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, opts...)
	return c.wrap(f, err)
}

// OpenDir implements vfs.FS.
func (c *countingFS) OpenDir(name string) (vfs.File, error) {
	f, err := c.FS.OpenDir(name)
	return c.wrap(f, err)
}

// OpenForAppend implements vfs.FS.
func (c *countingFS) OpenForAppend(name string) (vfs.File, error) {
	f, err := c.FS.OpenForAppend(name)
	return c.wrap(f, err)
}

// ReuseForWrite implements vfs.FS.
func (c *countingFS) ReuseForWrite(oldname, newname string) (vfs.File, error) {
	f, err := c.FS.ReuseForWrite(oldname, newname)
	return c.wrap(f, err)
}

func (c *countingFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return countingFile{f, c}, nil
}

type countingFile struct {
	vfs.File
	fs *countingFS
}

// Sync implements vfs.File.
func (f countingFile) Sync() error {
	f.fs.syncs.Add(1)
	return f.File.Sync()
}
