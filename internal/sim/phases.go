package sim

import (
	"fmt"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// After the chaos comes calm: nothing fails any more, and within a bound everything that was asked must
// have ended, the cluster must answer, and all replicas must agree.

const (
	patienceInCalm = 10 * time.Second
	lookEvery      = 50 * millisecond
)

func (s *sim) beCalm() {
	s.calm = true
	s.phase(1)
	s.faults.calm()
	for _, o := range s.check.ops {
		if !o.done && (o.session != nil || o.kind != core.KindCommand) {
			o.deadline = 1 << 62 // now it must come to an end by itself
		}
	}
	s.waitFor("everything pending ends", s.settled, func() {
		s.phase(2)
		probes := s.probe(len(s.clients), false)
		if s.swarm.proxies > 0 {
			direct, through := probes, s.probe(len(s.clients)+1, true)
			probes = func() bool { return direct() && through() }
		}
		s.waitFor("new calls succeed", func() bool { return s.settled() && probes() }, func() {
			s.phase(3)
			s.waitFor("the replicas agree", s.agreed, s.end)
		})
	})
}

func (s *sim) phase(n uint64) { s.trace.event(evPhase, 0, n, 0, 0, 0) }

// waitFor looks until it is so, and fails when it takes too long.
func (s *sim) waitFor(that string, isSo func() bool, then func()) {
	deadline := s.now + int64(patienceInCalm)
	var look func()
	look = func() {
		switch {
		case isSo():
			then()
		case s.now > deadline && s.ruined():
			s.stats.Ruined++
			s.end()
		case s.now > deadline:
			s.fail("liveness", "%v without faults, and not so: %s (%s)", patienceInCalm, that, s.whatIsMissing())
		default:
			s.after(lookEvery, look)
		}
	}
	look()
}

// settled: no client waits, and every call that a living node was given has been answered.
func (s *sim) settled() bool {
	s.missing = s.unanswered()
	return s.missing == "" && s.unsettled() == nil
}

func (s *sim) unsettled() *operation {
	for _, o := range s.check.ops {
		for _, a := range o.attempts {
			if a.given && a.answers == 0 && a.node.gen == a.gen {
				return o
			}
		}
		if !o.done {
			return o
		}
	}
	return nil
}

// unanswered: an operator waits for the end of a change.
func (s *sim) unanswered() string {
	for _, m := range s.check.changeList {
		for _, a := range m.attempts {
			if a.answers == 0 && a.node.up && a.node.gen == a.gen {
				return fmt.Sprintf("%v, asked of node %d, is not answered", &m.key.Change, a.node.id)
			}
		}
	}
	return ""
}

// probe asks for one of everything, of every shard, until there is an answer; the
// function that it returns tells whether all of it has been answered.
func (s *sim) probe(num int, proxied bool) func() bool {
	c := &client{s: s, r: stream(s.seed, 300+uint64(num-len(s.clients))), num: num, useSessions: true}
	if proxied {
		c.connect()
	}
	unanswered, asked := 0, 0
	var ask func(id core.ShardID, prepare func(*operation), then func())
	ask = func(id core.ShardID, prepare func(*operation), then func()) {
		unanswered++
		asked++
		o := s.check.newOperation(c, opKey{c.num, 0, asked})
		s.work.place(o)
		o.shard = id
		prepare(o)
		c.start(o, func() {
			if o.answer != nil {
				then()
				unanswered--
				return
			}
			c.guess[id] = c.guess[id]%core.NodeID(len(s.nodes)) + 1 // that one may be out for good
			// An operation of its own each time: it may have no session, and then must not be asked for twice.
			s.after(exp(o.r, 5*millisecond), func() { ask(id, prepare, then); unanswered-- })
		})
	}
	nothing := func() {}
	for id := core.ShardID(1); id <= s.work.shards(); id++ {
		c.guess[id] = 1
		ask(id, func(o *operation) { o.kind = core.KindOpenSession }, func() {
			for _, level := range []core.Level{core.Linearizable, core.ReadIndex, core.AtToken} {
				if !s.work.reads() {
					break
				}
				ask(id, func(o *operation) {
					o.kind, o.level, o.token = core.KindRead, level, c.token[id]
					s.work.readAll(o)
				}, nothing)
			}
			ask(id, func(o *operation) {
				o.kind = core.KindCommand
				c.fill(o)
			}, nothing)
		})
	}
	return func() bool { return unanswered == 0 }
}

// agreed: every replica has applied all that anybody has, and holds nothing back; who was removed knows it.
func (s *sim) agreed() bool {
	for _, n := range s.nodes {
		for _, w := range n.workers {
			for _, id := range w.shards {
				if why := s.disagrees(n, w, id); why != "" {
					s.missing = fmt.Sprintf("shard %d on node %d: %s", id, n.id, why)
					return false
				}
			}
		}
	}
	for _, n := range s.nodes {
		for _, w := range n.workers {
			for _, id := range w.shards {
				s.check.compareState(w, id)
			}
		}
	}
	for id := core.ShardID(1); id <= s.work.shards(); id++ {
		s.check.shards[id].model.finish()
	}
	return true
}

func (s *sim) disagrees(n *node, w *worker, id core.ShardID) string {
	st, _ := w.core.Status(id)
	o := s.check.shards[id]
	conf := o.latest()
	switch {
	case conf.joint():
		return "the configuration is joint"
	case o.version != s.swarm.programs && s.stats.Rotten == 0: // a node that stays out says nothing of its program
		return fmt.Sprintf("version %d is active, every program can run %d", o.version, s.swarm.programs)
	case conf.removed.has(n.id) && st.Applied == 0 && len(st.Members.Voters) == 0:
		// It was a member before it knew, and knows nobody whom it could ask.
	case conf.removed.has(n.id):
		if st.Err == nil || st.Err.Code != core.CodeRemoved {
			return "it was removed, and does not know"
		}
	case !conf.has(n.id):
		if st.Applied != 0 || st.Err != nil {
			return "it never was a member, and is not as it was made"
		}
	case st.Err != nil && n.rotten != "" && !s.swarm.repairs:
	case st.Applied != o.last() || st.Queued != 0 || st.Inflight != 0:
		return fmt.Sprintf("it has applied %d of %d, %d calls are pending, %d entries in flight (%v)", st.Applied, o.last(), st.Queued, st.Inflight, st.Err)
	}
	return ""
}

func (s *sim) whatIsMissing() string {
	if s.missing != "" {
		return s.missing
	}
	if o := s.unsettled(); o != nil {
		return o.String()
	}
	return "see the trace"
}
