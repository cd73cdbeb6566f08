package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
)

type drainReport struct {
	Node    uint64 `json:"node"`
	Drained bool   `json:"drained"`
	Left    uint64 `json:"left"` // shards that it still leads
}

func drainCommand() *command {
	return &command{
		name: "drain", args: "NODE", min: 1, max: 1, limit: true,
		summary: "hand over every leadership that a node has",
		help: `Has a node hand over the leadership of all its shards, and returns when it leads none. The node goes on as a follower, and may be
elected again later: drain it, and then stop it. Stopping a node in order (Node.Close) drains it as well, as far as an
election timeout suffices.

Use it before maintenance. If it does not end in time, the exit code is 5 and the node still leads some shards.

Example:
  decree drain 2 && ssh node2 systemctl restart orders
`,
		bind: func(*flag.FlagSet) action {
			return func(ctx context.Context, s *session, args []string) error {
				id, err := nodeArgument(args[0])
				if err != nil {
					return err
				}
				n, err := s.cluster.node(ctx, id)
				if err != nil {
					return err
				}
				r := drainReport{Node: id}
				err = s.drain(ctx, n, &r)
				if err != nil && r.Left == 0 && !r.Drained {
					return err // it has not said how many it leads
				}
				return errors.Join(err, s.print(r, func(w *tabwriter.Writer) {
					if r.Drained {
						fmt.Fprintf(w, "node %d leads no shard\n", id)
					} else {
						fmt.Fprintf(w, "node %d still leads %s\n", id, plural(int(r.Left), "shard"))
					}
				}))
			}
		},
	}
}

func (s *session) drain(ctx context.Context, n *node, r *drainReport) error {
	stream, err := n.admin.Drain(ctx, &adminv1.DrainRequest{})
	if err != nil {
		return changeError(n, err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return changeError(n, err)
		}
		r.Left, r.Drained = m.GetLeading(), m.GetLeading() == 0
		s.progress.show("node %d leads %s", n.id, plural(int(r.Left), "shard"))
	}
}

// snapshotReport is what `snapshot -o json` writes, in a list.
type snapshotReport struct {
	Node  uint64 `json:"node"`
	Shard uint64 `json:"shard"`
	ID    string `json:"id"`
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	Time  string `json:"time"`
	Hash  string `json:"hash"`
	Bytes int64  `json:"bytes"`
	Files uint64 `json:"files"`
	Dir   string `json:"dir"`
}

func snapshotCommand() *command {
	return &command{
		name: "snapshot", shard: "only this `shard`",
		summary: "cut a snapshot of each shard, or list those there are",
		help: `Writes a snapshot of each shard to the disk of one node, which goes on working meanwhile. A follower is taken if one is reached,
so that leaders are spared; -on names a node. A snapshot holds what was flushed last; -fresh flushes first, so that it has
everything that was applied when it was asked for. New and slow members are caught up from snapshots.

With -list it shows the snapshots on the nodes' disks.

Nodes cut snapshots themselves when they need them. Use it to have one before a risky step, or to look at one.

Examples:
  decree snapshot -shard 1 -fresh
  decree snapshot -list
`,
		bind: func(f *flag.FlagSet) action {
			list := f.Bool("list", false, "cut none, and list what there is")
			fresh := f.Bool("fresh", false, "flush first, so that the newest is in it")
			on := f.Uint64("on", 0, "`id` of the node to do it")
			return func(ctx context.Context, s *session, _ []string) error {
				if *list && *fresh {
					return badUsage("-list cuts nothing, so that -fresh means nothing")
				}
				if *list {
					return s.listSnapshots(ctx, *on)
				}
				return s.cutSnapshots(ctx, *on, *fresh)
			}
		},
	}
}

func (s *session) cutSnapshots(ctx context.Context, on uint64, fresh bool) error {
	shards, err := s.cluster.shards(s.opts.shard)
	if err != nil {
		return err
	}
	reports := []snapshotReport{}
	var failed error
	for _, shard := range shards {
		hosts := s.cluster.hosting(shard)
		n := hosts[len(hosts)-1]
		if on != 0 {
			if n, failed = s.cluster.node(ctx, on); failed != nil {
				break
			}
		}
		r, err := s.cut(ctx, n, shard, fresh)
		if err != nil {
			failed = changeError(n, err)
			break
		}
		reports = append(reports, snapshotReportOf(n.id, r))
	}
	if failed != nil {
		failed = partly(len(reports) > 0, failed)
	}
	return errors.Join(failed, s.printSnapshots(reports))
}

// cut shows how long it takes: how much there is to write is not known before.
func (s *session) cut(ctx context.Context, n *node, shard uint64, fresh bool) (*adminv1.Snapshot, error) {
	type answer struct {
		r   *adminv1.CutSnapshotResponse
		err error
	}
	done := make(chan answer, 1)
	go func() {
		r, err := n.admin.CutSnapshot(ctx, &adminv1.CutSnapshotRequest{Shard: shard, Fresh: fresh})
		done <- answer{r, err}
	}()
	start := time.Now()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case a := <-done:
			return a.r.GetSnapshot(), a.err
		case <-look.C:
			s.progress.show("shard %d: node %d writes a snapshot, since %v", shard, n.id, time.Since(start).Round(time.Second))
		}
	}
}

func (s *session) listSnapshots(ctx context.Context, on uint64) error {
	if _, err := s.cluster.shards(s.opts.shard); err != nil {
		return err
	}
	var nodes []*node
	if on != 0 {
		n, err := s.cluster.node(ctx, on)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
	} else {
		s.cluster.discover(ctx)
		nodes = s.cluster.sorted()
	}
	reports := []snapshotReport{}
	for _, n := range nodes {
		if s.opts.shard != 0 && n.shard(s.opts.shard) == nil {
			continue
		}
		r, err := n.admin.ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{Shard: s.opts.shard})
		if err != nil {
			return readError(n, err)
		}
		for _, sn := range r.GetSnapshots() {
			reports = append(reports, snapshotReportOf(n.id, sn))
		}
	}
	return s.printSnapshots(reports)
}

func snapshotReportOf(node uint64, s *adminv1.Snapshot) snapshotReport {
	return snapshotReport{node, s.GetShard(), s.GetId(), s.GetIndex(), s.GetTerm(), instant(s.GetTime()), hash(s.GetHash()), s.GetBytes(), s.GetFiles(), s.GetDir()}
}

func (s *session) printSnapshots(reports []snapshotReport) error {
	return s.print(reports, func(w *tabwriter.Writer) {
		row(w, "NODE", "SHARD", "INDEX", "TIME", "SIZE", "FILES", "HASH", "DIRECTORY")
		for _, r := range reports {
			row(w, r.Node, r.Shard, r.Index, dash(r.Time), size(r.Bytes), r.Files, r.Hash, r.Dir)
		}
	})
}
