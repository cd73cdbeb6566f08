package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/flags"
	"github.com/decree-raft/decree/rsm/sideport"
)

// proxyConfig is what the flags of a proxy say.
type proxyConfig struct {
	nodes     []string
	api, http string
	pprof     bool
	flags.Port
	flags.Nodes
}

func runProxy(ctx context.Context, c console, args []string) error {
	f := newFlags(c, "proxy", `

Runs a proxy until it is interrupted: the ledger's whole API, gRPC and HTTP/JSON, without a node. It sends every call to
whoever leads, and lets calls wait through an election, so that its clients notice nothing but a slow answer.

It keeps no state: run as many as you like, and give clients the addresses of all. When one ends, they go on with another.
An audit and a status are those of one node, so ask the nodes themselves; "ledger verify" does.

  ledger proxy -nodes 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 -api 127.0.0.1:7200 -http 127.0.0.1:7300
  ledger load -api 127.0.0.1:7200
  curl '127.0.0.1:7300/v1/accounts?prefix=Assets'
`)
	nodes := f.String("nodes", defaultPeers, "`addresses` of nodes for each other (their -peers), separated by commas: some, from which the others are learned")
	var cfg proxyConfig
	f.StringVar(&cfg.api, "api", "127.0.0.1:7200", "`address` (host:port) for gRPC, of the ledger and of decree.v1")
	f.StringVar(&cfg.http, "http", "127.0.0.1:7300", "`address` (host:port) for HTTP/JSON, and for /metrics, /healthz and /readyz")
	f.BoolVar(&cfg.pprof, "pprof", false, "offer profiles over HTTP, under /debug/pprof/, to whoever reaches it")
	cfg.Port.Bind(f)
	cfg.Nodes.Bind(f)
	if err := parse(f, args, 0); err != nil {
		return err
	}
	cfg.nodes = splitAddresses(*nodes)
	p, err := startProxy(cfg, slog.New(slog.NewTextHandler(c.err, nil)))
	if err != nil {
		return err
	}
	return p.run(ctx)
}

// servedProxy is a proxy without a node.
type servedProxy struct {
	*front
	log *slog.Logger
}

// startProxy takes both ports, or leaves nothing behind. It need not find a node yet.
func startProxy(cfg proxyConfig, log *slog.Logger) (*servedProxy, error) {
	metrics := sideport.NewRegistry()
	port, err := cfg.Port.Access(log)
	if err != nil {
		return nil, err
	}
	nodes, token, err := cfg.Nodes.Proxy(log)
	if err != nil {
		return nil, err
	}
	f, err := openFront(frontConfig{
		api: cfg.api, http: cfg.http, access: port,
		proxy:   proxy.Config{Nodes: cfg.nodes, TLS: nodes, Credentials: token, Logger: log, Metrics: metrics},
		service: server.Config{Logger: log},
		side:    sideport.Config{Metrics: metrics, Pprof: cfg.pprof, Logger: log},
	})
	if err != nil {
		return nil, err
	}
	return &servedProxy{f, log}, nil
}

// run serves until ctx ends or something fails, and then lets the calls under way end.
func (p *servedProxy) run(ctx context.Context) error {
	p.log.Info("serving", "grpc", p.server.Addr(), "http", p.listener.Addr().String())
	failed := make(chan error, 1)
	go func() { failed <- p.serve() }()
	var err error
	select {
	case <-ctx.Done():
		p.log.Info("stopping")
	case err = <-failed:
	}
	return errors.Join(err, p.stop())
}
