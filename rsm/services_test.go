package rsm

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// statusService answers a call with nothing, if the node can say how it stands.
func statusService(n *Node, r grpc.ServiceRegistrar) {
	ask := func(any) error { _, err := n.Status(); return err }
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Status",
		Methods: []grpc.MethodDesc{{MethodName: "Ask", Handler: func(srv any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return &emptypb.Empty{}, errors.Join(dec(&emptypb.Empty{}), ask(srv))
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(srv any, s grpc.ServerStream) error {
			return errors.Join(s.RecvMsg(&emptypb.Empty{}), ask(srv), s.SendMsg(&emptypb.Empty{}))
		}}},
	}, nil)
}

// Services are on the node's own port, and see no node that has not started.
func TestServices(t *testing.T) {
	address, done := make(chan string, 1), make(chan struct{})
	go func() { // calls from before the node has started
		defer close(done)
		conn, err := grpc.NewClient(<-address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for range 20 {
			if err := conn.Invoke(within(t), "/test.Status/Ask", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true)); err != nil {
				t.Error(err)
			}
		}
		s, err := conn.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true}, "/test.Status/Watch")
		if err == nil {
			err = errors.Join(s.SendMsg(&emptypb.Empty{}), s.CloseSend(), s.RecvMsg(&emptypb.Empty{}))
		}
		if err != nil {
			t.Error(err)
		}
	}()
	startCluster(t, t.TempDir(), counters{}, func(cfg *Config) {
		cfg.Services = statusService
		if cfg.Node == 1 {
			address <- cfg.Peers[1]
		}
	})
	<-done
}

// Calls and streams that come before Start has returned are not handed to the service.
func TestServicesWaitForStart(t *testing.T) {
	var asked atomic.Int32
	n := &Node{ready: make(chan struct{})}
	n.cfg.Services = func(_ *Node, r grpc.ServiceRegistrar) {
		r.RegisterService(&grpc.ServiceDesc{
			ServiceName: "test.Status",
			Methods: []grpc.MethodDesc{{MethodName: "Ask", Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				asked.Add(1)
				return &emptypb.Empty{}, dec(&emptypb.Empty{})
			}}},
			Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
				asked.Add(1)
				return s.SendMsg(&emptypb.Empty{})
			}}},
		}, nil)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	n.services(server)
	go func() { _ = server.Serve(l) }() // ends with Stop
	defer server.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(ctx context.Context) error {
		return conn.Invoke(ctx, "/test.Status/Ask", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true))
	}
	watch := func(ctx context.Context) error {
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Status/Watch", grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		return errors.Join(s.SendMsg(&emptypb.Empty{}), s.CloseSend(), s.RecvMsg(&emptypb.Empty{}))
	}
	for _, call := range []func(context.Context) error{ask, watch} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := call(ctx); status.Code(err) != codes.DeadlineExceeded || asked.Load() != 0 {
			t.Errorf("before the start: %v, asked %d times", err, asked.Load())
		}
		cancel()
	}
	close(n.ready)
	for _, call := range []func(context.Context) error{ask, watch} {
		if err := call(within(t)); err != nil {
			t.Error(err)
		}
	}
	// The two that gave up may have been waiting at the gate still, as the server sees it.
	if n := asked.Load(); n < 2 || n > 4 {
		t.Errorf("asked %d times", n)
	}
}

// Peers are silent if they are not heard while the node serves. While it reads its log they cannot be.
//
// Mutations with which it was seen to fail: a peer counts as heard when it is met, and not when the node serves; nobody is ever silent.
func TestPeersAreNotSilentBeforeTheNodeServes(t *testing.T) {
	cfg := Config{
		Cluster: "c", Node: 1, Dir: t.TempDir(), Listen: "127.0.0.1:0", Peers: map[NodeID]string{1: "127.0.0.1:1", 2: "127.0.0.1:1"}, DiskWatermark: -1,
		ElectionTimeout: time.Minute, FsyncStall: time.Minute, // the test is never slower than three
		Shards: []ShardConfig{{ID: 1, Machine: counters{}}},
	}
	back := func(n *Node) { // all that was until now was an hour earlier
		n.engine.peers.get(2).heard.Add(-int64(time.Hour))
		n.serving -= int64(time.Hour)
	}
	cfg.Services = func(n *Node, _ grpc.ServiceRegistrar) { back(n) } // the log has been read
	n, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Kill()
	look := func() PeerStatus {
		s, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		return s.Peers[2]
	}
	if p := look(); p.Silent || p.LastHeard >= time.Hour {
		t.Errorf("at first: %+v", p)
	}
	back(n)
	if p := look(); !p.Silent || p.LastHeard < time.Hour {
		t.Errorf("after an hour: %+v", p)
	}
}
