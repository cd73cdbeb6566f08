package wal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// repairPlan is what is to be done about the last segment.
type repairPlan struct {
	file   segmentFile
	last   *segmentScan // of it
	offset int64        // where it is to be cut off
	reason string       // why the end is cut off; empty if it is not
}

// run carries the plan out, if there is anything to do. What goes is first made durable
// under another name. A crash at any point leaves the plan to be made again.
func (p repairPlan) run(in files, lg *slog.Logger) (*Repair, error) {
	if p.reason == "" {
		return nil, nil
	}
	rest, err := readFrom(in, p.file.path, p.offset)
	if err != nil {
		return nil, err
	}
	rest = bytes.TrimRight(rest, "\x00")
	rep := &Repair{File: p.file.path, Offset: p.offset, Bytes: int64(len(rest))}
	if len(rest) > 0 {
		if rep.Kept, err = in.keep(p.file, p.offset, rest); err != nil {
			return nil, err
		}
	}
	if err := in.truncate(p.file.path, p.offset); err != nil {
		return nil, fmt.Errorf("wal: repair %s: %w", p.file.path, err)
	}
	lg.Warn("wal: cut off the torn end of the log", "file", rep.File, "offset", rep.Offset,
		"bytes", rep.Bytes, "reason", p.reason, "kept", rep.Kept)
	return rep, nil
}

// truncate ends a file at size, durably.
func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), fsyncFile(f), f.Close())
}

// keepBroken writes what will be cut off to a file of its own, named after where it stood.
func keepBroken(dir string, s segmentFile, offset int64, rest []byte) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("%s.%d%s", filepath.Base(s.path), offset, brokenExt))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("wal: keep the torn end: %w", err)
	}
	_, err = f.Write(rest)
	if err := errors.Join(err, fsyncFile(f), f.Close()); err != nil {
		return "", fmt.Errorf("wal: keep the torn end: %w", err)
	}
	return path, errors.Join(pruneBroken(dir), syncDir(dir))
}

// pruneBroken keeps the newest maxBroken of such files.
func pruneBroken(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	var broken []fs.FileInfo
	for _, d := range names {
		if !strings.HasSuffix(d.Name(), brokenExt) {
			continue
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("wal: %w", err)
		}
		broken = append(broken, info)
	}
	slices.SortFunc(broken, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), strings.Compare(b.Name(), a.Name()))
	})
	for _, info := range broken[min(len(broken), maxBroken):] {
		if err := os.Remove(filepath.Join(dir, info.Name())); err != nil {
			return fmt.Errorf("wal: %w", err)
		}
	}
	return nil
}
