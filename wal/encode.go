package wal

import "encoding/binary"

// An encoder writes frames as etcd does, byte for byte, for logs in memory; see TestMemoryIsTheDisk.
type encoder struct {
	crc uint32 // the chain of checksums
}

// begin appends what heads a segment: checksum, metadata and mark.
func (e *encoder) begin(b []byte, first uint64) []byte {
	b = e.frame(b, typeCRC, nil, nil)
	b = e.frame(b, typeMetadata, []byte(metadata), nil)
	return e.mark(b, first)
}

func (e *encoder) mark(b []byte, first uint64) []byte {
	if first == 0 {
		return e.frame(b, typeMark, []byte{0x08, 0, 0x10, 0}, nil)
	}
	data := binary.AppendUvarint([]byte{0x08}, first)
	data = append(data, 0x10, segmentTerm, 0x1a, 2, 0x28, 0) // of an empty ConfState, as etcdLog.mark has it
	return e.frame(b, typeMark, data, nil)
}

// entry appends a payload as physical entry index.
func (e *encoder) entry(b []byte, index uint64, payload []byte) []byte {
	var start [5 + 1 + 2*binary.MaxVarintLen64]byte
	data := append(start[:0], 0x08, 0, 0x10, segmentTerm, 0x18)
	data = binary.AppendUvarint(data, index)
	data = append(data, 0x22)
	data = binary.AppendUvarint(data, uint64(len(payload)))
	return e.frame(b, typeEntry, data, payload)
}

// frame appends a record whose data are start and rest.
func (e *encoder) frame(b []byte, typ byte, start, rest []byte) []byte {
	e.crc = chain(chain(e.crc, start), rest)
	size := len(start) + len(rest)
	var head [lengthBytes + headerMax]byte
	h := append(head[:lengthBytes], 0x08, typ, 0x10)
	h = binary.AppendUvarint(h, uint64(e.crc))
	if start != nil {
		h = append(h, 0x1a)
		h = binary.AppendUvarint(h, uint64(size))
	}
	record := uint64(len(h)-lengthBytes) + uint64(size)
	pad := (8 - record%8) % 8
	if pad != 0 {
		record |= (0x80 | pad) << 56
	}
	binary.LittleEndian.PutUint64(h, record)
	if need := len(b) + len(h) + size + int(pad); need > cap(b) {
		b = append(make([]byte, 0, max(need, 2*cap(b), 4096)), b...)
	}
	b = append(append(append(b, h...), start...), rest...)
	return append(b, make([]byte, pad)...)
}
