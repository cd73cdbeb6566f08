package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/wal"
)

// walReport is what `wal -o json` writes.
type walReport struct {
	Dir      string     `json:"dir"`
	Segments int        `json:"segments"`
	Bytes    int64      `json:"bytes"`
	Torn     *tornEnd   `json:"torn"` // what the next start will cut off; null: the log is whole
	Shards   []walShard `json:"shards"`
}

type tornEnd struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	Bytes  int64  `json:"bytes"`
}

type walShard struct {
	Shard        uint64     `json:"shard"`
	Term         uint64     `json:"term"`
	Vote         uint64     `json:"vote"`
	Commit       uint64     `json:"commit"`
	RestartAfter uint64     `json:"restart_after"` // the log goes on behind a snapshot of this index; 0: there was none
	First        uint64     `json:"first"`         // entry; 0: none
	Last         uint64     `json:"last"`
	Entries      int        `json:"entries"`
	EntryBytes   int64      `json:"entry_bytes"`
	List         []walEntry `json:"list,omitempty"` // with -entries
}

type walEntry struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	Type  uint8  `json:"type"`
	Bytes int    `json:"bytes"`
}

func walCommand() *command {
	return &command{
		name: "wal", args: "DIR", min: 1, max: 1, offline: true, shard: "only this `shard`",
		summary: "show what a stopped node's write-ahead log holds",
		help: `Reads the write-ahead log of a node that does not run, verifies every checksum, and shows for each shard what the node has
promised (term, vote), what it knows to be committed, and the entries it has. DIR is the node's data directory, or the log's
own. Nothing is changed: an end that a crash has torn is reported, and cut off by the node's next start. Damage is named by
file and offset, with exit code 1. The log of a running node is refused.

Use it when a node does not start, and to find which node has the longest log after a disaster.

Examples:
  decree wal /var/lib/orders
  decree wal -shard 1 -entries /var/lib/orders
`,
		bind: func(f *flag.FlagSet) action {
			entries := f.Bool("entries", false, "list the entries")
			return func(_ context.Context, s *session, args []string) error { return s.readWAL(args[0], *entries) }
		},
	}
}

func (s *session) readWAL(dir string, list bool) error {
	if inside := filepath.Join(dir, "wal"); isDir(inside) {
		dir = inside
	}
	rec, size, err := wal.Inspect(dir)
	switch {
	case errors.Is(err, wal.ErrLocked):
		return notProposed("in_use", "%s is the log of a running node: stop the node first, or look at a copy; decree status shows a running node", dir)
	case errors.Is(err, os.ErrNotExist):
		return badUsage("there is no write-ahead log in %s: name a node's data directory", dir)
	case err != nil:
		return err
	}
	r := walReport{Dir: dir, Segments: size.Segments, Bytes: size.Bytes, Shards: []walShard{}}
	if rec.Repaired != nil {
		r.Torn = &tornEnd{rec.Repaired.File, rec.Repaired.Offset, rec.Repaired.Bytes}
	}
	for _, id := range slices.Sorted(maps.Keys(rec.Shards)) {
		if s.opts.shard == 0 || s.opts.shard == id {
			r.Shards = append(r.Shards, walShardOf(id, rec.Shards[id], list))
		}
	}
	if s.opts.shard != 0 && len(r.Shards) == 0 {
		return notProposed(rsm.CodeNoShard, "the log in %s has nothing of shard %d", dir, s.opts.shard)
	}
	return s.print(r, func(w *tabwriter.Writer) { r.table(w) })
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

func walShardOf(id uint64, l *wal.ShardLog, list bool) walShard {
	r := walShard{Shard: id, Term: l.HardState.Term, Vote: l.HardState.Vote, Commit: l.HardState.Commit, RestartAfter: l.RestartAfter, Entries: len(l.Entries)}
	for _, e := range l.Entries {
		r.EntryBytes += int64(len(e.Data))
		if list {
			r.List = append(r.List, walEntry{e.Index, e.Term, e.Type, len(e.Data)})
		}
	}
	if n := len(l.Entries); n > 0 {
		r.First, r.Last = l.Entries[0].Index, l.Entries[n-1].Index
	}
	return r
}

func (r *walReport) table(w *tabwriter.Writer) {
	fmt.Fprintf(w, "%s: %s, %s; every checksum is right\n", r.Dir, plural(r.Segments, "segment"), size(r.Bytes))
	if r.Torn != nil {
		fmt.Fprintf(w, "the end is torn, as a crash leaves it: %s from byte %d of %s on will be cut off by the next start\n", size(r.Torn.Bytes), r.Torn.Offset, r.Torn.File)
	}
	fmt.Fprintln(w)
	row(w, "SHARD", "TERM", "VOTE", "COMMIT", "FIRST", "LAST", "ENTRIES", "SIZE", "RESTARTED BEHIND")
	for _, s := range r.Shards {
		row(w, s.Shard, s.Term, number(s.Vote), s.Commit, number(s.First), number(s.Last), s.Entries, size(s.EntryBytes), number(s.RestartAfter))
	}
	for _, s := range r.Shards {
		if len(s.List) == 0 {
			continue
		}
		fmt.Fprintf(w, "\nentries of shard %d\n", s.Shard)
		row(w, "INDEX", "TERM", "TYPE", "BYTES")
		for _, e := range s.List {
			row(w, e.Index, e.Term, e.Type, e.Bytes)
		}
	}
}
