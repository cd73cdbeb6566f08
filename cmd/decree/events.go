package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
)

// entryReport is a line of `events -o json`.
type entryReport struct {
	Shard    uint64   `json:"shard"`
	Index    uint64   `json:"index"`
	Term     uint64   `json:"term"`
	Time     string   `json:"time"`
	Sequence uint64   `json:"sequence"`
	Kind     string   `json:"kind"`
	Note     string   `json:"note"`
	Events   []string `json:"events"` // base64
	Hash     string   `json:"hash"`   // empty: the entry has none
}

// defaultLast is how many entries are shown unless more are asked for.
const defaultLast = 20

func eventsCommand() *command {
	return &command{
		name: "events", shard: "the `shard`; it may be left out if there is one only",
		summary: "read a shard's journal, and follow it",
		help: `Shows committed entries of a shard's log: decisions with their events as the machine made them, changes of members, and what
leaders write for themselves. Without -from it begins with the last ` + fmt.Sprint(defaultLast) + `. How far back entries go depends on Config.KeepJournal;
what is gone is refused by name, and -from 0 begins with the oldest that is there. -follow waits for more, and goes on at
another node if this one goes away.

With -o json there is one object to a line, and events are in base64.

Use it to see what was decided and when, and to look into a divergence.

Examples:
  decree events -shard 1 -follow
  decree events -shard 1 -from 4711 -limit 1 -data
`,
		bind: func(f *flag.FlagSet) action {
			e := &eventReader{}
			from := f.Int64("from", -1, "`index` of the first entry; 0: the oldest there is; -1: the last ones, see -last")
			f.Uint64Var(&e.last, "last", defaultLast, "how `many` of the last entries, without -from")
			f.Uint64Var(&e.limit, "limit", 0, "how `many` entries at most; 0: all")
			f.BoolVar(&e.follow, "follow", false, "wait for more")
			f.BoolVar(&e.data, "data", false, "show the events' bytes, quoted, below each entry")
			f.Uint64Var(&e.on, "on", 0, "`id` of the node to ask")
			return func(ctx context.Context, s *session, _ []string) error {
				if *from < -1 {
					return badUsage("-from is %d: an index, 0, or -1", *from)
				}
				shards, err := s.cluster.shards(s.opts.shard)
				if err != nil {
					return err
				}
				if len(shards) != 1 {
					return badUsage("there are %d shards: say which with -shard", len(shards))
				}
				e.session, e.shard = s, shards[0]
				return e.run(ctx, *from)
			}
		},
	}
}

// eventReader reads a journal from one node after the other.
type eventReader struct {
	session      *session
	shard        uint64
	last, limit  uint64
	follow, data bool
	on           uint64

	next   uint64 // the entry to go on with; 0: the oldest
	shown  uint64
	header bool
}

func (e *eventReader) run(ctx context.Context, from int64) error {
	c := e.session.cluster
	n, err := c.live(ctx, e.shard, 0)
	if e.on != 0 {
		n, err = c.node(ctx, e.on)
	}
	if err != nil {
		return err
	}
	if e.next = uint64(max(0, from)); from < 0 {
		applied := n.shard(e.shard).GetApplied()
		e.next = applied - min(applied, e.last) + 1
	}
	for {
		err := e.read(ctx, n)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && e.follow:
			return nil // an interrupt, or the time limit, is how following ends
		case !e.follow || e.on != 0 || !goneAway(err):
			return err
		}
		c.drop(n, err)
		next, none := c.live(ctx, e.shard, 0)
		if none != nil {
			return err
		}
		c.say("%v; going on at node %d", err, next.id)
		n = next
	}
}

// goneAway reports whether another node may do better.
func goneAway(err error) bool {
	var away *unreachableError
	return errors.As(err, &away) || errors.Is(err, &rsm.Error{Code: rsm.CodeClosed}) || errors.Is(err, rsm.ErrBroken)
}

func (e *eventReader) read(ctx context.Context, n *node) error {
	r := &adminv1.JournalRequest{Shard: e.shard, From: e.next, Follow: e.follow}
	if e.limit > 0 {
		r.Limit = e.limit - e.shown
	}
	stream, err := n.admin.Journal(ctx, r)
	if err != nil {
		return readError(n, err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError(n, err)
		}
		if err := e.show(m.GetEntry()); err != nil {
			return err
		}
		e.next = m.GetEntry().GetIndex() + 1
		if e.shown++; e.shown == e.limit {
			return nil // not the node says so, which may be gone before it does
		}
	}
}

func entryHash(en *adminv1.Entry) string {
	if en.GetHash() == 0 {
		return ""
	}
	return hash(en.GetHash())
}

// eventLine has fixed widths: what is followed cannot be aligned afterwards.
const eventLine = "%-10v  %-6v  %-24v  %-9v  %-9v  %-6v  %-16v  %s\n"

func (e *eventReader) show(en *adminv1.Entry) error {
	s := e.session
	if s.json() {
		r := entryReport{Shard: e.shard, Index: en.GetIndex(), Term: en.GetTerm(), Time: instant(en.GetTime()), Sequence: en.GetSequence(),
			Kind: en.GetKind(), Note: en.GetNote(), Events: []string{}, Hash: entryHash(en)}
		for _, ev := range en.GetEvents() {
			r.Events = append(r.Events, base64.StdEncoding.EncodeToString(ev))
		}
		return json.NewEncoder(s.out).Encode(r)
	}
	if !e.header {
		e.header = true
		fmt.Fprintf(s.out, eventLine, "INDEX", "TERM", "TIME", "KIND", "SEQUENCE", "EVENTS", "HASH", "NOTE")
	}
	_, err := fmt.Fprintf(s.out, eventLine, en.GetIndex(), en.GetTerm(), dash(instant(en.GetTime())), en.GetKind(), number(en.GetSequence()),
		len(en.GetEvents()), dash(entryHash(en)), en.GetNote())
	if e.data {
		for i, ev := range en.GetEvents() {
			fmt.Fprintf(s.out, "  %d: %q\n", i, ev)
		}
	}
	return err
}
