package proxy

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
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

func newLocal(n *rsm.Node) *local { return &local{node: n, ends: newDeadlines()} }

// Send implements route.Target.
func (l *local) Send(c *route.Call, attempt uint32) bool {
	if err := l.begin(c, func(res rsm.Result, err error) { c.Answer(monotonic(), attempt, res, err) }); err != nil {
		// The router is told later: it is in the middle of something.
		go c.Answer(monotonic(), attempt, rsm.Result{}, err)
	}
	return true
}

func (l *local) start(c *route.Call) {
	if c.Deadline <= monotonic() {
		c.Err = &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeCancelled, Message: "the deadline of the call was over before it began"}
		c.Done(c)
		return
	}
	t := l.ends.add(c)
	end := func(res rsm.Result, err error) {
		if l.ends.take(t) {
			c.Result, c.Err = res, err
			c.Done(c)
		}
	}
	if err := l.begin(c, end); err != nil {
		end(rsm.Result{}, err)
	}
}

func (l *local) cluster() string { return l.node.Cluster() }

func (l *local) leads(rsm.ShardID) bool { return true } // it answers at once in any case

// begin hands a call to the shard. then is called unless there is an error.
func (l *local) begin(c *route.Call, then func(rsm.Result, error)) error {
	return l.hint(l.hand(c, func(res rsm.Result, err error) { then(res, l.hint(err)) }))
}

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

func (l *local) hand(c *route.Call, then func(rsm.Result, error)) error {
	s := l.node.Shard(c.Shard)
	if s == nil {
		return &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeNoShard, Message: fmt.Sprintf("node %d hosts no shard %d", l.node.ID(), c.Shard)}
	}
	switch c.Kind {
	case route.Submit:
		return s.GoFunc(rsm.Request{Commands: c.Commands, MakesRoom: c.MakesRoom, Session: c.Session, Sequence: c.Sequence, Acknowledged: c.Acknowledged},
			func(res rsm.Result, err error) {
				res.Replies = slices.Clone(res.Replies) // theirs is the request's own memory
				then(res, err)
			})
	case route.Read:
		return s.GoReadFunc(c.Level, c.Token, c.Query, then)
	case route.OpenSession:
		return s.OpenSessionFunc(then)
	default:
		return s.CloseSessionFunc(c.Session, then)
	}
}

// topology is what this node knows. Addresses are those of the nodes' own ports, where Register offers the protocol.
func (l *local) topology() *decreev1.GetTopologyResponse {
	t := &decreev1.GetTopologyResponse{Cluster: l.node.Cluster()}
	addresses := map[rsm.NodeID]string{l.node.ID(): l.node.AddressOf(l.node.ID())}
	for _, s := range l.node.Shards() {
		st, err := s.Status()
		if err != nil || st.Err != nil {
			continue // it cannot be asked
		}
		t.Shards = append(t.Shards, &decreev1.GetTopologyResponse_Shard{Shard: uint64(s.ID()), Leader: uint64(st.Leader), Term: uint64(st.Term), Nodes: ids(st.Members.Members())})
		for _, id := range st.Members.Members() {
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
