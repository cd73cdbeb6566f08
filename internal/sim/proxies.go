package sim

import (
	"math/rand/v2"
	"slices"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
)

// Some clients ask through proxies. What decides where a call goes and what becomes of it is the code of production, internal/route, in the client and once
// more in the proxy; what is replaced is the way between them: streams that break with answers on them, hang in one direction, and open again.

// asking is one call of a client, and all that became of it on its ways.
type asking struct {
	op       *operation
	attempts []*attempt // of nodes
	ways     int        // messages and calls of proxies that may still become attempts
}

func (k *asking) mayHappen() bool {
	return k.ways > 0 || slices.ContainsFunc(k.attempts, (*attempt).mayHappen)
}

// station is who has routers: a client, or a proxy in one of its incarnations.
type station struct {
	s       *sim
	r       *rand.Rand
	routers [shardCount + 1]*route.Router
	hops    []*hop
	asked   map[*route.Call]*asking // under way
	ticks   bool
	frozen  int64 // until when
	// down is told that a hop broke, or does not open.
	down func(*hop)
}

func newStation(s *sim, r *rand.Rand, cfg route.Config, down func(*hop)) *station {
	st := &station{s: s, r: r, asked: map[*route.Call]*asking{}, down: down}
	for id := core.ShardID(1); id <= s.work.shards(); id++ {
		cfg.Shard = id
		st.routers[id] = route.New(cfg)
	}
	return st
}

// tickEvery is how often the deadlines of calls are looked at, as in production.
const tickEvery = 5 * millisecond

func (st *station) submit(c *route.Call, k *asking) {
	st.asked[c] = k
	if !st.ticks {
		st.ticks = true
		st.s.after(tickEvery, st.tick)
	}
	st.routers[c.Shard].Submit(st.s.now, c)
}

func (st *station) tick() {
	st.ticks = len(st.asked) > 0
	if !st.ticks {
		return
	}
	st.s.after(tickEvery, st.tick)
	if st.isFrozen() {
		return
	}
	for _, r := range st.routers[1:] {
		if r != nil {
			r.Tick(st.s.now)
		}
	}
}

func (st *station) isFrozen() bool { return st.s.now < st.frozen }

func (st *station) all(f func(*route.Router)) {
	for _, r := range st.routers[1:] {
		if r != nil {
			f(r)
		}
	}
}

// hop is a stream of calls to a node or to a proxy.
type hop struct {
	s       *sim
	from    *station
	node    *node
	proxy   *proxy // if node is nil
	up      bool
	dead    bool   // who had it has crashed
	gen     uint64 // of the stream
	peer    uint64 // incarnation of the other side with which it was opened
	pending []*carried
	stalled [2]int // faults in which nothing comes to the other side, or back
	heard   int64
	watched bool
}

// carried is an attempt on a hop.
type carried struct {
	call      *route.Call
	as        route.Call // as it was when it was sent
	number    uint32
	ask       *asking
	gen, peer uint64
	sent      bool // it may arrive
	arrived   bool
	dropped   bool
}

const (
	reopenAfter = 20 * millisecond
	lookAtHop   = 20 * millisecond
)

func (st *station) connect(n *node, p *proxy) *hop {
	h := &hop{s: st.s, from: st, node: n, proxy: p}
	st.hops = append(st.hops, h)
	st.s.after(exp(st.r, millisecond), h.open)
	return h
}

// serving returns the incarnation of the other side.
func (h *hop) serving() (gen uint64, up bool) {
	if h.node != nil {
		return h.node.gen, h.node.up
	}
	return h.proxy.gen, h.proxy.up
}

func (h *hop) asleep() bool {
	if h.node != nil {
		return h.node.isPaused()
	}
	return h.proxy.up && h.proxy.isFrozen()
}

func (h *hop) open() {
	if h.dead || h.up {
		return
	}
	gen, up := h.serving()
	if up && !h.asleep() && h.stalled == [2]int{} {
		h.up, h.peer, h.heard = true, gen, h.s.now
		h.from.all(func(r *route.Router) { r.Up(h.s.now) })
		return
	}
	h.gone()
}

// gone says that the stream is not there, and tries again.
func (h *hop) gone() {
	h.from.all(func(r *route.Router) { r.Down(h) })
	h.from.down(h)
	h.s.after(exp(h.from.r, reopenAfter), h.open)
}

// Send implements route.Target.
func (h *hop) Send(c *route.Call, number uint32) bool {
	if !h.up || h.dead {
		return false
	}
	k := &carried{call: c, as: *c, number: number, ask: h.from.asked[c], gen: h.gen, peer: h.peer}
	k.ask.ways++
	if len(h.pending) == 0 {
		h.heard = h.s.now
	}
	h.pending = append(h.pending, k)
	h.watch()
	o := k.ask.op
	h.s.after(exp(o.r, 20*microsecond), func() {
		if k.dropped {
			return
		}
		k.sent = true
		h.s.after(o.client.delay(o), func() { h.arrive(k) })
		if !h.s.calm && chance(o.r, h.s.swarm.clientLoss/2) {
			h.s.after(o.client.delay(o), func() { h.breaksIf(k.gen) })
		}
	})
	return true
}

func (h *hop) arrive(k *carried) {
	if k.dropped {
		return
	}
	if h.stalled[0] > 0 || h.node == nil && h.asleep() {
		h.s.after(5*millisecond, func() { h.arrive(k) })
		return
	}
	k.arrived = true
	k.ask.ways--
	if gen, up := h.serving(); !up || gen != k.peer {
		h.breaksIf(k.gen)
		return
	}
	if h.node == nil {
		h.proxy.serve(h, k)
		return
	}
	o := k.ask.op
	a := &attempt{op: o, num: len(o.attempts) + 1, node: h.node, routed: &k.as}
	o.attempts, k.ask.attempts = append(o.attempts, a), append(k.ask.attempts, a)
	if a.num > 1 {
		h.s.stats.Retries++
	}
	a.reply = func() { h.reply(k, a.req.Result, a.req.Err) }
	a.give()
}

// reply sends an answer back. It is lost as a reply can be: with the stream, and all else that is on it.
func (h *hop) reply(k *carried, res core.Result, err error) {
	o := k.ask.op
	if !h.s.calm && chance(o.r, h.s.swarm.clientLoss) {
		h.breaksIf(k.gen)
	}
	if err != nil {
		err = wire.FromError(wire.ErrorOf(err)) // as it travels
	}
	h.s.after(o.client.delay(o), func() { h.hear(k, res, err) })
}

func (h *hop) hear(k *carried, res core.Result, err error) {
	if h.gen != k.gen || h.dead {
		return
	}
	if h.stalled[1] > 0 || h.from.isFrozen() {
		h.s.after(5*millisecond, func() { h.hear(k, res, err) })
		return
	}
	h.heard = h.s.now
	h.pending = slices.DeleteFunc(h.pending, func(other *carried) bool { return other == k })
	k.call.Answer(h.s.now, k.number, res, err)
	if o := k.ask.op; !h.s.calm && o.r.IntN(20) == 0 { // said twice
		h.s.after(exp(o.r, 5*millisecond), func() {
			if !h.dead {
				k.call.Answer(h.s.now, k.number, res, err)
			}
		})
	}
}

func (h *hop) breaksIf(gen uint64) {
	if h.gen == gen {
		h.breaks()
	}
}

// errBroke is what a stream that was closed in order ends with: it is of the stream, and says nothing of the calls on it.
var errBroke = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "the other side closes"}

// breaks ends the stream. What is on its way to the other side may arrive all the same.
func (h *hop) breaks() {
	if !h.up {
		return
	}
	h.s.stats.StreamsBroken++
	h.s.trace.event(evStreamBroken, h.nodeID(), uint64(len(h.pending)), 0, 0, 0)
	h.up = false
	for _, k := range h.drop() {
		k.call.Lost(h.s.now, k.number, k.sent, errBroke)
	}
	h.gone()
}

func (h *hop) nodeID() core.NodeID {
	if h.node != nil {
		return h.node.id
	}
	return 0
}

// drop returns what was on the stream, of which some will not arrive any more.
func (h *hop) drop() []*carried {
	lost := h.pending
	h.pending = nil
	h.gen++
	for _, k := range lost {
		if !k.arrived && (!k.sent || h.from.r.IntN(2) == 0) {
			k.dropped = true
			k.ask.ways--
		}
	}
	return lost
}

// watch notices what a stream would: that the other side is gone, or says nothing.
func (h *hop) watch() {
	if !h.watched {
		h.watched = true
		h.s.after(lookAtHop, h.look)
	}
}

func (h *hop) look() {
	h.watched = false
	if !h.up || h.dead || len(h.pending) == 0 {
		return
	}
	gen, up := h.serving()
	silent := h.s.now-h.heard > h.s.swarm.silence
	switch {
	case !up || gen != h.peer:
		if silent || h.from.r.IntN(3) > 0 {
			h.breaks()
			return
		}
	case h.asleep() || h.stalled != [2]int{}:
		if silent {
			h.breaks()
			return
		}
	default:
		h.heard = h.s.now // it says that it lives
	}
	h.watch()
}

// proxy is what proxy.Proxy is in production.
type proxy struct {
	*station
	num    int
	up     bool
	gen    uint64
	wanted bool
	nodes  [shardCount + 1][]core.NodeID // as they were told last
}

const (
	refreshEvery = 200 * millisecond
	hurryEvery   = 25 * millisecond
)

func (s *sim) startProxies() {
	for i := range s.swarm.proxies {
		p := &proxy{num: i}
		s.proxies = append(s.proxies, p)
		p.start(s)
	}
}

func (p *proxy) start(s *sim) {
	p.gen++
	p.up, p.wanted, p.nodes = true, false, [shardCount + 1][]core.NodeID{}
	r := stream(s.seed, 700+uint64(p.num)+p.gen<<16)
	p.station = newStation(s, r, route.Config{MaxWaiting: pick(r, 3, 1<<16, 1<<16), Resolve: p.resolve, Lead: p.want}, func(*hop) {})
	for _, n := range s.nodes {
		p.connect(n, nil)
	}
	gen := p.gen
	s.trace.event(evProxyStart, 0, uint64(p.num), gen, 0, 0)
	s.after(exp(r, millisecond), func() { p.refresh(gen) })
}

func (p *proxy) hopTo(id core.NodeID) route.Target {
	if id == 0 {
		return nil
	}
	return p.hops[id-1]
}

func (p *proxy) resolve(e *core.Error) route.Target { return p.hopTo(e.Leader) }

func (p *proxy) want() {
	if p.wanted {
		return
	}
	p.wanted = true
	gen := p.gen
	p.s.after(hurryEvery, func() {
		if p.gen == gen {
			p.wanted = false
			p.ask()
		}
	})
}

func (p *proxy) refresh(gen uint64) {
	if p.gen == gen {
		p.ask()
		p.s.after(refreshEvery, func() { p.refresh(gen) })
	}
}

// ask asks every node that it reaches what it knows.
func (p *proxy) ask() {
	if p.isFrozen() {
		return
	}
	for _, h := range p.hops {
		if h.up && h.stalled == [2]int{} {
			p.s.after(exp(p.r, 200*microsecond), func() { p.askNode(h, p.gen) })
		}
	}
}

func (p *proxy) askNode(h *hop, gen uint64) {
	n := h.node
	if !n.up || n.isPaused() {
		return
	}
	for _, w := range n.workers {
		for _, id := range w.shards {
			st, _ := w.core.Status(id)
			if st.Err != nil {
				continue
			}
			leader, term, members := st.Leader, st.Term, st.Members.Members()
			delay := exp(p.r, 200*microsecond)
			if !p.s.calm {
				switch p.r.IntN(20) {
				case 0: // old news
					delay = exp(p.r, 500*millisecond)
				case 1: // not true
					leader, term = core.NodeID(1+p.r.IntN(len(p.s.nodes))), term+core.Term(p.r.IntN(3))
				}
			}
			p.s.after(delay, func() {
				if p.gen == gen && !p.isFrozen() {
					p.learn(id, leader, term, members)
				}
			})
		}
	}
}

func (p *proxy) learn(id core.ShardID, leader core.NodeID, term core.Term, members []core.NodeID) {
	if !slices.Equal(members, p.nodes[id]) && len(members) > 0 {
		p.nodes[id] = members
		var targets []route.Target
		for _, m := range members {
			targets = append(targets, p.hopTo(m))
		}
		p.routers[id].Targets(p.s.now, targets)
	}
	p.routers[id].Learn(p.s.now, p.hopTo(leader), term)
}

// serve takes a client's call.
func (p *proxy) serve(h *hop, k *carried) {
	gen := p.gen
	c := &route.Call{Kind: k.as.Kind, Shard: k.as.Shard, Commands: k.as.Commands, Session: k.as.Session, Sequence: k.as.Sequence, Acknowledged: k.as.Acknowledged,
		Level: k.as.Level, Token: k.as.Token, Query: k.as.Query, Deadline: k.as.Deadline + millisecond}
	c.Done = func(*route.Call) {
		if p.gen != gen {
			return
		}
		delete(p.asked, c)
		k.ask.ways--
		h.reply(k, c.Result, c.Err)
	}
	k.ask.ways++
	p.submit(c, k.ask)
}

// crash ends the proxy without a word. Some of what it has sent is still on its way.
func (p *proxy) crash() {
	p.s.stats.ProxyCrashes++
	p.s.trace.event(evProxyCrash, 0, uint64(p.num), p.gen, uint64(len(p.asked)), 0)
	p.up = false
	p.gen++
	for _, h := range p.hops {
		h.dead, h.up = true, false
		h.drop()
	}
	for _, k := range p.asked { // any order: they are counted
		k.ways--
	}
	p.all(func(r *route.Router) { r.Close(errBroke) })
	clear(p.asked)
}

func (f *faults) crashProxy() {
	if len(f.s.proxies) == 0 {
		return
	}
	p := f.s.proxies[f.r.IntN(len(f.s.proxies))]
	if !p.up {
		return
	}
	p.crash()
	gen := p.gen
	f.s.after(exp(f.r, f.s.swarm.last), func() {
		if !p.up && p.gen == gen {
			p.start(f.s)
		}
	})
}

// troubleStream breaks a stream, lets it hang in one direction, or freezes a proxy.
func (f *faults) troubleStream() {
	if len(f.s.proxies) == 0 {
		return
	}
	p := f.s.proxies[f.r.IntN(len(f.s.proxies))]
	hops := slices.Clone(p.hops)
	for _, c := range f.s.clients {
		if c.lib != nil {
			hops = append(hops, c.lib.hops[p.num])
		}
	}
	h, direction := hops[f.r.IntN(len(hops))], f.r.IntN(2)
	switch f.r.IntN(4) {
	case 0:
		p.frozen = f.s.now + min(exp(f.r, f.s.swarm.last), longestPause)
	case 1:
		h.breaks()
	default:
		h.stalled[direction]++
		f.lasts(faultStream, f.s.nodes[0], func() { h.stalled[direction]-- })
	}
}

func (s *sim) calmProxies() {
	for _, p := range s.proxies {
		p.frozen = 0
		if !p.up {
			p.start(s)
		}
	}
}

// connect gives a client its own routers, and streams to all proxies, of which it uses one at a time.
func (c *client) connect() {
	c.lib = newStation(c.s, c.r, route.Config{Any: true}, func(h *hop) {
		if h == c.lib.hops[c.at] {
			c.use((c.at + 1) % len(c.lib.hops))
		}
	})
	for _, p := range c.s.proxies {
		c.lib.connect(nil, p)
	}
	c.use(c.r.IntN(len(c.lib.hops)))
}

func (c *client) use(i int) {
	c.at = i
	c.lib.all(func(r *route.Router) { r.Targets(c.s.now, []route.Target{c.lib.hops[i]}) })
}

var routeKinds = map[core.Kind]route.Kind{
	core.KindCommand: route.Submit, core.KindRead: route.Read, core.KindOpenSession: route.OpenSession, core.KindCloseSession: route.CloseSession,
}

// ask is attempt through a proxy.
func (c *client) ask(o *operation) {
	k := &asking{op: o}
	call := &route.Call{Kind: routeKinds[o.kind], Shard: o.shard, Commands: o.encoded, Level: o.level, Token: o.token, Query: o.query,
		Deadline: c.s.now + c.s.swarm.patience*(1+o.r.Int64N(4))}
	if o.session != nil {
		call.Session, call.Sequence = o.session.id, o.seq
	}
	if o.session != nil && o.kind == core.KindCommand {
		call.Mark = func(*route.Call) uint64 { return min(o.session.acked, o.seq-1) }
	}
	call.Done = func(*route.Call) {
		delete(c.lib.asked, call)
		c.s.check.told(k, call)
		c.s.after(0, func() { c.hearProxy(o, call) })
	}
	c.s.stats.Proxied++
	c.s.trace.event(evAsk, 0, uint64(o.shard), o.num, uint64(c.at), uint64(o.kind))
	c.lib.submit(call, k)
}

// hearProxy takes the outcome of a call.
func (c *client) hearProxy(o *operation, call *route.Call) {
	a := &attempt{op: o, num: len(o.attempts), req: core.Request{Result: call.Result, Err: call.Err}}
	c.s.trace.event(evTold, 0, uint64(o.shard), o.num, uint64(a.verdict()), 0)
	c.s.trace.note("client %d: %v: %v", c.num, o, call.Err)
	if o.done {
		return
	}
	switch a.verdict() {
	case happened, rejected, refused:
		c.finish(o, a)
	case notProposed, unknownOutcome:
		c.again(a, a.verdict() == unknownOutcome)
	}
}

// told checks what a client is told of a call against what really became of it [G12].
func (c *checker) told(k *asking, call *route.Call) {
	o := k.op
	if call.Deadline+2*tickEvery < c.s.now {
		c.s.fail("deadline", "%v ended %d us after its deadline: %v", o, (c.s.now-call.Deadline)/microsecond, call.Err)
	}
	said := func(same func(*attempt) bool) bool {
		return slices.ContainsFunc(k.attempts, func(a *attempt) bool { return a.answers > 0 && same(a) })
	}
	switch e, no := core.Verdict(call.Err); {
	case call.Err == nil:
		if !said(func(a *attempt) bool {
			return a.req.Err == nil && a.req.Result.Index == call.Result.Index && a.req.Result.Session == call.Result.Session
		}) {
			c.s.fail("told", "%v is told that it happened, at index %d, and no node has said so", o, call.Result.Index)
		}
	case no != nil:
		if !said(func(a *attempt) bool { return a.code() == no.Code }) {
			c.s.fail("told", "%v is told %v, and no node has said so", o, no)
		}
	case e != nil && e.Kind == core.ErrNotProposed:
		if o.kind != core.KindRead && k.mayHappen() {
			c.s.fail("told", "%v is told that it did not happen (%v), and it may have, or may yet", o, call.Err)
		}
	case e == nil:
		c.s.fail("told", "%v is told %v, which does not say what became of it", o, call.Err)
	default:
		c.s.stats.ProxyDoubts++
	}
}
