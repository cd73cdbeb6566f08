package wal

import "encoding/binary"

// etcd's record types, as they stand in a segment.
const (
	typeMetadata = 1
	typeEntry    = 2
	typeState    = 3 // never written here
	typeCRC      = 4
	typeMark     = 5 // etcd's "snapshot"
)

const (
	lengthBytes = 8
	sectorBytes = 512
	// headerMax bounds what stands before the data in a record: two tags and a byte of type,
	// a tag and a checksum, and a length.
	headerMax = 2 + 1 + binary.MaxVarintLen32 + 1 + binary.MaxVarintLen64
	// maxFrameBytes bounds a length field: the payload and what etcd puts around it.
	maxFrameBytes = maxPayloadBytes + 64
)

// frame is one record of a segment. data aliases the bytes that it was parsed from.
type frame struct {
	typ  byte
	crc  uint32 // of all data of the log up to and including this frame's
	data []byte
}

// splitLength takes a length field apart; ok is whether etcd could have written it.
func splitLength(field uint64) (record, pad int64, ok bool) {
	record = int64(field & (1<<56 - 1))
	top := field >> 56
	pad = (8 - record%8) % 8
	want := uint64(0)
	if pad != 0 {
		want = uint64(0x80 | pad)
	}
	return record, pad, record > 0 && record <= maxFrameBytes && top == want
}

// parseFrame parses a record, padding included, the way etcd writes it and no other:
// the checksum does not cover type, lengths and padding, so they must be just so.
func parseFrame(b []byte, record int64) (frame, bool) {
	var f frame
	for _, v := range b[record:] {
		if v != 0 {
			return f, false
		}
	}
	p := proto{b: b[:record], ok: true}
	f.typ = byte(p.varint(0x08, 0x7f))
	f.crc = uint32(p.varint(0x10, 1<<32-1))
	if len(p.b) > 0 {
		f.data = p.bytes(0x1a)
	}
	return f, p.ok && len(p.b) == 0
}

// parseEntry parses a physical entry: the data of a frame of typeEntry.
func parseEntry(b []byte) (index uint64, payload []byte, ok bool) {
	p := proto{b: b, ok: true}
	typ, term := p.varint(0x08, 0), p.varint(0x10, segmentTerm)
	index = p.varint(0x18, 1<<64-1)
	payload = p.bytes(0x22)
	return index, payload, p.ok && len(p.b) == 0 && typ == 0 && term == segmentTerm && index > 0
}

// parseMark parses a mark's index: the data of a frame of typeMark.
func parseMark(b []byte) (index uint64, ok bool) {
	p := proto{b: b, ok: true}
	index = p.varint(0x08, 1<<64-1)
	term := p.varint(0x10, segmentTerm)
	return index, p.ok && (term == segmentTerm || index == 0)
}

// proto reads protobuf fields that are due in one order.
type proto struct {
	b  []byte
	ok bool
}

func (p *proto) varint(tag byte, limit uint64) uint64 {
	if !p.ok || len(p.b) == 0 || p.b[0] != tag {
		p.ok = false
		return 0
	}
	v, n := binary.Uvarint(p.b[1:])
	if n <= 0 || v > limit {
		p.ok = false
		return 0
	}
	p.b = p.b[1+n:]
	return v
}

func (p *proto) bytes(tag byte) []byte {
	n := p.varint(tag, 1<<63-1)
	if !p.ok || n > uint64(len(p.b)) {
		p.ok = false
		return nil
	}
	v := p.b[:n:n]
	p.b = p.b[n:]
	return v
}
