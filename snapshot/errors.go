package snapshot

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrCorrupt: what is there is not what was written. Damage in a file is also a *DamageError.
	ErrCorrupt = errors.New("snapshot: corrupt")
	// ErrNewerFormat: a newer program wrote this.
	ErrNewerFormat = errors.New("snapshot: written by a newer version")
	// ErrForeign: a snapshot of another cluster or shard than the one that was asked for.
	ErrForeign = errors.New("snapshot: of another cluster or shard")
	// ErrStale: it is older than what is wanted.
	ErrStale = errors.New("snapshot: too old")
	// ErrTooLarge: a limit does not allow it.
	ErrTooLarge = errors.New("snapshot: too large")
	// ErrNoSpace: the disk would be left with less than is to stay free. There is a point in trying again later.
	ErrNoSpace = errors.New("snapshot: not enough disk space")
	// ErrNotFound: no complete snapshot of that name is here (any more).
	ErrNotFound = errors.New("snapshot: not found")
	// ErrBusy: a snapshot of the shard is being received, or the one to be removed is in use.
	ErrBusy = errors.New("snapshot: busy")
	// ErrNoBackup: there is no backup, or one that was not finished.
	ErrNoBackup = errors.New("snapshot: not a backup")
	// ErrNotEmpty: something is in the directory where a backup is to be written. Nothing is overwritten.
	ErrNotEmpty = errors.New("snapshot: the directory is not empty")
)

// DamageError says where a snapshot is damaged. It is an ErrCorrupt.
type DamageError struct {
	File   string // path or name
	Offset int64  // of the first byte of the chunk that is wrong; -1: the file as a whole
	Reason string
}

func (e *DamageError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("snapshot: %s: %s", e.File, e.Reason)
	}
	return fmt.Sprintf("snapshot: %s, offset %d: %s", e.File, e.Offset, e.Reason)
}

// Is makes it an ErrCorrupt.
func (e *DamageError) Is(target error) bool { return target == ErrCorrupt }
