package core

import (
	"encoding/binary"
	"fmt"
)

// meta is what a flush records of a replica beside state, sessions and journal.
//
// Encoding, version 2: version (1 byte), varints applied, term, seq, time, chain (8 bytes, little-endian), varint version of the
// machine, then the configuration: varint index; voters, outgoing voters, learners and learners next, each a count and ids; addresses
// as in a change (members.go); removed, a count and ids. Version 1 ends after the voters, and
// has neither machine version nor configuration index. Version 3 is version 2 of a shard that was restored; older programs, which do not know the
// entries that its leaders make, refuse it. The store adds a checksum.
type meta struct {
	applied Index
	term    Term // of the entry at applied
	seq     uint64
	time    Timestamp
	chain   uint64
	machine uint64 // the version that is active
	conf    Configuration
	// restored: there may be, or have been, another history of this shard, see SessionIDAt.
	restored bool
}

const metaVersion = 3

func (m *meta) encode() []byte {
	b := []byte{metaVersion}
	if !m.restored {
		b[0] = 2
	}
	for _, v := range []uint64{uint64(m.applied), uint64(m.term), m.seq, uint64(m.time)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, m.chain)
	b = binary.AppendUvarint(b, m.machine)
	c := &m.conf
	b = binary.AppendUvarint(b, uint64(c.Index))
	for _, ids := range [][]NodeID{c.Voters, c.Outgoing, c.Learners, c.LearnersNext} {
		b = appendIDs(b, ids)
	}
	b = appendAddresses(b, c.Addresses)
	return appendIDs(b, c.Removed)
}

func appendIDs(b []byte, ids []NodeID) []byte {
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return b
}

func (r *reader) ids(what string) (ids []NodeID) {
	for n := r.count(what); n > 0; n-- {
		ids = append(ids, NodeID(r.uvarint(what)))
	}
	return ids
}

func decodeMeta(b []byte) (m meta, err error) {
	r := reader{b: b}
	version := r.byte("version")
	if r.err == nil && (version == 0 || version > metaVersion) {
		return m, fmt.Errorf("the state was stored in format %d, this program knows up to %d", version, metaVersion)
	}
	m.applied = Index(r.uvarint("applied"))
	m.term = Term(r.uvarint("term"))
	m.seq = r.uvarint("sequence")
	m.time = Timestamp(r.uvarint("time"))
	m.chain = r.uint64("chain")
	c := &m.conf
	if version == 1 {
		c.Voters = r.ids("voters")
		return m, r.err
	}
	m.machine = r.uvarint("machine version")
	c.Index = Index(r.uvarint("configuration index"))
	c.Voters, c.Outgoing = r.ids("voters"), r.ids("outgoing")
	c.Learners, c.LearnersNext = r.ids("learners"), r.ids("learners next")
	c.Addresses = r.addresses()
	c.Removed = r.ids("removed")
	m.restored = version == 3
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after the meta record")
	}
	return m, r.err
}
