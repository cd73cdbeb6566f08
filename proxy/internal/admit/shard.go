package admit

import "sync"

// activeTime is how long a client stays active on a shard without asking, at least; twice as long at most.
const activeTime = int64(1e9)

// use is what is at work.
type use struct{ n, bytes int64 }

func (u *use) add(bytes int64) { u.n++; u.bytes += bytes }
func (u *use) sub(bytes int64) { u.n--; u.bytes -= bytes }

// share is what one client does on one shard.
type share struct {
	all  use // everything
	room use // of it, what makes room
	seen uint32
	// maker: it asked for something that makes room; roomSeen is when.
	maker    bool
	roomSeen uint32
	// What was asked for of late, halved at each turn of the epoch: for how long to wait.
	admitted, refused uint32
}

// shard is what is at work on one shard. Its stripe's lock guards it.
type shard struct {
	in *stripe
	id uint64

	work   use
	shares map[string]*share // of active clients, by Client.key
	makers int               // how many of them made room of late
	epoch  uint32
	turns  int64 // when the epoch ends

	lim      limiter
	latency  int64 // moving average, in ns
	lastUse  int64
	lastDone int64
	answers  bool // has ever answered

	admitted uint64
	refusals [Reasons]uint64
	spread   uint32
}

// stripe is the shards that share a lock.
type stripe struct {
	mu     sync.Mutex
	shards map[uint64]*shard
	// others is the record of the shards that no place was found for, nil until one is needed.
	others *shard
	gone   Refused // counted by shards that were evicted
	taken  uint64  // admitted by those

	_ [64]byte // apart from the next one's lock
}

// find returns the record of a shard, a new one if there is none.
func (t *stripe) find(c *Controller, id uint64, now int64) *shard {
	if s := t.shards[id]; s != nil {
		return s
	}
	if len(t.shards) >= c.perStripe && !t.evict() {
		if t.others == nil {
			t.others = c.newShard(t, id, now)
		}
		return t.others
	}
	s := c.newShard(t, id, now)
	t.shards[id] = s
	return s
}

// holds tells a shard that there is more to do than a client's own bound lets in.
func (t *stripe) holds(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.shards[id]; s != nil {
		s.lim.held = true
	}
}

// evict removes a shard that has nothing at work. Those that never answered, which may not even exist, go first; and
// they drive out none that did once they hold half of the places.
func (t *stripe) evict() bool {
	var worst *shard
	strange := 0
	for _, s := range t.shards {
		if !s.answers {
			strange++
		}
		if s.work.n == 0 && (worst == nil || s.worse(worst)) {
			worst = s
		}
	}
	if worst == nil || worst.answers && strange*2 >= len(t.shards) {
		return false
	}
	for r, n := range worst.refusals {
		t.gone[r] += n
	}
	t.taken += worst.admitted
	delete(t.shards, worst.id)
	return true
}

func (s *shard) worse(o *shard) bool {
	switch {
	case s.answers != o.answers:
		return !s.answers
	case s.lastUse != o.lastUse:
		return s.lastUse < o.lastUse
	}
	return s.id < o.id
}

func (c *Controller) newShard(t *stripe, id uint64, now int64) *shard {
	return &shard{in: t, id: id, shares: map[string]*share{}, turns: now + activeTime, lim: newLimiter(&c.cfg), lastUse: now, lastDone: now}
}

// shareOf returns what the client does here, and makes it active.
func (s *shard) shareOf(c *Client, makesRoom bool, now int64) *share {
	if now >= s.turns || s.turns-now > activeTime {
		s.turns = now + activeTime
		s.epoch++
		for key, p := range s.shares {
			p.admitted /= 2
			p.refused /= 2
			if p.maker && p.room.n == 0 && s.epoch-p.roomSeen > 1 {
				p.maker = false
				s.makers--
			}
			if p.all.n == 0 && s.epoch-p.seen > 1 {
				s.remove(key, p)
			}
		}
	}
	key := c.key()
	p := s.shares[key]
	if p == nil {
		// Clients that came and went may still be there; those with something at work have records, of which there are not more.
		if len(s.shares) > c.ctl.cfg.Clients {
			for key, p := range s.shares {
				if p.all.n == 0 {
					s.remove(key, p)
				}
			}
		}
		p = &share{}
		s.shares[key] = p
	}
	p.seen = s.epoch
	if makesRoom {
		p.roomSeen = s.epoch
		if !p.maker {
			p.maker = true
			s.makers++
		}
	}
	return p
}

func (s *shard) remove(key string, p *share) {
	delete(s.shares, key)
	if p.maker {
		s.makers--
	}
}

// asks is what a ceiling depends on: what the client has at work, of everything and of what makes room, and what it asks for; how many
// clients share the limit, and how many the reserve.
type asks struct {
	all, room, add int64
	makesRoom      bool
	active, makers int64
}

// ceiling is up to where work may come with this request, and whether that is because of a share.
func (a *asks) ceiling(limit int64) (to int64, within bool) {
	step := max(limit/steps, 1)
	switch {
	case a.makesRoom && (a.room == 0 || (a.room+a.add)*a.makers <= 2*step):
		return limit + 4*step, true
	case a.all == 0 || (a.all+a.add)*a.active <= limit:
		return limit + 2*step, true
	case (a.all+a.add)*a.active <= limit+limit/2:
		return limit, false
	}
	return limit - step, false
}

// refuses checks a request against the shard's limits.
func (s *shard) refuses(c *Controller, p *share, bytes int64, makesRoom bool, now int64) (r refusal) {
	r.reason = none
	limit := int64(s.lim.allowed())
	if s.work.n+1 > limit-max(limit/steps, 1) {
		s.lim.pressed = true
		s.lim.pace.full(now, s.latency)
	}
	a := asks{all: p.all.n, room: p.room.n, add: 1, makesRoom: makesRoom,
		active: int64(len(s.shares)), makers: int64(s.makers)}
	to, within := a.ceiling(limit)
	if s.work.n+1 > to {
		r.reason, r.have, r.add, r.allowed = ShardLimit, s.work.n, 1, to
		switch {
		case !within && a.active > 1 && s.work.n < limit:
			r.reason = FairShare
		case limit >= int64(c.cfg.MaxLimit):
			r.reason = ShardCount
		}
		return r
	}
	a.all, a.room, a.add = p.all.bytes, p.room.bytes, bytes
	to, _ = a.ceiling(c.shardBytes)
	if s.work.bytes+bytes > to {
		r.reason, r.have, r.add, r.allowed = ShardBytes, s.work.bytes, bytes, to
	}
	return r
}
