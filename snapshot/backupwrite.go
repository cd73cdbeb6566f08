package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

// BackupOptions say how a backup is written.
type BackupOptions struct {
	// TableBytes and ChunkBytes are those of CutOptions.
	TableBytes int64
	ChunkBytes int
	// JournalBytes is at what size a journal file ends, 0: 256 MiB. The last entry can exceed it.
	JournalBytes int64
	// BytesPerSecond bounds the writing; 0: no bound.
	BytesPerSecond int64
	// Progress is called on the same goroutine now and then, with what is written so far; nil: not called.
	Progress func(Progress)
}

// SinkFile takes one file of a backup, from front to end; then it is synced and closed.
type SinkFile = state.TableFile

// Sink is where a backup goes: a DirSink, a StreamSink. One goroutine uses it.
type Sink interface {
	// Create begins a file. The one before has been closed.
	Create(name string) (SinkFile, error)
	// Finish is called once, when the last file is closed, which is the backup's manifest: from then on it is a backup.
	Finish() error
}

// BackupWriter writes a backup into a sink, shard by shard. One goroutine uses it.
type BackupWriter struct {
	sink Sink
	o    BackupOptions
	b    Backup
	done Progress // of earlier files
}

// BackupSource is what a backup holds of one shard.
type BackupSource struct {
	Shard uint64
	// Cut is what the snapshot is made from; nil: there is none, and the journal begins with entry 1. It stays the caller's to close.
	Cut *state.Cut
	// Info of the state in the cut.
	Info Info
	// Entries are those after the cut, in order, without a gap. Nil: none.
	Entries iter.Seq2[Entry, error]
}

// NewBackupWriter begins a backup. Of b, the shards are found out and Made is set by Finish, unless it is not zero.
func NewBackupWriter(sink Sink, b Backup, o BackupOptions) (*BackupWriter, error) {
	o.JournalBytes = cmp.Or(o.JournalBytes, defaultFileBytes)
	if o.JournalBytes < 0 || o.JournalBytes > MaxJournalBytes/2 {
		return nil, fmt.Errorf("snapshot: BackupOptions.JournalBytes is %d, allowed are 0 to %d", o.JournalBytes, int64(MaxJournalBytes/2))
	}
	cut, err := o.cut(Info{}).resolve()
	if err != nil {
		return nil, err
	}
	o.TableBytes, o.ChunkBytes = cut.TableBytes, cut.ChunkBytes
	b.Shards = nil
	return &BackupWriter{sink: sink, o: o, b: b}, nil
}

func (o *BackupOptions) cut(info Info) CutOptions {
	return CutOptions{Info: info, TableBytes: o.TableBytes, ChunkBytes: o.ChunkBytes, BytesPerSecond: o.BytesPerSecond}
}

// Add writes a shard. Shards come in the order of their ids. After an error the backup cannot be gone on with.
func (w *BackupWriter) Add(ctx context.Context, s BackupSource) error {
	out := BackupShard{Shard: s.Shard}
	if s.Cut != nil {
		if err := w.addCut(ctx, s, &out); err != nil {
			return fmt.Errorf("snapshot: back up shard %d: %w", s.Shard, err)
		}
	}
	if s.Entries != nil {
		if err := w.addJournal(ctx, s, &out); err != nil {
			return fmt.Errorf("snapshot: back up the journal of shard %d: %w", s.Shard, err)
		}
	}
	w.b.Shards = append(w.b.Shards, out)
	return nil
}

func (w *BackupWriter) addCut(ctx context.Context, s BackupSource, out *BackupShard) error {
	dir := shardDir(s.Shard) + "/"
	o := w.o.cut(s.Info)
	o.Progress = w.progress
	c := &cutWriter{ctx: ctx, o: o, limit: newLimiter(o.BytesPerSecond, nil), open: func(n int) (SinkFile, error) {
		return w.sink.Create(dir + fileName(n))
	}}
	m, err := c.write(s.Cut)
	if err != nil {
		return err
	}
	b, id, err := m.Encode()
	if err != nil {
		return err
	}
	if err := w.writeFile(dir+manifestName, b); err != nil {
		return err
	}
	w.done.Files += len(m.Files)
	w.done.Bytes += m.Bytes()
	*out = BackupShard{
		Shard: s.Shard, Snapshot: id, Index: m.Index, Term: m.Term, Time: m.Time, Hash: m.Hash,
		MachineVersion: m.MachineVersion, Bytes: m.Bytes(),
	}
	return nil
}

func (w *BackupWriter) progress(p Progress) {
	if w.o.Progress != nil {
		w.o.Progress(Progress{Files: w.done.Files + p.Files, Bytes: w.done.Bytes + p.Bytes})
	}
}

func (w *BackupWriter) writeFile(name string, b []byte) error {
	f, err := w.sink.Create(name)
	if err != nil {
		return err
	}
	if _, err = f.Write(bytes.Clone(b)); err == nil { // Write may change what it is given
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (w *BackupWriter) addJournal(ctx context.Context, s BackupSource, out *BackupShard) (err error) {
	var f *limitedFile
	var j *journalWriter
	end := func() error {
		if f == nil {
			return nil
		}
		file, err := j.finish()
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err == nil {
			out.Journal = append(out.Journal, file)
			w.done.Files++
			w.done.Bytes += file.Bytes
			w.progress(Progress{})
		}
		f, j = nil, nil
		return err
	}
	defer func() {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	next, limit := out.Index+1, newLimiter(w.o.BytesPerSecond, nil)
	for e, err := range s.Entries {
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil && e.Index != next {
			err = fmt.Errorf("%w: entry %d where entry %d should be", ErrCorrupt, e.Index, next)
		}
		if err != nil {
			return err
		}
		next++
		if j != nil && j.file.Bytes >= w.o.JournalBytes {
			if err := end(); err != nil {
				return err
			}
		}
		if j == nil {
			n := len(out.Journal)
			if n >= MaxJournalFiles {
				return fmt.Errorf("%w: more than %d journal files; use larger files", ErrTooLarge, MaxJournalFiles)
			}
			file, err := w.sink.Create(journalDir(s.Shard) + "/" + journalName(n))
			if err != nil {
				return err
			}
			f = &limitedFile{SinkFile: file, ctx: ctx, limit: limit}
			if j, err = newJournalWriter(f, s.Shard, e.Index); err != nil {
				return err
			}
		}
		if err := j.add(&e); err != nil {
			return err
		}
	}
	return end()
}

// limitedFile is written no faster than allowed.
type limitedFile struct {
	SinkFile
	ctx   context.Context // of the one call that this lives for
	limit *limiter
}

func (f *limitedFile) Write(p []byte) (int, error) {
	if err := f.limit.wait(f.ctx, len(p)); err != nil {
		return 0, err
	}
	return f.SinkFile.Write(p)
}

// Finish writes the manifest, which makes it a backup, and returns when it is durable.
func (w *BackupWriter) Finish() (*Backup, error) {
	w.b.Made = cmp.Or(w.b.Made, time.Now().UnixNano())
	raw, err := w.b.Encode()
	if err == nil {
		err = w.writeFile(backupName, raw)
	}
	if err == nil {
		err = w.sink.Finish()
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: finish a backup: %w", err)
	}
	return &w.b, nil
}

// DirSink writes a backup into a directory.
type DirSink struct {
	fs      vfs.FS
	dir     string
	reserve uint64
	dirs    map[string]bool
}

// NewDirSink makes the directory if it is missing. ErrNotEmpty: something is in it. reserve bytes of the disk stay free. fsys may be nil for vfs.Default.
func NewDirSink(fsys vfs.FS, dir string, reserve uint64) (*DirSink, error) {
	if fsys == nil {
		fsys = vfs.Default
	}
	if dir == "" {
		return nil, errors.New("snapshot: a backup needs a directory")
	}
	names, err := fsys.List(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = makeDir(fsys, fsys.PathJoin(dir)) // without a slash at its end
	case err == nil && len(names) > 0:
		slices.Sort(names)
		return nil, fmt.Errorf("%w: %s has %d files, %s among them; a backup is written into a new directory", ErrNotEmpty, dir, len(names), names[0])
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return &DirSink{fs: fsys, dir: dir, reserve: reserve, dirs: map[string]bool{}}, nil
}

// spaceEvery is how much room there must be for a file to be begun: of what is streamed, the size is not known before.
const spaceEvery = 1 << 20

// Create implements Sink.
func (d *DirSink) Create(name string) (SinkFile, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%w: %q is not the name of a file of a backup", ErrCorrupt, name)
	}
	if err := space(d.fs, d.dir, spaceEvery, d.reserve); err != nil {
		return nil, err
	}
	path := d.path(name)
	if name == backupName {
		path = d.path(backupTmp)
	} else if sub := d.fs.PathDir(path); !d.dirs[sub] {
		d.dirs[sub] = true
		if err := makeDir(d.fs, sub); err != nil {
			return nil, err
		}
	}
	f, err := createFile(d.fs, path)
	if err != nil {
		return nil, err
	}
	return &spacedFile{File: f, d: d}, nil
}

func (d *DirSink) path(name string) string { return d.fs.PathJoin(d.dir, name) }

// spacedFile looks at the free space as it grows: a backup must not fill the disk of the node that it is made on.
type spacedFile struct {
	vfs.File
	d *DirSink
	n int
}

func (f *spacedFile) Write(p []byte) (int, error) {
	if f.n += len(p); f.n >= spaceEvery {
		f.n = 0
		if err := space(f.d.fs, f.d.dir, spaceEvery, f.d.reserve); err != nil {
			return 0, err
		}
	}
	return f.File.Write(p)
}

// Finish implements Sink: all names become durable, and then that of the manifest. After an error there is no backup.
func (d *DirSink) Finish() error {
	for _, sub := range slices.Sorted(maps.Keys(d.dirs)) {
		if err := syncDir(d.fs, sub); err != nil {
			return err
		}
	}
	if err := d.fs.Rename(d.path(backupTmp), d.path(backupName)); err != nil {
		return err
	}
	if err := syncDir(d.fs, d.dir); err != nil {
		return errors.Join(err, d.fs.Rename(d.path(backupName), d.path(backupTmp)))
	}
	return nil
}

// Abort removes what a backup that failed has left in the directory. A complete one stays.
func (d *DirSink) Abort() error {
	if _, err := d.fs.Stat(d.path(backupName)); err == nil {
		return nil
	}
	var errs []error
	for _, sub := range slices.Sorted(maps.Keys(d.dirs)) {
		errs = append(errs, d.fs.RemoveAll(sub))
	}
	return errors.Join(append(errs, d.fs.RemoveAll(d.path(backupTmp)))...)
}

// copyFile copies one file into a sink.
func copyFile(ctx context.Context, fsys vfs.FS, path string, sink Sink, name string, progress func(n int)) (err error) {
	in, err := fsys.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := sink.Create(name)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), out.Close())
		}
		n, err := in.Read(buf)
		if n > 0 {
			if _, werr := out.Write(buf[:n]); werr != nil {
				return errors.Join(werr, out.Close())
			}
			progress(n)
		}
		if errors.Is(err, io.EOF) {
			return errors.Join(out.Sync(), out.Close())
		}
		if err != nil {
			return errors.Join(err, out.Close())
		}
	}
}
