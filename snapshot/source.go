package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Fetcher gets chunks from where a complete snapshot is: a Source of this process, or one behind a network.
type Fetcher interface {
	// Fetch returns a chunk, counted from 0, of a file, counted from 0. The bytes are the caller's. It may be called on any
	// goroutine, by one at a time; an error that wraps ErrNotFound says that the snapshot is gone there.
	Fetch(ctx context.Context, id ID, file, chunk int) ([]byte, error)
}

// Source serves a complete snapshot, which is not removed until Close. It may be used on any goroutine, by several at once.
type Source struct {
	d *Dir
	s *Snapshot
}

// Source returns a source of a complete snapshot.
func (d *Dir) Source(id ID) (*Source, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.complete[id]
	if s == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id.Short())
	}
	d.refs[id]++
	return &Source{d: d, s: s}, nil
}

// Snapshot returns what is served.
func (s *Source) Snapshot() *Snapshot { return s.s }

// Close lets the snapshot be removed, as far as this source is concerned. It is called once, after all use.
func (s *Source) Close() {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if s.d.refs[s.s.ID]--; s.d.refs[s.s.ID] == 0 {
		delete(s.d.refs, s.s.ID)
	}
}

// Fetch implements Fetcher. What is read is compared with the manifest, so that damage is found where it is. ErrNotFound: somebody has discarded the snapshot; it is not damaged.
func (s *Source) Fetch(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if id != s.s.ID {
		return nil, fmt.Errorf("%w: %s is asked of a source of %s", ErrNotFound, id.Short(), s.s.ID.Short())
	}
	b, err := s.chunk(file, chunk)
	if err != nil && s.d.gone(s.s) {
		return nil, fmt.Errorf("%w: %s was removed while it was being read", ErrNotFound, id.Short())
	}
	return b, err
}

// gone reports whether a snapshot has been removed, whoever reads from it: its files are not missing then.
func (d *Dir) gone(s *Snapshot) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.complete[s.ID] != s
}

func (s *Source) chunk(file, chunk int) (_ []byte, err error) {
	m := s.s.Manifest
	if file < 0 || file >= len(m.Files) || chunk < 0 || chunk >= len(m.Files[file].Chunks) {
		return nil, fmt.Errorf("snapshot: %s has no chunk %d of file %d", s.s.ID.Short(), chunk, file)
	}
	path := s.s.fs.PathJoin(s.s.Dir, fileName(file))
	f, err := s.s.fs.Open(path, vfs.RandomReadsOption)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	offset, n := m.chunk(file, chunk)
	buf := make([]byte, n)
	if err := readChunk(f, path, offset, buf, m.Files[file].Chunks[chunk]); err != nil {
		return nil, err
	}
	return buf, nil
}
