package transport

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// MemoryNetwork connects nodes within one process: the same contract as a
// Transport, without sockets, encryption or checksums. Links can be cut one way.
// All methods may be called at any time from any goroutine.
type MemoryNetwork struct {
	// cut is replaced, never changed, so that Append reads it without a lock.
	cut atomic.Pointer[memoryCuts]

	mu    sync.Mutex // guards what follows, and changes of cut
	nodes map[uint64]*MemoryNode
}

// memoryPath is one direction between two nodes.
type memoryPath struct{ from, to uint64 }

type memoryCuts struct {
	paths map[memoryPath]struct{}
	// replaced is closed when these are no longer the cuts.
	replaced chan struct{}
}

func (c *memoryCuts) has(from, to uint64) bool {
	_, ok := c.paths[memoryPath{from, to}]
	return ok
}

func (c *memoryCuts) either(a, b uint64) bool { return c.has(a, b) || c.has(b, a) }

// NewMemoryNetwork returns a network without nodes.
func NewMemoryNetwork() *MemoryNetwork {
	n := &MemoryNetwork{nodes: map[uint64]*MemoryNode{}}
	n.cut.Store(&memoryCuts{map[memoryPath]struct{}{}, make(chan struct{})})
	return n
}

// Cut lets nothing pass from one node to another until Heal: Append refuses, and
// what is queued is dropped, both with Unreachable. The other direction stays. A
// frame that is being handed over may still pass. Calls need both directions: they
// fail at once when either is cut, and so do those under way.
func (n *MemoryNetwork) Cut(from, to uint64) {
	n.setCut(func(cut map[memoryPath]struct{}) { cut[memoryPath{from, to}] = struct{}{} })
}

// Heal undoes Cut for one direction.
func (n *MemoryNetwork) Heal(from, to uint64) {
	n.setCut(func(cut map[memoryPath]struct{}) { delete(cut, memoryPath{from, to}) })
}

// HealAll undoes every Cut.
func (n *MemoryNetwork) HealAll() {
	n.setCut(func(cut map[memoryPath]struct{}) { clear(cut) })
}

func (n *MemoryNetwork) setCut(change func(map[memoryPath]struct{})) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.cut.Load()
	next := maps.Clone(old.paths)
	change(next)
	n.cut.Store(&memoryCuts{next, make(chan struct{})})
	close(old.replaced)
}

// find returns the node that a frame on this path reaches, or nil.
func (n *MemoryNetwork) find(from, to uint64) *MemoryNode {
	if n.cut.Load().has(from, to) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[to]
}

// Start adds a node. Listen, Listener and TLS of cfg are ignored, and of Peers
// the addresses: a node is found by its id once it is started. Nodes of different
// clusters do not reach each other.
func (n *MemoryNetwork) Start(cfg Config) (*MemoryNode, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	m := &MemoryNode{net: n, cfg: cfg, notify: newNotifier(cfg.Unreachable), heard: map[uint64]*counters{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.links.Store(&linkTable{})
	if err := n.add(m); err != nil {
		m.cancel()
		return nil, err
	}
	m.wg.Go(func() { m.notify.run(m.ctx) })
	m.UpdatePeers(cfg.Peers)
	return m, nil
}

func (n *MemoryNetwork) add(m *MemoryNode) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[m.cfg.Node] != nil {
		return fmt.Errorf("%w: node %d is on this memory network already", ErrConfig, m.cfg.Node)
	}
	n.nodes[m.cfg.Node] = m
	return nil
}

// MemoryNode is a node on a MemoryNetwork. See [Peer] for what its methods promise.
type MemoryNode struct {
	net     *MemoryNetwork
	cfg     Config
	notify  *notifier
	served  servedCalls
	unknown counters
	// newcomers counts what came from nodes that are allowed though not peers.
	newcomers counters
	pool      bufferPool

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // also counts deliveries to this node

	links atomic.Pointer[linkTable] // replaced, never changed

	mu     sync.Mutex // guards what follows, changes of links, and wg.Add against Close
	closed bool
	// heard counts per sender. Invariant: has an entry for every link.
	heard map[uint64]*counters
}

type linkTable map[uint64]*memoryLink

// Addr returns a name, as there is no address.
func (m *MemoryNode) Addr() string { return fmt.Sprintf("memory:%d", m.cfg.Node) }

// Append implements [Peer].
func (m *MemoryNode) Append(peer uint64, size int, encode func(buf []byte) []byte) bool {
	l := (*m.links.Load())[peer]
	if l == nil {
		m.unknown.drop(1, size)
		m.notify.mark(peer)
		return false
	}
	n, ok := size, !m.net.cut.Load().has(m.cfg.Node, peer)
	if ok {
		n, ok = l.queue.append(size, encode)
	}
	if !ok {
		l.gap.Store(true)
		l.count.drop(1, n)
		m.notify.mark(peer)
		return false
	}
	l.dirty.Store(true)
	return true
}

// Flush implements [Peer].
func (m *MemoryNode) Flush() {
	for _, l := range *m.links.Load() {
		if l.dirty.Load() && l.dirty.Swap(false) {
			signal(l.wake)
		}
	}
}

// SetPeer implements [Peer]. The address may be anything but empty.
func (m *MemoryNode) SetPeer(id uint64, address string) {
	if err := checkPeer(id, address); err != nil && id != m.cfg.Node {
		m.cfg.Logger.Warn("a peer is ignored", "err", err)
		return
	}
	m.changePeers(func(next map[uint64]struct{}) { next[id] = struct{}{} })
}

// RemovePeer implements [Peer].
func (m *MemoryNode) RemovePeer(id uint64) {
	m.changePeers(func(next map[uint64]struct{}) { delete(next, id) })
	m.dismiss(id)
}

// UpdatePeers implements [Peer].
func (m *MemoryNode) UpdatePeers(peers map[uint64]string) {
	gone := m.changePeers(func(next map[uint64]struct{}) {
		clear(next)
		for id := range peers {
			next[id] = struct{}{}
		}
	})
	for _, id := range gone {
		m.dismiss(id)
	}
}

// changePeers starts and stops links, and returns who is no peer any more.
func (m *MemoryNode) changePeers(change func(peers map[uint64]struct{})) (gone []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	old, next, peers := *m.links.Load(), linkTable{}, map[uint64]struct{}{}
	for id := range old {
		peers[id] = struct{}{}
	}
	change(peers)
	for id := range peers {
		if id == m.cfg.Node || id == 0 {
			continue
		}
		if l := old[id]; l != nil {
			next[id] = l
			continue
		}
		next[id] = m.newLink(id)
	}
	m.links.Store(&next)
	for id, l := range old {
		if next[id] == nil {
			l.queue.close()
			l.cancel()
			delete(m.heard, id)
			gone = append(gone, id)
		}
	}
	return gone
}

// dismiss ends the calls of a node that is no peer any more. There are no streams.
func (m *MemoryNode) dismiss(id uint64) {
	reason := m.allowed(id)
	if reason == nil {
		reason = removed(id, m.cfg.Node)
	}
	m.served.end(id, reason)
}

// allowed says whether a node's frames and calls are taken. The error is a status.
func (m *MemoryNode) allowed(id uint64) error {
	if m.cfg.Allow != nil {
		return m.cfg.allowed(id)
	}
	if table := *m.links.Load(); table[id] == nil {
		return unknownSender(id, m.cfg.Node, table)
	}
	return nil
}

func (m *MemoryNode) newLink(to uint64) *memoryLink {
	ctx, cancel := context.WithCancel(m.ctx)
	l := &memoryLink{
		from: m, to: to, cancel: cancel, gone: ctx.Done(), count: &counters{}, wake: make(chan struct{}, 1),
		queue: newQueue(m.cfg.MaxQueueBytes, m.cfg.MaxFrameBytes, &m.pool),
	}
	l.lastError.Store(new(string))
	l.gap.Store(true)
	m.heard[to] = l.count
	m.wg.Go(func() { l.run(ctx) })
	return l
}

// Stats implements [Peer].
func (m *MemoryNode) Stats() map[uint64]PeerStats {
	stats := map[uint64]PeerStats{0: m.unknown.stats()}
	for id, l := range *m.links.Load() {
		s := l.count.stats()
		s.Connected, s.QueuedBytes = l.connected.Load(), l.queue.size()
		s.Receiving = s.ReceivedFrames > 0
		s.LastError = *l.lastError.Load()
		stats[id] = s
	}
	return stats
}

// Close implements [Peer]. The id can be started again on the same network.
func (m *MemoryNode) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	for _, l := range *m.links.Load() {
		l.queue.close()
	}
	m.mu.Unlock()
	m.net.mu.Lock()
	delete(m.net.nodes, m.cfg.Node)
	m.net.mu.Unlock()
	m.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.wg.Wait()
	}()
	return waitClosed(done)
}

// enter begins a delivery or a call from a node of cluster. It fails where a
// Transport would refuse the sender, with a status. The caller ends it with m.wg.Done.
func (m *MemoryNode) enter(from uint64, cluster string) (*counters, error) {
	if cluster != m.cfg.Cluster {
		return nil, wrongCluster(cluster, m.cfg.Cluster)
	}
	if err := m.allowed(from); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosing
	}
	count := m.heard[from]
	if count == nil {
		count = &m.newcomers
	}
	m.wg.Add(1)
	return count, nil
}

// Call implements [Peer].
func (m *MemoryNode) Call(ctx context.Context, to uint64, method uint8, request []byte) ([]byte, error) {
	l := (*m.links.Load())[to]
	if l == nil {
		return nil, notPeer(to, m.cfg.Node)
	}
	if err := checkRequest(to, request); err != nil {
		return nil, err
	}
	answer, err := l.call(ctx, callMessage{callRequest, method, request})
	return callResult(ctx, to, answer, err)
}

// memoryLink is one direction between two nodes.
type memoryLink struct {
	from      *MemoryNode
	to        uint64
	queue     *queue
	count     *counters
	cancel    context.CancelFunc
	gone      <-chan struct{} // closed when it ends
	wake      chan struct{}
	dirty     atomic.Bool
	connected atomic.Bool
	gap       atomic.Bool // something was lost since the last frame that arrived
	lastError atomic.Pointer[string]
}

func (l *memoryLink) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			items, bytes := l.queue.drop()
			l.count.drop(items, bytes)
			if items > 0 {
				l.from.notify.mark(l.to)
			}
			return
		case <-l.wake:
		}
		for ctx.Err() == nil {
			f, ok := l.queue.take()
			if !ok {
				break
			}
			l.deliver(f)
		}
	}
}

// deliver gives the buffer away, as the callee of Receive owns it: nothing is copied.
func (l *memoryLink) deliver(f frame) {
	payload := (*f.buf)[frameHeaderSize:]
	dst, heard, err := l.reach()
	if err == nil && len(payload) > dst.cfg.MaxFrameBytes {
		dst.wg.Done()
		err = status.Errorf(codes.ResourceExhausted, "a frame is larger than MaxFrameBytes of node %d, %d", l.to, dst.cfg.MaxFrameBytes)
	}
	if err != nil {
		l.connected.Store(false)
		l.gap.Store(true)
		l.report(err)
		l.count.drop(f.items, len(payload))
		l.queue.release(len(payload))
		l.from.notify.mark(l.to)
		return
	}
	defer dst.wg.Done()
	if !l.connected.Swap(true) {
		l.lastError.Store(new(string))
		l.count.connects.Add(1)
		if l.from.cfg.Connected != nil {
			l.from.cfg.Connected(l.to)
		}
	}
	l.count.sentItems.Add(uint64(f.items))
	l.count.sentFrames.Add(1)
	l.count.sentBytes.Add(uint64(len(payload)))
	heard.receivedFrames.Add(1)
	heard.receivedBytes.Add(uint64(len(payload)))
	if dst.cfg.Met != nil && (*dst.links.Load())[l.from.cfg.Node] == nil {
		dst.cfg.Met(l.from.cfg.Node, l.from.Addr())
	}
	if l.gap.Swap(false) && dst.cfg.Gap != nil {
		dst.cfg.Gap(l.from.cfg.Node)
	}
	dst.cfg.Receive(l.from.cfg.Node, payload)
	l.queue.release(len(payload))
}

// report keeps why a frame was not taken, and logs it unless it is what was logged last.
func (l *memoryLink) report(err error) {
	text := status.Convert(err).Message()
	if last := l.lastError.Swap(&text); *last != text {
		l.from.cfg.Logger.Warn("no frames to a peer", "peer", l.to, "reason", text)
	}
}

// reach returns the node at the other end, which has been entered. The error is a status.
func (l *memoryLink) reach() (*MemoryNode, *counters, error) {
	dst := l.from.net.find(l.from.cfg.Node, l.to)
	if dst == nil {
		return nil, nil, errCutOff
	}
	heard, err := dst.enter(l.from.cfg.Node, l.from.cfg.Cluster)
	return dst, heard, err
}

var errCutOff = status.Error(codes.Unavailable, "the node is not on the network, or the link to it is cut")

// call returns the answer. The error is a status, or that of ctx.
func (l *memoryLink) call(ctx context.Context, request callMessage) (callMessage, error) {
	if ctx.Err() != nil {
		return callMessage{}, ctx.Err()
	}
	dst, _, err := l.reach()
	if err != nil {
		return callMessage{}, err
	}
	// Serve gets dst's context, as a Transport's does not have the caller's values either.
	served, done, err := dst.beginCall(l.from.cfg.Node)
	if err != nil {
		dst.wg.Done()
		return callMessage{}, err
	}
	served, cancel := context.WithCancel(served)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		served, cancel = context.WithDeadline(served, deadline)
		defer cancel()
	}
	request.payload = slices.Clone(request.payload)
	var answer callMessage
	answered := make(chan struct{})
	go func() {
		defer dst.wg.Done()
		defer close(answered)
		defer done() // before the caller can make its next call
		answer, err = dst.answer(served, l.from.cfg.Node, request)
	}()
	for {
		cuts := l.from.net.cut.Load()
		if cuts.either(l.from.cfg.Node, l.to) {
			return callMessage{}, errCutOff
		}
		select {
		case <-answered:
			if l.from.net.cut.Load().either(l.from.cfg.Node, l.to) {
				return callMessage{}, errCutOff
			}
			return answer, err
		case <-cuts.replaced:
		case <-l.gone:
			return callMessage{}, errPeerGone
		case <-dst.ctx.Done():
			return callMessage{}, errClosing
		case <-ctx.Done():
			return callMessage{}, ctx.Err()
		}
	}
}

// beginCall takes a place for a call. The error is a status.
func (m *MemoryNode) beginCall(from uint64) (context.Context, func(), error) {
	if m.cfg.Serve == nil {
		return nil, nil, errNoServe
	}
	ctx, done, err := m.served.begin(m.ctx, from)
	if err != nil {
		return nil, nil, err
	}
	// Again, as in serveCall.
	if err := m.allowed(from); err != nil {
		done()
		return nil, nil, err
	}
	return ctx, done, nil
}

func (m *MemoryNode) answer(ctx context.Context, from uint64, request callMessage) (callMessage, error) {
	reply, err := m.cfg.serve(ctx, from, request.method, request.payload)
	switch {
	case ctx.Err() != nil:
		return callMessage{}, endOf(ctx)
	case err != nil:
		return callMessage{callFault, request.method, []byte(faultText(err))}, nil
	}
	return callMessage{callReply, request.method, reply}, nil
}
