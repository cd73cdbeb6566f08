package rsm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/decree-raft/decree/internal/bind"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/transport"
	"github.com/decree-raft/decree/wal"
)

// Limits bound everything that grows; zero fields take their defaults. They are each node's own, and may differ from node to node and change with a restart: what binds
// a decision binds the leader that decides. docs/limits.md has these and all others, with what to do about each.
type Limits struct {
	// MaxCommandBytes bounds one command. Default 1 MiB; 1 to MaxEntryBytes. Beyond it: ErrNotProposed with CodeCommandTooLarge. Over a connection, to a
	// proxy or to a node's own port, a call with all its commands has 8 MiB at most, whatever is set here.
	MaxCommandBytes int
	// MaxRequestCommands bounds the commands that are decided together in one request. Default 4096; 1 to 65,535. Beyond it: ErrNotProposed with
	// CodeTooManyCommands.
	MaxRequestCommands int
	// MaxEntryBytes bounds what one request may put into the log: events and replies. Default 8 MiB; at most 32 MiB. Beyond it the
	// command is rejected with CodeEntryTooLarge.
	MaxEntryBytes int
	// BatchBytes is when a batch is full and the next request waits for the next entry. Default 256 KiB, so
	// that an entry, which is copied several times on its way, fits into a processor's cache; 1 to MaxEntryBytes, and at most 56 MiB with it. A full batch
	// waits for nothing: several go out in one write.
	BatchBytes int
	// PipelineDepth is how many entries may be proposed and not yet applied, per shard. Default 16; 1 to 1024.
	PipelineDepth int
	// MaxKeyBytes and MaxValueBytes bound what a command may have Apply set, while this node leads: what another leader has decided, or this
	// one under other limits, is applied whatever its size. Default 4 KiB and 4 MiB; at most 64 KiB and 64 MiB. Beyond them the command is rejected with
	// CodeKeyTooLarge or CodeValueTooLarge.
	MaxKeyBytes, MaxValueBytes int
	// MaxQueuedRequests and MaxQueuedBytes bound, per shard, the calls that are pending on this node, reads included. Beyond them:
	// ErrNotProposed with CodeOverloaded. Default 65,536 and 64 MiB; at least 1 and MaxCommandBytes.
	MaxQueuedRequests, MaxQueuedBytes int
	// FlushBytes is how much of a shard's state and log is kept in memory before it is flushed. Default 32 MiB,
	// on a node of many shards 512 MiB shared among them, but at least 1 MiB; 64 KiB to 64 MiB, since up to eight times as much waits
	// where flushes cannot keep up, and a record of the log must take that.
	FlushBytes int64
	// LogCacheBytes of flushed log stay in memory, per shard, for followers that are a little behind. Default 4 MiB.
	LogCacheBytes int64
}

// SessionOptions are what sessions are opened with; zero fields take their defaults. They are replicated with the opening, so changing them
// changes the sessions that are opened from then on. Outcomes that are kept may take 32 MiB of memory for a session, and 512 MiB (or 8 KiB for each of Max,
// if that is more) for all of a shard: beyond that, commands in sessions end with ErrNotProposed and CodeOverloaded until outcomes are acknowledged.
type SessionOptions struct {
	// TTL is how long, by the time of the log's entries, a session outlives its last use. Default 1 hour; at least 1 minute. After it: CodeSessionExpired.
	TTL time.Duration
	// Window is how many sequence numbers may be unacknowledged at once. Default 4096; 1 to 65,536. Beyond it: ErrNotProposed with CodeSequenceTooHigh.
	Window uint64
	// Max is how many sessions a shard keeps. Default 65,536; at least 1. For a new one beyond it the session that was unused for longest is evicted, though it
	// may be in use: its client meets CodeSessionExpired. So it must exceed the clients that are alive at the same time.
	Max int
}

// TLS configures mutual TLS between nodes.
type TLS = transport.TLS

// ErrInsecure is wrapped by the error of a node whose port would be open to everybody, see Config.Insecure.
var ErrInsecure = bind.ErrInsecure

// ErrVotersChanged is wrapped by the error of a node that was started with other initial voters of a shard than the first time, see ShardConfig.Voters.
var ErrVotersChanged = errors.New("members cannot be changed by configuration")

// TLSFiles reads a node's certificate, key and authorities from PEM files, and again when they change.
func TLSFiles(certFile, keyFile, caFile string, log *slog.Logger) (*TLS, error) {
	return transport.TLSFiles(certFile, keyFile, caFile, log)
}

// Config configures a Node. It is copied by Start, which validates it before it does anything else.
type Config struct {
	// Cluster names the cluster, 1 to 64 bytes. A node refuses peers and data of another. Required.
	Cluster string
	// Node is this node's id, from 1, unique for ever within the cluster. Required.
	Node NodeID
	// Dir is the data directory; it is made if missing. Required.
	Dir string
	// Listen is the host:port for the other nodes. Default: this node's address in Peers.
	Listen string
	// Peers has the address (host:port) of every node, this one included. Required. Of nodes that joined later it may know nothing:
	// their addresses are in the shards' logs, which also know better where somebody has moved.
	Peers map[NodeID]string
	// TLS, if set, is asked of every peer and shown to every peer.
	TLS *TLS
	// Insecure allows Listen to be an address that other machines reach although there is no TLS: whoever reaches the port and knows the cluster's name is
	// believed to be a node, and everything is read by whoever listens in. Without it, Start refuses such an address with an error that wraps ErrInsecure.
	Insecure bool
	// Services, if set, registers further gRPC services on the node's own port, with its TLS, before it is served: admin.Register is one.
	// Their calls wait until Start has returned, and are ended by Close. Whoever reaches the port may call them; with TLS that is everyone
	// with a certificate of the authorities; admin.Checked asks for tokens besides. A node in memory has no port and does not call it.
	Services func(n *Node, r grpc.ServiceRegistrar)
	// Shards that this node hosts. At least one; may differ from node to node.
	Shards []ShardConfig

	// HeartbeatInterval is how often a leader is heard. Default 100 ms, at least 2 ms.
	HeartbeatInterval time.Duration
	// ElectionTimeout: a follower that has not heard from the leader for this long to twice
	// this long campaigns. Default 800 ms; at least three heartbeats. The same on all nodes.
	ElectionTimeout time.Duration
	// QuiesceAfter is how long a shard is idle before it rests. Default four election timeouts; negative: never.
	QuiesceAfter time.Duration

	Limits   Limits
	Sessions SessionOptions

	// KeepJournal keeps every committed entry for ever, as history. Otherwise the journal has what some voter may
	// still need to catch up, and every command is written to disk once (docs/decisions/0007-journal.md).
	KeepJournal bool
	// JournalBytes and JournalAge keep at least that much of the journal, per shard, as history. Age is by entries' time. Default none.
	JournalBytes int64
	JournalAge   time.Duration
	// JournalMaxBytes bounds, per shard, what the journal keeps for members that are behind, KeepJournal aside; one that lacks more
	// is given a snapshot. Default 1 GiB, or twice JournalBytes if that is more; negative: no bound.
	JournalMaxBytes int64
	// KeepDamage leaves a replica whose state on disk turned out to be damaged out of service, for somebody to look at. Otherwise it is
	// given the state of another member, see Shard.Repair.
	KeepDamage bool
	// SnapshotBytesPerSecond bounds, for each snapshot, how fast it is cut or fetched. Default: no bound. A cut rests for the sake of the
	// log without one.
	SnapshotBytesPerSecond int64
	// BackupStall is how long the receiver of a backup, of a stream or a directory's disk, may take nothing; then the backup ends with ErrBackupStalled: what it is of stays on the
	// node's disk meanwhile, replaced or not. Default 5 minutes; negative: for ever.
	BackupStall time.Duration
	// Workers drive the shards. Default one per core, at most one per shard.
	Workers int
	// CacheBytes is the memory for blocks of the state store. Default 64 MiB.
	CacheBytes int64
	// LogSegments of the write-ahead log (32 MiB each) may exist before shards are asked to flush. Default 8.
	LogSegments int
	// DiskWatermark: with less free space, in bytes, commands are refused. Default 256 MiB; negative: never.
	DiskWatermark int64
	// FsyncStall: a node whose write to the log takes longer stops. One whose flush takes longer says so. Default 10 s.
	FsyncStall time.Duration
	// KeepGOMAXPROCS leaves the Go scheduler alone. Otherwise Start raises GOMAXPROCS to 8 if it
	// is lower: a blocked fsync occupies one of its slots, and with two of them costs half the
	// throughput (docs/decisions/0006-gomaxprocs.md).
	KeepGOMAXPROCS bool

	// Logger gets the node's log. Default: none.
	Logger *slog.Logger
	// Metrics, if set, gets the node's collector.
	Metrics prometheus.Registerer
	// Tracer, if set, gets a span of each call on this node, under that of the call's context (see Shard.Traced for those without one), or the one that a client of its port names; and under
	// it spans of its stages: decide, commit and apply; of a read, wait and query. What is sampled is for the provider to say.
	// Only the node that is asked has spans of a call: others are not told of it.
	Tracer trace.TracerProvider
	// OnStop, if set, is called once, on its own goroutine, when the node stops by itself, with the reason.
	OnStop func(error)

	// freeBytes is the system's; tests put a full disk here.
	freeBytes func(dir string) (uint64, error)
	// noCompactions keeps the state store from reading what nobody asks for; tests damage it.
	noCompactions bool
	// wrapLog, if set, puts a faulty disk in front of the log; wrapFS something that watches in front of state and snapshots.
	wrapLog func(wal.Log) wal.Log
	wrapFS  func(vfs.FS) vfs.FS
	// segmentBytes of the log, if not zero; tests want many segments.
	segmentBytes int64
	// readPause, if not zero, is how long a snapshot that a peer reads is kept for the next chunk; tests have no minute.
	readPause time.Duration
	// repairPause, if not zero, is after how long a repair that failed is tried again.
	repairPause time.Duration
	// peerPatience, if not zero, is how long a peer that could help with a repair may say nothing.
	peerPatience time.Duration
	// farewell, if not zero, is how long a node that was removed is still talked to; likewise.
	farewell time.Duration
	// Set by Cluster.
	listener net.Listener
	memory   *memoryDisk
	network  *transport.MemoryNetwork
}

// ShardConfig is a shard on a node.
type ShardConfig struct {
	// ID, from 1, unique within the cluster.
	ID ShardID
	// Machine is run by this replica. All replicas of a shard run the same.
	Machine Machine
	// Voters are the initial members, the same on every node. Default: all Peers. Later changes are not made here, but with Shard.AddLearner
	// and its like; Voters stays what it was, and has to be written out if Peers is given more nodes.
	Voters []NodeID
	// Join: the shard exists already, and this node is, or will be, added to it. Voters is not looked at. It stays set.
	Join bool
}

// nodeFlushBytes is what all shards of a node together keep in memory, by default, before they flush.
const nodeFlushBytes = 512 << 20

func (c Config) withDefaults() Config {
	c.Listen = cmp.Or(c.Listen, c.Peers[c.Node])
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, 100*time.Millisecond)
	c.ElectionTimeout = cmp.Or(c.ElectionTimeout, 800*time.Millisecond)
	c.QuiesceAfter = cmp.Or(c.QuiesceAfter, 4*c.ElectionTimeout)
	c.Workers = cmp.Or(c.Workers, min(runtime.NumCPU(), max(1, len(c.Shards))))
	c.CacheBytes = cmp.Or(c.CacheBytes, 64<<20)
	c.LogSegments = cmp.Or(c.LogSegments, 8)
	c.BackupStall = cmp.Or(c.BackupStall, 5*time.Minute)
	c.DiskWatermark = cmp.Or(c.DiskWatermark, 256<<20)
	c.FsyncStall = cmp.Or(c.FsyncStall, 10*time.Second)
	if c.Limits.FlushBytes == 0 {
		// Memory is the node's: many shards share what a few would take.
		c.Limits.FlushBytes = min(32<<20, max(1<<20, nodeFlushBytes/int64(max(1, len(c.Shards)))))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 100}))
	}
	c.Shards = slices.Clone(c.Shards)
	for i := range c.Shards {
		if c.Shards[i].Join {
			c.Shards[i].Voters = nil
			continue
		}
		if c.Shards[i].Voters == nil {
			for id := range c.Peers {
				c.Shards[i].Voters = append(c.Shards[i].Voters, id)
			}
		}
		c.Shards[i].Voters = slices.Sorted(slices.Values(c.Shards[i].Voters))
	}
	return c
}

// tick is half a heartbeat: the unit of all timeouts.
func (c *Config) tick() time.Duration { return c.HeartbeatInterval / 2 }

func (c *Config) core() core.Config {
	quiesce := -1
	if c.QuiesceAfter > 0 {
		quiesce = max(1, int(c.QuiesceAfter/c.tick()))
	}
	return core.Config{
		Node: c.Node, Tick: c.tick(), HeartbeatTicks: 2, ElectionTicks: int(c.ElectionTimeout / c.tick()), QuiesceTicks: quiesce,
		KeepJournal: c.KeepJournal, JournalBytes: c.JournalBytes, JournalAge: c.JournalAge, JournalMaxBytes: c.JournalMaxBytes,
		Limits: core.Limits(c.Limits), Sessions: core.SessionOptions(c.Sessions), RewriteBytes: c.rewriteBytes(),
	}.WithDefaults()
}

// rewriteBytes is how much a shard may keep in the log although it does nothing: all shards together a quarter of what the log may take.
func (c *Config) rewriteBytes() int64 {
	log := int64(c.LogSegments) * cmp.Or(c.segmentBytes, wal.DefaultSegmentBytes)
	return min(256<<10, max(1, log/int64(4*max(1, len(c.Shards)))))
}

func (c *Config) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(c.Cluster) >= 1 && len(c.Cluster) <= 64, "Cluster is %q: 1 to 64 bytes", c.Cluster)
	check(c.Node != 0, "Node is 0: ids start at 1")
	check(c.Dir != "" || c.memory != nil, "Dir is empty: name a directory for the data")
	_, known := c.Peers[c.Node]
	check(known, "Peers has no entry for this node, %d", c.Node)
	_, zero := c.Peers[0]
	check(!zero, "Peers has a node 0: ids start at 1")
	check(len(c.Shards) > 0, "Shards is empty: a node hosts at least one")
	check(c.HeartbeatInterval >= 2*time.Millisecond, "HeartbeatInterval is %v: at least 2ms", c.HeartbeatInterval)
	check(c.ElectionTimeout >= 3*c.HeartbeatInterval, "ElectionTimeout is %v: at least three heartbeats, %v", c.ElectionTimeout, 3*c.HeartbeatInterval)
	check(c.Workers >= 1 && c.Workers <= 1024, "Workers is %d: 1 to 1024", c.Workers)
	check(c.SnapshotBytesPerSecond >= 0, "SnapshotBytesPerSecond is %d: at least 0", c.SnapshotBytesPerSecond)
	check(c.LogSegments >= 2, "LogSegments is %d: at least 2", c.LogSegments)
	check(c.FsyncStall >= c.ElectionTimeout, "FsyncStall is %v: at least the election timeout, %v", c.FsyncStall, c.ElectionTimeout)
	seen := map[ShardID]bool{}
	for _, s := range c.Shards {
		check(s.ID != 0, "a shard has id 0: ids start at 1")
		check(!seen[s.ID], "shard %d stands twice in Shards", s.ID)
		seen[s.ID] = true
		check(s.Machine != nil, "shard %d has no Machine", s.ID)
		check(s.Join || slices.Contains(s.Voters, c.Node), "shard %d is hosted here, but node %d is not among its voters %v; set Join if it is to be added to a shard that exists", s.ID, c.Node, s.Voters)
		check(len(slices.Compact(slices.Clone(s.Voters))) == len(s.Voters), "shard %d has a voter twice: %v", s.ID, s.Voters)
		for _, v := range s.Voters {
			_, ok := c.Peers[v]
			check(ok, "voter %d of shard %d is not in Peers", v, s.ID)
		}
	}
	if c.HeartbeatInterval >= 2*time.Millisecond {
		if err := c.core().Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("invalid configuration: %w", errors.Join(errs...))
	}
	return nil
}
