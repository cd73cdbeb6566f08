package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"google.golang.org/grpc"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/snapshot"
)

func backupCommand() *command {
	return &command{
		name: "backup", args: "DIRECTORY|-", min: 1, max: 1, shard: "only this `shard`",
		summary: "back up a running cluster to a directory, or as a stream to standard output",
		help: `Writes a backup of every shard, without a stop, into a new directory, or, with "-", as one stream to standard output,
from which decree unpack makes a directory. Everything that was acknowledged before the command began is in it. Each
shard is as of one position of its log; there is no position that several shards have in common. A node that follows
is asked, if one hosts all the shards, so that leaders are spared; -on names a node.

A backup that nobody has verified is a hope: run decree verify on it, where it is kept.

Examples:
  decree backup /backups/monday && decree verify /backups/monday
  decree backup -rate 20 - | zstd | ssh vault 'cat > monday.zst'
`,
		bind: func(f *flag.FlagSet) action {
			on := f.Uint64("on", 0, "`id` of the node to do it")
			rate := f.Int64("rate", 0, "`MiB` per second at most; 0: no bound")
			history := f.Bool("history", false, "every entry from the first on instead of snapshots; the nodes must keep the whole journal")
			return func(ctx context.Context, s *session, args []string) error {
				if *rate < 0 || *rate > math.MaxInt64>>20 {
					return badUsage("-rate is %d: 0, which means no bound, to %d", *rate, int64(math.MaxInt64>>20))
				}
				r := &adminv1.BackupRequest{History: *history, BytesPerSecond: *rate << 20, AtLeast: map[uint64]uint64{}}
				return s.backup(ctx, *on, r, args[0])
			}
		},
	}
}

func (s *session) backup(ctx context.Context, on uint64, r *adminv1.BackupRequest, to string) error {
	shards, err := s.cluster.shards(s.opts.shard)
	if err != nil {
		return err
	}
	r.Shards = shards
	// What is acknowledged by now is committed, and its leader knows.
	led := map[*node]int{}
	for _, shard := range shards {
		for i, n := range s.cluster.hosting(shard) {
			st := n.shard(shard)
			r.AtLeast[shard] = max(r.AtLeast[shard], st.GetCommit())
			if i == 0 {
				led[n]++
			}
		}
	}
	n, err := s.backupNode(ctx, on, shards, led)
	if err != nil {
		return err
	}
	s.progress.say("node %d backs up %s", n.id, plural(len(shards), "shard"))
	stream, err := n.admin.Backup(ctx, r)
	if err != nil {
		return readError(n, err)
	}
	in := &backupReader{stream: stream, told: func(bytes int64) { s.progress.show("%s", size(bytes)) }}
	if to == "-" {
		_, err := io.Copy(s.out, in)
		switch {
		case in.err != nil:
			return readError(n, in.err)
		case err != nil:
			return &refusedError{fmt.Errorf("what came of the backup could not be written to standard output, and is none: %w", err)}
		}
		return nil
	}
	b, err := snapshot.UnpackBackup(ctx, in, nil, to, snapshot.UnpackOptions{})
	s.progress.clear()
	switch {
	case in.err != nil:
		return readError(n, in.err)
	case err != nil:
		return &refusedError{err}
	}
	return s.print(b, func(w *tabwriter.Writer) { describe(w, b) })
}

// backupNode is the one to ask: that hosts all shards, and leads the fewest.
func (s *session) backupNode(ctx context.Context, on uint64, shards []uint64, led map[*node]int) (best *node, err error) {
	if on != 0 {
		return s.cluster.node(ctx, on)
	}
	for _, n := range s.cluster.sorted() {
		all := true
		for _, shard := range shards {
			st := n.shard(shard)
			all = all && st != nil && st.GetRole() != "stopped"
		}
		if all && (best == nil || led[n] < led[best]) {
			best = n
		}
	}
	if best == nil {
		return nil, unreachable("no node that was reached hosts all %d shards in service: back them up one by one with -shard", len(shards))
	}
	return best, nil
}

// backupReader is the stream of a backup.
type backupReader struct {
	stream grpc.ServerStreamingClient[adminv1.BackupResponse]
	rest   []byte
	bytes  int64
	told   func(int64)
	err    error // of the stream
}

func (r *backupReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			if err != io.EOF {
				r.err = err
			}
			return 0, err
		}
		r.rest = m.GetData()
		r.bytes += int64(len(r.rest))
		r.told(r.bytes)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func repairCommand() *command {
	return &command{
		name: "repair", args: "NODE", min: 1, max: 1, shard: "the `shard`; required",
		summary: "give a replica that is out of service the state of another member",
		help: `A replica stops when its disk turns out to be damaged, or when applying gave it another state than the leader's. What
it has promised to the others is in its log, which is whole: so it can be given the state of another member, and go on
under its id. Replicas with a damaged disk are repaired by themselves, unless the program says otherwise
(Config.KeepDamage). For one that diverged, find out why first: it is a fault of a program, and the evidence goes.

Examples:
  decree repair -shard 1 3
`,
		bind: func(*flag.FlagSet) action {
			return func(ctx context.Context, s *session, args []string) error {
				id, err := nodeArgument(args[0])
				if err != nil {
					return err
				}
				if s.opts.shard == 0 {
					return badUsage("-shard is required")
				}
				n, err := s.cluster.node(ctx, id)
				if err != nil {
					return err
				}
				if _, err := n.admin.Repair(ctx, &adminv1.RepairRequest{Shard: s.opts.shard}); err != nil {
					return changeError(n, err)
				}
				fmt.Fprintf(s.out, "shard %d on node %d is in service again\n", s.opts.shard, id)
				return nil
			}
		},
	}
}
