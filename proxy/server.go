package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/bounds"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/internal/admit"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Listen is the host:port for clients. Required.
	Listen string
	// Access is what protects the port: TLS, tokens, certificates. Without it, it listens on loopback addresses only.
	Access access.Port
	Limits
	// Admission bounds what clients have at work together.
	Admission Admission
	// Services, if set, registers further gRPC services on the same port. Role says what role their methods take; default admin for all of them.
	Services func(grpc.ServiceRegistrar)
	Role     func(method string) access.Role
	// MaxConnections at the same time; three quarters of them of one host. Default 20000.
	MaxConnections int
	// MaxStreams at work on one connection: unary calls, and at most eight streams of calls. Default 128: each may have a message in memory, and many calls are for a
	// stream.
	MaxStreams uint32
}

// Admission is how many calls may be at work at the same time, by their number and their bytes; zero fields take their defaults. A call that finds no room is
// refused with the code overloaded, a reason and the time after which to come back. Calls that make room have a reserve. A client that takes more
// than its share is refused before others are. A client is whoever has shown who it is, or else a connection.
type Admission struct {
	// ClientCalls at work of one client, and their ClientBytes. Defaults 8192 and 64 MiB.
	ClientCalls int
	ClientBytes int64
	// ShardCalls at work on one shard, and their ShardBytes. Defaults 49152 and 256 MiB.
	ShardCalls int
	ShardBytes int64
	// Below ShardCalls, a shard's limit follows its latency: it is held at Target times that without a queue, but never below MinCalls if the shard does 10,000 calls per
	// second or more at its best of late, or if that is not known yet. Of a slower shard it falls with the cube of its part: with a tenth of them it is a thousandth of MinCalls.
	// More of either is for throughput, as a shard decides whatever waits as one batch; less is for latency. Defaults 1.5 (1.8 with a MinCalls of 4 or less), and 1024.
	Target   float64
	MinCalls int
}

func (a Admission) controller() (*admit.Controller, error) {
	floor := cmp.Or(a.MinCalls, 1024)
	return admit.New(admit.Config{ClientCount: cmp.Or(a.ClientCalls, 8192), ClientBytes: cmp.Or(a.ClientBytes, 64<<20),
		ShardCount: cmp.Or(a.ShardCalls, 49152), ShardBytes: cmp.Or(a.ShardBytes, 256<<20), Target: a.Target, MinLimit: min(4, floor), Floor: floor, InitialLimit: floor})
}

const (
	portName     = "the proxy port"
	strangerText = "this is a Decree proxy port: it speaks gRPC, api/decree/v1\n"

	streamWindow  = 1 << 20 // of what is not read yet; a larger message that is being read has as much as it needs
	connWindow    = 8 << 20
	writeBuffer   = 32 << 10
	readBuffer    = 1 << 10 // of every connection, for as long as it lives
	maxHeaderList = 16 << 10
	handshake     = 10 * time.Second
)

// drainPatience is how long Drain waits without a deadline. Tests have less.
var drainPatience = time.Minute

// parting is how long what has nothing under way any more may take to end when Drain's time is over.
const parting = time.Second

// ErrCallsCut is what Drain returns if calls were under way when its time was over. Whether they happened is not known; under a session, clients ask another proxy.
var ErrCallsCut = errors.New("proxy: calls under way were ended before their answers; under a session, clients ask another proxy")

// maxIdle is how long a connection may have no call on it, nor a stream: who wants to call again connects again. Tests have less.
var maxIdle = 10 * time.Minute

// Server serves clients of a proxy on a port.
type Server struct {
	listener net.Listener
	service  *service
	grpc     *grpc.Server
	public   *public
	health   *health.Server
	served   chan struct{}
	proxy    *Proxy
	cancel   context.CancelFunc // of what keeps health up to date
	unwatch  context.CancelFunc // ends the streams of those who watch it, and of reflection
}

// Serve serves p to clients until Close.
func (p *Proxy) Serve(cfg ServerConfig) (*Server, error) {
	admission, err := cfg.Admission.controller()
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	cfg.MaxStreams = cmp.Or(cfg.MaxStreams, 128)
	conns := cmp.Or(cfg.MaxConnections, 20000)
	cfg.Limits = cfg.Limits.withDefaults()
	if err := cmp.Or(bounds.Check("MaxConnections", conns, 1, 1<<24), cfg.Limits.check()); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	l, err := access.Listen(cfg.Listen, cfg.Access)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	policy := cfg.Access.Policy
	strangers := limitlog.New(p.cfg.Logger)
	var config func() (*tls.Config, error)
	if cfg.Access.TLS != nil {
		config = func() (*tls.Config, error) { return cfg.Access.TLS, nil }
	}
	door := guard.New(counted{l, p.meter}, guard.Config{Port: portName, Clients: "its clients", Answer: strangerText, TLS: config != nil,
		MaxConns: conns, MaxPerHost: max(1, conns-conns/4), Log: strangers,
		Strangers: cfg.Access.Strangers()})
	s := &Server{listener: door, service: newService(p, cfg.Limits), health: health.NewServer(), served: make(chan struct{}), proxy: p}
	s.service.meter, s.service.log, s.service.tracer = p.meter, p.log, p.tracer
	s.service.policy, s.service.admission = policy, admission
	p.admissions.add(admission)
	s.grpc = grpc.NewServer(grpc.Creds(guard.Credentials(config, portName, strangers)), grpc.ForceServerCodecV2(codec.Codec{}),
		grpc.MaxRecvMsgSize(cfg.FrameBytes), grpc.MaxConcurrentStreams(cfg.MaxStreams), grpc.MaxHeaderListSize(maxHeaderList),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow),
		grpc.ReadBufferSize(readBuffer), grpc.WriteBufferSize(writeBuffer),
		grpc.ConnectionTimeout(handshake), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: time.Minute, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: link.KeepaliveTime / 2, PermitWithoutStream: true}))
	checked := func(need func(string) access.Role) grpc.ServiceRegistrar {
		return &bounded{door.Registrar(policy.Registrar(s.grpc, need)), s.service}
	}
	decreev1.RegisterDecreeServiceServer(checked(RoleOf), s.service)
	watching, unwatch := context.WithCancel(context.Background())
	s.unwatch = unwatch
	s.public = newPublic(s.grpc, door.Stranger)
	healthv1.RegisterHealthServer(s.public, &watched{s.health, watching}) // for everybody: whoever balances load has no token
	if cfg.Services != nil {
		role := cfg.Role
		if role == nil {
			role = func(string) access.Role { return access.Admin }
		}
		cfg.Services(&awaited{checked(role), s.service})
	}
	reflection.Register(reflected{&ending{checked(func(string) access.Role { return access.Read }), watching}, s.grpc})
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go p.follow(ctx, s.health)
	go func() {
		defer close(s.served)
		_ = s.grpc.Serve(door) // ends with Close
	}()
	return s, nil
}

// watched is the health service, whose watchers never go by themselves and must not hold up a server that drains.
type watched struct {
	*health.Server
	open context.Context
}

// Watch implements the health service.
func (w *watched) Watch(in *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(w.open, cancel)()
	return w.Server.Watch(in, &watcher{stream, ctx})
}

type watcher struct {
	healthv1.Health_WatchServer
	ctx context.Context
}

func (w *watcher) Context() context.Context { return w.ctx }

// ending registers services whose streams wait for their clients' next question, and must not hold up a server that drains: they end when open does.
type ending struct {
	grpc.ServiceRegistrar
	open context.Context
}

// RegisterService implements grpc.ServiceRegistrar.
func (e *ending) RegisterService(desc *grpc.ServiceDesc, impl any) {
	e.ServiceRegistrar.RegisterService(withStreams(desc, func(handle grpc.StreamHandler) grpc.StreamHandler {
		return func(srv any, s grpc.ServerStream) error { return handle(srv, &endingStream{s, e.open}) }
	}), impl)
}

type endingStream struct {
	grpc.ServerStream
	open context.Context
}

// RecvMsg receives a message, unless the server drains. gRPC ends with the stream's handler what is late: m is not used any more then.
func (s *endingStream) RecvMsg(m any) error {
	got := make(chan error, 1)
	go func() { got <- s.ServerStream.RecvMsg(m) }()
	select {
	case err := <-got:
		return err
	case <-s.open.Done():
		return wire.Status(errClosing)
	}
}

// awaited registers services whose streams a server that drains waits for.
type awaited struct {
	grpc.ServiceRegistrar
	service *service
}

// RegisterService implements grpc.ServiceRegistrar.
func (a *awaited) RegisterService(desc *grpc.ServiceDesc, impl any) {
	a.ServiceRegistrar.RegisterService(withStreams(desc, func(handle grpc.StreamHandler) grpc.StreamHandler {
		return func(srv any, s grpc.ServerStream) error {
			a.service.open.Add(1)
			defer a.service.open.Add(-1)
			return handle(srv, s)
		}
	}), impl)
}

// withStreams returns a service's description with another handler in the place of each of its streams'.
func withStreams(desc *grpc.ServiceDesc, wrap func(grpc.StreamHandler) grpc.StreamHandler) *grpc.ServiceDesc {
	d := *desc
	d.Streams = slices.Clone(d.Streams)
	for i := range d.Streams {
		d.Streams[i].Handler = wrap(d.Streams[i].Handler)
	}
	return &d
}

// reflected is what reflection needs of a server.
type reflected struct {
	grpc.ServiceRegistrar
	reflection.ServiceInfoProvider
}

// Addr returns the host:port that is listened on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Drain refuses new calls and connections, waits until those under way have ended, or ctx has, and closes the server. Clients go on elsewhere. Without a deadline
// in ctx it waits for a minute: streams of ServerConfig.Services may never end by themselves. It returns ErrCallsCut if something had to be ended before it was answered.
func (s *Server) Drain(ctx context.Context) error {
	s.service.closes.Store(true) // Ready says so at once
	s.health.Shutdown()
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, drainPatience)
		defer cancel()
	}
	_ = s.listener.Close() // gRPC closes it once more
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop() // from now on, and not when the streams have ended: calls of other services do not know that the server drains
	}()
	cut := s.service.close(ctx)
	s.unwatch()
	select {
	case <-done:
	case <-ctx.Done():
		cut = s.part(done) || cut
	}
	s.Close()
	if cut {
		return ErrCallsCut
	}
	return nil
}

// part is for when Drain's time is over: it reports whether something is under way, and otherwise lets what was told to end, and answers that are on their way, do so
// until done is closed, but not for long.
func (s *Server) part(done <-chan struct{}) (cut bool) {
	if s.service.open.Load() > 0 {
		return true
	}
	t := time.NewTimer(parting)
	defer t.Stop()
	select {
	case <-done:
		return false
	case <-t.C: // a connection that is merely slow to close has lost nothing
		return s.service.open.Load() > 0 || s.service.holds.untaken()
	}
}

// Close ends all calls and returns when they have ended. Clients go on elsewhere, under the same sessions.
func (s *Server) Close() {
	s.service.closes.Store(true)
	s.cancel()
	s.unwatch()
	s.health.Shutdown()
	_ = s.listener.Close() // first: Stop waits for handshakes
	s.grpc.Stop()
	<-s.served
	s.proxy.admissions.remove(s.service.admission)
}
