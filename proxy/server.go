package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/link"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Listen is the host:port for clients. Required.
	Listen string
	// TLS, if set, is asked for each connection, so that certificates can be replaced.
	TLS func() (*tls.Config, error)
	Limits
	// Services, if set, registers further gRPC services on the same port.
	Services func(grpc.ServiceRegistrar)
	// MaxStreams at work on one connection: unary calls, and streams of calls. Default 1024.
	MaxStreams uint32
}

const (
	streamWindow  = 4 << 20
	writeBuffer   = 32 << 10
	readBuffer    = 4 << 10 // of every connection, for as long as it lives
	maxHeaderList = 16 << 10
	handshake     = 10 * time.Second
)

// Server serves clients of a proxy on a port.
type Server struct {
	listener net.Listener
	service  *service
	grpc     *grpc.Server
	health   *health.Server
	served   chan struct{}
	proxy    *Proxy
	cancel   context.CancelFunc // of what keeps health up to date
}

// Serve serves p to clients until Close.
func (p *Proxy) Serve(cfg ServerConfig) (*Server, error) {
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		if _, err := cfg.TLS(); err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := cfg.TLS()
			if err != nil {
				return nil, err
			}
			c = c.Clone()
			c.NextProtos = []string{"h2"}
			return c, nil
		}})
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 1024
	}
	cfg.Limits = cfg.Limits.withDefaults()
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, service: newService(p, cfg.Limits), health: health.NewServer(), served: make(chan struct{}), proxy: p}
	s.service.meter, s.service.log = p.meter, p.log
	if p.cfg.Tracer != nil {
		s.service.tracer = p.cfg.Tracer.Tracer(tracerName)
	}
	s.grpc = grpc.NewServer(grpc.Creds(creds), grpc.ForceServerCodecV2(codec.Codec{}),
		grpc.MaxRecvMsgSize(cfg.FrameBytes), grpc.MaxConcurrentStreams(cfg.MaxStreams), grpc.MaxHeaderListSize(maxHeaderList),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(2*streamWindow),
		grpc.ReadBufferSize(readBuffer), grpc.WriteBufferSize(writeBuffer),
		grpc.ConnectionTimeout(handshake), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: link.KeepaliveTime / 2, PermitWithoutStream: true}))
	decreev1.RegisterDecreeServiceServer(s.grpc, s.service)
	healthv1.RegisterHealthServer(s.grpc, s.health)
	if cfg.Services != nil {
		cfg.Services(s.grpc)
	}
	reflection.Register(s.grpc)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go p.follow(ctx, s.health)
	go func() {
		defer close(s.served)
		_ = s.grpc.Serve(counted{l, p.meter}) // ends with Close
	}()
	return s, nil
}

// Addr returns the host:port that is listened on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Drain refuses new calls and connections, waits until those under way have ended, or ctx has, and closes the server. Clients go on elsewhere.
func (s *Server) Drain(ctx context.Context) {
	s.service.closes.Store(true) // Ready says so at once
	s.health.Shutdown()
	patience := time.Minute
	if d, has := ctx.Deadline(); has {
		patience = time.Until(d)
	}
	_ = s.listener.Close() // gRPC closes it once more
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.service.close(patience)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.Close()
}

// Close ends all calls and returns when they have ended. Clients go on elsewhere, under the same sessions.
func (s *Server) Close() {
	s.service.closes.Store(true)
	s.cancel()
	s.health.Shutdown()
	s.grpc.Stop()
	<-s.served
}
