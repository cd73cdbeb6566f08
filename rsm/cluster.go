package rsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/transport"
)

// ClusterConfig configures a Cluster.
type ClusterConfig struct {
	// Name of the cluster. Default "embedded".
	Name string
	// Nodes is how many, with ids from 1. Default 3.
	Nodes int
	// Dir holds a directory per node; the nodes speak TCP over loopback. Empty:
	// everything is in memory, network included, and gone with the process.
	Dir string
	// Shards are hosted by every node.
	Shards []ShardConfig
	// Configure, if set, may change a node's Config before it starts.
	Configure func(*Config)
}

// Cluster is several nodes in one process: for tests, demonstrations, and programs that
// want durable, replicated writes to several local disks. The code is that of separate processes.
type Cluster struct {
	cfg     ClusterConfig
	peers   map[NodeID]string
	network *transport.MemoryNetwork
	disks   map[NodeID]*memoryDisk

	mu     sync.Mutex
	nodes  map[NodeID]*Node
	joined map[NodeID]bool // by Join
	high   NodeID          // the highest id
}

// StartCluster starts all nodes and returns when every shard has a leader, or
// an error. It gives up after a minute.
func StartCluster(cfg ClusterConfig) (*Cluster, error) {
	cfg.Name = cmp.Or(cfg.Name, "embedded")
	cfg.Nodes = cmp.Or(cfg.Nodes, 3)
	c := &Cluster{cfg: cfg, peers: map[NodeID]string{}, disks: map[NodeID]*memoryDisk{}, nodes: map[NodeID]*Node{}, joined: map[NodeID]bool{}, high: NodeID(cfg.Nodes)}
	if cfg.Dir == "" {
		c.network = transport.NewMemoryNetwork()
	}
	listeners := map[NodeID]net.Listener{}
	for id := NodeID(1); id <= NodeID(cfg.Nodes); id++ {
		if cfg.Dir == "" {
			c.disks[id] = newMemoryDisk()
			c.peers[id] = fmt.Sprintf("memory-%d", id)
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners[id] = l
		c.peers[id] = l.Addr().String()
	}
	for id := NodeID(1); id <= NodeID(cfg.Nodes); id++ {
		if err := c.start(id, listeners[id]); err != nil {
			c.Close()
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, s := range cfg.Shards {
		if _, err := c.Leader(ctx, s.ID); err != nil {
			c.Close()
			return nil, fmt.Errorf("shard %d: %w", s.ID, err)
		}
	}
	return c, nil
}

// Join starts a further node, which hosts all shards and is a member of none: add it with Shard.AddLearner, at Node.Addr. Its id must be new.
func (c *Cluster) Join(id NodeID) (*Node, error) {
	c.mu.Lock()
	known := id <= c.high || c.joined[id]
	if !known {
		c.high, c.joined[id] = id, true
		if c.cfg.Dir == "" {
			c.disks[id] = newMemoryDisk()
		}
	}
	c.mu.Unlock()
	if known {
		return nil, fmt.Errorf("node %d is, or was, a node of the cluster: ids are never reused, and higher than those before", id)
	}
	var l net.Listener
	if c.cfg.Dir != "" {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	if err := c.start(id, l); err != nil {
		return nil, err
	}
	return c.Node(id), nil
}

func (c *Cluster) start(id NodeID, l net.Listener) error {
	c.mu.Lock()
	peers, shards := maps.Clone(c.peers), slices.Clone(c.cfg.Shards)
	switch _, known := peers[id]; {
	case l != nil:
		peers[id] = l.Addr().String()
	case !known:
		peers[id] = fmt.Sprintf("memory-%d", id)
	}
	if c.joined[id] {
		c.peers[id] = peers[id]
	}
	for i := range shards {
		shards[i].Join = shards[i].Join || c.joined[id]
		for v := NodeID(1); v <= NodeID(c.cfg.Nodes) && c.cfg.Shards[i].Voters == nil; v++ {
			shards[i].Voters = append(shards[i].Voters, v)
		}
	}
	disk := c.disks[id]
	c.mu.Unlock()
	cfg := Config{
		Cluster: c.cfg.Name, Node: id, Peers: peers, Shards: shards,
		listener: l, memory: disk, network: c.network,
	}
	if c.cfg.Dir != "" {
		cfg.Dir = filepath.Join(c.cfg.Dir, fmt.Sprintf("node%d", id))
	}
	if c.cfg.Configure != nil {
		c.cfg.Configure(&cfg)
	}
	n, err := Start(cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.nodes[id] = n
	c.mu.Unlock()
	return nil
}

// Node returns a running node, or nil.
func (c *Cluster) Node(id NodeID) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// Nodes returns the running nodes by ascending id.
func (c *Cluster) Nodes() (nodes []*Node) {
	c.mu.Lock()
	high := c.high
	c.mu.Unlock()
	for id := NodeID(1); id <= high; id++ {
		if n := c.Node(id); n != nil {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Kill stops a node as kill -9 would, see Node.Kill.
func (c *Cluster) Kill(id NodeID) {
	c.mu.Lock()
	n := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	if n != nil {
		n.Kill()
	}
}

// Restart starts a node that was killed, on what it has on disk. Another program may have been given its port meanwhile: it waits for that, ten seconds at most.
func (c *Cluster) Restart(id NodeID) error {
	if c.Node(id) != nil {
		return fmt.Errorf("node %d is running", id)
	}
	c.mu.Lock()
	_, known := c.peers[id]
	c.mu.Unlock()
	if !known {
		return fmt.Errorf("there is no node %d", id)
	}
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := c.start(id, nil); !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(until) {
			return err
		}
	}
}

// Cut lets nothing pass between two nodes until Heal. In-memory clusters only.
func (c *Cluster) Cut(a, b NodeID) {
	if c.network != nil {
		c.network.Cut(uint64(a), uint64(b))
		c.network.Cut(uint64(b), uint64(a))
	}
}

// Heal undoes every Cut.
func (c *Cluster) Heal() {
	if c.network != nil {
		c.network.HealAll()
	}
}

// Leader returns the node that leads a shard and says so itself. If ctx ends first, the error is an *Error with CodeNoLeader over ctx's.
func (c *Cluster) Leader(ctx context.Context, id ShardID) (*Node, error) {
	for {
		for _, n := range c.Nodes() {
			if s := n.Shard(id); s != nil && s.Leader() == n.ID() {
				return n, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, &Error{Kind: ErrNotProposed, Code: core.CodeNoLeader, Message: "no leader was elected in time", Cause: ctx.Err()}
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Client returns an exactly-once client of one shard over the nodes that there are at the time of each attempt: it follows replacements.
func (c *Cluster) Client(id ShardID) *Client {
	return newClient(func(hint NodeID) (*Shard, error) {
		n := c.Node(hint)
		if n == nil {
			return nil, errUnreachable
		}
		if s := n.Shard(id); s != nil {
			return s, nil
		}
		return nil, &Error{Kind: ErrNotProposed, Code: core.CodeNoShard, Message: fmt.Sprintf("node %d hosts no shard %d", hint, id)}
	}, c.after)
}

// after returns the node with the next higher id, running or not, or else the first.
func (c *Cluster) after(id NodeID) NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first, next NodeID
	for p := range c.peers {
		if first == 0 || p < first {
			first = p
		}
		if p > id && (next == 0 || p < next) {
			next = p
		}
	}
	return cmp.Or(next, first)
}

// Close stops all nodes. What is acknowledged is durable without it.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.Nodes() {
		n.Kill() // all at once: nobody is left to hand leadership to
		errs = append(errs, n.Err())
	}
	return errors.Join(errs...)
}
