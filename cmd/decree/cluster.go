package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
)

const (
	// dialPatience is how long a node may take to answer at all.
	dialPatience = 5 * time.Second
	// maxAsks bounds how often one thing is asked until some node does it.
	maxAsks = 40
	// askPause is how long to wait before asking again, if the node does not say; it grows to four times that.
	askPause = 250 * time.Millisecond
	// maxPause bounds what a node may say.
	maxPause = 5 * time.Second
)

// node is a node that has answered.
type node struct {
	id      uint64
	address string
	conn    *grpc.ClientConn
	admin   adminv1.AdminServiceClient
	status  *adminv1.StatusResponse // as it last answered
}

// look asks the node how it stands.
func (n *node) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	st, err := n.admin.Status(ctx, &adminv1.StatusRequest{})
	if err == nil {
		n.status = st
	}
	return err
}

// shard returns the node's replica of a shard, or nil.
func (n *node) shard(id uint64) *adminv1.ShardStatus {
	for _, s := range n.status.GetShards() {
		if s.GetShard() == id {
			return s
		}
	}
	return nil
}

// members asks the node who takes part in a shard, as it knows it.
func (n *node) members(ctx context.Context, shard uint64) (*adminv1.MembersResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	return n.admin.Members(ctx, &adminv1.MembersRequest{Shard: shard})
}

// cluster is the nodes that the command speaks to. It belongs to one goroutine.
type cluster struct {
	given []string
	creds []grpc.DialOption // how to connect, and with which token
	say   func(format string, args ...any)

	name  string
	nodes map[uint64]*node
	// away has the nodes that are known to exist and were not reached, and why.
	away map[uint64]awayNode
}

type awayNode struct {
	address string // empty: not known
	reason  error
}

func newCluster(given []string, creds []grpc.DialOption, say func(string, ...any)) *cluster {
	return &cluster{given: given, creds: creds, say: say, nodes: map[uint64]*node{}, away: map[uint64]awayNode{}}
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		_ = n.conn.Close()
	}
}

// connect reaches the nodes that were named. At least one must answer.
func (c *cluster) connect(ctx context.Context) error {
	found, failed := c.dialAll(ctx, c.given)
	for _, n := range found {
		if err := c.take(n); err != nil {
			return err
		}
	}
	if len(c.nodes) == 0 {
		var why []string
		for _, a := range c.given {
			// A node that wants a token, or another one, is reached, and so are the others who want the same.
			if errors.Is(failed[a], &rsm.Error{Code: rsm.CodeUnauthenticated}) || errors.Is(failed[a], &rsm.Error{Code: rsm.CodeForbidden}) {
				return &refusedError{fmt.Errorf("the node at %s refuses: %w", a, failed[a])}
			}
			why = append(why, fmt.Sprintf("%s: %v", a, failed[a]))
		}
		return unreachable("no node could be reached: %s", strings.Join(why, "; "))
	}
	for _, a := range c.given {
		if failed[a] != nil {
			c.say("the node at %s gives no answer: %v", a, failed[a])
		}
	}
	return nil
}

func (c *cluster) dialAll(ctx context.Context, addresses []string) (found []*node, failed map[string]error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed = map[string]error{}
	for _, a := range addresses {
		wg.Go(func() {
			n, err := c.dial(ctx, a)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[a] = err
			} else {
				found = append(found, n)
			}
		})
	}
	wg.Wait()
	slices.SortFunc(found, func(a, b *node) int { return slices.Index(addresses, a.address) - slices.Index(addresses, b.address) })
	return found, failed
}

// dial connects, and has the node say who it is. What is asked of it later goes over a connection that stands.
func (c *cluster) dial(ctx context.Context, address string) (*node, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, append(slices.Clone(c.creds), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)), // an entry's size is the node's to limit
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 2 * admin.MinKeepalive, Timeout: dialPatience}))...)
	if err != nil {
		return nil, err
	}
	n := &node{address: address, conn: conn, admin: adminv1.NewAdminServiceClient(conn)}
	if err := n.look(ctx); err != nil {
		return nil, errors.Join(callError(err), conn.Close())
	}
	n.id = n.status.GetNode()
	return n, nil
}

// take adds a node that has answered.
func (c *cluster) take(n *node) error {
	name := n.status.GetCluster()
	if c.name == "" {
		c.name = name
	}
	if name != c.name {
		return errors.Join(badUsage("the node at %s belongs to cluster %q, and others that were named to %q: name nodes of one cluster", n.address, name, c.name), n.conn.Close())
	}
	if c.nodes[n.id] != nil {
		return n.conn.Close() // it has two addresses
	}
	c.nodes[n.id] = n
	delete(c.away, n.id)
	return nil
}

// discover reaches the other nodes that those reached know of.
func (c *cluster) discover(ctx context.Context) {
	known := map[uint64]string{}
	for _, n := range c.sorted() {
		for _, p := range n.status.GetPeers() {
			known[p.GetNode()] = cmp.Or(known[p.GetNode()], "")
		}
		for _, s := range n.status.GetShards() {
			m, err := n.members(ctx, s.GetShard())
			if err != nil {
				continue // a member that is not found will be missed
			}
			for _, m := range m.GetMembers() {
				known[m.GetNode()] = cmp.Or(m.GetAddress(), known[m.GetNode()])
			}
		}
	}
	var dial []string
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if c.nodes[id] == nil && known[id] != "" && !slices.Contains(c.given, known[id]) {
			dial = append(dial, known[id])
		}
	}
	found, failed := c.dialAll(ctx, dial)
	for _, n := range found {
		if known[n.id] != n.address || c.take(n) != nil {
			_ = n.conn.Close() // somebody else lives there
		}
	}
	for id, address := range known {
		if c.nodes[id] != nil {
			continue
		}
		reason := failed[address]
		switch {
		case address == "":
			reason = errors.New("its address is not known here: name it with -node")
		case reason == nil:
			reason = errors.New("it does not answer there")
		}
		c.away[id] = awayNode{address, reason}
	}
}

// sorted returns the nodes by id.
func (c *cluster) sorted() []*node {
	return slices.SortedFunc(maps.Values(c.nodes), func(a, b *node) int { return cmp.Compare(a.id, b.id) })
}

// shards returns the shards that a command is about: the one that was named, or all.
func (c *cluster) shards(named uint64) ([]uint64, error) {
	all := map[uint64]bool{}
	for _, n := range c.nodes {
		for _, s := range n.status.GetShards() {
			all[s.GetShard()] = true
		}
	}
	ids := slices.Sorted(maps.Keys(all))
	if named == 0 {
		return ids, nil
	}
	if !all[named] {
		return nil, notProposed(rsm.CodeNoShard, "no node that answers hosts shard %d; they host %v", named, ids)
	}
	return []uint64{named}, nil
}

func notProposed(code rsm.Code, format string, args ...any) error {
	return &rsm.Error{Kind: rsm.ErrNotProposed, Code: code, Message: fmt.Sprintf(format, args...)}
}

// hosting returns the nodes that host a shard, with the one first that says that it leads.
func (c *cluster) hosting(shard uint64) []*node {
	var hosts []*node
	for _, n := range c.sorted() {
		if s := n.shard(shard); s == nil {
			continue
		} else if s.GetRole() == "leader" {
			hosts = slices.Insert(hosts, 0, n)
		} else {
			hosts = append(hosts, n)
		}
	}
	return hosts
}

// reach returns a node by id; address is where it is found if it was not reached before.
func (c *cluster) reach(ctx context.Context, id uint64, address string) (*node, error) {
	if n := c.nodes[id]; n != nil {
		return n, nil
	}
	if address == "" {
		c.discover(ctx)
		if n := c.nodes[id]; n != nil {
			return n, nil
		}
		return nil, unreachable("node %d is not reached: %v", id, cmp.Or(c.away[id].reason, errors.New("no node knows its address; name it with -node")))
	}
	n, err := c.dial(ctx, address)
	if err != nil {
		return nil, unreachable("node %d at %s is not reached: %v", id, address, err)
	}
	if n.id != id {
		_ = n.conn.Close()
		return nil, unreachable("node %d is not reached: at %s there is node %d", id, address, n.id)
	}
	return n, c.take(n)
}

// node returns the node that a user named by its id.
func (c *cluster) node(ctx context.Context, id uint64) (*node, error) { return c.reach(ctx, id, "") }

// drop forgets a node that does not answer any more.
func (c *cluster) drop(n *node, reason error) {
	_ = n.conn.Close()
	delete(c.nodes, n.id)
	c.away[n.id] = awayNode{n.address, reason}
}

// passing are the refusals that another node, or the same one a little later, may take back.
var passing = []rsm.Code{rsm.CodeNotLeader, rsm.CodeNoLeader, rsm.CodeTransfer, rsm.CodeLeadershipLost, rsm.CodeOverwritten, rsm.CodeOverloaded, rsm.CodeClosed, rsm.CodeChangePending}

// change asks the leader of a shard for something that happens once. It goes where the nodes say that the leader is, and
// asks again only what certainly did not happen, a bounded number of times.
func (c *cluster) change(ctx context.Context, shard uint64, again []rsm.Code, ask func(context.Context, *node) error) error {
	n, err := c.live(ctx, shard, 0)
	if err != nil {
		return err
	}
	told := rsm.Code("")
	since := map[uint64]bool{} // nodes that were asked since the last pause: they may point at each other
	for asked, pauses := 1, 0; ; asked++ {
		since[n.id] = true
		err := ask(ctx, n)
		if err == nil {
			return nil
		}
		err = changeError(n, err)
		var e *rsm.Error
		if !errors.As(err, &e) || e.Kind != rsm.ErrNotProposed || !slices.Contains(again, e.Code) || asked == maxAsks || ctx.Err() != nil {
			return err
		}
		next := c.next(ctx, shard, n, err, e)
		if next == nil || since[next.id] {
			if e.Code != told {
				told = e.Code
				c.say("shard %d: %v; trying again", shard, err)
			}
			pauses++
			pause := max(e.RetryAfter, askPause*time.Duration(min(4, 1+pauses/4)))
			if !wait(ctx, min(maxPause, pause)) {
				return err // it was not done, and that is for certain
			}
			clear(since)
		}
		if next == nil || c.refresh(ctx, next) != nil {
			if next, _ = c.live(ctx, shard, asked); next == nil {
				return err
			}
		}
		if next != n {
			c.say("asking node %d at %s about shard %d", next.id, next.address, shard)
		}
		n = next
	}
}

// next returns whom to ask after a refusal, nil for any.
func (c *cluster) next(ctx context.Context, shard uint64, n *node, err error, e *rsm.Error) *node {
	leader := uint64(e.Leader)
	switch {
	case e.Code == rsm.CodeOverloaded, e.Code == rsm.CodeChangePending:
		return n // the right node, at the wrong time
	case leader == 0, leader == n.id:
		return nil
	}
	next, why := c.reach(ctx, leader, leaderAddress(c, err, leader))
	if why != nil {
		c.say("node %d says that node %d leads shard %d, but %v", n.id, leader, shard, why)
		return nil
	}
	c.say("node %d does not lead shard %d; node %d does, it says", n.id, shard, leader)
	return next
}

// refresh asks a node how it stands. It forgets one that gives no answer, before anything is asked of it of which the outcome
// would then be unknown.
func (c *cluster) refresh(ctx context.Context, n *node) error {
	if err := n.look(ctx); err != nil {
		err = readError(n, err)
		c.drop(n, err)
		return err
	}
	return nil
}

// refreshAll asks all nodes at the same time how they stand, and forgets those that give no answer, unless ctx has ended.
func (c *cluster) refreshAll(ctx context.Context) {
	nodes := c.sorted()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.look(ctx) })
	}
	wg.Wait()
	for i, n := range nodes {
		if errs[i] != nil && ctx.Err() == nil {
			c.drop(n, callError(errs[i]))
		}
	}
}

// live returns the turn-th of the nodes that host a shard and answer.
func (c *cluster) live(ctx context.Context, shard uint64, turn int) (*node, error) {
	last := unreachable("no node that answers hosts shard %d", shard)
	for {
		hosts := c.hosting(shard)
		if len(hosts) == 0 {
			return nil, last
		}
		n := hosts[turn%len(hosts)]
		if last = c.refresh(ctx, n); last == nil {
			return n, nil
		}
		c.say("%v", last)
	}
}

// leaderAddress is where the error, or what was found before, says that the leader is.
func leaderAddress(c *cluster, err error, id uint64) string {
	var r *refusal
	if errors.As(err, &r) && r.leaderAddress != "" {
		return r.leaderAddress
	}
	return c.away[id].address
}

// refusal is an error of a node, which the command prefixes with who said it.
type refusal struct {
	node          uint64
	leaderAddress string
	err           error // *rsm.Error or *rsm.Rejection
}

func (e *refusal) Error() string { return fmt.Sprintf("node %d says: %v", e.node, e.err) }
func (e *refusal) Unwrap() error { return e.err }

// changeError is the error of a call that may have changed something.
func changeError(n *node, err error) error {
	if d := admin.Detail(err); d != nil {
		return &refusal{n.id, d.GetLeaderAddress(), admin.FromDetail(d)}
	}
	return &rsm.Error{Kind: rsm.ErrUnknown, Code: rsm.CodeUnreachable, Message: fmt.Sprintf("node %d at %s gave no answer", n.id, n.address), Cause: plain(err)}
}

// readError is the error of a call that changes nothing.
func readError(n *node, err error) error {
	if d := admin.Detail(err); d != nil {
		return &refusal{n.id, d.GetLeaderAddress(), admin.FromDetail(d)}
	}
	return unreachable("node %d at %s gives no answer: %w", n.id, n.address, plain(err))
}

// callError is an error of a call to a node of which nothing is known yet.
func callError(err error) error {
	if d := admin.Detail(err); d != nil {
		return admin.FromDetail(d)
	}
	return plain(err)
}

// plain is a gRPC error in words for people.
func plain(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch st.Code() {
	case codes.Unimplemented:
		return errors.New("there is no admin service (or an older one) at this address: register rsm/admin there")
	case codes.DeadlineExceeded:
		return errors.New("no answer in time")
	case codes.Canceled:
		return errors.New("interrupted")
	}
	return errors.New(st.Message())
}
