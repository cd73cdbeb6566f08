package proxy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// counters is the machine of these tests: a command names a key and adds one to it, the reply is the sum.
type counters struct{}

func (counters) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if string(c.Data) == "reject" {
		return nil, nil, &rsm.Rejection{Code: "as_told", Message: "no", Detail: []byte("detail")}
	}
	return [][]byte{c.Data}, binary.BigEndian.AppendUint64(nil, number(v, c.Data)+1), nil
}

func (counters) Apply(s rsm.State, e rsm.Event) {
	s.Set(e.Data, binary.BigEndian.AppendUint64(nil, number(s, e.Data)+1))
}

func (counters) Query(v rsm.View, q []byte) ([]byte, error) {
	return binary.BigEndian.AppendUint64(nil, number(v, q)), nil
}

func number(v rsm.View, key []byte) uint64 {
	b, _ := v.Get(key)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// add is a request that adds one to a key.
func add(key string) rsm.Request { return rsm.Request{Commands: [][]byte{[]byte(key)}} }

// within ends what hangs: it is far more than anything takes.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// startCluster starts a cluster whose leaders are replaced soon: for tests in which they go. Others use startCalm.
func startCluster(t testing.TB, options ...func(*rsm.Config)) *rsm.Cluster {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{Dir: t.TempDir(), Shards: []rsm.ShardConfig{{ID: 1, Machine: counters{}}, {ID: 2, Machine: counters{}}},
		Configure: func(cfg *rsm.Config) {
			cfg.HeartbeatInterval, cfg.ElectionTimeout, cfg.DiskWatermark = 20*time.Millisecond, 200*time.Millisecond, -1
			if testkit.Race {
				cfg.ElectionTimeout *= 3
			}
			cfg.Services = proxy.Register
			for _, o := range options {
				o(cfg)
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// startOne starts a cluster of one node; no name means the default one.
func startOne(t *testing.T, name string, m rsm.Machine) *rsm.Node {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{Name: name, Dir: t.TempDir(), Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: m}},
		Configure: func(cfg *rsm.Config) { cfg.DiskWatermark, cfg.Services = -1, proxy.Register }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.Node(1)
}

func startProxy(t testing.TB, cfg proxy.Config) (*proxy.Proxy, *proxy.Server) {
	t.Helper()
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return p, s
}

func dial(t testing.TB, addresses ...string) *client.Client {
	t.Helper()
	c, err := client.Dial(addresses, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// anyNode is one address: the proxy learns the others.
func anyNode(c *rsm.Cluster) []string { return []string{c.Nodes()[1].Addr()} }

func sum(t testing.TB, reply []byte, err error) uint64 {
	t.Helper()
	if err != nil || len(reply) != 8 {
		t.Fatalf("got %v, %v", reply, err)
	}
	return binary.BigEndian.Uint64(reply)
}

// Without a majority a call ends at its deadline, and says that nobody leads: what changes something as what reads.
//
// Mutations with which it was seen to fail: a call that only waited says nothing of what for; the deadline is no cause.
func TestDeadlineWithoutAMajority(t *testing.T) {
	c := startCluster(t)
	leader, err := c.Leader(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	var left *rsm.Node
	for _, n := range c.Nodes() { // the one that stays does not lead: who has lost its majority takes calls for a while
		if n != leader {
			left = n
		}
	}
	for _, n := range c.Nodes() {
		if n != left {
			c.Kill(n.ID())
		}
	}
	p, _ := startProxy(t, proxy.Config{Nodes: []string{left.Addr()}})
	s := p.Shard(1)
	for name, call := range map[string]func(context.Context) error{
		"submit":  func(ctx context.Context) error { _, err := s.Do(ctx, add("a")); return err },
		"session": func(ctx context.Context) error { _, err := s.OpenSession(ctx); return err },
		"read":    func(ctx context.Context) error { _, err := s.Read(ctx, rsm.Linearizable, []byte("a")); return err },
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		err := call(ctx)
		cancel()
		if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeNoLeader}) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "shard 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who calls within the proxy's process, and has left before, has nobody asked, and knows that.
//
// Mutation with which it was seen to fail: contexts are not looked at first.
func TestShardWithAnEndedContext(t *testing.T) {
	n := startOne(t, "", counters{})
	p, _ := startProxy(t, proxy.Config{Node: n})
	s := p.Shard(1)
	if _, err := s.Do(within(t), add("a")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 {
		_, err := s.Do(ctx, add("a"))
		if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeCancelled}) || !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	res, err := s.Do(within(t), add("a"))
	if err != nil || binary.BigEndian.Uint64(res.Replies[0]) != 2 {
		t.Errorf("%v, %v", res, err)
	}
}

// A client of a proxy is told the same: the proxy, and not it, knows what is missing. That the command was never proposed is known then, too.
//
// Mutations with which it was seen to fail: the proxy ends what waits at the deadline, as the client does; a client asks again until then; the leader that is not reached has no name.
func TestDeadlineThroughAProxy(t *testing.T) {
	c := startCluster(t)
	leader, err := c.Leader(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(slices.Clone(c.Nodes()), func(n *rsm.Node) bool { return n == leader })
	p, s := startProxy(t, proxy.Config{Nodes: []string{others[0].Addr()}})
	open := dial(t, s.Addr()).Shard(1)
	if _, err := open.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*rsm.Node{others[1], leader} {
		c.Kill(n.ID())
	}
	for p.Leads(1) {
		time.Sleep(time.Millisecond)
	}
	first := dial(t, s.Addr()).Shard(1)
	why := fmt.Sprintf("node %d, which leads shard 1 as far as is known, is not reached", leader.ID())
	for _, wait := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second} {
		for name, call := range map[string]func(context.Context) error{
			"submit":  func(ctx context.Context) error { _, err := open.Submit(ctx, []byte("a")); return err },
			"session": func(ctx context.Context) error { _, err := first.Submit(ctx, []byte("a")); return err },
			"read":    func(ctx context.Context) error { _, err := open.Read(ctx, rsm.Linearizable, []byte("a")); return err },
		} {
			told := func(err error) bool {
				return errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeNoLeader}) && errors.Is(err, context.DeadlineExceeded) && strings.Contains(err.Error(), why)
			}
			var err error
			for range 50 { // the proxy says so some milliseconds before, which may not be enough here
				ctx, cancel := context.WithTimeout(context.Background(), wait)
				err = call(ctx)
				cancel()
				if told(err) {
					break
				}
			}
			if !told(err) {
				t.Errorf("%s within %v: %v", name, wait, err)
			}
		}
	}
}

// What MaxCommandBytes allows beyond 8 MiB is for the program that hosts the node: a proxy refuses it in words that say so.
func TestCommandThatNoProxyTakes(t *testing.T) {
	c := startCalm(t, func(cfg *rsm.Config) { cfg.Limits = rsm.Limits{MaxCommandBytes: 10 << 20, MaxEntryBytes: 16 << 20} })
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	command := make([]byte, 9<<20) // too long for a key, which is for the leader to say
	if _, err := c.Client(1).Submit(within(t), command); !errors.Is(err, &rsm.Rejection{Code: rsm.CodeKeyTooLarge}) {
		t.Errorf("within the program: %v", err)
	}
	_, err := p.Shard(1).Do(within(t), rsm.Request{Commands: [][]byte{command}})
	_, far := dial(t, s.Addr()).Shard(1).Submit(within(t), command)
	for name, err := range map[string]error{"proxy": err, "client": far} {
		if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeCommandTooLarge}) || !strings.Contains(err.Error(), "MaxCommandBytes") {
			t.Errorf("through a %s: %v", name, err)
		}
	}
}

// A command and each kind of read go through a proxy to any shard, whoever leads it; and with nodes for addresses, to the leader by its hint.
func TestThrough(t *testing.T) {
	c := startCalm(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	_, embedded := startProxy(t, proxy.Config{Node: c.Nodes()[2]})
	var nodes []string
	for _, n := range c.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	n := uint64(0)
	for name, addresses := range map[string][]string{"proxy": {s.Addr()}, "embedded proxy": {embedded.Addr()}, "nodes": nodes} {
		cl := dial(t, addresses...)
		for _, shard := range []rsm.ShardID{1, 2} {
			sh := cl.Shard(shard)
			for i := range uint64(20) {
				reply, err := sh.Submit(within(t), []byte("a"))
				if got := sum(t, reply, err); got != n+i+1 {
					t.Fatalf("%s: command %d of shard %d: got %d, want %d", name, i, shard, got, n+i+1)
				}
			}
			for _, level := range []rsm.Level{rsm.Linearizable, rsm.ReadIndex, rsm.AtToken} {
				answer, err := sh.Read(within(t), level, []byte("a"))
				if got := sum(t, answer, err); got != n+20 {
					t.Errorf("%s: a read at level %v gives %d, want %d", name, level, got, n+20)
				}
			}
			if res, err := sh.ReadAt(within(t), rsm.Stale, 0, []byte("a")); err != nil || res.Index == 0 {
				t.Errorf("%s: a stale read: %v, %v", name, res, err)
			}
			_, err := sh.Submit(within(t), []byte("reject"))
			var r *rsm.Rejection
			if !errors.As(err, &r) || r.Code != "as_told" || r.Message != "no" || string(r.Detail) != "detail" {
				t.Errorf("%s: a rejection came as %v", name, err)
			}
			if replies, err := sh.SubmitAll(within(t), []byte("b"), []byte("b"), nil); err != nil || len(replies) != 3 {
				t.Errorf("%s: several commands: %v, %v", name, replies, err)
			}
			if err := sh.Close(within(t)); err != nil {
				t.Errorf("%s: closing the session: %v", name, err)
			}
		}
		n += 20
	}
}

// Thousands of commands are under way from one goroutine.
func TestInFlight(t *testing.T) {
	c := startCalm(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	sh := dial(t, s.Addr()).Shard(1)
	var pending []*client.Pending
	for range 10_000 {
		pending = append(pending, sh.Go(within(t), add("a")))
	}
	seen := map[uint64]bool{}
	for _, p := range pending {
		replies, err := p.Wait(within(t))
		if err != nil {
			t.Fatal(err)
		}
		seen[sum(t, replies[0], nil)] = true
	}
	if len(seen) != 10_000 || !seen[10_000] {
		t.Errorf("%d different outcomes", len(seen))
	}
}

var holdFlag = flag.Bool("hold", false, "run TestNobodyNotices for two minutes, with 200 clients")

// Leaders are killed and proxies too, and no client sees anything but latency [G12].
func TestNobodyNotices(t *testing.T) {
	c := startCluster(t)
	var nodes []string
	for _, n := range c.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	type running struct {
		p *proxy.Proxy
		s *proxy.Server
	}
	start := func(listen string) running {
		p, err := proxy.New(proxy.Config{Nodes: nodes})
		if err != nil {
			t.Fatal(err)
		}
		return running{p, serveAt(t, p, listen)}
	}
	proxies := []running{start("127.0.0.1:0"), start("127.0.0.1:0")}
	defer func() {
		for _, r := range proxies {
			r.s.Close()
			r.p.Close()
		}
	}()
	addresses := []string{proxies[0].s.Addr(), proxies[1].s.Addr()}
	clients, rounds, period, proxyEvery := 20, 4, 900*time.Millisecond, 1
	switch {
	case *holdFlag:
		clients, rounds, period, proxyEvery = 200, 40, 3*time.Second, 10 // each proxy twice
	case testing.Short():
		rounds = 2
	}
	acked := make([]uint64, clients)
	slowest := make([]time.Duration, clients)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		sh := dial(t, addresses...).Shard(rsm.ShardID(i%2 + 1))
		wg.Go(func() {
			key := fmt.Appendf(nil, "client %d", i)
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
				began := time.Now()
				reply, err := sh.Submit(ctx, key)
				cancel()
				slowest[i] = max(slowest[i], time.Since(began))
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				acked[i]++
				if got := binary.BigEndian.Uint64(reply); got != acked[i] {
					t.Errorf("client %d: command %d was the %d. to happen", i, acked[i], got)
					return
				}
			}
		})
	}
	kills := 0
	for round := range rounds {
		time.Sleep(period / 3)
		leader, err := c.Leader(within(t), rsm.ShardID(round%2+1))
		if err != nil {
			t.Fatal(err)
		}
		c.Kill(leader.ID())
		time.Sleep(period / 3)
		if (round+1)%proxyEvery == 0 {
			r := &proxies[kills%2]
			kills++
			r.s.Close()
			r.p.Close()
			*r = start(r.s.Addr())
		}
		time.Sleep(period / 3)
		if err := c.Restart(leader.ID()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(period / 3)
	close(stop)
	wg.Wait()
	for i, n := range acked {
		answer, err := c.Client(rsm.ShardID(i%2+1)).Read(within(t), rsm.Linearizable, fmt.Appendf(nil, "client %d", i))
		if got := sum(t, answer, err); got != n {
			t.Errorf("client %d: %d acknowledged, %d happened", i, n, got)
		}
		if n == 0 {
			t.Errorf("client %d got nothing done", i)
		}
	}
	t.Logf("%d clients, %d leaders and %d proxies killed: each had %d to %d commands acknowledged, the slowest took %v",
		clients, rounds, kills, slices.Min(acked), slices.Max(acked), slices.Max(slowest))
}
