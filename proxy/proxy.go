package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/bounds"
	"github.com/decree-raft/decree/internal/clock"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// Config configures a Proxy.
type Config struct {
	// Nodes are addresses (host:port) of nodes: some, from which the others are learned, or all. At the node's own port, where Register offers
	// the protocol.
	Nodes []string
	// Cluster, if set, is the name of the cluster: nodes of others are not listened to. Without it the first node that answers says which it is.
	Cluster string
	// Node, if set, is a node in this process, which is asked directly. Nodes may be empty then.
	Node *rsm.Node
	// TLS, if set, is for the connections to the nodes: it is called for each new one, so that certificates can be replaced.
	TLS func() (*tls.Config, error)
	// Credentials, if set, are shown to the nodes with every call.
	Credentials credentials.PerRPCCredentials
	// Refresh is how often the topology is asked for when nothing is amiss. Default 1 s, from 25 ms to an hour.
	Refresh time.Duration
	// MaxWaiting calls, for each shard, may wait for a leader. Default 65536; MaxWaitingBytes is what they hold, default 256 MiB.
	MaxWaiting      int
	MaxWaitingBytes int64
	// Silence is how long a node may say nothing while calls wait for it, before others are asked. Default 3 s, from 1.5 s, as nodes say something every second, to an hour.
	Silence time.Duration
	// Logger gets the proxy's log: at debug, every call's outcome as well. Default: none.
	Logger *slog.Logger
	// Metrics, if set, gets the proxy's collector. Two proxies of one process need registries of their own, or prometheus.WrapRegistererWith.
	Metrics prometheus.Registerer
	// Tracer, if set, gets a span of each call, with its attempts and waits as events, under the span that the caller names: in the metadata traceparent of a unary
	// call, in the field trace of a call on a stream. Nodes are told of it, see rsm.Config.Tracer. What is sampled is for the provider to say. Without
	// Tracer, nodes are told of the caller's span.
	Tracer trace.TracerProvider
}

const (
	// grace is how long after its deadline a call may be told what became of it, which is more than that it is late.
	grace = 20 * time.Millisecond
	// hurry is how soon the topology is asked for again when a leader is wanted.
	hurry = 25 * time.Millisecond
	// askPatience bounds one question for the topology.
	askPatience = time.Second
	// quiet is how long a leader may say nothing while calls wait for it, before others are asked who leads.
	quiet = 100 * time.Millisecond
	// maxShards bounds what nodes can make a proxy remember, maxGuessed what clients can, before it knows the shards.
	maxShards  = 1 << 16
	maxGuessed = 256
	// guessPatience is how long after the first answer of a node the others may name a shard that a client has asked for.
	guessPatience = 5 * time.Second
	// forgetAfter so many refreshes, a node that nobody speaks of is not looked for any more.
	forgetAfter = 60
	// maxNodes bounds what a node that lies can make a proxy dial.
	maxNodes = 1024
)

// Proxy routes calls to the nodes of one cluster. Its methods may be called from any goroutine.
type Proxy struct {
	cfg    Config
	log    *slog.Logger
	rarely *limitlog.Log // for what keeps happening
	tracer trace.Tracer  // nil: nothing is traced
	names  *names        // of calls within this process
	local  *local        // nil if no node is in this process
	wanted chan struct{}
	named  chan struct{} // closed when name is known
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	name    string                // of the cluster
	links   map[string]*link.Link // by address
	address map[rsm.NodeID]string
	shards  map[rsm.ShardID]*shard
	guessed map[rsm.ShardID]int64 // shards that a client named before anything was known, and when
	seen    map[rsm.NodeID]int64  // when a node was last spoken of
	known   bool                  // something of the topology is
	asking  map[*link.Link]bool   // who has not answered the last question yet

	meter      *meter
	metrics    *collector
	admissions admissions   // of its servers
	learned    atomic.Int64 // when a node last said something of the topology

	byNode  atomic.Pointer[map[rsm.NodeID]route.Target]   // replaced under mu
	routers atomic.Pointer[map[rsm.ShardID]*route.Router] // those of shards, replaced under mu
	clock   *clock.Clock
}

// shard is a shard as the proxy sees it.
type shard struct {
	router *route.Router
	leader rsm.NodeID
	term   rsm.Term
	nodes  []rsm.NodeID

	changes uint64         // leaders and terms learned of
	reached int64          // when the leader was, as far as Ready was asked
	asked   []route.Target // those that it was given: other ones when an address changes
	told    int64          // when a node said last who leads
	named   *atomic.Uint64 // leader, for the router
}

// New returns a proxy, which begins to look for its nodes. It need not find one yet.
func New(cfg Config) (*Proxy, error) {
	if len(cfg.Nodes) == 0 && cfg.Node == nil {
		return nil, errors.New("proxy: Nodes is empty: name at least one node's address, host:port")
	}
	cfg.Refresh = cmp.Or(cfg.Refresh, time.Second)
	if err := cmp.Or(
		bounds.Check("Refresh", cfg.Refresh, hurry, time.Hour),
		bounds.Check("MaxWaiting", cmp.Or(cfg.MaxWaiting, 1), 1, 1<<24),
		bounds.Check("MaxWaitingBytes", cmp.Or(cfg.MaxWaitingBytes, 4<<10), 4<<10, 1<<40),
		bounds.Check("Silence", cmp.Or(cfg.Silence, link.LeastSilence), link.LeastSilence, time.Hour),
	); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{cfg: cfg, log: cfg.Logger, rarely: limitlog.New(cfg.Logger), names: newNames(), wanted: make(chan struct{}, 1), named: make(chan struct{}), cancel: cancel,
		asking: map[*link.Link]bool{},
		links:  map[string]*link.Link{}, address: map[rsm.NodeID]string{}, shards: map[rsm.ShardID]*shard{}, guessed: map[rsm.ShardID]int64{}, seen: map[rsm.NodeID]int64{}, meter: &meter{}, metrics: &collector{}, clock: clock.New(monotonic)}
	p.routers.Store(&map[rsm.ShardID]*route.Router{})
	p.meet(cfg.Cluster)
	if cfg.Tracer != nil {
		p.tracer = cfg.Tracer.Tracer(tracerName)
	}
	p.learned.Store(monotonic())
	p.metrics.p.Store(p)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(p.metrics); err != nil {
			cancel()
			return nil, fmt.Errorf("proxy: metrics: %w", err)
		}
	}
	if cfg.Node != nil {
		p.local = newLocal(cfg.Node)
		p.learn(p.local.topology())
	}
	for _, a := range cfg.Nodes {
		if _, err := p.link(a); err != nil {
			p.Close()
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	p.wg.Go(func() { p.watch(ctx) })
	p.wg.Go(func() { p.clock.Run(ctx, p.each) })
	return p, nil
}

// Close ends all calls, with errors that say whether they may have happened, and all connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	links, shards := maps.Clone(p.links), maps.Clone(p.shards)
	p.mu.Unlock()
	p.cancel()
	p.metrics.p.Store(nil) // an unchecked collector cannot be unregistered
	for _, s := range shards {
		s.router.Close(errClosing)
	}
	p.wg.Wait() // nobody dials any more
	for _, l := range links {
		l.Close()
	}
}

// link returns the link to an address, new if there is none.
func (p *Proxy) link(address string) (*link.Link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.linkLocked(address)
}

func (p *Proxy) linkLocked(address string) (*link.Link, error) {
	if l := p.links[address]; l != nil {
		return l, nil
	}
	if p.closed {
		return nil, errClosing
	}
	if len(p.links) >= maxNodes {
		return nil, fmt.Errorf("there are %d nodes already: at most %d", len(p.links), maxNodes)
	}
	creds := access.Plain()
	if p.cfg.TLS != nil {
		creds = link.TLS(p.cfg.TLS)
	}
	options := access.DialOptions(creds, p.cfg.Credentials)
	l, err := link.New(address, link.Config{Options: options, Now: monotonic, Silence: p.cfg.Silence, Up: p.up, Down: p.down, Check: p.check})
	if err != nil {
		return nil, err
	}
	p.links[address] = l
	return l, nil
}

// errForeign: a node of another cluster is found where one of ours was, or was said to be. It may have a shard of the same id.
var errForeign = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable, Message: "the node that is found there is of another cluster"}

// check refuses nodes of other clusters.
func (p *Proxy) check(cluster string) error {
	if ours := p.cluster(); cluster != "" && ours != "" && cluster != ours {
		return errForeign
	}
	return nil
}

// foreign reports whether a link leads to another cluster: it was opened before it was known which is ours. p.mu is held.
func (p *Proxy) foreign(l *link.Link) bool {
	c := l.Cluster()
	return c != "" && p.name != "" && c != p.name
}

func (p *Proxy) met() <-chan struct{} { return p.named }

func (p *Proxy) cluster() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.name
}

func (p *Proxy) up(l *link.Link) {
	p.log.Info("reached a node", "address", l.Address())
	p.want()
	p.each(func(r *route.Router) { r.Up(monotonic()) })
}

func (p *Proxy) down(l *link.Link, _ bool, why error) {
	if why == nil {
		return
	}
	p.logDown(l.Address(), why)
	p.each(func(r *route.Router) { r.Down(l) })
	p.want()
}

// logDown logs why a node cannot be reached. It is tried again up to twice a second: that is a warning only if trying will not help, and a rare one.
func (p *Proxy) logDown(address string, why error) {
	const msg = "a node cannot be reached"
	if e, _ := core.Verdict(why); e != nil && (e.Code == core.CodeUnauthenticated || e.Code == core.CodeForbidden || e == errForeign) {
		p.rarely.Warn(limitlog.Key{Reason: address + " " + string(e.Code)}, msg, "address", address, "reason", why.Error())
		return
	}
	p.log.Debug(msg, "address", address, "reason", why.Error())
}

// each calls f for the router of every shard.
func (p *Proxy) each(f func(*route.Router)) {
	for _, r := range *p.routers.Load() {
		f(r)
	}
}

// publish lets calls find the shards that there are now. p.mu is held.
func (p *Proxy) publish() {
	if maps.EqualFunc(p.shards, *p.routers.Load(), func(s *shard, r *route.Router) bool { return s.router == r }) {
		return
	}
	m := make(map[rsm.ShardID]*route.Router, len(p.shards))
	for id, s := range p.shards {
		m[id] = s.router
	}
	p.routers.Store(&m)
}

// want asks for the topology soon.
func (p *Proxy) want() {
	select {
	case p.wanted <- struct{}{}:
	default:
	}
}

// watch keeps the topology up to date: each refresh, and soon after somebody wants it.
func (p *Proxy) watch(ctx context.Context) {
	for {
		p.ask(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(hurry): // at most so often
		}
		if !p.rest(ctx) {
			return
		}
	}
}

// rest waits until somebody is to be asked again, and reports whether the proxy goes on. That is soon while a node is silent that should answer: it may have
// lost its shards to others.
func (p *Proxy) rest(ctx context.Context) bool {
	t := time.NewTicker(min(quiet, p.cfg.Refresh))
	defer t.Stop()
	for began := time.Now(); time.Since(began) < p.cfg.Refresh; {
		select {
		case <-ctx.Done():
			return false
		case <-p.wanted:
			return true
		case <-t.C:
		}
		if p.somebodyIsQuiet() {
			return true
		}
	}
	return true
}

func (p *Proxy) somebodyIsQuiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		if l.Quiet() > quiet {
			return true
		}
	}
	return false
}

// ask asks every node for its view, but those that have not answered the last question, and returns when all have answered, or will not soon.
func (p *Proxy) ask(ctx context.Context) {
	p.mu.Lock()
	var links []*link.Link
	for _, l := range p.links {
		if !p.asking[l] && l.Connected() {
			p.asking[l] = true
			links = append(links, l)
		}
	}
	p.mu.Unlock()
	if p.local != nil {
		p.learn(p.local.topology())
	}
	answered := make(chan struct{}, len(links))
	for _, l := range links {
		p.wg.Go(func() {
			defer func() {
				p.mu.Lock()
				delete(p.asking, l)
				p.mu.Unlock()
				answered <- struct{}{}
			}()
			ctx, cancel := context.WithTimeout(ctx, askPatience)
			defer cancel()
			t, err := decreev1.NewDecreeServiceClient(l.Conn()).GetTopology(ctx, &decreev1.GetTopologyRequest{})
			if err != nil {
				p.log.Debug("a node does not say what it knows", "address", l.Address(), "reason", err.Error())
				return
			}
			p.learn(t)
		})
	}
	// A node that hangs keeps nobody from asking the others again.
	patience := time.After(2 * hurry)
	for range links {
		select {
		case <-answered:
		case <-patience:
			return
		}
	}
}

// learn takes in what a node says. It says so again and again: what is wrong with that is logged rarely, and under few keys, as there is no end to what it may name.
func (p *Proxy) learn(t *decreev1.GetTopologyResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.meet(t.GetCluster())
	if t.GetCluster() != p.name || p.name == "" {
		p.rarely.Warn(limitlog.Key{Reason: "cluster"}, "a node belongs to another cluster, and is not listened to", "cluster", t.GetCluster(), "ours", p.name)
		return
	}
	now := monotonic()
	for _, n := range t.GetNodes() {
		id := rsm.NodeID(n.GetNode())
		if n.GetAddress() == "" || id == 0 || p.local != nil && id == p.local.node.ID() {
			continue
		}
		p.seen[id] = now
		if _, err := p.linkLocked(n.GetAddress()); err != nil {
			p.rarely.Warn(limitlog.Key{Reason: "dial"}, "a node cannot be dialled", "node", uint64(id), "reason", err.Error())
			continue
		}
		if is := p.links[p.address[id]]; is != nil && is.Connected() && !p.foreign(is) && !p.links[n.GetAddress()].Connected() {
			continue // it is where it was; who says otherwise is behind, or too early
		}
		p.address[id] = n.GetAddress()
	}
	p.forget(now)
	p.settle()
	var known []rsm.ShardID
	for _, s := range t.GetShards() {
		if p.learnShard(s); p.shards[rsm.ShardID(s.GetShard())] != nil {
			known = append(known, rsm.ShardID(s.GetShard()))
		}
	}
	p.meter.met(known...)
	if !p.known {
		for id := range p.guessed { // from now on somebody may name it
			p.guessed[id] = now
		}
	}
	p.known = true
	p.learned.Store(now)
	for id, since := range p.guessed {
		switch s := p.shards[id]; {
		case len(s.nodes) > 0 || s.term > 0:
			delete(p.guessed, id) // there is one
		case now-since > int64(guessPatience):
			delete(p.guessed, id)
			delete(p.shards, id)
			s.router.Close(noShard(id))
		}
	}
	p.publish()
}

// meet gives the cluster its name, if it has none yet. It has that for ever. p.mu is held, if others know p.
func (p *Proxy) meet(cluster string) {
	if p.name == "" && cluster != "" {
		p.name = cluster
		close(p.named)
	}
}

// forget takes out the nodes that nobody speaks of any more and that are members of nothing: they were removed. p.mu is held.
func (p *Proxy) forget(now int64) {
	var gone []rsm.NodeID
	for id := range p.address {
		if now-p.seen[id] > int64(forgetAfter*p.cfg.Refresh) {
			gone = append(gone, id)
		}
	}
	for _, s := range p.shards {
		if len(gone) == 0 {
			return
		}
		gone = slices.DeleteFunc(gone, func(id rsm.NodeID) bool { return slices.Contains(s.nodes, id) })
	}
	for _, id := range gone {
		p.log.Info("a node is not spoken of any more", "node", uint64(id), "address", p.address[id])
		delete(p.address, id)
		delete(p.seen, id)
	}
}

func noShard(id rsm.ShardID) *core.Error {
	return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNoShard, Message: fmt.Sprintf("no node knows a shard %d", id)}
}

// settle makes of addresses who can be asked, and forgets links that lead to nobody. p.mu is held.
func (p *Proxy) settle() {
	byNode := map[rsm.NodeID]route.Target{}
	used := map[string]bool{}
	for _, a := range p.cfg.Nodes {
		used[a] = true
	}
	for id, a := range p.address {
		switch l := p.links[a]; {
		case l == nil:
		case p.foreign(l):
			p.each(func(r *route.Router) { r.Down(l) }) // it may have been taken for one of ours before that was known
		default:
			byNode[id] = l
		}
		used[a] = true
	}
	if p.local != nil {
		byNode[p.local.node.ID()] = p.local
	}
	p.byNode.Store(&byNode)
	for a, l := range p.links {
		if !used[a] && !l.Connected() {
			delete(p.links, a)
			p.wg.Go(l.Close)
		}
	}
}

// learnShard takes in what a node says of a shard: the higher term knows better. p.mu is held.
func (p *Proxy) learnShard(t *decreev1.GetTopologyResponse_Shard) {
	id := rsm.ShardID(t.GetShard())
	s := p.shards[id]
	if s == nil {
		if id == 0 || len(p.shards) >= maxShards {
			return
		}
		s = p.newShard(id)
		p.shards[id], s.reached = s, monotonic()
	}
	now, term := monotonic(), rsm.Term(t.GetTerm())
	leader := rsm.NodeID(t.GetLeader())
	if target := p.target(leader); target != nil {
		// Who is not reached can be sent nothing: the nodes go on being asked until it is, or another leads. Those that have not noticed yet would hold that up.
		if reached := p.reaches(leader); reached && !s.router.Learn(now, target, term) || !reached && term < s.term {
			return
		}
		if leader != s.leader || term != s.term {
			s.changes++
			p.log.Info("learned of a leader", "shard", uint64(id), "leader", uint64(leader), "term", uint64(term))
		}
		s.leader, s.term, s.told = leader, term, now
		s.named.Store(uint64(leader))
	}
	nodes := make([]rsm.NodeID, len(t.GetNodes()))
	for i, n := range t.GetNodes() {
		nodes[i] = rsm.NodeID(n)
	}
	if len(nodes) > 0 {
		s.nodes = nodes
	}
	var targets []route.Target
	for _, n := range s.nodes {
		if t := p.target(n); t != nil {
			targets = append(targets, t)
		}
	}
	if !slices.Equal(targets, s.asked) {
		s.asked = targets
		s.router.Targets(now, targets)
	}
}

func (p *Proxy) newShard(id rsm.ShardID) *shard {
	s := &shard{named: &atomic.Uint64{}}
	s.router = route.New(route.Config{Shard: id, MaxWaiting: p.cfg.MaxWaiting, MaxWaitingBytes: p.cfg.MaxWaitingBytes, Resolve: p.resolve, Lead: p.want, Sooner: p.clock.Sooner,
		Missing: func() string { return p.missing(id, rsm.NodeID(s.named.Load())) }})
	return s
}

// missing says in words why a shard's leader cannot be asked, if it is known who that is.
func (p *Proxy) missing(id rsm.ShardID, leader rsm.NodeID) string {
	if leader == 0 || p.reaches(leader) {
		return ""
	}
	return fmt.Sprintf("node %d, which leads shard %d as far as is known, is not reached", leader, id)
}

// target returns who node is, or nil.
func (p *Proxy) target(node rsm.NodeID) route.Target {
	if m := p.byNode.Load(); m != nil {
		return (*m)[node]
	}
	return nil
}

// resolve returns who an error says leads, if it is reached. To another nothing could be sent, and whoever took it for the leader would ask nobody else: so the nodes are asked
// instead, which say where it is found if that is not known yet.
func (p *Proxy) resolve(e *core.Error) route.Target {
	if !p.reaches(e.Leader) {
		p.want()
		return nil
	}
	return p.target(e.Leader)
}

func (p *Proxy) leads(id rsm.ShardID) bool {
	r := (*p.routers.Load())[id]
	return r != nil && r.Led()
}

func (p *Proxy) start(now int64, c *route.Call) {
	r := (*p.routers.Load())[c.Shard]
	if r == nil {
		if r, c.Err = p.guess(c.Shard); c.Err != nil {
			c.Done(c)
			return
		}
	}
	r.Submit(now, c)
}

// guess returns the router of a shard that no node has named, as long as none has named any.
func (p *Proxy) guess(id rsm.ShardID) (*route.Router, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shards[id]
	switch {
	case s != nil:
	case p.closed:
		return nil, errClosing
	case p.known || len(p.shards) >= maxGuessed:
		return nil, noShard(id)
	default:
		s = p.newShard(id)
		p.shards[id], p.guessed[id] = s, monotonic()
		p.publish()
	}
	return s.router, nil
}

func (p *Proxy) topology() *decreev1.GetTopologyResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &decreev1.GetTopologyResponse{Cluster: p.name}
	for _, id := range slices.Sorted(maps.Keys(p.address)) {
		t.Nodes = append(t.Nodes, &decreev1.GetTopologyResponse_Node{Node: uint64(id), Address: p.address[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(p.shards)) {
		s := p.shards[id]
		t.Shards = append(t.Shards, &decreev1.GetTopologyResponse_Shard{Shard: uint64(id), Leader: uint64(s.leader), Term: uint64(s.term), Nodes: ids(s.nodes)})
	}
	return t
}
