package datadir

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

// Restore is what a backup is restored to: rsm.RestoreOptions says what each field means. Nodes, Members and their directories are taken as they are.
type Restore struct {
	Disk     Disk
	Backup   string // in its shortest form: no other name of it is known
	Cluster  string
	SameName bool
	Nodes    map[core.NodeID]string
	Members  []core.NodeID // ascending
	Voters   map[core.ShardID][]core.NodeID
	Position map[core.ShardID]core.Index
	Until    time.Time
	Progress func(snapshot.Progress)
	Logger   *slog.Logger
}

// Restored is a shard of a new cluster: see rsm.RestoredShard. Its fields are part of what nodes that were restored together have in common (origin).
type Restored struct {
	Shard    core.ShardID
	Voters   []core.NodeID
	Index    core.Index
	Term     core.Term
	Time     core.Timestamp
	Snapshot core.Index
	Entries  uint64
	Dropped  uint64
}

// Run makes the data directories, all steps of it in an order that lets a crash at any time leave what is refused, or nothing, or all.
func (o Restore) Run(ctx context.Context) ([]Restored, error) {
	r := &restore{Restore: o}
	err := r.run(ctx)
	return r.shards, err
}

// restore is a Restore under way.
type restore struct {
	Restore
	backup *snapshot.Backup
	shards []Restored
}

func (r *restore) run(ctx context.Context) error {
	// Before hours of reading: what the manifest alone tells.
	b, err := snapshot.ReadBackup(r.Disk, r.Backup)
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
		if err := RefuseUsed(r.Disk, r.Nodes[id]); err != nil {
			return err
		}
	}
	if _, err := snapshot.VerifyBackup(ctx, r.Disk, r.Backup, r.Progress); err != nil {
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
func (r *restore) nodes() []core.NodeID { return slices.Sorted(maps.Keys(r.Nodes)) }

// settleVoters finds out who hosts what.
func (r *restore) settleVoters() error {
	for id := range r.Voters {
		if r.backup.Find(uint64(id)) == nil {
			return fmt.Errorf("RestoreOptions.Voters has shard %d, of which the backup has nothing", id)
		}
	}
	hosts := map[core.NodeID]bool{}
	for i := range r.backup.Shards {
		s := &r.backup.Shards[i]
		voters, given := r.Voters[core.ShardID(s.Shard)]
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
		r.shards = append(r.shards, Restored{Shard: core.ShardID(s.Shard), Voters: voters, Snapshot: core.Index(s.Index)})
	}
	for _, id := range r.nodes() {
		if !hosts[id] {
			return fmt.Errorf("node %d would host no shard", id)
		}
	}
	return nil
}

// settlePositions finds out what each shard is restored to, and what its log holds up to there.
func (r *restore) settlePositions(ctx context.Context) error {
	for id := range r.Position {
		if r.backup.Find(uint64(id)) == nil {
			return fmt.Errorf("RestoreOptions.Position has shard %d, of which the backup has nothing", id)
		}
	}
	for i := range r.shards {
		out, s := &r.shards[i], &r.backup.Shards[i]
		out.Index, out.Term, out.Time = core.Index(s.Last()), core.Term(s.Term), core.Timestamp(s.Time)
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
func (r *restore) scan(ctx context.Context, s *snapshot.BackupShard, out *Restored) error {
	until := core.Timestamp(0)
	if !r.Until.IsZero() {
		until = core.Timestamp(r.Until.UnixNano())
		if s.HasSnapshot() && core.Timestamp(s.Time) > until {
			return fmt.Errorf("shard %d cannot be restored to %v: the backup begins with its state of %v", s.Shard, r.Until, time.Unix(0, s.Time))
		}
	}
	to, seen := out.Index, Restored{Index: out.Snapshot, Term: out.Term, Time: out.Time}
	for e, err := range s.Entries(ctx, r.Disk, r.Backup, s.Index+1, uint64(to)) {
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
		seen.Index, seen.Term = core.Index(e.Index), core.Term(e.Term)
		seen.Entries++
	}
	if until == 0 && seen.Index != to {
		return fmt.Errorf("shard %d: the journal ends at %d, expected was %d", s.Shard, seen.Index, to)
	}
	out.Index, out.Term, out.Time, out.Entries, out.Dropped = seen.Index, seen.Term, seen.Time, seen.Entries, seen.Dropped
	return nil
}

// RefuseUsed refuses a directory that has something in it, but for what an unfinished restore has left.
func RefuseUsed(d Disk, dir string) error {
	names, err := d.List(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	unfinished, begun := false, false
	for _, name := range names {
		switch name {
		case nodeFile + ".restoring":
			unfinished = true
		case WALDir, StateDir:
			begun = true
		case nodeFile + ".tmp":
		default:
			return fmt.Errorf("%s is in use: it has %s in it, and nothing is overwritten: name a new directory, or empty this one", dir, name)
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
		Format  int // nodes that another version of the program has restored may not know what these write
		Cluster string
		Backup  [sha256.Size]byte
		Members []core.NodeID
		Shards  []Restored
	}{formatRestored, r.Cluster, sha256.Sum256(raw), r.Members, r.shards}
	data, err := json.Marshal(same)
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%x", sum[:8]), err
}

// node makes a directory, but for its last step.
func (r *restore) node(ctx context.Context, node core.NodeID) error {
	dir := r.Nodes[node]
	origin, err := r.origin()
	if err != nil {
		return err
	}
	id := New(r.Cluster, node)
	if mutated("restore-keeps-cluster") {
		id.Cluster = r.backup.Cluster
	}
	id.Data = rand.Text() + "-" + origin
	id.Format = formatRestored
	id.Shards = map[core.ShardID][]core.NodeID{}
	for i := range r.shards {
		if s := &r.shards[i]; slices.Contains(s.Voters, node) {
			id.Shards[s.Shard] = s.Voters
		}
	}
	if err := MakeDir(r.Disk, dir); err != nil {
		return err
	}
	name := UnfinishedFile(r.Disk, dir)
	if mutated("restore-names-first") {
		name = identityFile(r.Disk, dir)
	}
	if err := id.writeAs(r.Disk, dir, name); err != nil {
		return err
	}
	for _, name := range []string{WALDir, StateDir} {
		if err := r.Disk.RemoveAll(r.Disk.PathJoin(dir, name)); err != nil {
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
func (r *restore) states(ctx context.Context, dir string, node core.NodeID) (err error) {
	store, err := state.Open(state.Options{
		Dir: r.Disk.PathJoin(dir, StateDir), FS: copiedFS{r.Disk, r.Backup}, CacheBytes: 8 << 20, Logger: r.Logger,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for i := range r.backup.Shards {
		s, out := &r.backup.Shards[i], &r.shards[i]
		if !s.HasSnapshot() || !slices.Contains(out.Voters, node) {
			continue
		}
		if err := r.install(ctx, store, s, out.Voters); err != nil {
			return fmt.Errorf("shard %d: %w", s.Shard, err)
		}
	}
	return nil
}

func (r *restore) install(ctx context.Context, store *state.Store, s *snapshot.BackupShard, voters []core.NodeID) error {
	from, err := s.Open(r.Disk, r.Backup)
	if err != nil {
		return err
	}
	h, err := store.Shard(s.Shard)
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
	if mutated("restore-keeps-members") {
		meta = h.Meta()
	}
	h.Freeze()
	with := state.Flush{Index: h.FlushedIndex(), Meta: meta}
	if mutated("restore-drops-sessions") {
		if err := h.LoadSessions(func(key, _ []byte) error {
			with.Sessions = append(with.Sessions, state.KV{Key: slices.Clone(key)})
			return nil
		}); err != nil {
			return err
		}
	}
	flush := h.Flush(with)
	if err := flush.Run(); err != nil {
		return err
	}
	h.Flushed(flush)
	return nil
}

// logBatch is how many bytes of entries are written to a log at once.
const logBatch = 4 << 20

// logs writes what comes after the snapshots into the node's log, as committed.
func (r *restore) logs(ctx context.Context, dir string, node core.NodeID) (err error) {
	log, err := r.Disk.OpenLog(r.Disk.PathJoin(dir, WALDir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for i := range r.backup.Shards {
		s, out := &r.backup.Shards[i], &r.shards[i]
		if !slices.Contains(out.Voters, node) {
			continue
		}
		// Nobody has voted in this term, or ever will: the first leader of the new cluster has a later one.
		rec := wal.Record{Shard: s.Shard, HardState: wal.HardState{Term: uint64(out.Term)}}
		bytes, last := 0, uint64(out.Index)
		for e, err := range s.Entries(ctx, r.Disk, r.Backup, s.Index+1, uint64(out.Index)) {
			if err != nil {
				return err
			}
			entry, _ := core.NeutralEntry(wal.Entry(e))
			if mutated("restore-keeps-changes") {
				entry = wal.Entry(e)
			}
			if mutated("restore-stops-early") && entry.Index == uint64(out.Index) {
				last--
				break
			}
			rec.Entries = append(rec.Entries, entry)
			if bytes += len(e.Data) + 64; bytes >= logBatch {
				if err := log.Append([]wal.Record{rec}); err != nil {
					return err
				}
				rec.Entries, bytes = nil, 0
			}
		}
		rec.HardState.Commit = last
		if err := log.Append([]wal.Record{rec}); err != nil {
			return err
		}
	}
	return nil
}

// finish is what makes a directory a node's: one rename.
func (r *restore) finish(node core.NodeID) error {
	dir := r.Nodes[node]
	if mutated("restore-names-first") {
		return nil
	}
	if err := r.Disk.Rename(UnfinishedFile(r.Disk, dir), identityFile(r.Disk, dir)); err != nil {
		return err
	}
	if err := syncDir(r.Disk, dir); err != nil {
		return errors.Join(err, r.Disk.Rename(identityFile(r.Disk, dir), UnfinishedFile(r.Disk, dir))) // see MakeDir
	}
	r.Logger.Info("restored", "cluster", r.Cluster, "node", uint64(node), "dir", dir)
	return nil
}
