package proxy

import (
	"context"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/internal/admit"
	"github.com/decree-raft/decree/rsm"
)

// RoleOf returns the role that a method of the protocol takes. Connect takes read, and each call on it its own.
func RoleOf(method string) access.Role {
	switch method {
	case decreev1.DecreeService_Read_FullMethodName, decreev1.DecreeService_GetTopology_FullMethodName, decreev1.DecreeService_Connect_FullMethodName:
		return access.Read
	case decreev1.DecreeService_Submit_FullMethodName, decreev1.DecreeService_OpenSession_FullMethodName, decreev1.DecreeService_CloseSession_FullMethodName:
		return access.Write
	}
	return access.Admin
}

// roleOf returns the role that a call takes.
func roleOf(c *route.Call) access.Role {
	if c.Kind == route.Read {
		return access.Read
	}
	return access.Write
}

// Checked is Register with every call checked by a policy, for rsm.Config.Services: whoever reaches the node's port must show what
// the policy asks. Proxies show proxy.Config.Credentials.
func Checked(p *access.Policy) func(n *rsm.Node, r grpc.ServiceRegistrar) {
	return func(n *rsm.Node, r grpc.ServiceRegistrar) {
		s := nodeService(newLocal(n))
		s.policy = p
		decreev1.RegisterDecreeServiceServer(&bounded{p.Registrar(r, RoleOf), s}, s)
	}
}

// A stream to a node is a proxy's only one, for all its clients and all shards: when it is not read any more, everybody waits for the slowest shard. So it takes as
// many calls as a link has (internal/link), and the bytes of sixteen shards that are full. What waits on a shard is bounded by the shard, whoever sent it.
const (
	nodeStreamCalls = 1 << 17
	nodeStreamBytes = 1 << 30
)

// nodeService offers a node.
func nodeService(b backend) *service {
	s := newService(b, Limits{StreamCalls: nodeStreamCalls, StreamBytes: nodeStreamBytes}.withDefaults())
	s.holds.most = maxUntaken
	return s
}

// caller is who sent a call: what it may do, and what it has at work.
type caller struct {
	role   access.Role
	client *admit.Client // nil: nothing is limited
}

// caller returns who calls, until release. Who has shown who it is counts as one, whatever its connections; others count by connection.
func (s *service) caller(ctx context.Context) (c caller, release func()) {
	id, known := access.FromContext(ctx)
	if !known {
		id.Role = access.Admin // nobody was asked
	}
	c.role = id.Role
	if s.admission == nil {
		return c, func() {}
	}
	c.client = s.admission.Client(nameOf(ctx, id))
	return c, c.client.Release
}

var errForbidden = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeForbidden,
	Message: "the role read may not submit commands nor open sessions: use a token or a certificate with the role write"}

// admit takes a call in if its caller may send it and there is room for it. While nobody leads the shard, calls wait by the router's own bounds and by
// those of their client: what an election holds up says nothing about load.
func (s *service) admit(who caller, c *route.Call, now int64) (admit.Ticket, error) {
	if roleOf(c) > who.role {
		return admit.Ticket{}, errForbidden
	}
	if who.client == nil {
		return admit.Ticket{}, nil
	}
	take := who.client.Admit
	if !s.backend.leads(c.Shard) {
		take = who.client.Wait
	}
	return take(uint64(c.Shard), c.Size(), c.MakesRoom || c.Kind == route.CloseSession, unix(now))
}

// loadOf says what the outcome of a call says about load. A leader that had a call to the end of its time is slow: if all calls end so, that must count.
func loadOf(c *route.Call) admit.Outcome {
	switch e, no := core.Verdict(c.Err); {
	case c.Err == nil, no != nil:
		return admit.Answered
	case c.Held && (c.Late || e != nil && e.Code == core.CodeCancelled):
		return admit.Late
	case c.Late: // it waited, whatever it was told before
		return admit.Ignored
	case e != nil && e.Code == core.CodeOverloaded:
		return admit.Dropped
	}
	return admit.Ignored
}

// recheck returns the role that a stream's caller has by now: tokens expire, and are taken out.
func (s *service) recheck(ctx context.Context, who *caller, last *time.Time) error {
	if !s.policy.Asks() || time.Since(*last) < time.Second {
		return nil
	}
	id, err := s.policy.Check(ctx, access.Read)
	if err != nil {
		return err
	}
	who.role, *last = id.Role, time.Now()
	return nil
}
