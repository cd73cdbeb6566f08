package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/sideport"
)

// maxStreams bounds the calls of one gRPC connection that are at work at once.
const maxStreams = 2048

// maxConnections at the same time on the port for HTTP; three quarters of them of one host. Tests have fewer.
var maxConnections = 4096

// callPatience bounds a request without a session that has no time limit of its own, as those over HTTP.
const callPatience = 10 * time.Second

// stopPatience is how long calls under way may take when the process stops.
const stopPatience = 2 * time.Second

// front is where clients come in: a proxy, and the ledger's API on top of it. One port has gRPC, for decree.v1 and ledger.v1, the other HTTP.
type front struct {
	proxy    *proxy.Proxy
	service  *server.Server
	server   *proxy.Server
	own      *proxy.Server  // for this process alone
	client   *client.Client // of own: for requests without a session
	http     *http.Server
	listener net.Listener // of http
}

// frontConfig is a front's. The front adds its own parts to service and side.
type frontConfig struct {
	api, http string      // host:port
	access    access.Port // of both
	proxy     proxy.Config
	service   server.Config
	side      sideport.Config
}

// openFront takes both ports, or leaves nothing behind.
func openFront(cfg frontConfig) (_ *front, err error) {
	f := &front{}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.stop())
		}
	}()
	if f.listener, err = access.Listen(cfg.http, cfg.access); err != nil {
		return nil, explained(err)
	}
	f.listener = guard.New(f.listener, guard.Config{Port: "the ledger's HTTP port", Clients: "its clients", Answer: "this is a ledger's HTTP port\n", HTTP1: true, TLS: cfg.access.TLS != nil,
		MaxConns: maxConnections, MaxPerHost: maxConnections - maxConnections/4})
	if f.proxy, err = proxy.New(cfg.proxy); err != nil {
		return nil, err
	}
	o := &once{known: make(chan struct{})}
	cfg.service.Shard, cfg.service.Once = f.proxy.Shard(shardID), o
	f.service = server.New(cfg.service)
	f.server, err = f.proxy.Serve(proxy.ServerConfig{Listen: cfg.api, Access: cfg.access, MaxStreams: maxStreams,
		Services: func(r grpc.ServiceRegistrar) { f.service.Register(r) }, Role: server.RoleOf})
	if err != nil {
		return nil, explained(err)
	}
	if err := f.openOwn(); err != nil {
		return nil, err
	}
	o.shard = f.client.Shard(shardID)
	close(o.known)
	ready := cfg.side.Ready
	cfg.side.Ready = func() []string {
		missing := f.server.Ready()
		if ready != nil {
			missing = append(missing, ready()...)
		}
		return missing
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", f.service.HTTP())
	mux.Handle("/", sideport.Handler(cfg.side))
	// Other sites' pages may not have browsers post here.
	handler := cfg.access.Policy.HTTP(roleOf, http.NewCrossOriginProtection().Handler(mux))
	f.http = &http.Server{Handler: handler, TLSConfig: cfg.access.TLS.Clone(), // it changes what it is given, and gRPC has the same
		ConnState: guard.ConnState, ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout: 30 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute} // an audit takes its time
	return f, nil
}

// openOwn opens the port for this process alone, whatever the others ask for, and a client of it.
func (f *front) openOwn() error {
	secret, tokens, err := access.OwnToken("ledger", access.Write)
	if err != nil {
		return err
	}
	f.own, err = f.proxy.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Access: access.Port{Policy: &access.Policy{Tokens: tokens}}})
	if err != nil {
		return err
	}
	f.client, err = client.Dial([]string{f.own.Addr()}, client.Options{Credentials: access.Token(secret), Patience: callPatience})
	return err
}

// explained adds to an error of the library which flags it is about.
func explained(err error) error {
	switch {
	case errors.Is(err, rsm.ErrVotersChanged):
		return fmt.Errorf("%w: by -voters, with the addresses of all of them left in -peers; one that joined is started with -join, and no other", err)
	case errors.Is(err, access.ErrInsecure):
		return fmt.Errorf("%w: -tls-cert and -tls-key, -tokens or -client-ca with -cert-role; for the nodes' own ports -node-cert, -node-key and -node-ca; or -insecure", err)
	}
	return err
}

// roleOf is what a request over HTTP takes.
func roleOf(r *http.Request) access.Role {
	switch path := r.URL.Path; {
	case path == "/healthz", path == "/readyz":
		return access.None // whoever balances load has no token
	case path == "/metrics":
		return access.Read
	case !strings.HasPrefix(path, "/v1/"):
		return access.Admin // profiles
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return access.Read
	}
	return access.Write
}

// once has the commands of requests without a session decided in one, by way of the server's own port: from the moment on that this is known.
type once struct {
	known chan struct{}
	shard *client.Shard
}

func (o *once) Do(ctx context.Context, r rsm.Request) (rsm.Result, error) {
	select {
	case <-o.known:
		return o.shard.Do(ctx, r)
	case <-ctx.Done(): // the server may not come up, and waits for its calls as it ends
		return rsm.Result{}, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeCancelled, Message: "the server was not up yet", Cause: ctx.Err()}
	}
}

// serve serves HTTP until stop. What gRPC gets is answered already.
func (f *front) serve() error {
	if f.http.TLSConfig != nil {
		return f.http.ServeTLS(f.listener, "", "")
	}
	return f.http.Serve(f.listener)
}

// stop takes no new calls, waits for those under way, but not for long, and closes everything.
func (f *front) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	var err error
	var calls sync.WaitGroup
	if f.server != nil { // beside HTTP: both have all the time
		calls.Go(func() { _ = f.server.Drain(ctx) }) // what is cut goes on elsewhere, as it does over HTTP
	}
	switch {
	case f.http != nil:
		if err = f.http.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
			err = f.http.Close()
		}
		_ = f.listener.Close() // it is open if HTTP has never been served
	case f.listener != nil:
		err = f.listener.Close()
	}
	calls.Wait()
	if f.client != nil {
		f.client.Close()
	}
	if f.own != nil {
		f.own.Close()
	}
	if f.proxy != nil {
		f.proxy.Close()
	}
	return err
}
