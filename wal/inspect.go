package wal

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// LogSize is what a log takes on disk.
type LogSize struct {
	Segments int
	Bytes    int64
}

// Inspect reads the log in dir as Open would, and changes nothing: a torn end is reported (Recovered.Repaired, nothing kept)
// and stays. The log is locked meanwhile: ErrLocked if it is open elsewhere. An error that matches fs.ErrNotExist says that
// there is none.
func Inspect(dir string) (rec *Recovered, size LogSize, err error) {
	segments := filepath.Join(dir, segmentDir)
	if has, err := hasSegments(segments); err != nil {
		return nil, size, err
	} else if !has {
		return nil, size, fmt.Errorf("wal: %s: %w", dir, fs.ErrNotExist)
	}
	lock := filepath.Join(dir, lockName)
	if _, e := os.Stat(lock); e == nil { // a copy may be without: then nobody has it open
		unlock, err := lockDir(lock)
		if err != nil {
			return nil, size, err
		}
		defer func() { _ = unlock() }() // was only locked
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
