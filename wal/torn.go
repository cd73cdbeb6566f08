package wal

import (
	"bytes"
	"encoding/binary"
)

// A crash in the middle of a write leaves less than was written: the file ends early,
// or from some byte on there are the zeros that were preallocated, or some 512-byte
// sectors are zero because the disk wrote the others first. Nothing that was there is
// changed. An Append is one frame and no other is begun before its fsync returned, so:
//
//   - If a valid entry follows the damage, the damaged frame was durable once: corruption.
//   - If none follows, the frame is the last thing written. It is taken for torn if
//     something is missing from it in one of the ways above, and for corrupt if not.
//
// The second is a judgement: whether the last frame had been acknowledged cannot be
// seen. What helps is that a payload ends in a byte that is not zero, so that a lost end
// shows. What remains are faults of the disk that look like a crash: an acknowledged last
// frame of which a sector is later read as zeros, and one with a sector of zeros in a value
// of its own and damage elsewhere. Both are taken for torn and cut off (into a .broken file).

// verdict is what the bytes behind the last valid frame are.
type verdict struct {
	torn   bool   // left by a crash; else corruption
	offset int64  // from the start of the bytes: where the fault is
	reason string // why not torn, or what is missing
}

// judgeTail judges rest, the bytes of the last segment from offset at to its end,
// which do not begin with a valid frame and are not all zero. The last entry that was valid has
// index last.
func judgeTail(rest []byte, at int64, last uint64) verdict {
	if findEntry(rest[unreadable(rest, at):], last) {
		return verdict{reason: "damaged, though valid entries follow"}
	}
	if len(rest) < lengthBytes {
		return verdict{torn: true, reason: "the file ends in a length"}
	}
	written := int64(len(bytes.TrimRight(rest, "\x00")))
	field := binary.LittleEndian.Uint64(rest)
	if field == 0 {
		if firstChunkZero(rest, at) {
			return verdict{torn: true, reason: "the sector with the length is missing"}
		}
		return verdict{reason: "the length is zero, but data follows"}
	}
	record, pad, ok := splitLength(field)
	if !ok {
		if written <= lengthBytes {
			return verdict{torn: true, reason: "the length is cut off"}
		}
		return verdict{reason: "impossible length"}
	}
	return judgeFrame(rest, at, written, record, pad)
}

// judgeFrame judges a frame that has a possible length.
func judgeFrame(rest []byte, at, written, record, pad int64) verdict {
	end := lengthBytes + record + pad
	have := min(end, int64(len(rest)))
	missing := zeroChunks(rest[:have], at)
	switch {
	case written > end:
		return verdict{offset: end, reason: "data behind the last frame"}
	case written <= lengthBytes+headerMax:
		return verdict{torn: true, reason: "the frame is cut off in its header"}
	case !touches(missing, 0, lengthBytes+headerMax) && !lengthsAgree(rest[lengthBytes:have], record):
		return verdict{reason: "the lengths of frame and record disagree"}
	case end > int64(len(rest)):
		return verdict{torn: true, reason: "the file ends in the frame"}
	case rest[end-pad-1] == 0:
		return verdict{torn: true, reason: "the frame is cut off"}
	case len(missing) > 0:
		return verdict{torn: true, reason: "sectors of the frame are missing"}
	}
	return verdict{reason: "damaged, and nothing is missing from it"}
}

// unreadable returns how many bytes at the start of rest the frame takes that is not valid: all of it if its two lengths are there and
// agree, else no more than a length. What is inside a frame is somebody's data, which may be a copy of a log, and is no frame that follows.
func unreadable(rest []byte, at int64) int64 {
	if len(rest) < lengthBytes {
		return int64(len(rest))
	}
	record, pad, ok := splitLength(binary.LittleEndian.Uint64(rest))
	end := lengthBytes + record + pad
	if !ok || end > int64(len(rest)) || touches(zeroChunks(rest[:end], at), 0, lengthBytes+headerMax) || !lengthsAgree(rest[lengthBytes:end], record) {
		return lengthBytes
	}
	return end
}

// findEntry reports whether there is a valid entry in rest that may follow index last. Frames begin at
// multiples of 8. An entry has a checksum of its own over index and payload, so it
// can be recognised though the chain of checksums before it is broken.
func findEntry(rest []byte, last uint64) bool {
	for off := 0; off+lengthBytes < len(rest); off += 8 {
		b := rest[off:]
		record, pad, ok := splitLength(binary.LittleEndian.Uint64(b))
		if !ok || lengthBytes+record+pad > int64(len(b)) {
			continue
		}
		f, ok := parseFrame(b[lengthBytes:lengthBytes+record+pad], record)
		if !ok || f.typ != typeEntry {
			continue
		}
		index, payload, ok := parseEntry(f.data)
		// Between it and the last one there is no room for more frames than that.
		if !ok || index <= last || index-last > uint64(off)/lengthBytes+2 {
			continue
		}
		if _, err := checkPayload(index, payload); err == nil {
			return true
		}
	}
	return false
}

// lengthsAgree reports whether a record's own length of its data fits the frame's length.
func lengthsAgree(b []byte, record int64) bool {
	p := proto{b: b[:min(record, int64(len(b)))], ok: true}
	p.varint(0x08, 0x7f)
	p.varint(0x10, 1<<32-1)
	n := p.varint(0x1a, maxFrameBytes)
	head := min(record, int64(len(b))) - int64(len(p.b))
	return p.ok && head+int64(n) == record
}

// extent is a range of bytes.
type extent struct{ from, to int64 }

// zeroChunks returns the parts of b, cut at sector boundaries of the file, that are all zero.
func zeroChunks(b []byte, at int64) []extent {
	var zero []extent
	for from := int64(0); from < int64(len(b)); {
		to := min(from+sectorBytes-(at+from)%sectorBytes, int64(len(b)))
		if allZero(b[from:to]) {
			zero = append(zero, extent{from, to})
		}
		from = to
	}
	return zero
}

// firstChunkZero reports whether b is zero up to the file's next sector boundary.
func firstChunkZero(b []byte, at int64) bool {
	return allZero(b[:min(sectorBytes-at%sectorBytes, int64(len(b)))])
}

func touches(chunks []extent, from, to int64) bool {
	for _, c := range chunks {
		if c.from < to && from < c.to {
			return true
		}
	}
	return false
}

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroPage))
		if !bytes.Equal(b[:n], zeroPage[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

var zeroPage [pageBytes]byte // to compare with, which is done many bytes at a time
