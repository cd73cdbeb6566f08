// Package state keeps what the machines of a node have computed: one pebble
// for all shards, and above it, per shard, ordered layers in memory that hold
// everything applied since the shard's last flush.
//
// Writing every change through pebble's memtable cost more than all other
// work together, and buys nothing, since the raft log makes the changes
// durable already. So pebble's log and memtable are never used: a flush writes a
// layer as sorted tables and ingests them, in one atomic step together with the
// journal, the sessions and the meta record that names the flush.
//
// # Layers
//
//	         writes
//	           |
//	active   tree    since the last Freeze; may be rolled back
//	frozen   tree    being flushed; may be rolled back until Flush
//	clean    tree    a copy of what the last flush wrote, for quick reads only
//	pebble           what is durable
//
// Trees are copy-on-write. A Version is a copy of the trees and a pebble
// snapshot, and so never changes.
//
// # Cut and Install
//
// Cut pins a shard's last flush and writes it as tables, without the journal, while the shard goes on. Install
// puts such tables in the place of all that there is of a shard, in one edit of pebble's manifest
// (ingest and excise). The journal is empty after it and begins with the entry after the tables' index. Versions and
// cuts that were open go on showing the old state: each pins the files that it reads.
//
// # Goroutines
//
//	Shard      its owner: one goroutine, the shard's worker
//	Version    any, several at once; closed once, after all use
//	FlushJob   Run: any one goroutine; the rest is the owner's
//	InstallJob the same; never beside a flush of its shard
//	Cut        any, one at a time; closed once
//	Store      any; Close after all shards, jobs and versions have ended
//	pebble     its own, for compactions; the errors of these go to Options.OnFatal, or to OnDamage
//
// # Files
//
//	FORMAT     marker, written when the rest has been created
//	pebble/    the tables
//	ingest/    tables being written, links to tables being installed; emptied by Open
//
// All integers are big endian unless they are called uvarint.
//
//	FORMAT:     0 "DECSTATE"  8 version uint32 (1)  12 xxhash64 of the bytes before
//	any key:    0 shard uint64  8 kind byte  9 rest
//	  'd' data:     rest is the machine's key; value as the machine wrote it
//	  'j' journal:  rest is the index uint64;  value: 0 version (1)  1 type  2 term uvarint  then data
//	  'm' meta:     no rest;                   value: 0 version (1)  1 flushed index uint64
//	                9 first, 17 last journal index uint64 (0, 0: none)  25 caller's meta
//	                and at the end xxhash64 of the shard id uint64 and the bytes before
//	  's' session:  rest is the session's key; value as the caller wrote it
//
// Blocks of tables carry pebble's CRC-32C, which every read checks.
//
// # What a crash leaves
//
//	during                        left                              Open
//	first Open, before FORMAT     directories, an empty pebble      creates what is missing
//	Freeze, or before Run         nothing                           last flush
//	Run, tables being written     part of them in ingest/           removes them; last flush
//	Run, tables linked            tables that no manifest names     pebble removes them; last flush
//	Run, manifest written, not    the edit whole or torn            this flush or the last one,
//	synced                                                          never a part
//	Run has returned nil          all of it                         this flush
//	Install, before Run           nothing                           last flush
//	Install, tables being linked  links in ingest/                  removes them; last flush
//	Install, manifest written,    the edit whole or torn            the tables or the last flush,
//	not synced                                                      never a part
//	Install, Run has returned     all of it                         the tables
//	compaction                    its output, not named             pebble removes it; no change
package state
