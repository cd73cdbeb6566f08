package rsm

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sys/unix"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/snapshot"
)

// A tinyDisk is a file system in memory of which the size can be changed at any time, so that it is full at the very moment that a test wants.
// It is mounted nowhere: it is reached through its descriptor alone, and gone with that.
type tinyDisk struct {
	fd   int
	root string
}

// roomy is room for all that these tests write.
const roomy = 1 << 30

func newTinyDisk(t *testing.T) *tinyDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a file system that can be full takes root")
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("no tmpfs can be made here: %v", err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "size", fmt.Sprint(roomy)), unix.FsconfigCreate(fs)); err != nil {
		t.Skipf("no tmpfs can be made here: %v", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &tinyDisk{fd: fd, root: fmt.Sprintf("/proc/self/fd/%d", fd)}
}

// leave has that much room from now on, in whole pages.
func (d *tinyDisk) leave(room uint64) error {
	fs, err := unix.Fspick(d.fd, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for range 1000 { // who writes meanwhile has the kernel refuse a size that is too small by then
		var st unix.Statfs_t
		if err = unix.Fstatfs(d.fd, &st); err != nil {
			return err
		}
		used := (st.Blocks - st.Bfree) * uint64(st.Bsize)
		if err = unix.FsconfigSetString(fs, "size", fmt.Sprint(used+room)); err == nil {
			err = unix.FsconfigReconfigure(fs)
		}
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return err
}

// snare is what a test has the disk do when the node does something with a file of state or snapshots.
type snare struct {
	f atomic.Pointer[func(op errorfs.Op) error]
}

func (s *snare) set(f func(op errorfs.Op) error) { s.f.Store(&f) }

func (s *snare) wrap(fs vfs.FS) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if f := s.f.Load(); f != nil {
			return (*f)(op)
		}
		return nil
	}))
}

// writes reports whether something is written into a file whose path has all of these parts.
func writes(op errorfs.Op, parts ...string) bool {
	ok := op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileWriteAt
	for _, p := range parts {
		ok = ok && strings.Contains(op.Path, p)
	}
	return ok
}

// sayings is what nodes say in their logs.
type sayings struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *sayings) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(p)
}

// said reports whether there is a line with all of these words.
func (s *sayings) said(words ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.all.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

const (
	full     = NodeID(3) // whose disk it is that is full
	noRoom   = "no space left on device"
	fullRows = 2000
)

// fullDisk is a cluster of three, one of them on a tinyDisk.
type fullDisk struct {
	*testing.T
	c    *Cluster
	disk *tinyDisk
	snare
	sayings
	load   *load
	loaded ShardID // by load
	keys   int     // that were made by grow
}

var diskFullInShort = map[string]bool{
	"TestDiskFull/record_of_the_log_of_a_leader": true, "TestDiskFull/flush_of_a_follower": true, "TestDiskFull/fetch": true,
}

func startFullDisk(t *testing.T, options ...option) *fullDisk {
	if testing.Short() && !diskFullInShort[t.Name()] {
		t.Skip("one of the log, one of a flush and one of a snapshot are enough with -short")
	}
	f := &fullDisk{T: t, disk: newTinyDisk(t)}
	f.c = startCluster(t, t.TempDir(), counters{}, append([]option{func(cfg *Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&f.sayings, nil))
		cfg.LogSegments, cfg.segmentBytes = 1000, 8<<20 // nobody is asked to flush for the log's sake
		if cfg.Node == full {
			cfg.Dir, cfg.wrapFS = filepath.Join(f.disk.root, "node"), f.snare.wrap
		}
	}}, options...)...)
	f.load, f.loaded = startLoad(t, f.c, 1, 4), 1
	t.Cleanup(func() {
		select {
		case <-f.load.done:
		default: // the test has ended early, and nobody may fail after it
			f.load.finish(t)
		}
		if t.Failed() {
			f.mu.Lock()
			defer f.mu.Unlock()
			all := f.all.Bytes()
			t.Logf("the nodes said, at last:\n%s", all[max(0, len(all)-16<<10):])
		}
	})
	return f
}

// fill leaves that much room.
func (f *fullDisk) fill(room uint64) {
	if err := f.disk.leave(room); err != nil {
		f.Errorf("the disk cannot be filled: %v", err)
	}
}

// grow adds keys to shard 1, through whoever leads it, many in one entry.
func (f *fullDisk) grow(keys int) {
	f.Helper()
	f.growBy(keys, 200)
}

func (f *fullDisk) growBy(keys, perEntry int) {
	f.Helper()
	client := f.c.Client(1)
	for n := 0; n < keys; n += perEntry {
		var commands [][]byte
		for range perEntry {
			commands = append(commands, fmtKey(f.keys))
			f.keys++
		}
		if _, err := client.SubmitAll(within(f), commands...); err != nil {
			f.Fatal(err)
		}
	}
}

// led has node full lead shard 1, or not.
func (f *fullDisk) led(leads bool) {
	f.Helper()
	eventually(f, "the roles are as they are to be", func() bool {
		at := leaderOf(f, f.c, 1).ID()
		if (at == full) == leads {
			return true
		}
		to := full
		if at == full {
			to = 1
		}
		_ = f.c.Node(at).Shard(1).TransferLeadership(within(f), to) // leadership may have gone meanwhile
		return false
	})
}

// others go on.
func (f *fullDisk) othersGoOn() {
	f.Helper()
	before := f.load.total()
	eventually(f, "the load goes on", func() bool { return f.load.total() >= before+50 })
}

// stops waits for the node to stop by itself, with these words.
func (f *fullDisk) stops(words ...string) {
	f.Helper()
	n := f.c.Node(full)
	select {
	case <-n.Done():
	case <-within(f).Done():
		f.Fatalf("the node goes on: %v", n.Ready())
	}
	err := n.Err()
	if err == nil || !errors.Is(err, ErrBroken) {
		f.Fatalf("the node stopped with %v", err)
	}
	for _, w := range append(words, noRoom) {
		if !strings.Contains(err.Error(), w) {
			f.Errorf("the node stopped with %q, which does not say %q", err, w)
		}
	}
	if !f.said("node stops", noRoom) {
		f.Error("the log does not say why the node stops")
	}
	f.c.Kill(full)
	f.othersGoOn()
}

// flush has the node write what it has of shard 1, and does not wait for that: it may end with the node.
func (f *fullDisk) flush() {
	s := f.c.Node(full).Shard(1)
	go func() { _, _ = s.CutSnapshot(f.Context(), true) }()
}

// restartWithoutRoom starts the node although nothing has changed: it says so, or has room enough.
func (f *fullDisk) restartWithoutRoom() {
	f.Helper()
	f.snare.f.Store(nil)
	err := f.c.Restart(full)
	if err != nil && !strings.Contains(err.Error(), noRoom) {
		f.Errorf("a start without room: %v", err)
	}
	f.Logf("a start without room: %v", err)
	f.c.Kill(full)
}

// stays makes sure that the node is in service although its disk is full.
func (f *fullDisk) stays() {
	f.Helper()
	if missing := f.c.Node(full).Ready(); len(missing) > 0 {
		f.Fatalf("not in service: %v", missing)
	}
	f.othersGoOn()
}

// restart starts a node. Another program may have its port for a moment.
func (f *fullDisk) restart(id NodeID) {
	f.Helper()
	eventually(f, "the node starts", func() bool {
		err := f.c.Restart(id)
		if err != nil && f.said("files are left open") { // a node that has failed waits for a second only
			f.Skipf("this machine is too slow to close a node that has failed, so that only another process could start it again: %v", err)
		}
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			f.Fatalf("with room again: %v", err)
		}
		return err == nil
	})
}

// heals gives the node room, has it started if it is not running, and makes it one of a majority that is without another node. Nothing is lost, nothing
// is there twice, and all replicas are the same.
func (f *fullDisk) heals() {
	f.Helper()
	f.snare.f.Store(nil)
	f.fill(roomy)
	if f.c.Node(full) == nil {
		f.restart(full)
	}
	f.c.Kill(1)
	f.othersGoOn()
	f.restart(1)
	f.grow(fullRows)
	f.load.finish(f)
	f.load.check(f, f.c, f.loaded)
	client := f.c.Client(1)
	for i := range f.keys {
		if i%97 != 0 && i != f.keys-1 {
			continue
		}
		answer, err := client.Read(within(f), Linearizable, fmtKey(i))
		if got := sum(f, answer, err); got != 1 {
			f.Errorf("key %d, which was acknowledged, was counted %d times", i, got)
		}
	}
	sameHashes(f, f.c, 1)
	sameHashes(f, f.c, 2)
}

// rest moves the load to shard 2. Nothing of shard 1 is flushed any more that was flushed once: a flush that finds no room ends the node.
func (f *fullDisk) rest() {
	f.Helper()
	f.load.finish(f)
	f.load.check(f, f.c, f.loaded)
	f.load, f.loaded = startLoad(f, f.c, 2, 4), 2
}

// behind has the node miss more than any journal has, so that it is given a snapshot when it starts.
func (f *fullDisk) behind() {
	f.Helper()
	f.led(false)
	f.c.Kill(full)
	f.grow(4 * fullRows)
	eventually(f, "the journal does not reach back to it any more", func() bool {
		f.grow(200)
		st, err := leaderOf(f, f.c, 1).Shard(1).Status()
		return err == nil && st.JournalShort
	})
}

// manyFlushes has the others keep a short journal; the node itself does not flush but when it is told to.
func manyFlushes(cfg *Config) {
	if cfg.Node != full {
		cfg.Limits.FlushBytes = 64 << 10
	}
	cfg.Limits.LogCacheBytes, cfg.JournalMaxBytes = 1, 512<<10
}

// The disk of one of three nodes is full, in the middle of whatever the node writes there [G10, G11]. What was acknowledged is there, the others go on, the node says
// why it does not, and when there is room again it goes on, or a restart does it.
//
// Mutations with which it was seen to fail, one by one: what a file of a flush's table or of a cut returns is ignored, or what the log's Append does; a replica goes on after an installation that
// failed; a cut, or a backup, that failed is not removed; a state store that failed keeps its directory's lock.
func TestDiskFull(t *testing.T) {
	for _, leads := range []bool{true, false} {
		role := map[bool]string{true: "leader", false: "follower"}[leads]

		t.Run("segment of the log of a "+role, func(t *testing.T) {
			f := startFullDisk(t, func(cfg *Config) { cfg.segmentBytes = 256 << 10 })
			f.grow(fullRows)
			f.led(leads)
			f.fill(0)
			f.grow(2 * fullRows)
			f.stops("the write-ahead log could not be written")
			f.restartWithoutRoom()
			f.heals()
		})

		t.Run("record of the log of a "+role, func(t *testing.T) {
			const segment, perEntry = 256 << 10, 4000 // an entry of half a megabyte has a segment of its own, which grows
			f := startFullDisk(t, func(cfg *Config) { cfg.segmentBytes = segment })
			f.led(leads)
			logDir := filepath.Join(f.disk.root, "node", "wal", "log")
			eventually(t, "the next segment is allocated", func() bool {
				names, err := filepath.Glob(filepath.Join(logDir, "*.tmp"))
				return err == nil && len(names) > 0
			})
			f.fill(segment / 4)
			f.growBy(perEntry, perEntry)
			f.stops("the write-ahead log could not be written")
			names, err := filepath.Glob(filepath.Join(logDir, "*.wal"))
			if err != nil || len(names) == 0 {
				t.Fatal(names, err)
			}
			last, err := os.Stat(names[len(names)-1])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("the last segment has %d of %d bytes", last.Size(), segment)
			f.restartWithoutRoom()
			f.heals()
		})

		t.Run("flush of a "+role, func(t *testing.T) {
			f := startFullDisk(t)
			f.grow(2 * fullRows)
			f.led(leads)
			pieces := 0
			f.set(func(op errorfs.Op) error {
				if writes(op, "/state/ingest/") {
					if pieces++; pieces == 2 {
						f.fill(0)
					}
				}
				return nil
			})
			f.flush()
			f.stops("could not be flushed")
			f.restartWithoutRoom()
			f.heals()
		})
	}

	t.Run("manifest of a flush", func(t *testing.T) {
		f := startFullDisk(t)
		f.grow(fullRows)
		f.set(func(op errorfs.Op) error { // a manifest grows by pages, and seldom needs one
			if writes(op, "/state/", "MANIFEST-") {
				return syscall.ENOSPC
			}
			return nil
		})
		f.flush()
		f.stops("the state")
		f.heals()
	})

	t.Run("cut", func(t *testing.T) {
		f := startFullDisk(t)
		f.grow(2 * fullRows)
		f.rest()
		pieces := 0
		f.set(func(op errorfs.Op) error {
			if writes(op, "/snap/", ".cut/") {
				if pieces++; pieces == 3 {
					f.fill(0)
				}
			}
			return nil
		})
		s := f.c.Node(full).Shard(1)
		if _, err := s.CutSnapshot(within(t), true); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("a cut without room: %v", err)
		}
		f.stays()
		names, err := os.ReadDir(filepath.Join(f.disk.root, "node", "snap"))
		if err != nil || len(names) > 0 {
			t.Errorf("the cut has left %v, %v", names, err)
		}
		f.snare.f.Store(nil)
		f.fill(roomy)
		info, err := s.CutSnapshot(within(t), true)
		if err != nil {
			t.Fatalf("a cut with room again: %v", err)
		}
		if _, err := snapshot.Verify(within(t), vfs.Default, info.Dir); err != nil {
			t.Error(err)
		}
		f.heals()
	})

	t.Run("fetch", func(t *testing.T) {
		f := startFullDisk(t, manyFlushes)
		f.behind()
		pieces := 0
		f.set(func(op errorfs.Op) error {
			if writes(op, "/snap/", ".part/") {
				if pieces++; pieces == 2 {
					f.fill(0)
				}
			}
			return nil
		})
		if err := f.c.Restart(full); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the node says that it has no room for the snapshot", func() bool {
			return f.said("a snapshot could not be fetched", "disk space") || f.said("a snapshot could not be fetched", noRoom)
		})
		eventually(t, "the leader says so", func() bool { return f.said("a follower could not fetch the snapshot") })
		f.stays()
		if st, err := f.c.Node(full).Shard(1).Status(); err != nil || st.Stats.SnapshotsInstalled > 0 {
			t.Fatalf("there is room after all: %+v, %v", st, err)
		}
		f.heals()
	})

	t.Run("installation", func(t *testing.T) {
		f := startFullDisk(t, manyFlushes)
		f.behind()
		pieces := 0
		f.set(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpLink {
				return syscall.EXDEV // a file system without links: what is fetched is copied
			}
			if writes(op, "/state/ingest/") {
				if pieces++; pieces == 2 {
					f.fill(0)
				}
			}
			return nil
		})
		if err := f.c.Restart(full); err != nil {
			t.Fatal(err)
		}
		err := stoppedWith(t, f.c.Node(full).Shard(1), core.CodeStorage)
		if !strings.Contains(err.Error(), "could not be installed") || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the replica stopped with %v", err)
		}
		if missing := strings.Join(f.c.Node(full).Ready(), "; "); !strings.Contains(missing, noRoom) {
			t.Errorf("the node says that it lacks %q", missing)
		}
		f.othersGoOn()
		eventually(t, "the other shard goes on on this node", func() bool {
			st, err := f.c.Node(full).Shard(2).Status()
			return err == nil && st.Err == nil
		})
		f.c.Kill(full)
		f.restartWithoutRoom()
		f.heals()
	})

	t.Run("manifest of an installation", func(t *testing.T) {
		f := startFullDisk(t, manyFlushes)
		f.behind()
		var linked atomic.Bool
		f.set(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpLink {
				linked.Store(true)
			}
			if linked.Load() && writes(op, "/state/", "MANIFEST-") {
				return syscall.ENOSPC
			}
			return nil
		})
		if err := f.c.Restart(full); err != nil {
			t.Fatal(err)
		}
		f.stops("the state store failed")
		f.heals()
	})

	t.Run("backup", func(t *testing.T) {
		f := startFullDisk(t)
		f.grow(8 * fullRows)
		f.rest()
		n, dir := f.c.Node(full), filepath.Join(f.disk.root, "backup")
		if _, err := n.Shard(1).CutSnapshot(within(t), true); err != nil { // and so a flush
			t.Fatal(err)
		}
		filled := false
		_, err := n.BackupTo(within(t), dir, BackupOptions{TableBytes: 256 << 10, Progress: func(p snapshot.Progress) {
			if !filled && p.Bytes > 0 {
				filled = true
				f.fill(8 << 10)
			}
		}})
		if err == nil || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, snapshot.ErrNoSpace) {
			t.Fatalf("a backup without room: %v", err)
		}
		f.stays()
		if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
			t.Errorf("the backup has left %v, %v", names, err)
		}
		f.fill(roomy)
		if _, err := n.BackupTo(within(t), dir, BackupOptions{}); err != nil {
			t.Fatalf("a backup with room again: %v", err)
		}
		if _, err := snapshot.VerifyBackup(within(t), vfs.Default, dir, nil); err != nil {
			t.Error(err)
		}
		f.heals()
	})
}
