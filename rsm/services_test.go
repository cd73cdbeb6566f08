package rsm

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
