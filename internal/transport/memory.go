package transport

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
)

// MemoryNetwork connects nodes within one process: the same contract as a
// Transport, without sockets, encryption or checksums. Links can be cut one way.
// All methods may be called at any time from any goroutine.
type MemoryNetwork struct {
	// cut is replaced, never changed, so that Append reads it without a lock.
	cut atomic.Pointer[map[memoryPath]struct{}]

	mu    sync.Mutex // guards what follows, and changes of cut
	nodes map[uint64]*MemoryNode
}

// memoryPath is one direction between two nodes.
type memoryPath struct{ from, to uint64 }

// NewMemoryNetwork returns a network without nodes.
func NewMemoryNetwork() *MemoryNetwork {
	n := &MemoryNetwork{nodes: map[uint64]*MemoryNode{}}
	n.cut.Store(&map[memoryPath]struct{}{})
	return n
}

// Cut lets nothing pass from one node to another until Heal: Append refuses, and
// what is queued is dropped, both with Unreachable. The other direction stays. A
// frame that is being handed over may still pass.
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
	next := maps.Clone(*n.cut.Load())
	change(next)
	n.cut.Store(&next)
}

func (n *MemoryNetwork) isCut(from, to uint64) bool {
	_, ok := (*n.cut.Load())[memoryPath{from, to}]
	return ok
}

// find returns the node that a frame on this path reaches, or nil.
func (n *MemoryNetwork) find(from, to uint64) *MemoryNode {
	if n.isCut(from, to) {
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
	unknown counters
	pool    bufferPool

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
	n, ok := size, !m.net.isCut(m.cfg.Node, peer)
	if ok {
		n, ok = l.queue.append(size, encode)
	}
	if !ok {
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

// UpdatePeers implements [Peer].
func (m *MemoryNode) UpdatePeers(peers map[uint64]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	old, next := *m.links.Load(), linkTable{}
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
		}
	}
}

func (m *MemoryNode) newLink(to uint64) *memoryLink {
	ctx, cancel := context.WithCancel(m.ctx)
	l := &memoryLink{
		from: m, to: to, cancel: cancel, count: &counters{}, wake: make(chan struct{}, 1),
		queue: newQueue(m.cfg.MaxQueueBytes, m.cfg.MaxFrameBytes, &m.pool),
	}
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

// enter begins a delivery from a node of cluster. It fails where a Transport would
// refuse the sender. The caller ends it with m.wg.Done.
func (m *MemoryNode) enter(from uint64, cluster string) (*counters, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := m.heard[from]
	if m.closed || count == nil || cluster != m.cfg.Cluster {
		return nil, false
	}
	m.wg.Add(1)
	return count, true
}

// memoryLink is one direction between two nodes.
type memoryLink struct {
	from      *MemoryNode
	to        uint64
	queue     *queue
	count     *counters
	cancel    context.CancelFunc
	wake      chan struct{}
	dirty     atomic.Bool
	connected atomic.Bool
}

func (l *memoryLink) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			l.count.drop(l.queue.drop())
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
	dst := l.from.net.find(l.from.cfg.Node, l.to)
	var heard *counters
	var ok bool
	if dst != nil {
		heard, ok = dst.enter(l.from.cfg.Node, l.from.cfg.Cluster)
	}
	if !ok || len(payload) > dst.cfg.MaxFrameBytes {
		if ok {
			dst.wg.Done()
		}
		l.connected.Store(false)
		l.count.drop(f.items, len(payload))
		l.queue.release(len(payload))
		l.from.notify.mark(l.to)
		return
	}
	defer dst.wg.Done()
	if !l.connected.Swap(true) {
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
	dst.cfg.Receive(l.from.cfg.Node, payload)
	l.queue.release(len(payload))
}
