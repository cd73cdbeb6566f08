package main

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// proxyConnections is how many clients, each with a connection of its own, share the callers.
const proxyConnections = 16

// proxiedCluster is Decree as clients in other processes use it: over loopback to a proxy, and over loopback from there to the node that leads. All
// of it in this process, so that the processors are counted for all of it.
type proxiedCluster struct {
	*decreeCluster
	proxy   *proxy.Proxy
	server  *proxy.Server
	clients []*client.Client
	next    atomic.Uint64
}

// startProxied has a proxy that stands by itself.
func startProxied(ctx context.Context, o options) (System, error) {
	return startThrough(ctx, o, func(c *decreeCluster) (proxy.Config, error) {
		return proxy.Config{Nodes: []string{c.cluster.Nodes()[0].Addr()}}, nil
	})
}

// startNodeProxied has the proxy within the node that leads the first shard, as small clusters do: there is no way between the two.
func startNodeProxied(ctx context.Context, o options) (System, error) {
	return startThrough(ctx, o, func(c *decreeCluster) (proxy.Config, error) {
		leader, err := c.cluster.Leader(ctx, 1)
		return proxy.Config{Node: leader}, err
	})
}

func startThrough(ctx context.Context, o options, configure func(*decreeCluster) (proxy.Config, error)) (System, error) {
	c, err := startDecreeCluster(ctx, o, proxy.Register)
	if err != nil {
		return nil, err
	}
	p := &proxiedCluster{decreeCluster: c}
	cfg, err := configure(c)
	if err == nil {
		p.proxy, err = proxy.New(cfg)
	}
	if err == nil {
		p.server, err = p.proxy.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0"})
	}
	for range proxyConnections {
		var cl *client.Client
		if err == nil {
			cl, err = client.Dial([]string{p.server.Addr()}, client.Options{})
		}
		if err == nil {
			p.clients = append(p.clients, cl)
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// shard spreads the callers over the connections.
func (p *proxiedCluster) shard(shard int) *client.Shard {
	return p.clients[p.next.Add(1)%proxyConnections].Shard(rsm.ShardID(shard + 1))
}

func (p *proxiedCluster) Write(ctx context.Context, shard int, command []byte) error {
	if p.stamp {
		command = stamped(command)
	}
	_, err := p.shard(shard).Submit(ctx, command)
	return err
}

func (p *proxiedCluster) StartWrite(ctx context.Context, shard int, command []byte) (func(context.Context) error, error) {
	if p.stamp {
		command = stamped(command)
	}
	pending := p.shard(shard).Go(ctx, rsm.Request{Commands: [][]byte{command}})
	return func(ctx context.Context) error {
		_, err := pending.Wait(ctx)
		return err
	}, nil
}

func (p *proxiedCluster) Read(ctx context.Context, shard int, key []byte) error {
	_, err := p.shard(shard).Read(ctx, rsm.Linearizable, key)
	return err
}

func (p *proxiedCluster) StartRead(ctx context.Context, shard int, key []byte) (func(context.Context) error, error) {
	pending := p.shard(shard).GoRead(ctx, rsm.Linearizable, key)
	return func(ctx context.Context) error {
		_, err := pending.Wait(ctx)
		return err
	}, nil
}

func (p *proxiedCluster) Close() error {
	for _, c := range p.clients {
		c.Close()
	}
	if p.server != nil {
		p.server.Close()
	}
	if p.proxy != nil {
		p.proxy.Close()
	}
	return p.decreeCluster.Close()
}
