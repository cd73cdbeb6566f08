package core

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Every error of a call answers one question first: did it happen?
// Test for the answer with errors.Is against these four.
var (
	// ErrRejected: the command was decided, the decision was no, and that is
	// final: a retry under the same session number gets the same answer.
	ErrRejected = errors.New("rejected")
	// ErrNotProposed: this attempt certainly did not happen and never will. Safe to retry; but if an earlier attempt
	// under the same session number ended with ErrUnknown, only under that number. With CodeSessionExpired or CodeSequenceAcked the number
	// will not be answered any more: then only the state says what became of that earlier attempt.
	ErrNotProposed = errors.New("not proposed")
	// ErrUnknown: it may have happened, or may yet. Retry only under the same session and sequence number.
	ErrUnknown = errors.New("outcome unknown")
	// ErrBroken: this replica or node is out of service until somebody acts;
	// the error says why. Whether the call happened is unknown.
	ErrBroken = errors.New("broken")
)

// Code is the machine-readable reason within an Error. Codes are stable: they
// travel over the wire and are only ever added to.
type Code string

// Ended reports whether the code says that the session does not answer for the number of a call, and never will: the attempt
// was not proposed, and what became of an earlier one can only be read from the state.
func (c Code) Ended() bool { return c == CodeSessionExpired || c == CodeSequenceAcked }

// Final reports whether the code says that asking again, or somebody else, would not help: the request itself would have to be another, or who makes it.
func (c Code) Final() bool {
	switch c {
	case CodeCommandTooLarge, CodeTooManyCommands, CodeBadRequest, CodeUnauthenticated, CodeForbidden:
		return true
	}
	return false
}

// Busy reports whether the code says that it was the right one to ask, at the wrong time: Error.RetryAfter says when it may be another.
func (c Code) Busy() bool { return c == CodeOverloaded || c == CodeDiskLow }

// The reasons that the library itself gives.
const (
	CodeNotLeader       Code = "not_leader"        // this replica does not lead; Error.Leader may say who does
	CodeNoLeader        Code = "no_leader"         // nobody is known to lead; an election may be under way
	CodeTransfer        Code = "leader_transfer"   // leadership is being handed over
	CodeLeadershipLost  Code = "leadership_lost"   // leadership went while the call was pending
	CodeOverwritten     Code = "overwritten"       // another leader's entry stands where this one would have
	CodeOverloaded      Code = "overloaded"        // a queue is full
	CodeDiskLow         Code = "disk_low"          // free disk space is below the watermark
	CodeCommandTooLarge Code = "command_too_large" // over MaxCommandBytes, or what a proxy lets through in one call
	CodeTooManyCommands Code = "too_many_commands" // over MaxRequestCommands
	CodeEntryTooLarge   Code = "entry_too_large"   // what was decided exceeds MaxEntryBytes
	CodeKeyTooLarge     Code = "key_too_large"     // Apply set a key over MaxKeyBytes
	CodeValueTooLarge   Code = "value_too_large"   // Apply set a value over MaxValueBytes
	CodeMachinePanic    Code = "machine_panic"     // Decide, Query or Apply panicked; nothing was replicated
	CodeMachineError    Code = "machine_error"     // Decide or Query returned a plain error
	CodeChangePending   Code = "change_pending"    // another change of the members is under way
	CodeChangeRefused   Code = "change_refused"    // the change of the members makes no sense, or would do harm
	CodeNotCaughtUp     Code = "not_caught_up"     // the learner lacks too much to become a voter
	CodeRepair          Code = "not_repairable"    // the replica is in service, or cannot be repaired
	CodeCompacted       Code = "compacted"         // the entries that were asked for are not kept any more
	CodeClosed          Code = "closed"            // the node is closing or closed
	CodeCancelled       Code = "cancelled"         // the caller's context ended first
	CodeNoShard         Code = "no_shard"          // this node hosts no such shard
	CodeUnreachable     Code = "unreachable"       // no answer from the node that was asked
	CodeNotReached      Code = "not_reached"       // the replica has not reached the position of the token in time
	CodeBadRequest      Code = "bad_request"       // the request lacks something, or makes no sense, whatever the state
	CodeAnswerTooLarge  Code = "answer_too_large"  // the answer is larger than what can be sent over a connection; what was asked may have happened
	CodeUnauthenticated Code = "unauthenticated"   // no token or certificate, or one that is not known
	CodeForbidden       Code = "forbidden"         // the caller's role is too small for this

	CodeSessionExpired  Code = "session_expired"   // unknown session: expired, evicted or never opened
	CodeSequenceReused  Code = "sequence_reused"   // this number was used for another command
	CodeSequenceAcked   Code = "sequence_acked"    // this number was acknowledged; its reply is gone
	CodeSequenceTooHigh Code = "sequence_too_high" // beyond the session's window of unacknowledged numbers

	CodeApplyPanic  Code = "apply_panic" // a machine panicked while it applied a replicated event
	CodeDivergence  Code = "divergence"  // applying gave another state than the leader's
	CodeStorage     Code = "storage"     // a disk write, fsync or read failed
	CodeCorruption  Code = "corruption"  // stored or replicated bytes are damaged
	CodeUnsupported Code = "unsupported" // written by a newer version
	CodeRemoved     Code = "removed"     // this node is no member of the shard any more
)

// Error is every error of the library that is not a Rejection.
type Error struct {
	// Kind is ErrNotProposed, ErrUnknown or ErrBroken.
	Kind error
	Code Code
	// Message is a sentence for people: what was wrong, what is allowed, what to do.
	Message string
	// Leader is who is believed to lead, or 0. A hint, no promise.
	Leader NodeID
	// LeaderAddress is where other nodes find the leader, on its own port, if that was said. A hint, too.
	LeaderAddress string
	// RetryAfter is how long to wait before trying again; 0 says nothing.
	RetryAfter time.Duration
	// Cause, if any, is the error below. Of one of the library's own only the words count: errors.Is and errors.As do not find it.
	Cause error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%v (%s): %s", e.Kind, e.Code, e.Message)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Is reports whether target is e's Kind, or an *Error with the same Code.
func (e *Error) Is(target error) bool {
	if target == e.Kind {
		return true
	}
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Kind == nil || t.Kind == e.Kind)
}

// Unwrap returns the cause, for errors.Is and errors.As to look into: for everything but an error of the library's own, whose kind is not this call's.
func (e *Error) Unwrap() error {
	if e.Cause == nil {
		return nil
	}
	return below{e.Cause}
}

// below is what stands below an Error. Invariant: an error matches one kind. A cause may be the library's too, and have another kind, as when
// a call that has begun fails because the node, which is asked how far it is, proposes nothing any more. What happened is the outermost error's to say.
type below struct{ error }

func (b below) Is(target error) bool {
	switch target {
	case ErrRejected, ErrNotProposed, ErrUnknown, ErrBroken:
		return false
	}
	switch target.(type) {
	case *Error, *Rejection:
		return false
	}
	return errors.Is(b.error, target)
}

func (b below) As(target any) bool {
	switch target.(type) {
	case **Error, **Rejection:
		return false
	}
	return errors.As(b.error, target)
}

// Rejection is the decision "no". It is replicated like any other outcome.
type Rejection struct {
	Code    Code   // the machine's own, or one of the library's
	Message string // for people
	Detail  []byte // the machine's own, may be nil
}

func (r *Rejection) Error() string { return fmt.Sprintf("rejected (%s): %s", r.Code, r.Message) }

func (r *Rejection) clone() *Rejection {
	return &Rejection{Code: r.Code, Message: r.Message, Detail: bytes.Clone(r.Detail)}
}

// Is reports whether target is ErrRejected, or a *Rejection with the same code.
func (r *Rejection) Is(target error) bool {
	if target == ErrRejected {
		return true
	}
	t, ok := target.(*Rejection)
	return ok && t.Code == r.Code
}

// Verdict returns the library's own answer in an error, an *Error or a *Rejection: the outermost, as what lies below it says why, and not what became of the call.
// Both are nil if there is none.
func Verdict(err error) (*Error, *Rejection) {
	for ; err != nil; err = errors.Unwrap(err) {
		switch e := err.(type) {
		case *Error:
			return e, nil
		case *Rejection:
			return nil, e
		}
	}
	return nil, nil
}

// Late is the error of a call that was asked for again and again until its time was over: it says what the last answer said, if there was one, and whether some
// attempt may have happened. The cause, if any, is why the time is over.
func Late(inDoubt bool, last, cause error) *Error {
	e := &Error{Kind: ErrNotProposed, Code: CodeCancelled, Message: "no final answer in time", Cause: cause}
	if inDoubt {
		e.Kind = ErrUnknown
	}
	if last != nil {
		e.Message += "; the last was: " + last.Error() // as words: as a cause, its kind would match too
	}
	if why, _ := Verdict(last); why != nil {
		switch why.Code {
		case CodeSessionExpired, CodeSequenceAcked, CodeSequenceTooHigh: // whoever gives out numbers acts on these
		case CodeClosed: // and on this who is answered: as if it were whoever answers that closes
		default:
			e.Code, e.RetryAfter = why.Code, why.RetryAfter
		}
	}
	return e
}

// Reject returns a Rejection for Decide or Query to return.
func Reject(code Code, format string, args ...any) error {
	return &Rejection{Code: code, Message: fmt.Sprintf(format, args...)}
}

// rejectionOf turns whatever Decide or Query returned into what is replicated.
func rejectionOf(err error) *Rejection {
	var r *Rejection
	if errors.As(err, &r) {
		switch r.Code {
		case CodeSessionExpired, CodeSequenceReused, CodeSequenceAcked, CodeSequenceTooHigh:
			// Clients act on these, so they may only be the library's.
			return &Rejection{Code: CodeMachineError, Message: r.Error(), Detail: bytes.Clone(r.Detail)}
		}
		return r.clone() // the machine may keep it, and its detail may be memory of the state, to which the caller may write
	}
	return &Rejection{Code: CodeMachineError, Message: err.Error()}
}

func notProposed(code Code, format string, args ...any) *Error {
	return &Error{Kind: ErrNotProposed, Code: code, Message: fmt.Sprintf(format, args...)}
}

func unknown(code Code, format string, args ...any) *Error {
	return &Error{Kind: ErrUnknown, Code: code, Message: fmt.Sprintf(format, args...)}
}

func broken(code Code, cause error, format string, args ...any) *Error {
	return &Error{Kind: ErrBroken, Code: code, Message: fmt.Sprintf(format, args...), Cause: cause}
}
