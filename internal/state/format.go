package state

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"
)

// The byte tables stand in doc.go.

const (
	kindData    = 'd'
	kindJournal = 'j'
	kindMeta    = 'm'
	kindSession = 's'

	prefixLen = 9 // shard id, kind

	storeVersion   = 1 // of the whole directory, in the marker file
	metaVersion    = 1
	journalVersion = 1

	storeMagic   = "DECSTATE"
	markerLen    = len(storeMagic) + 4 + 8
	metaFixedLen = 1 + 3*8
)

// prefix appends the nine bytes that every key of (shard, kind) begins with.
func prefix(dst []byte, shard uint64, kind byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, shard)
	return append(dst, kind)
}

// prefixEnd appends the first key after all keys of (shard, kind). Kinds are
// letters, so the next byte always exists.
func prefixEnd(dst []byte, shard uint64, kind byte) []byte { return prefix(dst, shard, kind+1) }

// shardSpan holds all keys of a shard, whatever their kind: kinds are between 0 and 0xff.
func shardSpan(shard uint64) pebble.KeyRange {
	return pebble.KeyRange{Start: prefix(nil, shard, 0), End: prefix(nil, shard, 0xff)}
}

func journalKey(dst []byte, shard, index uint64) []byte {
	return binary.BigEndian.AppendUint64(prefix(dst, shard, kindJournal), index)
}

// meta is the record that names a durable flush. It also holds the bounds of
// the journal, so that lost journal entries are found as corruption, not
// taken for a short journal.
type meta struct {
	index       uint64
	first, last uint64 // journal, 0 if none
	opaque      []byte
}

func (m meta) encode(shard uint64) []byte {
	b := make([]byte, 0, metaFixedLen+len(m.opaque)+8)
	b = append(b, metaVersion)
	b = binary.BigEndian.AppendUint64(b, m.index)
	b = binary.BigEndian.AppendUint64(b, m.first)
	b = binary.BigEndian.AppendUint64(b, m.last)
	b = append(b, m.opaque...)
	return binary.BigEndian.AppendUint64(b, metaSum(shard, b))
}

// metaSum covers the shard id too: a record under the wrong shard is corrupt.
func metaSum(shard uint64, b []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], shard)
	d.Write(id[:])
	d.Write(b)
	return d.Sum64()
}

func decodeMeta(shard uint64, b []byte) (meta, error) {
	if len(b) > 0 && b[0] > metaVersion {
		return meta{}, fmt.Errorf("%w: the meta record of shard %d has version %d, this program knows up to %d",
			ErrNewerFormat, shard, b[0], metaVersion)
	}
	if len(b) < metaFixedLen+8 || b[0] == 0 {
		return meta{}, fmt.Errorf("%w: meta record of shard %d is malformed (%d bytes)", ErrCorrupt, shard, len(b))
	}
	body, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
	if metaSum(shard, body) != sum {
		return meta{}, fmt.Errorf("%w: meta record of shard %d fails its checksum", ErrCorrupt, shard)
	}
	m := meta{
		index:  binary.BigEndian.Uint64(body[1:]),
		first:  binary.BigEndian.Uint64(body[9:]),
		last:   binary.BigEndian.Uint64(body[17:]),
		opaque: append([]byte{}, body[metaFixedLen:]...),
	}
	if m.first > m.last || m.last > m.index || (m.first == 0) != (m.last == 0) {
		return meta{}, fmt.Errorf("%w: meta record of shard %d: journal [%d, %d] at index %d",
			ErrCorrupt, shard, m.first, m.last, m.index)
	}
	return m, nil
}

// encodeJournal appends the value of e. It has no checksum of its own: every
// read checks that of the block.
func encodeJournal(dst []byte, e *JournalEntry) []byte {
	dst = append(dst, journalVersion, e.Type)
	dst = binary.AppendUvarint(dst, e.Term)
	return append(dst, e.Data...)
}

// decodeJournal returns an entry whose data are in b.
func decodeJournal(index uint64, b []byte) (JournalEntry, error) {
	if len(b) > 0 && b[0] > journalVersion {
		return JournalEntry{}, fmt.Errorf("%w: journal entry %d has version %d, this program knows up to %d",
			ErrNewerFormat, index, b[0], journalVersion)
	}
	if len(b) < 3 || b[0] == 0 {
		return JournalEntry{}, fmt.Errorf("%w: journal entry %d is malformed (%d bytes)", ErrCorrupt, index, len(b))
	}
	term, n := binary.Uvarint(b[2:])
	if n <= 0 {
		return JournalEntry{}, fmt.Errorf("%w: journal entry %d has no term", ErrCorrupt, index)
	}
	return JournalEntry{Index: index, Term: term, Type: b[1], Data: b[2+n:]}, nil
}

func encodeMarker() []byte {
	b := append([]byte(nil), storeMagic...)
	b = binary.BigEndian.AppendUint32(b, storeVersion)
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

func checkMarker(b []byte) error {
	if len(b) != markerLen || string(b[:len(storeMagic)]) != storeMagic {
		return fmt.Errorf("%w: %s is not a format marker (%d bytes)", ErrCorrupt, markerName, len(b))
	}
	if xxhash.Sum64(b[:markerLen-8]) != binary.BigEndian.Uint64(b[markerLen-8:]) {
		return fmt.Errorf("%w: %s fails its checksum", ErrCorrupt, markerName)
	}
	v := binary.BigEndian.Uint32(b[len(storeMagic):])
	if v > storeVersion {
		return fmt.Errorf("%w: the state directory has format version %d, this program knows up to %d; use the newer program",
			ErrNewerFormat, v, storeVersion)
	}
	if v == 0 {
		return fmt.Errorf("%w: format version 0", ErrCorrupt)
	}
	return nil
}
