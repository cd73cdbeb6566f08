package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/snapshot"
)

// fileAction is what a command that works on files does, with the arguments that are no flags. Progress and whatever else is not the answer goes to notes.
type fileAction func(ctx context.Context, out, notes io.Writer, args []string) error

// onFiles has a command that works on files, and speaks to no node, run as the others are.
func onFiles(bind func(f *flag.FlagSet) fileAction) func(f *flag.FlagSet) action {
	return func(f *flag.FlagSet) action {
		do := bind(f)
		return func(ctx context.Context, s *session, args []string) error {
			err := do(ctx, s.out, s.err, args)
			switch {
			case err == nil:
				return nil
			case errors.Is(err, errUsage):
				return &usageError{err}
			case errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, snapshot.ErrNoBackup), errors.Is(err, snapshot.ErrNewerFormat), errors.Is(err, snapshot.ErrTooLarge):
				return err // the answer is no
			}
			return &refusedError{err}
		}
	}
}

// errUsage is a call that cannot be meant.
var errUsage = errors.New("wrong usage")

// refusedError: nothing was done.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// meter tells now and then how far something has come, if anybody wants to know.
func meter(notes io.Writer, quiet bool, what string) func(snapshot.Progress) {
	if quiet {
		return nil
	}
	last := time.Now()
	return func(p snapshot.Progress) {
		if time.Since(last) < 2*time.Second {
			return
		}
		last = time.Now()
		if p.Total > 0 {
			fmt.Fprintf(notes, "%s: %d of %d MiB\n", what, p.Bytes>>20, p.Total>>20)
			return
		}
		fmt.Fprintf(notes, "%s: %d MiB\n", what, p.Bytes>>20)
	}
}

// describe writes what a backup is.
func describe(out io.Writer, b *snapshot.Backup) {
	fmt.Fprintf(out, "cluster  %s\nmade     %s", b.Cluster, time.Unix(0, b.Made).UTC().Format(time.RFC3339))
	if b.Node != 0 {
		fmt.Fprintf(out, " on node %d", b.Node)
	}
	if b.Library != "" {
		fmt.Fprintf(out, " by %s", b.Library)
	}
	if b.Note != "" {
		fmt.Fprintf(out, "\nnote     %s", b.Note)
	}
	fmt.Fprintf(out, "\nbytes    %d\n", b.Size())
	fmt.Fprintf(out, "%8s %12s %12s %12s %16s %s\n", "SHARD", "FROM", "TO", "BYTES", "HASH", "STATE OF")
	for i := range b.Shards {
		s := &b.Shards[i]
		hash, of := "-", "-"
		if s.HasSnapshot() {
			hash, of = fmt.Sprintf("%016x", s.Hash), time.Unix(0, s.Time).UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(out, "%8d %12d %12d %12d %16s %s\n", s.Shard, s.First(), s.Last(), s.Bytes+s.JournalBytes(), hash, of)
	}
}

func verifyCommand() *command {
	return &command{
		offline: true,
		name:    "verify", args: "DIRECTORY", min: 1, max: 1, summary: "read every byte of a backup and say whether it is whole",
		help: `Reads all of a backup: every table, every journal entry and every checksum, and that nothing is missing or too many.
If it is whole, it says what it is: each shard can be restored to every position FROM ... TO. If not, it names each
file that is damaged, and where. A backup that nobody has verified is a hope. Verify it where it is kept, now and
then.

A stream in a file is unpacked first: decree unpack DIRECTORY < FILE

Example:
  decree verify /backups/monday
`,
		bind: onFiles(func(f *flag.FlagSet) fileAction {
			quiet := f.Bool("quiet", false, "do not tell how far it has come")
			return func(ctx context.Context, out, notes io.Writer, args []string) error {
				b, err := snapshot.VerifyBackup(ctx, nil, args[0], meter(notes, *quiet, "verified"))
				if err != nil {
					return err
				}
				describe(out, b)
				fmt.Fprintln(out, "whole")
				return nil
			}
		}),
	}
}

func packCommand() *command {
	return &command{
		offline: true,
		name:    "pack", args: "DIRECTORY", min: 1, max: 1, summary: "write a backup as one stream to standard output",
		help: `Writes a backup as one stream, for a pipe to a tape, an object store or another machine. decree unpack makes a
directory of it again.

Example:
  decree pack /backups/monday | zstd | ssh vault 'cat > monday.zst'
`,
		bind: onFiles(func(f *flag.FlagSet) fileAction {
			quiet := f.Bool("quiet", false, "do not tell how far it has come")
			return func(ctx context.Context, out, notes io.Writer, args []string) error {
				return snapshot.PackBackup(ctx, nil, args[0], out, meter(notes, *quiet, "packed"))
			}
		}),
	}
}

// stdin is what unpack reads.
var stdin io.Reader = os.Stdin

func unpackCommand() *command {
	return &command{
		offline: true,
		name:    "unpack", args: "DIRECTORY", min: 1, max: 1, summary: "make a directory of a backup that comes as a stream from standard input",
		help: `Reads a stream that decree pack or a node has written, checks it as it comes, and writes the backup into a new
directory. If the stream is damaged or ends early, nothing is left. Then verify it.

Example:
  decree unpack /backups/monday < monday.stream
  zstd -d < monday.zst | decree unpack /backups/monday && decree verify /backups/monday
`,
		bind: onFiles(func(f *flag.FlagSet) fileAction {
			quiet := f.Bool("quiet", false, "do not tell how far it has come")
			return func(ctx context.Context, out, notes io.Writer, args []string) error {
				b, err := snapshot.UnpackBackup(ctx, stdin, nil, args[0], snapshot.UnpackOptions{Progress: meter(notes, *quiet, "unpacked")})
				if err == nil {
					describe(out, b)
				}
				return err
			}
		}),
	}
}

// pairs is a flag of the form KEY=VALUE that can be given more than once; keys are ids.
type pairs struct {
	add func(id uint64, value string) error
}

func (p pairs) String() string { return "" }

func (p pairs) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	id, err := strconv.ParseUint(key, 10, 64)
	if !ok || err != nil || id == 0 || value == "" {
		return fmt.Errorf("%q is not of the form ID=VALUE, with an id from 1 on", s)
	}
	return p.add(id, value)
}

// parseIDs reads ids that are separated by commas.
func parseIDs(s string) (ids []rsm.NodeID, err error) {
	for _, part := range strings.Split(s, ",") {
		id, err := strconv.ParseUint(strings.TrimSpace(part), 10, 64)
		if err != nil || id == 0 {
			return nil, fmt.Errorf("%q is not a list of node ids from 1 on, separated by commas", s)
		}
		ids = append(ids, rsm.NodeID(id))
	}
	return ids, nil
}

// target is what restore and recover make.
type target struct {
	cluster string
	nodes   map[rsm.NodeID]string
	members []rsm.NodeID
	voters  map[rsm.ShardID][]rsm.NodeID
}

func (t *target) bind(f *flag.FlagSet) {
	t.nodes, t.voters = map[rsm.NodeID]string{}, map[rsm.ShardID][]rsm.NodeID{}
	f.StringVar(&t.cluster, "cluster", "", "`name` of the new cluster, which must be another than that of the old one")
	f.Var(pairs{func(id uint64, dir string) error {
		if _, twice := t.nodes[rsm.NodeID(id)]; twice {
			return fmt.Errorf("node %d is given twice", id)
		}
		t.nodes[rsm.NodeID(id)] = dir
		return nil
	}}, "node", "`ID=DIRECTORY` of a node that is made here, missing or empty; once for every node")
	f.Func("members", "`ids` of all nodes of the new cluster, separated by commas, if not all of them are made here", func(s string) (err error) {
		t.members, err = parseIDs(s)
		return err
	})
	f.Var(pairs{func(id uint64, ids string) (err error) {
		t.voters[rsm.ShardID(id)], err = parseIDs(ids)
		return err
	}}, "voters", "`SHARD=IDS` of the nodes that host a shard, if not all of them do; once for every such shard")
}

// made writes what a restore has made.
func made(out io.Writer, r *rsm.Restored) {
	fmt.Fprintf(out, "cluster  %s\nmembers  %v\n", r.Cluster, r.Members)
	fmt.Fprintf(out, "%8s %12s %12s %12s %s\n", "SHARD", "POSITION", "SNAPSHOT", "ENTRIES", "AS OF")
	for _, s := range r.Shards {
		of := "-"
		if s.Time != 0 {
			of = s.Time.Time().Format(time.RFC3339Nano)
		}
		fmt.Fprintf(out, "%8d %12d %12d %12d %s\n", s.Shard, s.Index, s.Snapshot, s.Entries, of)
		if s.Dropped > 0 {
			fmt.Fprintf(out, "         %d changes of members among the entries were those of the old cluster, and have no effect\n", s.Dropped)
		}
	}
	fmt.Fprintf(out, "Start the nodes with this cluster name, these ids, and these voters: members %v.\n", r.Members)
}
