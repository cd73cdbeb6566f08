package transport

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/decree-raft/decree/internal/testkit"
)

// gate is a hook for Config.Allow that can be changed: it refuses those that it has a sentence for.
type gate struct {
	mu      sync.Mutex
	refused map[uint64]string
}

func (g *gate) set(id uint64, sentence string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused == nil {
		g.refused = map[uint64]string{}
	}
	g.refused[id] = sentence
}

func (g *gate) allow(id uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.refused[id]; s != "" {
		return errors.New(s)
	}
	return nil
}

// TestSetPeerUnderTraffic moves a peer between two processes with the same id while frames and calls go to it.
func TestSetPeerUnderTraffic(t *testing.T) {
	var last [2]atomic.Uint64 // the newest number that each process received
	start := func(i int) *testNode {
		return startNode(t, 2, func(c *Config) {
			c.Peers = map[uint64]string{1: testkit.FreePort(t)}
			c.Receive = func(_ uint64, frame []byte) {
				err := decodeItems(frame, func(_, seq uint32) {
					if before := last[i].Swap(uint64(seq)); uint64(seq) <= before {
						t.Errorf("%d came after %d", seq, before)
					}
				})
				if err != nil {
					t.Error(err)
				}
			}
			c.Serve = func(context.Context, uint64, uint8, []byte) ([]byte, error) { return fmt.Append(nil, i), nil }
		})
	}
	homes := [2]*testNode{start(0), start(1)}
	a := startNode(t, 1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	during := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	var seq uint32
	during(func() {
		seq++
		a.Append(2, 100, func(b []byte) []byte { return encodeItem(b, 0, seq, 100) })
		a.Flush()
		runtime.Gosched()
	})
	during(func() {
		if _, err := a.Call(patient(t), 2, 1, nil); err != nil && !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
	})
	for round := range 10 {
		i := round % 2
		before := last[i].Load()
		a.SetPeer(2, homes[i].Addr())
		a.SetPeer(2, homes[i].Addr()) // changes nothing
		eventually(t, func() bool { return last[i].Load() > before })
		eventually(t, func() bool {
			got, err := a.Call(patient(t), 2, 1, nil)
			return err == nil && string(got) == fmt.Sprint(i)
		})
		if round > 0 {
			await(t, a.unreachable, "the stream that was closed")
		}
	}
	close(stop)
	wg.Wait()
	if n := a.Stats()[2].Connects; n < 10 {
		t.Errorf("the counters began again: %d streams", n)
	}
}

// TestSetPeerReportsWhatIsLost has items queue up for a peer that does not answer, and moves it.
func TestSetPeerReportsWhatIsLost(t *testing.T) {
	silent := listen(t) // takes connections (the kernel does) and never says a word
	b := startNode(t, 2, func(c *Config) { c.Peers = map[uint64]string{1: testkit.FreePort(t)} })
	a := startNode(t, 1, func(c *Config) { c.handshakeTimeout = time.Hour })
	a.SetPeer(2, silent.Addr().String())
	conn, err := silent.Accept() // the session has begun
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a.send(t, 2, "lost")
	if s := a.Stats()[2]; s.QueuedBytes != 4 {
		t.Fatalf("stats: %+v", s)
	}
	a.SetPeer(2, b.Addr())
	if got := await(t, a.unreachable, "report of what was lost"); got != 2 {
		t.Errorf("unreachable: %d", got)
	}
	a.expectUp(t, b)
	eventually(t, func() bool { return a.Stats()[2].QueuedBytes == 0 }) // what is sent counts until the sender is back
	if s := a.Stats()[2]; s.DroppedItems != 1 {
		t.Errorf("stats: %+v", s)
	}
	for _, bad := range []func(){
		func() { a.SetPeer(2, "") },
		func() { a.SetPeer(0, "x:1") },
	} {
		bad()
		a.log.await(t, "a peer is ignored")
	}
	a.SetPeer(1, "x:1") // itself
	if s := a.Stats(); len(s) != 2 || !s[2].Connected {
		t.Errorf("stats: %+v", s)
	}
}

// TestRemovePeerUnderTraffic leaves nothing behind, however often a peer comes and goes.
func TestRemovePeerUnderTraffic(t *testing.T) {
	a := startNode(t, 1, serveEcho)
	a.SetPeer(9, testkit.FreePort(t)) // what any first peer brings to life
	a.RemovePeer(9)
	eventually(t, func() bool { return goleak.Find(goleak.IgnoreCurrent()) == nil })
	ignore := goleak.IgnoreCurrent()
	b := startNode(t, 2, serveEcho, func(c *Config) {
		c.Receive = func(uint64, []byte) {}
		c.Peers = map[uint64]string{1: a.Addr()}
	})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, n := range []struct {
		from *testNode
		to   uint64
	}{{a, 2}, {b, 1}} {
		wg.Go(func() {
			item := make([]byte, 10_000)
			for {
				select {
				case <-stop:
					return
				default:
				}
				n.from.Append(n.to, len(item), func(b []byte) []byte { return append(b, item...) })
				n.from.Flush()
				runtime.Gosched()
			}
		})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := n.from.Call(patient(t), n.to, 1, nil)
				if err != nil && !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrRefused) {
					t.Error(err)
				}
				runtime.Gosched()
			}
		})
	}
	drain := func(n *testNode) { // frames fill its channel otherwise
		for {
			select {
			case <-n.frames:
			default:
				return
			}
		}
	}
	for range 5 {
		a.SetPeer(2, b.Addr())
		eventually(t, func() bool {
			drain(a)
			s := a.Stats()[2]
			return s.SentFrames > 0 && s.ReceivedFrames > 0
		})
		a.RemovePeer(2)
		if _, ok := a.Stats()[2]; ok {
			t.Error("it is still a peer")
		}
		if a.Append(2, 1, func(b []byte) []byte { return append(b, 'x') }) {
			t.Error("an item for a former peer was taken")
		}
		eventually(t, func() bool {
			drain(a)
			return strings.HasPrefix(b.Stats()[1].LastError, "unknown sender: node 2 is not a peer of node 1")
		})
	}
	close(stop)
	wg.Wait()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		drain(a)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.served.mu.Lock()
		defer a.served.mu.Unlock()
		return len(a.inbound)+len(a.turns)+len(a.served.by) == 0
	})
	testkit.NoLeaks(t, ignore)
}

// TestAllow refuses a node in the owner's words, in streams and in calls, also those that are under way.
func TestAllow(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		var g gate
		const sentence = "node 1 was removed from the cluster"
		entered := make(chan struct{}, 1)
		var seq, last atomic.Uint32 // of what was sent and received
		a, b := start(func(c *Config) {
			c.Allow = g.allow
			c.Receive = func(_ uint64, frame []byte) {
				if err := decodeItems(frame, func(_, seq uint32) { last.Store(seq) }); err != nil {
					t.Error(err)
				}
			}
			c.Serve = func(ctx context.Context, _ uint64, method uint8, _ []byte) ([]byte, error) {
				if method == 2 {
					entered <- struct{}{}
					<-ctx.Done()
				}
				return nil, ctx.Err()
			}
		})
		send := func() {
			n := seq.Add(1)
			a.Append(2, 12, func(b []byte) []byte { return encodeItem(b, 0, n, 0) })
			a.Flush()
		}
		arrives := func() {
			t.Helper()
			before := seq.Load()
			eventually(t, func() bool { send(); return last.Load() > before })
		}
		arrives()
		result := make(chan error, 1)
		call := func() {
			t.Helper()
			go func() {
				_, err := a.Call(patient(t), 2, 2, nil)
				result <- err
			}()
			await(t, entered, "the call")
		}
		call()
		g.set(1, sentence)
		b.RemovePeer(1)
		expectCallError(t, await(t, result, "the end of the call"), ErrRefused, sentence)
		_, err := a.Call(patient(t), 2, 1, nil)
		expectCallError(t, err, ErrRefused, sentence)
		eventually(t, func() bool { send(); return a.Stats()[2].LastError == sentence })

		// Allowed again, though no peer: a newcomer whose address is not known.
		g.set(1, "")
		arrives()
		if s := a.Stats()[2].LastError; s != "" {
			t.Errorf("connected with the error %q", s)
		}
		if _, ok := b.Stats()[1]; ok {
			t.Error("it has become a peer")
		}
		// Removed while it is allowed: what there is ends, and what it does next is let in.
		call()
		b.RemovePeer(1)
		expectCallError(t, await(t, result, "the end of the call"), ErrRefused, "removed: node 1 is no peer of node 2 any more")
		arrives()
		// A peer that is not allowed: the hook alone decides.
		b.SetPeer(1, a.Addr())
		g.set(1, "not now")
		_, err = a.Call(patient(t), 2, 1, nil)
		expectCallError(t, err, ErrRefused, "not now")
	})
}

// TestNewcomer dials a node that has never heard of it, is let in, and then gets to be a peer.
func TestNewcomer(t *testing.T) {
	b := startNode(t, 2, serveEcho, func(c *Config) { c.Allow = func(uint64) error { return nil } })
	a := startNode(t, 1, func(c *Config) { c.Peers = map[uint64]string{2: b.Addr()} })
	a.expectUp(t, b)
	if got, err := a.Call(patient(t), 2, 3, []byte("join")); err != nil || string(got) != "1/3/join" {
		t.Fatalf("%q, %v", got, err)
	}
	b.SetPeer(1, a.Addr())
	b.expectUp(t, a)
	a.send(t, 2, "on the same stream")
	b.expect(t, 1, "on the same stream")
	if s := b.Stats()[1]; s.ReceivedFrames != 2 || !s.Receiving {
		t.Errorf("stats: %+v", s)
	}
	if n := a.Stats()[2].Connects; n != 1 {
		t.Errorf("%d streams", n)
	}
}

// TestRemovedWhileAccepted: a node that is removed between the question whether it
// is allowed and the register does not stay.
func TestRemovedWhileAccepted(t *testing.T) {
	var asked atomic.Int32
	hook := func(c *Config) {
		c.Serve = func(context.Context, uint64, uint8, []byte) ([]byte, error) {
			t.Error("a call was served")
			return nil, nil
		}
		c.Allow = func(uint64) error {
			if asked.Add(1)%2 == 0 {
				return errors.New("removed meanwhile")
			}
			return nil
		}
	}
	b := startNode(t, 2, hook)
	expectStatus(t, rawStream(t, b.Addr(), goodHello().metadata(), nil), "removed meanwhile")
	expectStatus(t, rawCall(t, b.Addr(), goodHello().metadata()), "removed meanwhile")
	b.mu.Lock()
	if len(b.inbound)+len(b.turns) != 0 {
		t.Error("something is left in the register")
	}
	b.mu.Unlock()
	net := NewMemoryNetwork()
	a := startMemory(t, net, 1)
	startMemory(t, net, 2, hook)
	_, err := a.MemoryNode.Call(patient(t), 2, 1, nil)
	expectCallError(t, err, ErrRefused, "removed meanwhile")
	if n := asked.Load(); n != 6 {
		t.Errorf("asked %d times", n)
	}
}

// TestChangesFromCallbacks: every callback but Allow may change the peers.
func TestChangesFromCallbacks(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		var self atomic.Pointer[Peer]
		var elsewhere string
		change := func() {
			if p := self.Load(); p != nil {
				(*p).SetPeer(7, elsewhere)
				(*p).RemovePeer(7)
				(*p).RemovePeer(8)
				(*p).SetPeer(1, elsewhere)
			}
		}
		var called sync.Map
		elsewhere = testkit.FreePort(t)
		a, b := start(func(c *Config) {
			c.Allow = func(uint64) error { return nil }
			c.Receive = func(from uint64, _ []byte) {
				called.Store("Receive", 1)
				change()
				(*self.Load()).RemovePeer(from)
			}
			c.Serve = func(_ context.Context, from uint64, _ uint8, _ []byte) ([]byte, error) {
				called.Store("Serve", 1)
				change()
				(*self.Load()).RemovePeer(from)
				return nil, nil
			}
			c.Unreachable = func(uint64) { called.Store("Unreachable", 1); change() }
			c.Connected = func(id uint64) { called.Store("Connected", 1); change(); (*self.Load()).RemovePeer(id) }
		})
		self.Store(&b)
		eventually(t, func() bool {
			a.Append(2, 1, func(b []byte) []byte { return append(b, 'x') })
			a.Flush()
			a.Call(patient(t), 2, 1, nil)
			b.SetPeer(1, a.Addr())
			b.Append(1, 1, func(b []byte) []byte { return append(b, 'x') })
			b.Flush()
			n := 0
			called.Range(func(any, any) bool { n++; return true })
			return n == 4
		})
	})
}

// TestPeersFromManyGoroutines has everything called at once.
func TestPeersFromManyGoroutines(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, start func(func(*Config)) (a, b Peer)) {
		a, b := start(func(c *Config) { c.Serve, c.Receive = echo, func(uint64, []byte) {} })
		dead := testkit.FreePort(t)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for k := range 50 {
					switch (i + k) % 4 {
					case 0:
						a.SetPeer(2, b.Addr())
					case 1:
						a.RemovePeer(2)
					case 2:
						a.SetPeer(2, dead)
					case 3:
						a.UpdatePeers(map[uint64]string{2: b.Addr(), 3: dead})
					}
					a.Append(2, 1, func(b []byte) []byte { return append(b, 'x') })
					a.Flush()
					a.Stats()
					ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
					a.Call(ctx, 2, 1, nil)
					cancel()
				}
			})
		}
		wg.Wait()
		a.UpdatePeers(map[uint64]string{2: b.Addr()})
		callUp(t, a, 2)
	})
}
