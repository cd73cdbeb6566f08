package proxy

import (
	"time"

	"github.com/decree-raft/decree/rsm"
)

// Patience replaces how long a client may read nothing.
func (s *Server) Patience(d time.Duration) { s.service.patience = d }

// Meeting replaces how long a stream waits until it is known of which cluster the server is.
func (s *Server) Meeting(d time.Duration) { s.service.meeting = d }

// PublicPatience replaces how long a call that needs no token may take to say what it asks.
func (s *Server) PublicPatience(d time.Duration) { s.public.patience = d }

// Streams returns how many streams are open.
func (s *Server) Streams() int {
	s.service.mu.Lock()
	defer s.service.mu.Unlock()
	return len(s.service.streams)
}

// Waiting returns how many calls of a shard wait for a leader.
func (p *Proxy) Waiting(id rsm.ShardID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.shards[id]; s != nil {
		return s.router.Stats().Waiting
	}
	return 0
}
