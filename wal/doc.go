// Package wal is the write-ahead log of a node: one log for all its shards, in the format of etcd's WAL.
//
// One Append is one write and one fsync, whatever the number of shards that have
// something to save. The raft logs of the shards are taken apart again at start. The package
// knows bytes and indexes; it knows neither machines nor raft.
//
// # Why one log
//
// A log per shard is simpler to read and to release, and costs an fsync per shard and
// pass: a thousand shards on a disk of a thousand fsyncs a second. In one log they share
// it. What that makes hard is letting go: a shard that has been silent for a year has its last
// hard state in a segment of a year ago. So a pinned segment is not waited for: Pinned
// says who holds it, and the engine appends their few bytes again (or flushes them).
//
// The format is that of etcd's WAL, for its segments, its framing, its chain of checksums and the tools that know it. It
// keeps one sequence of (index, term, data): here index counts
// Appends from 1, the term is always 1, and data is a payload. etcd's package makes the first segment and reads
// the newest one after our own scan, as a second opinion; it is known to one file, etcd.go. It does not write: it copies every
// byte three to five times on the way (docs/decisions/0010-log-writer.md). See writer.go.
//
// # Goroutines
//
//	Append        one goroutine, the writer; it also cuts, marks and removes segments
//	Flushed       any; bookkeeping under a mutex, no I/O
//	Pinned, Size  any; the same mutex
//	Stats         any; atomic counters
//	Inspect       any; with the log not open
//	Close         after the last Append has returned
//	removal       one goroutine per removed segment gives its blocks back; Close waits for it
//	preparer      one goroutine per log prepares the next segment's file
//
// # Files
//
//	<dir>/LOCK                        locked while the log is open
//	<dir>/log/<seq>-<first>.wal       segments; seq counts from 0, first is the index of the first
//	                                  physical entry (0 in segment 0); both 16 hex digits
//	<dir>/log/0.tmp, 1.tmp            being prepared to become the next segment
//	<dir>/log/<segment>.tmp           released: its blocks are for the next segment, or are being freed
//	<dir>/log.new/, log.new.tmp/      a log being created
//	<dir>/<segment>.<offset>.broken   what was cut off there as torn; the newest 8 are kept
//
// # A segment
//
// A sequence of frames, and behind them the zeros that were preallocated, in every segment. In this order: one
// checksum, one metadata, one mark, entries. A segment has as many entries as fit into what was preallocated, or one that
// is larger.
//
//	bytes   frame
//	8       little endian: length of the record in the low 7 bytes; the top byte is 0, or
//	        0x80 + the number of padding bytes
//	n       record
//	0-7     padding of zeros, to a multiple of 8
//
//	record (protobuf, fields in this order)
//	08 tt      type: 1 metadata, 2 entry, 4 checksum, 5 mark
//	10 vv..    CRC-32C of all data in all segments up to and including this record's;
//	           in the first record: as it was at the end of the segment before
//	1a ll.. d  data; absent in type 4
//
//	data of metadata  "decree-wal 1"
//	data of a mark    08 ii.. 10 01 1a ..: an etcd snapshot record with the index of the segment's
//	                  name (segment 0: 08 00 10 00); etcd's Open starts reading at the newest
//	data of an entry  08 00 10 01 18 ii.. 22 ll.. payload: a raft entry of term 1 and index i
//
// # A payload, version 1
//
// "uv" is an unsigned varint as in encoding/binary.
//
//	1      version, 1
//	4      little endian: CRC-32C of the index (8 bytes, little endian) and of all bytes that follow
//	uv     base: the seq of the oldest segment that is needed
//	uv     number of records
//	...    records
//	1      0xA5, so that the end of a payload is never zero
//
//	record
//	uv     shard
//	1      flags: 1 hard state, 2 forget, 4 restart; the others are zero
//	uv     RestartAfter, not zero                    (flag 4)
//	uv x3  term, vote, commit, not all zero          (flag 1)
//	uv     number of entries
//	uv     index of the first, not zero              (if there are entries)
//	...    entries
//
//	entry
//	uv     term
//	1      type
//	uv     length, at most MaxEntryBytes
//	n      data
//
// The checksum is one more than etcd's because that one is a chain: behind a damaged frame
// nothing can be verified by it, and whether anything valid follows is what tells a torn
// end from a damaged log. Both are computed in one pass over the bytes (sum.go); a reader looks at them twice.
//
// # Releasing
//
// A segment is needed while it holds a shard's newest hard state, or a live entry: one that was
// neither flushed nor saved again later. Every payload names the oldest segment that was needed
// by what was durable before it (base). Once it is durable itself, the segments below base are
// removed, one per Append. Open goes by base too: it ignores and removes what is below, and
// refuses to start if anything from base on is missing.
//
// A removed segment is renamed, and made zeros where the file system can do that without giving up its blocks; then it
// takes the place of a fresh file. It is durably zero before it is offered for a segment.
//
// # What a crash leaves
//
//	crash                                 what Open finds and does
//	creating, before the rename           log.new, log.new.tmp; removed, created anew
//	killed, before a sync had returned    whatever the kernel still has; made durable by Open before it is told
//	writing a payload                     a torn end; cut off, kept as .broken, Recovered.Repaired
//	payload written, before Append said   the payload, or a torn end; either is right
//	cutting: header in 0.tmp              removed with all .tmp
//	cutting: renamed                      a segment of checksum, metadata and mark, which goes on
//	cutting, as etcd does it              a segment without its mark, or with a torn one; Open writes it
//	base durable, before the removal      segments below base; removed
//	removing, in any order                any of the segments below base; not read, removed
//	removed: renamed, being made zeros    a .tmp, or a segment below base with zeros; not read, removed
//	repairing: .broken written            the same torn end; repaired again
//	repairing: cut off                    a whole log
//
// A torn end has something missing: the file ends early, or there are zeros to the end, or
// in whole 512-byte sectors. All else is a *CorruptionError: a frame that is wrong though nothing is
// missing, or that is wrong and has valid entries behind it, a segment whose checksum or metadata is not there (they are durable before it
// can be seen), anything wrong in a segment that is not the last, a segment that is not there. A refused Open has changed nothing.
//
// A log may also be opened out of the memory of a kernel that has not written it: its process was killed before a sync, or by a sync that failed. Only
// the newest frame and the names of files can be concerned. Open writes that frame once more and syncs it, and the directories. Not covered is a process that is killed within a sync of a
// directory that fails: the kernel may call its name clean, and write it never. File systems with a journal stop at such an error.
//
// # What it relies on, and what it cannot see
//
//  1. A write changes no other bytes than its own, and a fsync that returned is durable.
//  2. A rename is atomic, and comes after what was synced before it.
//  3. After a failed write or fsync nothing is known of the disk: the log is dead, and the process
//     should be.
//  4. If the disk loses the very last frame after its fsync, by returning zeros for its end or for
//     one of its sectors, this looks like a crash and is repaired as one, with a warning and a .broken file.
//     The same if the last frame has a whole sector of zeros in a value, and damage elsewhere.
//  5. If the newest segments are deleted, or the whole directory is an older copy, the log is a valid older
//     log. Of a directory that is gone, Recovered.Fresh tells. A node must compare with what else it knows.
//  6. Space: two segments are allocated ahead, a third is kept for use again, and a disk that is full when the next is wanted kills
//     the log. Refuse commands before (the watermark of the engine).
package wal
