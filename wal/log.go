package wal

import (
	"errors"
	"time"

	"github.com/decree-raft/decree/internal/histogram"
)

// HardState is what raft must never forget of a shard besides its entries.
// The zero value means "none": nothing to save, or nothing saved.
type HardState struct {
	Term, Vote, Commit uint64
}

// IsZero reports whether h holds nothing.
func (h HardState) IsZero() bool { return h == HardState{} }

// Entry is one raft log entry as bytes.
type Entry struct {
	Index, Term uint64
	Type        uint8
	Data        []byte
}

// Record is what one Append makes durable for one shard. Its parts take effect
// in the order of the fields. Several records for one shard are taken in order.
type Record struct {
	Shard uint64

	// Forget drops all that was saved of the shard: it will not be in Recovered.
	// The other fields, when set, start it anew.
	Forget bool

	// RestartAfter, if not zero, voids every entry saved before, at any index: the
	// log goes on behind a snapshot of that index, which is durable elsewhere.
	// The next entry saved must have index RestartAfter+1.
	RestartAfter uint64

	// Entries have ascending indexes without a gap. They replace whatever was saved
	// at their first index and above, and leave no gap to what was saved below.
	Entries []Entry

	// HardState replaces the shard's earlier one, unless zero.
	HardState HardState
}

// Log is the durable log of a node as the engine needs it. *WAL is it on disk,
// *Memory in memory.
type Log interface {
	// Append makes all records durable in one write and one fsync, and returns when they
	// are. It belongs to one goroutine. The records and their data may be used again
	// when it returns. An empty Append writes only if segments can be released.
	//
	// An error means: not known to be durable, and the log is dead; this and every later
	// call returns the same error. Nothing is ever retried: after a failed fsync the
	// kernel may have dropped the pages, and a second fsync would report success.
	Append(records []Record) error

	// Flushed says that the entries up to and including index are durable elsewhere
	// and will not be asked of this log again. Safe from any goroutine, does no I/O:
	// segments are released by the Appends that follow. A shard never seen is ignored.
	// No call for a shard may be under way while its Forget or RestartAfter is appended.
	Flushed(shard, index uint64)

	// Pinned tells who keeps the oldest segment that is held at all, the tail excepted;
	// nil if nobody. To set it free, flush these shards, or for the small ones append
	// again the entries from Pin.First to the end of the shard's log and its hard state.
	// Safe from any goroutine; it looks at every shard, so call it now and then only.
	Pinned() []Pin

	// Size returns the number of segments and about how many bytes they hold. Safe from any goroutine.
	Size() (segments int, bytes int64)

	// Stats returns counters since the log was opened. Safe from any goroutine.
	Stats() Stats

	// Close releases files and locks, after the last Append has returned. All is durable
	// already. A second Close does nothing.
	Close() error
}

// Pin is one shard's hold on the oldest segment.
type Pin struct {
	Shard uint64
	// First and Last are the shard's entries in the segment that are not flushed; zero if none.
	First, Last uint64
	// Bytes is about what these entries take; TailBytes what all from First to the
	// end of the shard's log take, which is the price of appending them again.
	Bytes, TailBytes int64
	// HardState is set if the shard's newest hard state lies in the segment.
	HardState bool
}

// Stats are counters for metrics.
type Stats struct {
	Appends   uint64           // that wrote
	Bytes     uint64           // handed to the disk by them
	Fsyncs    uint64           // of data; cutting a segment costs a few more
	SyncTotal time.Duration    // in write and fsync together
	SyncLast  time.Duration    // of these, the latest
	SyncTimes histogram.Counts // how long they took
	Segments  uint64           // cut
	Released  uint64           // segments removed
}

// ShardLog is what the log holds of one shard.
type ShardLog struct {
	HardState HardState
	// RestartAfter is that of the shard's newest record that had one and is still here.
	RestartAfter uint64
	// Entries is the surviving end of the raft log, without gaps. What was replaced is
	// gone; what was flushed may be here still. Their Data share memory per Append.
	Entries []Entry
}

// Recovered is what Open found.
type Recovered struct {
	Shards map[uint64]*ShardLog
	// Fresh is set if there was no log and one was created. A node that has other state
	// under its identity must then refuse to go on: it has lost what it had promised.
	Fresh bool
	// Repaired is set if the end of the log was torn by a crash and was cut off.
	Repaired *Repair
}

// Repair tells about an end of the log that was torn in a crash. No Append that
// it was part of had returned.
type Repair struct {
	File   string // the segment
	Offset int64  // where it was cut
	Bytes  int64  // that were cut off, trailing zeros not counted
	Kept   string // the file that they were copied to
}

var (
	// ErrClosed is returned by Append after Close.
	ErrClosed = errors.New("wal: closed")
	// ErrLocked is returned by Open if another process, or another WAL in this one, has the directory.
	ErrLocked = errors.New("wal: directory is in use")
	// ErrInvalid is returned by Append, before anything is written, for records that break their own rules.
	ErrInvalid = errors.New("wal: invalid record")
	// ErrTooLarge is returned by Append, before anything is written, for a record beyond the limits.
	ErrTooLarge = errors.New("wal: record too large")
	// ErrMalformed is returned for bytes that are no payload of this format.
	ErrMalformed = errors.New("wal: malformed payload")
)
