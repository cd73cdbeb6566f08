package proxy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/rsm"
)

// readyPatience is how long a shard may be without a leader before the proxy says that it is not ready: an election is no reason to send clients
// elsewhere, where they would wait for the same.
const readyPatience = 5 * time.Second

// healthBeat is how promptly the health service follows Ready.
const healthBeat = 200 * time.Millisecond

// Ready says, in words, what keeps the proxy from serving; nothing means that it knows the topology, and that every shard it knows has, or had within
// the last five seconds, a leader that is reached.
func (p *Proxy) Ready() (missing []string) {
	now := monotonic()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return []string{"the proxy is closed"}
	case !p.known:
		return []string{fmt.Sprintf("no node has said yet what shards there are: %d addresses are tried", len(p.links))}
	}
	for _, id := range slices.Sorted(maps.Keys(p.shards)) {
		s := p.shards[id]
		if len(s.nodes) == 0 && s.term == 0 {
			continue // somebody asked for it before anything was known
		}
		if p.led(s, now) {
			s.reached = now
		}
		if now-s.reached > int64(readyPatience) {
			switch {
			case s.leader == 0 || p.reaches(s.leader):
				missing = append(missing, fmt.Sprintf("shard %d: nobody is known to lead it", id))
			default:
				missing = append(missing, fmt.Sprintf("shard %d: node %d, which leads it as far as is known, is not reached", id, s.leader))
			}
		}
	}
	return missing
}

// led reports whether somebody leads a shard and is reached: a node must have said so lately, as one that has lost its majority is reached as well.
func (p *Proxy) led(s *shard, now int64) bool {
	return now-s.told <= int64(2*p.cfg.Refresh+askPatience) && p.reaches(s.leader)
}

// reaches reports whether calls can be sent to a node.
func (p *Proxy) reaches(node rsm.NodeID) bool {
	switch t := p.target(node).(type) {
	case *link.Link:
		return t.Connected()
	case *local:
		return true
	}
	return false
}

// Ready is the proxy's, and says so when the server drains or is closed.
func (s *Server) Ready() (missing []string) {
	if s.service.closes.Load() {
		return []string{"the server drains, or is closed"}
	}
	return s.proxy.Ready()
}

// follow keeps the health service at what Ready says, until ctx ends.
func (p *Proxy) follow(ctx context.Context, h *health.Server) {
	t := time.NewTicker(healthBeat)
	defer t.Stop()
	for {
		status := healthv1.HealthCheckResponse_SERVING
		if len(p.Ready()) > 0 {
			status = healthv1.HealthCheckResponse_NOT_SERVING
		}
		h.SetServingStatus("", status)
		h.SetServingStatus(decreev1.DecreeService_ServiceDesc.ServiceName, status)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
