package route

import (
	"bytes"
	"context"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// Kind is what a Call asks for.
type Kind uint8

// The kinds of call.
const (
	Submit Kind = iota
	Read
	OpenSession
	CloseSession
)

var kindNames = [...]string{Submit: "submit", Read: "read", OpenSession: "open_session", CloseSession: "close_session"}

// String returns the kind as metrics, logs and traces name it.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// MaxPatience bounds how far away a deadline is, so that it can be told in nanoseconds of any clock: contexts may have one in the year 9999.
const MaxPatience = 365 * 24 * time.Hour

// notice is how long what a call has waited for takes to whoever asked.
const notice = int64(20 * time.Millisecond)

// NoticeOf returns Call.Notice of a call whose deadline is so many nanoseconds away.
func NoticeOf(wait int64) int64 { return max(0, min(notice, wait/4)) }

// Call is a call on its way to whoever can answer it. The caller fills in the first part and does not touch it again until Done.
type Call struct {
	Kind  Kind
	Shard core.ShardID

	// Of Submit. Session is CloseSession's, too.
	Commands               [][]byte
	MakesRoom              bool
	Session                core.SessionID
	Sequence, Acknowledged uint64
	// Mark, if set, says up to which number outcomes are known: each attempt gets it anew as Acknowledged. It must not block, nor call the router.
	Mark func(*Call) uint64

	// Of Read.
	Level core.Level
	Token core.Index
	Query []byte

	// Deadline in nanoseconds of the router's clock: there is an outcome by then.
	Deadline int64
	// Notice is how many nanoseconds before its deadline a call ends that waits for a leader then, so that whoever asked, and has the same deadline, is told what for:
	// see NoticeOf.
	Notice int64
	// Done is called once, when there is an outcome. It must not block, nor call the router. The slice of Result.Replies is good until it returns, its elements for ever.
	Done func(*Call)
	// Owner is the caller's own: with it, Done and Mark need not be closures.
	Owner any

	// Trace, if not nil, is the span that every attempt belongs to. It is not changed any more.
	Trace *Trace
	// Watch, if set, is told of every step: "sent" to whom, "waits" for a leader, "failed" why. It must not block, nor call the router.
	Watch func(step string, to Target, err error)

	Result core.Result
	Err    error
	// Held: at its end the call was at who is believed to lead, or at any replica if that will do.
	Held bool
	// Late: it had no final answer at its deadline.
	Late bool

	one [1][]byte // room for a command

	router     *Router
	prev, next *Call // all calls of the router
	target     Target
	attempt    uint32
	term       core.Term // in which the target was said to lead, when it was asked
	bounces    int       // hints followed since it was last put off
	notBefore  int64     // of what waits
	failures   int
	parked     bool
	finished   bool
	inDoubt    bool // an attempt ended, and it may have happened
	last       error
}

// AddCommand adds a command. The first has its room in the call.
func (c *Call) AddCommand(b []byte) {
	if c.Commands == nil {
		c.Commands = c.one[:0]
	}
	c.Commands = append(c.Commands, b)
}

// Trace names a span, as W3C's trace context does.
type Trace struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// Own copies what the call carries, which points into somebody's memory.
func (c *Call) Own() {
	c.Query = bytes.Clone(c.Query)
	for i, b := range c.Commands {
		c.Commands[i] = bytes.Clone(b)
	}
}

// repeatable reports whether asking twice does no harm.
func (c *Call) repeatable() bool {
	return c.Kind != Submit || c.Session != 0 || mutated("repeat-without-session")
}

// changes reports whether the call does something, so that it matters if it happened.
func (c *Call) changes() bool { return c.Kind != Read }

// mayHappen reports whether some attempt has not certainly come to nothing.
func (c *Call) mayHappen() bool {
	return c.changes() && (c.inDoubt || c.target != nil && !c.parked) && !mutated("doubt-is-forgotten")
}

// anywhere reports whether another replica than the leader will do.
func (c *Call) anywhere() bool { return c.Kind == Read && c.Level != core.Linearizable }

// end is when the call ends at the latest, as it is now.
func (c *Call) end() int64 {
	if c.parked {
		return c.Deadline - c.Notice
	}
	return c.Deadline
}

func (c *Call) step(step string, to Target, err error) {
	if c.Watch != nil {
		c.Watch(step, to, err)
	}
}

// Again returns the call anew, as the caller filled it in: a router has a call once. If it was refused for a while, it says so should nothing else be said of it.
func (c *Call) Again() *Call {
	var last error
	if e, _ := core.Verdict(c.Err); e != nil && e.Code.Busy() {
		last = e
	}
	return &Call{last: last, Kind: c.Kind, Shard: c.Shard, Commands: c.Commands, MakesRoom: c.MakesRoom, Session: c.Session, Sequence: c.Sequence,
		Acknowledged: c.Acknowledged, Mark: c.Mark, Level: c.Level, Token: c.Token, Query: c.Query, Deadline: c.Deadline, Notice: c.Notice, Done: c.Done, Owner: c.Owner, Trace: c.Trace, Watch: c.Watch}
}

// Ended is the error of a call that comes with a context that has ended: nobody is asked. Nil if it has not.
func Ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeCancelled, Message: "the context had ended before anybody was asked", Cause: err}
	}
	return nil
}

// Abandoned is the error of who does not wait for the outcome any more. The call goes on.
func (c *Call) Abandoned(message string, why error) error {
	kind := core.ErrUnknown
	if !c.changes() {
		kind = core.ErrNotProposed
	}
	return &core.Error{Kind: kind, Code: core.CodeCancelled, Message: message, Cause: why}
}

// Size returns about how many bytes the call holds on to.
func (c *Call) Size() int {
	n := len(c.Query) + 64
	for _, b := range c.Commands {
		n += len(b) + 24
	}
	return n
}

// Answer is how a target gives the outcome of an attempt. An attempt that is not the latest counts for nothing any more.
func (c *Call) Answer(now int64, attempt uint32, res core.Result, err error) {
	c.router.answer(now, c, attempt, res, err)
}

// Lost is how a target says that it will give no outcome. sent: the call may have arrived.
func (c *Call) Lost(now int64, attempt uint32, sent bool, why error) {
	e := &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable, Message: "the connection failed before the call was sent"}
	if sent {
		e.Kind, e.Message = core.ErrUnknown, "the connection failed while the answer was waited for"
	}
	if why != nil {
		// As words: that of the stream is often "not proposed", which as a cause would pass for the call's own kind.
		e.Message += ": " + why.Error()
	}
	c.router.answer(now, c, attempt, core.Result{}, e)
}
