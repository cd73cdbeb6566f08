package rsm

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/decree-raft/decree/internal/core"
)

// hungDisk has operations of state and snapshots that do not end until the test lets them.
type hungDisk struct {
	hangs atomic.Pointer[func(errorfs.Op) bool]
	hung  chan struct{} // one is
	out   chan struct{}
	once  sync.Once
}

func newHungDisk() *hungDisk {
	return &hungDisk{hung: make(chan struct{}, 1), out: make(chan struct{})}
}

func (d *hungDisk) hang(which func(errorfs.Op) bool) { d.hangs.Store(&which) }

// wait waits until one hangs.
func (d *hungDisk) wait(t *testing.T) {
	t.Helper()
	select {
	case <-d.hung:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing hangs")
	}
}

func (d *hungDisk) release() { d.once.Do(func() { close(d.out) }) }

func (d *hungDisk) wrap(fs vfs.FS) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if which := d.hangs.Load(); which != nil && (*which)(op) {
			select {
			case d.hung <- struct{}{}:
			default:
			}
			<-d.out
		}
		return nil
	}))
}

// soon returns what f returns, and false if it takes very long.
func soon[T any](f func() T) (v T, ok bool) {
	got := make(chan T, 1)
	go func() { got <- f() }()
	select {
	case v = <-got:
		return v, true
	case <-time.After(20 * time.Second):
		return v, false
	}
}

// onHungDisk starts a node alone with one worker for two shards.
func onHungDisk(t *testing.T, disk *hungDisk, options ...option) *Cluster {
	t.Helper()
	c, err := StartCluster(ClusterConfig{Nodes: 1, Dir: t.TempDir(), Shards: []ShardConfig{{ID: 1, Machine: blobs{}}, {ID: 2, Machine: blobs{}}}, Configure: func(cfg *Config) {
		quick(cfg)
		small(cfg)
		cfg.Workers, cfg.DiskWatermark, cfg.Logger, cfg.wrapFS = 1, -1, testLogger(t), disk.wrap
		for _, o := range options {
			o(cfg)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		disk.release()
		_ = c.Close()
	})
	return c
}

// A worker does not wait for a directory of snapshots that is in the middle of something that the disk does not end.
//
// Mutation with which it was seen to fail: removePartials asks on the worker whether there are any.
func TestFlushWhileASnapshotHangs(t *testing.T) {
	disk := newHungDisk()
	c := onHungDisk(t, disk)
	fillBlobs(t, c, 1, 100<<10, 1<<10)
	disk.hang(func(op errorfs.Op) bool { // the directory, as it gets its name
		return op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, ".cut")
	})
	cut := make(chan error, 1)
	go func() {
		_, err := c.Node(1).Shard(1).CutSnapshot(within(t), true)
		cut <- err
	}()
	disk.wait(t)
	s := c.Node(1).Shard(2)
	before, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	fillBlobs(t, c, 2, 300<<10, 1<<10)
	eventually(t, "the other shard is flushed, and its worker answers", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		st, err := s.StatusContext(ctx)
		return err == nil && st.Flushed > before.Flushed
	})
	disk.release()
	if err := <-cut; err != nil {
		t.Error(err)
	}
}

// A cut that its caller leaves, or that the end of the node leaves under way, may be written yet.
//
// Mutations with which it was seen to fail, together: the end of ctx is told as before the cut; the replica that stops does not look whether one is under way.
func TestCutThatIsLeft(t *testing.T) {
	disk := newHungDisk()
	c := onHungDisk(t, disk)
	n := c.Node(1)
	fillBlobs(t, c, 1, 100<<10, 1<<10)
	disk.hang(func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, ".cut") })
	first, second, asked := make(chan error, 1), make(chan error, 1), make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	go func() { _, err := n.Shard(1).CutSnapshot(ctx, true); first <- err }()
	disk.wait(t)
	leave()
	if err, ok := soon(func() error { return <-first }); !ok || !errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeCancelled}) {
		t.Errorf("its caller left: %v, %v", ok, err)
	}
	go func() {
		_, err := n.Shard(1).cut(t.Context(), func(w *core.Worker, f func([]byte, error)) { w.Cut(t.Context(), 1, false, f); close(asked) })
		second <- err
	}()
	<-asked
	go n.Kill()
	if err, ok := soon(func() error { return <-second }); !ok || !errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeClosed}) {
		t.Errorf("the node ended: %v, %v", ok, err)
	}
	disk.release()
}

// A cut whose snapshot has gone again was made all the same.
//
// Mutation with which it was seen to fail: it is said to be not proposed.
func TestCutThatHasGone(t *testing.T) {
	n := onHungDisk(t, newHungDisk()).Node(1)
	if _, err := n.Shard(1).Submit(within(t), blob(1, 1, 1<<10)); err != nil {
		t.Fatal(err)
	}
	manifest, err := n.Shard(1).cut(t.Context(), func(w *core.Worker, f func([]byte, error)) { w.Cut(t.Context(), 1, true, f) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.written(manifest); err != nil {
		t.Error(err)
	}
	for _, s := range n.engine.snaps.List() {
		n.engine.discard(s.ID)
	}
	if _, err := n.written(manifest); !errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeCompacted}) {
		t.Errorf("it has gone: %v", err)
	}
}

// Nor does it for the installation of another state, if a backup comes meanwhile. The backup does.
//
// Mutation with which it was seen to fail: pin cuts with Cut.
func TestBackupWhileAnInstallationHangs(t *testing.T) {
	disk := newHungDisk()
	bad := counters{onApply: func(_ State, e Event) {
		if strings.HasSuffix(string(e.Data), "bomb") {
			panic("boom")
		}
	}}
	c := startCluster(t, t.TempDir(), counters{}, small, onNode(3, bad), func(cfg *Config) {
		cfg.Workers = 1
		if cfg.Node == 3 {
			cfg.wrapFS = disk.wrap
		}
	})
	t.Cleanup(disk.release)
	fill(t, c, 2, 0, 500)
	sameEverywhere(t, c, 2, 1, 2, 3)
	flushed(t, c.Node(3), 2) // else there is nothing to take hold of in the store
	followers(t, c, 3)
	if _, err := c.Client(1).Submit(within(t), []byte("bomb")); err != nil {
		t.Fatal(err)
	}
	n := c.Node(3)
	stoppedWith(t, n.Shard(1), core.CodeApplyPanic)
	disk.hang(func(op errorfs.Op) bool { // as pebble takes a table of shard 1
		return op.Kind == errorfs.OpLink && strings.HasPrefix(filepath.Base(op.Path), "1-") && filepath.Base(filepath.Dir(op.Path)) == "ingest"
	})
	repaired := make(chan error, 1)
	go func() { repaired <- n.Shard(1).Repair(within(t)) }()
	disk.wait(t)
	if err, ok := soon(func() error { _, err := n.pin(within(t), 2); return err }); !ok || !isCode(err, core.CodeNotReached) {
		t.Errorf("pinned: %v, and it ended: %v", err, ok)
	}
	backedUp := make(chan error, 1)
	go func() {
		_, err := n.Backup(within(t), io.Discard, BackupOptions{Shards: []ShardID{2}})
		backedUp <- err
	}()
	if err, ok := soon(func() error { _, err := n.Shard(2).Status(); return err }); !ok || err != nil {
		t.Errorf("the worker answers: %v, %v", ok, err)
	}
	disk.release()
	if err := <-repaired; err != nil {
		t.Errorf("repaired: %v", err)
	}
	if err := <-backedUp; err != nil {
		t.Errorf("backed up: %v", err)
	}
}

// Status and scrapes have an end while the store's manifest is being written and that has none, and say for how long the flush has been under way.
//
// Mutation with which it was seen to fail: Store.Metrics asks pebble itself.
func TestMetricsOfAStoreThatHangs(t *testing.T) {
	disk, r := newHungDisk(), prometheus.NewRegistry()
	n := onHungDisk(t, disk, func(cfg *Config) { cfg.Metrics = r }).Node(1)
	before, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	disk.hang(func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpFileSync && strings.HasPrefix(filepath.Base(op.Path), "MANIFEST-")
	})
	n.Shard(1).Go(Request{Commands: [][]byte{blob(1, 1, 100<<10)}})
	disk.wait(t)
	for range 3 {
		if st, ok := soon(func() NodeStatus { st, _ := n.StatusContext(within(t)); return st }); !ok || len(st.Shards) != 2 || st.StateBytes != before.StateBytes {
			t.Fatalf("it ended: %v, with %d shards and %d bytes on disk, %d before", ok, len(st.Shards), st.StateBytes, before.StateBytes)
		}
	}
	age, ok := soon(func() (age float64) {
		families, _ := r.Gather()
		for _, f := range families {
			if f.GetName() == "decree_node_store_oldest_flush_seconds" {
				age = f.Metric[0].GetGauge().GetValue()
			}
		}
		return age
	})
	if !ok || age <= 0 {
		t.Errorf("a scrape ended: %v; the oldest flush is %v s old", ok, age)
	}
}

// A backup to a directory whose disk hangs ends as one to nobody does (TestBackupToNobody), and when the disk answers nothing is left of it.
//
// Mutations with which it was seen to fail: BackupTo writes into the directory itself; it looks into the directory itself, before; what was written is not removed.
func TestBackupToAHungDisk(t *testing.T) {
	for name, hangs := range map[string]errorfs.OpKind{"list": errorfs.OpList, "create": errorfs.OpCreate, "write": errorfs.OpFileWrite, "sync": errorfs.OpFileSyncData} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, t.TempDir(), blobs{}, patient10s, smallFlushes, func(cfg *Config) { cfg.BackupStall = time.Second })
			fillBlobs(t, c, 1, 200<<10, 4000)
			n, disk, dir := leaderOf(t, c, 1), newHungDisk(), filepath.Join(t.TempDir(), "backup")
			t.Cleanup(disk.release)
			eventually(t, "there is something to read", func() bool {
				st, err := n.Shard(1).Status()
				return err == nil && st.Flushed > 0
			})
			disk.hang(func(op errorfs.Op) bool {
				return op.Kind == hangs && (hangs == errorfs.OpList || strings.HasSuffix(op.Path, ".sst"))
			})
			err, ok := soon(func() error {
				_, err := n.backupTo(within(t), disk.wrap(vfs.Default), dir, BackupOptions{Shards: []ShardID{1}})
				return err
			})
			if !ok || !errors.Is(err, ErrBackupStalled) {
				t.Errorf("the backup ended: %v, with %v", ok, err)
			}
			if n := n.store.Metrics().OpenVersions; n > 0 {
				t.Errorf("it holds %d versions", n)
			}
			disk.release()
			eventually(t, "nothing is left", func() bool {
				left, err := os.ReadDir(dir)
				return err == nil && len(left) == 0
			})
		})
	}
}

// A backup whose caller stops waiting ends as soon as the disk has done what it is about, and then nobody writes into the directory any more.
//
// Mutation with which it was seen to fail: clear does not wait.
func TestBackupToEndsWithItsContext(t *testing.T) {
	c := startCluster(t, t.TempDir(), blobs{}, smallFlushes, func(cfg *Config) { cfg.BackupStall = time.Hour })
	fillBlobs(t, c, 1, 200<<10, 4000)
	n, disk, dir := leaderOf(t, c, 1), newHungDisk(), filepath.Join(t.TempDir(), "backup")
	t.Cleanup(disk.release)
	disk.hang(func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileWrite })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.backupTo(ctx, disk.wrap(vfs.Default), dir, BackupOptions{Shards: []ShardID{1}})
		ended <- err
	}()
	disk.wait(t)
	cancel()
	select {
	case err := <-ended:
		t.Errorf("it ended beside a write: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	disk.release()
	if err, ok := soon(func() error { return <-ended }); !ok || !errors.Is(err, context.Canceled) {
		t.Errorf("it ended: %v, with %v", ok, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d names are left: %v", len(left), err)
	}
}
