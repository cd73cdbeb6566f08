package rsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.opentelemetry.io/otel/trace"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/internal/transport"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// Node hosts replicas of many shards: one process, or one of several embedded in a process.
// All its methods may be called at any time from any goroutine.
type Node struct {
	cfg      Config
	engine   *engine
	log      wal.Log
	store    *state.Store
	shards   map[ShardID]*Shard
	snaps    *snapshot.Dir
	fs       vfs.FS // of state and snapshots
	disk     *diskMonitor
	topology topology
	port     atomic.Pointer[transport.Peer] // engine.transport, for who may ask before it is there

	draining atomic.Int32 // Drains that run

	serving   int64 // engine.mono when Start began to serve: before, as long as the log is read, no peer can be heard
	newShards bool  // identity has shards that node.json has not
	idMu      sync.Mutex
	identity  *identity // guarded by idMu once started; nil in memory

	mu      sync.Mutex
	started bool
	closed  bool
	failure *Error        // why the node stopped by itself
	ready   chan struct{} // closed when Start has succeeded
	done    chan struct{}
	metrics *collector
	tracer  trace.Tracer // nil: nothing is traced
}

// minProcs is what GOMAXPROCS is raised to, see Config.KeepGOMAXPROCS.
const minProcs = 8

// Start opens the node's data, recovers what a crash has left, and joins its
// peers. It does not wait for them: see Shard.WaitReady. An error names what is wrong and changes nothing.
func Start(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if !cfg.KeepGOMAXPROCS && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
	n := &Node{cfg: cfg, shards: map[ShardID]*Shard{}, ready: make(chan struct{}), done: make(chan struct{})}
	if cfg.Tracer != nil {
		n.tracer = cfg.Tracer.Tracer(tracerName)
	}
	if err := n.start(); err != nil {
		return nil, fmt.Errorf("node %d of cluster %q: %w", cfg.Node, cfg.Cluster, err)
	}
	n.mu.Lock()
	n.started = true
	failure := n.failure
	n.mu.Unlock()
	if failure != nil {
		n.Kill()
		return nil, fmt.Errorf("node %d of cluster %q: %w", cfg.Node, cfg.Cluster, failure)
	}
	close(n.ready)
	cfg.Logger.Info("node started", "cluster", cfg.Cluster, "node", uint64(cfg.Node), "address", n.Addr(), "shards", len(cfg.Shards),
		"heartbeat", cfg.HeartbeatInterval, "election_timeout", cfg.ElectionTimeout, "workers", cfg.Workers)
	return n, nil
}

func (n *Node) start() (err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	recovered, err := n.openData()
	if err != nil {
		return err
	}
	undo = append(undo, n.closeData)

	if n.cfg.wrapLog != nil {
		n.log = n.cfg.wrapLog(n.log)
	}
	e := n.makeEngine()
	if err := n.addShards(recovered); err != nil {
		return err
	}
	if e.transport, err = n.startTransport(); err != nil {
		return err
	}
	n.port.Store(&e.transport)
	for id, address := range n.topology.told() { // those that were met meanwhile as well
		e.transport.SetPeer(uint64(id), address)
	}
	// Not before here: a Start that failed must not have fixed the voters of a shard that never was.
	if n.newShards {
		n.idMu.Lock()
		err = n.identity.Write(theDisk(), n.cfg.Dir)
		n.idMu.Unlock()
		if err != nil {
			_ = e.transport.Close()
			return err
		}
	}
	n.serving = e.mono()
	e.bg.add()
	e.run()
	go n.newClock().run()
	go n.watchDisk()
	for _, w := range e.workers {
		w.signal() // new shards have something to do
	}
	if n.cfg.Metrics != nil {
		n.metrics = newCollector(n)
		if err := n.cfg.Metrics.Register(n.metrics); err != nil {
			n.Kill()
			undo = nil
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}

// makeEngine makes the node's engine, without a transport yet.
func (n *Node) makeEngine() *engine {
	e := newEngine(n.cfg.Node, n.cfg.Logger, n.log, n.cfg.Workers)
	e.tick = n.cfg.tick()
	e.fatal, e.changed, e.stopped = n.fail, n.leaderChanged, n.replicaStopped
	e.members, e.address, e.shard = n.membersChanged, n.topology.addressOf, n.Shard
	e.store, e.snaps, e.fs, e.cluster = n.store, n.snaps, n.fs, n.cfg.Cluster
	e.reads.pause = cmp.Or(n.cfg.readPause, readPause)
	e.rate = n.cfg.SnapshotBytesPerSecond
	n.engine = e
	n.topology.static, n.topology.shards, n.topology.address = maps.Clone(n.cfg.Peers), map[ShardID]core.Configuration{}, map[NodeID]string{}
	n.topology.leaving, n.topology.left = map[NodeID]bool{}, map[NodeID]time.Time{}
	for id := range n.cfg.Peers {
		if id != n.cfg.Node {
			e.peers.met(id, e.mono())
		}
	}
	return e
}

func (n *Node) newClock() *clock {
	return &clock{
		e: n.engine, cfg: &n.cfg, beatTicks: 2,
		ticksPerLook: max(1, int(time.Second/n.cfg.tick())),
	}
}

// memoryDisk is the "disk" of a node that lives in memory: it outlives the node.
type memoryDisk struct {
	log *wal.Memory
	fs  *vfs.MemFS
}

func newMemoryDisk() *memoryDisk { return &memoryDisk{log: wal.NewMemory(), fs: vfs.NewMem()} }

func (n *Node) openData() (map[uint64]*wal.ShardLog, error) {
	options := state.Options{CacheBytes: n.cfg.CacheBytes, OpenFiles: openFiles(len(n.cfg.Shards), fileLimit()), Logger: n.cfg.Logger, DisableCompactions: n.cfg.noCompactions, OnFatal: func(err error) {
		n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the state store failed", Cause: err})
	}, OnDamage: n.tableDamaged}
	n.disk = &diskMonitor{stat: n.cfg.freeBytes, watermark: uint64(max(0, n.cfg.DiskWatermark))}
	if n.disk.stat == nil {
		n.disk.stat = freeBytes
	}
	if m := n.cfg.memory; m != nil {
		log, recovered, err := m.log.Reopen()
		if err != nil {
			return nil, err
		}
		m.log, n.log = log, log
		options.Dir, options.FS, n.fs = "state", m.fs, m.fs
		if n.store, err = state.Open(options); err != nil {
			return nil, err
		}
		n.snaps, err = n.openSnapshots("snap")
		return recovered.Shards, err
	}
	n.fs = vfs.Default
	if n.cfg.wrapFS != nil {
		n.fs = n.cfg.wrapFS(n.fs)
	}
	options.FS = n.fs
	n.disk.dir = n.cfg.Dir
	var err error
	if n.identity, err = datadir.Read(theDisk(), n.cfg.Dir, n.cfg.Cluster, n.cfg.Node); err != nil {
		return nil, err
	}
	if n.identity == nil {
		if err := datadir.MakeDir(theDisk(), n.cfg.Dir); err != nil {
			return nil, err
		}
	}
	log, recovered, err := wal.Open(wal.Options{Dir: filepath.Join(n.cfg.Dir, "wal"), SegmentBytes: n.cfg.segmentBytes, Logger: n.cfg.Logger})
	if err != nil {
		return nil, err
	}
	options.Dir = filepath.Join(n.cfg.Dir, "state")
	store, err := state.Open(options)
	if err != nil {
		return nil, errors.Join(n.adviseDamage(err), log.Close())
	}
	n.log, n.store = log, store
	if n.snaps, err = n.openSnapshots(filepath.Join(n.cfg.Dir, "snap")); err != nil {
		n.closeData()
		return nil, err
	}
	if err = n.settleIdentity(recovered); err == nil {
		err = n.settleShards()
	}
	if err != nil {
		n.closeData()
		return nil, err
	}
	return recovered.Shards, nil
}

func (n *Node) openSnapshots(dir string) (*snapshot.Dir, error) {
	return snapshot.Open(snapshot.Options{Path: dir, FS: n.fs, Reserve: uint64(max(0, n.cfg.DiskWatermark)), Logger: n.cfg.Logger})
}

// settleIdentity makes sure that a directory is either this node's, whole, or
// new. A node that lost what it had promised must not come back under its old id: it could vote twice.
func (n *Node) settleIdentity(recovered *wal.Recovered) error {
	if known := n.identity != nil; known {
		if recovered.Fresh {
			return fmt.Errorf("%s has an identity but no log: this node has lost its log and may not come back under its old id; "+
				"remove its data and add it as a new node", n.cfg.Dir)
		}
		return nil
	}
	// Only now: it looks into tables, and one that is damaged is its shard's own matter.
	flushed, err := n.store.ShardIDs()
	switch {
	case err != nil:
		return n.adviseDamage(err)
	case len(recovered.Shards) > 0 || len(flushed) > 0:
		return fmt.Errorf("%s has data but no node.json, so that it is not known whose it is: restore the file, or remove the data", n.cfg.Dir)
	}
	n.identity = datadir.New(n.cfg.Cluster, n.cfg.Node)
	n.newShards = true
	return nil
}

// settleShards notes down the initial voters of new shards, before they do anything, and refuses to start if
// those of a known one have changed: members are never changed by configuration, because
// two sets of voters can have two majorities.
func (n *Node) settleShards() error {
	hosted, changed := map[ShardID]bool{}, false
	for _, s := range n.cfg.Shards {
		hosted[s.ID] = true
		known, ok := n.identity.Shards[s.ID]
		if ok && !slices.Equal(known, s.Voters) && !(s.Join && len(known) == 0) {
			return fmt.Errorf("shard %d was made with the voters %v and is configured with %v: "+
				"%w; set ShardConfig.Voters (by default all Peers) to what it was, and add nodes with Shard.AddLearner", s.ID, known, s.Voters, ErrVotersChanged)
		}
		if !ok {
			if n.identity.Shards == nil {
				n.identity.Shards = map[ShardID][]NodeID{}
			}
			n.identity.Shards[s.ID] = s.Voters
			changed = true
		}
	}
	for id := range n.identity.Shards {
		if !hosted[id] {
			return fmt.Errorf("%s has data of shard %d, which Config.Shards does not name: a node may not leave a shard by configuration", n.cfg.Dir, id)
		}
	}
	n.newShards = changed
	return nil
}

func (n *Node) addShards(recovered map[uint64]*wal.ShardLog) error {
	cfg, now := n.cfg.core(), n.engine.now()
	for _, w := range n.engine.workers {
		w.core = core.NewWorker(cfg, w, now)
	}
	for _, sc := range n.cfg.Shards {
		st, err := n.store.Shard(uint64(sc.ID))
		if err != nil {
			return n.adviseDamage(err)
		}
		n.shards[sc.ID] = &Shard{node: n, id: sc.ID, w: n.engine.workerOf(sc.ID), state: st}
		d := core.Deps{
			Machine: sc.Machine, State: st, Voters: sc.Voters, Logger: n.cfg.Logger.With("node", uint64(n.cfg.Node)),
			Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		}
		d.Restored = n.identity != nil && n.identity.Restored()
		if l := recovered[uint64(sc.ID)]; l != nil {
			d.Log = *l
		}
		if err := n.engine.workerOf(sc.ID).core.AddShard(sc.ID, d); err != nil {
			return n.adviseDamage(err)
		}
	}
	return nil
}

// adviseDamage adds to an error what to do about it, if it says that the state on disk is damaged where a start reads it.
func (n *Node) adviseDamage(err error) error {
	if !errors.Is(err, state.ErrCorrupt) && !pebble.IsCorruptionError(err) && !errors.Is(err, fs.ErrNotExist) &&
		!strings.Contains(err.Error(), "object size mismatch") { // which pebble does not mark
		return err
	}
	return fmt.Errorf("the state in %s is damaged where it is read at the start: %w. Restore the file if that can be done. Otherwise put a new node in the place of this one, "+
		"with an id that was never used (`decree replace %d NEW-ID HOST:PORT`, asked of another member), and then remove this directory. `decree repair` takes a node that runs, and helps with damage elsewhere in the state",
		filepath.Join(n.cfg.Dir, datadir.StateDir), err, n.cfg.Node)
}

func (n *Node) startTransport() (transport.Peer, error) {
	cfg := transport.Config{
		Cluster: n.cfg.Cluster, Node: uint64(n.cfg.Node), Listen: n.cfg.Listen, Listener: n.cfg.listener,
		Peers: map[uint64]string{}, TLS: n.cfg.TLS, Insecure: n.cfg.Insecure, Logger: n.cfg.Logger,
		Receive: n.engine.receive, Gap: n.engine.gap, Unreachable: n.engine.unreachable, Serve: n.engine.serve, Allow: n.allow, Met: n.metPeer, Address: n.cfg.Peers[n.cfg.Node],
	}
	for id, addr := range n.cfg.Peers {
		cfg.Peers[uint64(id)] = addr
	}
	for id, addr := range n.topology.told() {
		cfg.Peers[uint64(id)] = addr
	}
	if n.cfg.network != nil {
		return n.cfg.network.Start(cfg)
	}
	cfg.Data, cfg.Admit = n.identity.Data, n.admit
	if n.cfg.Services != nil {
		cfg.Services = n.services
	}
	t, err := transport.Start(cfg)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Shard returns the node's replica of a shard, or nil if the node hosts none.
func (n *Node) Shard(id ShardID) *Shard { return n.shards[id] }

// Shards returns the node's replicas, by their shards' ids.
func (n *Node) Shards() []*Shard {
	all := slices.Collect(maps.Values(n.shards))
	slices.SortFunc(all, func(a, b *Shard) int { return cmp.Compare(a.id, b.id) })
	return all
}

// Cluster returns the cluster's name.
func (n *Node) Cluster() string { return n.cfg.Cluster }

// AddressOf returns where a node, this one or another, is found as far as this one knows, or "".
func (n *Node) AddressOf(id NodeID) string { return n.topology.addressOf(id) }

// ID returns the node's id.
func (n *Node) ID() NodeID { return n.cfg.Node }

// Addr returns the address that the node listens on for its peers.
func (n *Node) Addr() string { return n.engine.transport.Addr() }

// Done is closed when the node has stopped: by Close, Kill or a failure, see Err.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err returns why the node stopped by itself, or nil.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failure == nil {
		return nil
	}
	return n.failure
}

// fail stops the node for a reason of its own. It is called on the node's own goroutines.
func (n *Node) fail(reason *Error) {
	n.mu.Lock()
	first := n.failure == nil && !n.closed
	if first {
		n.failure = reason
	}
	started := n.started
	n.mu.Unlock()
	if !first || !started {
		return // Start looks at failure when it is done
	}
	n.cfg.Logger.Error("node stops", "reason", reason)
	go func() {
		n.shutdown(reason)
		if n.cfg.OnStop != nil {
			n.cfg.OnStop(reason)
		}
	}()
}

// closePatience is how long a stopping node waits for queries, flushes and the log.
const closePatience = 20 * time.Second

// Close hands leaderships over, for an election timeout at most, ends pending calls and closes the files. What is acknowledged is durable without it.
//
// It returns when nothing of the node runs any more, so that the same process may start it again: usually a few milliseconds after the last leadership
// has gone. For a query, an Audit, a pass of a machine, a flush or a write to the log that does not return, it waits 20 s; then it
// returns all the same, an error in the log says so, and the files stay open: only another process can start on them. Compactions under way are waited for, 10 s at
// most where the store has met damage.
// A node that has stopped by itself, and one that was closed, has nothing to hand over.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.ElectionTimeout)
	defer cancel()
	_ = n.Drain(ctx) // as far as it goes
	n.shutdown(errClosed)
	return n.Err()
}

// Kill stops the node as kill -9 would: nothing is handed over, flushed or
// written any more. It waits like Close for what is under way, as in the same process the files must be closed before they are opened again. For tests and demonstrations.
func (n *Node) Kill() { n.shutdown(errClosed) }

func (n *Node) shutdown(reason *Error) {
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	n.mu.Unlock()
	if !first {
		<-n.done
		return
	}
	_ = n.engine.transport.Close()
	patience := closePatience
	if reason.Kind == ErrBroken {
		patience = time.Second
	}
	if n.engine.stop(reason, patience) {
		n.closeData()
	} else {
		n.cfg.Logger.Error("files are left open: a query, a flush or a write to the log does not end", "waited", patience)
	}
	n.engine.dead.give()
	if n.metrics != nil {
		n.metrics.n.Store(nil) // an unchecked collector cannot be unregistered
	}
	close(n.done)
}

func (n *Node) closeData() {
	for _, s := range n.shards {
		s.state.Close()
	}
	var errs []error
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	if err := errors.Join(errs...); err != nil {
		n.cfg.Logger.Warn("closing the data", "reason", err)
	}
}

// Drain hands over the leadership of every shard that the node leads, and
// returns when it leads none. If ctx ends first, the error is an *Error with ErrUnknown and CodeCancelled, over ctx's: some may have gone, and the last transfers may yet succeed.
// So it is if the node stops first, with CodeClosed; with ErrNotProposed no transfer had begun.
func (n *Node) Drain(ctx context.Context) error {
	n.draining.Add(1)
	defer n.draining.Add(-1)
	begun := false
	for {
		led := 0
		for _, s := range n.shards {
			if s.Leader() != n.cfg.Node {
				continue
			}
			others, began := s.handOver(ctx)
			if others {
				led++
			}
			begun = begun || began
		}
		if led == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return &Error{Kind: ErrUnknown, Code: core.CodeCancelled, Message: "not every leadership was handed over before the caller stopped waiting", Cause: ctx.Err()}
		case <-n.done:
			if begun {
				return &Error{Kind: ErrUnknown, Code: core.CodeClosed, Message: "not every leadership was handed over before the node stopped"}
			}
			return errClosed
		case <-time.After(n.cfg.tick() / 4):
		}
	}
}

// Ready says, in words, what keeps the node from serving; nothing means that it has started, all its replicas are in service, and it is neither
// closing nor handing its leaderships over. It is cheap. That a shard has no leader is no fault of one node, and not looked at.
func (n *Node) Ready() (missing []string) {
	n.mu.Lock()
	started, closed, failure := n.started, n.closed, n.failure
	n.mu.Unlock()
	switch {
	case failure != nil:
		return []string{fmt.Sprintf("node %d has stopped: %v", n.cfg.Node, failure)}
	case closed:
		return []string{fmt.Sprintf("node %d is closed, or closing", n.cfg.Node)}
	case !started:
		return []string{fmt.Sprintf("node %d is starting", n.cfg.Node)}
	}
	if n.draining.Load() > 0 {
		missing = append(missing, fmt.Sprintf("node %d hands its leaderships over", n.cfg.Node))
	}
	for _, s := range n.Shards() {
		if err := s.stopped.Load(); err != nil {
			missing = append(missing, fmt.Sprintf("the replica of shard %d is out of service: %v", s.id, err))
		}
	}
	return missing
}

func (n *Node) leaderChanged(id ShardID, leader NodeID, term Term) {
	if s := n.shards[id]; s != nil {
		s.reign.Store(&reign{leader, term})
	}
}

func (n *Node) replicaStopped(id ShardID, err *Error) {
	if s := n.shards[id]; s != nil {
		s.stopped.Store(err)
		n.repairStopped(s, err)
	}
}

// tableDamaged has the replica to which a damaged table belongs stopped, also if it has not read it itself, so that it is repaired: as soon as the others can do without it.
// It runs on a goroutine of its own.
func (n *Node) tableDamaged(shard uint64, table string, err error) {
	id := ShardID(shard)
	n.mu.Lock()
	started := n.started
	n.mu.Unlock()
	if !started {
		return // it is met again
	}
	s := n.shards[id]
	if s == nil || s.stopped.Load() != nil {
		return
	}
	// A repair may put another in its place at any time. The tables are not listed on the worker's goroutine: there may be very many.
	replaced := n.store.Replaced()
	if names, terr := n.store.Tables(shard); terr != nil || !slices.Contains(names, table) {
		return
	}
	n.engine.workerOf(id).post(func(in *core.Input) {
		in.Calls = append(in.Calls, func(w *core.Worker) {
			if n.store.Replaced() == replaced { // else it is met again, if it is still there
				w.Unreadable(id, err)
			}
		})
	})
}

// NodeStatus is a node at a glance.
type NodeStatus struct {
	Node          NodeID
	Cluster       string
	Shards        []ShardStatus
	Peers         map[NodeID]PeerStatus
	LogSegments   int
	LogBytes      int64
	LogFsyncs     uint64
	LogSyncTime   time.Duration // spent in log writes and fsyncs, since the start
	StateBytes    uint64        // of the state store on disk
	SnapshotsSent uint64        // bytes of snapshots that peers have fetched here, since the start
	FreeDiskBytes uint64        // 0 in memory
	DiskLow       bool
}

// PeerStatus is another node as seen from this one.
type PeerStatus struct {
	Connected   bool
	LastHeard   time.Duration // ago; since this node serves, if it was not heard since
	Silent      bool          // it was not heard for three election timeouts, though all nodes beat: it is away, or the way from it to here is broken
	QueuedBytes int
	LastError   string
}

// silentAfter election timeouts a peer is said to be silent: others have been elected in its place, and it was no hiccup.
const silentAfter = 3

// Status asks every shard, and so takes about as long as a pass of the engine.
func (n *Node) Status() (NodeStatus, error) { return n.StatusContext(context.Background()) }

// StatusContext is Status for who does not wait for ever, as a pass may not return: with an error of time it has the shards that answered, and everything else.
func (n *Node) StatusContext(ctx context.Context) (NodeStatus, error) {
	s := NodeStatus{Node: n.cfg.Node, Cluster: n.cfg.Cluster, Peers: map[NodeID]PeerStatus{}}
	var err error
	if s.Shards, err = n.statuses(ctx); errors.Is(err, errClosed) {
		return s, err
	}
	stats := n.engine.transport.Stats()
	for _, id := range n.engine.peers.ids() {
		p, t := n.engine.peers.get(id), stats[uint64(id)]
		heard := time.Duration(n.engine.mono() - max(p.heard.Load(), n.serving))
		s.Peers[id] = PeerStatus{
			Connected: t.Connected, QueuedBytes: t.QueuedBytes, LastError: t.LastError,
			LastHeard: heard, Silent: heard >= silentAfter*n.cfg.ElectionTimeout,
		}
	}
	ls := n.log.Stats()
	s.LogSegments, s.LogBytes = n.log.Size()
	s.LogFsyncs, s.LogSyncTime = ls.Fsyncs, ls.SyncTotal
	s.StateBytes, s.SnapshotsSent = n.store.Metrics().DiskBytes, n.engine.sent.Load()
	s.FreeDiskBytes, s.DiskLow = n.disk.free.Load(), n.disk.low.Load()
	return s, err
}

// statuses asks the shards, those of each worker one after the other: a worker that does not answer holds up no other.
func (n *Node) statuses(ctx context.Context) ([]ShardStatus, error) {
	all, errs := make([]ShardStatus, len(n.cfg.Shards)), make([]error, len(n.cfg.Shards))
	byWorker := map[*worker][]int{}
	for i, sc := range n.cfg.Shards {
		w := n.engine.workerOf(sc.ID)
		byWorker[w] = append(byWorker[w], i)
	}
	var wg sync.WaitGroup
	for _, its := range byWorker {
		wg.Go(func() {
			for _, i := range its {
				all[i], errs[i] = n.shards[n.cfg.Shards[i].ID].StatusContext(ctx)
			}
		})
	}
	wg.Wait()
	answered := all[:0]
	for i, st := range all {
		if errs[i] == nil {
			answered = append(answered, st)
		}
	}
	return answered, cmp.Or(errs...)
}
