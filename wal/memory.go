package wal

import (
	"fmt"
	"sync"
)

// memorySegmentBytes is the size of Memory's segments: they exist so that releasing works
// as it does on disk.
const memorySegmentBytes = 256 << 10

// Memory is a Log in memory, for clusters in one process and for simulation. It
// stores the same payloads as *WAL, so that what is appended went through the same
// encoding when it is recovered. It does no I/O, reads no clock and starts no goroutine.
type Memory struct {
	mu sync.Mutex
	// Invariant: one element per segment of the tracker, with its payloads.
	payloads [][][]byte
	first    uint64 // physical index of the first payload
	next     uint64
	failed   error
	appends  uint64
	bytes    uint64
	cuts     uint64
	released uint64

	tracker *tracker
}

var _ Log = (*Memory)(nil)

// NewMemory returns an empty log.
func NewMemory() *Memory {
	return &Memory{payloads: make([][][]byte, 1), first: 1, next: 1, tracker: newTracker(segment{first: 1})}
}

// Reopen is what Open is to a directory: it returns a log that goes on with what m holds,
// as after a restart, and what that is. It closes m, so that a node that was killed in
// the middle of something cannot write any more; its last Append either happened or did not.
func (m *Memory) Reopen() (*Memory, *Recovered, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = ErrClosed
	n := NewMemory()
	rec := &Recovered{Shards: map[uint64]*ShardLog{}, Fresh: m.next == 1}
	n.first, n.next = m.first, m.first
	base := m.tracker.segments[0].seq
	n.tracker = newTracker(segment{seq: base, first: m.first})
	n.payloads = n.payloads[:0]
	for i, payloads := range m.payloads {
		if i > 0 {
			n.tracker.cutTo(segment{seq: base + uint64(i), first: n.next}, n.tracker.tail().bytes)
		}
		n.payloads = append(n.payloads, payloads[:len(payloads):len(payloads)])
		for _, b := range payloads {
			if err := n.replay(rec, b); err != nil {
				return nil, nil, err
			}
		}
	}
	return n, rec, nil
}

func (m *Memory) replay(rec *Recovered, b []byte) error {
	p, err := decodePayload(m.next, b)
	if err != nil {
		return fmt.Errorf("wal: entry %d in memory: %w", m.next, err)
	}
	if err := m.tracker.validate(p.records); err != nil {
		return fmt.Errorf("wal: entry %d in memory: %w", m.next, err)
	}
	m.tracker.add(p.records, int64(len(b)))
	m.next++
	for i := range p.records {
		rec.apply(&p.records[i])
	}
	return nil
}

// Append implements Log.
func (m *Memory) Append(records []Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	if err := m.tracker.validate(records); err != nil {
		m.failed = err
		return err
	}
	if len(records) > 0 {
		m.add(records)
	}
	m.release()
	return nil
}

func (m *Memory) add(records []Record) {
	size := payloadHeader + recordOverhead
	for i := range records {
		size += recordBytes(&records[i])
	}
	b := encodePayload(make([]byte, 0, size), m.next, m.tracker.base(), records)
	tail := len(m.payloads) - 1
	m.payloads[tail] = append(m.payloads[tail], b)
	m.tracker.add(records, int64(len(b)))
	m.next++
	m.appends++
	m.bytes += uint64(len(b))
	if t := m.tracker.tail(); t.bytes >= memorySegmentBytes {
		m.tracker.cutTo(segment{seq: t.seq + 1, first: m.next}, t.bytes)
		m.payloads = append(m.payloads, nil)
		m.cuts++
	}
}

// release drops the segments that nobody needs.
func (m *Memory) release() {
	base := m.tracker.base()
	for {
		oldest, next, more := m.tracker.oldest()
		if !more || oldest.seq >= base {
			return
		}
		m.first = next.first
		m.payloads = append(m.payloads[:0:0], m.payloads[1:]...)
		m.tracker.removed()
		m.released++
	}
}

// Fail makes err the answer to every later Append, as a failed fsync does.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		m.failed = err
	}
}

// Flushed implements Log.
func (m *Memory) Flushed(shard, index uint64) { m.tracker.flush(shard, index) }

// Pinned implements Log.
func (m *Memory) Pinned() []Pin { return m.tracker.pinned() }

// Size implements Log.
func (m *Memory) Size() (segments int, bytes int64) { return m.tracker.size() }

// Stats implements Log.
func (m *Memory) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{Appends: m.appends, Bytes: m.bytes, Fsyncs: m.appends, Segments: m.cuts, Released: m.released}
}

// Close implements Log. What was appended stays for Reopen.
func (m *Memory) Close() error {
	m.Fail(ErrClosed)
	return nil
}
