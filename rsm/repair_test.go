package rsm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/transport"
	"github.com/decree-raft/decree/snapshot"
)

// largeTables returns the tables of a node that damageTables damages.
func largeTables(t *testing.T, dir string) (large []string) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(dir, "state", "pebble", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tables {
		// In smaller ones the node would meet it where it looks when it starts, at each table's first block, and be refused.
		if i, err := os.Stat(name); err == nil && i.Size() >= 16<<10 {
			large = append(large, name)
		}
	}
	return large
}

// damageTables flips a bit of every large table of a node that is stopped, at each of these eighths of it: the state comes first in it, then the journal. undo takes that back.
func damageTables(t *testing.T, dir string, eighths ...int) (undo func()) {
	t.Helper()
	return damageFiles(t, largeTables(t, dir), eighths...)
}

func damageFiles(t *testing.T, tables []string, eighths ...int) (undo func()) {
	t.Helper()
	if len(tables) == 0 {
		t.Fatal("no table is large enough")
	}
	flip := func() {
		for _, name := range tables {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range eighths {
				b[e*len(b)/8] ^= 0x40
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip()
	return flip
}

// startDamaged starts a node of a cluster, which is stopped, with damaged tables. How many blocks they have is not in the test's hands; a node that has to read a damaged one when
// it starts is refused, so that only the largest table is damaged then, in its state.
func startDamaged(t *testing.T, c *Cluster, dir string, id NodeID) {
	t.Helper()
	dir = filepath.Join(dir, fmt.Sprintf("node%d", id))
	undo := damageTables(t, dir, 2, 4)
	err := c.Restart(id)
	if err == nil {
		return
	}
	if undo(); !strings.Contains(err.Error(), "read at the start") {
		t.Fatalf("node %d: %v", id, err)
	}
	t.Logf("node %d meets the damage at once: %v", id, err)
	largest := slices.MaxFunc(largeTables(t, dir), func(a, b string) int { return cmp.Compare(sizeOf(t, a), sizeOf(t, b)) })
	damageFiles(t, []string{largest}, 1)
	if err := c.Restart(id); err != nil {
		t.Fatalf("node %d: %v", id, err)
	}
}

func sizeOf(t *testing.T, name string) int64 {
	t.Helper()
	i, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return i.Size()
}

// fillTables fills shard 1 on three nodes, and waits until what they have flushed can be damaged.
func fillTables(t *testing.T, c *Cluster, dir string) {
	t.Helper()
	fill(t, c, 1, 0, 3000)
	sameEverywhere(t, c, 1, 1, 2, 3)
	for id := range 3 {
		eventually(t, "there are tables", func() bool { return len(largeTables(t, filepath.Join(dir, fmt.Sprint("node", id+1)))) > 0 })
	}
}

// A replica whose tables are damaged says so, serves nothing of it, and is given the state of a peer; it keeps what it has promised.
func TestRepairOfDamage(t *testing.T) {
	t.Run("read", func(t *testing.T) { repairOfDamage(t, true) })
	t.Run("compacted", func(t *testing.T) { repairOfDamage(t, false) })
}

func repairOfDamage(t *testing.T, noCompactions bool) {
	dir := t.TempDir()
	c := startCluster(t, dir, counters{}, small, func(cfg *Config) { cfg.noCompactions, cfg.KeepDamage = noCompactions, cfg.Node == 2 })
	fillTables(t, c, dir)
	read := func(s *Shard) (stopped bool) {
		for i := range 3000 {
			res, err := s.ReadAt(within(t), Stale, 0, fmtKey(i))
			switch {
			case errors.Is(err, ErrBroken):
				t.Logf("key %d: %v", i, err)
				return true
			case err != nil:
				t.Fatal(err)
			case sum(t, res.Answer, nil) != 1:
				t.Fatalf("key %d is %d", i, sum(t, res.Answer, nil))
			}
		}
		return false
	}
	for _, id := range []NodeID{1, 2} {
		c.Kill(id)
		startDamaged(t, c, dir, id)
	}
	for _, id := range []NodeID{1, 2} {
		// One that leads when it finds the damage has speculative state.
		found := func() bool { s := c.Node(id).Shard(1); return s.stopped.Load() != nil || s.repairs.Load() > 0 }
		if err := onLeader(t, c, 1, func(s *Shard) error {
			if s.node.ID() == id || found() {
				return nil
			}
			return s.TransferLeadership(within(t), id)
		}); err != nil && !found() {
			t.Fatal(err)
		}
		leaderOf(t, c, 1)
		// A snapshot that is cut for the other, or a compaction, may have met it first.
		if s := c.Node(id).Shard(1); !read(s) && s.repairs.Load() == 0 {
			t.Fatalf("node %d reads damaged tables and finds nothing", id)
		}
	}
	eventually(t, "the damaged replica is repaired by itself", func() bool {
		st, err := c.Node(1).Shard(1).Status()
		return err == nil && st.Err == nil && c.Node(1).Shard(1).repairs.Load() == 1
	})
	s := c.Node(2).Shard(1)
	eventually(t, "the other stays out of service", func() bool {
		st, err := s.Status()
		return err == nil && st.Err != nil && st.Err.Code == core.CodeStorage
	})
	if err := s.Repair(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(within(t)); !errors.Is(err, &Error{Code: core.CodeRepair}) {
		t.Errorf("repaired again: %v", err)
	}
	fill(t, c, 1, 5000, 500)
	sameEverywhere(t, c, 1, 1, 2, 3)
	for id := NodeID(1); id <= 3; id++ {
		if read(c.Node(id).Shard(1)) {
			t.Errorf("node %d is out of service again", id)
		}
	}
	// They lead and vote as before, also after a restart.
	for id := NodeID(1); id <= 3; id++ {
		c.Kill(id)
	}
	for id := NodeID(1); id <= 2; id++ {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, c, 1, 6000, 100)
	sameEverywhere(t, c, 1, 1, 2)
}

// A replica whose sessions are damaged is met as such by the start of its node, which starts all the same: it is repaired like any other.
//
// Mutations with which it was seen to fail: restore returns the error of loadSessions; damage that compactions and the like meet is fatal ("compacted").
func TestRepairAfterStart(t *testing.T) {
	t.Run("read", func(t *testing.T) { repairAfterStart(t, true) })
	t.Run("compacted", func(t *testing.T) { repairAfterStart(t, false) })
}

func repairAfterStart(t *testing.T, noCompactions bool) {
	dir := t.TempDir()
	c := startCluster(t, dir, counters{}, small, func(cfg *Config) { cfg.noCompactions = noCompactions })
	client := c.Client(1)
	for i := range 40 { // each has a session, and flushes follow each other
		if _, err := client.Submit(within(t), []byte(strings.Repeat("x", 3000+i))); err != nil {
			t.Fatal(err)
		}
	}
	sameEverywhere(t, c, 1, 1, 2, 3)
	pattern := filepath.Join(dir, "node1", "state", "pebble", "*.sst")
	eventually(t, "there have been two flushes", func() bool { tables, err := filepath.Glob(pattern); return err == nil && len(tables) >= 2 })
	c.Kill(1)
	tables, err := filepath.Glob(pattern)
	if err != nil || len(tables) < 2 {
		t.Fatal(tables, err)
	}
	b, err := os.ReadFile(tables[0]) // not the last, which has the shard's record
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1 // without its end nothing of it can be read
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(1); err != nil {
		t.Fatal(err)
	}
	s := c.Node(1).Shard(1)
	eventually(t, "the damaged replica is repaired", func() bool {
		st, err := s.Status()
		return err == nil && st.Err == nil && s.repairs.Load() == 1
	})
	sameEverywhere(t, c, 1, 1, 2, 3)
}

// counting counts the records of a log that say something.
type counting struct {
	text string
	n    *atomic.Int64
}

func (c counting) Enabled(context.Context, slog.Level) bool { return true }
func (c counting) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c counting) WithGroup(string) slog.Handler            { return c }

func (c counting) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, c.text) {
		c.n.Add(1)
	}
	return nil
}

// A replica is found to be damaged while nobody is there who could help. It is repaired when somebody is, however long that takes.
func TestRepairWaitsForPeers(t *testing.T) {
	dir := t.TempDir()
	var failed atomic.Int64
	c := startCluster(t, dir, counters{}, small, func(cfg *Config) {
		cfg.noCompactions, cfg.repairPause = true, time.Millisecond
		cfg.Logger = slog.New(counting{"could not be repaired", &failed})
	})
	fillTables(t, c, dir)
	for id := NodeID(1); id <= 3; id++ {
		c.Kill(id)
	}
	startDamaged(t, c, dir, 1)
	s := c.Node(1).Shard(1)
	broken := false
	for i := 0; i < 3000 && !broken; i++ {
		_, err := s.ReadAt(within(t), Stale, 0, fmtKey(i))
		broken = errors.Is(err, ErrBroken)
	}
	if !broken {
		t.Fatal("the damage is not found")
	}
	eventually(t, "it is tried again and again", func() bool { return failed.Load() > repairsAtMost+2 })
	for id := NodeID(2); id <= 3; id++ {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it is repaired", func() bool {
		st, err := s.Status()
		return err == nil && st.Err == nil && s.stopped.Load() == nil
	})
	fill(t, c, 1, 5000, 100)
	sameEverywhere(t, c, 1, 1, 2, 3)
}

// A journal that is kept as history is not dropped by a repair that nobody asked for, unless another member has it.
//
// Mutations with which it was seen to fail: repairStopped does not ask journalElsewhere ("alone"); a member that answers counts, whatever it has ("alone"); none counts ("everywhere").
func TestRepairKeepsTheOnlyJournal(t *testing.T) {
	t.Run("alone", func(t *testing.T) { repairWithJournal(t, true) })
	t.Run("everywhere", func(t *testing.T) { repairWithJournal(t, false) })
}

func repairWithJournal(t *testing.T, alone bool) {
	dir := t.TempDir()
	var failed atomic.Int64
	c := startCluster(t, dir, counters{}, small, func(cfg *Config) {
		cfg.noCompactions, cfg.repairPause = true, time.Millisecond
		cfg.KeepJournal = !alone || cfg.Node == 1
		cfg.Logger = slog.New(counting{"could not be repaired", &failed})
	})
	fillTables(t, c, dir)
	c.Kill(1)
	startDamaged(t, c, dir, 1)
	s := c.Node(1).Shard(1)
	for i := 0; i < 3000 && s.repairs.Load() == 0; i++ {
		_, _ = s.ReadAt(within(t), Stale, 0, fmtKey(i))
	}
	repaired := func() bool {
		st, err := s.Status()
		return err == nil && st.Err == nil && s.repairs.Load() > 0
	}
	if alone {
		eventually(t, "it is tried again and again", func() bool { return failed.Load() > repairsAtMost })
		if repaired() {
			t.Error("it was repaired, and its journal is gone")
		}
		if err := s.Repair(within(t)); err != nil {
			t.Errorf("asked for: %v", err)
		}
	}
	eventually(t, "it is repaired", repaired)
	fill(t, c, 1, 5000, 100)
	sameEverywhere(t, c, 1, 1, 2, 3)
}

// A member whose worker hangs, while its node is connected, does not keep a repair from asking the next: neither for the journal nor for a snapshot.
//
// Mutations with which it was seen to fail: askForJournal has no timeout; askForCut waits for the cut alone; serveJournal does not look at its context.
func TestRepairPastAPeerThatHangs(t *testing.T) {
	dir := t.TempDir()
	c := startCluster(t, dir, counters{}, small, keepJournal, func(cfg *Config) {
		cfg.noCompactions, cfg.repairPause, cfg.peerPatience = true, time.Millisecond, 500*time.Millisecond
	})
	fillTables(t, c, dir)
	c.Kill(1)
	if err := onLeader(t, c, 1, func(s *Shard) error { // who leads is asked last
		if s.node.ID() == 3 {
			return nil
		}
		return s.TransferLeadership(within(t), 3)
	}); err != nil {
		t.Fatal(err)
	}
	startDamaged(t, c, dir, 1)
	hung := c.Node(2).engine
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	inside := make(chan struct{})
	hung.workerOf(1).post(func(in *core.Input) {
		in.Calls = append(in.Calls, func(*core.Worker) { close(inside); <-release })
	})
	<-inside
	s := c.Node(1).Shard(1)
	for i := 0; i < 3000 && s.repairs.Load() == 0; i++ {
		_, _ = s.ReadAt(within(t), Stale, 0, fmtKey(i))
	}
	eventually(t, "it is repaired", func() bool {
		st, err := s.Status()
		return err == nil && st.Err == nil && s.repairs.Load() > 0
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := hung.serve(ctx, 1, callJournal, binary.AppendUvarint(nil, 1))
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a question that is not waited for any more ends with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a question that is not waited for any more does not end")
	}
	free()
	fill(t, c, 1, 5000, 100)
	sameEverywhere(t, c, 1, 1, 2, 3)
}

// liar is a peer who answers with the chunks of its one snapshot, whatever it is asked for.
type liar struct {
	transport.Peer
	src *snapshot.Source
}

func (l liar) Call(ctx context.Context, _ uint64, _ uint8, request []byte) ([]byte, error) {
	rest := request[len(snapshot.ID{}):]
	file, n := binary.Uvarint(rest)
	chunk, _ := binary.Uvarint(rest[n:])
	return l.src.Fetch(ctx, l.src.Snapshot().ID, int(file), int(chunk))
}

// single starts a node alone, with a state that takes some flushes.
func single(t *testing.T, dir string) *Cluster {
	t.Helper()
	c, err := StartCluster(ClusterConfig{Nodes: 1, Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: blobs{}}}, Configure: func(cfg *Config) {
		quick(cfg)
		small(cfg)
		cfg.DiskWatermark, cfg.Logger = -1, slog.New(slog.DiscardHandler)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	})
	fillBlobs(t, c, 1, 1<<20, 1<<10)
	return c
}

// cutOnDisk returns the directory of snapshots of a node that is stopped, with a snapshot of shard 1 in it.
func cutOnDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	c := single(t, dir)
	if _, err := c.Node(1).Shard(1).CutSnapshot(within(t), true); err != nil {
		t.Fatal(err)
	}
	c.Kill(1)
	return filepath.Join(dir, "node1", "snap")
}

// A manifest can name chunks that any peer has, and be wrong as a whole. It is not fetched for ever, and nothing of it stays.
func TestFetchOfLies(t *testing.T) {
	open := func(dir string) *snapshot.Dir {
		d, err := snapshot.Open(snapshot.Options{Path: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	from := open(cutOnDisk(t))
	truth := from.List()[0]
	src, err := from.Source(truth.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for name, lie := range map[string]func(*snapshot.Manifest){
		"nothing":              func(*snapshot.Manifest) {},
		"the file's checksum":  func(m *snapshot.Manifest) { m.Files[0].SHA256[0] ^= 1 },
		"the number of keys":   func(m *snapshot.Manifest) { m.Sections[0].Keys++ },
		"the index":            func(m *snapshot.Manifest) { m.Index++ },
		"the chunk's checksum": func(m *snapshot.Manifest) { m.Files[0].Chunks[0]++ },
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := truth.EncodedManifest()
			if err != nil {
				t.Fatal(err)
			}
			m, _, err := snapshot.Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			lie(m)
			if raw, _, err = m.Encode(); err != nil {
				t.Fatal(err)
			}
			e := newEngine(2, slog.New(slog.DiscardHandler), nil, 0)
			e.snaps, e.fs, e.cluster, e.transport = open(t.TempDir()), vfs.Default, m.Cluster, liar{src: src}
			s, err := e.fetch(within(t), &core.Fetch{Shard: 1, Manifest: raw, Sources: []NodeID{1}, Progress: func(int64, int64) {}})
			if name == "nothing" {
				if err != nil || s.ID != truth.ID {
					t.Fatalf("the truth is refused: %v", err)
				}
				return
			}
			if !errors.Is(err, core.ErrNoSource) {
				t.Errorf("got %v", err)
			}
			if l := e.snaps.List(); len(l) > 0 {
				t.Errorf("left: %v", l[0].Dir)
			}
		})
	}
}

// A snapshot that has rotted is not offered again and again: who asks for a chunk finds it out, and the next is cut anew.
func TestRottenSnapshotIsCutAnew(t *testing.T) {
	for _, file := range []string{"000001.sst", "MANIFEST"} {
		t.Run(file, func(t *testing.T) {
			c := single(t, t.TempDir())
			first, err := c.Node(1).Shard(1).CutSnapshot(within(t), true)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(first.Dir, file)
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if file == "MANIFEST" { // which is read when the node starts
				c.Kill(1)
				if err := c.Restart(1); err != nil {
					t.Fatal(err)
				}
			}
			e := c.Node(1).engine
			var bad error
			for _, s := range e.snaps.List() {
				for chunk := range s.Manifest.Files[0].Chunks {
					request := binary.AppendUvarint(binary.AppendUvarint(append([]byte(nil), s.ID[:]...), 0), uint64(chunk))
					if _, err := e.serveChunk(within(t), request); err != nil && bad == nil {
						bad = err
					}
				}
			}
			if file != "MANIFEST" && !errors.Is(bad, snapshot.ErrCorrupt) {
				t.Fatalf("the damage is not found: %v", bad)
			}
			again, err := c.Node(1).Shard(1).CutSnapshot(within(t), false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := snapshot.Verify(within(t), nil, again.Dir); err != nil || again.Index != first.Index {
				t.Errorf("snapshot at %d, the first was at %d: %v", again.Index, first.Index, err)
			}
		})
	}
}

// Damage where a start reads: the node is refused, and the message says what to do next.
func TestDamageAtTheStart(t *testing.T) {
	for _, what := range []string{"tables", "a table is gone", "a table is cut off", "manifest"} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			c := single(t, dir)
			c.Kill(1)
			pattern := "*.sst"
			if what == "manifest" {
				pattern = "MANIFEST-*"
			}
			files, err := filepath.Glob(filepath.Join(dir, "node1", "state", "pebble", pattern))
			if err != nil || len(files) == 0 {
				t.Fatalf("no files: %v", err)
			}
			for _, name := range files {
				if what == "a table is gone" {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
					continue
				}
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for i := range b {
					b[i] ^= 0x55
				}
				if what == "a table is cut off" {
					b = b[:len(b)/2]
				}
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err = c.Restart(1)
			if err == nil {
				t.Fatal("it starts")
			}
			for _, want := range []string{"damaged", "decree replace 1 NEW-ID HOST:PORT", "remove this directory"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

// What was fetched of a snapshot in vain goes when the replica has as much itself.
func TestPartialSnapshotsGo(t *testing.T) {
	c := single(t, t.TempDir())
	info, err := c.Node(1).Shard(1).CutSnapshot(within(t), true)
	if err != nil {
		t.Fatal(err)
	}
	e := c.Node(1).engine
	raw, err := e.snaps.List()[0].EncodedManifest()
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := snapshot.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	m.Index, m.Files[0].SHA256[0] = m.Index+1000, 0 // of another replica, which is ahead
	if raw, _, err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.fetch(within(t), &core.Fetch{Shard: 1, Manifest: raw, Sources: []NodeID{1}, Progress: func(int64, int64) {}}); err == nil {
		t.Fatal("it is there")
	}
	if len(e.snaps.Partial()) != 1 {
		t.Fatalf("partial: %v", e.snaps.Partial())
	}
	w := e.workerOf(1)
	w.Flushed(1, info.Index+1000)
	eventually(t, "it is gone", func() bool { return len(e.snaps.Partial()) == 0 })
}

// stoppedByDamage returns a cluster at rest, with the replica of shard 1 on node 1 out of service for damaged tables.
func stoppedByDamage(t *testing.T, options ...option) (*Cluster, *Shard) {
	t.Helper()
	dir := t.TempDir()
	c := startCluster(t, dir, counters{}, append(options, small, func(cfg *Config) { cfg.noCompactions, cfg.KeepDamage = true, true })...)
	fillTables(t, c, dir)
	c.Kill(1)
	startDamaged(t, c, dir, 1)
	s := c.Node(1).Shard(1)
	eventually(t, "the damage is found", func() bool {
		for i := range 3000 {
			_, _ = s.ReadAt(within(t), Stale, 0, fmtKey(i))
			if st, err := s.Status(); err == nil && st.Err != nil {
				return true
			}
		}
		return false
	})
	return c, s
}

// A disk cannot write the tables that a repair installs. The kernel may show them as if it had, so that the next attempt would find them here, whole: they are fetched anew.
//
// Mutations with which it was seen to fail, one by one: the snapshot stays after an installation whose tables could not be synced; link does not say so.
func TestRepairAfterAFailedSync(t *testing.T) {
	var fails, failed, fetched atomic.Bool
	var said atomic.Int64
	c, s := stoppedByDamage(t, func(cfg *Config) {
		if cfg.Node != 1 {
			return
		}
		cfg.Logger = slog.New(counting{"replica not repaired", &said})
		cfg.wrapFS = func(fs vfs.FS) vfs.FS {
			return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				switch {
				case inIngest(op) && fails.CompareAndSwap(true, false):
					failed.Store(true)
					return syscall.EIO
				case op.Kind == errorfs.OpFileWriteAt && strings.Contains(op.Path, ".part/") && failed.Load():
					fetched.Store(true)
				}
				return nil
			}))
		}
	})
	fails.Store(true)
	if err := s.Repair(within(t)); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the disk fails: %v", err)
	}
	if said.Load() != 1 {
		t.Errorf("the log says %d times that it failed", said.Load())
	}
	if err := s.Repair(within(t)); err != nil {
		t.Fatal(err)
	}
	if !fetched.Load() {
		t.Error("what the disk could not write was installed without being fetched again")
	}
	fill(t, c, 1, 5000, 100)
	sameEverywhere(t, c, 1, 1, 2, 3)
}

// A replica that is repaired was wrong, perhaps, and so are the snapshots that it has cut: none is left, whoever reads from it. Nor is one handed out that says something
// else of the state than the state store, though it is of the same index: power may have gone before it was removed.
//
// Mutations with which it was seen to fail, one by one: snapshots of a repaired state are removed as others are; they are not discarded while they are read; cut looks at the index alone.
func TestRepairRemovesSnapshots(t *testing.T) {
	c, s := stoppedByDamage(t)
	if _, err := c.Node(2).Shard(1).CutSnapshot(within(t), true); err != nil {
		t.Fatal(err)
	}
	e := c.Node(1).engine
	src, err := e.snaps.Source(wrongSnapshots(t, c.Node(2).engine, e, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := s.Repair(within(t)); err != nil {
		t.Fatal(err)
	}
	left := c.Node(1).Snapshots()
	if len(left) != 1 || left[0].Hash < wrongHashes {
		t.Fatalf("the snapshots after the repair are %+v", left)
	}
	wrongSnapshots(t, e, e, uint64(left[0].Index))
	got, err := e.cut(within(t), &core.CutDone{Shard: 1, Progress: func(int64) {}, Hurry: func() bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	if got.Manifest.Hash < wrongHashes {
		t.Errorf("cut, and that is handed out: %+v", got.Manifest.Info)
	}
}

// wrongHashes are no hashes of a state, and so many that a wrong snapshot comes before the right one nearly always.
const wrongHashes = 5

// wrongSnapshots gives a node snapshots of shard 1 that say of another's state that it is of this index, and has these hashes. Peers have just read from them. It returns one.
func wrongSnapshots(t *testing.T, from, to *engine, index uint64) (id snapshot.ID) {
	t.Helper()
	all := from.snaps.List()
	right := all[slices.IndexFunc(all, func(s *snapshot.Snapshot) bool { return s.Manifest.Shard == 1 })]
	src, err := from.snaps.Source(right.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for hash := range uint64(wrongHashes) {
		m := *right.Manifest
		m.Index, m.Hash = index, hash
		manifest, _, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s, err := to.snaps.Receive(within(t), manifest, renamed{src}, snapshot.ReceiveOptions{Cluster: m.Cluster, Shard: m.Shard})
		if err != nil {
			t.Fatal(err)
		}
		id = s.ID
		to.reads.note(id)
	}
	return id
}

// renamed serves a snapshot under any name.
type renamed struct{ *snapshot.Source }

func (r renamed) Fetch(ctx context.Context, _ snapshot.ID, file, chunk int) ([]byte, error) {
	return r.Source.Fetch(ctx, r.Snapshot().ID, file, chunk)
}

// What a repair discards under a peer that fetches it, or under the check of what was fetched, is gone, and nobody is told of damage.
//
// Mutations with which it was seen to fail, one by one: Source.Fetch does not look whether it is there still; fetch takes what is gone for damaged; it
// leaves what is missing on the list.
func TestDiscardedIsNotDamaged(t *testing.T) {
	from, err := snapshot.Open(snapshot.Options{Path: cutOnDisk(t), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	truth := from.List()[0]
	src, err := from.Source(truth.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var told bytes.Buffer
	e := newEngine(2, slog.New(slog.NewTextHandler(&told, nil)), nil, 0)
	discard := func() {}
	e.fs = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpOpen && strings.HasSuffix(op.Path, ".sst") {
			discard()
		}
		return nil
	}))
	if e.snaps, err = snapshot.Open(snapshot.Options{Path: filepath.Join(t.TempDir(), "snap"), FS: e.fs, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	e.cluster, e.transport = truth.Manifest.Cluster, liar{src: src}
	manifest, err := truth.EncodedManifest()
	if err != nil {
		t.Fatal(err)
	}
	fetch := func() error {
		_, err := e.fetch(within(t), &core.Fetch{Shard: 1, Manifest: manifest, Sources: []NodeID{1}, Progress: func(int64, int64) {}})
		return err
	}
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	discard = func() { _ = e.snaps.Discard(truth.ID) } // the second time it is gone
	if _, err := e.serveChunk(within(t), append(truth.ID[:], 0, 0)); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("a chunk: %v", err)
	}
	if err := fetch(); !errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, core.ErrNoSource) {
		t.Errorf("fetched: %v", err)
	}
	if told.Len() > 0 {
		t.Errorf("it is said: %s", &told)
	}
	// Nobody has discarded what somebody else has removed from the disk: it is fetched anew.
	discard = func() {}
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(e.snaps.List()[0].Dir); err != nil {
		t.Fatal(err)
	}
	if err := fetch(); err != nil {
		t.Errorf("after the directory was removed by hand: %v", err)
	}
}
