package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/decree-raft/decree/internal/gate"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/tlsfiles"
)

// Credentials returns the credentials of a gRPC server behind a guard: they do the handshake with the TLS configuration of the
// moment (config nil: in plain text), log what gRPC would keep to itself, and tell the guard when a connection is through. port
// and log are as in Config.
func Credentials(config func() (*tls.Config, error), port string, log *limitlog.Log) credentials.TransportCredentials {
	if log == nil {
		log = limitlog.New(nil)
	}
	expired := func(conn net.Conn, end time.Time) {
		log.Warn(limitlog.Key{Reason: HostOf(conn.RemoteAddr()) + " expired"}, "closed a connection to "+port+": the certificate that it was made with has expired",
			"remote", conn.RemoteAddr().String(), "expired", end)
	}
	return &serverCredentials{tlsfiles.Credentials{Config: config, Expired: expired}, port, log}
}

type serverCredentials struct {
	tlsfiles.Credentials
	port string
	log  *limitlog.Log
}

func (c *serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := c.Credentials.ServerHandshake(raw)
	if err != nil {
		// A connection that went away, or that the guard has closed and logged, is no news.
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			c.log.Warn(limitlog.Key{Reason: HostOf(raw.RemoteAddr()) + err.Error()}, "refused a connection to "+c.port+": the TLS handshake failed",
				"remote", raw.RemoteAddr().String(), "reason", err.Error())
		}
		return nil, nil, err
	}
	Shaken(raw)
	return secured, info, nil
}

// ClientHandshake is never called: these credentials are a server's.
func (c *serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a server's credentials were used by a client")
}

func (c *serverCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// ConnState is http.Server.ConnState behind a guard: a connection with a request is through.
func ConnState(c net.Conn, s http.ConnState) {
	if s == http.StateActive {
		Shaken(c)
	}
}

// Shaken tells the guard that a connection of it, or TLS over one, has finished its handshake: it cannot be displaced any more.
// Other connections are left alone.
func Shaken(c net.Conn) {
	if over, ok := c.(interface{ NetConn() net.Conn }); ok { // *tls.Conn
		c = over.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.guard.mu.Lock()
		defer c.guard.mu.Unlock()
		c.settle()
	}
}

// Registrar registers services whose calls have been checked, and by that says who is known, see Known.
func (g *Guard) Registrar(r grpc.ServiceRegistrar) grpc.ServiceRegistrar {
	know := func(ctx context.Context) {
		if from, ok := peer.FromContext(ctx); ok {
			g.Known(from.Addr)
		}
	}
	return &gate.Registrar{
		ServiceRegistrar: r,
		Call: func(ctx context.Context, _ string) (context.Context, error) {
			know(ctx)
			return ctx, nil
		},
		Stream: func(s grpc.ServerStream, _ string) (grpc.ServerStream, error) {
			know(s.Context())
			return s, nil
		},
	}
}
