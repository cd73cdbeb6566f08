package core

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"time"
)

// NodeID names one node of a cluster: one process, or one embedded instance.
// It is also the raft id of every replica on that node. Zero is no node.
// Ids are never reused.
type NodeID uint64

// ShardID names one shard: one raft group with its own log, state and leader.
// Zero is no shard.
type ShardID uint64

// Index is a place in a shard's raft log, counted from 1.
type Index uint64

// Term is a raft term: the reign of at most one leader.
type Term uint64

// Timestamp is a leader's wall clock in nanoseconds since the Unix epoch, as
// written into an entry. Within a shard it strictly grows from entry to entry,
// whatever the clocks of successive leaders say.
type Timestamp int64

// Time returns t as a time in UTC.
func (t Timestamp) Time() time.Time { return time.Unix(0, int64(t)).UTC() }

// Position is the place of an event: totally ordered within a shard, and stable for ever.
type Position struct {
	Shard   ShardID
	Index   Index
	Ordinal uint32 // of the event within its entry, from 0
}

func (p Position) String() string { return fmt.Sprintf("%d/%d.%d", p.Shard, p.Index, p.Ordinal) }

// Command is a request to change state, as Decide sees it.
type Command struct {
	// Data is what the client submitted. It belongs to the library: Decide
	// may keep or alias it in the events and the reply that it returns, and nowhere else,
	// and must not change it.
	Data []byte
	// Time is the timestamp of the entry that the decision will be part of;
	// its events carry the same.
	Time Timestamp
	// Version is that of the machine under which the command is decided, see Versioned; 0 for machines without.
	Version uint64
	// Rand is the leader's random source. Decide is the only place where
	// randomness is allowed, because only its outcome is replicated.
	Rand *rand.Rand
}

// Event is a fact: what is replicated, journalled and applied.
type Event struct {
	Data     []byte // belongs to the library; must not be kept or changed
	Position Position
	Time     Timestamp // of the leader that decided it, see Timestamp
	Version  uint64    // of the machine, under which it was decided, see Versioned
}

// View is the ordered key-value state of one shard at one log position.
//
// Keys and values that a View returns belong to the library: read them, do
// not change them, and do not keep them beyond the call that got the View.
// A View may be used only on the goroutine of that call.
type View interface {
	// Get returns the value under key, and whether there is one. A value may be empty.
	Get(key []byte) (value []byte, ok bool)
	// Scan yields the pairs with start <= key < end in ascending order of
	// key. A nil end means no upper bound. The state must not be written
	// during a scan.
	Scan(start, end []byte) iter.Seq2[[]byte, []byte]
	// ScanBackward yields the same pairs in descending order of key.
	ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte]
}

// State is a View that Apply may write to. Writes are seen by later reads of
// the same Apply. Key and value are copied.
//
// A Set that breaks a limit of the leader (MaxKeyBytes, MaxValueBytes) makes the command
// a rejection: it is found before anything is replicated. Delete takes any key.
type State interface {
	View
	Set(key, value []byte)
	Delete(key []byte)
}

// Machine is what a user writes: three functions over a state that the
// library owns. All replicas of a shard must run machines that behave alike.
//
// The library calls Decide and Apply of one shard on one goroutine at a time,
// and Query on any goroutine, also at the same time as the others. A Machine that keeps
// no fields of its own, as it should, needs no locks.
type Machine interface {
	// Decide turns a command into events and a reply, or rejects it with an
	// error. It runs only on the leader, in log order, and sees the effects of
	// all that was decided before. It cannot write: what shall change goes into events.
	//
	// An error is a decision too: it is replicated, so that a retry gets the
	// same answer. Use Reject to give it a code that clients can act on.
	// A panic is contained: the command is rejected with CodeMachinePanic.
	Decide(v View, c Command) (events [][]byte, reply []byte, err error)

	// Apply folds one event into the state. It runs on every replica, in log
	// order, and must be deterministic: no clock but e.Time, no randomness, no
	// map order, no goroutine, no state outside s. Event formats live for ever:
	// a later version of the machine must still apply the events of an earlier one.
	//
	// A panic stops this replica, with its reason, and nothing else.
	Apply(s State, e Event)

	// Query answers a read at one log position. It may run long: it never
	// holds up the shard. An error is returned to the caller as a rejection.
	Query(v View, query []byte) (answer []byte, err error)
}

// Versioned is implemented by machines whose rules change from one program to the next. All replicas must
// fold the same events into the same state, also while half of the nodes run the new program and half the old one. So a
// new version becomes active through the log: when every member of the shard has said that it can run it. From the entry after that on,
// Command.Version and Event.Version say it. Until then the new program decides and applies as the old one did.
//
// A replica whose program cannot run what is active stops, and says so.
type Versioned interface {
	Machine
	// MaxVersion is the highest version that this program can run. It must be able to run every version before as well, from
	// 0, which is active in a new shard until the first change.
	MaxVersion() uint64
}
