package state

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrCompacted: the entry was in the journal once and has been truncated.
	ErrCompacted = errors.New("state: journal entry is compacted away")
	// ErrCorrupt: what is on disk is not what was written.
	ErrCorrupt = errors.New("state: corrupt")
	// ErrNewerFormat: a newer program wrote this; nothing was changed.
	ErrNewerFormat = errors.New("state: written by a newer version")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("state: store is closed")
	// ErrInUse: Close found versions that are still open.
	ErrInUse = errors.New("state: versions are still open")
	// ErrNotFlushed: nothing of the shard is durable yet, so there is nothing to cut. Flush first.
	ErrNotFlushed = errors.New("state: nothing of the shard has been flushed")
	// ErrBusy: a flush or an install of the shard is under way, or, for TryCut, an install of any. Wait for it.
	ErrBusy = errors.New("state: a flush or an install is under way")
	// ErrStale: what was to be installed is older than what is there.
	ErrStale = errors.New("state: older than what is there")
	// ErrNotSynced: the disk could not write a table that was to be installed. The kernel may show it as if it had, and say so next time.
	ErrNotSynced = errors.New("state: a table could not be made durable")
	// ErrShardOpen: the shard has an owner already.
	ErrShardOpen = errors.New("state: shard is open already")
)

// IsDamage reports whether an error says that files are not what was written to them, or that the disk cannot read a table of the store: another
// state of the shard helps against both. What cannot be written, or opened, is none.
func IsDamage(err error) bool { return errors.Is(err, ErrCorrupt) || pebble.IsCorruptionError(err) }

// ReadError is the value of the panic when a read of durable state fails.
// The caller recovers it and stops the replica: a key that cannot be read is
// never reported as absent.
type ReadError struct {
	Err error
	Key []byte // what was being read, or the lower bound of a scan
}

func (e *ReadError) Error() string {
	return fmt.Sprintf("state: read of %s: %v", shortKey(e.Key), e.Err)
}

// Unwrap gives access to the cause.
func (e *ReadError) Unwrap() error { return e.Err }

// LimitError is the value of the panic when a key or value to be set is too large.
// Nothing was written.
type LimitError struct {
	What   string // "key" or "value"
	Size   int
	Limit  int
	Prefix []byte // the key's first bytes
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("state: %s of %d bytes is over the limit of %d (key %s)", e.What, e.Size, e.Limit, shortKey(e.Prefix))
}

// CheckLimits panics with *LimitError if key or value has more bytes than that.
func CheckLimits(key, value []byte, maxKey, maxValue int) {
	if len(key) > maxKey {
		panic(&LimitError{"key", len(key), maxKey, keyPrefix(key)})
	}
	if len(value) > maxValue {
		panic(&LimitError{"value", len(value), maxValue, keyPrefix(key)})
	}
}

const shortKeyLen = 32

func keyPrefix(key []byte) []byte { return append([]byte(nil), key[:min(len(key), shortKeyLen)]...) }

func shortKey(key []byte) string {
	if len(key) > shortKeyLen {
		return fmt.Sprintf("%q...", key[:shortKeyLen])
	}
	return fmt.Sprintf("%q", key)
}

// assert stops the program's worker on a broken precondition: a bug in the
// caller, after which the state would be wrong.
func assert(ok bool, msg string) {
	if !ok {
		panic("state: assertion: " + msg)
	}
}
