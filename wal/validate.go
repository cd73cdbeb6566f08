package wal

import "fmt"

// validate checks what Append is handed, before anything is written.
// A shard of which nothing has been seen may begin anywhere.
func (t *tracker) validate(records []Record) error {
	// A shard may have several records in one Append: what the earlier ones change.
	var changed map[uint64]logEnd
	for i := range records {
		r := &records[i]
		end, ok := changed[r.Shard]
		if !ok {
			end = t.end(r.Shard)
		}
		next, err := end.after(r)
		if err != nil {
			return err
		}
		if next != end && len(records) > 1 {
			if changed == nil {
				changed = make(map[uint64]logEnd, len(records))
			}
			changed[r.Shard] = next
		}
	}
	return nil
}

// logEnd is where a shard's log ends, if that is known.
type logEnd struct {
	last  uint64
	known bool
	exact bool // the next entry must be last+1: set by RestartAfter, which leaves nothing to replace
}

// after returns the end after a record, or the rule that the record breaks.
func (e logEnd) after(r *Record) (logEnd, error) {
	if r.Forget {
		e = logEnd{}
	}
	if r.RestartAfter != 0 {
		e = logEnd{last: r.RestartAfter, known: true, exact: true}
	}
	if len(r.Entries) == 0 {
		return e, nil
	}
	first, size := r.Entries[0].Index, recordOverhead
	switch {
	case first == 0:
		return e, fmt.Errorf("%w: shard %d: entry index 0", ErrInvalid, r.Shard)
	case e.known && first > e.last+1:
		return e, fmt.Errorf("%w: shard %d: entry %d leaves a gap behind %d", ErrInvalid, r.Shard, first, e.last)
	case e.exact && first <= e.last:
		return e, fmt.Errorf("%w: shard %d: entry %d below the restart after %d", ErrInvalid, r.Shard, first, e.last)
	}
	for i := range r.Entries {
		if r.Entries[i].Index != first+uint64(i) {
			return e, fmt.Errorf("%w: shard %d: entry %d where %d was due", ErrInvalid, r.Shard, r.Entries[i].Index, first+uint64(i))
		}
		n := len(r.Entries[i].Data)
		if size += n + entryOverhead; n > MaxEntryBytes || size > maxPayloadBytes-recordOverhead {
			return e, fmt.Errorf("%w: shard %d: entry %d", ErrTooLarge, r.Shard, r.Entries[i].Index)
		}
	}
	return logEnd{last: first + uint64(len(r.Entries)) - 1, known: true}, nil
}

// recordBytes is an upper bound of what a record takes in a payload.
func recordBytes(r *Record) int {
	n := recordOverhead
	for i := range r.Entries {
		n += len(r.Entries[i].Data) + entryOverhead
	}
	return n
}

// split returns how many of the records go into the next payload: all of them, as
// long as it stays below splitBytes; always at least one.
func split(records []Record) int {
	size := 0
	for i := range records {
		if size += recordBytes(&records[i]); size > splitBytes && i > 0 {
			return i
		}
	}
	return len(records)
}
