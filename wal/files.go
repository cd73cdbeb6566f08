package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// files is where the segments of a log lie: in a directory, or in memory. Recovery knows nothing else of either, so
// that what a simulator tears and damages in memory goes through the very code that reads disks.
type files interface {
	// list returns the segments by sequence number.
	list() ([]segmentFile, error)
	open(path string) (f io.ReadSeekCloser, size int64, err error)
	// keep makes the bytes of s from offset on durable under a name of their own.
	keep(s segmentFile, offset int64, rest []byte) (name string, err error)
	// truncate ends a segment at size, durably.
	truncate(path string, size int64) error
	// confirm makes durable what a segment has from one offset to another, and the names of all.
	confirm(path string, from, to int64) error
	remove(path string) error
	// tidy removes what was being prepared to become the next segment.
	tidy() error
}

// dirFiles are the segments in a directory.
type dirFiles string

var _ files = dirFiles("")

func (d dirFiles) list() ([]segmentFile, error) { return listSegments(string(d)) }

func (d dirFiles) open(path string) (io.ReadSeekCloser, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("wal: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("wal: %w", err), f.Close())
	}
	return f, info.Size(), nil
}

func (d dirFiles) keep(s segmentFile, offset int64, rest []byte) (string, error) {
	return keepBroken(filepath.Dir(string(d)), s, offset, rest)
}

func (d dirFiles) truncate(path string, size int64) error { return truncate(path, size) }

func (d dirFiles) confirm(path string, from, to int64) error {
	if err := writeAgain(path, from, to); err != nil {
		return fmt.Errorf("wal: write the last record of %s once more: %w", path, err)
	}
	return syncDir(string(d))
}

// writeAgain writes what a file has already, durably.
func writeAgain(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, to-from)
	if _, err = f.ReadAt(b, from); err == nil {
		_, err = f.WriteAt(b, from)
	}
	if err == nil {
		err = syncData(f)
	}
	return errors.Join(err, f.Close())
}

func (d dirFiles) remove(path string) error { return os.Remove(path) }

func (d dirFiles) tidy() error { return removeTemporary(string(d)) }

// readFrom reads a segment from offset to its end.
func readFrom(in files, path string, offset int64) ([]byte, error) {
	f, _, err := in.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("wal: read %s: %w", path, err)
	}
	return b, nil
}
