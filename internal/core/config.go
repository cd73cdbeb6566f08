package core

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/decree-raft/decree/internal/state"
)

// Limits are those of rsm.Limits, which says what each is and checks them. Zero values take the defaults.
type Limits struct {
	MaxCommandBytes                   int
	MaxRequestCommands                int
	MaxEntryBytes                     int
	BatchBytes                        int
	PipelineDepth                     int
	MaxKeyBytes, MaxValueBytes        int
	MaxQueuedRequests, MaxQueuedBytes int // beyond them calls end with CodeOverloaded
	FlushBytes                        int64
	LogCacheBytes                     int64
}

// Config configures the replicas of one worker.
type Config struct {
	Node NodeID

	// Ticks: one tick is the unit of raft's clock.
	Tick           time.Duration
	HeartbeatTicks int
	ElectionTicks  int
	// QuiesceTicks of idleness quiet a shard. 0 never.
	QuiesceTicks int

	// RewriteBytes of unflushed log, at most, are written again where they keep a segment of the write-ahead log from being released; more are
	// flushed. Default 256 KiB. What all shards together may keep like that must fit the log well, or it is written again for ever.
	RewriteBytes int64

	// KeepJournal keeps all of the journal, not only what another member may still need.
	KeepJournal bool
	// JournalBytes and JournalAge keep at least that much of it, as history. 0: none.
	JournalBytes int64
	JournalAge   time.Duration
	// JournalMaxBytes bounds what is kept, KeepJournal aside, for members that are behind. Default 1 GiB; negative: no bound.
	JournalMaxBytes int64

	Limits   Limits
	Sessions SessionOptions
}

// WithDefaults returns c with every zero field resolved.
func (c Config) WithDefaults() Config {
	c.Tick = cmp.Or(c.Tick, 50*time.Millisecond)
	c.HeartbeatTicks = cmp.Or(c.HeartbeatTicks, 2)
	c.ElectionTicks = cmp.Or(c.ElectionTicks, 16)
	c.QuiesceTicks = cmp.Or(c.QuiesceTicks, 4*c.ElectionTicks)
	c.RewriteBytes = cmp.Or(c.RewriteBytes, 256<<10)
	c.JournalMaxBytes = max(0, cmp.Or(c.JournalMaxBytes, max(1<<30, 2*c.JournalBytes)))
	l := &c.Limits
	l.MaxCommandBytes = cmp.Or(l.MaxCommandBytes, 1<<20)
	l.MaxRequestCommands = cmp.Or(l.MaxRequestCommands, 4096)
	l.MaxEntryBytes = cmp.Or(l.MaxEntryBytes, 8<<20)
	l.BatchBytes = cmp.Or(l.BatchBytes, 256<<10)
	l.PipelineDepth = cmp.Or(l.PipelineDepth, 16)
	l.MaxKeyBytes = cmp.Or(l.MaxKeyBytes, 4<<10)
	l.MaxValueBytes = cmp.Or(l.MaxValueBytes, 4<<20)
	l.MaxQueuedRequests = cmp.Or(l.MaxQueuedRequests, 65536)
	l.MaxQueuedBytes = cmp.Or(l.MaxQueuedBytes, 64<<20)
	l.FlushBytes = cmp.Or(l.FlushBytes, 32<<20)
	l.LogCacheBytes = cmp.Or(l.LogCacheBytes, 4<<20)
	c.Sessions.TTL = cmp.Or(c.Sessions.TTL, time.Hour)
	c.Sessions.Window = cmp.Or(c.Sessions.Window, 4096)
	c.Sessions.Max = cmp.Or(c.Sessions.Max, 65536)
	return c
}

// maxFramedEntry keeps an entry with all that is around it below the transport's limit of a frame, 64 MiB.
const maxFramedEntry = 56 << 20

// maxFlushBytes keeps what a shard has not flushed, which is up to stuffedFollower times FlushBytes, within what is written again: a log whose shard has more could not release its segments while
// the replica is out of service.
const maxFlushBytes = maxRewriteBytes / stuffedFollower

// Validate reports every field that is out of its range.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	l := c.Limits
	check(c.Node != 0, "node id is 0: ids start at 1")
	check(c.Tick >= time.Millisecond, "tick is %v: at least 1ms", c.Tick)
	check(c.HeartbeatTicks >= 1, "heartbeat is %d ticks: at least 1", c.HeartbeatTicks)
	check(c.ElectionTicks >= 3*c.HeartbeatTicks, "election timeout is %d ticks: at least three heartbeats, %d", c.ElectionTicks, 3*c.HeartbeatTicks)
	check(l.MaxCommandBytes > 0 && l.MaxCommandBytes <= l.MaxEntryBytes, "MaxCommandBytes is %d: 1 to MaxEntryBytes (%d)", l.MaxCommandBytes, l.MaxEntryBytes)
	check(l.MaxEntryBytes <= 32<<20, "MaxEntryBytes is %d: at most %d", l.MaxEntryBytes, 32<<20)
	check(l.BatchBytes > 0 && l.BatchBytes <= l.MaxEntryBytes, "BatchBytes is %d: 1 to MaxEntryBytes (%d)", l.BatchBytes, l.MaxEntryBytes)
	check(l.BatchBytes+l.MaxEntryBytes <= maxFramedEntry, "BatchBytes and MaxEntryBytes together are %d: at most %d, so that an entry fits a frame", l.BatchBytes+l.MaxEntryBytes, maxFramedEntry)
	check(l.PipelineDepth >= 1 && l.PipelineDepth <= 1024, "PipelineDepth is %d: 1 to 1024", l.PipelineDepth)
	check(l.MaxKeyBytes > 0 && l.MaxKeyBytes <= state.MaxKeyBytes, "MaxKeyBytes is %d: 1 to %d", l.MaxKeyBytes, state.MaxKeyBytes)
	check(l.MaxValueBytes > 0 && l.MaxValueBytes <= 64<<20, "MaxValueBytes is %d: 1 to %d", l.MaxValueBytes, 64<<20)
	check(l.MaxRequestCommands > 0 && l.MaxRequestCommands < maxRequestsPerEntry, "MaxRequestCommands is %d: 1 to %d", l.MaxRequestCommands, maxRequestsPerEntry-1)
	check(l.MaxQueuedRequests > 0 && l.MaxQueuedBytes >= l.MaxCommandBytes, "queues of %d requests and %d bytes: at least 1 and MaxCommandBytes", l.MaxQueuedRequests, l.MaxQueuedBytes)
	check(l.FlushBytes >= 64<<10 && l.FlushBytes <= maxFlushBytes, "FlushBytes is %d: 64 KiB to %d MiB, so that what waits for a flush fits a record of the log", l.FlushBytes, maxFlushBytes>>20)
	check(c.JournalBytes >= 0 && c.JournalAge >= 0, "JournalBytes is %d and JournalAge %v: at least 0", c.JournalBytes, c.JournalAge)
	check(c.JournalMaxBytes == 0 || c.JournalMaxBytes >= c.JournalBytes, "JournalMaxBytes is %d: at least JournalBytes, %d", c.JournalMaxBytes, c.JournalBytes)
	check(c.Sessions.TTL >= time.Minute, "session TTL is %v: at least 1 minute", c.Sessions.TTL)
	check(c.Sessions.Window >= 1 && c.Sessions.Window <= 65536, "session window is %d: 1 to 65536", c.Sessions.Window)
	check(c.Sessions.Max >= 1, "session limit is %d: at least 1", c.Sessions.Max)
	return errors.Join(errs...)
}
