package wal

import "encoding/binary"

// An encoder writes frames as etcd does, byte for byte; see TestEtcdReads and TestEtcdWrites.
type encoder struct {
	crc uint32 // the chain of checksums
}

// headSpace is what may stand before a payload in a frame: length, header of the record, header of the entry.
const headSpace = lengthBytes + headerMax + 2 + 2 + 1 + binary.MaxVarintLen64 + 1 + binary.MaxVarintLen64

// begin appends what heads a segment: checksum, metadata and mark.
func (e *encoder) begin(b []byte, first uint64) []byte {
	b = e.frame(b, typeCRC, nil)
	b = e.frame(b, typeMetadata, []byte(metadata))
	return e.mark(b, first)
}

func (e *encoder) mark(b []byte, first uint64) []byte {
	if first == 0 {
		return e.frame(b, typeMark, []byte{0x08, 0, 0x10, 0})
	}
	data := binary.AppendUvarint([]byte{0x08}, first)
	return e.frame(b, typeMark, append(data, 0x10, segmentTerm, 0x1a, 2, 0x28, 0)) // of an empty ConfState, which etcd demands
}

// frame appends a record with a few bytes of data.
func (e *encoder) frame(b []byte, typ byte, data []byte) []byte {
	e.crc = chain(e.crc, data)
	var tmp [lengthBytes + headerMax]byte
	head, pad := appendHead(tmp[:0], typ, e.crc, data != nil, len(data))
	b = append(append(b, head...), data...)
	return append(b, zeros[:pad]...)
}

// seal makes a frame of the payload of physical entry index, which stands in buf from headSpace on: it is written
// around it, in place. It returns the buffer, and the frame in it.
func (e *encoder) seal(buf []byte, index uint64) (all, frame []byte) {
	payload := buf[headSpace:]
	var tmp [headSpace]byte
	entry := append(tmp[:0], 0x08, 0, 0x10, segmentTerm, 0x18)
	entry = binary.AppendUvarint(entry, index)
	entry = append(entry, 0x22)
	entry = binary.AppendUvarint(entry, uint64(len(payload)))
	// The chain goes over all these bytes, and the payload's own checksum over most of them already.
	e.crc = chain(chain(e.crc, entry), payload[:payloadHeader])
	e.crc = continueSum(e.crc, indexSum(index), binary.LittleEndian.Uint32(payload[1:]), len(payload)-payloadHeader)
	var head [headSpace]byte
	h, pad := appendHead(head[:0], typeEntry, e.crc, true, len(entry)+len(payload))
	h = append(h, entry...)
	start := headSpace - len(h)
	copy(buf[start:], h)
	buf = append(buf, zeros[:pad]...)
	return buf, buf[start:]
}

var zeros [7]byte

// appendHead appends what stands in a frame before the data of the record, and returns how many zeros go behind.
func appendHead(b []byte, typ byte, crc uint32, data bool, size int) (head []byte, pad int) {
	at := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, typ, 0x10)
	b = binary.AppendUvarint(b, uint64(crc))
	if data {
		b = append(b, 0x1a)
		b = binary.AppendUvarint(b, uint64(size))
	}
	field := uint64(len(b) - at - lengthBytes + size)
	pad = int((8 - field%8) % 8)
	if pad != 0 {
		field |= uint64(0x80|pad) << 56
	}
	binary.LittleEndian.PutUint64(b[at:], field)
	return b, pad
}
