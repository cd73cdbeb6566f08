package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

// Verify reads a complete snapshot, every byte of it, and says what it is: the manifest and the files pass their checksums, no file
// is missing or too many, all keys are the shard's and in order, and there are as many of each kind as the manifest says. Errors name
// the file, and the offset where that is known. ErrNotFound: there is no snapshot, or it was removed meanwhile. fsys may be nil for vfs.Default.
func Verify(ctx context.Context, fsys vfs.FS, dir string) (*Manifest, error) {
	if fsys == nil {
		fsys = vfs.Default
	}
	m, err := verify(ctx, fsys, dir)
	if err != nil {
		// What is removed loses its name, or at least its manifest, before any of its files.
		if _, serr := fsys.Stat(fsys.PathJoin(dir, manifestName)); errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: verify %s: %w", ErrNotFound, dir, serr)
		}
	}
	return m, err
}

func verify(ctx context.Context, fs vfs.FS, dir string) (*Manifest, error) {
	m, _, err := readManifest(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot: verify: %w", err)
	}
	if err := checkNames(fs, dir, m); err != nil {
		return nil, err
	}
	longest := int64(0)
	for i := range m.Files {
		longest = max(longest, m.Files[i].Bytes)
	}
	buf := make([]byte, min(int64(m.ChunkBytes), longest))
	paths := make([]string, len(m.Files))
	for i := range paths {
		paths[i] = fs.PathJoin(dir, fileName(i))
		if err := checkFile(ctx, fs, paths[i], m, i, buf); err != nil {
			return nil, fmt.Errorf("snapshot: verify: %w", err)
		}
	}
	c, err := state.CheckTables(ctx, fs, paths, m.Shard)
	if err != nil {
		return nil, fmt.Errorf("snapshot: verify: %w", err)
	}
	if c.Index != m.Index || !slices.Equal(c.Sections, m.Sections) {
		return nil, &DamageError{File: fs.PathJoin(dir, manifestName), Offset: -1,
			Reason: fmt.Sprintf("it says index %d and sections %v, the files have %d and %v", m.Index, m.Sections, c.Index, c.Sections)}
	}
	return m, nil
}

// checkNames makes sure that the directory has the files of the manifest and no others.
func checkNames(fs vfs.FS, dir string, m *Manifest) error {
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("snapshot: verify: %w", err)
	}
	want := map[string]bool{manifestName: true}
	for i := range m.Files {
		want[fileName(i)] = true
	}
	for _, name := range names {
		if !want[name] {
			return &DamageError{File: fs.PathJoin(dir, name), Offset: -1, Reason: "the manifest does not know this file"}
		}
		delete(want, name)
	}
	for name := range want { // any order: any of them is missing
		return &DamageError{File: fs.PathJoin(dir, name), Offset: -1, Reason: "it is missing"}
	}
	return nil
}
