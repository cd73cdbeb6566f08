package rsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// A chronicle is what the machines of a cluster have applied, by position: the model of what a backup of any position must hold.
type chronicle struct {
	mu     sync.Mutex
	events map[ShardID]map[Index]map[uint32]string
	times  map[ShardID]map[Index]Timestamp
}

func newChronicle() *chronicle {
	return &chronicle{events: map[ShardID]map[Index]map[uint32]string{1: {}, 2: {}}, times: map[ShardID]map[Index]Timestamp{1: {}, 2: {}}}
}

func (c *chronicle) machine() counters {
	return counters{onApply: func(_ State, e Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		p := e.Position
		if c.events[p.Shard][p.Index] == nil {
			c.events[p.Shard][p.Index] = map[uint32]string{}
		}
		c.events[p.Shard][p.Index][p.Ordinal] = string(e.Data)
		c.times[p.Shard][p.Index] = e.Time
	}}
}

// state is what a shard must hold at a position.
func (c *chronicle) state(id ShardID, at Index) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]string{}
	for _, i := range slices.Sorted(maps.Keys(c.events[id])) {
		for _, n := range slices.Sorted(maps.Keys(c.events[id][i])) {
			if data := c.events[id][i][n]; i <= at {
				out[data[8:]] = data[:8]
			}
		}
	}
	return out
}

// indices are those with events, ascending.
func (c *chronicle) indices(id ShardID) []Index {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.events[id]))
}

// holds compares a replica with the model.
func (c *chronicle) holds(t *testing.T, n *Node, id ShardID, at Index) {
	t.Helper()
	got := map[string]string{}
	eventually(t, "the log is applied", func() bool {
		st, err := n.Shard(id).Status()
		if err != nil || st.Err != nil {
			t.Fatal(err, st.Err)
		}
		return st.Applied >= at
	})
	if _, _, err := n.Shard(id).Audit(func(v View) error {
		for k, value := range v.Scan(nil, nil) {
			got[string(k)] = string(value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := c.state(id, at); !maps.Equal(got, want) {
		t.Errorf("shard %d on node %d at %d: %d keys, want %d, or other values", id, n.ID(), at, len(got), len(want))
	}
}

// smallFlushes make a shard flush often.
func smallFlushes(cfg *Config) { cfg.Limits.FlushBytes = 64 << 10 }

func keepJournal(cfg *Config) { cfg.KeepJournal = true }

// startRestored starts the nodes of a restored cluster.
func startRestored(t *testing.T, r *Restored, dir string, m Machine, options ...option) *Cluster {
	t.Helper()
	c, err := StartCluster(ClusterConfig{
		Name: r.Cluster, Nodes: len(r.Members), Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: m}, {ID: 2, Machine: m}},
		Configure: func(cfg *Config) {
			quick(cfg)
			cfg.Logger, cfg.DiskWatermark = testLogger(t), -1
			for _, o := range options {
				o(cfg)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return c
}

// nodeDirs are the directories that a Cluster in dir has.
func nodeDirs(dir string, nodes int) map[NodeID]string {
	dirs := map[NodeID]string{}
	for id := 1; id <= nodes; id++ {
		dirs[NodeID(id)] = filepath.Join(dir, fmt.Sprintf("node%d", id))
	}
	return dirs
}

func restoreT(t *testing.T, o RestoreOptions) *Restored {
	t.Helper()
	r, err := Restore(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// add increments a counter n times.
func add(t *testing.T, c *Cluster, id ShardID, key string, n int) Index {
	t.Helper()
	var last Index
	for range n {
		if err := onLeader(t, c, id, func(s *Shard) error {
			res, err := s.Do(within(t), Request{Commands: [][]byte{[]byte(key)}})
			if errors.Is(err, ErrUnknown) {
				t.Fatal(err) // again, it could be twice
			}
			last = res.Index
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

// A cluster under load is backed up, from its leader into a directory and from a follower as a stream; restored to one, three and five nodes it has
// exactly what it had at the backup's position, goes on from there, and knows the sessions: a retry gets the stored reply.
//
// Mutations with which it was seen to fail, one by one: the meta record is not rewritten; the log gets no term; the entries after the flush are
// left out.
func TestBackupUnderLoad(t *testing.T) {
	model := newChronicle()
	c := startCluster(t, t.TempDir(), model.machine(), patient10s, smallFlushes)
	s := leaderOf(t, c, 1).Shard(1)
	session, err := s.OpenSession(within(t))
	if err != nil {
		t.Fatal(err)
	}
	retry := Request{Commands: [][]byte{[]byte("once")}, Session: session, Sequence: 1}
	if _, err := s.Do(within(t), retry); err != nil {
		t.Fatal(err)
	}
	marked := add(t, c, 1, "before", 3)
	loads := []*load{startLoad(t, c, 1, 4), startLoad(t, c, 2, 4)}
	flushed(t, s.node, 1)
	var dir string
	var made *snapshot.Backup
	for range 10 { // one that begins right after a flush has no entries
		dir = filepath.Join(t.TempDir(), "deep", "backup")
		if made, err = s.node.BackupTo(within(t), dir, BackupOptions{AtLeast: map[ShardID]Index{1: marked}}); err != nil {
			t.Fatal(err)
		}
		if made.Shards[0].Last() > made.Shards[0].Index {
			break
		}
	}
	var stream bytes.Buffer
	follower := c.Node(s.node.ID()%3 + 1)
	streamed, err := follower.Backup(within(t), &stream, BackupOptions{AtLeast: map[ShardID]Index{1: Index(made.Shards[0].Last())}})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loads {
		l.finish(t)
		l.check(t, c, ShardID(1+slices.Index(loads, l)))
	}
	if made.Shards[0].Index == 0 || made.Shards[0].Last() == made.Shards[0].Index {
		t.Errorf("the backup was to have a snapshot and entries: %+v", made.Shards[0])
	}
	unpacked := filepath.Join(t.TempDir(), "unpacked")
	if _, err := snapshot.UnpackBackup(within(t), &stream, nil, unpacked, snapshot.UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	if streamed.Shards[0].Last() < made.Shards[0].Last() {
		t.Errorf("the second backup is of %d, the first of %d", streamed.Shards[0].Last(), made.Shards[0].Last())
	}
	for nodes, from := range map[int]string{1: dir, 3: unpacked, 5: dir} {
		t.Run(fmt.Sprint(nodes, " nodes"), func(t *testing.T) {
			target := t.TempDir()
			r := restoreT(t, RestoreOptions{Backup: from, Cluster: "next", Nodes: nodeDirs(target, nodes)})
			again := startRestored(t, r, target, newChronicle().machine())
			for _, shard := range r.Shards {
				for _, n := range again.Nodes() {
					model.holds(t, n, shard.Shard, shard.Index)
				}
			}
			res, err := doOnLeader(t, again, 1, retry)
			if err != nil || res.Replies[0][7] != 1 {
				t.Errorf("a retry got %v, %v", res.Replies, err)
			}
			if res, err := doOnLeader(t, again, 1, Request{Commands: [][]byte{[]byte("once")}, Session: session, Sequence: 2}); err != nil || res.Replies[0][7] != 2 {
				t.Errorf("the next command got %v, %v", res.Replies, err)
			}
			add(t, again, 1, "after", 5)
			sameHashes(t, again, 1)
			sameHashes(t, again, 2)
			for id := range NodeID(nodes) {
				again.Kill(id + 1)
			}
			for id := range NodeID(nodes) {
				if err := again.Restart(id + 1); err != nil {
					t.Fatal(err)
				}
			}
			answer, err := again.Client(1).Read(within(t), Linearizable, []byte("after"))
			if n := sum(t, answer, err); n != 5 {
				t.Errorf("after a restart %d of 5 are there", n)
			}
		})
	}
}

// A shard is restored to any position that the backup has, and to any time.
//
// Mutations with which it was seen to fail, one by one: the position is ignored; the last entry is left out of the log, or of what Committed returns; Until takes later entries too.
func TestPointInTime(t *testing.T) {
	model := newChronicle()
	c := startCluster(t, "", model.machine(), patient10s, keepJournal, smallFlushes)
	for i := range 40 {
		add(t, c, 1, fmt.Sprint("key ", i%7), 1)
		add(t, c, 2, strings.Repeat("x", 4000), 1) // flushes
	}
	n := leaderOf(t, c, 1)
	acked := map[ShardID]Index{}
	for _, s := range c.cfg.Shards {
		acked[s.ID] = add(t, c, s.ID, "last", 1)
	}
	history := filepath.Join(t.TempDir(), "history")
	b, err := n.BackupTo(within(t), history, BackupOptions{History: true, AtLeast: acked}) // it follows in shard 2
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.VerifyBackup(within(t), nil, history, nil); err != nil {
		t.Fatal(err)
	}
	if b.Shards[0].First() != 1 || b.Shards[0].HasSnapshot() || b.Shards[1].Last() < 41 {
		t.Errorf("the history is %+v", b.Shards)
	}
	recent := filepath.Join(t.TempDir(), "recent")
	if b, err = n.BackupTo(within(t), recent, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	if last := Index(b.Shards[0].Last()); last < acked[1] {
		t.Errorf("a backup made on the leader ends at %d, and %d was acknowledged before", last, acked[1])
	}
	indices := model.indices(1)
	positions := []Index{indices[0], indices[len(indices)/2], indices[len(indices)-1], indices[len(indices)-1] - 1}
	try := func(name string, o RestoreOptions, want Index) {
		t.Run(name, func(t *testing.T) {
			target := t.TempDir()
			o.Cluster, o.Nodes = "then", nodeDirs(target, 1)
			r := restoreT(t, o)
			if r.Shards[0].Index != want {
				t.Errorf("shard 1 was restored to %d, want %d", r.Shards[0].Index, want)
			}
			again := startRestored(t, r, target, counters{})
			for _, s := range r.Shards {
				model.holds(t, again.Node(1), s.Shard, s.Index)
			}
		})
	}
	for _, at := range positions {
		try(fmt.Sprint("position ", at), RestoreOptions{Backup: history, Position: map[ShardID]Index{1: at}}, at)
	}
	middle := indices[len(indices)/2]
	second := model.indices(2)[0]
	then := max(model.times[1][middle], model.times[2][second])
	want := middle
	for _, i := range indices {
		if model.times[1][i] <= then {
			want = i
		}
	}
	try("by time", RestoreOptions{Backup: history, Until: then.Time()}, want)
	try("recent, its first", RestoreOptions{Backup: recent, Position: map[ShardID]Index{1: Index(b.Shards[0].First())}}, Index(b.Shards[0].First()))
	try("recent", RestoreOptions{Backup: recent}, Index(b.Shards[0].Last()))

	s := b.Find(2)
	for _, wrong := range []uint64{s.First() - 1, s.Last() + 1, 0} {
		_, err := Restore(within(t), RestoreOptions{Backup: recent, Cluster: "then", Nodes: nodeDirs(t.TempDir(), 1), Position: map[ShardID]Index{2: Index(wrong)}})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d to %d", s.First(), s.Last())) {
			t.Errorf("position %d: got %v", wrong, err)
		}
	}
	_, err = Restore(within(t), RestoreOptions{Backup: history, Cluster: "then", Nodes: nodeDirs(t.TempDir(), 1), Until: time.Unix(1, 0)})
	if err == nil || !strings.Contains(err.Error(), "cannot be restored to") {
		t.Errorf("before everything: %v", err)
	}
}

// Sessions that are opened after a restore have other ids than those that the history which went on without it has given out, in a cluster of the same name
// too, and they outlive a restart. Shard 1 is restored without a snapshot, and shard 2 with one.
//
// Mutations with which it was seen to fail: ids are places alone; a node does not know from node.json that it was restored; RewriteMeta forgets it.
func TestSessionIDsAfterARestore(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s, smallFlushes)
	add(t, c, 1, "a", 1)
	for range 40 {
		add(t, c, 2, strings.Repeat("x", 4000), 1) // flushes
	}
	n := leaderOf(t, c, 1)
	flushed(t, n, 2)
	dir := filepath.Join(t.TempDir(), "backup")
	b, err := n.BackupTo(within(t), dir, BackupOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if b.Find(1).HasSnapshot() || !b.Find(2).HasSnapshot() {
		t.Fatalf("the backup is %+v", b.Shards)
	}
	given := map[ShardID]map[SessionID]bool{1: {}, 2: {}}
	for range 8 { // the restored log begins with an empty entry or two
		given[1][openOnLeader(t, c, 1)], given[2][openOnLeader(t, c, 2)] = true, true
	}
	target := t.TempDir()
	r := restoreT(t, RestoreOptions{Backup: dir, Cluster: c.cfg.Name, SameName: true, Nodes: nodeDirs(target, 1)})
	again := startRestored(t, r, target, counters{})
	mine := map[ShardID]SessionID{}
	for id := range given {
		for range 8 {
			mine[id] = openOnLeader(t, again, id)
			if given[id][mine[id]] {
				t.Errorf("session %d of shard %d was given out twice", mine[id], id)
			}
		}
		if _, err := again.Node(1).Shard(id).Do(within(t), Request{Commands: [][]byte{[]byte("a")}, Session: mine[id], Sequence: 1}); err != nil {
			t.Fatal(err)
		}
	}
	again.Kill(1)
	if err := again.Restart(1); err != nil {
		t.Fatal(err)
	}
	for id, s := range mine {
		leaderOf(t, again, id)
		if _, err := again.Node(1).Shard(id).Do(within(t), Request{Commands: [][]byte{[]byte("a")}, Session: s, Sequence: 2}); err != nil {
			t.Errorf("session %d of shard %d, after a restart: %v", s, id, err)
		}
	}
}

// Every refusal says why, and leaves everything as it was.
func TestRestoreRefusals(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	add(t, c, 1, "a", 5)
	add(t, c, 2, "a", 5)
	n := leaderOf(t, c, 1)
	dir := filepath.Join(t.TempDir(), "backup")
	if _, err := n.BackupTo(within(t), dir, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.BackupTo(within(t), dir, BackupOptions{}); !errors.Is(err, snapshot.ErrNotEmpty) {
		t.Errorf("a second backup into the directory: %v", err)
	}
	if _, err := n.BackupTo(within(t), t.TempDir(), BackupOptions{Shards: []ShardID{3}}); err == nil || !strings.Contains(err.Error(), "no shard 3") {
		t.Errorf("a shard that is not there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if _, err := n.BackupTo(ctx, t.TempDir(), BackupOptions{AtLeast: map[ShardID]Index{1: 1 << 40}}); !errors.Is(err, ErrNotProposed) {
		t.Errorf("a position that is not reached: %v", err)
	}
	cancel()
	used := t.TempDir()
	restoreT(t, RestoreOptions{Backup: dir, Cluster: "used", Nodes: nodeDirs(used, 1)})
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := func() RestoreOptions {
		return RestoreOptions{Backup: dir, Cluster: "next", Nodes: nodeDirs(t.TempDir(), 3)}
	}
	for _, test := range []struct {
		name, want string
		spoil      func(*RestoreOptions)
	}{
		{"same name", "same name", func(o *RestoreOptions) { o.Cluster = "embedded" }},
		{"no name", "1 to 64 bytes", func(o *RestoreOptions) { o.Cluster = "" }},
		{"no nodes", "too few nodes", func(o *RestoreOptions) { o.Nodes = nil }},
		{"no voters", "too few nodes", func(o *RestoreOptions) { o.Voters = map[ShardID][]NodeID{1: {}} }},
		{"no backup", "name the directory", func(o *RestoreOptions) { o.Backup = "" }},
		{"not a backup", "does not exist", func(o *RestoreOptions) { o.Backup = t.TempDir() }},
		{"used", "is in use: it has node.json", func(o *RestoreOptions) { o.Nodes = nodeDirs(used, 1) }},
		{"foreign", "is in use: it has x", func(o *RestoreOptions) { o.Nodes[2] = foreign }},
		{"one directory twice", "same directory", func(o *RestoreOptions) { o.Nodes[2] = o.Nodes[1] }},
		{"not a member", "not among the members", func(o *RestoreOptions) { o.Members = []NodeID{1, 2, 4} }},
		{"member twice", "twice", func(o *RestoreOptions) { o.Members = []NodeID{1, 2, 3, 3} }},
		{"node 0", "node 0", func(o *RestoreOptions) { o.Members = []NodeID{0, 1, 2, 3} }},
		{"strange voter", "not among the members", func(o *RestoreOptions) { o.Voters = map[ShardID][]NodeID{1: {9}} }},
		{"nothing to host", "would host no shard", func(o *RestoreOptions) { o.Voters = map[ShardID][]NodeID{1: {1}, 2: {1, 2}} }},
		{"strange shard", "shard 7, of which the backup has nothing", func(o *RestoreOptions) { o.Voters = map[ShardID][]NodeID{7: {1}} }},
		{"position of a strange shard", "shard 7, of which the backup has nothing", func(o *RestoreOptions) { o.Position = map[ShardID]Index{7: 1} }},
		{"position and time", "give one", func(o *RestoreOptions) { o.Position, o.Until = map[ShardID]Index{1: 1}, time.Now() }},
	} {
		o := good()
		test.spoil(&o)
		if _, err := Restore(within(t), o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q in it", test.name, err, test.want)
		}
		for _, d := range good().Nodes {
			if names, err := os.ReadDir(d); err == nil && len(names) > 0 {
				t.Errorf("%s: %s has %v", test.name, d, names)
			}
		}
	}
	o := good()
	o.Cluster, o.SameName = "embedded", true
	restoreT(t, o)
	damaged := copyTree(t, dir)
	name := filepath.Join(damaged, "journal-0000000000000002", "000001.jnl")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o = good()
	o.Backup = damaged
	if _, err := Restore(within(t), o); !errors.Is(err, snapshot.ErrCorrupt) || !strings.Contains(err.Error(), name) {
		t.Errorf("damage: %v", err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(within(t), o); !errors.Is(err, snapshot.ErrCorrupt) || !strings.Contains(err.Error(), name) {
		t.Errorf("a file that is missing: %v", err)
	}
	newer := copyTree(t, dir)
	name = filepath.Join(newer, "BACKUP")
	if b, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	b[11]++ // the version
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o = good()
	o.Backup = newer
	if _, err := Restore(within(t), o); !errors.Is(err, snapshot.ErrNewerFormat) {
		t.Errorf("a newer format: %v", err)
	}
	// What was restored is started as what it is, and as nothing else.
	_, err = StartCluster(ClusterConfig{Name: "used", Nodes: 3, Dir: used, Shards: c.cfg.Shards})
	if err == nil || !strings.Contains(err.Error(), "made with the voters [1]") {
		t.Errorf("with other voters: %v", err)
	}
	_, err = StartCluster(ClusterConfig{Name: "used", Nodes: 1, Dir: used, Shards: c.cfg.Shards[:1]})
	if err == nil || !strings.Contains(err.Error(), "shard 2, which Config.Shards does not name") {
		t.Errorf("with other shards: %v", err)
	}
}

func copyTree(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// sumTree has the content of every file under a directory.
func sumTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, path))
		out[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A backup that was restored to does not share a byte with the nodes, and is restored from again.
func TestRestoreCopies(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s, smallFlushes)
	for range 40 {
		add(t, c, 1, strings.Repeat("x", 4000), 1)
	}
	add(t, c, 2, "a", 1)
	n := leaderOf(t, c, 1)
	flushed(t, n, 1)
	dir := filepath.Join(t.TempDir(), "backup")
	b, err := n.BackupTo(within(t), dir, BackupOptions{})
	if err != nil || !b.Shards[0].HasSnapshot() {
		t.Fatal(b, err)
	}
	before := sumTree(t, dir)
	target := t.TempDir()
	restoreT(t, RestoreOptions{Backup: dir, Cluster: "next", Nodes: nodeDirs(target, 2)})
	if !maps.Equal(before, sumTree(t, dir)) {
		t.Error("the backup has changed")
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		a, err := os.Stat(path)
		if err != nil {
			return err
		}
		return filepath.WalkDir(target, func(other string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if b, err := os.Stat(other); err == nil && os.SameFile(a, b) {
				t.Errorf("%s and %s are the same file", path, other)
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Nodes that were restored in different ways refuse each other, as they refuse those of the old cluster, even if that had the same name.
//
// Mutations with which it was seen to fail, one by one: admit does not compare the origins; the origin does not depend on the positions.
func TestRestoredApart(t *testing.T) {
	old := startCluster(t, t.TempDir(), counters{}, patient10s, keepJournal)
	add(t, old, 1, "a", 10)
	add(t, old, 2, "a", 10)
	dir := filepath.Join(t.TempDir(), "backup")
	b, err := leaderOf(t, old, 1).BackupTo(within(t), dir, BackupOptions{History: true})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	dirs := nodeDirs(target, 3)
	members := []NodeID{1, 2, 3}
	for id, d := range dirs { // each on its own machine, the third to another position
		o := RestoreOptions{Backup: dir, Cluster: "next", Nodes: map[NodeID]string{id: d}, Members: members}
		if id == 3 {
			o.Position = map[ShardID]Index{1: Index(b.Shards[0].Last() - 1)}
		}
		restoreT(t, o)
	}
	c := startRestored(t, &Restored{Cluster: "next", Members: members}, target, counters{})
	add(t, c, 1, "a", 1)
	refused := func(c *Cluster, what string, from, peer NodeID, words string) {
		t.Helper()
		eventually(t, what, func() bool {
			st, err := c.Node(from).Status()
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(st.Peers[peer].LastError, words)
		})
	}
	refused(c, "node 3 is refused", 3, 1, "not restored from the same backup")
	eventually(t, "node 3 is where it was restored to", func() bool {
		st, err := c.Node(3).Shard(1).Status()
		return err == nil && st.Applied == Index(b.Shards[0].Last()-1)
	})

	// By another name, the handshake ends at the name. Node 3 of the old cluster is told the address of a new one.
	stray := old.Node(3).cfg
	old.Kill(3)
	stray.listener = nil
	stray.Peers = maps.Clone(stray.Peers)
	stray.Peers[1] = c.Node(1).Addr()
	n, err := Start(stray)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Kill()
	eventually(t, "the old node is refused by the new cluster", func() bool {
		st, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(st.Peers[1].LastError, "cluster")
	})

	// And by the same name, at the origin.
	same := t.TempDir()
	r := restoreT(t, RestoreOptions{Backup: dir, Cluster: "embedded", SameName: true, Nodes: nodeDirs(same, 3)})
	id, err := loadIdentity(r.Nodes[1])
	if err != nil {
		t.Fatal(err)
	}
	was, err := loadIdentity(old.Node(2).cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	restored := &Node{cfg: Config{Node: 1, Dir: r.Nodes[1]}, identity: id}
	if err := restored.admit(2, was.Data); err == nil || !strings.Contains(err.Error(), "not restored from the same backup") {
		t.Errorf("an old node of the same name: %v", err)
	}
	if err := restored.admit(9, "new"); err != nil {
		t.Errorf("a member that comes later: %v", err)
	}
	other, err := loadIdentity(r.Nodes[2])
	if err != nil {
		t.Fatal(err)
	}
	if err := restored.admit(2, other.Data); err != nil {
		t.Errorf("one that was restored together with it: %v", err)
	}
}

// Changes of members that are in the journal are those of another cluster: they leave no trace but their place.
//
// Mutation with which it was seen to fail: entries are written to the log as they are.
func TestRestoreDropsChangesOfMembers(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	add(t, c, 1, "a", 3)
	add(t, c, 2, "a", 3)
	n := leaderOf(t, c, 1)
	p, err := n.pin(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	tail := p.tail
	p.release()
	last := tail[len(tail)-1]
	for i, kind := range []uint8{1, 2} { // raft's EntryConfChange and EntryConfChangeV2
		tail = append(tail, snapshot.Entry{Index: last.Index + 1 + uint64(i), Term: last.Term, Type: kind, Data: []byte("change")})
	}
	dir := filepath.Join(t.TempDir(), "backup")
	sink, err := snapshot.NewDirSink(vfs.Default, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := snapshot.NewBackupWriter(sink, snapshot.Backup{Cluster: "embedded"}, snapshot.BackupOptions{})
	if err == nil {
		err = w.Add(t.Context(), snapshot.BackupSource{Shard: 1, Entries: (&pinned{tail: tail}).entries(false)})
	}
	if err == nil {
		err = n.backupShard(t.Context(), w, 2, BackupOptions{})
	}
	if err == nil {
		_, err = w.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	r := restoreT(t, RestoreOptions{Backup: dir, Cluster: "next", Nodes: nodeDirs(target, 1)})
	if r.Shards[0].Dropped != 2 || r.Shards[0].Index != Index(last.Index+2) {
		t.Errorf("restored %+v", r.Shards[0])
	}
	again := startRestored(t, r, target, counters{})
	answer, err := again.Client(1).Read(within(t), Linearizable, []byte("a"))
	if got := sum(t, answer, err); got != 3 {
		t.Errorf("%d of 3 are there", got)
	}
	add(t, again, 1, "a", 1)
}

// What an unfinished restore has left is refused by Start, and made anew by the next one.
//
// Mutations with which it was seen to fail, one by one: node.json is written at once; loadIdentity does not look for the unfinished one.
func TestUnfinishedRestore(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s, smallFlushes)
	for range 40 {
		add(t, c, 1, strings.Repeat("x", 4000), 1)
	}
	add(t, c, 2, "a", 1)
	n := leaderOf(t, c, 1)
	flushed(t, n, 1)
	dir := filepath.Join(t.TempDir(), "backup")
	_, err := n.BackupTo(within(t), dir, BackupOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := testkit.Random(t)
	for range 4 {
		target := t.TempDir()
		o := RestoreOptions{Backup: dir, Cluster: "next", Nodes: nodeDirs(target, 2)}
		disk := &endingDisk{machineDisk: theDisk(), logs: 1 + r.IntN(2)}
		_, err := datadir.Restore{Disk: disk, Backup: dir, Cluster: o.Cluster, Nodes: o.Nodes, Members: []NodeID{1, 2}, Logger: c.Node(1).cfg.Logger}.Run(t.Context())
		if !errors.Is(err, errEnding) {
			t.Fatal(err)
		}
		if r.IntN(2) == 0 { // and less than that
			if err := os.RemoveAll(filepath.Join(o.Nodes[1], []string{datadir.WALDir, datadir.StateDir}[r.IntN(2)])); err != nil {
				t.Fatal(err)
			}
		}
		cfg := Config{Cluster: "next", Node: 1, Dir: o.Nodes[1], Peers: map[NodeID]string{1: "127.0.0.1:0", 2: "127.0.0.1:1"}, Shards: c.cfg.Shards}
		if _, err := Start(cfg); err == nil || !strings.Contains(err.Error(), "was being restored") {
			t.Fatalf("started, or %v", err)
		}
		restored := restoreT(t, o)
		again := startRestored(t, restored, target, counters{})
		answer, err := again.Client(2).Read(within(t), Linearizable, []byte("a"))
		if got := sum(t, answer, err); got != 1 {
			t.Errorf("%d of 1 are there", got)
		}
		again.Close()
	}
}

// endingDisk fails after some logs were opened, or when the first node.json gets its name.
type endingDisk struct {
	*machineDisk
	logs int
}

var errEnding = errors.New("as far as this and no further")

func (d *endingDisk) OpenLog(dir string) (datadir.Log, error) {
	if d.logs--; d.logs < 0 {
		return nil, errEnding
	}
	return d.machineDisk.OpenLog(dir)
}

func (d *endingDisk) Rename(from, to string) error {
	if filepath.Base(to) == "node.json" {
		return errEnding
	}
	return d.machineDisk.Rename(from, to)
}

// What a worker has in memory for a backup, and what it has not.
func TestCommittedBounds(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	last := add(t, c, 1, "a", 5)
	n := leaderOf(t, c, 1)
	for _, test := range []struct {
		shard ShardID
		after Index
		want  int
		code  Code
	}{{1, 0, int(last), ""}, {1, last - 2, 2, ""}, {1, last, 0, ""}, {1, last + 1, 0, core.CodeNotReached}, {9, 0, 0, core.CodeNoShard}} {
		var entries []state.JournalEntry
		var applied Index
		var err error
		if e := n.engine.call(t.Context(), 1, func(w *core.Worker) { entries, applied, err = w.Committed(test.shard, test.after) }); e != nil {
			t.Fatal(e)
		}
		if test.code != "" && !isCode(err, test.code) || test.code == "" && (err != nil || len(entries) != test.want || applied != last) {
			t.Errorf("%+v: got %d entries up to %d, %v", test, len(entries), applied, err)
		}
	}
}

// A backup that is under way ends with the node, and does not keep its files open.
func TestBackupEndsWithTheNode(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, patient10s, smallFlushes)
	for range 40 {
		add(t, c, 1, strings.Repeat("x", 4000), 1)
	}
	add(t, c, 2, "a", 1)
	n := leaderOf(t, c, 1)
	flushed(t, n, 1) // what has no snapshot holds nothing of the store
	done := make(chan error)
	go func() {
		_, err := n.Backup(within(t), io.Discard, BackupOptions{BytesPerSecond: 1000})
		done <- err
	}()
	eventually(t, "the backup holds the state", func() bool { return n.store.Metrics().OpenVersions > 0 })
	c.Kill(n.ID())
	if err := <-done; !errors.Is(err, errClosed) {
		t.Errorf("the backup ended with %v", err)
	}
	if err := c.Restart(n.ID()); err != nil {
		t.Errorf("the files are still open: %v", err)
	}
}

// A backup whose receiver takes nothing ends, and lets go of what it holds, although the Write that it was in does not end.
//
// Mutation with which it was seen to fail: no select on the timer.
func TestBackupToNobody(t *testing.T) {
	c := startCluster(t, t.TempDir(), blobs{}, patient10s, smallFlushes, func(cfg *Config) { cfg.BackupStall = 3 * time.Second })
	fillBlobs(t, c, 1, 4<<20, 4000) // more than the buffers on the way take
	n := leaderOf(t, c, 1)
	stuck := make(chan struct{})
	taken := 0
	done := make(chan error, 1)
	go func() {
		_, err := n.Backup(within(t), writerFunc(func(p []byte) (int, error) {
			if taken += len(p); taken > 100 {
				<-stuck
			}
			return len(p), nil
		}), BackupOptions{Shards: []ShardID{1}})
		done <- err
	}()
	var oldest time.Duration
	eventually(t, "the backup holds the state", func() bool {
		oldest = n.store.Metrics().OldestVersion
		return oldest > 100*time.Millisecond
	})
	select {
	case err := <-done:
		if !errors.Is(err, ErrBackupStalled) {
			t.Errorf("the backup ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the backup does not end")
	}
	if n := n.store.Metrics().OpenVersions; n > 0 {
		t.Errorf("it holds %d versions", n)
	}
	close(stuck)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// survivorsOf are the directories of nodes.
func survivorsOf(c *Cluster, ids ...NodeID) (dirs []string) {
	for _, id := range ids {
		dirs = append(dirs, filepath.Join(c.cfg.Dir, fmt.Sprintf("node%d", id)))
	}
	return dirs
}

// staggered makes a cluster of which a minority stops early, one after the other: each has a longer log than the one before.
// last is how often each has seen the counter "sum" of shard 1 incremented.
func staggered(t *testing.T, nodes int) (c *Cluster, last map[NodeID]uint64) {
	t.Helper()
	last = map[NodeID]uint64{}
	c, err := StartCluster(ClusterConfig{
		Name: "lost", Nodes: nodes, Dir: t.TempDir(), Shards: []ShardConfig{{ID: 1, Machine: counters{}}, {ID: 2, Machine: counters{}}},
		Configure: func(cfg *Config) { quick(cfg); cfg.DiskWatermark = -1; smallFlushes(cfg) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	total := uint64(0)
	write := func(n int) {
		client := c.Client(1)
		for range n {
			_, err := client.Submit(within(t), []byte("sum"))
			if err == nil {
				_, err = client.Submit(within(t), []byte(strings.Repeat("x", 4000)))
			}
			if err != nil {
				t.Fatal(err)
			}
			total++
		}
		if _, err := c.Client(2).Submit(within(t), []byte("sum")); err != nil {
			t.Fatal(err)
		}
	}
	write(10)
	majority := nodes/2 + 1
	for id := NodeID(1); int(id) <= nodes-majority; id++ {
		eventually(t, "the node has everything", func() bool {
			want, err := leaderOf(t, c, 1).Shard(1).Status()
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Node(id).Shard(1).Status()
			return err == nil && got.Applied >= want.Applied
		})
		c.Kill(id)
		last[id] = total
		write(10)
	}
	return c, last
}

// What is left of a cluster is inspected without a change, and rebuilt from the best log [of one of three, and of two of five].
//
// Mutations with which it was seen to fail, one by one: the worst log wins; the token is not compared; the entries after the flush are dropped. TestBestLog: terms are not compared.
func TestRecover(t *testing.T) {
	for nodes, left := range map[int][]NodeID{3: {1}, 5: {1, 2}} {
		t.Run(fmt.Sprint(len(left), " of ", nodes), func(t *testing.T) {
			c, last := staggered(t, nodes)
			for id := range NodeID(nodes) {
				c.Kill(id + 1)
			}
			dirs := survivorsOf(c, left...)
			before := map[string]map[string]string{}
			for _, d := range dirs {
				before[d] = sumTree(t, d)
			}
			target := t.TempDir()
			o := RecoverOptions{Survivors: dirs, Backup: filepath.Join(t.TempDir(), "found"), Cluster: "rebuilt", Nodes: nodeDirs(target, 3)}
			plan, err := Inspect(within(t), o)
			if err != nil {
				t.Fatal(err)
			}
			words := plan.String()
			t.Log("\n" + words)
			best := left[len(left)-1]
			if s := plan.Shards[0]; s.Best != best || s.Majority() || len(s.Voters) != nodes || len(s.Present) != len(left) {
				t.Errorf("the plan is %+v, the best log is that of node %d", s, best)
			}
			for _, want := range []string{"MAY BE LOST", "<- the best log", plan.Token, fmt.Sprint("node ", best), dirs[0], "never be started again"} {
				if !strings.Contains(words, want) {
					t.Errorf("the plan does not say %q", want)
				}
			}
			refuse := func(name, want string, change func(*RecoverOptions)) {
				t.Helper()
				o := o
				change(&o)
				if _, _, err := Recover(within(t), o); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: got %v, want %q in it", name, err, want)
				}
			}
			refuse("no token", "inspect first", func(*RecoverOptions) {})
			refuse("a wrong token", "is not that of what is found", func(o *RecoverOptions) { o.Confirm = "1234-5678-9abc" })
			refuse("the token of another plan", "is not that of what is found", func(o *RecoverOptions) { o.Confirm, o.Cluster = plan.Token, "other" })
			refuse("no survivors", "too few nodes", func(o *RecoverOptions) { o.Survivors = nil })
			refuse("not a node", "there is no node.json", func(o *RecoverOptions) { o.Survivors = []string{t.TempDir()} })
			refuse("twice", "both are data of node", func(o *RecoverOptions) { o.Survivors = append(slices.Clone(dirs), copyTree(t, dirs[0])) })
			o.Confirm = plan.Token
			_, r, err := Recover(within(t), o)
			if err != nil {
				t.Fatal(err)
			}
			for d, was := range before {
				if !maps.Equal(was, sumTree(t, d)) {
					t.Errorf("%s has changed", d)
				}
			}
			again := startRestored(t, r, target, counters{})
			answer, err := again.Client(1).Read(within(t), Linearizable, []byte("sum"))
			if got := sum(t, answer, err); got < last[best] || got > last[best]+1 {
				t.Errorf("%d are there, node %d had %d", got, best, last[best])
			}
			add(t, again, 1, "sum", 1)
			add(t, again, 2, "sum", 1)
			sameHashes(t, again, 1)

			// The whole cluster has a majority: nothing to recover.
			all := o
			all.Survivors, all.Nodes, all.Backup, all.Confirm = nil, nodeDirs(t.TempDir(), 1), filepath.Join(t.TempDir(), "found"), ""
			for id := range NodeID(nodes) {
				all.Survivors = append(all.Survivors, survivorsOf(c, id+1)...)
			}
			if plan, err = Inspect(within(t), all); err != nil {
				t.Fatal(err)
			}
			all.Confirm = plan.Token
			if _, _, err := Recover(within(t), all); err == nil || !strings.Contains(err.Error(), "nothing is lost") {
				t.Errorf("with a majority: %v", err)
			}
			all.EvenWithMajority = true
			if _, _, err := Recover(within(t), all); err != nil {
				t.Errorf("with a majority, told so: %v", err)
			}
		})
	}
}

// The best log is the one with the latest last term, however long the others are; what is not known to be committed is kept, and said. It has what any other has flushed.
//
// Mutation with which it was seen to fail: what the others have flushed is not looked at.
func TestBestLog(t *testing.T) {
	s := &survivors{byID: map[NodeID]*survivor{}, plan: &RecoveryPlan{}}
	for id, l := range map[NodeID][]Term{1: {1, 1, 1, 1, 1}, 2: {1, 1, 3}, 3: {1, 1, 2, 2}} {
		v := &survivor{Survivor: Survivor{Node: id, Dir: fmt.Sprint("dir", id)}, stored: map[ShardID]core.Stored{},
			identity: &identity{Cluster: "c", Node: id, Shards: map[ShardID][]NodeID{7: {1, 2, 3, 4, 5, 6, 7}}}}
		v.shards = shardLog(7, l...)
		s.byID[id] = v
		s.plan.Survivors = append(s.plan.Survivors, v.Survivor)
	}
	if err := s.compareLogs(); err != nil {
		t.Fatal(err)
	}
	got := s.plan.Shards[0]
	if got.Best != 2 || got.best().Last != 3 || got.best().LastTerm != 3 || len(got.Missing) != 4 {
		t.Errorf("got %+v", got)
	}
	if words := s.plan.String(); !strings.Contains(words, "KEPT: the entries 2 to 3") || !strings.Contains(words, "even that it did not happen") {
		t.Errorf("got %s", words)
	}
	s.byID[1].shards[7].HardState.Commit = 9
	s.plan.Shards = nil
	if err := s.compareLogs(); err == nil || !strings.Contains(err.Error(), "lost part of its log") {
		t.Errorf("a log that has lost its end: %v", err)
	}
	s.byID[1].shards[7].HardState.Commit = 1
	s.byID[1].stored[7] = core.Stored{Applied: 3, Term: 1}
	s.plan.Shards = nil
	if err := s.compareLogs(); err == nil || !strings.Contains(err.Error(), "entry 3 has term 3 here, and node 1 has flushed it with term 1") {
		t.Errorf("a log without what another has flushed: %v", err)
	}
}

// Who took part is what the log says, also after the last flush: two of three voters are a majority, two of four are none.
func TestRecoverKnowsTheMembers(t *testing.T) {
	c, err := StartCluster(ClusterConfig{Name: "lost", Dir: t.TempDir(), Shards: []ShardConfig{{ID: 1, Machine: counters{}}},
		Configure: func(cfg *Config) { patient10s(cfg); cfg.DiskWatermark = -1 }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	add(t, c, 1, "a", 3)
	four, err := c.Join(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), 4, four.Addr()) }); err != nil {
		t.Fatal(err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.Promote(within(t), 4) }); err != nil {
		t.Fatal(err)
	}
	last := add(t, c, 1, "a", 3)
	eventually(t, "everybody has everything", func() bool {
		for _, n := range c.Nodes() {
			if st, err := n.Shard(1).Status(); err != nil || st.Applied < last {
				return false
			}
		}
		return true
	})
	for id := range NodeID(4) {
		c.Kill(id + 1)
	}
	plan, err := Inspect(within(t), RecoverOptions{Survivors: survivorsOf(c, 1, 2)})
	if err != nil {
		t.Fatal(err)
	}
	s := plan.Shards[0]
	if len(s.Changes) == 0 {
		t.Fatalf("the log shows no change of members after the flush: %+v", s)
	}
	if fmt.Sprint(s.Voters, s.Missing) != "[1 2 3 4] [3 4]" || s.Majority() {
		t.Errorf("voters %v, missing %v, majority %v", s.Voters, s.Missing, s.Majority())
	}
	if words := plan.String(); !strings.Contains(words, "changes the members") || !strings.Contains(words, "MAY BE LOST") {
		t.Errorf("the plan says %s", words)
	}
}

// A majority is one of all voters that may have counted.
func TestMajorityOfSurvivors(t *testing.T) {
	logs := []SurvivorLog{{Node: 1}, {Node: 2}}
	for name, c := range map[string]struct {
		s    RecoveryShard
		want bool
	}{
		"two of three":             {RecoveryShard{Voters: []NodeID{1, 2, 3}}, true},
		"two of four":              {RecoveryShard{Voters: []NodeID{1, 2, 3, 4}}, false},
		"one is being replaced":    {RecoveryShard{Voters: []NodeID{1, 2, 4}, Outgoing: []NodeID{1, 2, 3}}, true},
		"others are being left":    {RecoveryShard{Voters: []NodeID{1, 2, 4}, Outgoing: []NodeID{1, 5, 6}}, false},
		"a change that may be":     {RecoveryShard{Voters: []NodeID{1, 2, 3}, Changes: []SurvivorChange{{Voters: []NodeID{1, 2, 3, 4}}}}, false},
		"a joint one that may be":  {RecoveryShard{Voters: []NodeID{1, 2, 3}, Changes: []SurvivorChange{{Voters: []NodeID{1, 2, 3}, Outgoing: []NodeID{1, 4, 5}}}}, false},
		"a change that was passed": {RecoveryShard{Voters: []NodeID{1, 2, 3}, Changes: []SurvivorChange{{Voters: []NodeID{1, 2, 3, 4}, Committed: true}}}, true},
	} {
		c.s.Logs = logs
		if got := c.s.Majority(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The token must not depend on chance: one who was added later does not know who the voters were.
func TestPlanIsTheSameEveryTime(t *testing.T) {
	for range 20 {
		s := &survivors{byID: map[NodeID]*survivor{}, plan: &RecoveryPlan{}}
		for id := NodeID(1); id <= 4; id++ {
			v := &survivor{Survivor: Survivor{Node: id}, stored: map[ShardID]core.Stored{}, identity: &identity{Cluster: "c", Node: id, Shards: map[ShardID][]NodeID{7: nil}}}
			if id > 2 {
				v.identity.Shards[7] = []NodeID{3, 4, 5}
			}
			s.byID[id] = v
			s.plan.Survivors = append(s.plan.Survivors, v.Survivor)
		}
		s.byID[3].shards = shardLog(7, 1, 1)
		if err := s.compareLogs(); err != nil {
			t.Fatal(err)
		}
		if got := s.plan.Shards[0]; fmt.Sprint(got.Voters) != "[3 4 5]" || !got.Majority() {
			t.Fatalf("got %+v", got)
		}
	}
}

// Inspect refuses what it cannot believe.
func TestInspectRefusals(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, patient10s)
	add(t, c, 1, "a", 3)
	if _, err := Inspect(within(t), RecoverOptions{Survivors: survivorsOf(c, 1)}); err == nil || !strings.Contains(err.Error(), "is running: stop it first") {
		t.Errorf("a node that runs: %v", err)
	}
	eventually(t, "the nodes have met", func() bool {
		id, err := loadIdentity(survivorsOf(c, 2)[0])
		return err == nil && id.Peers[1] != ""
	})
	for id := range NodeID(3) {
		c.Kill(id + 1)
	}
	other, err := StartCluster(ClusterConfig{Name: "other", Nodes: 1, Dir: t.TempDir(), Shards: c.cfg.Shards, Configure: func(cfg *Config) { quick(cfg); cfg.DiskWatermark = -1 }})
	if err != nil {
		t.Fatal(err)
	}
	other.Kill(1)
	mixed := append(survivorsOf(c, 2), survivorsOf(other, 1)...)
	if _, err := Inspect(within(t), RecoverOptions{Survivors: mixed}); err == nil || !strings.Contains(err.Error(), "different clusters") {
		t.Errorf("of two clusters: %v", err)
	}
	stranger := copyTree(t, survivorsOf(c, 1)[0])
	id, err := loadIdentity(stranger)
	if err != nil {
		t.Fatal(err)
	}
	id.Data = "other"
	if err := id.Write(theDisk(), stranger); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(within(t), RecoverOptions{Survivors: append(survivorsOf(c, 2), stranger)}); err == nil || !strings.Contains(err.Error(), "of another time or cluster") {
		t.Errorf("other data than was met: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(stranger, datadir.WALDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(within(t), RecoverOptions{Survivors: []string{stranger}}); err == nil || !strings.Contains(err.Error(), "its log is gone") {
		t.Errorf("without a log: %v", err)
	}
}

// shardLog is a log whose entries have these terms, of which the first is known to be committed.
func shardLog(shard uint64, terms ...Term) map[uint64]*wal.ShardLog {
	l := &wal.ShardLog{HardState: wal.HardState{Term: uint64(terms[len(terms)-1]), Commit: 1}}
	for i, term := range terms {
		l.Entries = append(l.Entries, wal.Entry{Index: uint64(i + 1), Term: uint64(term)})
	}
	return map[uint64]*wal.ShardLog{shard: l}
}
