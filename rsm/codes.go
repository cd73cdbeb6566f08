package rsm

import "github.com/decree-raft/decree/internal/core"

// The library's own codes. A Code says why, its error's kind whether it happened: the kinds that are named here are those that the code comes with, and
// where there are several, [errors.Is] tells. Codes are stable, travel over the wire as their text, and are only ever added to.
//
// To test for one: errors.Is(err, &rsm.Error{Code: rsm.CodeOverloaded}), or errors.As and a look at Error.Code.

// Who leads, and who is asked. They pass: ask again, or ask somebody else. A [Client] and a proxy do so by themselves.
const (
	// CodeNotLeader (ErrNotProposed): this replica does not lead. Error.Leader says who is believed to.
	CodeNotLeader = core.CodeNotLeader
	// CodeNoLeader (ErrNotProposed): nobody is known to lead, an election may be under way; or the leader does not reach a majority.
	CodeNoLeader = core.CodeNoLeader
	// CodeTransfer (ErrNotProposed): leadership is being handed over, or could not be.
	CodeTransfer = core.CodeTransfer
	// CodeLeadershipLost: leadership went while the call was pending. ErrNotProposed if it was not on its way yet, ErrUnknown if it was.
	CodeLeadershipLost = core.CodeLeadershipLost
	// CodeOverwritten (ErrNotProposed): another leader's entry stands where this call's would have.
	CodeOverwritten = core.CodeOverwritten
	// CodeNoShard (ErrNotProposed): this node hosts no such shard; through a proxy, no node that it reaches does.
	CodeNoShard = core.CodeNoShard
	// CodeUnreachable: no answer from the node that was asked, or the connection to it broke. ErrNotProposed if nothing was sent, ErrUnknown otherwise.
	CodeUnreachable = core.CodeUnreachable
	// CodeNotReached (ErrNotProposed): the replica has not reached the position of a token in time, or has nothing of the shard yet. Ask again, or another.
	CodeNotReached = core.CodeNotReached
	// CodeClosed: the node is closing or closed. ErrUnknown for a command that was on its way.
	CodeClosed = core.CodeClosed
	// CodeCancelled: the caller's context ended first. The call may go on: ErrUnknown, for reads and calls that were not sent ErrNotProposed.
	CodeCancelled = core.CodeCancelled
)

// Too much, or nonsense. Those that a limit gives name it; docs/limits.md has them all.
const (
	// CodeOverloaded (ErrNotProposed): something that calls wait in is full, or does not move. Wait for Error.RetryAfter, and send less at a time.
	CodeOverloaded = core.CodeOverloaded
	// CodeDiskLow (ErrNotProposed): the leader's node has less free disk space than Config.DiskWatermark. Reads go on, as do requests with MakesRoom.
	CodeDiskLow = core.CodeDiskLow
	// CodeCommandTooLarge (ErrNotProposed): a command is over Limits.MaxCommandBytes; through a connection, the call is over 8 MiB, whatever that limit
	// is; or it is over what a proxy lets one client have at work. It will be the next time, too.
	CodeCommandTooLarge = core.CodeCommandTooLarge
	// CodeTooManyCommands (ErrNotProposed): the request has more commands than Limits.MaxRequestCommands. It will the next time, too.
	CodeTooManyCommands = core.CodeTooManyCommands
	// CodeBadRequest (ErrNotProposed): the request lacks something or makes no sense, whatever the state. It will not the next time either.
	CodeBadRequest = core.CodeBadRequest
	// CodeAnswerTooLarge: the answer is over 32 MiB and cannot be sent over a connection. Of a read ErrNotProposed: ask for less. Of a command ErrUnknown.
	CodeAnswerTooLarge = core.CodeAnswerTooLarge
	// CodeUnauthenticated (ErrNotProposed): the port asks for a token or a certificate, and there was none, or one that it does not know.
	CodeUnauthenticated = core.CodeUnauthenticated
	// CodeForbidden (ErrNotProposed): the caller is known, and his role is too small for this call.
	CodeForbidden = core.CodeForbidden
)

// What became of a decision. All of them come with ErrRejected, in a [Rejection]: a retry under the same number gets the same answer.
const (
	// CodeEntryTooLarge: what was decided, events and replies, is over Limits.MaxEntryBytes.
	CodeEntryTooLarge = core.CodeEntryTooLarge
	// CodeKeyTooLarge: Apply set a key over Limits.MaxKeyBytes of the leader.
	CodeKeyTooLarge = core.CodeKeyTooLarge
	// CodeValueTooLarge: Apply set a value over Limits.MaxValueBytes of the leader.
	CodeValueTooLarge = core.CodeValueTooLarge
	// CodeMachinePanic: Decide, Query or, on the leader, Apply panicked. Nothing was changed.
	CodeMachinePanic = core.CodeMachinePanic
	// CodeMachineError: Decide or Query returned an error that is no Rejection, see [Reject].
	CodeMachineError = core.CodeMachineError
)

// Exactly-once. With CodeSessionExpired and CodeSequenceAcked (see Code.Ended) the number is not answered any more: if an earlier attempt under it ended with
// ErrUnknown, only the state says what became of it; a [Client] and a proxy, which know of that attempt, say ErrUnknown then.
const (
	// CodeSessionExpired (ErrNotProposed): the session is not known: it expired, was evicted for a newer one, was closed, or never opened. Open another.
	CodeSessionExpired = core.CodeSessionExpired
	// CodeSequenceAcked (ErrNotProposed): the number was acknowledged, and its reply is gone.
	CodeSequenceAcked = core.CodeSequenceAcked
	// CodeSequenceTooHigh (ErrNotProposed): the number is further beyond the last acknowledged one than SessionOptions.Window. Acknowledge outcomes first.
	CodeSequenceTooHigh = core.CodeSequenceTooHigh
	// CodeSequenceReused (ErrRejected): the number was used for another command.
	CodeSequenceReused = core.CodeSequenceReused
)

// Members, snapshots, repair.
const (
	// CodeChangePending (ErrNotProposed): another change of the members is under way. Try again.
	CodeChangePending = core.CodeChangePending
	// CodeChangeRefused (ErrNotProposed): the change of the members makes no sense, or would do harm; the message says which.
	CodeChangeRefused = core.CodeChangeRefused
	// CodeNotCaughtUp (ErrNotProposed): the learner lacks too much to become a voter. Wait and try again.
	CodeNotCaughtUp = core.CodeNotCaughtUp
	// CodeRepair (ErrNotProposed): the replica is in service, or cannot be repaired; the message says why.
	CodeRepair = core.CodeRepair
	// CodeCompacted (ErrNotProposed): the entries that were asked for are not in the journal any more.
	CodeCompacted = core.CodeCompacted
)

// A replica or a node is out of service. They come with ErrBroken, and stand in ShardStatus.Err.
const (
	// CodeApplyPanic: the machine panicked while it applied an event that is replicated. A program that applies it mends that.
	CodeApplyPanic = core.CodeApplyPanic
	// CodeDivergence: applying an entry gave another state than it gave the leader. The message names the key.
	CodeDivergence = core.CodeDivergence
	// CodeStorage: a disk write, fsync or read failed.
	CodeStorage = core.CodeStorage
	// CodeCorruption: stored or replicated bytes are damaged. See Shard.Repair.
	CodeCorruption = core.CodeCorruption
	// CodeUnsupported: written by a newer version of the library or of the machine.
	CodeUnsupported = core.CodeUnsupported
	// CodeRemoved: this node is no member of the shard any more. Ask one that is.
	CodeRemoved = core.CodeRemoved
)
