package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/testkit"
)

// mirror is a service with one method, which sends back what it gets, for as long as it gets something.
type mirror struct{ running atomic.Int32 }

func (m *mirror) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{ServiceName: "test.Mirror", Streams: []grpc.StreamDesc{
		{StreamName: "Mirror", ClientStreams: true, ServerStreams: true, Handler: m.serve},
	}}
}

func (m *mirror) serve(_ any, s grpc.ServerStream) error {
	m.running.Add(1)
	defer m.running.Add(-1)
	for {
		var v wrapperspb.BytesValue
		if err := s.RecvMsg(&v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&v); err != nil {
			return err
		}
	}
}

// adminConn is an ordinary client's connection.
func adminConn(t testing.TB, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(2*MaxServiceBytes)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func mirrorStream(t testing.TB, conn *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	s, err := conn.NewStream(patient(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Mirror/Mirror")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func reflectBack(s grpc.ClientStream, b []byte) ([]byte, error) {
	// SendMsg only says io.EOF where the stream is over; RecvMsg says why.
	if err := s.SendMsg(wrapperspb.Bytes(b)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var v wrapperspb.BytesValue
	err := s.RecvMsg(&v)
	return v.GetValue(), err
}

func TestServices(t *testing.T) {
	ca := testkit.NewAuthority(t)
	paths := ca.Write(t, t.TempDir(), testkit.Subject{})
	conf, err := TLSFiles(paths.Cert, paths.Key, paths.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ tls *TLS }{"plain": {nil}, "TLS": {conf}} {
		t.Run(name, func(t *testing.T) {
			checks := health.NewServer()
			times := 0
			a, b := startPair(t, serveEcho, func(cfg *Config) {
				cfg.TLS = c.tls
				cfg.MaxFrameBytes = 1 << 20
				if cfg.Node == 2 {
					cfg.Services = func(r grpc.ServiceRegistrar) {
						times++
						healthpb.RegisterHealthServer(r, checks)
						r.RegisterService(new(mirror).desc(), nil)
					}
				}
			})
			creds := c.tls.clientCredentials()
			a.expectUp(t, b)
			conn := adminConn(t, b.Addr(), creds)
			client := healthpb.NewHealthClient(conn)
			checks.SetServingStatus("shard 1", healthpb.HealthCheckResponse_SERVING)
			got, err := client.Check(patient(t), &healthpb.HealthCheckRequest{Service: "shard 1"})
			if err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
				t.Fatalf("%v, %v", got, err)
			}
			watch, err := client.Watch(patient(t), &healthpb.HealthCheckRequest{Service: "shard 1"})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []healthpb.HealthCheckResponse_ServingStatus{1, 2, 1} {
				checks.SetServingStatus("shard 1", want)
				for got := healthpb.HealthCheckResponse_UNKNOWN; got != want; {
					msg, err := watch.Recv()
					if err != nil {
						t.Fatal(err)
					}
					got = msg.Status
				}
			}
			// As large as messages may be, whatever the limit of frames; while frames and calls pass.
			big := bytes.Repeat([]byte("x"), MaxServiceBytes-16)
			s := mirrorStream(t, conn)
			for range 3 {
				got, err := reflectBack(s, big)
				if err != nil || !bytes.Equal(got, big) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				a.send(t, 2, "a frame")
				b.expect(t, 1, "a frame")
				callUp(t, a, 2)
			}
			if _, err := reflectBack(s, make([]byte, MaxServiceBytes+1)); !strings.Contains(err.Error(), "16777216") {
				t.Errorf("an oversized message: %v", err)
			}
			// The rest of the port is as it was.
			err = conn.Invoke(patient(t), "/some.Service/Method", new(wrapperspb.BytesValue), new(wrapperspb.BytesValue))
			if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "this is a Decree peer port") {
				t.Errorf("another service: %v", err)
			}
			if _, err := healthpb.NewHealthClient(adminConn(t, a.Addr(), creds)).Check(patient(t), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("a node without services: %v", err)
			}
			if times != 1 {
				t.Errorf("Services was called %d times", times)
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		b := startNode(t, 2, func(c *Config) {
			c.TLS, c.Services = conf, func(r grpc.ServiceRegistrar) { r.RegisterService(new(mirror).desc(), nil) }
		})
		pool := x509.NewCertPool()
		pem, err := os.ReadFile(paths.CA)
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			t.Fatal(err)
		}
		conn := adminConn(t, b.Addr(), credentials.NewTLS(&tls.Config{RootCAs: pool}))
		err = conn.Invoke(patient(t), "/test.Mirror/Mirror", new(wrapperspb.BytesValue), new(wrapperspb.BytesValue))
		if status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		b.log.await(t, "the TLS handshake failed")
	})
}

// TestServiceMessagesAreLimited where frames may be larger, and frames where messages may.
func TestServiceMessagesAreLimited(t *testing.T) {
	services := func(c *Config) {
		c.Services = func(r grpc.ServiceRegistrar) { r.RegisterService(new(mirror).desc(), nil) }
		c.Peers = map[uint64]string{1: testkit.FreePort(t)}
	}
	small := startNode(t, 2, services, func(c *Config) { c.MaxFrameBytes = 1 << 20 })
	frame := rawStream(t, small.Addr(), goodHello().metadata(), nil)
	if err := sendRaw(frame, sealed(strings.Repeat("x", 1<<20+1))); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, frame, "a frame is larger than MaxFrameBytes of this node, 1048576")
	b := startNode(t, 2, services)
	_, err := reflectBack(mirrorStream(t, adminConn(t, b.Addr(), nil)), make([]byte, MaxServiceBytes+1))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("bytes, at most %d are allowed", MaxServiceBytes)) {
		t.Errorf("got %v", err)
	}
}

// TestServiceKeepsItsConnection: only a connection without a call is closed.
func TestServiceKeepsItsConnection(t *testing.T) {
	b := startNode(t, 2, func(c *Config) {
		c.maxIdle = 100 * time.Millisecond
		c.Services = func(r grpc.ServiceRegistrar) { r.RegisterService(new(mirror).desc(), nil) }
	})
	conn := adminConn(t, b.Addr(), nil)
	s := mirrorStream(t, conn)
	if _, err := reflectBack(s, []byte("begin")); err != nil {
		t.Fatal(err)
	}
	// Connections that were made later come and go meanwhile.
	for range 3 {
		idle := adminConn(t, b.Addr(), nil)
		call := mirrorStream(t, idle)
		if _, err := reflectBack(call, nil); err != nil {
			t.Fatal(err)
		}
		if err := call.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := call.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !idle.WaitForStateChange(patient(t), connectivity.Ready) {
			t.Fatal("an idle connection is not closed")
		}
	}
	if got, err := reflectBack(s, []byte("still")); err != nil || string(got) != "still" {
		t.Errorf("%q, %v", got, err)
	}
	if b.guard.Stats().Unshaken != 0 {
		t.Error("a connection with calls counts as one without a handshake")
	}
}

// TestServicesAndStrangers: a flood of connections displaces neither a service's call nor a peer.
func TestServicesAndStrangers(t *testing.T) {
	a, b := startPair(t, func(c *Config) {
		c.Services = func(r grpc.ServiceRegistrar) { r.RegisterService(new(mirror).desc(), nil) }
	})
	a.expectUp(t, b)
	s := mirrorStream(t, adminConn(t, b.Addr(), nil))
	if _, err := reflectBack(s, nil); err != nil {
		t.Fatal(err)
	}
	for range guard.DefaultMaxUnshaken + 10 {
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	b.log.await(t, "closed a connection to the peer port to make room")
	if _, err := reflectBack(s, []byte("still")); err != nil {
		t.Error(err)
	}
	a.send(t, 2, "still here")
	b.expect(t, 1, "still here")
}

// TestCloseEndsServices: Close cancels their calls and waits for them.
func TestCloseEndsServices(t *testing.T) {
	var m mirror
	b := startNode(t, 2, func(c *Config) {
		c.Services = func(r grpc.ServiceRegistrar) { r.RegisterService(m.desc(), nil) }
	})
	var wg sync.WaitGroup
	for range 4 {
		s := mirrorStream(t, adminConn(t, b.Addr(), nil))
		if _, err := reflectBack(s, nil); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := s.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.Unavailable {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n := m.running.Load(); n != 0 {
		t.Errorf("%d calls are still running", n)
	}
	wg.Wait()
}

// TestServeIsAwaited: Close does not return while Serve runs.
func TestServeIsAwaited(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		entered := make(chan struct{}, 1)
		var ended atomic.Bool
		a, b := start(func(c *Config) {
			c.Serve = func(ctx context.Context, _ uint64, _ uint8, _ []byte) ([]byte, error) {
				entered <- struct{}{}
				<-ctx.Done()
				time.Sleep(50 * time.Millisecond) // it takes a while to stop
				ended.Store(true)
				return nil, nil
			}
		})
		go a.Call(patient(t), 2, 1, nil)
		await(t, entered, "the call")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if !ended.Load() {
			t.Error("Serve is still running")
		}
	})
}
