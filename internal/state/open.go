package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func (s *Store) path(name string) string { return s.opts.FS.PathJoin(s.opts.Dir, name) }

// open opens the directory, or creates it, with the format marker as the last act. A crash before it
// leaves a store without data, which the next call takes over; data without a
// marker is a directory that somebody has damaged, and so is a marker without a store.
func (s *Store) open() error {
	known, err := s.readMarker()
	if err != nil {
		return err
	}
	cache := s.opts.Cache
	if cache == nil {
		cache = NewCache(s.opts.CacheBytes)
		defer cache.Close() // pebble holds a reference of its own
	}
	s.dbOpts = s.pebbleOptions(cache.c)
	s.dbOpts.ErrorIfNotExists = known
	if known {
		if err := s.checkManifest(); err != nil {
			return err
		}
	}
	if s.opts.ReadOnly && !known {
		return fmt.Errorf("%w: there is no store here", fs.ErrNotExist)
	}
	if !s.opts.ReadOnly {
		if err := s.prepareDirs(); err != nil {
			return err
		}
	}
	defer func() {
		if s.fatal.get() != nil {
			s.leave() // pebble may never return
		}
	}()
	err = s.fatal.guard(func() (err error) {
		s.db, err = pebble.Open(s.path(dbDir), s.dbOpts)
		return err
	})
	if err != nil || known {
		return err
	}
	if err := s.adopt(); err != nil {
		return errors.Join(err, s.fatal.guard(s.db.Close))
	}
	return nil
}

// prepareDirs makes what is missing, and removes what a crash left of unfinished flushes.
func (s *Store) prepareDirs() error {
	fs := s.opts.FS
	if err := makeDir(fs, s.opts.Dir); err != nil {
		return err
	}
	if err := fs.RemoveAll(s.path(ingestDir)); err != nil {
		return err
	}
	if err := makeDir(fs, s.path(ingestDir)); err != nil {
		return err
	}
	return makeDir(fs, s.path(dbDir))
}

// namesFS is the file system as pebble sees it. It makes the names of new manifests and markers durable at once. Pebble syncs a manifest's name together with that of the marker
// that points to it, and a marker's together with the removal of the one before. On a
// file system that may keep the second and lose the first, a crash during any Open could leave
// a store that does not open.
type namesFS struct {
	fenced
}

func (m namesFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := m.fenced.Create(name, c)
	base := m.PathBase(name)
	if err != nil || !strings.HasPrefix(base, "MANIFEST-") && !strings.HasPrefix(base, "marker.") {
		return f, err
	}
	if err := syncDir(m.fenced, m.PathDir(name)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Open has a table that the disk cannot read counted as damaged, with all that follows for its one shard: pebble marks what fails its checksum, but
// not that. A compaction that met a bad sector would end the node, at every start anew.
func (m namesFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := m.fenced.Open(name, opts...)
	if err != nil || !strings.HasSuffix(name, ".sst") {
		return f, err
	}
	return tableFile{f}, nil
}

type tableFile struct{ vfs.File }

func (f tableFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(b, off)
	if err != nil && err != io.EOF && !errors.Is(err, fs.ErrClosed) {
		err = fmt.Errorf("%w: %w", pebble.ErrCorruption, err)
	}
	return n, err
}

// readMarker checks the format marker and returns whether there is one.
func (s *Store) readMarker() (known bool, err error) {
	f, err := s.opts.FS.Open(s.path(markerName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	return true, checkMarker(b)
}

// adopt writes the marker for a store that is new.
func (s *Store) adopt() error {
	ids, err := s.ShardIDs()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("%w: there is data but no file %s", ErrCorrupt, markerName)
	}
	tmp := s.path(markerName + ".tmp")
	if err := writeFile(s.opts.FS, tmp, encodeMarker()); err != nil {
		return err
	}
	if err := s.opts.FS.Rename(tmp, s.path(markerName)); err != nil {
		return err
	}
	return syncDir(s.opts.FS, s.opts.Dir) // after a failure prepareDirs changes the directory again, and has it written
}

// makeDir makes dir and its parents where they are missing, each durable in
// its own parent: what is fsynced in a directory that vanishes is lost too. Its own name is synced even if it is there: whoever made it
// may have died before. What was made and could not be synced goes again: the kernel may call clean what it could not write, so that the next sync would prove nothing.
func makeDir(fs vfs.FS, dir string) error {
	parent := fs.PathDir(dir)
	if _, err := fs.Stat(dir); err == nil {
		return syncDir(fs, parent)
	}
	if parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := syncDir(fs, parent); err != nil {
		return errors.Join(err, fs.Remove(dir))
	}
	return nil
}

func writeFile(fs vfs.FS, name string, b []byte) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
