package rsm

import (
	"context"
	"slices"
	"time"

	"github.com/decree-raft/decree/internal/core"
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
func (s *Shard) Members() (Members, error) { return s.MembersContext(context.Background()) }

// MembersContext is Members for who does not wait for ever, as a pass of the engine may not return.
func (s *Shard) MembersContext(ctx context.Context) (Members, error) {
	var v core.MembersView
	ok := false
	if err := s.node.engine.look(ctx, s.id, func(w *core.Worker) { v, ok = w.Members(s.id) }); err != nil {
		return Members{}, err
	}
	if !ok {
		return Members{}, errClosed
	}
	m := Members{Shard: s.id, Index: v.Index, Leader: s.Leader(), Applied: v.Applied, Removed: slices.Clone(v.Removed)}
	for _, id := range v.Members() {
		p := v.Progress[id]
		member := Member{Node: id, Role: roleOf(&v.Configuration, id), Address: s.node.topology.addressOf(id), Seen: -1,
			Match: p.Match, Progress: p.State, SnapshotBytes: p.SnapshotBytes, SnapshotTotal: p.SnapshotTotal}
		if peer := s.node.engine.peers.get(id); peer != nil && id != s.node.cfg.Node {
			member.Seen = time.Duration(s.node.engine.mono() - peer.heard.Load())
		}
		m.List = append(m.List, member)
	}
	return m, nil
}

func roleOf(c *core.Configuration, id NodeID) Role {
	voter, outgoing := slices.Contains(c.Voters, id), slices.Contains(c.Outgoing, id)
	switch {
	case !voter && !outgoing:
		return RoleLearner
	case c.Joint() && !outgoing:
		return RoleIncoming
	case c.Joint() && !voter:
		return RoleOutgoing
	}
	return RoleVoter
}

// change has a change of the members decided, and waits until it is applied here.
func (s *Shard) change(ctx context.Context, change core.Change) error {
	c := newCall()
	c.req.Kind, c.req.Change = core.KindChange, &change
	_, err := s.start(ctx, c).Wait(ctx)
	return err
}

// AddLearner adds a node as a learner: it gets everything and has no vote. The node must be started with
// ShardConfig.Join for this shard. A learner may stay one for ever, as a read replica. Leader only, like all changes of members:
// others answer ErrNotProposed with a hint. It returns when the change is applied here. One change at a time: CodeChangePending.
// An id that was ever removed is refused (CodeChangeRefused): ids are never reused.
func (s *Shard) AddLearner(ctx context.Context, id NodeID, address string) error {
	return s.change(ctx, core.Change{Kind: core.ChangeAddLearner, Node: id, Address: address})
}

// Promote makes a learner a voter. CodeNotCaughtUp: it lacks more than a few entries; wait and try again.
func (s *Shard) Promote(ctx context.Context, id NodeID) error {
	return s.change(ctx, core.Change{Kind: core.ChangePromote, Node: id})
}

// Remove removes a member for ever. A leader that is asked to remove itself hands leadership over first, and answers
// ErrNotProposed with CodeTransfer: ask the next one. Refused is also what would leave the shard without a majority that answers.
func (s *Shard) Remove(ctx context.Context, id NodeID) error {
	return s.change(ctx, core.Change{Kind: core.ChangeRemove, Node: id})
}

// Replace makes the learner a voter and removes the voter old, in one joint change: at no time do fewer voters count than before
// and after. It returns when the new configuration stands alone. If leadership changes on the way, the next leader completes it.
func (s *Shard) Replace(ctx context.Context, old, learner NodeID) error {
	if err := s.change(ctx, core.Change{Kind: core.ChangeReplace, Node: learner, Old: old}); err != nil {
		return err
	}
	return s.replaced(ctx)
}

// replaced waits until the new configuration stands alone.
func (s *Shard) replaced(ctx context.Context) error {
	for {
		m, err := s.MembersContext(ctx) // a worker that does not say may later
		if err == nil && !slices.ContainsFunc(m.List, func(m Member) bool { return m.Role == RoleIncoming || m.Role == RoleOutgoing }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return &Error{Kind: ErrUnknown, Code: core.CodeCancelled, Message: "the replacement has begun, and will be completed; the caller stopped waiting", Cause: ctx.Err()}
		case <-s.node.done:
			return &Error{Kind: ErrUnknown, Code: core.CodeClosed, Message: "the replacement has begun, and will be completed; this node stopped before it was"}
		case <-time.After(s.node.cfg.tick() / 4):
		}
	}
}

// SetAddress tells everybody under which address a member is found from now on. Shards have no order among each other: where they say different things of a node, the
// one whose change stands at the higher index is believed. So set it in every shard that the node is a member of.
func (s *Shard) SetAddress(ctx context.Context, id NodeID, address string) error {
	return s.change(ctx, core.Change{Kind: core.ChangeAddress, Node: id, Address: address})
}
