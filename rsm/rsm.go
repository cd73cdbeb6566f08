package rsm

import "github.com/decree-raft/decree/internal/core"

// The vocabulary of a replicated state machine. It is defined beside the
// deterministic core that uses it, so that the simulator can drive the same types.
type (
	// Machine is what a user writes: Decide, Apply and Query over bytes. See Proto for the typed form.
	Machine = core.Machine
	// Versioned is a Machine whose rules change from one program to the next: a new version becomes active through the log.
	Versioned = core.Versioned
	// View is the state of a shard at one log position, for reading.
	View = core.View
	// State is a View that Apply may write to.
	State = core.State
	// Command is a request to change state, with the leader's clock and randomness.
	Command = core.Command
	// Event is a fact: what is replicated, journalled and applied.
	Event = core.Event
	// Position is the place of an event: shard, log index, ordinal within the entry.
	Position = core.Position
	// Timestamp is a leader's clock in nanoseconds since the Unix epoch; it strictly grows within a shard.
	Timestamp = core.Timestamp
	// NodeID names one node of a cluster. Never zero, never reused.
	NodeID = core.NodeID
	// ShardID names one shard. Never zero.
	ShardID = core.ShardID
	// Index is a place in a shard's log, counted from 1.
	Index = core.Index
	// Term is a raft term.
	Term = core.Term
	// Error is every error of the library that is not a Rejection.
	Error = core.Error
	// Rejection is the decision "no", replicated like any other outcome.
	Rejection = core.Rejection
	// Code is the machine-readable reason within an Error or a Rejection.
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
