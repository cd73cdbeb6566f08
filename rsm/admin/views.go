package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
)

func (s *service) Status(ctx context.Context, _ *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	st, err := s.node.StatusContext(ctx)
	if err != nil {
		return nil, s.fail(nil, err)
	}
	r := &adminv1.StatusResponse{
		Cluster: st.Cluster, Node: uint64(st.Node),
		Log:  &adminv1.Log{Segments: uint64(st.LogSegments), Bytes: st.LogBytes, Fsyncs: st.LogFsyncs, SyncTime: int64(st.LogSyncTime)},
		Disk: &adminv1.Disk{StateBytes: st.StateBytes, FreeBytes: st.FreeDiskBytes, Low: st.DiskLow},
	}
	for i := range st.Shards {
		r.Shards = append(r.Shards, shardOf(&st.Shards[i]))
	}
	slices.SortFunc(r.Shards, func(a, b *adminv1.ShardStatus) int { return cmp.Compare(a.Shard, b.Shard) })
	for id, p := range st.Peers {
		r.Peers = append(r.Peers, &adminv1.PeerStatus{
			Node: uint64(id), Connected: p.Connected, LastHeard: int64(p.LastHeard), QueuedBytes: int64(p.QueuedBytes), LastError: utf8(p.LastError), Silent: p.Silent,
		})
	}
	slices.SortFunc(r.Peers, func(a, b *adminv1.PeerStatus) int { return cmp.Compare(a.Node, b.Node) })
	return r, nil
}

func shardOf(s *rsm.ShardStatus) *adminv1.ShardStatus {
	r := &adminv1.ShardStatus{
		Shard: uint64(s.Shard), Role: s.Role, Term: uint64(s.Term), Leader: uint64(s.Leader),
		Applied: uint64(s.Applied), Commit: uint64(s.Commit), Last: uint64(s.Last), Flushed: uint64(s.Flushed),
		Sequence: s.Sequence, Time: int64(s.Time), Hash: s.Hash, Sessions: uint64(s.Sessions),
		InFlight: uint64(s.Inflight), Queued: uint64(s.Queued), MemoryBytes: s.Memory, Quiet: s.Quiet,
		MachineVersion: s.Version, MaxMachineVersion: s.MaxVersion,
		Counters: &adminv1.Counters{
			Entries: s.Stats.Entries, Commands: s.Stats.Commands, Rejections: s.Stats.Rejections,
			LogReads: s.Stats.LogReads, OtherReads: s.Stats.OtherReads, Duplicates: s.Stats.Duplicates,
			Voids: s.Stats.Voids, Rollbacks: s.Stats.Rollbacks, MachinePanics: s.Stats.MachinePanics, Refused: s.Stats.Refused,
			Flushes: s.Stats.Flushes, Strange: s.Stats.Strange, Stranded: s.Stats.Stranded,
			JournalShort: s.Stats.JournalShort, Overtaken: s.Stats.Overtaken,
		},
		JournalBytes: s.JournalBytes, JournalShort: s.JournalShort,
		TimeAhead: max(0, int64(s.Time)-time.Now().UnixNano()),
	}
	for _, v := range s.Voters {
		r.Voters = append(r.Voters, uint64(v))
	}
	for _, l := range s.Learners {
		r.Learners = append(r.Learners, uint64(l))
	}
	if s.Err != nil {
		r.Error = detailOf(s.Err)
	}
	if s.Damage != nil {
		r.Damage = utf8(s.Damage.Error())
	}
	return r
}

func (s *service) Members(ctx context.Context, r *adminv1.MembersRequest) (*adminv1.MembersResponse, error) {
	sh, err := s.shard(r.GetShard())
	if err != nil {
		return nil, err
	}
	m, err := sh.MembersContext(ctx)
	if err != nil {
		return nil, s.fail(sh, err)
	}
	res := &adminv1.MembersResponse{
		Shard: uint64(m.Shard), Index: uint64(m.Index), Leader: uint64(m.Leader), Applied: uint64(m.Applied), Asked: uint64(s.node.ID()),
	}
	for _, m := range m.List {
		res.Members = append(res.Members, &adminv1.Member{
			Node: uint64(m.Node), Role: string(m.Role), Address: utf8(m.Address), Seen: int64(m.Seen),
			Match: uint64(m.Match), Progress: m.Progress, SnapshotBytes: m.SnapshotBytes, SnapshotTotal: m.SnapshotTotal,
		})
	}
	for _, id := range m.Removed {
		res.Removed = append(res.Removed, uint64(id))
	}
	return res, nil
}

func (s *service) ListSnapshots(_ context.Context, r *adminv1.ListSnapshotsRequest) (*adminv1.ListSnapshotsResponse, error) {
	if r.GetShard() != 0 {
		if _, err := s.shard(r.GetShard()); err != nil {
			return nil, err
		}
	}
	res := &adminv1.ListSnapshotsResponse{Node: uint64(s.node.ID())}
	for _, info := range s.node.Snapshots() {
		if r.GetShard() == 0 || r.GetShard() == uint64(info.Shard) {
			res.Snapshots = append(res.Snapshots, snapshotOf(info))
		}
	}
	slices.SortStableFunc(res.Snapshots, func(a, b *adminv1.Snapshot) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Index, b.Index))
	})
	return res, nil
}

func snapshotOf(i rsm.SnapshotInfo) *adminv1.Snapshot {
	return &adminv1.Snapshot{
		Id: i.ID, Shard: uint64(i.Shard), Index: uint64(i.Index), Term: uint64(i.Term), Time: int64(i.Time), Hash: i.Hash,
		Bytes: i.Bytes, Files: uint64(i.Files), Dir: i.Dir,
	}
}

const (
	// journalBatch is how many entries are asked of the replica at once.
	journalBatch = 128
	// journalLook is how often the end of the log is looked at while it is followed.
	journalLook = 50 * time.Millisecond
	// journalChases: the log's beginning may go while it is being found.
	journalChases = 8
)

func (s *service) Journal(r *adminv1.JournalRequest, stream grpc.ServerStreamingServer[adminv1.JournalResponse]) error {
	sh, err := s.shard(r.GetShard())
	if err != nil {
		return err
	}
	ctx := stream.Context()
	next, sent, chases := max(1, rsm.Index(r.GetFrom())), uint64(0), 0
	for {
		batch := uint64(journalBatch)
		if r.GetLimit() > 0 {
			batch = min(batch, r.GetLimit()-sent)
		}
		entries, first, err := sh.Journal(ctx, next, int(batch))
		if err != nil && r.GetFrom() == 0 && sent == 0 && first > next && chases < journalChases && errors.Is(err, &rsm.Error{Code: rsm.CodeCompacted}) {
			next = first
			chases++
			continue
		}
		if err != nil {
			return s.fail(sh, err)
		}
		for i := range entries {
			if err := stream.Send(&adminv1.JournalResponse{Entry: entryOf(&entries[i])}); err != nil {
				return err
			}
			next = entries[i].Index + 1
			sent++
		}
		switch {
		case r.GetLimit() > 0 && sent >= r.GetLimit():
			return nil
		case len(entries) > 0:
			continue
		case !r.GetFollow():
			return nil
		}
		if err := s.pause(ctx, journalLook); err != nil {
			return s.fail(sh, err)
		}
	}
}

// pause waits, unless the call or the node ends.
func (s *service) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeCancelled, Message: "the caller stopped waiting", Cause: ctx.Err()}
	case <-s.node.Done():
		return notProposed(rsm.CodeClosed, "node %d has stopped", s.node.ID())
	case <-t.C:
		return nil
	}
}

func entryOf(e *rsm.Entry) *adminv1.Entry {
	r := &adminv1.Entry{
		Index: uint64(e.Index), Term: uint64(e.Term), Time: int64(e.Time), Sequence: e.Sequence, Kind: e.Kind, Note: utf8(e.Note), Hash: e.Hash,
	}
	for _, ev := range e.Events {
		r.Events = append(r.Events, ev.Data) // encoded before anything else happens to it
	}
	return r
}

const (
	maxSamples = 4096
	maxWindow  = 2 * time.Second
	// sampleEvery is about as long as an fsync takes: entries are not applied much faster.
	sampleEvery = 200 * time.Microsecond
	// maxHashes are under way at the same time: each asks a worker very often.
	maxHashes = 4
	// hashLook is how often a replica is asked whether it has come far enough.
	hashLook = 5 * time.Millisecond
)

func (s *service) Hash(ctx context.Context, r *adminv1.HashRequest) (*adminv1.HashResponse, error) {
	sh, err := s.shard(r.GetShard())
	if err != nil {
		return nil, err
	}
	window := time.Duration(r.GetWindow())
	if window < 0 || window > maxWindow {
		return nil, s.fail(sh, notProposed(rsm.CodeBadRequest, "the window is %v: 0 to %v", window, maxWindow))
	}
	select {
	case s.hashing <- struct{}{}:
		defer func() { <-s.hashing }()
	default:
		return nil, s.fail(sh, &rsm.Error{Kind: rsm.ErrNotProposed, Code: "overloaded", RetryAfter: time.Second,
			Message: fmt.Sprintf("%d callers compare hashes on node %d, which is the limit: ask again when one has ended", maxHashes, s.node.ID())})
	}
	node, err := s.node.StatusContext(ctx)
	if err != nil {
		return nil, s.fail(sh, err)
	}
	res := &adminv1.HashResponse{Node: uint64(node.Node), Cluster: node.Cluster}
	var until time.Time
	for len(res.Samples) < maxSamples {
		st, err := sh.StatusContext(ctx)
		switch {
		case err != nil:
			return nil, s.fail(sh, err)
		case st.Err != nil:
			return nil, s.fail(sh, st.Err)
		}
		wait := hashLook
		if uint64(st.Applied) >= r.GetAt() {
			if until.IsZero() {
				until = time.Now().Add(window)
			}
			if n := len(res.Samples); n == 0 || res.Samples[n-1].Index != uint64(st.Applied) {
				res.Samples = append(res.Samples, &adminv1.HashSample{Index: uint64(st.Applied), Hash: st.Hash})
			}
			if !time.Now().Before(until) {
				break
			}
			wait = sampleEvery
		}
		if err := s.pause(ctx, wait); err != nil {
			return nil, s.fail(sh, err)
		}
	}
	return res, nil
}
