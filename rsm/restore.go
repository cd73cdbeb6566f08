package rsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/datadir"
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
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	shards, err := datadir.Restore{
		Disk:   &machineDisk{FS: vfs.Default, log: wal.Options{SegmentBytes: o.segmentBytes, Logger: o.Logger}},
		Backup: filepath.Clean(o.Backup), Cluster: o.Cluster, SameName: o.SameName, Nodes: o.Nodes, Members: o.Members, Voters: o.Voters,
		Position: o.Position, Until: o.Until, Progress: o.Progress, Logger: o.Logger,
	}.Run(ctx)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	out := &Restored{Cluster: o.Cluster, Nodes: o.Nodes, Members: o.Members}
	for _, s := range shards {
		out.Shards = append(out.Shards, RestoredShard(s))
	}
	return out, nil
}

// nodes are the ids of the nodes that are made here, ascending.
func (r *RestoreOptions) nodes() []NodeID { return slices.Sorted(maps.Keys(r.Nodes)) }

// check looks at the options alone.
func (r *RestoreOptions) check() error {
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
