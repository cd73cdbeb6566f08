package admit

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// Controller says which requests are taken. Any goroutine may call it.
//
// The times that its methods take are nanoseconds of one clock. They should never go back and, where several proxies serve the
// same shards, be near to wall time, so that all measure at the same time: the Unix time at start plus the
// monotonic time since. Times that go back are tolerated: a sample is lost.
type Controller struct {
	cfg Config
	// Bounds of ordinary requests, and L of the bytes.
	clientCount, clientBytes, shardBytes int64

	mu      sync.Mutex
	clients map[string]*Client
	others  *Client
	// gone is what clients that are gone were refused for.
	gone Refused

	stripes   []stripe // a power of two
	shift     uint
	perStripe int
}

// New returns a Controller with nothing at work, or the error of the first field that is out of bounds.
func New(cfg Config) (*Controller, error) {
	cfg, err := cfg.resolved()
	if err != nil {
		return nil, err
	}
	stripes := 1 << (bits.Len(uint(min(max(cfg.Shards/8, 1), 64))) - 1)
	c := &Controller{
		cfg:         cfg,
		clientCount: int64(cfg.ClientCount - cfg.ClientCount/reserveOfClient),
		clientBytes: cfg.ClientBytes - cfg.ClientBytes/reserveOfClient,
		shardBytes:  cfg.ShardBytes * 2 / 3,
		clients:     map[string]*Client{},
		stripes:     make([]stripe, stripes),
		shift:       uint(64 - (bits.Len(uint(stripes)) - 1)),
		perStripe:   max(cfg.Shards/stripes, 1),
	}
	c.others = &Client{ctl: c, name: "(others)"}
	for i := range c.stripes {
		c.stripes[i].shards = map[uint64]*shard{}
	}
	return c, nil
}

// Config returns the configuration with its defaults filled in.
func (c *Controller) Config() Config { return c.cfg }

// maxName is how much of a client's name is kept and compared.
const maxName = 128

// Client is one client: one identity, whatever its number of connections.
type Client struct {
	ctl  *Controller
	name string
	refs int // under ctl.mu

	released atomic.Bool // refs is 0
	count    atomic.Int64
	bytes    atomic.Int64
	latency  atomic.Int64 // moving average; updates may get lost
	lastDone atomic.Int64
	refusals [ClientBytes + 1]atomic.Uint64
	spread   atomic.Uint32
}

// Client returns the record of a client, which all its connections share. Release it when the connection ends. If Config.Clients others
// are known, it is one that all further clients share. Only the first 128 bytes of the name count.
func (c *Controller) Client(name string) *Client {
	if len(name) > maxName {
		name = name[:maxName]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.clients[name]
	if k == nil {
		if len(c.clients) >= c.cfg.Clients {
			return c.others
		}
		k = &Client{ctl: c, name: name}
		c.clients[name] = k
	}
	k.refs++
	k.released.Store(false)
	return k
}

// Name returns the client's name, as far as it is kept.
func (k *Client) Name() string { return k.name }

// key is what shards know a client by. Records come and go with the calls of those who make one at a time; what a client did of late
// must outlive them, or each call would be of somebody new.
func (k *Client) key() string {
	if k == k.ctl.others {
		return ""
	}
	return k.name
}

// Release is called once for each call of Controller.Client, after the last Admit. Requests may still be at work.
func (k *Client) Release() {
	c := k.ctl
	if k == c.others {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.refs > 0 {
		k.refs--
	}
	if k.refs == 0 {
		k.released.Store(true)
		c.forget(k)
	}
}

// forget removes the record of a client that is neither connected nor has anything at work.
func (c *Controller) forget(k *Client) {
	if k.refs != 0 || k.count.Load() != 0 || c.clients[k.name] != k {
		return
	}
	delete(c.clients, k.name)
	for r := range k.refusals {
		c.gone[r] += k.refusals[r].Swap(0)
	}
}

// Outcome is what the end of a request says about load.
type Outcome uint8

const (
	// Answered: there was an answer, whatever it says; its latency counts.
	Answered Outcome = iota
	// Late: it ran into its deadline with a leader known. It took longer than that, and than others do: how much is not known, and a
	// short deadline must not pass for a fast answer.
	Late
	// Dropped: who is behind refused it, as overloaded.
	Dropped
	// Ignored: its latency says nothing about load. It waited for a leader; its client went away; there is no such shard.
	Ignored
)

// Ticket is the place of one request at work. It is a small value; the zero Ticket is no place.
type Ticket struct {
	client    *Client
	shard     *shard
	share     *share
	start     int64
	bytes     int64
	gen       uint32
	makesRoom bool
}

// Taken reports whether there is a place: whether the request was not refused.
func (t Ticket) Taken() bool { return t.client != nil }

// Admit takes a request of so many bytes for a shard, or refuses it with an *rsm.Error: kind ErrNotProposed, code
// "overloaded", with RetryAfter between 1 ms and 1 s; or code "command_too_large", for a request that would never be taken. A request that makes
// room (acknowledges, finishes, closes a session) may use reserves. The caller ends each ticket once with Done.
// Callers should refuse shards that are known not to exist before.
func (k *Client) Admit(shardID uint64, bytes int, makesRoom bool, now int64) (Ticket, error) {
	size := int64(max(bytes, 0))
	c := k.ctl
	t := c.stripe(shardID)
	if r := k.enter(shardID, size, makesRoom, now); r.reason != none {
		if r.reason != TooLarge {
			t.holds(shardID)
		}
		return Ticket{}, r.err()
	}
	t.mu.Lock()
	s := t.find(c, shardID, now)
	s.lim.expire(now, int(s.work.n))
	p := s.shareOf(k, makesRoom, now)
	s.lastUse = max(s.lastUse, now)
	if r := s.refuses(c, p, size, makesRoom, now); r.reason != none {
		s.refusals[r.reason]++
		p.refused++
		s.spread++
		r.client, r.shard, r.spread = k.name, s.id, s.spread
		r.turn = max(s.latency, now-s.lastDone)
		r.pressure = 1 + float64(p.refused)/float64(p.admitted+1)
		t.mu.Unlock()
		k.leave(size)
		return Ticket{}, r.err()
	}
	if s.work.n == 0 {
		s.lastDone = now // it was idle until now, it is not stuck
	}
	s.work.add(size)
	p.all.add(size)
	if makesRoom {
		p.room.add(size)
	}
	p.admitted++
	s.admitted++
	ticket := Ticket{client: k, shard: s, share: p, start: now, bytes: size, gen: s.lim.gen, makesRoom: makesRoom}
	t.mu.Unlock()
	return ticket, nil
}

// Wait takes a request that will wait for a leader: it counts for its client's bounds alone, and says nothing about load. Otherwise it is as Admit.
func (k *Client) Wait(shardID uint64, bytes int, makesRoom bool, now int64) (Ticket, error) {
	size := int64(max(bytes, 0))
	if r := k.enter(shardID, size, makesRoom, now); r.reason != none {
		return Ticket{}, r.err()
	}
	return Ticket{client: k, bytes: size}, nil
}

// stripe of a shard: multiplying by the golden section spreads successive numbers evenly.
func (c *Controller) stripe(id uint64) *stripe {
	return &c.stripes[(id*0x9e3779b97f4a7c15)>>c.shift&uint64(len(c.stripes)-1)]
}

// enter counts a request against its client's bounds.
func (k *Client) enter(shardID uint64, size int64, makesRoom bool, now int64) (r refusal) {
	c := k.ctl
	count, bytes, alone := c.clientCount, c.clientBytes, c.shardBytes+2*(c.shardBytes/steps)
	if makesRoom {
		count, bytes, alone = int64(c.cfg.ClientCount), c.cfg.ClientBytes, c.shardBytes+4*(c.shardBytes/steps)
	}
	r = refusal{reason: none, client: k.name, shard: shardID, add: size}
	if alone = min(alone, bytes); size > alone {
		r.reason, r.allowed = TooLarge, alone
		k.refusals[TooLarge].Add(1)
		return r
	}
	n, b := k.count.Add(1), k.bytes.Add(size)
	switch {
	case n > count:
		r.reason, r.have, r.allowed = ClientCount, n-1, count
	case b > bytes:
		r.reason, r.have, r.allowed = ClientBytes, b-size, bytes
	default:
		if n == 1 {
			k.lastDone.Store(now)
		}
		return r
	}
	k.leave(size)
	k.refusals[r.reason].Add(1)
	r.turn, r.pressure, r.spread = max(k.latency.Load(), now-k.lastDone.Load()), 1, k.spread.Add(1)
	return r
}

func (k *Client) leave(size int64) {
	k.bytes.Add(-size)
	if k.count.Add(-1) == 0 && k.released.Load() {
		k.ctl.mu.Lock()
		k.ctl.forget(k)
		k.ctl.mu.Unlock()
	}
}

// Done ends a request. It must be called once for each ticket.
func (t Ticket) Done(now int64, outcome Outcome) {
	if t.shard == nil {
		if t.client != nil { // it waited
			t.client.lastDone.Store(now)
			t.client.leave(t.bytes)
		}
		return
	}
	latency := min(max(now-t.start, 0), int64(time.Hour))
	s := t.shard
	s.in.mu.Lock()
	s.work.sub(t.bytes)
	t.share.all.sub(t.bytes)
	if t.makesRoom {
		t.share.room.sub(t.bytes)
	}
	s.lastDone = max(s.lastDone, now)
	s.lim.left(now, t.gen, int(s.work.n))
	switch outcome {
	case Answered:
		s.answers = true
		s.latency = average(s.latency, latency)
		s.lim.pace.answered()
		s.lim.answered(now, latency, t.gen, int(s.work.n))
	case Late:
		s.answers = true
		s.lim.answered(now, max(latency, s.latency), t.gen, int(s.work.n))
	case Dropped:
		s.lim.refused(now, s.latency, int(s.work.n))
	}
	s.in.mu.Unlock()

	k := t.client
	if outcome == Answered {
		k.latency.Store(average(k.latency.Load(), latency))
	}
	k.lastDone.Store(now)
	k.leave(t.bytes)
}

// average is a moving one, over some 16 values.
func average(was, value int64) int64 {
	if was == 0 {
		return value
	}
	return was + (value-was)/16
}

// Refused counts refusals by Reason.
type Refused [Reasons]uint64

// ShardStat is one shard at the time of a Snapshot.
type ShardStat struct {
	Shard    uint64
	Others   bool          // it stands for several shards, of which Shard was the first
	Limit    int           // the adaptive limit now
	Probing  bool          // it is lowered to measure Base
	Base     time.Duration // latency without a queue, 0 if unknown
	Latency  time.Duration // moving average
	AtWork   int
	Bytes    int64
	Active   int // clients that asked in the last one or two seconds
	Admitted uint64
	Refused  Refused
}

// Snapshot is what there is to see of a Controller.
type Snapshot struct {
	// Shards that are kept now, in no order: at most Config.Shards, and 64 more.
	Shards []ShardStat
	// Clients is how many clients have a record, and Shared whether others share one.
	Clients int
	Shared  bool
	// AtWork and Bytes are those of all shards.
	AtWork int
	Bytes  int64
	// Admitted and Refused count since New, shards and clients that are gone included.
	Admitted uint64
	Refused  Refused
}

// Snapshot takes one lock after the other, so requests that come and go meanwhile may be in it or not.
func (c *Controller) Snapshot() Snapshot {
	var out Snapshot
	c.mu.Lock()
	out.Clients, out.Refused = len(c.clients), c.gone
	for _, k := range c.clients {
		for r := range k.refusals {
			out.Refused[r] += k.refusals[r].Load()
		}
	}
	for r := range c.others.refusals {
		out.Refused[r] += c.others.refusals[r].Load()
	}
	out.Shared = c.others.count.Load() != 0
	c.mu.Unlock()
	for i := range c.stripes {
		c.stripes[i].snapshot(&out)
	}
	return out
}

func (t *stripe) snapshot(out *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out.Admitted += t.taken
	for r, n := range t.gone {
		out.Refused[r] += n
	}
	for _, s := range t.shards {
		s.snapshot(out)
	}
	if t.others != nil {
		t.others.snapshot(out)
	}
}

func (s *shard) snapshot(out *Snapshot) {
	out.Shards = append(out.Shards, ShardStat{
		Shard: s.id, Others: s == s.in.others, Limit: s.lim.allowed(), Probing: s.lim.probing,
		Base: time.Duration(math.Round(s.lim.base)), Latency: time.Duration(s.latency),
		AtWork: int(s.work.n), Bytes: s.work.bytes, Active: len(s.shares), Admitted: s.admitted, Refused: s.refusals,
	})
	out.AtWork += int(s.work.n)
	out.Bytes += s.work.bytes
	out.Admitted += s.admitted
	for r, n := range s.refusals {
		out.Refused[r] += n
	}
}
