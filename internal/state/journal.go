package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// JournalEntry is a committed entry as history keeps it.
type JournalEntry struct {
	Index, Term uint64
	Type        uint8
	Data        []byte
}

// JournalBounds returns the first and the last index of the durable journal,
// 0 and 0 if it is empty. A flush that truncates takes entries away when it
// begins, since they may vanish at any moment of its Run; it adds entries when it ends.
func (h *Shard) JournalBounds() (first, last uint64) {
	first, last = h.meta.first, h.meta.last
	if h.job != nil && h.job.dropHi > first {
		first = h.job.dropHi
	}
	if first > last {
		return 0, 0
	}
	return first, last
}

// Journal returns durable entries from lo on: below hi, and of at most
// maxBytes of data together, but at least one if there is one. It is empty
// if lo is beyond the last. The entries are the caller's.
//
// ErrCompacted: lo is below the first. ErrCorrupt or another error: what is
// there cannot be read; the replica must stop.
func (h *Shard) Journal(lo, hi, maxBytes uint64) (entries []JournalEntry, err error) {
	first, last := h.JournalBounds()
	if last == 0 || lo > last || lo >= hi {
		return nil, nil
	}
	if lo < first {
		return nil, fmt.Errorf("%w: %d, the first is %d", ErrCompacted, lo, first)
	}
	hi = min(hi, last+1)
	size := uint64(0)
	err = readJournal(h.reader(), h.id, lo, hi, func(e JournalEntry) error {
		if size += uint64(len(e.Data)); size > maxBytes && len(entries) > 0 {
			return errEnough
		}
		entries = append(entries, e.clone())
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return entries, nil
}

var errEnough = errors.New("state: enough")

func (e JournalEntry) clone() JournalEntry {
	e.Data = append([]byte(nil), e.Data...)
	return e
}

// WholeJournal yields all durable entries, ascending. Their data are valid during the call only. An error of yield ends it and
// is returned. For audits.
func (h *Shard) WholeJournal(yield func(JournalEntry) error) error {
	first, last := h.JournalBounds()
	if last == 0 {
		return nil
	}
	return readJournal(h.reader(), h.id, first, last+1, yield)
}

// readJournal yields the entries lo <= index < hi, all of which must be there. Their data are valid during the call only. An error of
// yield ends it and is returned.
func readJournal(r pebble.Reader, shard, lo, hi uint64, yield func(JournalEntry) error) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{
		LowerBound: journalKey(nil, shard, lo), UpperBound: journalKey(nil, shard, hi)})
	if err != nil {
		return fmt.Errorf("state: journal: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	next := lo
	for ok := it.First(); ok; ok = it.Next() {
		e, err := journalAt(it, next)
		if err != nil {
			return err
		}
		if err := yield(e); err != nil {
			return err
		}
		next++
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("state: journal: %w", err)
	}
	if next != hi {
		return fmt.Errorf("%w: journal of shard %d lacks entry %d of those up to %d", ErrCorrupt, shard, next, hi-1)
	}
	return nil
}

// journalAt decodes the entry at which it stands, which must be that of index want.
func journalAt(it *pebble.Iterator, want uint64) (JournalEntry, error) {
	key := it.Key()
	if len(key) != prefixLen+8 || binary.BigEndian.Uint64(key[prefixLen:]) != want {
		return JournalEntry{}, fmt.Errorf("%w: journal lacks entry %d, found key %s", ErrCorrupt, want, shortKey(key))
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return JournalEntry{}, fmt.Errorf("state: journal entry %d: %w", want, err)
	}
	return decodeJournal(want, v)
}

// LoadSessions yields all durable sessions, ascending by key; not during a flush. Key and value are valid
// during the call only. An error of yield ends it and is returned as it is.
func (h *Shard) LoadSessions(yield func(key, value []byte) error) (err error) {
	assert(h.job == nil && h.install == nil, "sessions are loaded during a flush or an install")
	it, err := h.store.db.NewIter(&pebble.IterOptions{
		LowerBound: prefix(nil, h.id, kindSession), UpperBound: prefixEnd(nil, h.id, kindSession)})
	if err != nil {
		return fmt.Errorf("state: sessions: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("state: sessions: %w", err)
		}
		if err := yield(it.Key()[prefixLen:], v); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("state: sessions: %w", err)
	}
	return nil
}
