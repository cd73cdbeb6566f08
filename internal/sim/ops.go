package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
)

// An operation is what a client wants; an attempt is one request for it to one node.
type operation struct {
	num     uint64
	id      opKey
	r       *rand.Rand // of its own, so that leaving out one operation leaves the others what they were
	client  *client
	shard   core.ShardID
	kind    core.Kind
	level   core.Level
	token   core.Index
	session *clientSession // or nil
	seq     uint64
	rogue   bool     // uses a number that belongs to another command
	encoded [][]byte // the commands
	query   []byte
	builtinOp

	attempts []*attempt
	begun    int64 // when the client wanted it
	deadline int64
	done     bool
	then     func() // when it is over for the client
	// What the client was told, if it is final.
	answer *attempt

	// For the judge: from the first time that a node was asked to the first answer that a node gave.
	asked, answered int64      // 0: never
	floor           core.Index // the highest position known to be committed when it was first asked
	committed       core.Index
	ordinal         int      // among the operations of that entry
	committedAt     int64    // when the first replica applied it
	replies         [][]byte // as the log has them
	before          bool     // it had happened when the cluster was restored
}

func (o *operation) String() string {
	switch o.kind {
	case core.KindRead:
		return fmt.Sprintf("op %d: %v read of %s of shard %d", o.num, o.level, o.client.s.work.describe(o), o.shard)
	case core.KindOpenSession, core.KindCloseSession:
		return fmt.Sprintf("op %d: session of shard %d", o.num, o.shard)
	}
	s := fmt.Sprintf("op %d: %s on shard %d", o.num, o.client.s.work.describe(o), o.shard)
	if o.session != nil {
		s += fmt.Sprintf(" as %d of session %d", o.seq, o.session.id)
	}
	return s
}

// mayHappen: some attempt has not been told for certain that it did not happen and never will.
func (o *operation) mayHappen() bool {
	if o.before {
		return true
	}
	for _, a := range o.attempts {
		if a.mayHappen() {
			return true
		}
	}
	return false
}

type attempt struct {
	op   *operation
	num  int
	node *node
	gen  uint64
	req  core.Request

	// Of one that comes from a proxy: the call as it came, and what sends the answer on.
	routed *route.Call
	reply  func()

	given   bool // to the node
	givenAt int64
	turn    uint64     // of all that was given to any node
	floor   core.Index // the highest position known to be committed when it was given
	answers int        // from the node; must not exceed 1
	at      int64      // of the answer
	heard   bool       // the client has the answer, or has stopped waiting for it
}

// verdict is the first question that an answer answers: did it happen?
type verdict uint8

const (
	happened verdict = iota
	rejected
	refused // by the session's rules: this attempt was not executed
	notProposed
	unknownOutcome
)

var verdictNames = [...]string{"happened", "rejected", "refused", "not proposed", "unknown"}

func verdictOf(err error) verdict {
	if err == nil {
		return happened
	}
	r, ok := errors.AsType[*core.Rejection](err)
	switch {
	case ok && r.Code == core.CodeSequenceReused:
		return refused
	case ok:
		return rejected
	case refusedByRules(err):
		return refused
	case errors.Is(err, core.ErrNotProposed):
		return notProposed
	}
	return unknownOutcome
}

// refusedByRules: a sequence number that is not in the session's window, or no session any more.
func refusedByRules(err error) bool {
	e, ok := errors.AsType[*core.Error](err)
	return ok && e.Kind == core.ErrNotProposed && (e.Code.Ended() || e.Code == core.CodeSequenceTooHigh)
}

func (a *attempt) verdict() verdict { return verdictOf(a.req.Err) }

func (a *attempt) mayHappen() bool {
	if !a.given {
		return false
	}
	if a.answers == 0 {
		return true
	}
	v := a.verdict()
	return v != notProposed && v != refused
}

func (a *attempt) code() core.Code {
	if a.req.Err == nil {
		return ""
	}
	if r, ok := errors.AsType[*core.Rejection](a.req.Err); ok {
		return r.Code
	}
	if e, ok := errors.AsType[*core.Error](a.req.Err); ok {
		return e.Code
	}
	return ""
}

// give hands the attempt's request to its node, as it is now.
func (a *attempt) give() {
	o, s := a.op, a.op.client.s
	a.gen, a.given = a.node.gen, true
	a.floor = s.check.shards[o.shard].last()
	a.givenAt = s.now
	s.check.turns++
	a.turn = s.check.turns
	if o.asked == 0 {
		o.asked, o.floor = s.now, a.floor
	}
	q := &a.req
	q.Kind, q.Shard, q.Level, q.Token = o.kind, o.shard, o.level, o.token
	switch o.kind {
	case core.KindRead:
		q.Query = o.query
	case core.KindCommand:
		q.Commands = append(q.CommandSpace(), o.encoded...)
	case core.KindOpenSession, core.KindCloseSession:
	}
	if o.session != nil {
		q.Session, q.Sequence = o.session.id, o.seq
	}
	if c := a.routed; c != nil {
		q.Commands, q.Query, q.Level, q.Token = c.Commands, c.Query, c.Level, c.Token
		q.Session, q.Sequence, q.Acknowledged = c.Session, c.Sequence, c.Acknowledged
	}
	n, gen := a.node, a.gen
	q.Done = func(*core.Request) {
		if n.up && n.gen == gen { // else the process died first
			a.answers++
			s.answers = append(s.answers, a)
		}
	}
	s.trace.event(evSubmit, n.id, uint64(o.shard), o.num, uint64(a.num), uint64(o.kind))
	s.tellAsked(a)
	if s.trace.out != nil { // the arguments alone are worth not being made
		s.trace.note("client %d: %v (acknowledges %d)", o.client.num, o, q.Acknowledged)
	}
	n.workerOf(o.shard).post(func(in *core.Input) { in.Requests = append(in.Requests, q) })
}

// takeAnswers checks what has been answered in this event, and sends it on to the clients.
func (s *sim) takeAnswers() {
	for len(s.changeAnswers) > 0 {
		check := s.changeAnswers[0]
		s.changeAnswers = s.changeAnswers[1:]
		check()
	}
	for i := 0; i < len(s.answers); i++ { // an answer may lead to another
		a := s.answers[i]
		a.at = s.now
		s.trace.event(evAnswer, a.node.id, uint64(a.op.shard), a.op.num, uint64(a.num), uint64(a.verdict()))
		if s.trace.out != nil {
			s.trace.note("client %d: %s at index %d, replies %x, answer %x, error %v", a.op.client.num, verdictNames[a.verdict()],
				a.req.Result.Index, a.req.Result.Replies, a.req.Result.Answer, a.req.Err)
		}
		s.tellAnswer(a)
		s.check.answer(a)
		if a.reply != nil {
			a.reply()
		} else {
			a.op.client.replyUnderWay(a)
		}
	}
	clear(s.answers)
	s.answers = s.answers[:0]
}
