package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What is in Options.Dir; doc.go has the table.
const (
	segmentDir = "log"     // etcd's directory; it is renamed into place when it is created
	createDir  = "log.new" // and is called this until then
	lockName   = "LOCK"    // locked while the log is open; not in segmentDir, which is replaced
	brokenExt  = ".broken"

	// metadata stands at the head of every segment: whose it is, and the version of the layout.
	metadata = "decree-wal 1"

	// maxBroken is how many cut-off ends are kept; the oldest goes.
	maxBroken = 8
)

// segmentName is etcd's name of a segment.
func segmentName(seq, first uint64) string { return fmt.Sprintf("%016x-%016x.wal", seq, first) }

// segmentFile is a segment as listed.
type segmentFile struct {
	seq, first uint64 // from the name
	path       string
}

// listSegments returns the segments in dir by sequence number. Gaps are for the caller to judge.
func listSegments(dir string) ([]segmentFile, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	var files []segmentFile
	for _, d := range names {
		name := d.Name()
		if !strings.HasSuffix(name, ".wal") {
			continue
		}
		f := segmentFile{path: filepath.Join(dir, name)}
		if _, err := fmt.Sscanf(name, "%016x-%016x.wal", &f.seq, &f.first); err != nil || segmentName(f.seq, f.first) != name {
			return nil, corrupt(f.path, 0, "not the name of a segment")
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b segmentFile) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// hasSegments reports whether dir is a log. Without a directory there is none. A directory
// without segments is one that has lost them: it appears with its first in place.
func hasSegments(dir string) (bool, error) {
	files, err := listSegments(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case len(files) == 0:
		return false, corrupt(dir, 0, "the directory has no segments")
	}
	return true, nil
}

// removeTemporary removes what etcd prepared for the next segment before a crash. etcd
// would write over it, and what is longer than its new header would stay behind that.
func removeTemporary(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	for _, d := range names {
		if !strings.HasSuffix(d.Name(), ".tmp") {
			continue
		}
		if err := os.Remove(filepath.Join(dir, d.Name())); err != nil {
			return fmt.Errorf("wal: %w", err)
		}
	}
	return nil
}

// makeDir creates dir, with the directories above it that are missing, and makes all these names durable. Its own
// name is synced even if it is there: whoever made it may have died before. What was made and could not be synced goes again: the kernel may call clean what
// it could not write, so that the next sync would prove nothing.
func makeDir(dir string, syncDir func(dir string) error) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if _, err := os.Stat(parent); errors.Is(err, os.ErrNotExist) && parent != dir {
		if err := makeDir(parent, syncDir); err != nil {
			return err
		}
	}
	_, before := os.Stat(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	err := syncDir(parent)
	if err != nil && before != nil {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	if err := errors.Join(fsyncFile(d), d.Close()); err != nil {
		return fmt.Errorf("wal: sync %s: %w", dir, err)
	}
	return nil
}
