package proxy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// guarded is a proxy without nodes, whose port asks for a token: calls wait. change replaces the file of tokens, of one line, in one instant.
func guarded(t *testing.T, limits proxy.Limits) (p *proxy.Proxy, s *proxy.Server, token grpc.DialOption, change func(role access.Role)) {
	t.Helper()
	secret, line, err := access.NewToken("w", access.Write, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tokens")
	change = func(role access.Role) {
		text := "# nobody\n"
		if role > access.None {
			text = "w " + role.String() + line[len("w write"):] + "\n"
		}
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	change(access.Write)
	tokens, err := access.OpenTokens(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, _ = lonely(t)
	s, err = p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Access: access.Port{Policy: &access.Policy{Tokens: tokens}}, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return p, s, grpc.WithPerRPCCredentials(access.Token(secret)), change
}

// answersOf reads a stream to its end, and returns that.
func answersOf(t *testing.T, st grpc.ClientStream, f func(*wire.ReceivedAnswer)) error {
	t.Helper()
	for {
		var got codec.Frame
		if err := st.RecvMsg(&got); err != nil {
			return err
		}
		if err := wire.ParseAnswers(got.Data, f); err != nil {
			t.Fatal(err)
		}
	}
}

// plainStream is openStream with a token, which goes over access.Plain.
func plainStream(t *testing.T, address string, token grpc.DialOption) grpc.ClientStream {
	t.Helper()
	_, st := openStream(t, address, token, grpc.WithTransportCredentials(access.Plain()))
	return st
}

// A stream on which calls wait ends when its caller's token is taken out, although the client says nothing more: and says why.
func TestStreamEndsWithItsToken(t *testing.T) {
	_, s, token, change := guarded(t, proxy.Limits{})
	st := plainStream(t, s.Addr(), token)
	if err := st.SendMsg(&codec.Frame{Data: submitFrame(1, 600_000)}); err != nil {
		t.Fatal(err)
	}
	change(access.None)
	began := time.Now()
	if err := answersOf(t, st, func(*wire.ReceivedAnswer) {}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after %v it ends with %v", time.Since(began), err)
	}
}

// The calls of one long frame have the role that their caller has when each begins, and not when the frame came.
func TestRoleWithinAFrame(t *testing.T) {
	_, s, token, change := guarded(t, proxy.Limits{StreamCalls: 1})
	st := plainStream(t, s.Addr(), token)
	if err := st.SendMsg(&codec.Frame{Data: submitFrame(40, 200)}); err != nil { // one after the other: eight seconds
		t.Fatal(err)
	}
	change(access.Read)
	_ = st.CloseSend() // it fails with the stream, which is read
	forbidden := 0
	if err := answersOf(t, st, func(a *wire.ReceivedAnswer) {
		if e, _ := core.Verdict(a.Err); e != nil && e.Code == core.CodeForbidden {
			forbidden++
		}
	}); forbidden < 10 {
		t.Errorf("of 40 commands %d are refused; %v", forbidden, err)
	}
}

// A call that has waited for room has the role that its caller has then.
func TestRoleAfterWaiting(t *testing.T) {
	p, s, token, change := guarded(t, proxy.Limits{StreamCalls: 1})
	st := plainStream(t, s.Addr(), token)
	if err := st.SendMsg(&codec.Frame{Data: submitFrame(2, 5000)}); err != nil { // the second begins when the first ends, and its role was looked up long before
		t.Fatal(err)
	}
	soon(t, "the first call", func() {
		for p.Waiting(1) == 0 {
			time.Sleep(time.Millisecond)
		}
	})
	change(access.Read)
	_ = st.CloseSend() // it fails with the stream, which is read
	codes := map[uint64]core.Code{}
	err := answersOf(t, st, func(a *wire.ReceivedAnswer) {
		if e, _ := core.Verdict(a.Err); e != nil {
			codes[a.ID] = e.Code
		}
	})
	if codes[1] != core.CodeNoLeader || codes[2] != core.CodeForbidden {
		t.Errorf("%v, %v", codes, err)
	}
}

// Who reads nothing loses its stream, whatever it says meanwhile.
func TestTalksAndReadsNothing(t *testing.T) {
	_, s := lonely(t)
	s.Patience(300 * time.Millisecond)
	_, st := openStream(t, s.Addr(), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	var frame []byte
	one := marshal(&decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: 1}}})
	for i := range uint64(20_000) { // calls that ask for nothing: an error each
		frame = append(frame, marshal(&decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: i + 1}}})...)
	}
	if err := st.SendMsg(&codec.Frame{Data: frame}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); s.Streams() > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it keeps its stream")
		}
		_ = st.SendMsg(&codec.Frame{Data: one}) // it fails when the stream has ended
	}
}

// Who reads nothing loses its stream also when it says no more itself.
func TestHalfClosedAndNotRead(t *testing.T) {
	_, s := lonely(t)
	s.Patience(300 * time.Millisecond)
	_, st := openStream(t, s.Addr(), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	var frame []byte
	for i := range uint64(20_000) { // calls that ask for nothing: an error each
		frame = append(frame, marshal(&decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: i + 1}}})...)
	}
	if err := st.SendMsg(&codec.Frame{Data: frame}); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	soon(t, "ending the stream", func() {
		for s.Streams() > 0 {
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// Who watches the health of a server does not hold up its draining, and is told.
func TestDrainWithWatchers(t *testing.T) {
	_, s := lonely(t)
	conn, err := grpc.NewClient(s.Addr(), access.DialOptions(nil, nil)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w, err := healthv1.NewHealthClient(conn).Watch(within(t), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	soon(t, "draining", func() { err = s.Drain(ctx) })
	if err != nil || ctx.Err() != nil {
		t.Errorf("it took all the time that there was: %v", err)
	}
}

// One host does not take all connections.
func TestConnectionsOfOneHost(t *testing.T) {
	p, _ := lonely(t)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", MaxConnections: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 6 {
		defer idle(t, s.Addr()).Close()
	}
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second)) // it is open
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the seventh connection of eight: %v", err)
	}
}

// What waits for a leader counts for its client: one alone does not fill the room for all.
func TestWaitingIsBoundedByClient(t *testing.T) {
	p, _ := lonely(t)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Admission: proxy.Admission{ClientCalls: 8}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, st := openStream(t, s.Addr())
	for range 2 { // whose places are free again when they have ended
		if err := st.SendMsg(&codec.Frame{Data: submitFrame(20, 2000)}); err != nil {
			t.Fatal(err)
		}
		refused, late := 0, 0
		for refused+late < 20 {
			var got codec.Frame
			if err := st.RecvMsg(&got); err != nil {
				t.Fatal(err)
			}
			if err := wire.ParseAnswers(got.Data, func(a *wire.ReceivedAnswer) {
				switch e, _ := core.Verdict(a.Err); {
				case e == nil || e.Kind != core.ErrNotProposed:
					t.Errorf("%v", a.Err)
				case e.Code == core.CodeOverloaded:
					refused++
				default:
					late++
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		if late != 7 { // the eighth is for what makes room
			t.Errorf("%d have waited, %d were refused", late, refused)
		}
	}
}

// Without tokens each connection is a client: what one floods the proxy with leaves the others their room.
func TestConnectionsAreClients(t *testing.T) {
	p, _ := lonely(t)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Admission: proxy.Admission{ClientCalls: 8}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, flood := openStream(t, s.Addr())
	if err := flood.SendMsg(&codec.Frame{Data: submitFrame(20, 600_000)}); err != nil {
		t.Fatal(err)
	}
	for refused := 0; refused < 13; { // seven wait, for long
		var got codec.Frame
		if err := flood.RecvMsg(&got); err != nil {
			t.Fatal(err)
		}
		if err := wire.ParseAnswers(got.Data, func(*wire.ReceivedAnswer) { refused++ }); err != nil {
			t.Fatal(err)
		}
	}
	_, other := openStream(t, s.Addr())
	if err := other.SendMsg(&codec.Frame{Data: submitFrame(7, 300)}); err != nil {
		t.Fatal(err)
	}
	if err := other.CloseSend(); err != nil {
		t.Fatal(err)
	}
	late := 0
	if err := answersOf(t, other, func(a *wire.ReceivedAnswer) {
		if e, _ := core.Verdict(a.Err); e != nil && e.Code == core.CodeNoLeader {
			late++
		} else {
			t.Errorf("a call beside a flood: %v", a.Err)
		}
	}); !errors.Is(err, io.EOF) || late != 7 {
		t.Errorf("%d of 7 calls beside a flood waited; %v", late, err)
	}
}

// stuck is a machine whose queries and decisions take until it is let go.
type stuck struct {
	counters
	go_     chan struct{}
	decided *atomic.Int64 // decisions that were begun
}

func newStuck() stuck { return stuck{go_: make(chan struct{}), decided: new(atomic.Int64)} }

func (s stuck) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	s.decided.Add(1)
	<-s.go_
	return s.counters.Decide(v, c)
}

func (s stuck) Query(v rsm.View, q []byte) ([]byte, error) {
	<-s.go_
	return s.counters.Query(v, q)
}

// A node answers in time, whatever its machine does: a command may have happened, a read has not.
func TestNodesKnowDeadlines(t *testing.T) {
	m := newStuck()
	n := startOne(t, "", m)
	defer close(m.go_)
	read := &decreev1.Call_Read{Read: &decreev1.ReadRequest{Shard: 1, Level: decreev1.Level_LEVEL_STALE}}
	submit := &decreev1.Call_Submit{Submit: &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}}}
	ends := func(timeoutMS uint32) map[uint64]*core.Error {
		_, st := openStream(t, n.Addr())
		for _, call := range []*decreev1.Call{{Id: 1, TimeoutMs: timeoutMS, Call: read}, {Id: 2, TimeoutMs: timeoutMS, Call: submit}} {
			if err := st.SendMsg(&codec.Frame{Data: marshal(&decreev1.ConnectRequest{Calls: []*decreev1.Call{call}})}); err != nil {
				t.Fatal(err)
			}
		}
		ends := map[uint64]*core.Error{}
		for len(ends) < 2 {
			var got codec.Frame
			if err := st.RecvMsg(&got); err != nil {
				t.Fatalf("%v; %v", ends, err)
			}
			if err := wire.ParseAnswers(got.Data, func(a *wire.ReceivedAnswer) { ends[a.ID], _ = core.Verdict(a.Err) }); err != nil {
				t.Fatal(err)
			}
		}
		return ends
	}
	got := ends(200)
	for timeout := uint32(1000); m.decided.Load() == 0 && timeout < 20_000; timeout *= 4 { // a busy machine did not come to the decision in time
		got = ends(timeout)
	}
	for id, kind := range map[uint64]error{1: rsm.ErrNotProposed, 2: rsm.ErrUnknown} {
		if e := got[id]; e == nil || e.Kind != kind || e.Code != core.CodeCancelled {
			t.Errorf("call %d: %v", id, e)
		}
	}
}

// A node of another cluster at the address of one of ours is asked nothing, although it has a shard of the same id. Both are known from the first answer
// on; the streams to them are opened before that, or after.
func TestNodeOfAnotherCluster(t *testing.T) {
	start := func(cluster string, voters []rsm.NodeID, id rsm.NodeID, peers map[rsm.NodeID]string) *rsm.Node {
		n, err := rsm.Start(rsm.Config{Cluster: cluster, Node: id, Dir: t.TempDir(), Peers: peers, DiskWatermark: -1, Services: proxy.Register,
			Shards: []rsm.ShardConfig{{ID: 1, Machine: counters{}, Voters: voters}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	ours, theirs := testkit.FreePort(t), testkit.FreePort(t)
	foreign := start("theirs", []rsm.NodeID{2}, 2, map[rsm.NodeID]string{2: theirs})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := foreign.Shard(1).Do(within(t), rsm.Request{Commands: [][]byte{[]byte("k")}}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	// Node 2 of ours was there once.
	start("ours", []rsm.NodeID{1, 2}, 1, map[rsm.NodeID]string{1: ours, 2: theirs})
	for name, cfg := range map[string]proxy.Config{
		"named":                     {Nodes: []string{ours}, Cluster: "ours"},
		"learned":                   {Nodes: []string{ours}},
		"its address is given, too": {Nodes: []string{ours, theirs}, Cluster: "ours"},
	} {
		cfg.Refresh = 50 * time.Millisecond
		p, err := proxy.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		answered := 0
		for deadline := time.Now().Add(30 * time.Second); answered < 40 && time.Now().Before(deadline); {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			answer, err := p.Shard(1).Read(ctx, rsm.Stale, []byte("k"))
			cancel()
			if err != nil {
				if !errors.Is(err, rsm.ErrNotProposed) {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if answered++; binary.BigEndian.Uint64(answer) != 0 {
				t.Fatalf("%s: answer %d is of another cluster", name, answered)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if answered == 0 {
			t.Errorf("%s: nobody answers", name)
		}
		p.Close()
	}
}
