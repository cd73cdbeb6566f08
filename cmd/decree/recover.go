package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/decree-raft/decree/rsm"
)

func recoverCommand() *command {
	return &command{
		offline: true,
		name:    "recover", args: "SURVIVOR...", min: 1, max: 1 << 10, summary: "rebuild a cluster that has lost its quorum for good; may lose acknowledged commands",
		help: `For the day when a majority of the nodes is gone FOR EVER. As long as there is hope for their disks, do not: wait, or
restore a backup. Whatever a majority has acknowledged without the nodes that are left is lost.

The arguments are the data directories of the nodes that are left, all of them, stopped. They are not changed.

Step 1, without -confirm: look. It says what is left of each shard, which log is the best, what may be lost, and what
is kept although it may never have been committed. It ends with a token:

Example:
  decree recover -cluster bank2 -backup /backups/last -node 1=/data/1 -node 2=/data/2 -node 3=/data/3 /old/node4 /old/node5

Step 2: if that is what you want, the same with the token:

  decree recover -confirm 1a2b-3c4d-5e6f -cluster bank2 -backup /backups/last -node 1=/data/1 ... /old/node4 /old/node5

What was found is written as a backup first (-backup, a new directory), and the nodes are restored from it, as decree
restore does. The old nodes must never be started again: the new cluster has another name, and refuses them. If a
majority is there, nothing is lost, and nothing is done: start those nodes.
`,
		bind: onFiles(func(f *flag.FlagSet) fileAction {
			t := &target{}
			t.bind(f)
			quiet := f.Bool("quiet", false, "do not tell how far it has come")
			backup := f.String("backup", "", "new `directory` for a backup of what is found")
			confirm := f.String("confirm", "", "`token` that was shown without it")
			even := f.Bool("even-with-majority", false, "go on although a majority of the voters is there")
			return func(ctx context.Context, out, notes io.Writer, args []string) error {
				o := rsm.RecoverOptions{
					Survivors: args, Backup: *backup, Cluster: t.cluster, Nodes: t.nodes, Members: t.members, Voters: t.voters,
					EvenWithMajority: *even, Confirm: *confirm, Progress: meter(notes, *quiet, "copied"),
				}
				if t.cluster == "" || len(t.nodes) == 0 || *backup == "" {
					return fmt.Errorf("%w: -cluster, -node and -backup are required", errUsage)
				}
				if *confirm == "" {
					plan, err := rsm.Inspect(ctx, o)
					if err != nil {
						return err
					}
					fmt.Fprint(out, plan)
					return fmt.Errorf("nothing was done: to go on, say -confirm %s", plan.Token)
				}
				plan, r, err := rsm.Recover(ctx, o)
				if err != nil {
					return err
				}
				fmt.Fprint(out, plan, "\n")
				made(out, r)
				return nil
			}
		}),
	}
}
