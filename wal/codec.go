package wal

import (
	"encoding/binary"
	"fmt"
)

// The payload of a physical entry; doc.go has the byte table.
const (
	payloadVersion = 1
	payloadHeader  = 5    // version and checksum
	endMark        = 0xA5 // last byte: never zero, so that a lost end shows

	flagHardState = 1 << 0
	flagForget    = 1 << 1
	flagRestart   = 1 << 2
	flagsKnown    = flagHardState | flagForget | flagRestart

	// The least that a record and an entry take: a bound on what a count may promise.
	minRecordBytes = 3 // shard, flags, count
	minEntryBytes  = 3 // term, type, length
)

// MaxEntryBytes is the limit of one Entry.Data. A larger one is refused with ErrTooLarge.
const MaxEntryBytes = 256 << 20

const (
	// maxPayloadBytes is the limit of one payload, and so of one Record.
	maxPayloadBytes = 1 << 30
	// splitBytes is where an Append, of which one payload is one write, becomes several.
	splitBytes = 64 << 20
	// entryOverhead is more than what an entry, recordOverhead than what a record takes beside data.
	entryOverhead  = 16
	recordOverhead = 64
)

// encodePayload appends the payload of physical entry index to b.
func encodePayload(b []byte, index, base uint64, records []Record) []byte {
	at := len(b)
	b = append(b, payloadVersion, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, base)
	b = binary.AppendUvarint(b, uint64(len(records)))
	for i := range records {
		b = appendRecord(b, &records[i])
	}
	b = append(b, endMark)
	binary.LittleEndian.PutUint32(b[at+1:], payloadSum(index, b[at+payloadHeader:]))
	return b
}

func appendRecord(b []byte, r *Record) []byte {
	b = binary.AppendUvarint(b, r.Shard)
	flags := byte(0)
	if !r.HardState.IsZero() {
		flags |= flagHardState
	}
	if r.Forget {
		flags |= flagForget
	}
	if r.RestartAfter != 0 {
		flags |= flagRestart
	}
	b = append(b, flags)
	if flags&flagRestart != 0 {
		b = binary.AppendUvarint(b, r.RestartAfter)
	}
	if flags&flagHardState != 0 {
		b = binary.AppendUvarint(b, r.HardState.Term)
		b = binary.AppendUvarint(b, r.HardState.Vote)
		b = binary.AppendUvarint(b, r.HardState.Commit)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Entries)))
	if len(r.Entries) > 0 {
		b = binary.AppendUvarint(b, r.Entries[0].Index)
	}
	for i := range r.Entries {
		e := &r.Entries[i]
		b = binary.AppendUvarint(b, e.Term)
		b = append(b, e.Type)
		b = binary.AppendUvarint(b, uint64(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}

// payload is a decoded physical entry. The entries' data point into the bytes it was decoded from.
type payload struct {
	base    uint64 // sequence number of the oldest segment that was needed
	records []Record
}

// checkPayload verifies a payload's frame and checksum, and returns its body.
func checkPayload(index uint64, data []byte) ([]byte, error) {
	switch {
	case len(data) < payloadHeader+3:
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(data))
	case len(data) > maxPayloadBytes:
		return nil, fmt.Errorf("%w: %d bytes are beyond the limit", ErrMalformed, len(data))
	case data[0] != payloadVersion:
		return nil, fmt.Errorf("%w: version %d, known is %d", ErrMalformed, data[0], payloadVersion)
	case data[len(data)-1] != endMark:
		return nil, fmt.Errorf("%w: no end mark", ErrMalformed)
	case binary.LittleEndian.Uint32(data[1:]) != payloadSum(index, data[payloadHeader:]):
		return nil, fmt.Errorf("%w: checksum", ErrMalformed)
	}
	return data[payloadHeader : len(data)-1], nil
}

// decodePayload decodes the payload of physical entry index. The result aliases data.
func decodePayload(index uint64, data []byte) (payload, error) {
	body, err := checkPayload(index, data)
	if err != nil {
		return payload{}, err
	}
	return decodeBody(body)
}

// decodeBody decodes what stands between a payload's header and its end mark.
func decodeBody(body []byte) (payload, error) {
	r := reader{b: body}
	p := payload{base: r.uvarint("base")}
	n := r.count("records", minRecordBytes)
	if n > 0 {
		p.records = make([]Record, 0, n)
	}
	for i := 0; i < n && r.err == nil; i++ {
		p.records = append(p.records, r.record())
	}
	if r.err == nil && len(r.b) != 0 {
		r.fail("bytes after the last record")
	}
	if r.err != nil {
		return payload{}, r.err
	}
	return p, nil
}

// reader consumes a payload's body. After the first error it yields zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrMalformed, what)
	}
	r.b = nil
}

func (r *reader) uvarint(what string) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads a number of things that take at least least bytes each.
func (r *reader) count(what string, least int) int {
	n := r.uvarint(what)
	if n > uint64(len(r.b)/least) {
		r.fail(what)
		return 0
	}
	return int(n)
}

func (r *reader) byte(what string) byte {
	if len(r.b) == 0 {
		r.fail(what)
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bytes(what string) []byte {
	n := r.uvarint(what)
	if n > uint64(len(r.b)) || n > MaxEntryBytes {
		r.fail(what)
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) record() Record {
	rec := Record{Shard: r.uvarint("shard")}
	flags := r.byte("flags")
	if flags&^flagsKnown != 0 {
		r.fail("unknown flags")
		return rec
	}
	rec.Forget = flags&flagForget != 0
	if flags&flagRestart != 0 {
		if rec.RestartAfter = r.uvarint("restart"); rec.RestartAfter == 0 {
			r.fail("restart after zero")
		}
	}
	if flags&flagHardState != 0 {
		rec.HardState.Term = r.uvarint("term")
		rec.HardState.Vote = r.uvarint("vote")
		rec.HardState.Commit = r.uvarint("commit")
		if rec.HardState.IsZero() {
			r.fail("empty hard state")
		}
	}
	rec.Entries = r.entries()
	return rec
}

func (r *reader) entries() []Entry {
	n := r.count("entries", minEntryBytes)
	if n == 0 {
		return nil
	}
	first := r.uvarint("first index")
	if first == 0 || first+uint64(n) < first {
		r.fail("first index")
		return nil
	}
	entries := make([]Entry, n)
	for i := range entries {
		e := &entries[i]
		e.Index = first + uint64(i)
		e.Term = r.uvarint("entry term")
		e.Type = r.byte("entry type")
		e.Data = r.bytes("entry data")
	}
	return entries
}
