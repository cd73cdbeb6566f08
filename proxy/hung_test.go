package proxy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
)

// hangs is a machine that hangs in a decision when it is told so, as a read of a dead disk would.
type hangs struct {
	counters
	in, out chan struct{}
}

func (m hangs) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if string(c.Data) == "hang" {
		m.in <- struct{}{}
		<-m.out
	}
	return m.counters.Decide(v, c)
}

func one(command string) rsm.Request { return rsm.Request{Commands: [][]byte{[]byte(command)}} }

// A node whose worker does not return from a decision is led by others soon, which its own proxy learns, and proxies that ask it are answered. A proxy closes,
// whatever its node does.
func TestProxyOfANodeThatHangs(t *testing.T) {
	m := hangs{in: make(chan struct{}), out: make(chan struct{})}
	c := startCluster(t, func(cfg *rsm.Config) {
		cfg.Workers = 1
		for i := range cfg.Shards {
			cfg.Shards[i].Machine = m
		}
	})
	t.Cleanup(func() { close(m.out) })
	// One that hangs while it leads: on a busy machine another may have come to lead before.
	var n *rsm.Node
	var p *proxy.Proxy
	for hangs := false; !hangs; {
		var err error
		if n, err = c.Leader(within(t), 1); err != nil {
			t.Fatal(err)
		}
		if p, err = proxy.New(proxy.Config{Node: n, Refresh: 50 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		defer soon(t, "closing the proxy", p.Close)
		if _, err := p.Shard(1).Do(within(t), one("a")); err != nil && !errors.Is(err, rsm.ErrUnknown) {
			t.Fatal(err)
		}
		call, refused := n.Shard(1).Go(one("hang")), make(chan struct{})
		go func() {
			defer close(refused)
			_, _ = call.Wait(within(t)) // it does not lead; or it hangs
		}()
		select {
		case <-m.in:
			hangs = true
		case <-refused:
		}
	}
	// A call that the node was given before others led is with its worker.
	through := func(p *proxy.Proxy, shard rsm.ShardID) {
		t.Helper()
		for patience := 500 * time.Millisecond; ; patience *= 2 {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			_, err := p.Shard(shard).Do(ctx, one("b"))
			cancel()
			if err == nil {
				return
			} else if patience > 20*time.Second {
				t.Fatalf("shard %d: %v", shard, err)
			}
		}
	}
	through(p, 1)
	through(p, 2) // it has the same worker
	var later *proxy.Proxy
	var err error
	soon(t, "a new proxy", func() { later, err = proxy.New(proxy.Config{Node: n}) })
	if err != nil {
		t.Fatal(err)
	}
	through(later, 1)
	soon(t, "closing a new proxy", later.Close)
	// It is asked from elsewhere, too.
	topology, err := decreev1.NewDecreeServiceClient(plain(t, n.Addr())).GetTopology(within(t), &decreev1.GetTopologyRequest{})
	if err != nil || len(topology.Shards) != 2 || len(topology.Nodes) != 3 {
		t.Errorf("the node knows %v; %v", topology, err)
	}
}
