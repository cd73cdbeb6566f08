package rsm

import (
	"context"
	"encoding/csv"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	endureDuration = flag.Duration("endure.duration", 0, "how long TestEndure works; 0: a few seconds, with small limits")
	endureCSV      = flag.String("endure.csv", "", "file for TestEndure's samples")
	endureSamples  = flag.Int("endure.samples", 240, "how many samples TestEndure takes in its duration")
	endureCallers  = flag.Int("endure.callers", 64, "callers, each with one call at a time")
	endureDir      = flag.String("endure.dir", "", "where the data goes; default: the system's directory for temporary files")
)

// sample is one look at a cluster under load. Of what each node has, it is the most that any node has.
type sample struct {
	seconds  float64
	perSec   float64
	p50, p99 float64 // ms
	entries  float64 // in the log so far

	heap       float64 // live, MiB, of the process with all its nodes
	rss        float64 // MiB; 0 where the system does not say
	goroutines float64
	memory     float64 // of shards, MiB: unflushed state and cached log
	log        float64 // MiB
	segments   float64
	journal    float64 // MiB
	state      float64 // MiB
	files      float64
	snapshots  float64 // complete ones
	disk       float64 // MiB in all files

	cuts, installs float64 // so far
}

// column of the samples' file. The average of a flat one may not grow from the second third of a run to
// the last, but for slack.
type column struct {
	name  string
	value func(*sample) *float64
	flat  bool
}

var columns = []column{
	{"seconds", func(s *sample) *float64 { return &s.seconds }, false},
	{"calls_per_second", func(s *sample) *float64 { return &s.perSec }, false},
	{"p50_ms", func(s *sample) *float64 { return &s.p50 }, false},
	{"p99_ms", func(s *sample) *float64 { return &s.p99 }, false},
	{"entries", func(s *sample) *float64 { return &s.entries }, false},
	{"heap_mib", func(s *sample) *float64 { return &s.heap }, true},
	{"rss_mib", func(s *sample) *float64 { return &s.rss }, false},
	{"goroutines", func(s *sample) *float64 { return &s.goroutines }, true},
	{"shard_memory_mib", func(s *sample) *float64 { return &s.memory }, true},
	{"wal_mib", func(s *sample) *float64 { return &s.log }, true},
	{"wal_segments", func(s *sample) *float64 { return &s.segments }, true},
	{"journal_mib", func(s *sample) *float64 { return &s.journal }, true},
	{"state_mib", func(s *sample) *float64 { return &s.state }, true},
	{"files", func(s *sample) *float64 { return &s.files }, true},
	{"snapshots", func(s *sample) *float64 { return &s.snapshots }, true},
	{"disk_mib", func(s *sample) *float64 { return &s.disk }, true},
	{"cuts", func(s *sample) *float64 { return &s.cuts }, false},
	{"installs", func(s *sample) *float64 { return &s.installs }, false},
}

// endurance is how a cluster is worked.
type endurance struct {
	state           int64 // bytes
	value, callers  int
	cycles          int // of: a cut every cutEvery samples, and once a follower that is away for longer than the journal reaches
	samplesPerCycle int
	cutEvery        int
	next            func(c *Cluster) // returns when the next sample is due
	slack           map[string]float64
	options         []option
}

const mebibyte = 1 << 20

// Memory, log, journal, state and files stay what they are, while a shard is written, flushed, cut, and now and then has a follower that needs
// a snapshot: what is let go of is gone. -endure.duration=1h is the long version.
func TestEndure(t *testing.T) {
	if *endureDuration > 0 {
		every := *endureDuration / time.Duration(*endureSamples)
		due := time.Now()
		refuseGrowth(t, endure(t, endurance{
			state: 128 << 20, value: 1024, callers: *endureCallers, cycles: 6, samplesPerCycle: *endureSamples / 6, cutEvery: 4,
			next: func(*Cluster) {
				due = due.Add(every)
				time.Sleep(time.Until(due))
			},
			slack:   map[string]float64{"heap_mib": 48, "wal_mib": 64, "wal_segments": 2, "files": 40, "snapshots": 1, "goroutines": 30, "shard_memory_mib": 8, "journal_mib": 32, "state_mib": 64, "disk_mib": 200},
			options: []option{patient10s, func(cfg *Config) { cfg.JournalMaxBytes, cfg.ElectionTimeout = 128<<20, 3*time.Second }},
		}))
		return
	}
	if testing.Short() {
		t.Skip("writes many segments")
	}
	var last uint64
	e := endurance{
		state: 2 << 20, value: 1024, callers: 32, cycles: 6, samplesPerCycle: 8, cutEvery: 2,
		next: func(c *Cluster) { // by what is written, not by the clock: a slow machine takes longer and sees the same
			eventually(t, "another two segments are written", func() bool {
				n := leaderOf(t, c, 1).log.Stats().Segments
				if n < last { // another node leads
					last = n
				}
				if n < last+2 {
					return false
				}
				last = n
				return true
			})
		},
		slack: map[string]float64{"heap_mib": 24, "wal_mib": 3, "wal_segments": 12, "files": 20, "snapshots": 1, "goroutines": 30, "shard_memory_mib": 2, "journal_mib": 1, "state_mib": 4, "disk_mib": 8},
		options: []option{small, func(cfg *Config) {
			cfg.Limits.FlushBytes, cfg.segmentBytes, cfg.LogSegments = 256<<10, 256<<10, 2
			cfg.JournalMaxBytes, cfg.readPause = 512<<10, 500*time.Millisecond
		}},
	}
	// In seconds a disk that is slow for one of them looks like something that is kept. What is kept is kept again.
	if grows := endure(t, e); len(grows) > 0 {
		t.Logf("once more: %s", strings.Join(grows, "; "))
		last = 0
		refuseGrowth(t, endure(t, e))
	}
}

func refuseGrowth(t *testing.T, grows []string) {
	t.Helper()
	for _, g := range grows {
		t.Error(g)
	}
}

// endure returns what grows.
func endure(t *testing.T, e endurance) (grows []string) {
	dir, err := os.MkdirTemp(*endureDir, "decree-endure-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := startCluster(t, dir, blobs{}, e.options...)
	keys := fillBlobs(t, c, 1, e.state, e.value)
	p := startPump(t, c, 1, e.callers, keys, e.value, 0)
	began := time.Now()
	var samples []sample
	cuts, away, gone := 0, NodeID(0), 0.0 // gone: installed by nodes before they were killed
	var cutting chan error
	for i := range e.cycles * e.samplesPerCycle {
		e.next(c)
		switch at := i % e.samplesPerCycle; {
		case at == e.samplesPerCycle/4:
			away = leaderOf(t, c, 1).ID()%3 + 1
			gone += installs(t, c.Node(away))
			c.Kill(away)
		case at == e.samplesPerCycle*3/4:
			if err := c.Restart(away); err != nil {
				t.Fatal(err)
			}
		}
		if len(cutting) > 0 {
			if err := <-cutting; err != nil {
				t.Fatal(err)
			}
			cuts++
			cutting = nil
		}
		if i%e.cutEvery == 0 && cutting == nil {
			nodes := c.Nodes()
			s := nodes[i/e.cutEvery%len(nodes)].Shard(1)
			cutting = make(chan error, 1)
			go func(done chan error) {
				_, err := s.CutSnapshot(context.Background(), true)
				if s.node.Err() != nil || c.Node(s.node.ID()) != s.node { // it was killed meanwhile
					err = nil
				}
				done <- err
			}(cutting)
		}
		s := look(t, c, dir, p.next())
		s.seconds, s.cuts = time.Since(began).Seconds(), float64(cuts)
		s.installs += gone
		samples = append(samples, s)
		if *endureDuration > 0 {
			t.Logf("%6.0f s: %6.0f calls/s, p99 %5.1f ms, heap %3.0f MiB, rss %4.0f MiB, log %3.0f MiB in %2.0f segments, journal %3.0f MiB, state %4.0f MiB, %3.0f files with %4.0f MiB, %2.0f cuts, %2.0f installs",
				s.seconds, s.perSec, s.p99, s.heap, s.rss, s.log, s.segments, s.journal, s.state, s.files, s.disk, s.cuts, s.installs)
		}
	}
	p.finish()
	if *endureCSV != "" {
		if err := writeSamples(*endureCSV, samples); err != nil {
			t.Fatal(err)
		}
	}
	last := samples[len(samples)-1]
	t.Logf("%.0f s, %.0f entries, %.0f cuts, %.0f snapshots installed", last.seconds, last.entries, last.cuts, last.installs)
	if last.cuts < float64(e.cycles) {
		t.Errorf("%.0f snapshots were cut in %d cycles", last.cuts, e.cycles)
	}
	third := len(samples) / 3
	for _, col := range columns {
		if !col.flat {
			continue
		}
		mean := func(part []sample) (m float64) { // of saw teeth, that says more than their tips
			for i := range part {
				m += *col.value(&part[i]) / float64(len(part))
			}
			return m
		}
		before, after := mean(samples[third:2*third]), mean(samples[2*third:])
		t.Logf("%-16s first third %8.1f, second %8.1f, last %8.1f on average", col.name, mean(samples[:third]), before, after)
		if after > 1.1*before+e.slack[col.name] {
			grows = append(grows, fmt.Sprintf("%s grows: %.1f on average in the second third, %.1f in the last", col.name, before, after))
		}
	}
	sameHashes(t, c, 1)
	return grows
}

func installs(t *testing.T, n *Node) float64 {
	t.Helper()
	st, err := n.Shard(1).Status()
	if err != nil {
		t.Fatal(err)
	}
	return float64(st.Stats.SnapshotsInstalled)
}

// look takes a sample of everything but the load's own figures.
func look(t *testing.T, c *Cluster, dir string, v *interval) sample {
	t.Helper()
	s := sample{perSec: v.perSecond(), p50: v.quantile(0.5), p99: v.quantile(0.99), goroutines: float64(runtime.NumGoroutine()), rss: residentMiB()}
	if *endureDuration == 0 {
		runtime.GC() // there may be none of itself between two samples
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	s.heap = float64(live[0].Value.Uint64()) / mebibyte
	for _, n := range c.Nodes() {
		st, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		shard := &st.Shards[0]
		if shard.Err != nil {
			t.Fatalf("node %d: %v", n.ID(), shard.Err)
		}
		s.entries = max(s.entries, float64(shard.Applied))
		s.memory = max(s.memory, float64(shard.Memory)/mebibyte)
		s.log, s.segments = max(s.log, float64(st.LogBytes)/mebibyte), max(s.segments, float64(st.LogSegments))
		s.journal, s.state = max(s.journal, float64(shard.JournalBytes)/mebibyte), max(s.state, float64(st.StateBytes)/mebibyte)
		s.installs += float64(shard.Stats.SnapshotsInstalled)
		s.snapshots = max(s.snapshots, float64(len(n.Snapshots())))
		files, bytes := 0, int64(0)
		err = filepath.WalkDir(filepath.Join(dir, fmt.Sprintf("node%d", n.ID())), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil // it went away just now
			}
			if info, err := d.Info(); err == nil {
				files++
				bytes += info.Size()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.files, s.disk = max(s.files, float64(files)), max(s.disk, float64(bytes)/mebibyte)
	}
	return s
}

// residentMiB is what the process has in memory, as Linux tells it.
func residentMiB() float64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseFloat(fields[1], 64)
	return pages * float64(os.Getpagesize()) / mebibyte
}

func writeSamples(path string, samples []sample) error {
	rows := [][]string{{}}
	for _, col := range columns {
		rows[0] = append(rows[0], col.name)
	}
	for i := range samples {
		var row []string
		for _, col := range columns {
			row = append(row, strconv.FormatFloat(*col.value(&samples[i]), 'f', 1, 64))
		}
		rows = append(rows, row)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := csv.NewWriter(f)
	if err := w.WriteAll(rows); err != nil {
		return err
	}
	return f.Close()
}
