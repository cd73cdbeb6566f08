package core

import (
	"bytes"
	"slices"
	"time"
)

// SessionID names a client's exactly-once window on one shard. It is given out
// by the log itself (where the opening stands, and after a restore also when) and so is never given out twice.
type SessionID uint64

// Kind is what a Request asks for.
type Kind uint8

// The kinds of request.
const (
	KindCommand Kind = iota // decide Commands, together: all or nothing
	KindOpenSession
	KindCloseSession
	KindRead
	KindChange  // of the members
	kindVersion // a leader's own, see version.go
)

// Level says what a read promises.
type Level uint8

// The levels of a read.
const (
	// Linearizable sees everything that was acknowledged before it, and every command that this leader took before it. No clock is trusted: the read
	// rides the next entry with the commands that are there, or has a quorum confirm the leader where none is. Leader only.
	Linearizable Level = iota
	// ReadIndex is linearizable without a log write; any replica can be asked.
	ReadIndex
	// AtToken answers from any replica that has applied Request.Token: read
	// your writes, and monotonic if each answer's index becomes the next token.
	AtToken
	// Stale answers at once from what this replica has applied. Result.Age says how old that may be.
	Stale
)

func (l Level) String() string {
	switch l {
	case Linearizable:
		return "linearizable"
	case ReadIndex:
		return "read-index"
	case AtToken:
		return "token"
	case Stale:
		return "stale"
	}
	return "unknown level"
}

// Request is one call on its way through a replica. The caller fills in the
// first part, hands it to a Worker, and gets it back through Done exactly once.
type Request struct {
	Kind  Kind
	Shard ShardID

	Commands [][]byte
	// MakesRoom marks commands that free space, or finish what was begun: they are taken even when the disk is low.
	MakesRoom bool

	// Session, if not 0, makes the command exactly-once under Sequence (from 1).
	// Acknowledged says that the client has the outcomes of all sequences up to it
	// and will never ask for them again.
	Session      SessionID
	Sequence     uint64
	Acknowledged uint64

	Change *Change // of KindChange

	Level Level
	Query []byte
	Token Index

	// Observer, if not nil, is told how far the request has come.
	Observer Observer

	// Done is called exactly once, on the worker's goroutine or a query's; it must not block.
	Done func(*Request)

	Result Result
	Err    error

	command   [1][]byte
	reply     [1][]byte
	next      *Request // further requests for the same in-flight sequence
	digest    uint64
	size      int
	queuedAt  int64 // monotonic ns
	readIndex Index
	round     uint64 // the first of the rounds of ReadIndex that may confirm it
}

// Step is how far a request has come.
type Step uint8

// The steps of a request. None is certain: a request may end at any.
const (
	StepTaken     Step = iota // a pass has begun with it
	StepDeciding              // it is its turn
	StepDecided               // the head of the state has what it does
	StepProposed              // raft has its entry
	StepCommitted             // its entry is committed, and on this node's disk
	StepReached               // of a read: the state that it is to see is here
	StepQuerying              // of a read: the machine is asked
	Steps                     // how many there are
)

// Place is where in the log a step was made: the entry of a command, or the position that a read sees; Bytes and Requests are the entry's, 0 if it has none.
type Place struct {
	Term     Term
	Index    Index
	Requests int
	Bytes    int
}

// An Observer is told of the steps of one request: for traces, of which the core knows nothing else. It is called on the worker's goroutine, for StepQuerying on that
// of the query, never at the same time nor after Done, and must not block.
type Observer interface {
	Observe(s Step, at Place)
}

func (r *Request) observe(s Step, at Place) {
	if r.Observer != nil {
		r.Observer.Observe(s, at)
	}
}

// Result is what a call yields.
type Result struct {
	Replies [][]byte // one per command
	Answer  []byte   // of a read
	Session SessionID
	// Index is the position of the outcome: the token for a read at AtToken that must see it.
	Index Index
	// Age bounds how old a Stale answer may be, as far as this replica knows;
	// math.MaxInt64 if it knows nothing.
	Age time.Duration
}

// CommandSpace returns room for one command, for Commands, without an allocation.
func (r *Request) CommandSpace() [][]byte { return r.command[:0] }

// replySpace returns room for the replies, without an allocation for the usual one.
func (r *Request) replySpace() [][]byte {
	if len(r.Commands) == 1 {
		return r.reply[:0]
	}
	return make([][]byte, 0, len(r.Commands))
}

func (r *Request) bytes() int {
	n := len(r.Query) + 64
	for _, c := range r.Commands {
		n += len(c)
	}
	return n
}

// finish hands the request and those attached to it back. Each has its outcome in memory of its own, to which its caller may write.
func (r *Request) finish(res Result, err error) {
	for r != nil {
		next := r.next
		r.next = nil
		r.Result, r.Err = res, err
		if next != nil { // first: once r is done, all that it has is its caller's
			res.Replies = slices.Clone(res.Replies)
			for i, b := range res.Replies {
				res.Replies[i] = bytes.Clone(b)
			}
			if no, ok := err.(*Rejection); ok {
				err = no.clone()
			}
		}
		r.Done(r)
		r = next
	}
}
