package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// A client whose address comes to lead into another cluster begins anew there. That cluster has given the client's session to somebody else: ids are places in the log, and
// both logs begin alike. Under one session, the second of two equal commands would get the first one's reply, and never happen.
//
// Mutation with which it was seen to fail: the client keeps its session.
func TestAnotherClusterBehindTheAddress(t *testing.T) {
	start := func(name string) (*rsm.Cluster, *proxy.Proxy) {
		c, err := rsm.StartCluster(rsm.ClusterConfig{Name: name, Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: counters{}}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		p, err := proxy.New(proxy.Config{Node: c.Node(1), Cluster: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return c, p
	}
	serve := func(p *proxy.Proxy, listen string) *proxy.Server {
		for range 100 {
			s, err := p.Serve(proxy.ServerConfig{Listen: listen})
			if err == nil {
				t.Cleanup(s.Close)
				return s
			}
			time.Sleep(20 * time.Millisecond) // the port is not free yet
		}
		t.Fatalf("cannot listen on %s", listen)
		return nil
	}
	_, one := start("one")
	_, two := start("two")
	s := serve(one, "127.0.0.1:0")
	a := dial(t, s.Addr()).Shard(1)
	reply, err := a.Submit(within(t), []byte("first"))
	sum(t, reply, err)
	a.SetToken(1 << 40)
	own := serve(two, "127.0.0.1:0")
	var others []*client.Shard
	for range 8 {
		b := dial(t, own.Addr()).Shard(1)
		others = append(others, b)
		reply, err := b.Submit(within(t), []byte("first"))
		sum(t, reply, err)
	}
	s.Close()
	serve(two, s.Addr())
	for {
		// What was sent on the old stream, which had ended and was not known to have, may have happened in the old cluster.
		if reply, err = a.Submit(within(t), []byte("second")); !errors.Is(err, rsm.ErrUnknown) {
			break
		}
	}
	seen := map[string]bool{fmt.Sprint(sum(t, reply, err)): true}
	for _, b := range others {
		reply, err := b.Submit(within(t), []byte("second"))
		seen[fmt.Sprint(sum(t, reply, err))] = true
	}
	if len(seen) != 9 {
		t.Errorf("nine commands had %d different outcomes: %v", len(seen), seen)
	}
	if a.Token() >= 1<<40 {
		t.Error("the token of the former cluster is kept")
	}
}

// A stream of another service that does not end does not hold up draining for ever, where no deadline is given.
func TestDrainWithoutADeadline(t *testing.T) {
	defer proxy.SetDrainPatience(300 * time.Millisecond)()
	p, _ := lonely(t)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Services: func(r grpc.ServiceRegistrar) {
		r.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Endless", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{StreamName: "Wait", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error {
				if err := s.SendHeader(nil); err != nil {
					return err
				}
				<-s.Context().Done()
				return nil
			}}}}, nil)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := plain(t, s.Addr()).NewStream(within(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Endless/Wait")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Header(); err != nil {
		t.Fatal(err)
	}
	soon(t, "draining", func() { s.Drain(context.Background()) })
}
