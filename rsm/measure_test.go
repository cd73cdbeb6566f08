package rsm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

// The measurements of docs/performance.md, for `make snapshots`, `make joins` and `make restarts`. A time is measured here and judged by
// whoever reads it; what has to hold whatever the machine, the ordinary tests say.
var (
	measure        = flag.String("measure", "", "what to measure: snapshots, joins or restarts")
	measureState   = flag.Int64("measure.state", 1<<30, "bytes of state for the measurements of snapshots and joins")
	measureValue   = flag.Int("measure.value", 1024, "bytes of a value")
	measureCallers = flag.Int("measure.callers", 64, "callers, each with one call at a time")
	measureRounds  = flag.Int("measure.rounds", 3, "how often a measurement is repeated")
	measureRate    = flag.Int64("measure.rate", 0, "Config.SnapshotBytesPerSecond; 0: its default")
	measureDir     = flag.String("measure.dir", "", "where the data goes; default: the system's directory for temporary files")
)

func measured(t *testing.T, what string) (dir string) {
	t.Helper()
	if *measure != what {
		t.Skipf("measures; run with -measure %s", what)
	}
	dir, err := os.MkdirTemp(*measureDir, "decree-measure-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// measuredCluster has the defaults of a node, but for what flags say.
func measuredCluster(t *testing.T, dir string, options ...option) *Cluster {
	t.Helper()
	c, err := StartCluster(ClusterConfig{
		Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: blobs{}}},
		Configure: func(cfg *Config) {
			cfg.Logger, cfg.SnapshotBytesPerSecond = testLogger(t), *measureRate
			for _, o := range options {
				o(cfg)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// What a cut costs those who are served meanwhile: throughput and p99 without and with a cut, taking turns in one run.
func TestMeasureSnapshots(t *testing.T) {
	c := measuredCluster(t, measured(t, "snapshots"))
	began := time.Now()
	keys := fillBlobs(t, c, 1, *measureState, *measureValue)
	t.Logf("filled %d MiB, %d keys, in %s", *measureState>>20, keys, seconds(time.Since(began)))
	p := startPump(t, c, 1, *measureCallers, keys, *measureValue, 0)
	time.Sleep(15 * time.Second) // compactions of the fill, and of the first overwrites
	for _, who := range []string{"the leader", "a follower"} {
		without, with := &interval{}, &interval{}
		for round := range *measureRounds {
			n := leaderOf(t, c, 1)
			if who == "a follower" {
				n = c.Node(n.ID()%3 + 1)
			}
			p.next()
			time.Sleep(10 * time.Second)
			quiet := p.next()
			began := time.Now()
			info, err := n.Shard(1).CutSnapshot(context.Background(), true)
			if err != nil {
				t.Fatal(err)
			}
			cut := p.next()
			t.Logf("round %d: %s cut %d MiB in %s; without: %v; with: %v", round, who, info.Bytes>>20, seconds(time.Since(began)), quiet, cut)
			without.merge(quiet)
			with.merge(cut)
		}
		t.Logf("%s cuts: without: %v", who, without)
		t.Logf("%s cuts: with:    %v", who, with)
		t.Logf("%s cuts: throughput %.2f of what it is without, p99 %+.1f ms", who, with.perSecond()/without.perSecond(), with.quantile(0.99)-without.quantile(0.99))
	}
}

// How a new member of a large shard catches up while it is being written, and what that costs.
func TestMeasureJoins(t *testing.T) {
	c := measuredCluster(t, measured(t, "joins"))
	keys := fillBlobs(t, c, 1, *measureState, *measureValue)
	p := startPump(t, c, 1, *measureCallers, keys, *measureValue, 0)
	time.Sleep(15 * time.Second)
	for round := range *measureRounds {
		p.next()
		time.Sleep(10 * time.Second)
		without := p.next()
		id := NodeID(4 + round)
		n, err := c.Join(id)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), id, n.Addr()) }); err != nil {
			t.Fatal(err)
		}
		var installed time.Duration
		for {
			st, err := n.Shard(1).Status()
			if err != nil || st.Err != nil {
				t.Fatalf("the newcomer: %v, %v", err, st.Err)
			}
			if installed == 0 && st.Stats.SnapshotsInstalled > 0 {
				installed = time.Since(began)
			}
			lead, err := leaderOf(t, c, 1).Shard(1).Status()
			if err != nil {
				t.Fatal(err)
			}
			if installed > 0 && lead.Commit-st.Applied < 1000 {
				t.Logf("round %d: snapshot installed after %s, caught up after %s, %d transfers; without: %v; with: %v", round,
					seconds(installed), seconds(time.Since(began)), st.Stats.SnapshotsFetched, without, p.next())
				break
			}
			if time.Since(began) > 10*time.Minute {
				t.Fatalf("the newcomer is at %d of %d after %s, %d transfers", st.Applied, lead.Commit, seconds(time.Since(began)), st.Stats.SnapshotsFetched)
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.Remove(within(t), id) }); err != nil {
			t.Fatal(err)
		}
		c.Kill(id)
	}
}
