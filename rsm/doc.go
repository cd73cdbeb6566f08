// Package rsm runs replicated state machines that replicate decisions, not requests.
//
// A user writes a [Machine]: Decide turns a command into events on the leader, Apply folds events into the state on every
// replica, Query reads. A [Node] hosts replicas of many shards, each a raft group of its own; a [Cluster] is several nodes in
// one process. Commands go in through a [Shard], or through a [Client], which follows the leader and is exactly-once.
//
// # Did it happen?
//
// Every error of a call matches exactly one of [ErrRejected], [ErrNotProposed], [ErrUnknown] and [ErrBroken] with errors.Is. They
// answer that question before any other; an [Error]'s or a [Rejection]'s Code tells why: [CodeNotLeader] and its like are the library's. What such an error
// has for a cause does not count. Errors of starting a node, of backups and of restoring them are not of calls, and may be others.
//
// # Limits
//
// Everything that grows has a limit: [Limits], [SessionOptions], fields of [Config], and fixed ones. docs/limits.md has them all, with the code that names each.
//
// # Concurrency
//
// All exported methods may be called from any goroutine. Decide and Apply of a shard run on one goroutine, that of its
// worker; Query runs on others, on an immutable version of the state. Cancelling a context ends the wait and not the command.
// The node's own goroutines are listed in engine.go.
//
// # Durability
//
// A reply means that the entry is on disk at a majority of the shard's voters, this node included, and applied here.
package rsm
