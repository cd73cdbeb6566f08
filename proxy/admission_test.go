package proxy_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
)

// crowd is calls to servers of one proxy whose node does not answer until it is let go.
type crowd struct {
	t       *testing.T
	p       *proxy.Proxy
	all     func() map[string]float64
	servers []*proxy.Server
	work    float64 // calls that are to be at work, at all servers
	wg      sync.WaitGroup
}

func (c *crowd) serve(a proxy.Admission) *proxy.Server {
	c.t.Helper()
	s, err := c.p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Admission: a})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(s.Close)
	c.servers = append(c.servers, s)
	return s
}

func (c *crowd) client(s *proxy.Server) decreev1.DecreeServiceClient {
	return decreev1.NewDecreeServiceClient(plain(c.t, s.Addr()))
}

func query(bytes int) *decreev1.ReadRequest {
	return &decreev1.ReadRequest{Shard: 1, Level: decreev1.Level_LEVEL_STALE, Query: make([]byte, bytes)}
}

// takes has a client make so many calls, and returns when they are at work.
func (c *crowd) takes(k decreev1.DecreeServiceClient, n, bytes int) {
	c.t.Helper()
	for range n {
		c.wg.Go(func() {
			if _, err := k.Read(within(c.t), query(bytes)); err != nil {
				c.t.Errorf("a call that was to be taken: %v", err)
			}
		})
	}
	c.work += float64(n)
	const name = `decree_proxy_admission_at_work{shard="1"}`
	for until := time.Now().Add(20 * time.Second); c.all()[name] != c.work; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			c.t.Fatalf("%g calls are at work, want %g", c.all()[name], c.work)
		}
	}
}

// refuses has a client make a call that there is no room for, and sees that it was counted.
func (c *crowd) refuses(k decreev1.DecreeServiceClient, bytes int, reason string, code core.Code) {
	c.t.Helper()
	_, err := k.Read(within(c.t), query(bytes))
	if !errors.Is(wire.FromStatus(err), &core.Error{Kind: core.ErrNotProposed, Code: code}) {
		c.t.Fatalf("%s: %v", reason, err)
	}
	name := `decree_proxy_admission_refused_total{reason="` + reason + `"}`
	if n := c.all()[name]; n != 1 {
		c.t.Errorf("%s is %g after a refusal of %v", name, n, err)
	}
}

// What admission does is seen, over all servers of a proxy: the bounds that refuse, what is at work and what is allowed. What was refused is counted among the calls, and its
// microseconds are not among the times of calls: under overload they would be the median. What a server has refused still counts when it is closed.
//
// Mutations with which it was seen to fail: a server's admission is not added, or not removed; the limits, or what is at work, are those of one server; what a closed server
// refused is forgotten, or counted twice; a closed server's shards stay; refusals of unary calls have a time; what is refused for want of a shard has one.
func TestAdmissionIsSeen(t *testing.T) {
	m := newStuck()
	release := sync.OnceFunc(func() { close(m.go_) })
	n := startOne(t, "", m)
	defer release()
	registry := prometheus.NewRegistry()
	p, err := proxy.New(proxy.Config{Nodes: []string{n.Addr()}, Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	awaitReady(t, p)
	c := &crowd{t: t, p: p, all: func() map[string]float64 { return figures(t, registry) }}

	k := c.client(c.serve(proxy.Admission{ClientCalls: 8}))
	c.takes(k, 7, 1) // the eighth is for what makes room
	c.refuses(k, 1, "client_count", core.CodeOverloaded)

	k = c.client(c.serve(proxy.Admission{ClientBytes: 4 << 10}))
	c.refuses(k, 4000, "too_large", core.CodeCommandTooLarge)
	c.takes(k, 1, 2000)
	c.refuses(k, 2000, "client_bytes", core.CodeOverloaded)

	k = c.client(c.serve(proxy.Admission{MinCalls: 4}))
	c.takes(k, 4, 1)
	c.refuses(k, 1, "shard_limit", core.CodeOverloaded)

	k = c.client(c.serve(proxy.Admission{ShardCalls: 12, MinCalls: 8}))
	c.takes(k, 8, 1)
	c.refuses(k, 1, "shard_count", core.CodeOverloaded)

	k = c.client(c.serve(proxy.Admission{ShardBytes: 4 << 10}))
	c.takes(k, 1, 1500)
	c.refuses(k, 1500, "shard_bytes", core.CodeOverloaded)

	shared := c.serve(proxy.Admission{MinCalls: 16})
	c.takes(c.client(shared), 1, 1)
	k = c.client(shared)
	c.takes(k, 13, 1) // a step of two is left to the other
	c.refuses(k, 1, "fair_share", core.CodeOverloaded)

	if _, err := k.Read(within(t), &decreev1.ReadRequest{Shard: 77}); err == nil {
		t.Error("there is a shard 77")
	}
	all := c.all()
	for name, want := range map[string]float64{
		`decree_proxy_admission_limit{shard="1"}`:        3*1024 + 4 + 8 + 16,
		`decree_proxy_admission_base_seconds{shard="1"}`: 0, // nothing has been answered
	} {
		if got, is := all[name]; !is || got != want {
			t.Errorf("%s is %g (%v), want %g", name, got, is, want)
		}
	}
	release()
	c.wg.Wait()
	c.servers[0].Close()
	c.servers[0].Close()
	all = c.all()
	for name, want := range map[string]float64{
		`decree_proxy_admission_at_work{shard="1"}`:                                                       0,
		`decree_proxy_admission_refused_total{reason="client_count"}`:                                     1,
		`decree_proxy_admission_refused_total{reason="fair_share"}`:                                       1,
		`decree_proxy_calls_total{code="overloaded",kind="read",outcome="not_proposed",shard="1"}`:        6,
		`decree_proxy_calls_total{code="command_too_large",kind="read",outcome="not_proposed",shard="1"}`: 1,
		`decree_proxy_calls_total{code="no_shard",kind="read",outcome="not_proposed",shard="none"}`:       1,
		`decree_proxy_calls_total{code="",kind="read",outcome="ok",shard="1"}`:                            c.work,
		`decree_proxy_call_seconds{kind="read"}`:                                                          c.work,
	} {
		if got := all[name]; got != want {
			t.Errorf("%s is %g, want %g", name, got, want)
		}
	}
	for _, s := range c.servers {
		s.Close()
	}
	if n, is := c.all()[`decree_proxy_admission_limit{shard="1"}`]; is {
		t.Errorf("without a server there is a limit of %g", n)
	}
}

// A call on a stream that is refused is counted and has no time, as a unary one.
//
// Mutation with which it was seen to fail: every call on a stream passes for one that was taken.
func TestRefusalsOnStreamsHaveNoTime(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := startOne(t, "", counters{})
	p, _ := startProxy(t, proxy.Config{Nodes: []string{n.Addr()}, Metrics: registry})
	awaitReady(t, p)
	small, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Admission: proxy.Admission{ClientBytes: 4 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(small.Close)
	_, err = dial(t, small.Addr()).Shard(1).Read(within(t), rsm.Linearizable, make([]byte, 4000))
	if !errors.Is(err, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeCommandTooLarge}) {
		t.Fatal(err)
	}
	all := figures(t, registry)
	calls, took := all[`decree_proxy_calls_total{code="command_too_large",kind="read",outcome="not_proposed",shard="1"}`], all[`decree_proxy_call_seconds{kind="read"}`]
	if calls != 1 || took != 0 {
		t.Errorf("%g calls were refused, and %g have a time", calls, took)
	}
}
