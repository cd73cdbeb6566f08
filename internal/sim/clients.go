package sim

import (
	"errors"
	"math/rand/v2"

	"github.com/decree-raft/decree/internal/core"
)

// client asks, waits, gives up, and asks again elsewhere, as rsm.Client does, and sometimes worse: the
// same request to several nodes at once, a number used twice, an answer that comes when nobody waits any more.
type client struct {
	s           *sim
	r           *rand.Rand
	num         int
	guess       [shardCount + 1]core.NodeID
	token       [shardCount + 1]core.Index // of the latest answer
	useSessions bool
	sessions    [shardCount + 1]*clientSession
	opening     [shardCount + 1]bool
	busy        int      // operations under way
	lib         *station // of one that asks through proxies
	at          int      // the proxy in use
}

// clientSession is what a client knows of a session of its own.
type clientSession struct {
	id       core.SessionID
	last     uint64 // number given out
	acked    uint64 // all up to it are over
	finished map[uint64]bool
}

func (s *sim) startClients() {
	for i := range s.swarm.clients {
		c := &client{s: s, r: stream(s.seed, 200+uint64(i)), num: i}
		c.useSessions = chance(c.r, s.swarm.sessions)
		for sh := range c.guess {
			c.guess[sh] = core.NodeID(1 + c.r.IntN(len(s.nodes)))
		}
		if s.swarm.proxies > 0 && chance(stream(s.seed, 800+uint64(i)), s.swarm.proxied) {
			c.connect()
		}
		s.clients = append(s.clients, c)
		for k := range s.swarm.width {
			l := &lane{c: c, num: k, r: stream(s.seed, scramble(opKey{c.num, k, 0}.id()))}
			if s.opts.plan != nil {
				l.planned = s.opts.plan.lane(c.num, k)
				l.replay()
			} else {
				s.after(exp(l.r, 20*millisecond), l.next)
			}
		}
	}
}

// lane is one of the calls that a client has under way at a time.
type lane struct {
	c       *client
	num     int
	n       int // operations begun
	r       *rand.Rand
	planned []plannedOp
}

// next starts an operation, and another one after each has ended, until calm begins.
func (l *lane) next() {
	c, s := l.c, l.c.s
	if s.calm {
		return
	}
	if e := s.swarm.idleEvery; e > 0 && s.now%(e+s.swarm.idleOf) > e {
		s.after(exp(l.r, s.swarm.idleOf/4), l.next)
		return
	}
	l.n++
	o := s.check.newOperation(c, opKey{c.num, l.num, l.n})
	c.draw(o)
	c.start(o, func() { s.after(exp(o.r, s.swarm.think), l.next) })
}

// start begins an operation; then is called when it is over for the client.
func (c *client) start(o *operation, then func()) {
	c.busy++
	o.deadline = c.s.now + (o.r.Int64N(5)-1)*c.s.swarm.patience
	o.then = then
	c.attempt(o)
	if o.kind == core.KindCommand && len(c.s.nodes) > 1 && !o.done && o.session != nil && o.r.IntN(20) == 0 {
		c.guess[o.shard] = core.NodeID(1 + o.r.IntN(len(c.s.nodes)))
		c.attempt(o) // the same at once, elsewhere or there too
	}
}

// draw decides what the operation is.
func (c *client) draw(o *operation) {
	c.s.work.place(o)
	o.kind = c.drawKind(o)
	c.fill(o)
}

func (c *client) drawKind(o *operation) core.Kind {
	sess := c.sessions[o.shard]
	switch p := o.r.IntN(100); {
	case c.useSessions && sess == nil && !c.opening[o.shard]:
		return core.KindOpenSession
	case p < c.s.swarm.reads && c.s.work.reads():
		return core.KindRead
	case p == c.s.swarm.reads && sess != nil:
		return core.KindCloseSession
	}
	return core.KindCommand
}

// fill decides the rest of an operation whose kind is known.
func (c *client) fill(o *operation) {
	sess := c.sessions[o.shard]
	switch o.kind {
	case core.KindOpenSession:
		c.opening[o.shard] = true
	case core.KindCloseSession:
		o.session = sess
		c.sessions[o.shard] = nil
	case core.KindRead:
		o.level = pick(o.r, core.Linearizable, core.Linearizable, core.ReadIndex, core.ReadIndex, core.AtToken, core.Stale)
		if c.s.swarm.linear && o.level != core.ReadIndex {
			o.level = core.Linearizable
		}
		if o.level == core.AtToken {
			o.token = c.token[o.shard]
		}
		c.s.work.drawRead(o)
	case core.KindCommand:
		c.s.work.drawCommands(o)
		if sess != nil {
			c.number(o, sess)
		}
	}
}

// number gives a command its place in the session, or now and then the place of another one.
func (c *client) number(o *operation, sess *clientSession) {
	o.session = sess
	if sess.last > 0 && o.r.IntN(25) == 0 {
		o.rogue = true
		o.seq = 1 + o.r.Uint64N(sess.last)
		return
	}
	sess.last++
	o.seq = sess.last
}

func (s *clientSession) finish(seq uint64) {
	s.finished[seq] = true
	for s.finished[s.acked+1] {
		s.acked++
		delete(s.finished, s.acked)
	}
}

// attempt asks a node. The request may be lost on the way, or late.
func (c *client) attempt(o *operation) {
	s := c.s
	if c.lib != nil {
		c.ask(o)
		return
	}
	target := c.guess[o.shard]
	if o.kind == core.KindRead && o.level != core.Linearizable || o.r.IntN(20) == 0 {
		target = core.NodeID(1 + o.r.IntN(len(s.nodes)))
	}
	a := &attempt{op: o, num: len(o.attempts) + 1, node: s.node(target)}
	o.attempts = append(o.attempts, a)
	if o.session != nil && o.kind == core.KindCommand {
		a.req.Acknowledged = o.session.acked // as of now, even if it arrives much later
		if o.rogue {
			a.req.Acknowledged = min(o.session.acked, o.seq-1)
		}
	}
	if a.num > 1 {
		s.stats.Retries++
	}
	if s.calm || !chance(o.r, s.swarm.clientLoss) {
		s.after(c.delay(o), func() { c.arrive(a) })
	}
	s.after(o.r.Int64N(s.swarm.patience)+s.swarm.patience/2, func() { c.timeout(a) })
}

func (c *client) delay(o *operation) int64 {
	if !c.s.calm && o.r.IntN(50) == 0 {
		return exp(o.r, c.s.swarm.patience)
	}
	return exp(o.r, 200*microsecond)
}

func (c *client) arrive(a *attempt) {
	if !a.node.up {
		if a.op.r.IntN(2) == 0 { // else silence
			a.req.Err = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable, Message: "the node is not running"}
			c.replyUnderWay(a)
		}
		return
	}
	a.give()
}

// timeout ends the wait for an attempt. When calm reigns, what a living node has been given must be answered, however late.
func (c *client) timeout(a *attempt) {
	if a.heard {
		return
	}
	if c.s.calm && a.given && a.node.up && a.node.gen == a.gen && a.answers == 0 {
		c.s.after(50*millisecond, func() { c.timeout(a) })
		return
	}
	a.heard = true
	c.s.trace.event(evGiveUp, a.node.id, uint64(a.op.shard), a.op.num, uint64(a.num), 0)
	c.again(a, true)
}

func (c *client) replyUnderWay(a *attempt) {
	if c.s.calm || !chance(a.op.r, c.s.swarm.clientLoss) {
		c.s.after(c.delay(a.op), func() { c.hear(a) })
	}
}

// hear takes an answer.
func (c *client) hear(a *attempt) {
	if a.heard {
		return
	}
	a.heard = true
	o := a.op
	if o.done {
		return
	}
	var e *core.Error
	if errors.As(a.req.Err, &e) && e.Leader != 0 {
		c.guess[o.shard] = e.Leader
	}
	switch a.verdict() {
	case happened, rejected, refused:
		c.finish(o, a)
	case notProposed, unknownOutcome:
		c.again(a, a.verdict() == unknownOutcome)
	}
}

// again asks once more if that is safe, and the client still cares.
func (c *client) again(a *attempt, inDoubt bool) {
	o, s := a.op, c.s
	if o.done {
		return
	}
	safe := o.session != nil || o.kind == core.KindRead
	if !safe && o.kind == core.KindCommand || inDoubt && !safe || o.rogue || s.now > o.deadline {
		c.finish(o, nil) // without a session a client uses a new command, so that the fate of each can be told
		return
	}
	var e *core.Error
	if !errors.As(a.req.Err, &e) || e.Leader == 0 {
		c.guess[o.shard] = c.guess[o.shard]%core.NodeID(len(s.nodes)) + 1
	}
	s.after(exp(o.r, 5*millisecond), func() {
		if !o.done {
			c.attempt(o)
		}
	})
}

// finish ends the operation for the client. Without an answer its number is given up: it will never be asked for again.
func (c *client) finish(o *operation, a *attempt) {
	o.done, o.answer = true, a
	c.busy--
	if o.session != nil && o.kind == core.KindCommand && !o.rogue {
		o.session.finish(o.seq)
	}
	if o.kind == core.KindOpenSession {
		c.opening[o.shard] = false
	}
	if a != nil {
		c.learn(o, a)
	}
	o.then()
}

func (c *client) learn(o *operation, a *attempt) {
	c.token[o.shard] = max(c.token[o.shard], a.req.Result.Index)
	switch {
	case o.kind == core.KindOpenSession && a.verdict() == happened:
		c.sessions[o.shard] = &clientSession{id: a.req.Result.Session, finished: map[uint64]bool{}}
	case a.code() == core.CodeSessionExpired && c.sessions[o.shard] == o.session:
		c.sessions[o.shard] = nil
	}
}
