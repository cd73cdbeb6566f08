// Package datadir is a node's data directory as a whole: whose it is (node.json), and how a restore makes one from a backup.
//
// What is in it, log, state and snapshots, have packages of their own (wal, internal/state, snapshot).
//
// The file system is handed in, and the log with it (Disk): rsm has those of the machine, the simulator has its own, which crash at every step.
package datadir

import (
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/wal"
)

// Disk is where data directories are.
type Disk interface {
	vfs.FS
	// WriteFile makes a file anew, durably but for its name.
	WriteFile(name string, b []byte) error
	// SyncAbove makes the name of a new directory durable, and those of the directories above it.
	SyncAbove(dir string) error
	// OpenLog opens the log in a directory, which it makes.
	OpenLog(dir string) (Log, error)
}

// Log is what a restore needs of a wal.Log.
type Log interface {
	Append(records []wal.Record) error
	Close() error
}

// The names in a data directory.
const (
	WALDir   = "wal"
	StateDir = "state"
	nodeFile = "node.json"
)

// MakeDir makes a directory where it is missing, for data or a backup, and its name durable. What was made and could not be synced goes again: the kernel may call clean
// what it could not write, so that the next sync would prove nothing.
func MakeDir(d Disk, dir string) error {
	var made []string // the lowest first
	for at := dir; at != d.PathDir(at); at = d.PathDir(at) {
		if _, err := d.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, at)
	}
	if err := d.MkdirAll(dir, 0o700); err != nil { // what is in it is not for everybody
		return err
	}
	err := d.SyncAbove(dir)
	if err != nil {
		for _, at := range made {
			err = errors.Join(err, d.Remove(at))
		}
	}
	return err
}

func syncDir(d Disk, dir string) error {
	f, err := d.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
