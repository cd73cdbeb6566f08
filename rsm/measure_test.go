package rsm

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// The measurements of docs/performance.md, for `make snapshots`, `make joins` and `make restarts`. With -hold a measurement fails that exceeds its bound; without, it
// says so. What has to hold whatever the machine, the ordinary tests say.
var (
	holdFlag        = flag.Bool("hold", false, "fail where a measurement exceeds its bound")
	measure         = flag.String("measure", "", "what to measure: snapshots, joins or restarts")
	measureState    = flag.Int64("measure.state", 1<<30, "bytes of state for the measurements of snapshots and joins")
	measureValue    = flag.Int("measure.value", 1024, "bytes of a value")
	measureCallers  = flag.Int("measure.callers", 64, "callers, each with one call at a time")
	measureRounds   = flag.Int("measure.rounds", 3, "how often a measurement is repeated")
	measureFollower = flag.Bool("measure.follower", false, "a follower cuts, and not the leader")
	measureEntries  = flag.Int("measure.entries", 10_000_000, "entries of the longer history for the measurement of restarts")
	measureRate     = flag.Int64("measure.rate", 0, "Config.SnapshotBytesPerSecond")
	measureDir      = flag.String("measure.dir", "", "where the data goes; default: the system's directory for temporary files")
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

// The bounds. A snapshot that is fetched from its beginning again after half of it was sent takes half as much again; what is on its way when the
// receiver dies is little.
const (
	cutThroughput   = 0.8  // with a cut, of that without
	cutP99          = 50.0 // milliseconds that a cut adds
	restartGrowth   = 1.2  // with the long history, of the time with the short one
	resumedTransfer = 1.1  // what is sent when the receiver is killed, of the snapshot
)

// hold fails if a bound is exceeded, where measurements are to hold.
func hold(t *testing.T, ok bool, format string, args ...any) {
	t.Helper()
	switch {
	case ok:
	case *holdFlag:
		t.Errorf(format, args...)
	default:
		t.Logf("beyond its bound: "+format, args...)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// What a cut costs those who are served meanwhile: throughput and p99 without and with a cut, taking turns in one run.
func TestMeasureSnapshots(t *testing.T) {
	c := measuredCluster(t, measured(t, "snapshots"))
	began := time.Now()
	keys := fillBlobs(t, c, 1, *measureState, *measureValue)
	t.Logf("filled %d MiB, %d keys, in %s", *measureState>>20, keys, seconds(time.Since(began)))
	p := startPump(t, c, 1, *measureCallers, keys, *measureValue, 0)
	time.Sleep(2 * settling)
	without, with := &interval{}, &interval{}
	for round := range *measureRounds {
		n := leaderOf(t, c, 1)
		if *measureFollower {
			n = c.Node(n.ID()%3 + 1)
		}
		p.next()
		began := time.Now()
		info, err := n.Shard(1).CutSnapshot(context.Background(), true)
		if err != nil {
			t.Fatal(err)
		}
		cut, took := p.next(), time.Since(began)
		time.Sleep(took) // as long without: compactions come in waves
		quiet := p.next()
		t.Logf("round %d: %d MiB cut in %s", round, info.Bytes>>20, seconds(took))
		t.Logf("  without: %v", quiet)
		t.Logf("  with:    %v", cut)
		without.merge(quiet)
		with.merge(cut)
	}
	t.Logf("together")
	t.Logf("  without: %v", without)
	t.Logf("  with:    %v", with)
	throughput, p99 := with.perSecond()/without.perSecond(), with.quantile(0.99)-without.quantile(0.99)
	t.Logf("throughput with a cut is %.2f of that without, p99 %+.1f ms", throughput, p99)
	hold(t, throughput > cutThroughput, "throughput with a cut is %.2f of that without, more than %.2f is wanted", throughput, cutThroughput)
	hold(t, p99 < cutP99, "a cut adds %.1f ms to p99, less than %.0f ms is wanted", p99, cutP99)
}

// settling is left to compactions of what was filled in, quietTime is how long there is a load and nothing else, to compare with.
const settling, quietTime = 15 * time.Second, 15 * time.Second

// How a new member of a large shard catches up while it is being written, and what that costs; the last of several is killed when it has half of
// the snapshot, and goes on two seconds later.
func TestMeasureJoins(t *testing.T) {
	dir := measured(t, "joins")
	if *holdFlag && *measureRounds < 2 {
		t.Fatalf("-measure.rounds is %d: with -hold at least 2, as the last of several newcomers is killed", *measureRounds)
	}
	c := measuredCluster(t, dir)
	keys := fillBlobs(t, c, 1, *measureState, *measureValue)
	p := startPump(t, c, 1, *measureCallers, keys, *measureValue, 0)
	time.Sleep(settling)
	for round := range *measureRounds {
		p.next()
		time.Sleep(quietTime)
		without := p.next()
		id := NodeID(4 + round)
		n, err := c.Join(id)
		if err != nil {
			t.Fatal(err)
		}
		began, sent := time.Now(), sentBytes(t, c)
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), id, n.Addr()) }); err != nil {
			t.Fatal(err)
		}
		var fetching, installed time.Duration
		kill := round > 0 && round == *measureRounds-1
		killed := false
		for {
			time.Sleep(50 * time.Millisecond)
			st, err := c.Node(id).Shard(1).Status()
			if err != nil || st.Err != nil {
				t.Fatalf("the newcomer: %v, %v", err, st.Err)
			}
			lead, err := leaderOf(t, c, 1).Shard(1).Status()
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case st.Stats.SnapshotsInstalled > 0 && installed == 0:
				installed = time.Since(began)
			case st.Stats.SnapshotsFetched > 0 && fetching == 0:
				fetching = time.Since(began)
			case kill && sentBytes(t, c)-sent > *measureState/2:
				t.Logf("killed after %s, with half of the snapshot", seconds(time.Since(began)))
				c.Kill(id)
				time.Sleep(2 * time.Second)
				if err := c.Restart(id); err != nil {
					t.Fatal(err)
				}
				kill, killed = false, true
			}
			if installed > 0 && lead.Commit-st.Applied < 1000 {
				t.Logf("round %d: cut after %s, snapshot of %d MiB installed after %s, caught up after %s; %d MiB were sent, in %d transfers since the last start",
					round, seconds(fetching), c.Node(id).Snapshots()[0].Bytes>>20, seconds(installed), seconds(time.Since(began)), (sentBytes(t, c)-sent)>>20, st.Stats.SnapshotsFetched)
				t.Logf("  without: %v", without)
				t.Logf("  with:    %v", p.next())
				hold(t, !kill, "the newcomer had all of the snapshot before it could be killed with half of it: give more -measure.state")
				if whole, sent := c.Node(id).Snapshots()[0].Bytes, sentBytes(t, c)-sent; killed {
					hold(t, float64(sent) <= resumedTransfer*float64(whole), "%d MiB were sent of a snapshot of %d MiB: a transfer that was killed is to go on, and send %.2f times as much at most",
						sent>>20, whole>>20, resumedTransfer)
				}
				break
			}
			if time.Since(began) > 10*time.Minute {
				t.Fatalf("the newcomer is at %d of %d after %s, %d transfers", st.Applied, lead.Commit, seconds(time.Since(began)), st.Stats.SnapshotsFetched)
			}
		}
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.Remove(within(t), id) }); err != nil {
			t.Fatal(err)
		}
		c.Kill(id)
	}
}

const (
	historyEnv        = "DECREE_TEST_HISTORY_DIR"
	historyEntriesEnv = "DECREE_TEST_HISTORY_ENTRIES"

	historyKeys, historyValue = 10_000, 200
	historyTail               = 20_000 // entries after the last flush: the same whatever the history
)

// historyCluster is one node that keeps all of its journal, and has an entry for every command.
func historyCluster(dir string) (*Cluster, error) {
	return StartCluster(ClusterConfig{
		Nodes: 1, Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: blobs{}}},
		Configure: func(cfg *Config) {
			cfg.KeepJournal, cfg.Limits.BatchBytes, cfg.Limits.PipelineDepth = true, 1, 256
			cfg.HeartbeatInterval, cfg.ElectionTimeout = 2*time.Millisecond, 10*time.Millisecond // elections are not what is measured
		},
	})
}

// runHistory makes history, says so, and waits to be killed.
func runHistory(dir string) {
	entries, err := strconv.Atoi(os.Getenv(historyEntriesEnv))
	if err == nil {
		err = makeHistory(dir, entries)
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {}
}

func makeHistory(dir string, entries int) error {
	c, err := historyCluster(dir)
	if err != nil {
		return err
	}
	s := c.Node(1).Shard(1)
	var flight [4096]*Call
	for i := range entries + len(flight) {
		slot := &flight[i%len(flight)]
		if *slot != nil {
			if _, err := (*slot).Wait(context.Background()); err != nil {
				return err
			}
			*slot = nil
		}
		if i == entries-historyTail {
			if _, err := s.CutSnapshot(context.Background(), true); err != nil { // and so a flush
				return err
			}
		}
		if i < entries {
			*slot = s.Go(Request{Commands: [][]byte{blob(uint64(i%historyKeys), uint64(i), historyValue)}})
		}
	}
	st, err := s.Status()
	if err == nil && st.Applied < Index(entries) {
		err = fmt.Errorf("%d entries for %d commands", st.Applied, entries)
	}
	return err
}

// How long a node takes from its start to its first answer, after kill -9, with little and with much history.
func TestMeasureRestarts(t *testing.T) {
	dir := measured(t, "restarts")
	histories := []int{100_000, *measureEntries}
	took := map[int][]time.Duration{}
	for _, entries := range histories {
		began := time.Now()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), historyEnv+"="+filepath.Join(dir, strconv.Itoa(entries)), historyEntriesEnv+"="+strconv.Itoa(entries))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "ready\n" {
			t.Fatalf("the child says %q, %v", line, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		t.Logf("%d entries were made in %s", entries, seconds(time.Since(began)))
	}
	for range 7 {
		for _, entries := range histories {
			began := time.Now()
			c, err := historyCluster(filepath.Join(dir, strconv.Itoa(entries)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Client(1).Read(within(t), Linearizable, blob(0, 0, 0)); err != nil {
				t.Fatal(err)
			}
			took[entries] = append(took[entries], time.Since(began))
			st, err := c.Node(1).Status()
			if err != nil {
				t.Fatal(err)
			}
			if len(took[entries]) == 1 {
				t.Logf("%d entries: %d are in the log, %d MiB of state and journal", entries, st.Shards[0].Last-st.Shards[0].Flushed, st.StateBytes>>20)
			}
			c.Kill(1)
		}
	}
	few, many := median(took[histories[0]]), median(took[histories[1]])
	growth := float64(many) / float64(few)
	t.Logf("from start to the first answer: %v with %d entries (%v), %v with %d (%v): %.2f times", few, histories[0], took[histories[0]], many, histories[1], took[histories[1]], growth)
	hold(t, growth <= restartGrowth, "a restart takes %.2f times as long with %d entries as with %d, at most %.1f times is wanted", growth, histories[1], histories[0], restartGrowth)
}
