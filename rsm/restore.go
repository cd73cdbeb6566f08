package rsm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// RestoreOptions say what a backup is restored to.
type RestoreOptions struct {
	// Backup is the directory of a complete backup. A stream is unpacked first, see snapshot.UnpackBackup. Required.
	Backup string
	// Cluster is the name of the new cluster, 1 to 64 bytes. It must not be that of the cluster that the backup is of: nodes of the
	// old one that are still somewhere must never talk to the new ones. Required.
	Cluster string
	// SameName allows it to be the same. Every node of the old cluster must be gone for ever.
	SameName bool
	// Nodes has the data directory of every node that is made here. Directories must be missing or empty. Required.
	Nodes map[NodeID]string
	// Members are all nodes of the new cluster, the voters of its shards. Default: those of Nodes. Where each node is made on its own
	// machine, every call is given the same Backup, Cluster, Members, Voters, Position and Until; nodes that were not refuse each other.
	Members []NodeID
	// Voters of shards that not all Members host.
	Voters map[ShardID][]NodeID
	// Position has the log position that a shard is restored to, by default the last one in the backup.
	Position map[ShardID]Index
	// Until restores every shard to its last entry that is not later, by the clock that leaders had. Not together with Position.
	Until time.Time
	// Progress is called now and then on the caller's goroutine; nil: not called.
	Progress func(snapshot.Progress)
	// Logger: default none.
	Logger *slog.Logger

	// segmentBytes of the logs, if not zero; tests want many segments.
	segmentBytes int64
}

// Restored is what a restore has made.
type Restored struct {
	Cluster string
	Nodes   map[NodeID]string // directories
	Members []NodeID
	Shards  []RestoredShard
}

// RestoredShard is a shard of a new cluster.
type RestoredShard struct {
	Shard    ShardID
	Voters   []NodeID
	Index    Index     // the position that it was restored to; its log goes on after it
	Term     Term      // of that entry
	Time     Timestamp // of the last entry up to it that has one; 0: there is none
	Snapshot Index     // of the snapshot; 0: there was none, all of it is applied anew
	Entries  uint64    // after the snapshot, which are applied when the node starts
	Dropped  uint64    // of those, changes of members of the old cluster; they are empty now
}

// Restore makes the data directories of nodes of a new cluster from a backup, which is verified first, every byte of it. The nodes are then started with Start, with Config.Cluster, Node and the
// shards' Voters as they are given here, and go on from the position of the backup: state, sessions and the log after it. All nodes get the same.
//
// A directory is complete when it has a node.json, which comes last, in all of them at the end. What a crash or an error leaves, Start refuses, and another Restore replaces.
// An error names what is wrong; the backup is never changed.
func Restore(ctx context.Context, o RestoreOptions) (*Restored, error) {
	r := &restore{RestoreOptions: o}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	return &r.out, nil
}

// restore is a Restore under way.
type restore struct {
	RestoreOptions
	backup *snapshot.Backup
	out    Restored
}

func (r *restore) run(ctx context.Context) error {
	if err := r.check(); err != nil {
		return err
	}
	// Before hours of reading: what the manifest alone tells.
	b, err := snapshot.ReadBackup(vfs.Default, r.Backup)
	if err != nil {
		return err
	}
	r.backup = b
	if b.Cluster == r.Cluster && !r.SameName {
		return fmt.Errorf("the backup is of a cluster of the same name, %q: choose another, so that no node of the old cluster can ever talk to one of the new; "+
			"if all of them are gone for good, SameName allows it", b.Cluster)
	}
	if err := r.settleVoters(); err != nil {
		return err
	}
	for _, id := range r.nodes() {
		if err := refuseUsed(r.Nodes[id]); err != nil {
			return err
		}
	}
	if _, err := snapshot.VerifyBackup(ctx, vfs.Default, r.Backup, r.Progress); err != nil {
		return err
	}
	if err := r.settlePositions(ctx); err != nil {
		return err
	}
	for _, id := range r.nodes() {
		if err := r.node(ctx, id); err != nil {
			return fmt.Errorf("node %d in %s: %w", id, r.Nodes[id], err)
		}
	}
	for _, id := range r.nodes() {
		if err := r.finish(id); err != nil {
			return fmt.Errorf("node %d in %s: %w", id, r.Nodes[id], err)
		}
	}
	return nil
}

// nodes are the ids of the nodes that are made here, ascending.
func (r *restore) nodes() []NodeID { return slices.Sorted(maps.Keys(r.Nodes)) }

// check looks at the options alone.
func (r *restore) check() error {
	if len(r.Members) == 0 {
		r.Members = r.nodes()
	}
	r.Members = slices.Sorted(slices.Values(r.Members))
	switch {
	case r.Backup == "":
		return errors.New("RestoreOptions.Backup is empty: name the directory of a backup")
	case len(r.Cluster) < 1 || len(r.Cluster) > 64:
		return fmt.Errorf("RestoreOptions.Cluster is %q: 1 to 64 bytes", r.Cluster)
	case len(r.Nodes) == 0:
		return errors.New("RestoreOptions.Nodes is empty: too few nodes, a cluster needs at least one")
	case r.Members[0] == 0:
		return errors.New("there is a node 0: ids start at 1")
	case len(slices.Compact(slices.Clone(r.Members))) != len(r.Members):
		return fmt.Errorf("RestoreOptions.Members has a node twice: %v", r.Members)
	case len(r.Position) > 0 && !r.Until.IsZero():
		return errors.New("RestoreOptions.Position and Until are both set: give one")
	}
	dirs := map[string]NodeID{}
	for _, id := range r.nodes() {
		if !slices.Contains(r.Members, id) {
			return fmt.Errorf("node %d is to be made, but is not among the members %v", id, r.Members)
		}
		dir, err := filepath.Abs(r.Nodes[id])
		if err != nil || r.Nodes[id] == "" {
			return fmt.Errorf("node %d has no directory (%q)", id, r.Nodes[id])
		}
		if other, taken := dirs[dir]; taken {
			return fmt.Errorf("nodes %d and %d have the same directory, %s", other, id, dir)
		}
		dirs[dir] = id
	}
	return nil
}

// settleVoters finds out who hosts what.
func (r *restore) settleVoters() error {
	for id := range r.Voters {
		if r.backup.Find(uint64(id)) == nil {
			return fmt.Errorf("RestoreOptions.Voters has shard %d, of which the backup has nothing", id)
		}
	}
	hosts := map[NodeID]bool{}
	for i := range r.backup.Shards {
		s := &r.backup.Shards[i]
		voters, given := r.Voters[ShardID(s.Shard)]
		if voters = slices.Sorted(slices.Values(voters)); !given {
			voters = r.Members
		}
		if len(voters) == 0 || len(slices.Compact(slices.Clone(voters))) != len(voters) {
			return fmt.Errorf("shard %d has the voters %v: too few nodes, or one of them twice", s.Shard, voters)
		}
		for _, v := range voters {
			if !slices.Contains(r.Members, v) {
				return fmt.Errorf("voter %d of shard %d is not among the members %v", v, s.Shard, r.Members)
			}
			hosts[v] = true
		}
		r.out.Shards = append(r.out.Shards, RestoredShard{Shard: ShardID(s.Shard), Voters: voters, Snapshot: Index(s.Index)})
	}
	for _, id := range r.nodes() {
		if !hosts[id] {
			return fmt.Errorf("node %d would host no shard", id)
		}
	}
	r.out.Cluster, r.out.Nodes, r.out.Members = r.Cluster, r.Nodes, r.Members
	return nil
}

// settlePositions finds out what each shard is restored to, and what its log holds up to there.
func (r *restore) settlePositions(ctx context.Context) error {
	for id := range r.Position {
		if r.backup.Find(uint64(id)) == nil {
			return fmt.Errorf("RestoreOptions.Position has shard %d, of which the backup has nothing", id)
		}
	}
	for i := range r.out.Shards {
		out, s := &r.out.Shards[i], &r.backup.Shards[i]
		out.Index, out.Term, out.Time = Index(s.Last()), Term(s.Term), Timestamp(s.Time)
		if at, given := r.Position[out.Shard]; given {
			if uint64(at) < s.First() || uint64(at) > s.Last() {
				return fmt.Errorf("shard %d cannot be restored to position %d: the backup has %d to %d", s.Shard, at, s.First(), s.Last())
			}
			out.Index = at
		}
		if err := r.scan(ctx, s, out); err != nil {
			return err
		}
	}
	return nil
}

// scan reads the journal up to the position.
func (r *restore) scan(ctx context.Context, s *snapshot.BackupShard, out *RestoredShard) error {
	until := Timestamp(0)
	if !r.Until.IsZero() {
		until = Timestamp(r.Until.UnixNano())
		if s.HasSnapshot() && Timestamp(s.Time) > until {
			return fmt.Errorf("shard %d cannot be restored to %v: the backup begins with its state of %v", s.Shard, r.Until, time.Unix(0, s.Time))
		}
	}
	to, seen := out.Index, RestoredShard{Index: out.Snapshot, Term: out.Term, Time: out.Time}
	for e, err := range s.Entries(ctx, vfs.Default, r.Backup, s.Index+1, uint64(to)) {
		if err != nil {
			return err
		}
		at, timed := core.EntryTime(e.Type, e.Data)
		if timed && until != 0 && at > until {
			if seen.Time == 0 {
				return fmt.Errorf("shard %d cannot be restored to %v: its first decision is of %v", s.Shard, r.Until, at.Time())
			}
			break
		}
		if timed {
			seen.Time = at
		}
		if _, changes := core.NeutralEntry(wal.Entry(e)); changes {
			seen.Dropped++
		}
		seen.Index, seen.Term = Index(e.Index), Term(e.Term)
		seen.Entries++
	}
	if until == 0 && seen.Index != to {
		return fmt.Errorf("shard %d: the journal ends at %d, expected was %d", s.Shard, seen.Index, to)
	}
	out.Index, out.Term, out.Time, out.Entries, out.Dropped = seen.Index, seen.Term, seen.Time, seen.Entries, seen.Dropped
	return nil
}

// The names in a data directory.
const (
	walDir   = "wal"
	stateDir = "state"
)

// refuseUsed refuses a directory that has something in it, but for what an unfinished restore has left.
func refuseUsed(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	unfinished, begun := false, false
	for _, d := range names {
		switch d.Name() {
		case filepath.Base(unfinishedFile(dir)):
			unfinished = true
		case walDir, stateDir:
			begun = true
		case filepath.Base(identityFile(dir)) + ".tmp":
		default:
			return fmt.Errorf("%s is in use: it has %s in it, and nothing is overwritten: name a new directory, or empty this one", dir, d.Name())
		}
	}
	if begun && !unfinished {
		return fmt.Errorf("%s is in use: it has data without a node.json, and nothing is overwritten: name a new directory, or empty this one", dir)
	}
	return nil
}

// origin is what all nodes that are restored together have in common: see identity.Data.
func (r *restore) origin() (string, error) {
	raw, err := r.backup.Encode()
	if err != nil {
		return "", err
	}
	same := struct {
		Cluster string
		Backup  [sha256.Size]byte
		Members []NodeID
		Shards  []RestoredShard
	}{r.Cluster, sha256.Sum256(raw), r.Members, r.out.Shards}
	data, err := json.Marshal(same)
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%x", sum[:8]), err
}

// node makes a directory, but for its last step.
func (r *restore) node(ctx context.Context, node NodeID) error {
	dir := r.Nodes[node]
	origin, err := r.origin()
	if err != nil {
		return err
	}
	id := newIdentity(r.Cluster, node)
	id.Data = rand.Text() + "-" + origin
	id.Shards = map[ShardID][]NodeID{}
	for i := range r.out.Shards {
		if s := &r.out.Shards[i]; slices.Contains(s.Voters, node) {
			id.Shards[s.Shard] = s.Voters
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncAbove(dir); err != nil {
		return err
	}
	if err := id.writeAs(dir, unfinishedFile(dir)); err != nil {
		return err
	}
	for _, name := range []string{walDir, stateDir} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := r.states(ctx, dir, node); err != nil {
		return err
	}
	return r.logs(ctx, dir, node)
}

// copiedFS copies what it is told to link out of a backup: a node and its backup must not share files.
type copiedFS struct {
	vfs.FS
	from string
}

func (c copiedFS) Link(oldname, newname string) error {
	if strings.HasPrefix(oldname, c.from+string(filepath.Separator)) {
		return errors.New("files of a backup are copied")
	}
	return c.FS.Link(oldname, newname)
}

// Unwrap is part of vfs.FS.
func (c copiedFS) Unwrap() vfs.FS { return c.FS }

// states installs the snapshots.
func (r *restore) states(ctx context.Context, dir string, node NodeID) (err error) {
	store, err := state.Open(state.Options{
		Dir: filepath.Join(dir, stateDir), FS: copiedFS{vfs.Default, filepath.Clean(r.Backup)}, CacheBytes: 8 << 20, Logger: r.Logger,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for i := range r.backup.Shards {
		s, out := &r.backup.Shards[i], &r.out.Shards[i]
		if !s.HasSnapshot() || !slices.Contains(out.Voters, node) {
			continue
		}
		if err := r.install(ctx, store, s, out.Voters); err != nil {
			return fmt.Errorf("shard %d: %w", s.Shard, err)
		}
	}
	return nil
}

func (r *restore) install(ctx context.Context, store *state.Store, s *snapshot.BackupShard, voters []NodeID) error {
	from, err := s.Open(vfs.Default, filepath.Clean(r.Backup))
	if err != nil {
		return err
	}
	h, err := store.Shard(s.Shard, state.Limits{})
	if err != nil {
		return err
	}
	defer h.Close()
	job, err := h.Install(from.Install())
	if err != nil {
		return err
	}
	if err := job.Run(ctx); err != nil {
		return err
	}
	h.Installed(job)
	// Who takes part is another matter from here on. The rest of the record stays as it was.
	meta, err := core.RewriteMeta(h.Meta(), core.Configuration{Voters: voters})
	if err != nil {
		return err
	}
	h.Freeze()
	flush := h.Flush(state.Flush{Index: h.FlushedIndex(), Meta: meta})
	if err := flush.Run(); err != nil {
		return err
	}
	h.Flushed(flush)
	return nil
}

// logBatch is how many bytes of entries are written to a log at once.
const logBatch = 4 << 20

// logs writes what comes after the snapshots into the node's log, as committed.
func (r *restore) logs(ctx context.Context, dir string, node NodeID) (err error) {
	log, _, err := wal.Open(wal.Options{Dir: filepath.Join(dir, walDir), SegmentBytes: r.segmentBytes, Logger: r.Logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for i := range r.backup.Shards {
		s, out := &r.backup.Shards[i], &r.out.Shards[i]
		if !slices.Contains(out.Voters, node) {
			continue
		}
		// Nobody has voted in this term, or ever will: the first leader of the new cluster has a later one.
		rec := wal.Record{Shard: s.Shard, HardState: wal.HardState{Term: uint64(out.Term)}}
		bytes := 0
		for e, err := range s.Entries(ctx, vfs.Default, r.Backup, s.Index+1, uint64(out.Index)) {
			if err != nil {
				return err
			}
			entry, _ := core.NeutralEntry(wal.Entry(e))
			rec.Entries = append(rec.Entries, entry)
			if bytes += len(e.Data) + 64; bytes >= logBatch {
				if err := log.Append([]wal.Record{rec}); err != nil {
					return err
				}
				rec.Entries, bytes = nil, 0
			}
		}
		rec.HardState.Commit = uint64(out.Index)
		if err := log.Append([]wal.Record{rec}); err != nil {
			return err
		}
	}
	return nil
}

// finish is what makes a directory a node's: one rename.
func (r *restore) finish(node NodeID) error {
	dir := r.Nodes[node]
	if err := os.Rename(unfinishedFile(dir), identityFile(dir)); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	r.Logger.Info("restored", "cluster", r.Cluster, "node", uint64(node), "dir", dir)
	return nil
}
