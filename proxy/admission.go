package proxy

import (
	"strconv"
	"sync"
	"time"

	"github.com/decree-raft/decree/proxy/internal/admit"
)

// admissions is the admission of each of a proxy's servers, as metrics tell of them together. The zero value has none.
type admissions struct {
	mu   sync.Mutex
	open map[*admit.Controller]bool
	gone admit.Refused // by servers that are closed: a counter must not fall
}

func (a *admissions) add(c *admit.Controller) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		a.open = map[*admit.Controller]bool{}
	}
	a.open[c] = true
}

// remove takes out the admission of a server that takes no calls any more. It may be out already.
func (a *admissions) remove(c *admit.Controller) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[c] {
		for r, n := range c.Snapshot().Refused {
			a.gone[r] += n
		}
		delete(a.open, c)
	}
}

// admitted is a shard as the admission of all servers sees it.
type admitted struct {
	limit, atWork int
	base          time.Duration // the least that is known, 0 if none is
}

func (s *admitted) add(o *admit.ShardStat) {
	s.limit += o.Limit
	s.atWork += o.AtWork
	if o.Base > 0 && (s.base == 0 || o.Base < s.base) {
		s.base = o.Base
	}
}

// otherShards is the label of those for which an admission has no record of their own.
const otherShards = "others"

// figures returns what there is to see, shards by their label: as many as one admission keeps, for each server.
func (a *admissions) figures() (shards map[string]*admitted, refused admit.Refused) {
	a.mu.Lock()
	defer a.mu.Unlock()
	shards, refused = map[string]*admitted{}, a.gone
	for c := range a.open {
		s := c.Snapshot()
		for r, n := range s.Refused {
			refused[r] += n
		}
		for i := range s.Shards {
			label := strconv.FormatUint(s.Shards[i].Shard, 10)
			if s.Shards[i].Others { // it may be named like a shard that has a record
				label = otherShards
			}
			if shards[label] == nil {
				shards[label] = &admitted{}
			}
			shards[label].add(&s.Shards[i])
		}
	}
	return shards, refused
}
