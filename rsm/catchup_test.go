package rsm

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/wal"
)

// sentBytes is what all nodes together have sent of snapshots.
func sentBytes(t testing.TB, c *Cluster) (n int64) {
	t.Helper()
	for _, node := range c.Nodes() {
		st, err := node.Status()
		if err != nil {
			t.Fatal(err)
		}
		n += int64(st.SnapshotsSent)
	}
	return n
}

// The receiver of a snapshot dies in the middle of the transfer. What it has is not sent again, however often it dies.
func TestKilledTransferResumes(t *testing.T) {
	const chunk = 1 << 20
	var slow atomic.Bool
	slow.Store(true)
	c := startCluster(t, t.TempDir(), blobs{}, small, func(cfg *Config) {
		cfg.Limits.FlushBytes = 4 << 20
		cfg.ElectionTimeout = 2 * time.Second // how long a leader waits for word of a transfer
		if cfg.Node == 4 && slow.Load() {
			cfg.SnapshotBytesPerSecond = 8 << 20
		}
	})
	fillBlobs(t, c, 1, 24*chunk, 64<<10)
	four, err := c.Join(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), 4, four.Addr()) }); err != nil {
		t.Fatal(err)
	}
	const kills = 2
	for i := range int64(kills) {
		eventually(t, "a part of the snapshot is sent", func() bool { return sentBytes(t, c) >= (i+1)*6*chunk })
		if st, err := c.Node(4).Shard(1).Status(); err != nil || st.Stats.SnapshotsInstalled > 0 {
			t.Fatalf("it is there already: %v", err)
		}
		c.Kill(4)
		slow.Store(i+1 < kills)
		if err := c.Restart(4); err != nil {
			t.Fatal(err)
		}
	}
	sameEverywhere(t, c, 1, 1, 2, 3, 4)
	list := c.Node(4).Snapshots()
	if len(list) != 1 || list[0].Bytes < 24*chunk {
		t.Fatalf("node 4 has the snapshots %+v", list)
	}
	// A chunk that was on its way is sent again.
	if sent := sentBytes(t, c); sent < list[0].Bytes || sent > list[0].Bytes+kills*chunk {
		t.Errorf("%.1f chunks were sent of a snapshot of %.1f, with %d kills", float64(sent)/chunk, float64(list[0].Bytes)/chunk, kills)
	}
}

// A newcomer to a state that is several times what the journal keeps catches up while the shard is being written, and becomes a voter.
func TestJoinUnderLoad(t *testing.T) {
	c := startCluster(t, t.TempDir(), blobs{}, small, func(cfg *Config) {
		cfg.Limits.FlushBytes, cfg.JournalMaxBytes = 256<<10, 4<<20
	})
	keys := fillBlobs(t, c, 1, 16<<20, 1024)
	p := startPump(t, c, 1, 8, keys, 1024, 50*time.Millisecond) // half a minute's worth is in the journal, for slow machines
	four, err := c.Join(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), 4, four.Addr()) }); err != nil {
		t.Fatal(err)
	}
	// Promote refuses as long as the learner is far behind.
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.Promote(within(t), 4) }); err != nil {
		t.Fatal(err)
	}
	before := p.now.Load().calls.Load()
	eventually(t, "the load goes on", func() bool { return p.now.Load().calls.Load() > before+100 })
	p.finish()
	sameEverywhere(t, c, 1, 1, 2, 3, 4)
	st, err := four.Shard(1).Status()
	if err != nil || st.Stats.SnapshotsInstalled == 0 {
		t.Errorf("the newcomer needed no snapshot: %v", err)
	}
	t.Logf("%d transfers, %d installed", st.Stats.SnapshotsFetched, st.Stats.SnapshotsInstalled)
}

// A cut rests for what the log writes meanwhile, and for nothing else; and not if it is to hurry.
func TestCutRestsForTheLog(t *testing.T) {
	c := startCluster(t, t.TempDir(), blobs{}, small)
	n := leaderOf(t, c, 1)
	hurry := false
	rest := n.engine.rests(func() bool { return hurry })
	write := func() {
		t.Helper()
		if _, err := c.Client(1).Submit(within(t), blob(1, 1, 100)); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if d := rest(time.Millisecond); d != cutRest*time.Millisecond {
		t.Errorf("after a write it rests %v", d)
	}
	eventually(t, "no rest when nothing is written", func() bool { return rest(time.Millisecond) == 0 })
	write()
	if d := rest(time.Minute); d != maxRest {
		t.Errorf("after a minute of work it rests %v", d)
	}
	hurry = true
	write()
	if d := rest(time.Millisecond); d != 0 {
		t.Errorf("it hurries, and rests %v", d)
	}

	// The engine's cuts do so: beside a load they ask whether to hurry, before they rest.
	keys := fillBlobs(t, c, 1, 4<<20, 1024)
	p := startPump(t, c, 1, 8, keys, 1024, 0)
	asked := false
	for until := time.Now().Add(30 * time.Second); !asked && time.Now().Before(until); {
		if _, err := n.engine.cut(within(t), &core.CutDone{Shard: 1, Progress: func(int64) {}, Hurry: func() bool { asked = true; return true }}); err != nil {
			t.Fatal(err)
		}
	}
	p.finish()
	if !asked {
		t.Error("no cut asked whether it may rest")
	}
}

// What a restart reads depends on the limits, not on the history: not on how many entries there have been, even where all are kept.
func TestRestartReadsNoHistory(t *testing.T) {
	const flushBytes, segmentBytes, value = 64 << 10, 256 << 10, 100
	type work struct {
		logged int   // entries that the log gives back
		behind Index // of these, applied again
		reads  int64 // of the files of the state
	}
	restart := func(entries int) work {
		dir := t.TempDir()
		var reads atomic.Int64
		restarted := false
		c, err := StartCluster(ClusterConfig{
			Nodes: 1, Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: blobs{}}},
			Configure: func(cfg *Config) {
				quick(cfg)
				cfg.KeepJournal, cfg.DiskWatermark, cfg.Logger = true, -1, testLogger(t)
				cfg.Limits.FlushBytes, cfg.Limits.BatchBytes = flushBytes, 1 // every command is an entry
				cfg.LogSegments, cfg.segmentBytes = 2, segmentBytes
				cfg.noCompactions = restarted // what they read is not the restart's
				cfg.wrapFS = func(fs vfs.FS) vfs.FS {
					return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
						if op.Kind == errorfs.OpFileRead || op.Kind == errorfs.OpFileReadAt {
							reads.Add(1)
						}
						return nil
					}))
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s := c.Node(1).Shard(1)
		var calls []*Call
		for i := range entries {
			calls = append(calls, s.Go(Request{Commands: [][]byte{blob(uint64(i%50), uint64(i), value)}}))
			if len(calls) == 1000 || i == entries-1 {
				for _, call := range calls {
					if _, err := call.Wait(within(t)); err != nil {
						t.Fatal(err)
					}
				}
				calls = calls[:0]
			}
		}
		last, err := s.Status()
		if err != nil {
			t.Fatal(err)
		}
		if last.Applied < Index(entries) {
			t.Fatalf("%d commands are in %d entries: they were to have one each", entries, last.Applied)
		}
		c.Kill(1)
		log, recovered, err := wal.Open(wal.Options{Dir: filepath.Join(dir, "node1", "wal"), SegmentBytes: segmentBytes})
		if err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		reads.Store(0)
		restarted = true
		if err := c.Restart(1); err != nil {
			t.Fatal(err)
		}
		w := work{logged: len(recovered.Shards[1].Entries), reads: reads.Load()}
		st, err := c.Node(1).Shard(1).Status()
		if err != nil {
			t.Fatal(err)
		}
		w.behind = last.Applied - st.Flushed
		if answer, err := c.Client(1).Read(within(t), Linearizable, blob(0, 0, 0)); err != nil || len(answer) != value {
			t.Fatalf("after the restart: %d bytes, %v", len(answer), err)
		}
		return w
	}
	few, many := restart(3000), restart(30000)
	t.Logf("a restart reads: %+v after 3000 entries, %+v after 30000", few, many)
	// An entry takes more than its value in the log. What is frozen, flushed and gathered meanwhile comes to three times the limit at most.
	if limit := 3 * flushBytes / value; int(many.behind) > limit {
		t.Errorf("%d entries are applied again, want at most %d", many.behind, limit)
	}
	if limit := (3*segmentBytes + 3*flushBytes) / value; many.logged > limit {
		t.Errorf("the log gives back %d entries, want at most %d", many.logged, limit)
	}
	// Opening looks at the list of tables, which grows with what is kept, and not into them: a few blocks for each, and not one for each of 30,000 entries.
	if many.reads > 2*few.reads+300 {
		t.Errorf("the state store reads %d times after 30000 entries, %d times after 3000", many.reads, few.reads)
	}
}
