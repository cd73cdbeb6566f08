package wal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/raft/v3/raftpb"
	etcdwal "go.etcd.io/etcd/server/v3/wal"
	"go.etcd.io/etcd/server/v3/wal/walpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// This is the only file that knows etcd's WAL. What it relies on, all of it in v3.5.35:
//
//   - Save with one entry is one write and one fdatasync; the segment is cut after it when
//     it has grown to SegmentSizeBytes, which costs three more syncs.
//   - A cut syncs the old segment, then the header of the new one, then renames it into
//     place: a segment that can be seen is complete up to its header.
//   - Open at snapshot {Index: X} reads and locks the segments from the last one on whose
//     name's index is <= X, and wants the record of that snapshot in them.
//
// etcd's Save marshals the payload into a slice of its own, frames it in another and
// copies that into its page buffer. That is three copies more than there need be, and
// at 128 KiB a pass still a small part of an fdatasync.

// segmentTerm is the raft term of all physical entries: there is no raft on this level.
const segmentTerm = 1

// etcdLog appends payloads to the segments in dir.
type etcdLog struct {
	dir     string
	wal     *etcdwal.WAL
	seq     uint64 // of the tail
	bytes   int64  // of a segment
	release func() // gives back the segment size
}

// createEtcd creates dir with a first segment, whose name in it is not durable yet. etcd works in dir.tmp and renames.
func createEtcd(dir string, segmentBytes int64, lg *slog.Logger) error {
	_, release, err := takeSegmentBytes(segmentBytes)
	if err != nil {
		return err
	}
	defer release()
	w, err := etcdwal.Create(zapTo(lg), dir, []byte(metadata))
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("wal: create %s: %w", dir, err)
	}
	return nil
}

// openEtcd opens segments that scan has found whole, for appending behind the last entry.
func openEtcd(dir string, found *scanned, segmentBytes int64, lg *slog.Logger) (*etcdLog, error) {
	segmentBytes, release, err := takeSegmentBytes(segmentBytes)
	if err != nil {
		return nil, err
	}
	l := &etcdLog{dir: dir, seq: found.tail.seq, bytes: segmentBytes, release: release}
	start := walpb.Snapshot{Index: found.mark, Term: segmentTerm}
	if start.Index == 0 {
		start.Term = 0
	}
	if l.wal, err = etcdwal.Open(zapTo(lg), dir, start); err != nil {
		release()
		return nil, fmt.Errorf("wal: open %s at %d: %w", dir, start.Index, err)
	}
	_, _, entries, err := l.wal.ReadAll()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wal: read %s from %d: %w", dir, start.Index, err), l.close())
	}
	// Paired with our own scan: etcd must have come to the same end.
	last := start.Index
	if n := len(entries); n > 0 {
		last = entries[n-1].Index
	}
	if last != max(found.last, start.Index) {
		return nil, errors.Join(fmt.Errorf("wal: %s: etcd ends at entry %d, the scan at %d", dir, last, found.last), l.close())
	}
	return l, nil
}

// save makes a payload durable as physical entry index; cut tells that a new segment begins behind it.
func (l *etcdLog) save(index uint64, data []byte) (cut bool, err error) {
	e := [1]raftpb.Entry{{Term: segmentTerm, Index: index, Data: data}}
	if err := l.wal.Save(raftpb.HardState{}, e[:]); err != nil {
		return false, err
	}
	// etcd does not tell when it cuts, but the name of the new segment is known.
	switch _, err := os.Stat(filepath.Join(l.dir, segmentName(l.seq+1, index+1))); {
	case err == nil:
		l.seq++
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	default:
		return false, err
	}
}

// mark writes the snapshot record that a later Open starts from, and syncs.
// As the first record behind the tail's header it spares etcd the segments before.
func (l *etcdLog) mark(index uint64) error {
	return l.wal.SaveSnapshot(walpb.Snapshot{Index: index, Term: segmentTerm, ConfState: &raftpb.ConfState{}})
}

// unlock gives up the locks on all segments before the one that begins with physical entry first.
func (l *etcdLog) unlock(first uint64) error {
	// ReleaseLockTo keeps the last of the smaller ones, which may still contain the index.
	return l.wal.ReleaseLockTo(first + 1)
}

func (l *etcdLog) close() error {
	err := l.wal.Close()
	l.release()
	return err
}

// lockDir takes the lock that keeps two logs out of one directory.
func lockDir(path string) (unlock func() error, err error) {
	f, err := fileutil.TryLockFile(path, os.O_RDWR|os.O_CREATE, fileutil.PrivateFileMode)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	if err != nil {
		return nil, fmt.Errorf("wal: lock %s: %w", path, err)
	}
	return f.Close, nil
}

// fsyncFile makes a file, or a directory's entries, durable.
func fsyncFile(f *os.File) error { return fileutil.Fsync(f) }

// etcd's segment size is a variable of its package that every Save reads. It is written
// only while no log is open in this process, so there is no race among our logs: each
// takes and returns the size under one mutex. A program that uses etcd's wal package
// beside this one must set the variable before either and leave SegmentBytes at that.
var segmentSize struct {
	sync.Mutex
	open int // number of logs
}

func takeSegmentBytes(want int64) (got int64, release func(), err error) {
	segmentSize.Lock()
	defer segmentSize.Unlock()
	if want == 0 {
		if want = DefaultSegmentBytes; segmentSize.open > 0 {
			want = etcdwal.SegmentSizeBytes
		}
	}
	want = (want + pageBytes - 1) / pageBytes * pageBytes
	if segmentSize.open > 0 && want != etcdwal.SegmentSizeBytes {
		return 0, nil, fmt.Errorf("%w: %d wanted, %d in use", ErrSegmentBytes, want, etcdwal.SegmentSizeBytes)
	}
	if want != etcdwal.SegmentSizeBytes {
		etcdwal.SegmentSizeBytes = want
	}
	segmentSize.open++
	return want, sync.OnceFunc(func() {
		segmentSize.Lock()
		defer segmentSize.Unlock()
		segmentSize.open--
	}), nil
}

// zapTo hands etcd's messages to lg. Its slow-fdatasync warning is worth having.
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
