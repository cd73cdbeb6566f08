package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm/sideport"
)

// maxStreams bounds the calls of one gRPC connection that are at work at once.
const maxStreams = 2048

// callPatience bounds a request without a session that has no time limit of its own, as those over HTTP.
const callPatience = 10 * time.Second

// stopPatience is how long calls under way may take when the process stops.
const stopPatience = 2 * time.Second

// front is where clients come in: a proxy, and the ledger's API on top of it. One port has gRPC, for decree.v1 and ledger.v1, the other HTTP.
type front struct {
	proxy    *proxy.Proxy
	service  *server.Server
	server   *proxy.Server
	client   *client.Client // of server: for requests without a session
	http     *http.Server
	listener net.Listener // of http
}

// frontConfig is a front's. The front adds its own parts to service and side.
type frontConfig struct {
	api, http string // host:port
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
	if f.listener, err = net.Listen("tcp", cfg.http); err != nil {
		return nil, err
	}
	if f.proxy, err = proxy.New(cfg.proxy); err != nil {
		return nil, err
	}
	o := &once{known: make(chan struct{})}
	cfg.service.Shard, cfg.service.Once = f.proxy.Shard(shardID), o
	f.service = server.New(cfg.service)
	f.server, err = f.proxy.Serve(proxy.ServerConfig{Listen: cfg.api, MaxStreams: maxStreams,
		Services: func(r grpc.ServiceRegistrar) { f.service.Register(r) }})
	if err != nil {
		return nil, err
	}
	f.client, err = client.Dial([]string{f.server.Addr()}, client.Options{Patience: callPatience})
	if err != nil {
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
	f.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout: 30 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute} // an audit takes its time
	return f, nil
}

// once has the commands of requests without a session decided in one, by way of the server's own port: from the moment on that this is known.
type once struct {
	known chan struct{}
	shard *client.Shard
}

func (o *once) Submit(ctx context.Context, command []byte) ([]byte, error) {
	<-o.known
	return o.shard.Submit(ctx, command)
}

// serve serves HTTP until stop. What gRPC gets is answered already.
func (f *front) serve() error { return f.http.Serve(f.listener) }

// stop takes no new calls, waits for those under way, but not for long, and closes everything.
func (f *front) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	var err error
	switch {
	case f.http != nil:
		if err = f.http.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
			err = f.http.Close()
		}
		_ = f.listener.Close() // it is open if HTTP has never been served
	case f.listener != nil:
		err = f.listener.Close()
	}
	if f.server != nil {
		f.server.Drain(ctx)
	}
	if f.client != nil {
		f.client.Close()
	}
	if f.proxy != nil {
		f.proxy.Close()
	}
	return err
}
