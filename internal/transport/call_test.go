package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/decree-raft/decree/internal/testkit"
)

// onBothNetworks runs f over gRPC and in memory. start starts nodes 1 and 2 that
// know each other; node 2 has what change does.
func onBothNetworks(t *testing.T, f func(t *testing.T, start func(change func(*Config)) (a, b Peer))) {
	onlyTwo := func(change func(*Config)) func(*Config) {
		return func(c *Config) {
			if c.Node == 2 {
				change(c)
			}
		}
	}
	t.Run("grpc", func(t *testing.T) {
		f(t, func(change func(*Config)) (Peer, Peer) {
			a, b := startPair(t, onlyTwo(change))
			return a, b
		})
	})
	t.Run("memory", func(t *testing.T) {
		f(t, func(change func(*Config)) (Peer, Peer) {
			net := NewMemoryNetwork()
			return startMemory(t, net, 1, onlyTwo(change)).MemoryNode, startMemory(t, net, 2, onlyTwo(change)).MemoryNode
		})
	})
}

// expectCallError compares the kind and, in part, the sentence.
func expectCallError(t testing.TB, err, kind error, sentence string) {
	t.Helper()
	var ce *CallError
	if !errors.As(err, &ce) || !errors.Is(err, kind) || !strings.Contains(ce.Text, sentence) {
		t.Fatalf("got %v, expected %v with %q", err, kind, sentence)
	}
}

// callUp calls until the peer answers: it may be about to start.
func callUp(t testing.TB, p Peer, to uint64) {
	t.Helper()
	eventually(t, func() bool {
		_, err := p.Call(patient(t), to, 1, nil)
		if err != nil && !errors.Is(err, ErrUnreachable) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// echo answers with who asked for what.
func echo(_ context.Context, from uint64, method uint8, request []byte) ([]byte, error) {
	return fmt.Appendf(nil, "%d/%d/%s", from, method, request), nil
}

func serveEcho(c *Config) { c.Serve = echo }

func TestCall(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		a, b := start(func(c *Config) {
			c.Serve = func(ctx context.Context, from uint64, method uint8, request []byte) ([]byte, error) {
				switch method {
				case 7:
					return nil, errors.New("the snapshot is gone: " + string(request))
				case 8:
					return bytes.Repeat([]byte{3}, len(request)), nil
				case 9:
					return make([]byte, MaxCallReplyBytes), nil
				case 10:
					return make([]byte, MaxCallReplyBytes+1), nil
				case 11:
					return nil, errors.New(strings.Repeat("é", maxCallFault))
				}
				return echo(ctx, from, method, request)
			}
		})
		if got, err := a.Call(patient(t), 2, 255, []byte("chunk")); err != nil || string(got) != "1/255/chunk" {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := a.Call(patient(t), 2, 0, nil); err != nil || string(got) != "1/0/" {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := a.Call(patient(t), 2, 8, nil); err != nil || len(got) != 0 {
			t.Fatalf("%q, %v", got, err)
		}
		// Limits of both directions.
		if got, err := a.Call(patient(t), 2, 8, make([]byte, MaxCallRequestBytes)); err != nil || len(got) != MaxCallRequestBytes {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		_, err := a.Call(patient(t), 2, 8, make([]byte, MaxCallRequestBytes+1))
		expectCallError(t, err, ErrRefused, "the request has 1048577 bytes, at most 1048576 are allowed")
		if got, err := a.Call(patient(t), 2, 9, nil); err != nil || len(got) != MaxCallReplyBytes {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		_, err = a.Call(patient(t), 2, 10, nil)
		expectCallError(t, err, ErrRemote, "the reply of method 10 has 16842753 bytes, at most 16842752 are allowed")
		// Errors of each kind.
		_, err = a.Call(patient(t), 2, 7, []byte("no. 5"))
		expectCallError(t, err, ErrRemote, "the snapshot is gone: no. 5")
		_, err = a.Call(patient(t), 2, 11, nil)
		expectCallError(t, err, ErrRemote, "éé")
		if n := len(errors.Unwrap(err).Error()); len(err.Error()) > maxCallFault+n+100 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		_, err = b.Call(patient(t), 1, 7, nil)
		expectCallError(t, err, ErrRefused, "this node answers no calls")
		if errors.Is(err, ErrBusy) {
			t.Error("refused for good, not for now")
		}
		_, err = a.Call(patient(t), 9, 7, nil)
		expectCallError(t, err, ErrUnreachable, "node 9 is not a peer of node 1")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = a.Call(patient(t), 2, 7, nil)
		expectCallError(t, err, ErrUnreachable, "")
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = a.Call(patient(t), 2, 7, nil)
		expectCallError(t, err, ErrUnreachable, "")
	})
}

// TestCallCancelled ends the wait, tells Serve, and lets the connection be used again.
func TestCallCancelled(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		entered, left := make(chan context.Context, 1), make(chan error, 1)
		a, _ := start(func(c *Config) {
			c.Serve = func(ctx context.Context, from uint64, method uint8, request []byte) ([]byte, error) {
				if method == 1 {
					return nil, nil
				}
				entered <- ctx
				<-ctx.Done()
				left <- ctx.Err()
				return nil, ctx.Err()
			}
		})
		callUp(t, a, 2)
		ctx, cancel := context.WithCancel(context.Background())
		result := make(chan error, 1)
		request := make([]byte, 1000)
		go func() {
			_, err := a.Call(ctx, 2, 2, request)
			result <- err
		}()
		served := await(t, entered, "the call")
		if _, ok := served.Deadline(); ok {
			t.Error("a deadline out of nowhere")
		}
		cancel()
		expectCallError(t, await(t, result, "the end of the call"), context.Canceled, "")
		clear(request) // it is the caller's again
		await(t, left, "the end of Serve")

		// A deadline is known to the other side.
		ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second) // more than it takes to get there
		defer cancel()
		_, err := a.Call(ctx, 2, 2, nil)
		expectCallError(t, err, context.DeadlineExceeded, "")
		served = await(t, entered, "the call")
		if d, ok := served.Deadline(); !ok || time.Until(d) > time.Minute {
			t.Errorf("the deadline is %v, %v", d, ok)
		}
		await(t, left, "the end of Serve")
		_, err = a.Call(ctx, 2, 1, nil)
		expectCallError(t, err, context.DeadlineExceeded, "")
		if _, err := a.Call(patient(t), 2, 1, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestCallsAreBounded fills a node with calls: of one peer, then of many.
func TestCallsAreBounded(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		entered, leave := make(chan uint64, MaxCalls+1), make(chan struct{})
		a, _ := start(func(c *Config) {
			c.Serve = func(_ context.Context, from uint64, _ uint8, _ []byte) ([]byte, error) {
				entered <- from
				<-leave
				return nil, nil
			}
		})
		var wg sync.WaitGroup
		for range MaxCallsPerPeer {
			wg.Go(func() {
				if _, err := a.Call(patient(t), 2, 1, nil); err != nil {
					t.Error(err)
				}
			})
		}
		for range MaxCallsPerPeer {
			await(t, entered, "a call")
		}
		_, err := a.Call(patient(t), 2, 1, nil)
		expectCallError(t, err, ErrBusy, "busy: this node serves 4 calls of node 1, as many as one node may have; try again later")
		if !errors.Is(err, ErrRefused) {
			t.Error("busy is not a refusal")
		}
		close(leave)
		wg.Wait()
		eventually(t, func() bool { // a place is free again when Serve's reply has been given to the connection, where its caller may have it already
			_, err := a.Call(patient(t), 2, 1, nil)
			if err != nil && !errors.Is(err, ErrBusy) {
				t.Fatal(err)
			}
			return err == nil
		})
	})
	t.Run("in all", func(t *testing.T) {
		var s servedCalls
		var ends []func()
		for i := range MaxCalls {
			_, done, err := s.begin(t.Context(), uint64(i/MaxCallsPerPeer))
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, done)
		}
		if _, _, err := s.begin(t.Context(), 99); err == nil || !strings.Contains(err.Error(), "busy: this node serves 16 calls, as many as it serves at once") {
			t.Fatalf("got %v", err)
		}
		for _, done := range ends {
			done()
		}
		if s.total != 0 || len(s.by) != 0 {
			t.Errorf("%d calls of %d nodes are left", s.total, len(s.by))
		}
	})
}

// TestCloseDuringCall: both sides close while a call is served.
func TestCloseDuringCall(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		entered := make(chan struct{}, 1)
		var running sync.WaitGroup
		for _, callee := range []bool{true, false} {
			a, b := start(func(c *Config) {
				c.Serve = func(ctx context.Context, _ uint64, _ uint8, _ []byte) ([]byte, error) {
					running.Add(1)
					defer running.Done()
					entered <- struct{}{}
					<-ctx.Done()
					return nil, ctx.Err()
				}
			})
			result := make(chan error, 1)
			go func() {
				_, err := a.Call(patient(t), 2, 1, nil)
				result <- err
			}()
			await(t, entered, "the call")
			first, second := a, b
			if callee {
				first, second = b, a
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			expectCallError(t, await(t, result, "the end of the call"), ErrUnreachable, "")
			if callee {
				running.Wait() // returns at once: Close has waited for Serve
			}
			if err := second.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestCallsAndFrames has big replies and frames pass at once, in order, both unharmed.
func TestCallsAndFrames(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		const items, callers, each = 2000, 3, 5
		o := newOrder(items)
		a, _ := start(func(c *Config) {
			c.Receive = o.receive
			c.Serve = func(_ context.Context, _ uint64, method uint8, request []byte) ([]byte, error) {
				return bytes.Repeat([]byte{method}, 4<<20), nil
			}
		})
		callUp(t, a, 2)
		eventually(t, func() bool { return a.Stats()[2].Connected || a.Addr() == "memory:1" })
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				for range each {
					got, err := a.Call(patient(t), 2, uint8(c), make([]byte, 1000))
					if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(c)}, 4<<20)) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
				}
			})
		}
		for seq := range uint32(items) {
			if !a.Append(2, 1000, func(b []byte) []byte { return encodeItem(b, 0, seq, 1000) }) {
				t.Fatal("refused")
			}
			a.Flush()
		}
		if err := await(t, o.done, "all items"); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// TestCallWhilePeerRestarts: a call finds the peer that has come back, or fails in order.
func TestCallWhilePeerRestarts(t *testing.T) {
	la, lb := listen(t), listen(t)
	peers := map[uint64]string{1: la.Addr().String(), 2: lb.Addr().String()}
	lb.Close()
	a := startNode(t, 1, func(c *Config) { c.Listener, c.Peers = la, peers })
	_, err := a.Call(patient(t), 2, 1, nil)
	expectCallError(t, err, ErrUnreachable, "connection refused")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range MaxCallsPerPeer {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprint(rand.Uint64())
				got, err := a.Call(patient(t), 2, 1, []byte(want))
				if err != nil && !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrBusy) || err == nil && string(got) != "1/1/"+want {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	for range 3 {
		b := startNode(t, 2, func(c *Config) { c.Listen, c.Peers = peers[2], peers }, serveEcho)
		callUpBusy(t, a, 2)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

// callUpBusy is callUp beside other calls.
func callUpBusy(t testing.TB, p Peer, to uint64) {
	t.Helper()
	eventually(t, func() bool {
		_, err := p.Call(patient(t), to, 1, nil)
		return err == nil
	})
}

func TestCallRefused(t *testing.T) {
	// By the callee, for each reason that it has for streams too.
	t.Run("handshake", func(t *testing.T) {
		served := 0
		b := startNode(t, 2, func(c *Config) {
			c.Peers = map[uint64]string{1: testkit.FreePort(t)}
			c.Serve = func(context.Context, uint64, uint8, []byte) ([]byte, error) { served++; return nil, nil }
			c.Admit = func(_ uint64, data string) error {
				if data != "" {
					return fmt.Errorf("the data is %s", data)
				}
				return nil
			}
		})
		for sentence, change := range map[string]func(*hello){
			"wrong cluster": func(h *hello) { h.cluster = "other" },
			"wrong node":    func(h *hello) { h.to = 3 },
			"wrong sender":  func(h *hello) { h.from = 2 },
			"unknown sender: node 9 is not a peer of node 2, whose peers are: 1": func(h *hello) { h.from = 9 },
			"unsupported protocol": func(h *hello) { h.protocol = 2 },
			"the data is another":  func(h *hello) { h.data = "another" },
		} {
			h := goodHello()
			change(&h)
			if code := expectStatus(t, rawCall(t, b.Addr(), h.metadata()), sentence); code != codes.FailedPrecondition {
				t.Errorf("code %v", code)
			}
			b.log.await(t, "refused a call on the peer port", sentence)
		}
		if code := expectStatus(t, rawCall(t, b.Addr(), nil), "no Decree handshake: "); code != codes.InvalidArgument {
			t.Errorf("code %v", code)
		}
		if served != 0 {
			t.Error("a call was served")
		}
	})
	// The other way: the callee is not what the caller knows it by.
	t.Run("by the caller", func(t *testing.T) {
		read := make(chan struct{}, 1)
		a, _ := startPair(t, func(c *Config) {
			c.Data = fmt.Sprintf("data of %d", c.Node)
			c.Serve = func(context.Context, uint64, uint8, []byte) ([]byte, error) { read <- struct{}{}; return nil, nil }
			if c.Node == 1 {
				c.Admit = func(peer uint64, data string) error { return fmt.Errorf("node %d has %q", peer, data) }
			}
		})
		var err error
		eventually(t, func() bool {
			_, err = a.Call(patient(t), 2, 1, []byte("secret"))
			return !errors.Is(err, ErrUnreachable)
		})
		expectCallError(t, err, ErrRefused, `node 2 has "data of 2"`)
		if len(read) != 0 {
			t.Error("the request was sent")
		}
	})
	// A node of an older version does not know calls.
	t.Run("older", func(t *testing.T) {
		server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}))
		l := listen(t)
		go server.Serve(l)
		defer server.Stop()
		a := startNode(t, 1, func(c *Config) { c.Peers = map[uint64]string{2: l.Addr().String()} })
		_, err := a.Call(patient(t), 2, 1, nil)
		expectCallError(t, err, ErrRefused, "unknown service")
	})
}

// rawCall opens a call as some sender.
func rawCall(t testing.TB, addr string, md metadata.MD) grpc.ClientStream {
	t.Helper()
	conn := rawConn(t, addr, nil)
	s, err := conn.NewStream(metadata.NewOutgoingContext(patient(t), md), &framesStream, callMethod)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sealedCall(m callMessage) []byte { return append(m.header(), m.payload...) }

// TestBadCalls sends what no Decree node would.
func TestBadCalls(t *testing.T) {
	good := sealedCall(callMessage{callRequest, 5, []byte("payload")})
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	b := startNode(t, 2, func(c *Config) {
		c.Peers, c.MaxFrameBytes = map[uint64]string{1: testkit.FreePort(t)}, 1<<10
		c.Serve = func(_ context.Context, _ uint64, _ uint8, request []byte) ([]byte, error) { return request, nil }
	})
	for name, c := range map[string]struct {
		message  []byte
		sentence string
	}{
		"bit flipped": {change(func(b []byte) []byte { b[callHeaderSize] ^= 1; return b }), "bad message of a call: checksum"},
		"method":      {change(func(b []byte) []byte { b[5]++; return b }), "bad message of a call: checksum"},
		"truncated":   {good[:len(good)-1], "bad message of a call: the header announces 7 bytes, 6 came"},
		"header cut":  {good[:15], "bad message of a call: 15 bytes are less"},
		"empty":       {nil, "bad message of a call: 0 bytes are less"},
		"version":     {change(func(b []byte) []byte { b[3]++; return b }), "it has version 2, this node reads 1"},
		"magic":       {[]byte("something else altogether"), `it begins with "som"`},
		"a reply":     {sealedCall(callMessage{callReply, 5, nil}), "kind 2 is no request"},
		"no kind":     {sealedCall(callMessage{9, 5, nil}), "kind 9"},
		"oversized":   {sealedCall(callMessage{callRequest, 5, make([]byte, MaxCallRequestBytes+1)}), "received message larger than max (1048593 vs. 1048592)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := rawCall(t, b.Addr(), goodHello().metadata())
			if err := sendRaw(s, c.message); err != nil {
				t.Fatal(err)
			}
			if code := expectStatus(t, s, c.sentence); code != codes.InvalidArgument && code != codes.ResourceExhausted {
				t.Errorf("code %v", code)
			}
			b.log.await(t, "refused a call on the peer port", strings.ReplaceAll(c.sentence, `"`, `\"`))
		})
	}
	t.Run("no request", func(t *testing.T) {
		s := rawCall(t, b.Addr(), goodHello().metadata())
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		expectStatus(t, s, "there is no request")
	})
	// The limit of frames is what it was, although gRPC takes in more.
	s := rawStream(t, b.Addr(), goodHello().metadata(), nil)
	if err := sendRaw(s, sealed(strings.Repeat("x", 1<<10+1))); err != nil {
		t.Fatal(err)
	}
	if code := expectStatus(t, s, "a frame is larger than MaxFrameBytes of this node, 1024"); code != codes.ResourceExhausted {
		t.Errorf("code %v", code)
	}
}

// TestBadReplies has a server answer with what no Decree node would.
func TestBadReplies(t *testing.T) {
	var reply atomic.Pointer[[]byte]
	var header atomic.Pointer[metadata.MD]
	introduce := func(md metadata.MD) { header.Store(&md) }
	introduce(metadata.Pairs(keyAccepted, "1", keyData, ""))
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}))
	server.RegisterService(serviceDesc(
		func(_ any, s grpc.ServerStream) error { <-s.Context().Done(); return nil },
		func(_ any, s grpc.ServerStream) error {
			if err := s.SendHeader(*header.Load()); err != nil {
				return err
			}
			if err := s.RecvMsg(new(incoming)); err != nil {
				return err
			}
			out := *reply.Load()
			if out == nil {
				return nil
			}
			return s.SendMsg(&outgoing{buf: &out, pool: new(bufferPool)})
		}), nil)
	l := listen(t)
	go server.Serve(l)
	defer server.Stop()
	a := startNode(t, 1, func(c *Config) { c.Peers = map[uint64]string{2: l.Addr().String()} })
	good := sealedCall(callMessage{callReply, 5, []byte("payload")})
	flipped := bytes.Clone(good)
	flipped[20] ^= 4
	for _, c := range []struct {
		reply    []byte
		sentence string
	}{
		{flipped, "bad message of a call: checksum"},
		{good[:3], "bad message of a call: 3 bytes"},
		{sealedCall(callMessage{callReply, 6, nil}), "kind 2 of method 6 is no answer of method 5"},
		{sealedCall(callMessage{callRequest, 5, nil}), "kind 1 of method 5 is no answer of method 5"},
		{sealedCall(callMessage{callReply, 5, make([]byte, MaxCallReplyBytes+1)}), "received message larger than max"},
		{nil, ""},
	} {
		reply.Store(&c.reply)
		_, err := a.Call(patient(t), 2, 5, nil)
		expectCallError(t, err, ErrUnreachable, c.sentence)
	}
	introduce(metadata.Pairs("other", "1"))
	_, err := a.Call(patient(t), 2, 5, nil)
	expectCallError(t, err, ErrUnreachable, errNotAccepted.Error())
}

func TestCallBlocked(t *testing.T) {
	a, b := startPair(t, serveEcho)
	callUp(t, a, 2)
	callUp(t, b, 1)
	a.Block(2, true)
	_, err := a.Call(patient(t), 2, 1, nil)
	expectCallError(t, err, ErrUnreachable, "blocked")
	_, err = b.Call(patient(t), 1, 1, nil)
	expectCallError(t, err, ErrUnreachable, "blocked")
	a.Block(2, false)
	callUp(t, a, 2)
	callUp(t, b, 1)
}

func TestMemoryCallCut(t *testing.T) {
	entered := make(chan struct{}, 1)
	net := NewMemoryNetwork()
	a := startMemory(t, net, 1).MemoryNode
	startMemory(t, net, 2, func(c *Config) {
		c.Serve = func(ctx context.Context, _ uint64, method uint8, _ []byte) ([]byte, error) {
			if method == 1 {
				return nil, nil
			}
			entered <- struct{}{}
			<-ctx.Done()
			return nil, nil
		}
	})
	for _, path := range [][2]uint64{{1, 2}, {2, 1}} {
		result := make(chan error, 1)
		go func() {
			_, err := a.Call(patient(t), 2, 2, nil)
			result <- err
		}()
		await(t, entered, "the call")
		net.Cut(3, 1) // another link's business
		net.Cut(path[0], path[1])
		expectCallError(t, await(t, result, "the end of a call whose link is cut"), ErrUnreachable, "the link to it is cut")
		_, err := a.Call(patient(t), 2, 1, nil)
		expectCallError(t, err, ErrUnreachable, "the link to it is cut")
		net.Heal(path[0], path[1])
		if _, err := a.Call(patient(t), 2, 1, nil); err != nil {
			t.Error(err)
		}
	}
	other := startMemory(t, net, 3, func(c *Config) { c.Cluster = "other" }).MemoryNode
	_, err := other.Call(patient(t), 2, 1, nil)
	expectCallError(t, err, ErrRefused, `wrong cluster: the sender belongs to cluster "other", this node to cluster "test"`)
}

func TestCallTLS(t *testing.T) {
	dir := t.TempDir()
	paths := testkit.NewAuthority(t).Write(t, dir, testkit.Subject{})
	conf, err := TLSFiles(paths.Cert, paths.Key, paths.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, b := startPair(t, serveEcho, func(c *Config) { c.TLS = conf })
	callUp(t, a, 2)
	// Another authority from now on: who comes back must be of it, with a connection that gRPC opens again.
	addr := b.Addr()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	testkit.NewAuthority(t).Write(t, dir, testkit.Subject{})
	conf2, err := TLSFiles(paths.Cert, paths.Key, paths.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	startNode(t, 2, serveEcho, func(c *Config) { c.Listen, c.TLS, c.Peers = addr, conf2, map[uint64]string{1: a.Addr()} })
	callUp(t, a, 2)
	// And without TLS nothing goes.
	plain := startNode(t, 1, func(c *Config) { c.Peers = map[uint64]string{2: addr} })
	_, err = plain.Call(patient(t), 2, 1, nil)
	expectCallError(t, err, ErrUnreachable, "")
}

func FuzzOpenCall(f *testing.F) {
	f.Add(sealedCall(callMessage{callRequest, 5, []byte("payload")}))
	f.Add(sealedCall(callMessage{callReply, 0, nil}))
	f.Add(sealedCall(callMessage{callFault, 255, []byte("x")})[:15])
	f.Add([]byte("DPC\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		const most = 1 << 10
		before := bytes.Clone(data)
		m, err := openCall(data, most)
		if !bytes.Equal(data, before) {
			t.Fatal("the message was changed")
		}
		if err != nil {
			if !errors.Is(err, errBadCall) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		if len(m.payload) > most || !bytes.Equal(sealedCall(m), data) {
			t.Fatalf("%+v is not what came", m)
		}
	})
}

func TestEveryBitOfACallCounts(t *testing.T) {
	m := sealedCall(callMessage{callRequest, 5, []byte("some payload")})
	for i := range len(m) * 8 {
		m[i/8] ^= 1 << (i % 8)
		if _, err := openCall(m, 100); err == nil {
			t.Errorf("bit %d of byte %d may be flipped", i%8, i/8)
		}
		m[i/8] ^= 1 << (i % 8)
	}
}
