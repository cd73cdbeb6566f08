package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// errNoLog matches fs.ErrNotExist. It says more: not that a file of a log has gone while it was read.
var errNoLog = fmt.Errorf("there is no log: %w", fs.ErrNotExist)

// LogSize is what a log takes on disk.
type LogSize struct {
	Segments int
	Bytes    int64
}

// Inspect reads the log in dir as Open would, and changes nothing: a torn end is reported (Recovered.Repaired, nothing kept)
// and stays. The log is locked meanwhile: ErrLocked if it is open elsewhere. An error that matches fs.ErrNotExist says that
// there is none.
func Inspect(dir string) (rec *Recovered, size LogSize, err error) {
	lock := filepath.Join(dir, lockName)
	if _, e := os.Stat(lock); e == nil { // a copy may be without: then nobody has it open
		unlock, err := lockDir(lock)
		if err != nil {
			return nil, size, err
		}
		defer func() { _ = unlock() }() // was only locked
	} else if !errors.Is(e, fs.ErrNotExist) {
		return nil, size, fmt.Errorf("wal: %w", e)
	}
	segments := filepath.Join(dir, segmentDir)
	if has, err := hasSegments(segments); err != nil {
		return nil, size, err
	} else if !has {
		return nil, size, fmt.Errorf("wal: %s: %w", dir, errNoLog)
	}
	list, err := listSegments(segments)
	if err != nil {
		return nil, size, err
	}
	for _, f := range list {
		info, err := os.Stat(f.path)
		if err != nil {
			return nil, size, fmt.Errorf("wal: %w", err)
		}
		size.Bytes += info.Size()
	}
	size.Segments = len(list)
	_, rec, err = recoverLog(readOnlyFiles{dirFiles(segments)}, slog.New(slog.DiscardHandler))
	return rec, size, err
}

// readOnlyFiles are segments of which what a recovery would change is left as it is. It reads nothing again of what it has changed.
type readOnlyFiles struct{ dirFiles }

func (readOnlyFiles) keep(segmentFile, int64, []byte) (string, error) { return "", nil }
func (readOnlyFiles) truncate(string, int64) error                    { return nil }
func (readOnlyFiles) confirm(string, int64, int64) error              { return nil }
func (readOnlyFiles) remove(string) error                             { return nil }
func (readOnlyFiles) tidy() error                                     { return nil }
