package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
	"github.com/decree-raft/decree/rsm/sideport"
)

// pulseInterval is how promptly the balances of expired entries are released.
const pulseInterval = time.Second

func runServe(ctx context.Context, c console, args []string) error {
	cfg, err := parseServe(c, args)
	if err != nil {
		return err
	}
	n, err := startNode(cfg, slog.New(slog.NewTextHandler(c.err, nil)))
	if err != nil {
		return err
	}
	return n.run(ctx)
}

// servedNode is a node of the cluster, with a proxy in front of it that answers for all of them.
type servedNode struct {
	cfg   serveConfig
	log   *slog.Logger
	node  *rsm.Node
	front *front
}

// startNode opens the data and takes all ports, or leaves nothing behind.
func startNode(cfg serveConfig, log *slog.Logger) (*servedNode, error) {
	metrics := sideport.NewRegistry()
	port, err := cfg.Port.Access(log)
	if err != nil {
		return nil, err
	}
	peers, err := cfg.Nodes.TLS(log)
	if err != nil {
		return nil, err
	}
	nodeTLS, token, err := cfg.Nodes.Proxy(log)
	if err != nil {
		return nil, err
	}
	node, err := rsm.Start(rsm.Config{
		Cluster: cfg.Cluster, Node: cfg.Node, Dir: cfg.Dir, Peers: cfg.Peers, TLS: peers, Insecure: cfg.Insecure,
		Shards:          []rsm.ShardConfig{{ID: shardID, Machine: book.Machine{OldProgram: cfg.OldProgram}, Join: cfg.Join, Voters: cfg.Voters}},
		ElectionTimeout: time.Duration(cfg.ElectionTimeout),
		Services: func(n *rsm.Node, r grpc.ServiceRegistrar) {
			admin.Checked(port.Policy)(n, r) // for the command decree
			proxy.Checked(port.Policy)(n, r) // for the other nodes' proxies
		},
		Logger: log, Metrics: metrics,
	})
	if err != nil {
		return nil, explained(err)
	}
	var others []string
	for id, address := range cfg.Peers {
		if id != cfg.Node {
			others = append(others, address)
		}
	}
	f, err := openFront(frontConfig{
		api: cfg.API[cfg.Node], http: cfg.HTTP[cfg.Node], access: port,
		proxy:   proxy.Config{Node: node, Nodes: others, TLS: nodeTLS, Credentials: token, Logger: log, Metrics: metrics},
		service: server.Config{Node: cfg.Node, Replica: node.Shard(shardID), API: cfg.API, Logger: log},
		side:    sideport.Config{Ready: node.Ready, Metrics: metrics, Pprof: cfg.Pprof, Logger: log},
	})
	if err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return &servedNode{cfg, log, node, f}, nil
}

// run serves until ctx ends or something fails, and then stops in order: no new calls, the rest of the calls,
// leadership handed over, the files.
func (n *servedNode) run(ctx context.Context) error {
	n.log.Info("serving", "node", uint64(n.cfg.Node), "grpc", n.cfg.API[n.cfg.Node], "http", n.cfg.HTTP[n.cfg.Node], "dir", n.cfg.Dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- n.front.serve() }()
	go n.front.service.RunPulse(ctx, pulseInterval)
	var err error
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
	case err = <-failed:
	case <-n.node.Done():
		err = fmt.Errorf("the node has stopped: %w", n.node.Err())
	}
	return errors.Join(err, n.front.stop(), n.node.Close())
}
