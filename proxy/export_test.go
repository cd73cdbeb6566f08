package proxy

import (
	"github.com/decree-raft/decree/rsm"
)

// Waiting returns how many calls of a shard wait for a leader.
func (p *Proxy) Waiting(id rsm.ShardID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.shards[id]; s != nil {
		return s.router.Stats().Waiting
	}
	return 0
}
