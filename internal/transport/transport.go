package transport

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/internal/bind"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/limitlog"
)

// ErrCloseTimeout is returned by Close when a callback did not return in time.
var ErrCloseTimeout = errors.New("transport: a callback still runs after Close")

// Transport carries frames over gRPC. See [Peer] for what its methods promise.
type Transport struct {
	cfg         Config
	incarnation uint64
	log         *limitlog.Log
	notify      *notifier
	pool        bufferPool
	guard       *guard.Guard
	server      *grpc.Server

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// peers is replaced, never changed, so that Append reads it without a lock.
	peers atomic.Pointer[peerTable]
	// blocked is the same for Block. Nil: nobody is.
	blocked atomic.Pointer[map[uint64]struct{}]
	served  servedCalls
	// unknown counts what was appended for nodes that are not peers.
	unknown counters

	mu sync.Mutex // guards what follows, and changes of peers and blocked
	// inbound holds the newest accepted stream of each sender.
	inbound map[uint64]*inbound
	// turns lets one stream of a sender be read at a time. Invariant: has an entry
	// for every sender of which a stream is being read or is to be read.
	turns  map[uint64]*turn
	closed bool
}

type peerTable map[uint64]*peer

// Start listens and begins to connect to the peers. It does not wait for any of
// them. An error that wraps ErrConfig came before anything was done.
func Start(cfg Config) (*Transport, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	if err := cfg.TLS.check(); err != nil {
		return nil, err
	}
	listener, err := cfg.listen()
	if err != nil {
		return nil, fmt.Errorf("transport: cannot listen for peers: %w", err)
	}
	t := &Transport{cfg: cfg, log: limitlog.New(cfg.Logger), notify: newNotifier(cfg.Unreachable), inbound: map[uint64]*inbound{}, turns: map[uint64]*turn{}}
	t.incarnation = newIncarnation()
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.peers.Store(&peerTable{})
	t.guard = newGuard(listener, cfg, t.log)
	t.server = grpc.NewServer(append(serverOptions(cfg),
		grpc.Creds(cfg.TLS.serverCredentials(t.log)),
		grpc.UnknownServiceHandler(t.strangers))...)
	t.server.RegisterService(serviceDesc(t.frames, t.answerCall), nil)
	if cfg.Services != nil {
		cfg.Services(t.server)
	}
	cfg.Logger.Info("peer transport started", "cluster", cfg.Cluster, "node", cfg.Node, "addr", t.Addr(), "peers", len(cfg.Peers),
		"tls", cfg.TLS != nil, "maxQueueBytes", cfg.MaxQueueBytes, "maxFrameBytes", cfg.MaxFrameBytes)
	t.spawn(func() { t.notify.run(t.ctx) })
	t.spawn(t.serve)
	t.UpdatePeers(cfg.Peers)
	return t, nil
}

// listen opens the peer port. In plain text whoever reaches it is believed to be a node.
func (c Config) listen() (net.Listener, error) {
	missing := ""
	if c.TLS == nil && !c.Insecure {
		missing = "it has no TLS, so whoever does reach it may pose as a node: set TLS; or set Insecure, if everybody in that network is trusted"
	}
	if c.Listener == nil {
		return bind.TCP(c.Listen, missing)
	}
	return c.Listener, bind.Check(c.Listener.Addr(), missing)
}

func newIncarnation() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: the program would have ended
	return binary.LittleEndian.Uint64(b[:])
}

func (t *Transport) serve() {
	if err := t.server.Serve(t.guard); err != nil && t.ctx.Err() == nil {
		t.cfg.Logger.Error("the peer port is no longer served", "err", err)
	}
}

// spawn runs f on a goroutine that Close waits for, unless it is too late for that.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

// Addr returns the address that the node listens on.
func (t *Transport) Addr() string { return t.guard.Addr().String() }

// Append implements [Peer].
func (t *Transport) Append(peer uint64, size int, encode func(buf []byte) []byte) bool {
	p := (*t.peers.Load())[peer]
	if p == nil {
		t.unknown.drop(1, size)
		t.notify.mark(peer)
		return false
	}
	if t.isBlocked(peer) {
		p.count.drop(1, size)
		t.notify.mark(peer)
		return false
	}
	n, ok := p.queue.append(size, encode)
	if !ok {
		p.count.drop(1, n)
		t.notify.mark(peer)
		if n > t.cfg.MaxFrameBytes {
			t.log.Warn(limitlog.Key{Peer: peer, Reason: "too large"}, "an item is too large to be sent", "peer", peer, "bytes", n, "maxFrameBytes", t.cfg.MaxFrameBytes)
		}
		return false
	}
	p.dirty.Store(true)
	return true
}

// Flush implements [Peer].
func (t *Transport) Flush() {
	for _, p := range *t.peers.Load() {
		if p.dirty.Load() && p.dirty.Swap(false) {
			signal(p.wake)
		}
	}
}

// SetPeer implements [Peer].
func (t *Transport) SetPeer(id uint64, address string) {
	if err := checkPeer(id, address); err != nil && id != t.cfg.Node {
		t.cfg.Logger.Warn("a peer is ignored", "err", err)
		return // what was there stays
	}
	t.changePeers(func(next map[uint64]string) { next[id] = address })
}

// RemovePeer implements [Peer].
func (t *Transport) RemovePeer(id uint64) {
	t.changePeers(func(next map[uint64]string) { delete(next, id) })
	t.dismiss(id) // also where it was no peer
}

// UpdatePeers implements [Peer]. An entry without an address is left out, with a warning.
func (t *Transport) UpdatePeers(peers map[uint64]string) {
	gone := t.changePeers(func(next map[uint64]string) {
		clear(next)
		maps.Copy(next, peers)
	})
	for _, id := range gone {
		t.dismiss(id)
	}
}

// changePeers starts and stops the senders, and returns who is no peer any more.
func (t *Transport) changePeers(change func(peers map[uint64]string)) (gone []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	old, next, peers := *t.peers.Load(), peerTable{}, map[uint64]string{}
	for id, p := range old {
		peers[id] = p.addr
	}
	change(peers)
	for id, addr := range peers {
		if id == t.cfg.Node {
			continue
		}
		if err := checkPeer(id, addr); err != nil {
			t.cfg.Logger.Warn("a peer is ignored", "err", err)
			continue
		}
		if p := old[id]; p != nil && p.addr == addr {
			next[id] = p
			continue
		}
		next[id] = t.newPeer(id, addr, old[id])
	}
	t.peers.Store(&next)
	for id, p := range old {
		if next[id] != p {
			p.queue.close()
			p.cancel()
		}
		if next[id] == nil {
			gone = append(gone, id)
		}
	}
	return gone
}

// dismiss ends the streams and calls of a node that is no peer any more. Those
// that are just being accepted ask once more whether they are allowed. Not under
// t.mu, as Allow is not ours.
func (t *Transport) dismiss(id uint64) {
	reason := t.allowed(id)
	if reason == nil {
		reason = removed(id, t.cfg.Node)
	}
	t.mu.Lock()
	in := t.inbound[id]
	t.mu.Unlock()
	if in != nil {
		in.kick(reason)
	}
	t.served.end(id, reason)
}

// newPeer starts the sender of a peer; before is the same peer at another address,
// if any. The caller holds t.mu.
func (t *Transport) newPeer(id uint64, addr string, before *peer) *peer {
	ctx, cancel := context.WithCancel(t.ctx)
	p := &peer{
		t: t, id: id, addr: addr, cancel: cancel, count: &counters{},
		queue: newQueue(t.cfg.MaxQueueBytes, t.cfg.MaxFrameBytes, &t.pool),
		wake:  make(chan struct{}, 1), poke: make(chan struct{}, 1),
	}
	if before != nil {
		p.count = before.count
	} else if in := t.inbound[id]; in != nil {
		p.count = in.count // it came to us first
	}
	p.lastError.Store(new(string))
	t.wg.Go(func() { p.run(ctx) })
	return p
}

// Block injects a fault, for tests and demonstrations: while a peer is blocked,
// Append refuses what is for it, and what arrives from it is thrown away. Its
// streams stay. Safe for concurrent use; a frame that is being handed over or
// written meanwhile may still pass.
func (t *Transport) Block(peer uint64, block bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := map[uint64]struct{}{}
	if old := t.blocked.Load(); old != nil {
		next = maps.Clone(*old)
	}
	delete(next, peer)
	if block {
		next[peer] = struct{}{}
	}
	t.blocked.Store(&next)
}

func (t *Transport) isBlocked(peer uint64) bool {
	set := t.blocked.Load()
	if set == nil {
		return false
	}
	_, ok := (*set)[peer]
	return ok
}

// Stats implements [Peer].
func (t *Transport) Stats() map[uint64]PeerStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	stats := map[uint64]PeerStats{0: t.unknown.stats()}
	for id, p := range *t.peers.Load() {
		s := p.count.stats()
		s.Connected, s.LastError, s.QueuedBytes = p.connected.Load(), *p.lastError.Load(), p.queue.size()
		_, s.Receiving = t.inbound[id]
		stats[id] = s
	}
	return stats
}

func (c *counters) stats() PeerStats {
	return PeerStats{
		SentItems: c.sentItems.Load(), SentFrames: c.sentFrames.Load(), SentBytes: c.sentBytes.Load(),
		DroppedItems: c.droppedItems.Load(), DroppedBytes: c.droppedBytes.Load(),
		ReceivedFrames: c.receivedFrames.Load(), ReceivedBytes: c.receivedBytes.Load(),
		DroppedReceivedFrames: c.droppedReceived.Load(), Connects: c.connects.Load(),
	}
}

// Close implements [Peer].
func (t *Transport) Close() error {
	if !t.shut() {
		return nil
	}
	t.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.guard.Close() // before Stop, which would wait for handshakes
		t.server.Stop()
		t.wg.Wait()
	}()
	return waitClosed(done)
}

func (t *Transport) shut() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.closed = true
	for _, p := range *t.peers.Load() {
		p.queue.close()
	}
	for _, in := range t.inbound {
		in.kick(errClosing)
	}
	return true
}

func waitClosed(done <-chan struct{}) error {
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return ErrCloseTimeout
	}
}
