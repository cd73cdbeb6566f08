package rsm

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// peer is what the engine knows of another node.
type peer struct {
	heard  atomic.Int64 // when it was heard last, or met
	spoke  atomic.Bool  // it was heard
	mu     sync.Mutex
	inputs []core.Input // per worker; scratch of receive
}

// lastHeard returns when anything was received from it; 0: it never was.
func (p *peer) lastHeard() int64 {
	if !p.spoke.Load() {
		return 0
	}
	return p.heard.Load()
}

// speaks is told of what was received when the workers have it.
func (p *peer) speaks(at int64) {
	p.heard.Store(at)
	p.spoke.Store(true)
}

// peerSet are the nodes that were met or heard of. It only grows: an id is never reused, and an entry is small.
type peerSet struct {
	mu  sync.Mutex
	all atomic.Pointer[map[NodeID]*peer] // never changed, but replaced
}

func (s *peerSet) get(id NodeID) *peer {
	if m := s.all.Load(); m != nil {
		return (*m)[id]
	}
	return nil
}

// maxPeers bounds what strangers who know the cluster's name can fill.
const maxPeers = 4096

// met returns the peer, which is new, heard of at now, if it was not known; nil if there are too many.
func (s *peerSet) met(id NodeID, now int64) *peer {
	if p := s.get(id); p != nil {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.get(id); p != nil {
		return p
	}
	m := map[NodeID]*peer{}
	if old := s.all.Load(); old != nil {
		maps.Copy(m, *old)
	}
	if len(m) >= maxPeers {
		return nil
	}
	p := &peer{}
	p.heard.Store(now)
	m[id] = p
	s.all.Store(&m)
	return p
}

// ids returns all of them, ascending.
func (s *peerSet) ids() []NodeID {
	if m := s.all.Load(); m != nil {
		return slices.Sorted(maps.Keys(*m))
	}
	return nil
}

// topology is where the other nodes are found, and who has gone: what the configuration says, and what the shards' logs say since.
type topology struct {
	// telling is held while the transport is told: two workers that learn of one node's addresses one after the other must tell them in that order.
	telling sync.Mutex

	mu      sync.Mutex
	static  map[NodeID]string // Config.Peers
	shards  map[ShardID]core.Configuration
	address map[NodeID]string    // as the transport was told
	leaving map[NodeID]bool      // were removed, and are still talked to
	left    map[NodeID]time.Time // were removed, and when they were last talked to
}

// addressOf returns where a node is found; a log knows better than a configuration file.
func (t *topology) addressOf(id NodeID) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.locate(id)
}

// of returns a shard's members.
func (t *topology) of(shard ShardID) core.Configuration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shards[shard]
}

func (t *topology) locate(id NodeID) string {
	latest, address := Index(0), t.static[id]
	for _, c := range t.shards { // any order: the latest counts
		if a := c.Addresses[id]; a != "" && (c.Index > latest || latest == 0) {
			latest, address = c.Index, a
		}
	}
	return address
}

// update takes a shard's members, and returns where which peers are to be found from now on: all whose address has changed.
func (t *topology) update(shard ShardID, c core.Configuration, self NodeID) map[NodeID]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shards[shard] = c
	known := map[NodeID]bool{}
	for id := range t.static {
		known[id] = true
	}
	for _, c := range t.shards {
		for id := range c.Addresses {
			known[id] = true
		}
	}
	changed := map[NodeID]string{}
	for id := range known {
		if a := t.locate(id); id != self && a != "" && t.address[id] != a {
			t.address[id], changed[id] = a, a
		}
	}
	return changed
}

// told returns where the transport was told to find peers.
func (t *topology) told() map[NodeID]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.address)
}

// gone reports whether a node was removed from every shard of this node that it was in, and is in none.
func (t *topology) gone(id NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hasGone(id)
}

func (t *topology) hasGone(id NodeID) bool {
	removed := false
	for _, c := range t.shards {
		if c.Has(id) {
			return false
		}
		removed = removed || slices.Contains(c.Removed, id)
	}
	return removed
}

// membersChanged brings the transport up to date. It is called on workers' goroutines, also before there is a transport.
func (n *Node) membersChanged(shard ShardID, c core.Configuration) {
	n.topology.telling.Lock()
	changed := n.topology.update(shard, c, n.cfg.Node)
	for id := range changed {
		n.engine.peers.met(id, n.engine.mono())
	}
	if t := n.port.Load(); t != nil {
		for id, address := range changed {
			(*t).SetPeer(uint64(id), address)
		}
	}
	n.topology.telling.Unlock()
	for _, id := range c.Removed {
		if n.topology.gone(id) {
			n.forgetPeer(id)
		}
	}
}

// metPeer is told where a node that has dialled this one says that it is found. Only if nobody else has said so it is believed, and
// only to answer: a leader that this node does not know yet must be answered, or it could tell nothing. So must one that was removed while it was away.
func (n *Node) metPeer(id uint64, address string) {
	t, node := &n.topology, NodeID(id)
	t.telling.Lock()
	t.mu.Lock()
	where, gone := t.locate(node), t.hasGone(node)
	_, talking := t.address[node]
	tell := len(t.address) < maxMet && (where == "" && t.address[node] != address || gone && !talking)
	if tell {
		address = cmp.Or(where, address)
		t.address[node] = address
	}
	t.mu.Unlock()
	if p := n.port.Load(); tell && p != nil {
		(*p).SetPeer(id, address)
	}
	t.telling.Unlock()
	if tell && gone {
		n.forgetPeer(node)
	}
}

// maxMet nodes are answered without anybody having spoken for them.
const maxMet = 256

// farewell is how long a node that was removed is still talked to, so that it learns of it; and then for how long not, should it go on or come back.
const farewell = time.Minute

func (n *Node) forgetPeer(id NodeID) {
	t := &n.topology
	t.mu.Lock()
	_, is := t.address[id]
	is = is && !t.leaving[id]
	if is {
		t.leaving[id] = true
	}
	t.mu.Unlock()
	if !is {
		return
	}
	time.AfterFunc(n.farewell(), func() {
		t.telling.Lock()
		defer t.telling.Unlock()
		t.mu.Lock()
		delete(t.leaving, id)
		gone := t.hasGone(id)
		if gone {
			delete(t.address, id)
			t.left[id] = time.Now()
		}
		t.mu.Unlock()
		if !gone {
			return
		}
		select {
		case <-n.done:
		default:
			if p := n.port.Load(); p != nil {
				(*p).RemovePeer(uint64(id))
			}
		}
	})
}

func (n *Node) farewell() time.Duration { return cmp.Or(n.cfg.farewell, farewell) }

// allow is asked by the transport whether a node may talk to this one. One that is not known here may be a member by entries that
// this node lacks: the replicas ask their members before they believe it (internal/core, vouchedFor). One that was removed may now and then: it may not know.
func (n *Node) allow(id uint64) error {
	t, node := &n.topology, NodeID(id)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, talking := t.address[node]; talking || !t.hasGone(node) {
		return nil
	}
	if left, ok := t.left[node]; ok && time.Since(left) < n.farewell() {
		return fmt.Errorf("node %d was removed from every shard of node %d", id, n.cfg.Node)
	}
	return nil
}
