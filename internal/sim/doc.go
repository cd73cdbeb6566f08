// Package sim runs a whole cluster in one goroutine, in virtual time, under one seed.
//
// It drives the very code of production: core.Worker, the state store on
// pebble (on a file system in memory), the log's bytes, recovery and repair (wal.Memory) and the
// frames between nodes. What it replaces is rsm's shell: goroutines, clock, network and
// disk. Everything that happens is an event of one queue; whatever is left to chance is drawn from the seed. So a
// seed is a run, to the byte: the hash of its trace is the same on every machine.
//
//	Run            the queue, and the phases: chaos, then calm, then the verdict
//	swarm.go       what a seed draws: sizes, limits, and which faults, how often
//	cluster.go     a node: what rsm's engine and clock do, step by step
//	queue.go       the queue
//	disk.go        the log's disk: an fsync takes time, and a crash loses what it had not done
//	faultydisk.go  disks that tear, fail and fill up
//	rot.go         disks that rot, and what a node has to do about it
//	repair.go      files that are damaged while they are in use, replicas that are repaired; crashes between any two operations on files
//	restore.go     backups, and a second cluster that is restored from one
//	snapshots.go   cuts, fetches of a few chunks at a time, installations: each of them can be cut off by a crash
//	members.go     who takes part in a shard, as its log says; who asks for changes
//	versions.go    nodes that are started with newer programs, and older ones
//	network.go     frames that are lost, late, doubled, out of order, cut off
//	faults.go      who breaks what, when
//	clients.go     who asks, and asks again
//	proxies.go     clients that ask through proxies, by the routers of production
//	workload.go    what a run is about: the machines, what is asked of them, and a model of both
//	builtin.go     two machines of its own (machine.go), whose every decision can be checked
//	user.go        a user's machine, for rsm/rsmtest; usermodel.go replays the log through it
//	oracle.go      the log as committed, replayed by a model that shares no code with the core
//	trace.go       the run as numbers, for its hash, and in words, for people
//	check.go       what must hold after every step, for every answer, and at the end
//	plan.go        a run of which some faults and operations are left out
//	shrink.go      a failing run with as few of them as it takes; story.go tells it
//
// # What is checked
//
// At once: a committed entry never changes, and is on disk on a majority when
// the first replica applies it; each decision was made on exactly the state that the log gives; every (session, sequence)
// at most once; one leader per term; equal hashes at equal positions, over restarts
// too; nothing is promised before it is durable; an answer is what the log says at its
// position, and its position is not before what was answered before the question; a linearizable read sees
// what its leader was given before it, and a stale one what was committed as long before as it says that it is old, but for what the network took; "not proposed" means never.
// The members are what the committed changes say, by a reading of its own, and so is what a majority is; two configurations in a
// row cannot decide apart; a change that was answered is in the log, one that was refused is not; who votes has caught up, who is
// removed is so for good, and knows it in the end. A snapshot is of what was committed, whole before raft hears of it, and the state
// and the log after it are what they would have been. A version of the machine becomes active when every member can run it, and
// each event is decided and folded by the version in force at its place.
// What a crash tears from the end of a log is repaired; what rots on a disk is found, by the name of the file, and
// nothing wrong is served of it: what a peer can mend is mended, and otherwise its node may stay out, so a quorum of disks stays intact, and must go on.
// A cluster that is restored has the state, the sessions and the log of the first at the position that was asked for, no crash in between leaves what looks
// complete and is not, and nothing that the first one's nodes still say reaches it.
// At the end: everything that was asked has ended, the cluster works and agrees. The history
// of each key is for an outside judge (porcupine, in the tests).
//
// The simulator itself is tested by mutants: go test -tags mutants -run TestMutants puts faults into the core, one
// after the other, and fails if one of them is not found.
//
// # Why it is deterministic
//
// There is one goroutine. Pebble has its own, but these only move files: compactions and
// table statistics are off, a flush is run to its end within one event, and what a
// crash leaves is exactly what was synced. The one global source of randomness below
// us, etcd raft's for election timeouts, is seeded anew for each run (raftrand.go); so
// runs in one process wait for one another, and many seeds at once take many processes (fleet_test.go). ast_test.go reads the
// source for what would spoil this: clocks, goroutines, global sources of chance, orders of maps. Each operation of a client and
// each fault has a random source of its own, named by its number: to leave out one leaves the others what they were, and that
// is what shrinking is made of.
package sim
