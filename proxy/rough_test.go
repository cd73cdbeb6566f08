package proxy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// openStream opens a stream of calls as a client of another making would.
func openStream(t testing.TB, address string, options ...grpc.DialOption) (*grpc.ClientConn, grpc.ClientStream) {
	t.Helper()
	conn, err := grpc.NewClient(address, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.Codec{}))}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithCancel(within(t))
	t.Cleanup(cancel)
	stream, err := conn.NewStream(ctx, &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return conn, stream
}

// lonely is a proxy that finds no node: calls wait.
func lonely(t testing.TB) (*proxy.Proxy, *proxy.Server) {
	return startProxy(t, proxy.Config{Nodes: []string{testkit.FreePort(t)}, Cluster: "lonely"})
}

func soon(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s takes longer than 30 s\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

func submitFrame(n int, timeoutMS uint32) []byte {
	var b []byte
	for i := range n {
		c := &decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: uint64(i + 1), TimeoutMs: timeoutMS,
			Call: &decreev1.Call_Submit{Submit: &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}}}}}}
		b = append(b, marshal(c)...)
	}
	return b
}

// A server closes at once, whatever its clients have left behind: half-closed streams with calls under way, full ones.
func TestCloseWithCallsWaiting(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, grpc.ClientStream){
		"half-closed": func(t *testing.T, st grpc.ClientStream) {
			if err := st.SendMsg(&codec.Frame{Data: submitFrame(3, 600_000)}); err != nil {
				t.Fatal(err)
			}
			_ = st.CloseSend()
		},
		"full": func(t *testing.T, st grpc.ClientStream) {
			if err := st.SendMsg(&codec.Frame{Data: submitFrame(10_000, 600_000)}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, s := lonely(t)
			_, st := openStream(t, s.Addr())
			leave(t, st)
			for until := time.Now().Add(30 * time.Second); p.Waiting(1) == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(until) {
					t.Fatal("the calls do not wait")
				}
			}
			soon(t, "closing", s.Close)
		})
	}
}

// Frames that are not what they should be cost their stream, and the server lives on.
func TestRoughFrames(t *testing.T) {
	c := startCalm(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	good := submitFrame(1, 1000)
	for name, frame := range map[string][]byte{
		"cut short": good[:len(good)-2],
		"random":    {0xff, 0x01, 0x80, 0x80, 0x80},
		"no id":     {0x0a, 0x02, 0x10, 0x05},
		"too large": make([]byte, 17<<20),
	} {
		_, st := openStream(t, s.Addr(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
		_ = st.SendMsg(&codec.Frame{Data: frame}) // what came of it is read
		var f codec.Frame
		if err := st.RecvMsg(&f); err == nil {
			t.Errorf("%s: it is answered with %x", name, f.Data)
		}
	}
	reply, err := dial(t, s.Addr()).Shard(1).Submit(within(t), []byte("a"))
	if got := sum(t, reply, err); got != 1 {
		t.Errorf("got %d", got)
	}
}

// A frame of very many very small calls does not take a multiple of its size in memory.
func TestManySmallCalls(t *testing.T) {
	_, s := lonely(t)
	_, st := openStream(t, s.Addr(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	var frame []byte
	for len(frame) < 15<<20 {
		frame = append(frame, 0x0a, 0x06, 0x08, 0x01, 0x22, 0x02, 0x08, 0x01) // call 1: read of shard 1
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if err := st.SendMsg(&codec.Frame{Data: frame}); err != nil {
		t.Fatal(err)
	}
	var highest uint64
	for until := time.Now().Add(time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		runtime.ReadMemStats(&after)
		highest = max(highest, after.HeapAlloc)
	}
	if grown := int64(highest) - int64(before.HeapAlloc); grown > 150<<20 {
		t.Errorf("a frame of %d MiB takes %d MiB", len(frame)>>20, grown>>20)
	}
}

// Who does not read holds up nobody, as long as it has its stream.
func TestSlowReader(t *testing.T) {
	c := startCalm(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	s.Patience(time.Hour)
	other := dial(t, s.Addr()).Shard(1)
	large := make([]byte, 1<<10)
	if _, err := other.Submit(within(t), large); err != nil {
		t.Fatal(err)
	}
	_, st := openStream(t, s.Addr(), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if st.SendMsg(&codec.Frame{Data: submitFrame(1000, 10_000)}) != nil {
				return
			}
		}
	})
	for range 50 {
		if _, err := other.Submit(within(t), []byte("b")); err != nil {
			t.Fatalf("somebody else: %v", err)
		}
	}
	close(stop)
	soon(t, "closing", s.Close)
	wg.Wait()
}

// A drained proxy answers what it has taken, and its clients go on elsewhere at once, also those that wait for something long.
func TestDrain(t *testing.T) {
	c := startCalm(t)
	cfg := proxy.Config{Nodes: anyNode(c)}
	_, a := startProxy(t, cfg)
	_, b := startProxy(t, cfg)
	cl := dial(t, a.Addr(), b.Addr())
	sh := cl.Shard(1)
	if _, err := sh.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	if a.Streams() == 0 { // it began at the other
		a = b
	}
	// A read of what is not there yet: it waits, beyond the end of the commands.
	reading, later := make(chan error, 1), sh.Token()+100
	go func() {
		_, err := sh.ReadAt(within(t), rsm.AtToken, later, []byte("a"))
		reading <- err
	}()
	time.Sleep(50 * time.Millisecond)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if err := a.Drain(within(t)); err != nil {
			t.Error(err)
		}
	}()
	for i := range 50 {
		reply, err := sh.Submit(within(t), []byte("a"))
		if got := sum(t, reply, err); got != uint64(i+2) {
			t.Fatalf("command %d was the %d. to happen", i+2, got)
		}
	}
	select {
	case err := <-reading:
		t.Errorf("the commands were waiting for the read, which ended with %v", err)
	default:
	}
	for sh.Token() < later {
		if _, err := sh.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
	}
	soon(t, "the read", func() {
		if err := <-reading; err != nil {
			t.Errorf("the read that was taken ends with %v", err)
		}
	})
	soon(t, "draining", func() { <-drained })
}

// Proxy, server and client leave nothing behind.
func TestLeavesNothing(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	c := startCalm(t)
	p, err := proxy.New(proxy.Config{Nodes: anyNode(c)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.Dial([]string{s.Addr()}, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Shard(1).Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	pending := cl.Shard(2).Go(within(t), add("a"))
	cl.Close()
	<-pending.Done()
	if _, err := cl.Shard(1).Submit(within(t), []byte("a")); !errors.Is(err, rsm.ErrNotProposed) {
		t.Errorf("a closed client says %v", err)
	}
	s.Close()
	p.Close()
	_ = c.Close() // whose goroutines come and go
	testkit.NoLeaks(t, ignore)
}

// Nobody waits for the next refresh when a leader goes.
func TestLeaderGoes(t *testing.T) {
	c := startCluster(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c), Refresh: time.Hour})
	sh := dial(t, s.Addr()).Shard(1)
	if _, err := sh.Submit(within(t), []byte("k")); err != nil { // the proxy knows all nodes then
		t.Fatal(err)
	}
	for i := range uint64(3) {
		leader, err := c.Leader(within(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := leader.ID(); got == 0 {
			t.Fatal("no id")
		}
		c.Kill(leader.ID())
		reply, err := sh.Submit(within(t), []byte("k"))
		if got := sum(t, reply, err); got != i+2 {
			t.Fatalf("got %d, want %d", got, i+2)
		}
		if err := c.Restart(leader.ID()); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzFrames throws frames at a server: it answers or ends the stream, and goes on serving.
func FuzzFrames(f *testing.F) {
	f.Add(submitFrame(1, 10))
	f.Add([]byte{0x0a, 0x02, 0x08, 0x01})
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0x7f})
	f.Add(binary.AppendUvarint([]byte{0x0a}, 1<<40))
	_, s := lonely(f)
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.Codec{})))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close() })
	f.Fuzz(func(t *testing.T, frame []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		stream, err := conn.NewStream(ctx, &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(&codec.Frame{Data: frame}); err != nil {
			t.Fatal(err)
		}
		probe := marshal(&decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: 1 << 60}}}) // asks for nothing: answered at once
		_ = stream.SendMsg(&codec.Frame{Data: probe})                                      // the stream may have ended
		for {
			var got codec.Frame
			if err := stream.RecvMsg(&got); err != nil {
				e, _ := core.Verdict(wire.FromStatus(err))
				if e == nil || e.Code != core.CodeBadRequest {
					t.Fatalf("the stream ends with %v", err)
				}
				return
			}
			answered := false
			if err := wire.ParseAnswers(got.Data, func(a *wire.ReceivedAnswer) { answered = answered || a.ID == 1<<60 }); err != nil {
				t.Fatal(err)
			}
			if answered {
				return
			}
		}
	})
}

func marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}
