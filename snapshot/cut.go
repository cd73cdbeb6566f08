package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

const (
	defaultTableBytes = 64 << 20
	defaultChunkBytes = 1 << 20
)

// CutOptions say how a snapshot is written.
type CutOptions struct {
	Info
	// TableBytes is at what size a file ends, 0: 64 MiB, at most 1 GiB. The last key can exceed it.
	TableBytes int64
	// ChunkBytes is how much is fetched at a time, 0: 1 MiB. A multiple of 4 KiB up to 16 MiB.
	ChunkBytes int
	// BytesPerSecond bounds the writing; 0: no bound.
	BytesPerSecond int64
	// Rest is told, on the same goroutine and every few milliseconds, how long the cut has worked since its last rest, and returns how long it
	// is to rest now: it competes for disk and CPU with those who are served. nil: it does not rest.
	Rest func(worked time.Duration) time.Duration
	// Progress is called on the same goroutine after every chunk; nil: not called.
	Progress func(Progress)
}

// Progress is how far a cut or a receive has come.
type Progress struct {
	Files int   // complete
	Bytes int64 // written, or found to be there
	Total int64 // 0: unknown
}

func (o CutOptions) resolve() (CutOptions, error) {
	if o.TableBytes == 0 {
		o.TableBytes = defaultTableBytes
	}
	if o.ChunkBytes == 0 {
		o.ChunkBytes = defaultChunkBytes
	}
	switch {
	case o.TableBytes < 0 || o.TableBytes > MaxFileBytes/2:
		return o, fmt.Errorf("snapshot: CutOptions.TableBytes is %d, allowed are 0 to %d", o.TableBytes, MaxFileBytes/2)
	case o.ChunkBytes < MinChunkBytes || o.ChunkBytes > MaxChunkBytes || o.ChunkBytes%MinChunkBytes != 0:
		return o, fmt.Errorf("snapshot: CutOptions.ChunkBytes is %d, allowed are multiples of %d up to %d", o.ChunkBytes, MinChunkBytes, MaxChunkBytes)
	case o.BytesPerSecond < 0:
		return o, fmt.Errorf("snapshot: CutOptions.BytesPerSecond is %d; 0 means no bound", o.BytesPerSecond)
	}
	return o, nil
}

// Cut writes a snapshot and returns when it is durable. It reads from the cut only, so the shard goes on meanwhile; the cut
// stays the caller's to close. After an error, ctx's included, nothing is left but what the next Open clears up.
func (d *Dir) Cut(ctx context.Context, c *state.Cut, o CutOptions) (*Snapshot, error) {
	o, err := o.resolve()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.cuts++
	dir := d.path(fmt.Sprintf("%s%016x-%016x-%d%s", namePrefix, c.Shard(), c.Index(), d.cuts, suffixCut))
	d.mu.Unlock()
	s, err := d.cut(ctx, c, o, dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot: cut shard %d at %d: %w", c.Shard(), c.Index(), errors.Join(err, d.fs.RemoveAll(dir)))
	}
	d.log.Info("snapshot: cut", "dir", s.Dir, "shard", c.Shard(), "index", c.Index(), "files", len(s.Manifest.Files), "bytes", s.Manifest.Bytes())
	return s, nil
}

func (d *Dir) cut(ctx context.Context, c *state.Cut, o CutOptions, dir string) (*Snapshot, error) {
	if err := errors.Join(d.fs.RemoveAll(dir), d.makeDir(dir)); err != nil { // a leftover that could not be removed has such a name
		return nil, err
	}
	w := &cutWriter{ctx: ctx, o: o, limit: newLimiter(o.BytesPerSecond, o.Rest), open: func(n int) (state.TableFile, error) {
		if err := space(d.fs, dir, o.TableBytes, d.o.Reserve); err != nil {
			return nil, err
		}
		return createFile(d.fs, d.fs.PathJoin(dir, fileName(n)))
	}}
	m, err := w.write(c)
	if err != nil {
		return nil, err
	}
	b, id, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if err := writeFile(d.fs, d.fs.PathJoin(dir, manifestName), b); err != nil {
		return nil, err
	}
	return d.publish(dir, m, id)
}

// cutWriter makes the files of a cut, one after the other.
type cutWriter struct {
	ctx   context.Context // of the one call that this lives for
	o     CutOptions
	open  func(n int) (state.TableFile, error)
	limit *limiter
	files []File
	bytes int64
}

// write writes the tables of a cut and returns its manifest.
func (w *cutWriter) write(c *state.Cut) (*Manifest, error) {
	contents, err := c.Write(w.ctx, state.CutOptions{Create: w.create, TableBytes: w.o.TableBytes})
	if err != nil {
		return nil, err
	}
	return &Manifest{
		Info: w.o.Info, Shard: c.Shard(), Index: c.Index(), TablesVersion: state.TablesVersion,
		Sections: contents.Sections, ChunkBytes: w.o.ChunkBytes, Files: w.files,
	}, nil
}

func (w *cutWriter) create(n int) (state.TableFile, error) {
	if n >= MaxFiles {
		return nil, fmt.Errorf("%w: more than %d files of %d bytes; use larger files", ErrTooLarge, MaxFiles, w.o.TableBytes)
	}
	f, err := w.open(n)
	if err != nil {
		return nil, err
	}
	return &cutFile{TableFile: f, w: w, sum: newSummer(w.o.ChunkBytes)}, nil
}

// createFile creates a file that is synced as it grows.
func createFile(fs vfs.FS, path string) (vfs.File, error) {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	return vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: syncEvery}), nil
}

// cutFile is a file that knows what it holds.
type cutFile struct {
	state.TableFile
	w   *cutWriter
	sum *summer
}

// Write writes chunk by chunk at the most, so that a large block is neither one burst nor one long wait.
func (f *cutFile) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+f.w.o.ChunkBytes)]
		if err := f.w.limit.wait(f.w.ctx, len(part)); err != nil {
			return n, err
		}
		f.sum.write(part) // before the write, which may change it
		m, err := f.TableFile.Write(part)
		n += m
		if err != nil {
			return n, err
		}
		chunks := f.w.bytes / int64(f.w.o.ChunkBytes)
		f.w.bytes += int64(m)
		if f.w.bytes/int64(f.w.o.ChunkBytes) > chunks {
			f.w.progress()
		}
	}
	return n, nil
}

// Sync ends the file.
func (f *cutFile) Sync() error {
	if err := f.TableFile.Sync(); err != nil {
		return err
	}
	f.w.files = append(f.w.files, f.sum.sum())
	f.w.progress()
	return nil
}

func (w *cutWriter) progress() {
	if w.o.Progress != nil {
		w.o.Progress(Progress{Files: len(w.files), Bytes: w.bytes})
	}
}
