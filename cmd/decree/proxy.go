package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/flags"
	"github.com/decree-raft/decree/rsm/sideport"
)

func proxyCommand() *command {
	return &command{
		name: "proxy", offline: true, own: true,
		summary: "stand between clients and nodes, so that nobody notices a change of leader",
		help: `Runs a proxy until it is interrupted: clients connect to it, and it sends every call to whoever leads the shard. Calls wait
through an election and are sent again if that does no harm, so a change of leader is nothing but latency to a client.

Proxies keep no state: run as many as you like, beside the clients or in front of the nodes, and give clients the addresses
of all of them. -nodes needs one node that is up; the others are learned from it. The nodes offer the protocol on their own
port (proxy.Register).

-http serves /metrics for Prometheus, /healthz, and /readyz, which says what is missing.

It listens on this machine alone unless -listen says otherwise, and then wants -tls-cert and -tls-key. With -client-ca only
clients with a certificate are listened to. Certificates are read again when they change.

On the first SIGTERM or SIGINT it takes no new calls, waits for those under way, up to -drain, and ends; on the second it
ends at once. Clients go on with another proxy, under the same sessions.

-config names a file with the same settings as a JSON object, like {"nodes": "10.0.0.1:7100", "drain": "30s"}. Flags win
over it.

Examples:
  decree proxy -nodes 127.0.0.1:7101,127.0.0.1:7102 -http 127.0.0.1:7480
  decree proxy -nodes 10.0.0.1:7100 -listen 10.0.0.9:7400 -tls-cert proxy.pem -tls-key proxy.key -client-ca clients.pem
`,
		bind: func(f *flag.FlagSet) action {
			o := &proxyOptions{}
			o.bind(f)
			return func(ctx context.Context, s *session, _ []string) error {
				if err := readConfig(f, o.config); err != nil {
					return &usageError{err}
				}
				log, err := o.logger(s.err)
				if err != nil {
					return &usageError{err}
				}
				r, err := startProxy(o, log)
				if err != nil {
					return err
				}
				return r.run(ctx)
			}
		},
	}
}

// proxyOptions are the settings of `decree proxy`.
type proxyOptions struct {
	listen   string
	nodes    addressList
	cluster  string
	config   string
	http     string
	httpOpen bool
	pprof    bool
	drain    time.Duration
	port     flags.Port
	node     flags.Nodes

	admission             proxy.Admission
	limits                proxy.Limits
	maxConnections        int
	maxStreams            uint
	waiting               int
	waitingBytes          int64
	refresh, silence      time.Duration
	logFormat, logMinimum string
}

func (o *proxyOptions) bind(f *flag.FlagSet) {
	f.StringVar(&o.listen, "listen", "127.0.0.1:7400", "`address` (host:port) for clients")
	f.Var(&o.nodes, "nodes", "`addresses` (host:port) of nodes: repeated, or separated by commas; some, from which the others are learned")
	f.StringVar(&o.cluster, "cluster", "", "`name` of the cluster: nodes of others are not listened to; without it, the first node that answers says which it is")
	f.StringVar(&o.config, "config", "", "JSON `file` with settings, under the names of the flags")
	f.StringVar(&o.http, "http", "", "`address` (host:port) for /metrics, /healthz and /readyz, as in 127.0.0.1:7480; there is none otherwise")
	f.BoolVar(&o.httpOpen, "http-open", false, "-http may be an address that other machines reach, in plain text")
	f.BoolVar(&o.pprof, "pprof", false, "offer profiles at -http, under /debug/pprof/")
	f.DurationVar(&o.drain, "drain", 10*time.Second, "how long calls under way may take when the proxy is told to end")
	f.IntVar(&o.admission.ClientCalls, "client-calls", 8192, "calls at work of one client, at `most`")
	f.Int64Var(&o.admission.ClientBytes, "client-bytes", 64<<20, "`bytes` that they hold, at most")
	f.IntVar(&o.admission.ShardCalls, "shard-calls", 49152, "calls at work on one shard, at `most`")
	f.Int64Var(&o.admission.ShardBytes, "shard-bytes", 256<<20, "`bytes` that they hold, at most")
	f.IntVar(&o.admission.MinCalls, "min-calls", 1024, "calls at work on one shard below which its latency is not looked at, if it does 10,000 per second; of a slower shard fewer, by the cube; fewer for latency, more for throughput")
	f.Float64Var(&o.admission.Target, "latency-target", 0, "above -min-calls, hold a shard's latency at this many `times` that without a queue, 1.2 to 10; 0 for 1.5, and for 1.8 with a -min-calls of 4 or less")
	f.IntVar(&o.maxConnections, "max-connections", 20000, "connections at the same time, three quarters of them of one host, at `most`")
	f.UintVar(&o.maxStreams, "max-streams", 128, "calls and streams at work on one connection, at `most`")
	f.IntVar(&o.limits.StreamCalls, "stream-calls", 8192, "calls under way on one stream, at `most`")
	f.Int64Var(&o.limits.StreamBytes, "stream-bytes", 96<<20, "`bytes` that they hold, at most; should exceed -client-bytes by 8 MiB: a stream with more is not read, whichever shard its calls wait for")
	f.IntVar(&o.limits.FrameBytes, "frame-bytes", 16<<20, "`bytes` of one message, at most")
	f.DurationVar(&o.limits.Timeout, "call-timeout", 10*time.Second, "time `limit` of a call that names none")
	f.DurationVar(&o.limits.MaxTimeout, "max-call-timeout", 10*time.Minute, "time `limit` that a call may name, at most")
	f.IntVar(&o.waiting, "waiting", 65536, "calls that wait for a leader, for each shard, at `most`")
	f.Int64Var(&o.waitingBytes, "waiting-bytes", 256<<20, "`bytes` that they hold, at most")
	f.DurationVar(&o.refresh, "refresh", time.Second, "how often the topology is asked for when nothing is amiss")
	f.DurationVar(&o.silence, "silence", 3*time.Second, "how long a node may say nothing while calls wait for it; from 1.5s")
	o.port.Bind(f)
	o.node.Bind(f)
	f.StringVar(&o.logFormat, "log", "text", "`format` of the log on standard error: text or json")
	f.StringVar(&o.logMinimum, "log-level", "info", "`level` from which on the log is written: debug, info, warn or error; at debug, every call is")
}

// readConfig sets the flags that a file names and the command line does not.
func readConfig(f *flag.FlagSet, name string) error {
	if name == "" {
		return nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var settings map[string]any
	if err := d.Decode(&settings); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d.More() {
		return fmt.Errorf("%s: there is something behind the JSON object", name)
	}
	given := map[string]bool{"config": true}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	for key, value := range settings {
		if f.Lookup(key) == nil || key == "config" {
			return fmt.Errorf("%s: there is no setting %q: the names are those of the flags, without the dash", name, key)
		}
		if given[key] {
			continue
		}
		values, is := value.([]any)
		if !is {
			values = []any{value}
		}
		for _, v := range values {
			switch v.(type) {
			case string, bool, json.Number:
			default:
				return fmt.Errorf("%s: %q is neither a text, a number, true or false, nor a list of them", name, key)
			}
			if err := f.Set(key, fmt.Sprint(v)); err != nil {
				return fmt.Errorf("%s: %q is %v: %w", name, key, v, err)
			}
		}
	}
	return nil
}

func (o *proxyOptions) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logMinimum)); err != nil {
		return nil, fmt.Errorf("-log-level is %q: debug, info, warn or error", o.logMinimum)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("-log is %q: text or json", o.logFormat)
}

// loopback reports whether an address to listen on is reached from this machine alone.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

func (o *proxyOptions) validate() error {
	if len(o.nodes) == 0 {
		_ = o.nodes.Set(os.Getenv(nodesVariable))
	}
	if len(o.nodes) == 0 {
		return badUsage("no node is named: give -nodes host:port,... or set %s", nodesVariable)
	}
	if _, _, err := net.SplitHostPort(o.listen); err != nil {
		return badUsage("-listen is %q: host:port is needed, as in 127.0.0.1:7400", o.listen)
	}
	if o.http == "" && (o.pprof || o.httpOpen) {
		return badUsage("-pprof and -http-open mean nothing without -http")
	}
	if o.http != "" && !loopback(o.http) && !o.httpOpen {
		return badUsage("-http is %s, which other machines reach, without TLS or a password: give -http-open if that is meant", o.http)
	}
	if o.drain < 0 {
		return badUsage("-drain is %v: 0 or more", o.drain)
	}
	if err := errors.Join(o.port.Validate(), o.node.Validate()); err != nil {
		return &usageError{err}
	}
	return nil
}

// runningProxy is a proxy with its ports.
type runningProxy struct {
	o      *proxyOptions
	log    *slog.Logger
	proxy  *proxy.Proxy
	server *proxy.Server
	side   *sideport.Server // nil if there is none
}

// startProxy takes the ports and begins to look for the nodes, or leaves nothing behind.
func startProxy(o *proxyOptions, log *slog.Logger) (_ *runningProxy, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	nodes, token, err := o.node.Proxy(log)
	if err != nil {
		return nil, &usageError{err}
	}
	port, err := o.port.Access(log)
	if err != nil {
		return nil, &usageError{err}
	}
	r := &runningProxy{o: o, log: log}
	metrics := sideport.NewRegistry()
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	r.proxy, err = proxy.New(proxy.Config{Nodes: o.nodes, Cluster: o.cluster, TLS: nodes, Credentials: token, Refresh: o.refresh, Silence: o.silence,
		MaxWaiting: o.waiting, MaxWaitingBytes: o.waitingBytes, Logger: log, Metrics: metrics})
	if err != nil {
		return nil, &usageError{err}
	}
	r.server, err = r.proxy.Serve(proxy.ServerConfig{Listen: o.listen, Access: port, Limits: o.limits, Admission: o.admission,
		MaxConnections: o.maxConnections, MaxStreams: uint32(min(o.maxStreams, 1<<31))})
	if errors.Is(err, access.ErrInsecure) {
		return nil, badUsage("%v: -tls-cert and -tls-key, -tokens or -client-ca with -cert-role, or -insecure", err)
	}
	if err != nil {
		return nil, err
	}
	if o.http != "" {
		if r.side, err = sideport.Listen(o.http, sideport.Config{Ready: r.server.Ready, Metrics: metrics, Pprof: o.pprof, Open: o.httpOpen, Logger: log}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// run serves until ctx ends, and then drains.
func (r *runningProxy) run(ctx context.Context) error {
	http := ""
	if r.side != nil {
		http = r.side.Addr()
	}
	r.log.Info("proxy started", "listen", r.server.Addr(), "http", http, "nodes", r.o.nodes.String(), "tls", r.o.port.Cert != "", "client_certificates", r.o.port.ClientCA != "")
	if r.o.port.Insecure && r.o.port.Cert == "" && !loopback(r.o.listen) {
		r.log.Warn("other machines are served in plain text: everybody who reaches the port may read and write everything", "listen", r.server.Addr())
	}
	<-ctx.Done()
	again := make(chan os.Signal, 1) // the first signal has been delivered: what comes now is the second
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(again)
	return r.drain(again)
}

// drain ends the proxy: at once, if again says so. It returns proxy.ErrCallsCut if calls were under way when the patience, the operator's or -drain, ended.
func (r *runningProxy) drain(again <-chan os.Signal) error {
	r.log.Info("draining: no new calls are taken", "limit", r.o.drain)
	ctx, cancel := context.WithTimeout(context.Background(), r.o.drain)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- r.server.Drain(ctx) }()
	var cut error
	select {
	case cut = <-drained:
	case <-again:
		r.log.Warn("told twice to end: calls under way are ended")
		cancel()
		cut = <-drained
	}
	r.close()
	r.log.Info("proxy ended")
	return cut
}

func (r *runningProxy) close() {
	if r.server != nil {
		r.server.Close()
	}
	if r.proxy != nil {
		r.proxy.Close()
	}
	if r.side != nil { // last, so that it can be watched to the end
		r.side.Close()
	}
}
