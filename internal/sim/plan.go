package sim

import (
	"fmt"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// plan is a run of which some faults and operations are left out. Each one that is left has the random source that it
// had, and begins when it began.
type plan struct {
	faults []plannedFault
	ops    []plannedOp
	// quiet: messages are neither lost nor doubled nor very late, between nodes and to clients.
	quiet bool
	// until is when calm begins, if that is earlier than the seed has it: what comes after the failure is not worth its time.
	until time.Duration
}

// faultKey names the n-th fault of a kind.
type faultKey struct{ kind, n int }

type plannedFault struct {
	id faultKey
	at int64
}

type plannedOp struct {
	id    opKey
	shard core.ShardID
	kind  core.Kind
	at    int64
}

// planOf returns all of a run's faults and operations, but for the questions at its end.
func planOf(s *sim) *plan {
	p := &plan{faults: s.broke}
	for _, o := range s.check.ops {
		if o.id.client < len(s.clients) {
			p.ops = append(p.ops, plannedOp{id: o.id, shard: o.shard, kind: o.kind, at: o.begun})
		}
	}
	return p
}

func (p *plan) tune(w *swarm) {
	if p.until > 0 {
		w.chaos = min(w.chaos, p.until)
	}
	if p.quiet {
		w.loss, w.dup, w.clientLoss, w.longQueries, w.ordered = 0, 0, 0, 0, true
		w.net.tailChance, w.fsync.tailChance = 0, 0
	}
}

// lane returns a lane's operations in their order.
func (p *plan) lane(client, lane int) (ops []plannedOp) {
	for _, o := range p.ops {
		if o.id.client == client && o.id.lane == lane {
			ops = append(ops, o)
		}
	}
	return ops
}

// replay begins the operations of a plan, each at its time, and after the one before.
func (l *lane) replay() {
	if len(l.planned) == 0 {
		return
	}
	c, s, p := l.c, l.c.s, l.planned[0]
	l.planned = l.planned[1:]
	s.at(p.at, func() {
		switch {
		case s.calm:
		case p.kind == core.KindCloseSession && c.sessions[p.shard] == nil:
			l.replay() // what opened it was left out
		default:
			o := s.check.newOperation(c, p.id)
			s.work.place(o)
			c.drawKind(o) // for the draws that it takes
			o.kind = p.kind
			c.fill(o)
			c.start(o, func() {
				exp(o.r, s.swarm.think) // next draws the pause before the next from what late answers of this one still draw from
				l.replay()
			})
		}
	})
}

// A told event is one that a person who reads the story of a run wants to know.
type told struct {
	at   int64
	text string
}

// tell notes an event for the story. Only planned runs are told: all others are too long.
func (s *sim) tell(format string, args ...any) {
	if s.opts.plan != nil {
		s.told = append(s.told, told{s.now, fmt.Sprintf(format, args...)})
	}
}

func (s *sim) tellFault(kind int, n *node) {
	if s.opts.plan == nil {
		return
	}
	switch kind {
	case faultCrashAll, faultHalves, faultProxy, faultStream:
		s.tell("fault %s", faultNames[kind])
	default:
		s.tell("fault %s: node %d", faultNames[kind], n.id)
	}
}

func (s *sim) tellAsked(a *attempt) {
	if s.opts.plan == nil {
		return
	}
	o, again := a.op, ""
	if a.num > 1 {
		again = " again"
	}
	switch o.kind {
	case core.KindOpenSession:
		s.tell("client %d asks node %d%s for a session", o.client.num, a.node.id, again)
	case core.KindCloseSession:
		s.tell("client %d asks node %d%s to close session %d", o.client.num, a.node.id, again, o.session.id)
	case core.KindRead:
		s.tell("client %d asks node %d%s: %s, %v", o.client.num, a.node.id, again, s.work.describe(o), o.level)
	default:
		as := ""
		if o.session != nil {
			as = fmt.Sprintf(" (number %d of session %d)", o.seq, o.session.id)
		}
		s.tell("client %d asks node %d%s: %s%s", o.client.num, a.node.id, again, s.work.describe(o), as)
	}
}

func (s *sim) tellAnswer(a *attempt) {
	if s.opts.plan == nil {
		return
	}
	res := &a.req.Result
	what := ""
	switch {
	case a.req.Err != nil:
		what = a.req.Err.Error()
	case a.op.kind == core.KindOpenSession:
		what = fmt.Sprintf("session %d", res.Session)
	case a.op.kind == core.KindCloseSession:
		what = "closed"
	default:
		what = s.work.describeAnswer(a)
	}
	s.tell("node %d answers client %d: %s (entry %d)", a.node.id, a.op.client.num, what, res.Index)
}

func atTime(ns int64) string { return fmt.Sprintf("%10.3f ms", float64(ns)/float64(time.Millisecond)) }
