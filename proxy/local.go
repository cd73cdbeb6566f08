package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/rsm"
)

// Register offers the protocol of api/decree/v1 on a gRPC server, for the replicas of one node: rsm.Config.Services takes it. It answers for
// that node alone; proxies make a cluster of that.
func Register(n *rsm.Node, r grpc.ServiceRegistrar) {
	Checked(nil)(n, r)
}

// local answers for the replicas of a node in this process.
type local struct {
	node *rsm.Node
	ends *deadlines
}

// always is closed.
var always = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func newLocal(n *rsm.Node) *local { return &local{node: n, ends: newDeadlines()} }

// Send implements route.Target.
func (l *local) Send(c *route.Call, attempt uint32) bool {
	if err := l.hand(c, func(res rsm.Result, err error) { c.Answer(monotonic(), attempt, res, l.hint(err)) }); err != nil {
		// The router is told later: it is in the middle of something.
		go c.Answer(monotonic(), attempt, rsm.Result{}, l.hint(err))
	}
	return true
}

func (l *local) start(now int64, c *route.Call) {
	if c.Deadline <= now {
		c.Err = &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeCancelled, Message: "the deadline of the call was over before it began"}
		c.Done(c)
		return
	}
	t := l.ends.add(c)
	end := func(res rsm.Result, err error) {
		if l.ends.take(t) {
			c.Result, c.Err = res, l.hint(err)
			c.Done(c)
		}
	}
	if err := l.hand(c, end); err != nil {
		end(rsm.Result{}, err)
	}
}

func (l *local) met() <-chan struct{} { return always }

func (l *local) cluster() string { return l.node.Cluster() }

func (l *local) leads(rsm.ShardID) bool { return true } // it answers at once in any case

// hint adds where the leader is found.
func (l *local) hint(err error) error {
	if err == nil {
		return nil
	}
	var e *rsm.Error
	if !errors.As(err, &e) || e.Leader == 0 || e.LeaderAddress != "" {
		return err
	}
	hinted := *e
	hinted.LeaderAddress = l.node.AddressOf(e.Leader)
	return &hinted
}

// hand gives a call to the shard. then is called unless there is an error.
func (l *local) hand(c *route.Call, then func(rsm.Result, error)) error {
	s := l.node.Shard(c.Shard)
	if s == nil {
		return &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeNoShard, Message: fmt.Sprintf("node %d hosts no shard %d", l.node.ID(), c.Shard)}
	}
	calls := s.Traced(traced.Under(context.Background(), c.Trace))
	switch c.Kind {
	case route.Submit:
		return calls.GoFunc(rsm.Request{Commands: c.Commands, MakesRoom: c.MakesRoom, Session: c.Session, Sequence: c.Sequence, Acknowledged: c.Acknowledged}, then)
	case route.Read:
		return calls.GoReadFunc(c.Level, c.Token, c.Query, then)
	case route.OpenSession:
		return calls.OpenSessionFunc(then)
	default:
		return calls.CloseSessionFunc(c.Session, then)
	}
}

// topology is what this node knows. It waits for no worker, and costs none a thing, as proxies ask often. Addresses are those of the nodes' own ports, where Register offers the protocol.
func (l *local) topology() *decreev1.GetTopologyResponse {
	t := &decreev1.GetTopologyResponse{Cluster: l.node.Cluster()}
	addresses := map[rsm.NodeID]string{l.node.ID(): l.node.AddressOf(l.node.ID())}
	for _, s := range l.node.Shards() {
		st, serves := s.Topology()
		if !serves {
			continue // it cannot be asked
		}
		t.Shards = append(t.Shards, &decreev1.GetTopologyResponse_Shard{Shard: uint64(s.ID()), Leader: uint64(st.Leader), Term: uint64(st.Term), Nodes: ids(st.Members)})
		for _, id := range st.Members {
			if _, known := addresses[id]; !known {
				addresses[id] = l.node.AddressOf(id)
			}
		}
	}
	for id, a := range addresses {
		t.Nodes = append(t.Nodes, &decreev1.GetTopologyResponse_Node{Node: uint64(id), Address: a})
	}
	slices.SortFunc(t.Nodes, func(a, b *decreev1.GetTopologyResponse_Node) int { return int(a.Node) - int(b.Node) })
	return t
}

func ids(nodes []rsm.NodeID) []uint64 {
	out := make([]uint64, len(nodes))
	for i, n := range nodes {
		out[i] = uint64(n)
	}
	return out
}
