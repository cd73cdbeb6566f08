package main

import (
	"context"
	"sync/atomic"

	"github.com/decree-raft/decree/rsm"
)

// sessionCluster is Decree as callers in its own process use it who want each command exactly once, as every client behind a proxy does: 16 rsm.Clients for each
// shard, as there are 16 connections there. A client waits for each command, so that StartWrite has no more in flight than Write. Reads are the embedded ones.
type sessionCluster struct {
	*decreeCluster
	clients [][]*rsm.Client // by shard
	next    atomic.Uint64
}

func startSessions(ctx context.Context, o options) (System, error) {
	c, err := startDecreeCluster(ctx, o, nil)
	if err != nil {
		return nil, err
	}
	s := &sessionCluster{decreeCluster: c}
	for shard := range o.Shards {
		clients := make([]*rsm.Client, proxyConnections)
		for i := range clients {
			clients[i] = c.cluster.Client(rsm.ShardID(shard + 1))
		}
		s.clients = append(s.clients, clients)
	}
	return s, nil
}

func (s *sessionCluster) Write(ctx context.Context, shard int, command []byte) error {
	if s.stamp {
		command = stamped(command)
	}
	_, err := s.clients[shard][s.next.Add(1)%proxyConnections].Submit(ctx, command)
	return err
}

func (s *sessionCluster) StartWrite(ctx context.Context, shard int, command []byte) (func(context.Context) error, error) {
	err := s.Write(ctx, shard, command)
	return func(context.Context) error { return err }, nil
}
