package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
	"github.com/decree-raft/decree/rsm/sideport"
)

// pulseInterval is how promptly the balances of expired entries are released.
const pulseInterval = time.Second

// maxStreams bounds the calls of one gRPC connection that are at work at once.
const maxStreams = 2048

// stopPatience is how long calls under way may take when the node stops.
const stopPatience = 2 * time.Second

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

// servedNode is a node of the cluster with its two servers.
type servedNode struct {
	cfg       serveConfig
	log       *slog.Logger
	node      *rsm.Node
	service   *server.Server
	grpc      *grpc.Server
	http      *http.Server
	listeners [2]net.Listener // of grpc and http
}

// startNode takes all ports and opens the data, or leaves nothing behind.
func startNode(cfg serveConfig, log *slog.Logger) (*servedNode, error) {
	n := &servedNode{cfg: cfg, log: log}
	metrics := sideport.NewRegistry()
	err := n.listen()
	if err == nil {
		n.node, err = rsm.Start(rsm.Config{
			Cluster: cfg.Cluster, Node: cfg.Node, Dir: cfg.Dir, Peers: cfg.Peers,
			Shards:          []rsm.ShardConfig{{ID: shardID, Machine: book.Machine{OldProgram: cfg.OldProgram}}},
			ElectionTimeout: time.Duration(cfg.ElectionTimeout),
			Services:        admin.Register, // for the command decree
			Logger:          log, Metrics: metrics,
		})
	}
	if err != nil {
		return nil, errors.Join(err, n.closeListeners())
	}
	n.service = server.New(server.Config{
		Node: cfg.Node, Replica: n.node.Shard(shardID), API: cfg.API, HTTP: cfg.HTTP, Logger: log,
	})
	n.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(server.MaxBodyBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: client.KeepaliveTime / 2, PermitWithoutStream: true}))
	ledgerv1.RegisterLedgerServiceServer(n.grpc, n.service)
	healthv1.RegisterHealthServer(n.grpc, health.NewServer())
	reflection.Register(n.grpc)
	mux := http.NewServeMux()
	mux.Handle("/v1/", n.service.HTTP())
	mux.Handle("/", sideport.Handler(sideport.Config{Ready: n.node.Ready, Metrics: metrics, Pprof: cfg.Pprof, Logger: log}))
	n.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout: 30 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute} // an audit takes its time
	return n, nil
}

func (n *servedNode) listen() (err error) {
	for i, address := range []string{n.cfg.API[n.cfg.Node], n.cfg.HTTP[n.cfg.Node]} {
		if n.listeners[i], err = net.Listen("tcp", address); err != nil {
			return err
		}
	}
	return nil
}

func (n *servedNode) closeListeners() error {
	var errs []error
	for _, l := range n.listeners {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// run serves until ctx ends or something fails, and then stops in order:
// no new calls, leadership handed over, the rest of the calls, the files.
func (n *servedNode) run(ctx context.Context) error {
	n.log.Info("serving", "node", uint64(n.cfg.Node), "grpc", n.cfg.API[n.cfg.Node], "http", n.cfg.HTTP[n.cfg.Node], "dir", n.cfg.Dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() { failed <- n.grpc.Serve(n.listeners[0]) }()
	go func() { failed <- n.http.Serve(n.listeners[1]) }()
	go n.service.RunPulse(ctx, pulseInterval)
	var err error
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
	case err = <-failed:
	case <-n.node.Done():
		err = fmt.Errorf("the node has stopped: %w", n.node.Err())
	}
	return errors.Join(err, n.stop())
}

func (n *servedNode) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		n.grpc.GracefulStop()
	}()
	err := n.http.Shutdown(ctx)
	select {
	case <-drained:
	case <-ctx.Done():
		n.grpc.Stop()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = n.http.Close()
	}
	return errors.Join(err, n.node.Close())
}
