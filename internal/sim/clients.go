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
	busy        int // operations under way
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
		s.clients = append(s.clients, c)
		for range s.swarm.width {
			s.after(exp(c.r, 20*millisecond), c.next)
		}
	}
}

// next starts an operation, and another one after each has ended, until calm begins.
func (c *client) next() {
	s := c.s
	if s.calm {
		return
	}
	if e := s.swarm.idleEvery; e > 0 && s.now%(e+s.swarm.idleOf) > e {
		s.after(exp(c.r, s.swarm.idleOf/4), c.next)
		return
	}
	c.start(c.draw(), func() { s.after(exp(c.r, s.swarm.think), c.next) })
}

// start begins an operation; then is called when it is over for the client.
func (c *client) start(o *operation, then func()) {
	c.busy++
	o.deadline = c.s.now + (c.r.Int64N(5)-1)*c.s.swarm.patience
	o.then = then
	c.attempt(o)
	if o.kind == core.KindCommand && len(c.s.nodes) > 1 && !o.done && o.session != nil && c.r.IntN(20) == 0 {
		c.guess[o.shard] = core.NodeID(1 + c.r.IntN(len(c.s.nodes)))
		c.attempt(o) // the same at once, elsewhere or there too
	}
}

func (c *client) draw() *operation {
	o := c.s.check.newOperation(c)
	o.shard, o.bank = pick(c.r, registers, bank), c.s.check.someBank()
	sess := c.sessions[o.shard]
	switch p := c.r.IntN(100); {
	case c.useSessions && sess == nil && !c.opening[o.shard]:
		o.kind = core.KindOpenSession
		c.opening[o.shard] = true
	case p < 35:
		c.drawRead(o)
	case p == 35 && sess != nil:
		o.kind, o.session = core.KindCloseSession, sess
		c.sessions[o.shard] = nil
	default:
		o.kind = core.KindCommand
		c.drawCommands(o)
		if sess != nil {
			c.number(o, sess)
		}
	}
	return o
}

func (c *client) drawRead(o *operation) {
	o.kind = core.KindRead
	o.level = pick(c.r, core.Linearizable, core.Linearizable, core.ReadIndex, core.ReadIndex, core.Session, core.Stale)
	o.key = c.s.check.someKey(c.r)
	if o.shard == bank || c.r.IntN(10) == 0 {
		o.key = queryAll
	}
	if o.level == core.Session {
		o.token = c.token[o.shard]
	}
}

func (c *client) drawCommands(o *operation) {
	n := 1
	if c.r.IntN(6) == 0 {
		n = 2 + c.r.IntN(2)
	}
	for i := range n {
		cmd := command{id: c.s.check.newID(o)}
		if chance(c.r, c.s.swarm.padChance) {
			cmd.pad = c.r.IntN(c.s.swarm.pad)
		}
		if o.shard == bank {
			from := c.r.IntN(accounts)
			to := (from + 1 + c.r.IntN(accounts-1)) % accounts
			cmd.op, cmd.key, cmd.old = opTransfer, o.bank+uint16(from), int64(o.bank)+int64(to)
			cmd.arg = 1 + c.r.Int64N(startBalance)
		} else {
			c.drawRegister(&cmd, o, i)
		}
		o.cmds = append(o.cmds, cmd)
		o.encoded = append(o.encoded, cmd.encode())
	}
	if n == 1 {
		c.s.check.digests[digestOf(o.encoded)] = o.cmds[0]
	}
}

// drawRegister: all commands of a request are on one key, so that keys can be judged one by one.
func (c *client) drawRegister(cmd *command, o *operation, i int) {
	if i == 0 {
		cmd.key = c.s.check.someKey(c.r)
	} else {
		cmd.key = o.cmds[0].key
	}
	cmd.arg = 1 + c.r.Int64N(20)
	switch p := c.r.IntN(40); {
	case p < 10:
		cmd.op, cmd.arg = opSet, int64(cmd.id)*100
		if p == 0 {
			cmd.arg = 0 // deletes
		}
	case p < 20:
		cmd.op = opAdd
	case p < 30:
		cmd.op, cmd.arg = opCAS, int64(cmd.id)*100
		cmd.old = c.s.check.shards[o.shard].latest(cmd.key) // likely to be right, and wrong when others are quick
	case p < 38:
		cmd.op, cmd.arg = opTake, 1+c.r.Int64N(1000)
	case p == 38:
		cmd.op = opPanic
	default:
		cmd.op = opHuge
	}
}

// number gives a command its place in the session, or now and then the place of another one.
func (c *client) number(o *operation, sess *clientSession) {
	o.session = sess
	if sess.last > 0 && c.r.IntN(25) == 0 {
		o.rogue = true
		o.seq = 1 + c.r.Uint64N(sess.last)
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
	target := c.guess[o.shard]
	if o.kind == core.KindRead && o.level != core.Linearizable || c.r.IntN(20) == 0 {
		target = core.NodeID(1 + c.r.IntN(len(s.nodes)))
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
	if s.calm || !chance(c.r, s.swarm.clientLoss) {
		s.after(c.delay(), func() { c.arrive(a) })
	}
	s.after(c.r.Int64N(s.swarm.patience)+s.swarm.patience/2, func() { c.timeout(a) })
}

func (c *client) delay() int64 {
	if !c.s.calm && c.r.IntN(50) == 0 {
		return exp(c.r, c.s.swarm.patience)
	}
	return exp(c.r, 200*microsecond)
}

func (c *client) arrive(a *attempt) {
	if !a.node.up {
		if c.r.IntN(2) == 0 { // else silence
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
	if c.s.calm || !chance(c.r, c.s.swarm.clientLoss) {
		c.s.after(c.delay(), func() { c.hear(a) })
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
	s.after(exp(c.r, 5*millisecond), func() {
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
