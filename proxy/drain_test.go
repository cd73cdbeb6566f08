package proxy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
)

// reflecting is a client that has asked for the services, and may ask for more.
func reflecting(t *testing.T, address string) reflectionv1.ServerReflection_ServerReflectionInfoClient {
	t.Helper()
	conn, err := grpc.NewClient(address, access.DialOptions(nil, nil)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	st, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if got, err := st.Recv(); err != nil || len(got.GetListServicesResponse().GetService()) == 0 {
		t.Fatalf("%v, %v", got, err)
	}
	old, err := conn.NewStream(within(t), &reflectionv1.ServerReflection_ServiceDesc.Streams[0], "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") // older tools ask so, with the same messages
	if err != nil {
		t.Fatal(err)
	}
	if err := old.SendMsg(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if err := old.RecvMsg(&reflectionv1.ServerReflectionResponse{}); err != nil {
		t.Fatal(err)
	}
	return st
}

// Clients on whose connections nothing is under way hold up no server that drains, and nothing of theirs is cut, whatever streams they have open: not even if there is
// no time at all.
//
// Mutations with which it was seen to fail: reflection's streams are not ended; something counts as cut whenever the time is over; what has been told to end is given no time.
func TestDrainWithNothingUnderWay(t *testing.T) {
	for name, patience := range map[string]time.Duration{"time enough": time.Minute, "no time": 0} {
		t.Run(name, func(t *testing.T) {
			_, s := lonely(t)
			st := reflecting(t, s.Addr())
			conn, _ := openStream(t, s.Addr())
			w, err := healthv1.NewHealthClient(conn).Watch(within(t), &healthv1.HealthCheckRequest{})
			if err == nil {
				_, err = w.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			began := time.Now()
			soon(t, "draining", func() { err = s.Drain(ctx) })
			if took := time.Since(began); err != nil || took > 5*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
			_, err = st.Recv()
			if e, _ := core.Verdict(wire.FromStatus(err)); e == nil || e.Code != core.CodeClosed {
				t.Errorf("reflection ends with %v", err)
			}
		})
	}
}

// forever is a service with a stream that ends with its client.
var forever = grpc.ServiceDesc{ServiceName: "test.Forever", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{StreamName: "Stay", ServerStreams: true, ClientStreams: true,
	Handler: func(_ any, s grpc.ServerStream) error {
		if err := s.SendHeader(nil); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}}}}

// What is under way when Drain's time is over is ended at once, and Drain says so, whatever kind of call it is.
//
// Mutations with which it was seen to fail: unary calls, streams of calls, or those of other services do not count.
func TestDrainSaysWhatIsCut(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, conn *grpc.ClientConn, st grpc.ClientStream) bool{
		"a call on a stream": func(t *testing.T, _ *grpc.ClientConn, st grpc.ClientStream) bool {
			if err := st.SendMsg(&codec.Frame{Data: submitFrame(1, 600_000)}); err != nil {
				t.Fatal(err)
			}
			return true
		},
		"a unary call": func(t *testing.T, conn *grpc.ClientConn, _ grpc.ClientStream) bool {
			go func() { // its error is not what is looked at
				_ = conn.Invoke(within(t), decreev1.DecreeService_Submit_FullMethodName, &codec.Frame{Data: marshal(&decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}})}, &codec.Frame{})
			}()
			return true
		},
		"a stream of another service": func(t *testing.T, conn *grpc.ClientConn, _ grpc.ClientStream) bool {
			st, err := conn.NewStream(within(t), &forever.Streams[0], "/test.Forever/Stay")
			if err == nil {
				_, err = st.Header()
			}
			if err != nil {
				t.Fatal(err)
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := lonely(t)
			s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Services: func(r grpc.ServiceRegistrar) { r.RegisterService(&forever, struct{}{}) }})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			conn, st := openStream(t, s.Addr())
			if begin(t, conn, st) {
				soon(t, "the call", func() {
					for p.Waiting(1) == 0 {
						time.Sleep(time.Millisecond)
					}
				})
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			began := time.Now()
			soon(t, "draining", func() { err = s.Drain(ctx) })
			if took := time.Since(began); !errors.Is(err, proxy.ErrCallsCut) || took > 5*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
		})
	}
}

// asked is a service with a unary call.
var asked = grpc.ServiceDesc{ServiceName: "test.Asked", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Ask",
	Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		f := &codec.Frame{}
		return f, dec(f)
	}}}}

// As long as calls under way hold up a server that drains, it takes no new ones: those of other services would be cut in the end.
//
// Mutation with which it was seen to fail: gRPC is told when the streams have ended.
func TestDrainTakesNoCallsOfOtherServices(t *testing.T) {
	p, _ := lonely(t)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Services: func(r grpc.ServiceRegistrar) { r.RegisterService(&asked, struct{}{}) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	waits, st := openStream(t, s.Addr())
	if err := st.SendMsg(&codec.Frame{Data: submitFrame(1, 600_000)}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the call", func() {
		for p.Waiting(1) == 0 {
			time.Sleep(time.Millisecond)
		}
	})
	conn, _ := openStream(t, s.Addr())
	ask := func() error { return conn.Invoke(within(t), "/test.Asked/Ask", &codec.Frame{}, &codec.Frame{}) }
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(within(t)) }()
	soon(t, "refused", func() {
		for ask() == nil {
			time.Sleep(time.Millisecond)
		}
	})
	select {
	case err := <-drained:
		t.Errorf("a call is under way, and draining ends: %v", err)
	default:
	}
	_ = waits.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}
