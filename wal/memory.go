package wal

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
)

// memorySegmentBytes is the size of Memory's segments: they exist so that releasing works
// as it does on disk.
const memorySegmentBytes = 256 << 10

// memoryStartBytes is what a segment begins with.
const memoryStartBytes = 4 << 10

// Memory is a Log in memory, for clusters in one process and for simulation. It
// holds the very bytes that *WAL has on disk, and a Reopen reads and repairs them with the same code. It
// does no I/O, reads no clock and starts no goroutine.
type Memory struct {
	mu       sync.Mutex
	segments []memorySegment // Invariant: one per segment of the tracker
	enc      encoder
	buf      []byte // the last payload, from headSpace on
	next     uint64
	based    uint64 // Invariant: a payload says that no segment below is needed
	failed   error
	stats    Stats

	tracker *tracker
}

// memorySegment is a segment's file.
type memorySegment struct {
	segmentFile
	b     []byte // without the zeros that are preallocated on disk
	begun bool   // whether it has entries
}

var _ Log = (*Memory)(nil)

// NewMemory returns an empty log.
func NewMemory() *Memory {
	m := &Memory{next: 1, tracker: newTracker(segment{seq: 0}), buf: make([]byte, headSpace)}
	m.cut(segmentFile{path: segmentName(0, 0)})
	return m
}

// cut begins a segment.
func (m *Memory) cut(f segmentFile) {
	m.segments = append(m.segments, memorySegment{segmentFile: f, b: m.enc.begin(nil, f.first)})
}

func (m *Memory) tail() *memorySegment { return &m.segments[len(m.segments)-1] }

// Reopen is what Open is to a directory: it returns a log that goes on with what m holds,
// as after a restart, and what that is. It closes m, so that a node that was killed in
// the middle of something cannot write any more; its last Append either happened or did not.
func (m *Memory) Reopen() (*Memory, *Recovered, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = ErrClosed
	n := &Memory{buf: make([]byte, headSpace)}
	n.segments = slices.Clone(m.segments)
	for i := range m.segments {
		s := &m.segments[i]
		s.b = s.b[:len(s.b):len(s.b)] // what is behind belongs to n now, which may append there: m cannot
	}
	found, rec, err := recoverLog((*memoryFiles)(n), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	n.next, n.based, n.tracker, n.enc.crc = found.last+1, found.base, found.tracker, found.tail.crc
	tail := n.tail()
	if end := found.tail.end; end < int64(len(tail.b)) { // behind it are zeros of a write that never began
		tail.b = tail.b[:end:end]
	}
	tail.begun = found.tail.entries > 0
	if !found.tail.marked { // the crash came between the cut and its mark
		tail.b = n.enc.mark(tail.b, tail.first)
	}
	rec.Fresh = found.last == 0
	return n, rec, nil
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
	if base := m.tracker.base(); len(records) > 0 || base != m.based {
		m.write(base, records)
	}
	m.release()
	return nil
}

func (m *Memory) write(base uint64, records []Record) {
	b := encodePayload(m.buf[:headSpace], m.next, base, records)
	if t := m.tail(); t.begun && !fits(int64(len(t.b)), memorySegmentBytes, b) {
		f := segmentFile{seq: t.seq + 1, first: m.next, path: segmentName(t.seq+1, m.next)}
		m.tracker.cutTo(segment{seq: f.seq, first: f.first}, int64(len(t.b)))
		m.cut(f)
		m.stats.Segments++
	}
	m.stats.Appends++
	m.stats.Fsyncs++
	m.stats.Bytes += uint64(len(b) - headSpace)
	m.tracker.add(records, m.seal(b))
	m.next++
	m.based = base
}

// seal appends the payload in b to the tail, and returns what that takes.
func (m *Memory) seal(b []byte) int64 {
	t := m.tail()
	var frame []byte
	m.buf, frame = m.enc.seal(b, m.next)
	if n := len(t.b) + len(frame); n > cap(t.b) {
		t.b = append(make([]byte, 0, max(n, min(2*cap(t.b), memorySegmentBytes), memoryStartBytes)), t.b...)
	}
	t.b, t.begun = append(t.b, frame...), true
	return int64(len(frame))
}

// release drops the segments that a payload says nobody needs.
func (m *Memory) release() {
	for {
		oldest, more := m.tracker.oldest()
		if !more || oldest.seq >= m.based {
			return
		}
		m.segments = append(m.segments[:0:0], m.segments[1:]...)
		m.tracker.removed()
		m.stats.Released++
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

// Tear leaves what a power cut in the middle of an Append leaves, and kills the log. The caller says what that is: tear gets
// the bytes that were being written at an offset of the segment, and returns what of them has reached the disk.
func (m *Memory) Tear(records []Record, tear func(written []byte, offset int) []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := cmp.Or(m.failed, m.tracker.validate(records)); err != nil {
		return err
	}
	m.failed = ErrClosed
	t := m.tail()
	at := len(t.b)
	m.seal(encodePayload(m.buf[:headSpace], m.next, m.tracker.base(), records))
	t.b = append(t.b[:at:at], tear(t.b[at:], at)...)
	return nil
}

// Damage kills the log and lets spoil change the bytes of its segments, as a disk that rots does. They are in order,
// with their names. What a Reopen says of it is the question.
func (m *Memory) Damage(spoil func(name string, b []byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = ErrClosed
	for i := range m.segments {
		s := &m.segments[i]
		s.b = spoil(s.path, bytes.Clone(s.b))
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
	return m.stats
}

// Close implements Log. What was appended stays for Reopen.
func (m *Memory) Close() error {
	m.Fail(ErrClosed)
	return nil
}

// memoryFiles are a Memory's segments, while it is reopened.
type memoryFiles Memory

var _ files = (*memoryFiles)(nil)

func (m *memoryFiles) list() (all []segmentFile, err error) {
	for _, s := range m.segments {
		all = append(all, s.segmentFile)
	}
	return all, nil
}

func (m *memoryFiles) find(path string) (int, error) {
	i := slices.IndexFunc(m.segments, func(s memorySegment) bool { return s.path == path })
	if i < 0 {
		return 0, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return i, nil
}

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

func (m *memoryFiles) open(path string) (io.ReadSeekCloser, int64, error) {
	i, err := m.find(path)
	if err != nil {
		return nil, 0, err
	}
	b := m.segments[i].b
	return memoryFile{bytes.NewReader(b)}, int64(len(b)), nil
}

func (m *memoryFiles) keep(segmentFile, int64, []byte) (string, error) { return "", nil }

func (m *memoryFiles) truncate(path string, size int64) error {
	i, err := m.find(path)
	if err != nil {
		return err
	}
	if size > int64(len(m.segments[i].b)) {
		return errors.New("wal: a segment in memory is to be cut off behind its end")
	}
	m.segments[i].b = m.segments[i].b[:size:size]
	return nil
}

func (m *memoryFiles) confirm(string, int64, int64) error { return nil }

func (m *memoryFiles) remove(path string) error {
	i, err := m.find(path)
	if err != nil {
		return err
	}
	m.segments = slices.Delete(m.segments, i, i+1)
	return nil
}

func (m *memoryFiles) tidy() error { return nil }
