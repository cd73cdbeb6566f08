package wal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	etcdwal "go.etcd.io/etcd/server/v3/wal"
	"go.etcd.io/etcd/server/v3/wal/walpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// This is the only file that knows etcd's WAL. What it relies on, all of it in v3.5.35:
//
//   - Create makes a first segment of checksum, metadata and a mark of index 0.
//   - OpenForRead at snapshot {Index: X} reads the segments from the last one on whose
//     name's index is <= X, and wants the record of that snapshot in them.
//
// etcd's Save is not used: see decision 10. What writer.go writes instead is what it would have written.

// segmentTerm is the raft term of all physical entries: there is no raft on this level.
const segmentTerm = 1

// etcd's segment size is a variable of its package, read by Create and by nothing else that is used here.
var creating sync.Mutex

// createEtcd creates dir with a first segment, whose name in it is not durable yet. etcd works in dir.tmp and renames.
func createEtcd(dir string, segmentBytes int64, lg *slog.Logger) error {
	creating.Lock()
	defer creating.Unlock()
	defer func(was int64) { etcdwal.SegmentSizeBytes = was }(etcdwal.SegmentSizeBytes)
	etcdwal.SegmentSizeBytes = segmentBytes
	w, err := etcdwal.Create(zapTo(lg), dir, []byte(metadata))
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("wal: create %s: %w", dir, err)
	}
	return nil
}

// checkEtcd is paired with our own scan, which has found the segments in dir whole: etcd must come to the same end.
func checkEtcd(dir string, found *scanned, lg *slog.Logger) error {
	start := walpb.Snapshot{Index: found.mark, Term: segmentTerm}
	if start.Index == 0 {
		start.Term = 0
	}
	w, err := etcdwal.OpenForRead(zapTo(lg), dir, start)
	if err != nil {
		return fmt.Errorf("wal: open %s at %d: %w", dir, start.Index, err)
	}
	_, _, entries, err := w.ReadAll() // and closes the files
	if err != nil {
		return fmt.Errorf("wal: read %s from %d: %w", dir, start.Index, err)
	}
	last := start.Index
	if n := len(entries); n > 0 {
		last = entries[n-1].Index
	}
	if last != max(found.last, start.Index) {
		return fmt.Errorf("wal: %s: etcd ends at entry %d, the scan at %d", dir, last, found.last)
	}
	return nil
}

// lockDir takes the lock that keeps two logs out of one directory.
func lockDir(path string) (unlock func() error, err error) {
	f, err := lockFile(path, os.O_RDWR|os.O_CREATE)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	if err != nil {
		return nil, fmt.Errorf("wal: lock %s: %w", path, err)
	}
	return f.Close, nil
}

// lockFile opens a file and locks it, as etcd does, which therefore keeps its hands off. Closing unlocks.
func lockFile(path string, flag int) (*os.File, error) {
	f, err := fileutil.TryLockFile(path, flag, fileutil.PrivateFileMode)
	if err != nil {
		return nil, err
	}
	return f.File, nil
}

// preallocate makes a file at least size bytes long, with zeros for which there is room on the disk.
func preallocate(f *os.File, size int64) error { return fileutil.Preallocate(f, size, true) }

// fsyncFile makes a file, or a directory's entries, durable.
func fsyncFile(f *os.File) error { return fileutil.Fsync(f) }

// syncData makes what was written to a file durable, and as much about it as it takes to read that.
func syncData(f *os.File) error { return fileutil.Fdatasync(f) }

// zapTo hands etcd's messages to lg.
func zapTo(lg *slog.Logger) *zap.Logger { return zap.New(&zapCore{lg: lg}) }

type zapCore struct {
	lg     *slog.Logger
	fields []zapcore.Field
}

func (c *zapCore) level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l >= zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug // etcd's Info is about every file it makes
}

func (c *zapCore) Enabled(l zapcore.Level) bool {
	return c.lg.Enabled(context.Background(), c.level(l))
}

func (c *zapCore) With(f []zapcore.Field) zapcore.Core {
	return &zapCore{lg: c.lg, fields: append(c.fields[:len(c.fields):len(c.fields)], f...)}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(enc)
	}
	c.lg.LogAttrs(context.Background(), c.level(e.Level), "wal: "+e.Message, slog.Any("etcd", enc.Fields))
	return nil
}

func (c *zapCore) Sync() error { return nil }
