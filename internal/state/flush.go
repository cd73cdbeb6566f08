package state

import (
	"bytes"
	"errors"
	"slices"
	"sync/atomic"
)

// Flush is what becomes durable together with the frozen layer. Its slices
// belong to the shard until Flushed.
type Flush struct {
	// Index is the last applied entry whose effects are in the frozen layer
	// or earlier. It never goes back.
	Index uint64
	// Meta is the caller's record, returned by Shard.Meta after a restart.
	Meta []byte
	// Journal continues the durable journal without a gap, up to Index at
	// most; unless that is empty or truncated as a whole, then it may begin anywhere.
	Journal []JournalEntry
	// Sessions that changed, in any order, each key once.
	Sessions []KV
	// TruncateJournalBelow, if not 0, drops the journal entries below it,
	// those of this flush too.
	TruncateJournalBelow uint64
}

// KV is a session. A nil value deletes it.
type KV struct{ Key, Value []byte }

// Freeze moves all that was written since the last flush out of the way of
// new writes, so that it can be flushed. It returns false, and does nothing,
// if there is a frozen layer already. Writes in it that are recorded for undo can still be
// rolled back.
func (h *Shard) Freeze() bool {
	assert(h.scans == 0 && h.install == nil, "freeze during a scan or an install")
	if h.frozen != nil {
		return false
	}
	h.frozen, h.active = h.active, newLayer()
	h.freezeMark = h.undo.end()
	h.clean = nil // at most two layers' worth of memory at any time
	return true
}

// Unfreeze makes the frozen layer the active one again, after a rollback
// past the freeze. The active layer must be empty and no flush begun.
func (h *Shard) Unfreeze() {
	assert(h.scans == 0 && h.install == nil, "unfreeze during a scan or an install")
	assert(h.frozen != nil && h.job == nil, "unfreeze without a frozen layer, or during a flush")
	assert(len(h.active.index) == 0, "unfreeze over a layer with writes")
	h.active, h.frozen = h.frozen, nil
}

// Flush prepares the flush of the frozen layer, all of whose writes must be
// committed: no undo records older than the freeze. The shard goes on
// meanwhile; the job is then Run elsewhere and handed back with Flushed.
func (h *Shard) Flush(f Flush) *FlushJob {
	assert(h.frozen != nil && h.job == nil && h.install == nil, "flush without a frozen layer, or during a flush or an install")
	assert(h.undo.len() == 0 || h.undo.base >= h.freezeMark, "flush of writes that may be rolled back")
	assert(f.Index >= h.meta.index, "the flushed index goes back")
	j := &FlushJob{store: h.store, shard: h.id, first: !h.durable, sessions: slices.Clone(f.Sessions)}
	j.layer = h.frozen // written no more from here on
	slices.SortFunc(j.sessions, func(a, b KV) int { return bytes.Compare(a.Key, b.Key) })
	for i := 1; i < len(j.sessions); i++ {
		assert(!bytes.Equal(j.sessions[i-1].Key, j.sessions[i].Key), "a session is flushed twice")
	}
	j.meta = meta{index: f.Index, first: h.meta.first, last: h.meta.last, opaque: nonNil(slices.Clone(f.Meta))}
	j.truncateJournal(f.TruncateJournalBelow)
	j.addJournal(f.Journal, f.TruncateJournalBelow)
	h.job = j
	return j
}

// truncateJournal works out what goes from the durable journal.
func (j *FlushJob) truncateJournal(below uint64) {
	m := &j.meta
	if m.last == 0 || below <= m.first {
		return
	}
	j.dropLo, j.dropHi = m.first, min(below, m.last+1)
	if m.first = below; m.first > m.last {
		m.first, m.last = 0, 0
	}
}

// addJournal takes the entries that stay.
func (j *FlushJob) addJournal(entries []JournalEntry, below uint64) {
	for i := range entries {
		assert(entries[i].Index != 0 && entries[i].Index <= j.meta.index, "journal entry beyond the flushed index")
		assert(i == 0 || entries[i].Index == entries[i-1].Index+1, "journal entries with a gap")
	}
	for len(entries) > 0 && entries[0].Index < below {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return
	}
	m := &j.meta
	assert(m.last == 0 || entries[0].Index == m.last+1, "journal entries do not continue the journal")
	if m.last == 0 {
		m.first = entries[0].Index
	}
	m.last = entries[len(entries)-1].Index
	j.journal = entries
}

// FlushJob is one flush between Flush and Flushed.
type FlushJob struct {
	store          *Store
	shard          uint64
	first          bool // nothing is durable yet: tombstones have nothing to hide
	layer          *layer
	meta           meta
	dropLo, dropHi uint64 // journal [lo, hi) to be deleted
	journal        []JournalEntry
	sessions       []KV

	started atomic.Bool
	done    atomic.Bool
}

// Run writes the flush and makes it durable: after nil all of it is, after an
// error none of it, except that an error in the very act (see Options.OnFatal)
// leaves it open until the next Open, which then finds all or nothing.
//
// It may be called once, on any goroutine. An error is fatal for the node: the
// state of the files is no longer known, so there is no second try. Only one for which IsDamage reports true is not: tables that the flush would lie
// over are damaged, nothing has been written, and the shard needs another state (AbandonFlush, Install).
func (j *FlushJob) Run() error {
	assert(j.started.CompareAndSwap(false, true), "flush job is run twice")
	s := j.store
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.fatal.get(); err != nil {
		return err
	}
	b := tableBuilder{store: s, shard: j.shard}
	err := j.build(&b)
	if err == nil {
		err = s.ingest(b.paths)
	}
	if err != nil {
		return errors.Join(err, b.discard())
	}
	j.done.Store(true)
	return nil
}

// build writes everything in the order of its keys: data, journal, meta, sessions.
func (j *FlushJob) build(b *tableBuilder) error {
	if err := j.buildData(b); err != nil {
		return err
	}
	if err := j.buildJournal(b); err != nil {
		return err
	}
	if err := b.set(prefix(b.key[:0], j.shard, kindMeta), j.meta.encode(j.shard)); err != nil {
		return err
	}
	for _, kv := range j.sessions {
		key := append(prefix(b.key[:0], j.shard, kindSession), kv.Key...)
		var err error
		if kv.Value == nil {
			err = b.delete(key)
		} else {
			err = b.set(key, kv.Value)
		}
		if err != nil {
			return err
		}
	}
	return b.finish()
}

// buildData gives each large run of keys with the same first byte tables of its own. Machines tell kinds of keys apart
// by it, and some kinds only grow at their end: ids that rise with time, logs. Such a table overlaps nothing that is
// there, and pebble puts it at the bottom at once, where no compaction writes it again and no read looks into it for another key.
// A table that reached from one kind into the next would lie across all that was ever written of either.
func (j *FlushJob) buildData(b *tableBuilder) error {
	pairs, size := j.layer.sorted(), 0 // size: of the present table
	for len(pairs) > 0 {
		n, bytes := run(pairs)
		if max(size, bytes) >= ownTableBytes {
			if err := b.finish(); err != nil {
				return err
			}
			size = 0
		}
		if err := j.buildRun(b, pairs[:n]); err != nil {
			return err
		}
		pairs, size = pairs[n:], size+bytes
	}
	if size >= ownTableBytes {
		return b.finish()
	}
	return nil
}

// run returns how many of the pairs have the first byte of the first, and their size.
func run(pairs []keyed) (n, bytes int) {
	for n < len(pairs) && firstByte(pairs[n].key) == firstByte(pairs[0].key) {
		bytes += len(pairs[n].key) + max(pairs[n].e.n, 0)
		n++
	}
	return n, bytes
}

func firstByte(key string) int {
	if key == "" {
		return -1
	}
	return int(key[0])
}

func (j *FlushJob) buildRun(b *tableBuilder, pairs []keyed) error {
	for _, c := range pairs {
		key := append(prefix(b.key[:0], j.shard, kindData), c.key...)
		v, ok := c.e.value()
		var err error
		switch {
		case ok:
			err = b.set(key, v)
		case !j.first:
			err = b.delete(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ownTableBytes is from how many bytes on a kind of keys, and the journal, gets tables of its own.
// Nothing ever overlaps those of the journal, so that no compaction of the state rewrites history. A small
// one is not worth two more files.
const ownTableBytes = 1 << 20

func (j *FlushJob) buildJournal(b *tableBuilder) error {
	if j.dropLo < j.dropHi {
		// With the data, for it does overlap what lies below.
		if err := b.deleteRange(journalKey(nil, j.shard, j.dropLo), journalKey(nil, j.shard, j.dropHi)); err != nil {
			return err
		}
	}
	size := 0
	for i := range j.journal {
		size += len(j.journal[i].Data)
	}
	if size >= ownTableBytes {
		if err := b.finish(); err != nil {
			return err
		}
		b.journal = true
	}
	for i := range j.journal {
		e := &j.journal[i]
		b.val = encodeJournal(b.val[:0], e)
		if err := b.set(journalKey(b.key[:0], j.shard, e.Index), b.val); err != nil {
			return err
		}
	}
	if b.journal {
		b.journal = false
		return b.finish()
	}
	return nil
}

// AbandonFlush gives up a job whose Run returned an error. What was frozen stays where it is; the shard can be read, and what it needs is an Install.
func (h *Shard) AbandonFlush(j *FlushJob) {
	assert(j == h.job && !j.done.Load(), "abandoned flush is not this shard's, or has happened")
	h.job = nil
}

// Flushed takes over a job whose Run returned nil: the frozen layer goes,
// Meta, FlushedIndex and the journal advance.
func (h *Shard) Flushed(j *FlushJob) {
	assert(h.scans == 0, "flushed during a scan")
	assert(j == h.job && j.done.Load(), "flushed with a job that is not this shard's or has not succeeded")
	h.clean = &layer{index: j.layer.index} // without the tree, which nobody asks any more
	h.frozen, h.job = nil, nil
	h.durable, h.meta, h.base = true, j.meta, nil
}
