// Package core is a replica of a shard without goroutines, clocks or I/O: a [Worker] is given what has arrived, and a
// reading of the clock, and says through its [Env] what to send and what to write. The shell in package rsm and the
// simulator run the same code.
//
//	machine.go    what a user writes           entry.go    the format of a log entry
//	worker.go     Pass: inputs to replicas     effect.go   digests of what Apply changes
//	replica.go    raft's Ready, in order       session.go  exactly once
//	decide.go     leading: decide, propose     raftlog.go  the log as raft reads it
//	apply.go      promote, apply, flush        frame.go    what goes between nodes
//	read.go       reads and queries            quiesce.go  rest
//
// A Worker and its replicas belong to one goroutine; what leaves it, a QueryBatch or a FlushDone, says so.
// Invariants stand on the fields that they bind. [G1] to [G11] in comments refer to docs/guarantees.md.
//
// This is the only package that imports etcd's raft.
package core
