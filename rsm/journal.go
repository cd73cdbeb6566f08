package rsm

import (
	"context"

	"github.com/decree-raft/decree/internal/core"
)

// Entry is a committed entry of a shard's log, taken apart.
//
//	type Entry struct {
//		Index    Index
//		Term     Term
//		Time     Timestamp // 0: the entry has none
//		Sequence uint64    // of decided entries; 0: it is none
//		Kind     string    // decision, reads (nothing but reads rode on it), empty (a leader's first), members
//		Note     string    // for people: what a change of members did, or which version became active
//		Events   []Event   // of a decision
//		Hash     uint64    // the running hash after it, as its leader computed it
//	}
type Entry = core.LogEntry

// maxJournalEntries are returned by one call of Journal, at most.
const maxJournalEntries = 1000

// Journal returns committed entries from an index on, at most limit (0, or more than 1000: 1000) and about a mebibyte, as far as this replica has them
// on disk or in memory; none if there are none yet. CodeCompacted: the first ones are gone; first is where the log begins now.
func (s *Shard) Journal(ctx context.Context, from Index, limit int) (entries []Entry, first Index, err error) {
	if limit <= 0 || limit > maxJournalEntries {
		limit = maxJournalEntries
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, &Error{Kind: ErrNotProposed, Code: core.CodeCancelled, Message: "the caller does not wait any more", Cause: err}
	}
	var found struct { // not the results: after an error the worker may be writing to it
		entries []Entry
		first   Index
		err     error
	}
	if err := s.node.engine.look(ctx, s.id, func(w *core.Worker) { found.entries, found.first, found.err = w.Journal(s.id, from, limit) }); err != nil {
		return nil, 0, err
	}
	return found.entries, found.first, found.err
}
