// Package snapshot keeps copies of a shard's state as of one position of its log: it cuts them while the shard goes on working, serves them in
// chunks, receives them from a peer that is not to be trusted, and verifies them. To put one in the place of a
// shard is internal/state's Install.
//
// A snapshot is a directory with a manifest and sorted tables. The tables hold everything of the shard but the journal: state,
// sessions, and the record of what was applied. The log continues with the entry after Manifest.Index.
//
//	cut       state.Cut  ──►  Dir.Cut  ──►  Snapshot  ──►  Dir.Source
//	                                                           │ Fetch, chunk by chunk
//	install   state.Shard.Install  ◄──  Snapshot  ◄──  Dir.Receive
//
// The package knows bytes and indices. It knows neither machines nor raft nor a network: a Fetcher is whoever gets chunks.
//
// # What is believed
//
// A manifest names no files: they are numbered, so that there is no path that could lead elsewhere. Its sizes are checked against limits and
// against the free disk space before anything is written. It has the checksum of every chunk, so a damaged one is found as it arrives,
// and what lies there after a restart needs no record of its own: it is right or it is fetched again. The whole of a file is
// held by its SHA-256, the files by that of the manifest, which is the snapshot's name (ID). That the keys are in order, and of
// one shard, is for Verify and for the Install to see, which read every table before they use one.
//
// Two replicas that cut the same index with the same options and versions write the same bytes, and so one can go on where the other left off.
//
// # Goroutines
//
//	Dir        any. One Receive per shard at a time; a Cut or Receive runs on the caller's goroutine
//	Source     any, several at once; closed once
//	Snapshot   any; immutable
//	Fetcher    called by Receive's goroutine, one chunk at a time
//	Progress   the same
//	BackupWriter, Sink   one; what reads backups: any, several at once
//
// # Files
//
//	<dir>/snap-<shard>-<index>-<id>/          complete; shard and index in 16 hex digits, of the id the first 16
//	<dir>/snap-<shard>-<index>-<id>.part/     being received
//	<dir>/snap-<shard>-<index>-<n>.cut/       being cut
//	<dir>/snap-....del/                       being removed
//	  MANIFEST
//	  000001.sst, 000002.sst, ...             in the order of their keys
//
// A table is one of pebble's, of format 7 (state.TablesVersion 1), with the keys that internal/state describes, each set once.
//
// # MANIFEST, version 1
//
// "uv" is an unsigned varint as in encoding/binary, in its shortest form; other integers are big endian.
//
//	bytes  field                 limit
//	8      "DECSNAPS"
//	4      version               1
//	4      length of the body    the manifest: 32 MiB
//	...    body
//	32     SHA-256 of all bytes before: the snapshot's ID
//
//	body
//	uv, n  cluster, with its length            256 bytes
//	uv     shard                               not 0
//	uv     index, of the last entry applied    not 0, not the highest
//	uv     term, of that entry                 not 0
//	uv     time of the state, ns               63 bits
//	8      running hash of all state changes
//	uv     version of the machine
//	uv     version of the tables               1
//	list   voters                              not empty
//	list   outgoing voters                     empty unless between two configurations
//	list   learners                            none of them a voter
//	list   learners next                       outgoing voters that will be learners
//	1      1 if the outgoing voters leave by themselves, else 0
//	uv     number of sections                  256
//	...    sections, ascending by kind
//	uv     bytes of a chunk                    a multiple of 4 KiB, 4 KiB to 16 MiB
//	uv     number of files                     1 to 65,536
//	...    files, in the order of their keys
//
//	list
//	uv     number of ids                       1,024
//	uv xn  ids, ascending, not 0
//
//	section
//	1      kind of the keys, the ninth byte of each
//	uv     number of keys                      not 0
//	uv     bytes of keys and values
//
//	file
//	uv     bytes                               1 to 2 GiB
//	32     SHA-256
//	4 xn   CRC-32C of every chunk; the last one may be short
//
// What a later version adds, locks or timers, are sections of other kinds. A program that does not know a kind does not install it.
//
// # Backups
//
// A backup is a directory of its own, of some shards of a cluster: of each a snapshot, as above, and the committed entries after it, or no snapshot and
// all entries from 1 on. BACKUP is written last: without it there is no backup. The same goes through a pipe as one stream.
//
//	<backup>/BACKUP                                 the manifest
//	<backup>/shard-<shard>/MANIFEST, 000001.sst...  a snapshot; the shard in 16 hex digits
//	<backup>/journal-<shard>/000001.jnl...          entries, in order
//	<backup>/BACKUP.tmp                             being written
//
//	write     BackupWriter  ──►  DirSink or StreamSink
//	between   PackBackup, UnpackBackup
//	read      VerifyBackup, ReadBackup, BackupShard.Open and Entries
//
// What goes for snapshots goes for backups: no names that lead elsewhere, sizes against limits, a checksum for every part and one for
// every whole. VerifyBackup reads all of it.
//
// # BACKUP, version 1
//
//	bytes  field                 limit
//	8      "DECBACKP"
//	4      version               1
//	4      length of the body    the manifest: 64 MiB
//	...    body
//	32     SHA-256 of all bytes before
//
//	body
//	uv, n  cluster, with its length            256 bytes
//	uv, n  version of the library, for people  128 bytes
//	uv, n  note, for people                    4 KiB
//	uv     node that it was made on, 0: several
//	uv     time when it was made, ns           63 bits
//	uv     number of shards                    1 to 65,536
//	...    shards, ascending by id
//
//	shard
//	uv     id                                  not 0
//	1      1: there is a snapshot, else 0
//	32     its ID                              (if there is one, and so the rest up to bytes)
//	uv     its index                           not 0, not the highest
//	uv     its term                            not 0
//	uv     its time, ns                        63 bits
//	8      its running hash
//	uv     its version of the machine
//	uv     bytes of its tables                 not 0
//	uv     number of journal files             65,536; not 0 without a snapshot
//	...    journal files
//
//	journal file
//	uv     index of the first entry            that after the snapshot, or after the file before, or 1
//	uv     index of the last entry             not before the first
//	uv     bytes                               1 TiB
//	32     SHA-256
//
// # A journal file, version 1
//
//	8      "DECJOURN"
//	4      version               1
//	8      shard
//	8      index of the first entry
//	...    records, to the end of the file
//
//	record
//	4      length of the body    3 bytes to 256 MiB and 21 bytes
//	4      CRC-32C of the length and the body
//	uv     index                 one more than the one before
//	uv     term                  not 0, never less than before
//	1      type, raft's
//	n      data, to the end of the body; 256 MiB
//
// # A stream, version 1
//
//	8      "DECBKSTR"
//	4      version               1
//	...    frames
//
//	frame: a file begins. Each file once, in any order, and BACKUP last.
//	1      'F'
//	2, n   its name, with its length; one of those above
//
//	frame: data of it
//	1      'D'
//	4      length                1 byte to 1 MiB
//	4      CRC-32C of the data
//	n      data
//
//	frame: it ends
//	1      'E'
//	8      bytes of it
//	32     SHA-256 of it
//
//	frame: the stream ends. Nothing follows.
//	1      'Z'
//	4      number of files
//	32     SHA-256 of all bytes before
//
// # What a crash leaves
//
//	crash                                  what Open finds and does
//	cutting                                .cut; removed
//	cut, renamed, not yet durable          .cut, removed; or complete
//	receiving: before the manifest is      .part without a valid one; removed
//	durable
//	receiving                              .part; stays, and Receive goes on with it
//	received, renamed, not yet durable     .part with everything in it, or complete
//	removing, renamed, not yet durable     complete, or .del
//	removing                               .del; removed
//	installing                             the snapshot as it was; the store has the old state or the new one (internal/state)
//	backing up, unpacking                  a directory without BACKUP, which is no backup, and into which none is written again
package snapshot
