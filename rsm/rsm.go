package rsm

import "github.com/decree-raft/decree/internal/core"

// The vocabulary of a replicated state machine. It is defined beside the
// deterministic core that uses it, so that the simulator can drive the same types. What go doc does not show of an alias is in
// its text, and a test holds the one to the other.
type (
	// Machine is what a user writes: three functions over a state that the library owns. All replicas of a shard must run machines
	// that behave alike. See [Proto] for the typed form, and package rsmtest for what finds mistakes.
	//
	//	type Machine interface {
	//		Decide(v View, c Command) (events [][]byte, reply []byte, err error)
	//		Apply(s State, e Event)
	//		Query(v View, query []byte) (answer []byte, err error)
	//	}
	//
	// Decide turns a command into events and a reply, or rejects it with an error. It runs only on the leader, in log order, and sees the
	// effects of all that was decided before. It cannot write: what shall change goes into events. An error is a decision too: it is
	// replicated, so that a retry gets the same answer. [Reject] gives it a code that clients can act on; any other error is rejected with
	// CodeMachineError. A panic is contained: the command is rejected with CodeMachinePanic.
	//
	// Apply folds one event into the state. It runs on every replica, in log order, and must be deterministic: no clock but Event.Time, no randomness, no
	// map order, no goroutine, no state outside s. Event formats live for ever: a later version of the machine must still apply the events of an
	// earlier one. A panic stops this replica, with CodeApplyPanic, and nothing else; on the leader, while it decides, it rejects the command.
	//
	// Query answers a read at one log position. It may run long: it never holds up the shard. An error is returned to the caller as a rejection.
	//
	// Decide and Apply of one shard are called on one goroutine at a time, Query on any, also at the same time as the others. A Machine that keeps no
	// fields of its own, as it should, needs no locks. What the arguments hold belongs to the library and may not be changed or kept; what Decide and Query
	// return may be made of the same memory.
	Machine = core.Machine
	// Versioned is a Machine whose rules change from one program to the next. All replicas must fold the same events into the same state, also while half of the nodes
	// run the new program and half the old one. So a new version becomes active through the log: when every member of the shard has said that it can
	// run it. From the entry after that on, Command.Version and Event.Version say it. Until then the new program decides and applies as the old one did.
	//
	//	type Versioned interface {
	//		Machine
	//		MaxVersion() uint64 // the highest that this program can run, as well as all before it, from 0 on, which is active in a new shard
	//	}
	//
	// A replica whose program cannot run what is active stops, with CodeUnsupported.
	Versioned = core.Versioned
	// View is the ordered key-value state of one shard at one log position, for reading.
	//
	//	type View interface {
	//		// Get returns the value under key, and whether there is one. A value may be empty.
	//		Get(key []byte) (value []byte, ok bool)
	//		// Scan yields the pairs with start <= key < end in ascending order of key. A nil end means no upper bound.
	//		// The state must not be written during a scan.
	//		Scan(start, end []byte) iter.Seq2[[]byte, []byte]
	//		// ScanBackward yields the same pairs in descending order of key.
	//		ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte]
	//	}
	//
	// Keys and values that it returns belong to the library: they may be read, not changed, and not kept beyond the call that got the View. It may be
	// used only on the goroutine of that call.
	View = core.View
	// State is a View that Apply may write to. Writes are seen by later reads of the same Apply. Key and value are copied.
	//
	//	type State interface {
	//		View
	//		Set(key, value []byte)
	//		Delete(key []byte)
	//	}
	//
	// A Set that breaks a limit of the leader (Limits.MaxKeyBytes, MaxValueBytes) makes the command a rejection: it is found before anything is
	// replicated. Delete takes any key.
	State = core.State
	// Command is a request to change state, as Decide sees it.
	//
	//	type Command struct {
	//		Data    []byte     // what the client submitted; events and reply may alias it, it must not be changed or kept elsewhere
	//		Time    Timestamp  // of the entry that the decision will be part of; its events carry the same
	//		Version uint64     // of the machine under which it is decided, see Versioned; 0 for machines without
	//		Rand    *rand.Rand // the leader's (math/rand/v2): the only place for randomness, as only the outcome is replicated
	//	}
	Command = core.Command
	// Event is a fact: what is replicated, journalled and applied.
	//
	//	type Event struct {
	//		Data     []byte // belongs to the library; must not be kept or changed
	//		Position Position
	//		Time     Timestamp // of the leader that decided it
	//		Version  uint64    // of the machine under which it was decided, see Versioned
	//	}
	Event = core.Event
	// Position is the place of an event: totally ordered within a shard, and stable for ever.
	//
	//	type Position struct {
	//		Shard   ShardID
	//		Index   Index
	//		Ordinal uint32 // of the event within its entry, from 0
	//	}
	//
	//	func (p Position) String() string // shard/index.ordinal
	Position = core.Position
	// Timestamp is a leader's wall clock in nanoseconds since the Unix epoch, as written into an entry. Within a shard it strictly grows from
	// entry to entry, whatever the clocks of successive leaders say.
	//
	//	type Timestamp int64
	//
	//	func (t Timestamp) Time() time.Time // in UTC
	Timestamp = core.Timestamp
	// NodeID, a uint64, names one node of a cluster: one process, or one of several in a process. Never zero, never reused.
	NodeID = core.NodeID
	// ShardID, a uint64, names one shard: a raft group with its own log, state and leader. Never zero.
	ShardID = core.ShardID
	// Index, a uint64, is a place in a shard's log, counted from 1.
	Index = core.Index
	// Term, a uint64, is a raft term: the reign of at most one leader.
	Term = core.Term
	// Error is every error of the library that is not a Rejection. It matches its Kind with errors.Is, and no other kind, whatever its cause is.
	//
	//	type Error struct {
	//		Kind          error         // ErrNotProposed, ErrUnknown or ErrBroken: did it happen?
	//		Code          Code          // why, for programs
	//		Message       string        // why, for people: which value, what is allowed, what to do
	//		Leader        NodeID        // who is believed to lead, or 0: a hint, no promise
	//		LeaderAddress string        // where that one serves clients, if that was said: a hint, too
	//		RetryAfter    time.Duration // how long to wait before trying again; 0 says nothing
	//		Cause         error         // what stands below, or nil
	//	}
	//
	//	func (e *Error) Error() string
	//	func (e *Error) Is(target error) bool // target is e's Kind, or an *Error with the same Code and, if it has one, the same Kind
	//	func (e *Error) Unwrap() error        // the cause, in which errors.Is and errors.As find everything but errors of the library's own
	Error = core.Error
	// Rejection is the decision "no". It is replicated like any other outcome, and final. It matches [ErrRejected].
	//
	//	type Rejection struct {
	//		Code    Code   // the machine's own, see Reject, or one of the library's
	//		Message string // for people
	//		Detail  []byte // the machine's own, may be nil
	//	}
	//
	//	func (r *Rejection) Error() string
	//	func (r *Rejection) Is(target error) bool // target is ErrRejected, or a *Rejection with the same code
	Rejection = core.Rejection
	// Code is the machine-readable reason within an Error or a Rejection: one of the library's, as CodeNotLeader, or one of a machine's own.
	//
	//	type Code string
	//
	//	func (c Code) Busy() bool  // CodeOverloaded or CodeDiskLow: the right one was asked, at the wrong time; see Error.RetryAfter
	//	func (c Code) Ended() bool // CodeSessionExpired or CodeSequenceAcked: the number is not answered any more
	//	func (c Code) Final() bool // asking again, or somebody else, does not help: the request would have to be another, or who makes it
	Code = core.Code
)

// Did it happen? Every error of a call matches exactly one of these with errors.Is.
var (
	// ErrRejected: decided, and the decision was no. Final.
	ErrRejected = core.ErrRejected
	// ErrNotProposed: this attempt certainly did not happen. Safe to retry; but if an earlier attempt under
	// the same session number ended with ErrUnknown, only under that number.
	ErrNotProposed = core.ErrNotProposed
	// ErrUnknown: it may have happened, or may yet. Retry only under the same session and sequence number.
	ErrUnknown = core.ErrUnknown
	// ErrBroken: this replica or node is out of service until somebody acts.
	ErrBroken = core.ErrBroken
)

// Reject returns a Rejection with a code of the machine's own, for Decide or Query to return.
func Reject(code Code, format string, args ...any) error { return core.Reject(code, format, args...) }
