package rsm

import (
	"context"
	"time"
)

// Role is what a member is in a shard.
type Role string

// The roles of a member. While a replacement is under way (joint consensus) both sets of voters must agree:
// incoming voters are on their way in, outgoing ones on their way out.
const (
	RoleVoter    Role = "voter"
	RoleLearner  Role = "learner" // has a copy and no vote: a newcomer, or a read replica
	RoleIncoming Role = "incoming"
	RoleOutgoing Role = "outgoing"
)

// Member is one replica of a shard, as the replica that was asked knows it.
type Member struct {
	Node    NodeID
	Role    Role
	Address string // host:port for the other nodes; empty: not known here
	// Seen says when anything was last heard from the node; negative: this node itself.
	Seen time.Duration

	// The rest is known to the leader only.
	Match    Index  // what it has on disk, as far as it has said
	Progress string // probe, replicate or snapshot; empty if not known
	// Snapshot is how far the transfer of a snapshot to it has come, while there is one.
	SnapshotBytes, SnapshotTotal int64
}

// Members are who takes part in a shard.
type Members struct {
	Shard   ShardID
	Index   Index // of the log entry that made it so; 0: as the shard was made
	Leader  NodeID
	Applied Index
	List    []Member // by node id
	Removed []NodeID // ids that were members, and never will be again
}

// Members returns who takes part in the shard as far as this replica has applied its log.
func (s *Shard) Members() (Members, error) { return Members{}, errNotYet }

// AddLearner adds a node as a learner: it gets everything and has no vote. The node must be started with
// ShardConfig.Join for this shard. A learner may stay one for ever, as a read replica. Leader only, like all changes of members:
// others answer ErrNotProposed with a hint. It returns when the change is applied here. One change at a time: CodeChangePending.
// An id that was ever removed is refused (CodeChangeRefused): ids are never reused.
func (s *Shard) AddLearner(ctx context.Context, id NodeID, address string) error { return errNotYet }

// Promote makes a learner a voter. CodeNotCaughtUp: it lacks more than a second or so of log; wait and try again.
func (s *Shard) Promote(ctx context.Context, id NodeID) error { return errNotYet }

// Remove removes a member for ever. A leader that is asked to remove itself hands leadership over first, and answers
// ErrNotProposed with CodeTransfer: ask the next one.
func (s *Shard) Remove(ctx context.Context, id NodeID) error { return errNotYet }

// Replace makes the learner a voter and removes the voter old, in one joint change: at no time are there fewer voters, or one more, than before and after.
// It returns when the new configuration stands alone. If leadership changes on the way, the next leader completes it.
func (s *Shard) Replace(ctx context.Context, old, learner NodeID) error { return errNotYet }

// SetAddress tells everybody under which address a member is found from now on.
func (s *Shard) SetAddress(ctx context.Context, id NodeID, address string) error { return errNotYet }

// Entry is a committed entry of a shard's log, taken apart.
type Entry struct {
	Index    Index
	Term     Term
	Time     Timestamp // 0: the entry has none
	Sequence uint64    // 0: not a decision
	Kind     string    // decision, reads (nothing but reads rode on it), empty (a leader's first), members, void
	Note     string    // for people: of a change of members, what it was
	Events   []Event   // of a decision
	Hash     uint64    // running hash after it, as the leader computed it
}

// Journal returns committed entries from an index on, at most limit, as far as this replica has them on disk or in memory.
// CodeCompacted: the first ones are gone; first is where the log begins now.
func (s *Shard) Journal(ctx context.Context, from Index, limit int) (entries []Entry, first Index, err error) {
	return nil, 0, errNotYet
}

// SnapshotInfo is a snapshot on a node's disk.
type SnapshotInfo struct {
	ID    string // hexadecimal
	Shard ShardID
	Index Index
	Term  Term
	Time  Timestamp
	Hash  uint64
	Bytes int64
	Files int
	Dir   string
}

// CutSnapshot writes a snapshot of the shard as of its last flush, or after a flush if fresh, while the shard goes on.
func (s *Shard) CutSnapshot(ctx context.Context, fresh bool) (SnapshotInfo, error) {
	return SnapshotInfo{}, errNotYet
}

// Snapshots lists the complete snapshots on the node's disk.
func (n *Node) Snapshots() []SnapshotInfo { return nil }

var errNotYet = &Error{Kind: ErrNotProposed, Message: "not built yet"}
