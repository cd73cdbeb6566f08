package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// gated returns an address that leads to another one when it is opened: connections wait for that.
func gated(t *testing.T, to string) (address string, open func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	opened := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
	})
	lead := func(from net.Conn) {
		defer from.Close()
		defer context.AfterFunc(ctx, func() { _ = from.Close() })()
		select {
		case <-opened:
		case <-ctx.Done():
			return
		}
		onto, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer onto.Close()
		go func() {
			defer onto.Close()
			_, _ = io.Copy(onto, from)
		}()
		_, _ = io.Copy(from, onto)
	}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go lead(from)
		}
	}()
	return l.Addr().String(), func() { close(opened) }
}

// serveAt serves a proxy at an address that somebody else may not have left yet.
func serveAt(t *testing.T, p *proxy.Proxy, listen string) *proxy.Server {
	t.Helper()
	for ctx := within(t); ; time.Sleep(20 * time.Millisecond) {
		s, err := p.Serve(proxy.ServerConfig{Listen: listen})
		if err == nil {
			t.Cleanup(s.Close)
			return s
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// A client whose address comes to lead into another cluster begins anew there. That cluster has given the client's session to somebody else: ids are places in the log, and
// both logs begin alike. Under one session, the second of two equal commands would get the first one's reply, and never happen. A proxy that learns of which cluster it is
// from its nodes, which answer only when calls wait already, is no exception.
//
// Mutations with which it was seen to fail: the client keeps its session; a proxy takes streams before it knows its cluster, and the client takes them for its own
// cluster's.
func TestAnotherClusterBehindTheAddress(t *testing.T) {
	for name, direct := range map[string]bool{"named": true, "learned": false} {
		t.Run(name, func(t *testing.T) {
			one, two := startOne(t, "one", counters{}), startOne(t, "two", counters{})
			// serve has a proxy of a node's cluster serve; what it returns lets the proxy reach its nodes, when the client is there.
			serve := func(cluster string, n *rsm.Node, listen string) (*proxy.Server, func()) {
				cfg := proxy.Config{Node: n, Cluster: cluster}
				var open func()
				if !direct {
					cfg = proxy.Config{}
					var address string
					address, open = gated(t, n.Addr())
					cfg.Nodes = []string{address}
				}
				p, err := proxy.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.Close)
				s := serveAt(t, p, listen)
				return s, func() {
					if direct {
						return
					}
					for ctx := within(t); s.Streams() == 0 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
					}
					// Were the stream taken, the call would be here now.
					for until := time.Now().Add(300 * time.Millisecond); p.Waiting(1) == 0 && time.Now().Before(until); time.Sleep(time.Millisecond) {
					}
					open()
				}
			}
			s, open := serve("one", one, "127.0.0.1:0")
			a := dial(t, s.Addr()).Shard(1)
			// submit lets the proxy reach its nodes while the command is under way.
			submit := func(open func(), command string) (reply []byte, err error) {
				done := make(chan struct{})
				go func() {
					defer close(done)
					reply, err = a.Submit(within(t), []byte(command))
				}()
				open()
				<-done
				return reply, err
			}
			reply, err := submit(open, "first")
			sum(t, reply, err)
			a.SetToken(1 << 40)
			p, err := proxy.New(proxy.Config{Node: two})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			own := serveAt(t, p, "127.0.0.1:0")
			var others []*client.Shard
			for range 8 {
				b := dial(t, own.Addr()).Shard(1)
				others = append(others, b)
				reply, err := b.Submit(within(t), []byte("first"))
				sum(t, reply, err)
			}
			s.Close()
			_, open = serve("two", two, s.Addr())
			reply, err = submit(open, "second")
			for errors.Is(err, rsm.ErrUnknown) {
				// What was sent on the old stream, which had ended and was not known to have, may have happened in the old cluster.
				reply, err = a.Submit(within(t), []byte("second"))
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
		})
	}
}

// A proxy that does not know its cluster takes no stream: it says so after a while, in words, is not ready meanwhile, and such streams count, and end when it drains,
// like all others.
//
// Mutations with which it was seen to fail: streams are taken at once; they wait without end; a closing server does not end them.
func TestNamelessProxyTakesNoStream(t *testing.T) {
	p, s := startProxy(t, proxy.Config{Nodes: []string{"127.0.0.1:1"}})
	if missing := p.Ready(); len(missing) != 1 {
		t.Errorf("it is missing %q", missing)
	}
	open := func() error {
		conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.Codec{})))
		if err != nil {
			return err
		}
		defer conn.Close()
		st, err := conn.NewStream(within(t), &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName)
		if err != nil {
			return err
		}
		if err := st.SendMsg(&codec.Frame{Data: submitFrame(3, 1000)}); err != nil {
			return err
		}
		if h, err := st.Header(); err == nil && h != nil {
			return fmt.Errorf("it is taken, with %v", h)
		}
		return st.RecvMsg(&codec.Frame{})
	}
	err := wire.FromStatus(open())
	if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeUnreachable || e.Kind != core.ErrNotProposed || !strings.Contains(e.Message, "does not know yet of which cluster it is") {
		t.Errorf("it ends with %v", err)
	}
	if n := p.Waiting(1); n != 0 {
		t.Errorf("%d calls wait in a proxy that does not know whose they are", n)
	}
	s.Meeting(time.Hour)
	ended := make(chan error, 1)
	go func() { ended <- open() }()
	for ctx := within(t); s.Streams() == 0; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("the stream is not counted")
		}
	}
	soon(t, "draining", func() { _ = s.Drain(within(t)) }) // how the stream ends is looked at
	err = wire.FromStatus(<-ended)
	if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeClosed {
		t.Errorf("when the server drains it ends with %v", err)
	}
}
