package core

import (
	"encoding/binary"
	"fmt"
)

// meta is what a flush records of a replica beside state, sessions and journal.
// Encoding: version (1 byte, 1), varints applied, term, seq, time, chain (8
// bytes), count of voters, voters. The store adds a checksum.
type meta struct {
	applied Index
	term    Term // of the entry at applied
	seq     uint64
	time    Timestamp
	chain   uint64
	voters  []NodeID
}

const metaVersion = 1

func (m *meta) encode() []byte {
	b := []byte{metaVersion}
	for _, v := range []uint64{uint64(m.applied), uint64(m.term), m.seq, uint64(m.time)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, m.chain)
	b = binary.AppendUvarint(b, uint64(len(m.voters)))
	for _, v := range m.voters {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return b
}

func decodeMeta(b []byte) (m meta, err error) {
	r := reader{b: b}
	if v := r.byte("version"); r.err == nil && v != metaVersion {
		return m, fmt.Errorf("the state was stored in format %d, this program knows %d", v, metaVersion)
	}
	m.applied = Index(r.uvarint("applied"))
	m.term = Term(r.uvarint("term"))
	m.seq = r.uvarint("sequence")
	m.time = Timestamp(r.uvarint("time"))
	m.chain = r.uint64("chain")
	for n := r.count("voters"); n > 0; n-- {
		m.voters = append(m.voters, NodeID(r.uvarint("voter")))
	}
	return m, r.err
}
