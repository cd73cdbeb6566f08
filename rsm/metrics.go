package rsm

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// collector gives a node's status to Prometheus: counted in the core without
// locks, and read only when somebody asks.
type collector struct {
	n     atomic.Pointer[Node] // nil once the node has stopped
	descs []*prometheus.Desc
}

type metric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*ShardStatus) float64
}

// collectPatience is how long shards may take to say how they are, all together: a scrape does not last much longer.
const collectPatience = 2 * time.Second

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var shardMetrics = []metric{
	{"leader", "1 if this replica leads the shard.", gauge, func(s *ShardStatus) float64 { return boolGauge(s.Role == "leader") }},
	{"stopped", "1 if this replica is out of service; the log says why. An alarm.", gauge, func(s *ShardStatus) float64 { return boolGauge(s.Err != nil) }},
	{"damaged", "1 if this replica's state is damaged where nobody has read, and it goes on, since the shard could not without it. An alarm.", gauge, func(s *ShardStatus) float64 { return boolGauge(s.Damage != nil) }},
	{"time_ahead_seconds", "By how much the shard's time, which never goes back, is ahead of this node's clock: a clock is wrong, or a leader's was. An alarm above 10.", gauge, func(s *ShardStatus) float64 { return max(0, time.Until(time.Unix(0, int64(s.Time))).Seconds()) }},
	{"quiet", "1 if the shard rests for want of work.", gauge, func(s *ShardStatus) float64 { return boolGauge(s.Quiet) }},
	{"term", "Raft term.", gauge, func(s *ShardStatus) float64 { return float64(s.Term) }},
	{"applied_index", "Last log index that is applied.", gauge, func(s *ShardStatus) float64 { return float64(s.Applied) }},
	{"commit_index", "Last log index known to be committed.", gauge, func(s *ShardStatus) float64 { return float64(s.Commit) }},
	{"flushed_index", "Last log index whose effects are in the state store on disk.", gauge, func(s *ShardStatus) float64 { return float64(s.Flushed) }},
	{"sessions", "Open sessions.", gauge, func(s *ShardStatus) float64 { return float64(s.Sessions) }},
	{"inflight_entries", "Entries proposed and not applied yet.", gauge, func(s *ShardStatus) float64 { return float64(s.Inflight) }},
	{"pending_calls", "Calls that wait for their outcome.", gauge, func(s *ShardStatus) float64 { return float64(s.Queued) }},
	{"memory_bytes", "Memory of unflushed state, cached log and sessions.", gauge, func(s *ShardStatus) float64 { return float64(s.Memory) }},
	{"entries_total", "Log entries applied.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Entries) }},
	{"commands_total", "Requests decided here and committed.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Commands) }},
	{"rejections_total", "Requests whose decision was no.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Rejections) }},
	{"log_reads_total", "Reads that rode the log.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.LogReads) }},
	{"other_reads_total", "Reads that did not ride the log.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.OtherReads) }},
	{"duplicates_total", "Retries answered from a session.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Duplicates) }},
	{"void_entries_total", "Entries that failed the check of term and sequence. Not 0: a bug. An alarm.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Voids) }},
	{"rollbacks_total", "Times that speculative state was thrown away.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Rollbacks) }},
	{"machine_panics_total", "Panics of the machine that were contained.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.MachinePanics) }},
	{"refused_total", "Calls turned away by a limit.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Refused) }},
	{"members", "Members of the shard, learners included, as far as this replica has applied.", gauge, func(s *ShardStatus) float64 { return float64(len(s.Members.Members())) }},
	{"machine_version", "Version of the machine that is active.", gauge, func(s *ShardStatus) float64 { return float64(s.Version) }},
	{"journal_bytes", "About what the journal takes on disk.", gauge, func(s *ShardStatus) float64 { return float64(s.JournalBytes) }},
	{"journal_short_total", "Flushes that dropped entries which a member may lack, for want of room: it will need a snapshot. An alarm.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.JournalShort) }},
	{"overtaken_total", "Times that a snapshot had arrived at a member and the journal did not continue it any more: JournalMaxBytes is too small for the load. An alarm.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Overtaken) }},
	{"strange_total", "Messages of raft that were refused because they make no sense.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Strange) }},
	{"stranded_total", "Times that a voter asked for what every voter had had: it has lost part of its log. An alarm.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Stranded) }},
	{"snapshots_fetched_total", "Snapshots that this replica began to fetch.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.SnapshotsFetched) }},
	{"snapshots_installed_total", "Snapshots that took the place of this replica's state.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.SnapshotsInstalled) }},
	{"flushes_total", "Flushes of state, journal and sessions.", counter, func(s *ShardStatus) float64 { return float64(s.Stats.Flushes) }},
}

type nodeMetric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*nodeFigures) float64
}

// nodeFigures are a node's status, and what it does not have.
type nodeFigures struct {
	NodeStatus
	log   wal.Stats
	store state.Metrics
	ready bool
	flush time.Duration // age of the oldest under way
}

var nodeMetrics = []nodeMetric{
	{"ready", "1 if the node has started, serves all its replicas and is not about to go.", gauge, func(s *nodeFigures) float64 { return boolGauge(s.ready) }},
	{"wal_segments", "Segments of the write-ahead log.", gauge, func(s *nodeFigures) float64 { return float64(s.LogSegments) }},
	{"wal_bytes", "Bytes in the write-ahead log.", gauge, func(s *nodeFigures) float64 { return float64(s.LogBytes) }},
	{"wal_fsyncs_total", "Fsyncs of the write-ahead log.", counter, func(s *nodeFigures) float64 { return float64(s.LogFsyncs) }},
	{"wal_sync_seconds_total", "Time spent in writes and fsyncs of the write-ahead log.", counter, func(s *nodeFigures) float64 { return s.LogSyncTime.Seconds() }},
	{"wal_written_bytes_total", "Bytes handed to the disk by the write-ahead log.", counter, func(s *nodeFigures) float64 { return float64(s.log.Bytes) }},
	{"wal_segments_cut_total", "Segments of the write-ahead log that were begun.", counter, func(s *nodeFigures) float64 { return float64(s.log.Segments) }},
	{"wal_segments_released_total", "Segments of the write-ahead log that were given up, as nobody needs them any more.", counter, func(s *nodeFigures) float64 { return float64(s.log.Released) }},
	{"state_disk_bytes", "Size of the state store on disk.", gauge, func(s *nodeFigures) float64 { return float64(s.StateBytes) }},
	{"store_read_amplification", "Tables that a read may have to look into.", gauge, func(s *nodeFigures) float64 { return float64(s.store.ReadAmp) }},
	{"store_compaction_debt_bytes", "Bytes that wait to be compacted. If it only grows, the disk is too slow for the load.", gauge, func(s *nodeFigures) float64 { return float64(s.store.CompactionDebt) }},
	{"store_compactions_total", "Compactions.", counter, func(s *nodeFigures) float64 { return float64(s.store.Compactions) }},
	{"store_compactions_failed_total", "Compactions that have failed. If it grows, a table is damaged or there is no room, and nothing of this node may be compacted meanwhile. An alarm.", counter, func(s *nodeFigures) float64 { return float64(s.store.Failed) }},
	{"store_compacted_bytes_total", "Bytes of tables that compactions have written.", counter, func(s *nodeFigures) float64 { return float64(s.store.Compacted) }},
	{"store_ingested_bytes_total", "Bytes of tables that flushes and installed snapshots have brought.", counter, func(s *nodeFigures) float64 { return float64(s.store.Ingested) }},
	{"store_cache_bytes", "Memory of the cache of blocks.", gauge, func(s *nodeFigures) float64 { return float64(s.store.CacheBytes) }},
	{"store_cache_hits_total", "Blocks that were found in the cache.", counter, func(s *nodeFigures) float64 { return float64(s.store.CacheHits) }},
	{"store_cache_misses_total", "Blocks that had to be read from disk.", counter, func(s *nodeFigures) float64 { return float64(s.store.CacheMisses) }},
	{"store_oldest_flush_seconds", "For how long the oldest flush under way has been due, 0 if there is none. If it only grows, the disk does not answer: an alarm.", gauge, func(s *nodeFigures) float64 { return s.flush.Seconds() }},
	{"store_open_versions", "Versions of the state that queries, cuts and backups keep.", gauge, func(s *nodeFigures) float64 { return float64(s.store.OpenVersions) }},
	{"store_oldest_version_seconds", "Age of the oldest version of the state that a query, a cut or a backup keeps, and with it on disk what compactions have replaced since; 0 if there is none. If it only grows, one of them does not end: an alarm.", gauge, func(s *nodeFigures) float64 { return s.store.OldestVersion.Seconds() }},
	{"snapshot_sent_bytes_total", "Bytes of snapshots that peers have fetched from this node.", counter, func(s *nodeFigures) float64 { return float64(s.SnapshotsSent) }},
	{"disk_free_bytes", "Free space on the data directory's file system.", gauge, func(s *nodeFigures) float64 { return float64(s.FreeDiskBytes) }},
	{"disk_low", "1 if commands are refused for want of disk space. An alarm.", gauge, func(s *nodeFigures) float64 { return boolGauge(s.DiskLow) }},
}

var (
	peerLabels    = []string{"node", "peer"}
	peerDesc      = prometheus.NewDesc("decree_node_peer_connected", "1 if the peer has accepted this node's stream.", peerLabels, nil)
	peerHeardDesc = prometheus.NewDesc("decree_node_peer_silence_seconds", "How long ago the peer was heard of.", peerLabels, nil)
	peerQueueDesc = prometheus.NewDesc("decree_node_peer_queued_bytes", "Bytes that wait to be sent to the peer.", peerLabels, nil)

	walSyncDesc = prometheus.NewDesc("decree_node_wal_sync_seconds", "How long writes of the write-ahead log took, each with its fsync.", []string{"node"}, nil)

	levelLabels     = []string{"node", "level"}
	levelTablesDesc = prometheus.NewDesc("decree_node_store_level_tables", "Tables in a level of the state store.", levelLabels, nil)
	levelBytesDesc  = prometheus.NewDesc("decree_node_store_level_bytes", "Bytes of tables in a level of the state store.", levelLabels, nil)
)

func newCollector(n *Node) *collector {
	c := &collector{}
	c.n.Store(n)
	for _, m := range nodeMetrics {
		c.descs = append(c.descs, prometheus.NewDesc("decree_node_"+m.name, m.help, []string{"node"}, nil))
	}
	for _, m := range shardMetrics {
		c.descs = append(c.descs, prometheus.NewDesc("decree_shard_"+m.name, m.help, []string{"node", "shard"}, nil))
	}
	return c
}

// Describe implements prometheus.Collector. Nothing is described beforehand, so
// that several nodes of one process can register at one registry.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	n := c.n.Load()
	if n == nil {
		return
	}
	var st nodeFigures
	var err error
	ctx, cancel := context.WithTimeout(context.Background(), collectPatience)
	defer cancel()
	if st.NodeStatus, err = n.StatusContext(ctx); errors.Is(err, errClosed) {
		return // else shards are left out whose worker is in a pass that does not return
	}
	st.flush, _ = n.engine.due.oldest(n.engine.mono())
	st.log, st.store, st.ready = n.log.Stats(), n.store.Metrics(), len(n.Ready()) == 0
	node := strconv.FormatUint(uint64(st.Node), 10)
	for i, m := range nodeMetrics {
		out <- prometheus.MustNewConstMetric(c.descs[i], m.kind, m.value(&st), node)
	}
	for id, p := range st.Peers {
		peer := strconv.FormatUint(uint64(id), 10)
		out <- prometheus.MustNewConstMetric(peerDesc, gauge, boolGauge(p.Connected), node, peer)
		out <- prometheus.MustNewConstMetric(peerHeardDesc, gauge, p.LastHeard.Seconds(), node, peer)
		out <- prometheus.MustNewConstMetric(peerQueueDesc, gauge, float64(p.QueuedBytes), node, peer)
	}
	count, sum, upTo := st.log.SyncTimes.Cumulative()
	out <- prometheus.MustNewConstHistogram(walSyncDesc, count, sum, upTo, node)
	for i, l := range st.store.Levels {
		level := strconv.Itoa(i)
		out <- prometheus.MustNewConstMetric(levelTablesDesc, gauge, float64(l.Tables), node, level)
		out <- prometheus.MustNewConstMetric(levelBytesDesc, gauge, float64(l.Bytes), node, level)
	}
	for j := range st.Shards {
		s := &st.Shards[j]
		shard := strconv.FormatUint(uint64(s.Shard), 10)
		for i, m := range shardMetrics {
			out <- prometheus.MustNewConstMetric(c.descs[len(nodeMetrics)+i], m.kind, m.value(s), node, shard)
		}
	}
}
