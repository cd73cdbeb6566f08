package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/rsm"
)

// told makes an answer of a node of cluster "c" about shard 1, with a member for each address: node 1 at the first, and so on; those with none are left out.
func told(term uint64, addresses ...string) *decreev1.GetTopologyResponse {
	s := &decreev1.GetTopologyResponse_Shard{Shard: 1, Leader: 1, Term: term}
	t := &decreev1.GetTopologyResponse{Cluster: "c", Shards: []*decreev1.GetTopologyResponse_Shard{s}}
	for i, a := range addresses {
		if a != "" {
			s.Nodes = append(s.Nodes, uint64(i+1))
			t.Nodes = append(t.Nodes, &decreev1.GetTopologyResponse_Node{Node: uint64(i + 1), Address: a})
		}
	}
	return t
}

func testProxy(t *testing.T, nodes ...string) *Proxy {
	t.Helper()
	p, err := New(Config{Nodes: nodes, Refresh: hurry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (p *Proxy) where(id rsm.NodeID) (address string, links int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address[id], len(p.links)
}

// A node that moves is followed, and one that is removed is forgotten, with its connection: but none that is a member of a shard, however long nobody speaks of it.
func TestNodesMoveAndGo(t *testing.T) {
	first, second, third, moved := testkit.FreePort(t), testkit.FreePort(t), testkit.FreePort(t), testkit.FreePort(t)
	p := testProxy(t, first)
	p.learn(told(1, first, second, third))
	p.learn(told(1, first, moved, third))
	if a, n := p.where(2); a != moved || n != 3 {
		t.Errorf("node 2 is looked for at %s, and there are %d links", a, n)
	}
	if p.target(2) == nil || p.target(3) == nil {
		t.Error("nodes cannot be asked")
	}
	span := forgetAfter * hurry
	p.learn(told(2, first, moved)) // node 3 was removed
	if a, _ := p.where(3); a != third {
		t.Error("node 3 is forgotten at once")
	}
	time.Sleep(span + span/10)
	only := told(2, first)
	only.Shards = nil // whoever says this has no shard: nobody speaks of node 2
	p.learn(only)
	if a, n := p.where(3); a != "" || n != 2 || p.target(3) != nil {
		t.Errorf("node 3 is looked for at %q, and there are %d links", a, n)
	}
	if a, _ := p.where(2); a != moved {
		t.Error("a member of a shard is forgotten")
	}
}

// Shards that only a client has named go when nobody knows them; those that are learned stay, up to a bound.
func TestShardBounds(t *testing.T) {
	p := testProxy(t, testkit.FreePort(t))
	start := func(shard uint64) chan error {
		done := make(chan error, 1)
		p.start(monotonic(), &route.Call{Kind: route.Submit, Shard: rsm.ShardID(shard), Commands: [][]byte{nil}, Deadline: monotonic() + int64(time.Hour), Done: func(c *route.Call) { done <- c.Err }})
		return done
	}
	noShard := func(err error) bool {
		e, _ := core.Verdict(err)
		return e != nil && e.Code == core.CodeNoShard && e.Kind == core.ErrNotProposed
	}
	waiting := map[uint64]chan error{}
	for shard := uint64(1); shard <= maxGuessed; shard++ {
		waiting[shard] = start(shard)
	}
	if err := <-start(maxGuessed + 1); !noShard(err) {
		t.Errorf("one too many: %v", err)
	}
	age := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for id := range p.guessed {
			p.guessed[id] -= int64(2 * guessPatience)
		}
	}
	age() // nobody has answered so far: that is no sign that there are no such shards
	p.learn(told(1, testkit.FreePort(t)))
	for shard, c := range waiting {
		if len(c) > 0 {
			t.Fatalf("the call to shard %d ends with the first answer of a node: %v", shard, <-c)
		}
	}
	age()
	p.learn(told(1, testkit.FreePort(t)))
	for shard, c := range waiting {
		select {
		case err := <-c:
			if shard == 1 || !noShard(err) {
				t.Errorf("shard %d: %v", shard, err)
			}
		default:
			if shard != 1 {
				t.Fatalf("the call to shard %d waits on", shard)
			}
		}
	}
	many := told(1)
	many.Shards = nil
	for i := range uint64(maxShards + 100) {
		many.Shards = append(many.Shards, &decreev1.GetTopologyResponse_Shard{Shard: i, Nodes: []uint64{1}})
	}
	p.learn(many)
	if n := len(*p.routers.Load()); n != maxShards {
		t.Errorf("%d shards: at most %d", n, maxShards)
	}
	if err := <-start(1 << 40); !noShard(err) {
		t.Errorf("a shard that nobody knows: %v", err)
	}
}

// Of another cluster nothing is learned.
func TestOtherClusterIsNotListenedTo(t *testing.T) {
	p := testProxy(t, testkit.FreePort(t))
	p.learn(told(1, testkit.FreePort(t)))
	other := told(9, testkit.FreePort(t), testkit.FreePort(t))
	other.Cluster = "other"
	was := fmt.Sprint(p.topology())
	if p.learn(other); fmt.Sprint(p.topology()) != was {
		t.Errorf("%v, and then %v", was, p.topology())
	}
}

// What nodes say again and again, and what is wrong with it, is logged once a minute, whatever they name.
//
// Mutation with which it was seen to fail: each time.
func TestWrongTopologyIsLoggedRarely(t *testing.T) {
	var log strings.Builder
	p, err := New(Config{Nodes: []string{testkit.FreePort(t)}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.meet("c")
	p.mu.Unlock()
	for i := range 20 {
		p.learn(&decreev1.GetTopologyResponse{Cluster: fmt.Sprint("another ", i)})
		p.learn(&decreev1.GetTopologyResponse{Cluster: "c", Nodes: []*decreev1.GetTopologyResponse_Node{{Node: uint64(i + 1), Address: fmt.Sprint("%", i)}}})
	}
	p.Close() // it says nothing more
	if strings.Count(log.String(), "another cluster") != 1 || strings.Count(log.String(), "cannot be dialled") != 1 {
		t.Errorf("of 20 times each: %s", &log)
	}
}

// A leader that is not reached is known by name, and no calls are sent to it over and over: right after it has died the others still say that it leads, and only who knows of no leader asks again at once.
//
// Mutation with which it was seen to fail: the router learns of it all the same.
func TestLeaderThatIsNotReached(t *testing.T) {
	p := testProxy(t, testkit.FreePort(t))
	p.learn(told(3, testkit.FreePort(t), testkit.FreePort(t)))
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shards[1]
	if s.router.Led() || s.leader != 1 || s.term != 3 || len(s.nodes) != 2 {
		t.Errorf("somebody to send calls to: %v; node %d leads in term %d, of %v", s.router.Led(), s.leader, s.term, s.nodes)
	}
}

// namer is a node that takes calls, answers none, and says what it is told to of the topology.
type namer struct {
	decreev1.UnimplementedDecreeServiceServer
	says atomic.Pointer[decreev1.GetTopologyResponse]
}

func (n *namer) GetTopology(context.Context, *decreev1.GetTopologyRequest) (*decreev1.GetTopologyResponse, error) {
	return n.says.Load(), nil
}

func (n *namer) Connect(g grpc.BidiStreamingServer[decreev1.ConnectRequest, decreev1.ConnectResponse]) error {
	if err := g.SendHeader(link.Greeting("c")); err != nil {
		return err
	}
	<-g.Context().Done()
	return nil
}

// A hint at a node that is not reached makes no leader of it: nothing can be sent there, and the nodes are asked who leads, and where one is found that was not known. One that is
// reached is believed.
//
// Mutations with which it was seen to fail: whoever is known is believed; nobody is asked.
func TestHintAtANodeThatIsNotReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	here, dead := l.Addr().String(), testkit.FreePort(t)
	n := &namer{}
	n.says.Store(told(3, here))
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec.Codec{}))
	decreev1.RegisterDecreeServiceServer(s, n)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	p, err := New(Config{Nodes: []string{here}, Refresh: time.Hour}) // of itself it asks once it has reached the node, and never again
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	soon := func(what string, f func() bool) {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("waited for %s in vain", what)
			}
		}
	}
	soon("the leader", func() bool { return p.leads(1) })
	time.Sleep(10 * hurry) // until nobody is asked any more: no other node is known, so that none fails
	if p.resolve(&core.Error{Leader: 1}) != p.target(1) || p.target(1) == nil {
		t.Error("a node that is reached is not believed to lead")
	}
	n.says.Store(told(3, here, dead))
	if p.resolve(&core.Error{Leader: 2}) != nil {
		t.Error("a node that is not known is believed to lead")
	}
	soon("a link to the node that was not known", func() bool { return p.target(2) != nil })
	if p.resolve(&core.Error{Leader: 2}) != nil {
		t.Error("a node that is known, and not reached, is believed to lead")
	}
}
