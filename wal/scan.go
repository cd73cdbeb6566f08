package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// CorruptionError says that the log is damaged in a way that no crash explains: what it
// once held, and had acknowledged, is changed or gone.
//
// The replicas on this node have then forgotten promises, votes and acknowledged entries,
// and must not come back under their old identity: a majority could forget with them.
// Save the directory for examination, remove the node from the cluster and add it again
// with an empty directory under a new id. If the cause is elsewhere and can be undone, such as a
// bad copy or a missing file, undo it and start again; a refused Open has changed nothing.
type CorruptionError struct {
	File   string
	Offset int64 // in bytes, of the damaged frame
	Reason string
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("wal: %s is corrupt at byte %d: %s; what this node had acknowledged may be lost: "+
		"restore the file if you can, else replace the node under a new id (see wal.CorruptionError)", e.File, e.Offset, e.Reason)
}

func corrupt(file string, offset int64, format string, args ...any) *CorruptionError {
	return &CorruptionError{File: file, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// readBuffer is the size of the reads of a scan, in bytes.
const readBuffer = 64 << 10

// maxFileBytes bounds the file of a segment, and so what is read into memory of a torn one: it is as long as what was preallocated, and a
// single frame may go beyond that.
const maxFileBytes = maxSegmentBytes + maxFrameBytes

// segmentScan is what reading through a segment gave.
type segmentScan struct {
	segmentFile
	prev    *segmentScan // the segment before, if this one must continue it
	size    int64
	frames  int    // valid ones
	end     int64  // where these end
	newest  int64  // where the last of them begins
	crc     uint32 // the chain of checksums at end
	last    uint64 // physical index of the last valid entry, or of the one before the segment
	entries int
	marked  bool
	base    uint64 // of the last valid entry
	damage  string // why the frame at end is not valid; empty if nothing follows
}

// hasHeader reports whether the frames that a cut writes before it renames are there.
func (s *segmentScan) hasHeader() bool { return s.frames >= 2 }

// scanSegment reads a segment up to its end or to the first frame that is not valid; it
// calls visit for each entry. If prev is not nil, the segment must continue it. Only the caller can tell what damage means. An error is
// the system's, or a CorruptionError for what has a right checksum and wrong contents.
func scanSegment(in files, f segmentFile, prev *segmentScan, visit func(payload, int64) error) (*segmentScan, error) {
	file, size, err := in.open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > maxFileBytes {
		return nil, corrupt(f.path, maxFileBytes, "the file has %d bytes, more than any segment", size)
	}
	s := &segmentScan{segmentFile: f, prev: prev, size: size}
	if f.first > 0 {
		s.last = f.first - 1
	}
	if prev != nil && prev.last != s.last {
		return nil, corrupt(prev.path, prev.end, "ends with entry %d, but segment %d begins with %d", prev.last, f.seq, f.first)
	}
	r := bufio.NewReaderSize(file, int(min(size, readBuffer)))
	for {
		fr, n, err := s.readFrame(r)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return s, nil
		}
		if err := s.take(fr, n, visit); err != nil {
			return nil, err
		}
		if s.damage != "" {
			return s, nil
		}
		s.frames++
		s.newest = s.end
		s.end += n
	}
}

// readFrame reads the frame at s.end. n is 0 at the end, with s.damage set if it is not a clean one.
func (s *segmentScan) readFrame(r *bufio.Reader) (f frame, n int64, err error) {
	var head [lengthBytes]byte
	left := s.size - s.end
	switch {
	case left == 0:
		return f, 0, nil
	case left < lengthBytes:
		s.damage = "the file ends in a length" // etcd does not open this, zeros or not
		return f, 0, nil
	}
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, 0, fmt.Errorf("wal: read %s: %w", s.path, err)
	}
	field := binary.LittleEndian.Uint64(head[:])
	if field == 0 {
		return f, 0, s.expectZeros(r)
	}
	record, pad, ok := splitLength(field)
	if !ok || record+pad > left-lengthBytes {
		s.damage = "impossible length"
		return f, 0, nil
	}
	b := make([]byte, record+pad)
	if _, err := io.ReadFull(r, b); err != nil {
		return f, 0, fmt.Errorf("wal: read %s: %w", s.path, err)
	}
	if f, ok = parseFrame(b, record); !ok {
		s.damage = "malformed record"
		return f, 0, nil
	}
	return f, lengthBytes + record + pad, nil
}

// expectZeros reads the rest of the file, which was preallocated and never written.
func (s *segmentScan) expectZeros(r *bufio.Reader) error {
	for {
		b, err := r.Peek(1)
		if err == nil {
			b, err = r.Peek(r.Buffered())
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wal: read %s: %w", s.path, err)
		}
		if !allZero(b) {
			s.damage = "a zero length, and data behind it"
			return nil
		}
		if _, err := r.Discard(len(b)); err != nil {
			return fmt.Errorf("wal: read %s: %w", s.path, err)
		}
	}
}

// take verifies a frame against the place where it stands. A segment is: checksum,
// metadata, mark, entries. n is the frame's length.
func (s *segmentScan) take(f frame, n int64, visit func(payload, int64) error) error {
	if s.frames == 0 {
		if f.typ != typeCRC || f.data != nil {
			s.damage = "a segment must begin with a checksum"
			return nil
		}
		s.crc = f.crc
		return nil
	}
	crc := chain(s.crc, f.data)
	switch {
	case crc != f.crc:
		s.damage = "wrong checksum"
		return nil
	case f.typ != dueType(s.frames):
		s.damage = fmt.Sprintf("a record of type %d in place of one of type %d", f.typ, dueType(s.frames))
		return nil
	}
	if s.frames == 1 && s.prev != nil && s.prev.crc != s.crc {
		// Not at the first frame: a damaged checksum there shows only in the second.
		return corrupt(s.prev.path, s.prev.end, "the checksum at the end is not the one that segment %d continues", s.seq)
	}
	s.crc = crc
	switch f.typ {
	case typeMetadata:
		if string(f.data) != metadata {
			return corrupt(s.path, s.end, "the segment is headed %q, not %q", f.data, metadata)
		}
	case typeMark:
		index, ok := parseMark(f.data)
		if !ok || index != s.first {
			return corrupt(s.path, s.end, "the mark of the segment is wrong")
		}
		s.marked = true
	case typeEntry:
		return s.takeEntry(f, n, visit)
	}
	return nil
}

// dueType is the type of a segment's n-th record.
func dueType(n int) byte {
	return [...]byte{typeCRC, typeMetadata, typeMark, typeEntry}[min(n, 3)]
}

func (s *segmentScan) takeEntry(f frame, n int64, visit func(payload, int64) error) error {
	index, data, ok := parseEntry(f.data)
	if !ok || index != s.last+1 {
		return corrupt(s.path, s.end, "entry %d in place of %d", index, s.last+1)
	}
	p, err := decodePayload(index, data)
	if err != nil {
		return corrupt(s.path, s.end, "entry %d: %v", index, err)
	}
	if s.prev != nil {
		s.base = max(s.base, s.prev.base)
	}
	if p.base < s.base || p.base > s.seq {
		return corrupt(s.path, s.end, "entry %d needs segments from %d on, after %d", index, p.base, s.base)
	}
	s.last, s.base = index, p.base
	s.entries++
	return visit(p, n)
}
