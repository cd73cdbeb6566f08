package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/decree-raft/decree/rsm"
)

func restoreCommand() *command {
	return &command{
		offline: true,
		name:    "restore", args: "BACKUP", min: 1, max: 1, summary: "make the data directories of a new cluster from a backup",
		help: `Makes data directories of nodes of a NEW cluster from a backup, which is verified first. The cluster has another name
than the old one, so that no old node that is still somewhere can ever talk to a new one, and as many nodes as you
like. All of them start from the same position.

All nodes on this machine, or all directories at once:

Example:
  decree restore -cluster bank2 -node 1=/data/1 -node 2=/data/2 -node 3=/data/3 /backups/monday

Each node on its own machine: the same command with the same backup everywhere, but for -node:

  decree restore -cluster bank2 -members 1,2,3 -node 2=/var/lib/bank /backups/monday

To an earlier position, if the backup has it (decree verify shows FROM and TO), or to a time by the leaders' clocks:

  decree restore -cluster bank2 -node 1=/data/1 -at 1=81200 -at 2=455 /backups/monday
  decree restore -cluster bank2 -node 1=/data/1 -until 2026-03-01T02:59:00Z /backups/monday

Then start the nodes with that cluster name. Clients must begin new sessions. Nothing is overwritten: a directory with
something in it is refused, but for what an interrupted restore has left.
`,
		bind: onFiles(func(f *flag.FlagSet) fileAction {
			t := &target{}
			t.bind(f)
			quiet := f.Bool("quiet", false, "do not tell how far it has come")
			same := f.Bool("same-name", false, "allow -cluster to be the name of the old cluster; all of its nodes must be gone for good")
			at := map[rsm.ShardID]rsm.Index{}
			f.Var(pairs{func(id uint64, value string) error {
				index, err := strconv.ParseUint(value, 10, 64)
				at[rsm.ShardID(id)] = rsm.Index(index)
				return err
			}}, "at", "`SHARD=POSITION` that a shard is restored to, by default the last; once for every such shard")
			var until time.Time
			f.Func("until", "`time` (as in 2026-03-01T02:59:00Z): restore every shard to its last entry that is not later", func(s string) (err error) {
				until, err = time.Parse(time.RFC3339Nano, s)
				return err
			})
			return func(ctx context.Context, out, notes io.Writer, args []string) error {
				if t.cluster == "" || len(t.nodes) == 0 {
					return fmt.Errorf("%w: -cluster and -node are required", errUsage)
				}
				r, err := rsm.Restore(ctx, rsm.RestoreOptions{
					Backup: args[0], Cluster: t.cluster, SameName: *same, Nodes: t.nodes, Members: t.members, Voters: t.voters,
					Position: at, Until: until, Progress: meter(notes, *quiet, "verified"),
				})
				if err == nil {
					made(out, r)
				}
				return err
			}
		}),
	}
}
