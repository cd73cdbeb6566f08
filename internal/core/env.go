package core

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// Env is the world of a Worker: network, disk and helpers. Every method is
// called on the worker's goroutine, within Pass, and must not block.
type Env interface {
	// Send queues a raft message for a peer. It is encoded before Send returns.
	// Losing it is allowed; if it is known to be lost, tell the worker with Input.Unreachable, and the one of the peer with Input.Gaps.
	Send(to NodeID, shard ShardID, m *raftpb.Message)
	// SendQuiesce queues the proposal to let a shard rest, see quiesce.go.
	SendQuiesce(to NodeID, q Quiesce)
	// SendCommit queues a leader's word of what is committed, see read.go. It leaves when the pass has ended, as old as that took: see CommitNotes.
	SendCommit(to NodeID, n CommitNote)
	// Write hands over records that must become durable together, in the order of
	// the calls. When they are, the write comes back in Input.Written.
	Write(w *Write)
	// Query has b.RunOne called until it reports false, off the worker's goroutine: queries may run long.
	Query(b *QueryBatch)
	// Flush runs job off the worker's goroutine and hands it back in Input.Flushed.
	Flush(f *FlushDone)
	// Flushed says that the WAL need not keep the shard's entries up to index.
	Flushed(shard ShardID, index Index)
	// SendNote queues a word for a replica of the shard on another node. Losing it is allowed.
	SendNote(to NodeID, n Note)
	// Cut writes a snapshot of the shard's last flush, off the worker's goroutine, and hands it back in Input.Cuts.
	Cut(c *CutDone)
	// Fetch receives a snapshot from peers, checks all of it, and hands it back in Input.Fetched. One per shard at a time.
	Fetch(f *Fetch)
	// Install runs job off the worker's goroutine and hands it back in Input.Installed.
	Install(d *InstallDone)
	// Members tells who takes part in a shard from now on, and where they are found.
	Members(shard ShardID, c Configuration)
	// Address returns where a node is found as far as this one was told; empty if it was not.
	Address(n NodeID) string
	// LastHeard returns when (monotonic ns) anything was last received from the peer, of what the worker has been handed: nothing that comes with the next pass, or after a gap
	// that does; 0 if nothing ever was.
	LastHeard(peer NodeID) int64
	// Spent returns for how long (ns) the pass has been going on. How much more is decided depends on it, and nothing else: it is the one thing in which a pass depends on
	// the machine's speed.
	Spent() int64
	// Changed tells that what ShardStatus shows of leadership has changed.
	Changed(shard ShardID, leader NodeID, term Term)
	// Stopped tells that a replica went out of service, and why.
	Stopped(shard ShardID, err *Error)
}

// Write is what one pass of a worker must make durable.
type Write struct {
	Records  []wal.Record
	replicas []*Replica // whose outstanding Ready this is
	then     []func()   // on the worker's goroutine

	record  [1]wal.Record // room for what most writes are
	replica [1]*Replica
}

func newWrite() *Write {
	w := &Write{}
	w.Records, w.replicas = w.record[:0], w.replica[:0]
	return w
}

// FlushDone is a flush under way.
type FlushDone struct {
	Shard ShardID
	Job   *state.FlushJob
	Err   error // set by the Env after Job.Run
	index Index
}

// Message is a raft message as received.
type Message struct {
	From  NodeID
	Shard ShardID
	Raft  raftpb.Message
	At    int64 // monotonic ns, when it was received
}

// Gap tells that words of a peer may have been lost: its connection is another one now, or something of it was thrown away.
type Gap struct {
	Peer  NodeID
	Heard int64 // monotonic ns, when the last was received that came before
}

// Quiesce proposes to let an idle shard rest, see quiesce.go.
type Quiesce struct {
	From  NodeID
	Shard ShardID
	Term  Term
	Last  Index
}

// Note is a word from replica to replica for which raft has none. See snapshot.go, members.go, version.go and damage.go for who says what.
type Note struct {
	From    NodeID
	Shard   ShardID
	Kind    NoteKind
	A, B, C uint64
	Data    []byte
}

// NoteKind says what a Note means.
type NoteKind uint8

// They travel: never renumber them. Who does not know a kind ignores the note: whoever waits for an answer must be able to go without.
const (
	noteCutWanted   NoteKind = 1 + iota // leader: cut a snapshot; A: that has at least this index
	noteCut                             // the answer; A: as asked, Data: manifest, empty if it failed
	noteFetching                        // to the leader; A: index of the snapshot, B: bytes that are here, C: of so many
	noteFetchFailed                     // to the leader; A: index of the snapshot, Data: why
	noteRemoved                         // to one that does not know; A: index of the configuration without it, Data: its voters, as in a changeNote
	noteWho                             // to members: A: is this node one of us?
	noteKnown                           // the answer: A: yes, B: by this entry, Data: its address
	noteAwake                           // to members: this replica hears nothing, or led and stops; do not rest, and say who is a member if this one is not
	noteVersions                        // to the leader; A: the highest version of the machine that this replica can run
	noteCutting                         // to the leader who wants a cut; A: as asked, B: bytes that are written
	noteChanged                         // to who asks for a vote; the latest change of members is committed: A: up to this index, B: its term
	noteMayStop                         // to the leader: damage was met here that nobody has read; A: names the question
	noteStop                            // the answer, if the shard goes on without that replica, else there is none; A: as asked, B: the leader's term
)

func (k NoteKind) String() string {
	if int(k) < len(noteNames) && k > 0 {
		return noteNames[k]
	}
	return fmt.Sprintf("note %d", uint8(k))
}

var noteNames = [...]string{
	noteCutWanted: "cut wanted", noteCut: "cut", noteFetching: "fetching", noteFetchFailed: "fetch failed", noteRemoved: "removed", noteWho: "who", noteKnown: "known", noteAwake: "awake", noteVersions: "versions", noteCutting: "cutting", noteChanged: "changed", noteMayStop: "may stop", noteStop: "stop",
}

// CommitNote is a leader's word of what is committed, and of what every voter has. Raft's heartbeats do not tell:
// their commit index is bounded by what the follower has.
type CommitNote struct {
	From       NodeID
	Shard      ShardID
	Term       Term
	Commit     Index
	Everywhere Index         // every voter has it on disk, see retain.go
	At         int64         // monotonic ns, when it arrived here; not sent
	Age        time.Duration // since the leader last heard from a quorum
}

// CommitNotes keeps the notes of a pass for its Env, until it has ended.
type CommitNotes []sentNote

type sentNote struct {
	to   NodeID
	note CommitNote
}

// Add takes a note in.
func (c *CommitNotes) Add(to NodeID, n CommitNote) { *c = append(*c, sentNote{to, n}) }

// Send lets all of them out. The age of each is as of when the pass began, and other shards may have kept the worker for long since; who hears it counts from then on.
func (c *CommitNotes) Send(took time.Duration, send func(to NodeID, n CommitNote)) {
	for _, s := range *c {
		s.note.Age = min(s.note.Age, math.MaxInt64-took) + took // the largest says that nothing is known
		send(s.to, s.note)
	}
	*c = (*c)[:0]
}

// Input is what has arrived since the last pass. The worker does not keep it.
type Input struct {
	Messages    []Message
	Quiesces    []Quiesce
	Commits     []CommitNote
	Requests    []*Request
	Written     []*Write
	Flushed     []*FlushDone
	Notes       []Note
	Cuts        []*CutDone
	Fetched     []*Fetch
	Installed   []*InstallDone
	Unreachable []NodeID
	// Gaps come with what was received after them, or before it.
	Gaps   []Gap
	Ticks  int
	Pinned []ShardID // that keep WAL segments from being released
	// Calls run first, on the worker's goroutine: status, transfers, faults for tests.
	Calls []func(*Worker)
}

// Now is the time of a pass: read once, so that a pass is a function of its inputs.
type Now struct {
	Mono int64 // ns, grows steadily
	Wall int64 // ns since the Unix epoch, may jump
}

// Deps are what a replica is built with, beside its Config.
type Deps struct {
	Machine Machine
	State   *state.Shard
	// Voters are the initial members; ignored when the store has them already. None: the shard exists already, and
	// this node is, or will be, added to it.
	Voters []NodeID
	// Restored: the shard was restored; ignored when the store has a flush, which knows.
	Restored bool
	Log      wal.ShardLog // what the WAL had at start
	Rand     *rand.Rand
	Logger   *slog.Logger
}
