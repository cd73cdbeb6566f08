package proxy

import (
	"time"

	"github.com/decree-raft/decree/rsm"
)

// Patience replaces how long a client may read nothing.
func (s *Server) Patience(d time.Duration) { s.service.patience = d }

// Meeting replaces how long a stream waits until it is known of which cluster the server is.
func (s *Server) Meeting(d time.Duration) { s.service.meeting = d }

// ReceivePatience replaces how long the message of a unary call may take.
func (s *Server) ReceivePatience(d time.Duration) { s.service.receivePatience = d }

// Held returns how many callers make the server hold something, and how many bytes of answers they have not taken.
func (s *Server) Held() (callers int, unsent int64) {
	h := s.service.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.callers {
		unsent += c.unsent
	}
	return len(h.callers), unsent
}

// SetMaxIdle replaces how long a connection may have neither calls nor streams, for the servers that are started from now on, and returns what undoes that.
func SetMaxIdle(d time.Duration) (undo func()) {
	was := maxIdle
	maxIdle = d
	return func() { maxIdle = was }
}

// SetDrainPatience replaces how long Drain waits without a deadline, and returns what undoes that.
func SetDrainPatience(d time.Duration) (undo func()) {
	was := drainPatience
	drainPatience = d
	return func() { drainPatience = was }
}

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

// Leads reports whether somebody is known to lead a shard, and reached.
func (p *Proxy) Leads(id rsm.ShardID) bool { return p.leads(id) }
