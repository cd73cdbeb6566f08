package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// decreeMachines are those that Decree runs.
var decreeMachines = []machine{noop, kv, ledger}

// decreeCluster is three nodes with their own directories, over loopback TCP.
type decreeCluster struct {
	cluster *rsm.Cluster
	leaders []atomic.Pointer[rsm.Shard]
	stamp   bool // commands need ids of their own
}

func startDecree(ctx context.Context, o options) (System, error) {
	return startDecreeCluster(ctx, o, nil)
}

func startDecreeCluster(ctx context.Context, o options, services func(*rsm.Node, grpc.ServiceRegistrar)) (*decreeCluster, error) {
	cfg := rsm.ClusterConfig{
		Name: "bench", Dir: o.Dir,
		Configure: func(c *rsm.Config) {
			c.Services = services
			// As for every system here: an election timeout of one second.
			c.HeartbeatInterval, c.ElectionTimeout = 100*time.Millisecond, time.Second
			c.KeepGOMAXPROCS = true
		},
	}
	for shard := range o.Shards {
		cfg.Shards = append(cfg.Shards, rsm.ShardConfig{ID: rsm.ShardID(shard + 1), Machine: decreeMachine(o.Machine)})
	}
	cluster, err := rsm.StartCluster(cfg)
	if err != nil {
		return nil, err
	}
	c := &decreeCluster{cluster: cluster, leaders: make([]atomic.Pointer[rsm.Shard], o.Shards), stamp: o.Machine == ledger}
	for shard := range o.Shards {
		if err := c.findLeader(ctx, shard); err != nil {
			return nil, errors.Join(err, cluster.Close())
		}
	}
	return c, nil
}

func (c *decreeCluster) findLeader(ctx context.Context, shard int) error {
	id := rsm.ShardID(shard + 1)
	n, err := c.cluster.Leader(ctx, id)
	if err != nil {
		return err
	}
	c.leaders[shard].Store(n.Shard(id))
	return nil
}

// follow looks for the leader again after a call that certainly did not happen; others are the caller's errors.
func (c *decreeCluster) follow(ctx context.Context, shard int, err error) error {
	if !errors.Is(err, rsm.ErrNotProposed) || ctx.Err() != nil {
		return err
	}
	return c.findLeader(ctx, shard)
}

func (c *decreeCluster) Write(ctx context.Context, shard int, command []byte) error {
	if c.stamp {
		command = stamped(command)
	}
	for {
		_, err := c.leaders[shard].Load().Submit(ctx, command)
		if err == nil {
			return nil
		}
		if err := c.follow(ctx, shard, err); err != nil {
			return err
		}
	}
}

func (c *decreeCluster) StartWrite(ctx context.Context, shard int, command []byte) (func(context.Context) error, error) {
	if c.stamp {
		command = stamped(command)
	}
	call := c.leaders[shard].Load().Go(rsm.Request{Commands: [][]byte{command}})
	return func(ctx context.Context) error {
		_, err := call.Wait(ctx)
		return err
	}, nil
}

func (c *decreeCluster) Read(ctx context.Context, shard int, key []byte) error {
	for {
		_, err := c.leaders[shard].Load().Read(ctx, rsm.Linearizable, key)
		if err == nil {
			return nil
		}
		if err := c.follow(ctx, shard, err); err != nil {
			return err
		}
	}
}

func (c *decreeCluster) StartRead(ctx context.Context, shard int, key []byte) (func(context.Context) error, error) {
	call := c.leaders[shard].Load().GoRead(rsm.Linearizable, 0, key)
	return func(ctx context.Context) error {
		_, err := call.Wait(ctx)
		return err
	}, nil
}

func (c *decreeCluster) Fsyncs() (n int64) {
	for _, node := range c.cluster.Nodes() {
		st, err := node.Status()
		if err != nil {
			return -1
		}
		n += int64(st.LogFsyncs)
	}
	return n
}

func (c *decreeCluster) Close() error { return c.cluster.Close() }

// decreeMachine returns the replicated state machine of a name.
func decreeMachine(m machine) rsm.Machine {
	switch m {
	case kv:
		return decreeKV{}
	case ledger:
		return book.Machine{}
	default:
		return decreeNoop{}
	}
}

// decreeNoop replicates the command as its event, and changes nothing: what dragonboat's no-op machine does.
type decreeNoop struct{}

func (decreeNoop) Decide(_ rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	return [][]byte{c.Data}, nil, nil
}
func (decreeNoop) Apply(rsm.State, rsm.Event)             {}
func (decreeNoop) Query(rsm.View, []byte) ([]byte, error) { return nil, nil }

// decreeKV is a map: eight bytes of key, and a value.
type decreeKV struct{}

func (decreeKV) Decide(_ rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	return [][]byte{c.Data}, nil, nil
}
func (decreeKV) Apply(s rsm.State, e rsm.Event) { s.Set(e.Data[:keySize], e.Data[keySize:]) }
func (decreeKV) Query(v rsm.View, key []byte) ([]byte, error) {
	value, _ := v.Get(key)
	return value, nil
}
