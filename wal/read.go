package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Read returns what the log in dir holds, as Open would, and changes nothing on disk: a torn end is left out and not cut off. It is for logs
// of nodes that are stopped: ErrLocked if it is open. Damage is a *CorruptionError. A directory without a log is Fresh.
func Read(dir string) (rec *Recovered, err error) {
	lock := filepath.Join(dir, lockName)
	if _, err := os.Stat(lock); err == nil {
		unlock, err := lockDir(lock)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, unlock()) }()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("wal: %w", err)
	}
	log := filepath.Join(dir, segmentDir)
	exists, err := hasSegments(log)
	if err != nil || !exists {
		return &Recovered{Shards: map[uint64]*ShardLog{}, Fresh: true}, err
	}
	_, rec, err = recoverLog(readOnlyFiles{dirFiles(log)}, slog.New(slog.DiscardHandler))
	return rec, err
}

// readOnlyFiles are segments of which what a recovery would change is left as it is. It reads nothing again of what it has changed.
type readOnlyFiles struct{ dirFiles }

func (readOnlyFiles) keep(segmentFile, int64, []byte) (string, error) { return "", nil }
func (readOnlyFiles) truncate(string, int64) error                    { return nil }
func (readOnlyFiles) remove(string) error                             { return nil }
func (readOnlyFiles) sync() error                                     { return nil }
func (readOnlyFiles) tidy() error                                     { return nil }
