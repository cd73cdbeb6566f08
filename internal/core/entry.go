package core

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The format of an entry of the log. Integers are unsigned varints unless said
// otherwise, fixed integers are little-endian; "bytes" is a varint length and as many bytes.
//
//	entry:    version (1 byte, 1), term, seq, time, chain (8 bytes), count of requests, request...
//	request:  flags (1 byte)
//	          if flagOpen:    ttl (ns), window, count of evicted, evicted session ids...
//	          if flagSession: session id, sequence, acknowledged, digest (8 bytes), outcome (bytes)
//	          if flagVersion: version of the machine that is active from the next entry on
//	          (flagTimed adds nothing)
//	          count of events, event...
//	event:    data (bytes), count of effects, digest of each effect (2 bytes)
//	outcome:  0, count of replies, reply (bytes)...
//	          1, code (bytes), message (bytes), detail (bytes)
//
// An entry with no requests is what retries ride on that have their outcome already, and reads of a leader that leaves; raft's own empty
// entries have no data at all. What was rejected has no events. Outcomes are
// stored for requests with a session only: nobody else can ask again.
const entryVersion = 1

const (
	flagSession = 1 << iota
	flagOpen
	flagClose
	flagVersion
	flagTimed  // of an opening: the entry's time goes into the id, see SessionIDAt
	flagsKnown = flagSession | flagOpen | flagClose | flagVersion | flagTimed
)

const (
	outcomeReplies   = 0
	outcomeRejection = 1
)

// entryHeaderMax is the most that the fields before the requests take.
const entryHeaderMax = 1 + 3*binary.MaxVarintLen64 + 8 + binary.MaxVarintLen64

// maxRequestsPerEntry leaves room for the ordinal within a session id.
const maxRequestsPerEntry = 1 << 16

var errEntry = errors.New("entry is damaged")

type entryHeader struct {
	term     Term
	seq      uint64
	time     Timestamp
	chain    uint64
	requests int
}

// sealEntry writes the header in front of the requests, which the caller has
// encoded from offset entryHeaderMax of buf on, and returns the entry.
func sealEntry(buf []byte, h entryHeader) []byte {
	var tmp [entryHeaderMax]byte
	b := append(tmp[:0], entryVersion)
	b = binary.AppendUvarint(b, uint64(h.term))
	b = binary.AppendUvarint(b, h.seq)
	b = binary.AppendUvarint(b, uint64(h.time))
	b = binary.LittleEndian.AppendUint64(b, h.chain)
	b = binary.AppendUvarint(b, uint64(h.requests))
	start := entryHeaderMax - len(b)
	copy(buf[start:], b)
	return buf[start:]
}

// A reader takes an encoding apart. The first failure sticks; what was read after it is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s, with %d bytes left", errEntry, what, len(r.b))
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

func (r *reader) take(n uint64, what string) []byte {
	if n > uint64(len(r.b)) {
		r.fail(what)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(what string) []byte { return r.take(r.uvarint(what), what) }

func (r *reader) byte(what string) byte {
	if v := r.take(1, what); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uint64(what string) uint64 {
	if v := r.take(8, what); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

// count reads a number of things of which each takes at least one byte.
func (r *reader) count(what string) int {
	n := r.uvarint(what)
	if n > uint64(len(r.b)) {
		r.fail(what)
		return 0
	}
	return int(n)
}

func (r *reader) header() (h entryHeader) {
	if v := r.byte("version"); r.err == nil && v != entryVersion {
		r.err = fmt.Errorf("entry has version %d, this program knows %d", v, entryVersion)
		return h
	}
	h.term = Term(r.uvarint("term"))
	h.seq = r.uvarint("sequence")
	h.time = Timestamp(r.uvarint("time"))
	h.chain = r.uint64("chain")
	h.requests = r.count("request count")
	return h
}

// requestHeader is a request of an entry without its events.
type requestHeader struct {
	flags byte

	ttl     uint64
	window  uint64
	evicted []SessionID

	session SessionID
	seq     uint64
	acked   uint64
	digest  uint64
	outcome []byte

	version uint64

	events int
}

func (h *requestHeader) append(b []byte) []byte {
	b = append(b, h.flags)
	if h.flags&flagOpen != 0 {
		b = binary.AppendUvarint(b, h.ttl)
		b = binary.AppendUvarint(b, h.window)
		b = binary.AppendUvarint(b, uint64(len(h.evicted)))
		for _, id := range h.evicted {
			b = binary.AppendUvarint(b, uint64(id))
		}
	}
	if h.flags&flagSession != 0 {
		b = binary.AppendUvarint(b, uint64(h.session))
		b = binary.AppendUvarint(b, h.seq)
		b = binary.AppendUvarint(b, h.acked)
		b = binary.LittleEndian.AppendUint64(b, h.digest)
		b = appendBytes(b, h.outcome)
	}
	if h.flags&flagVersion != 0 {
		b = binary.AppendUvarint(b, h.version)
	}
	return binary.AppendUvarint(b, uint64(h.events))
}

func (r *reader) request() (h requestHeader) {
	h.flags = r.byte("flags")
	if h.flags&^byte(flagsKnown) != 0 {
		r.fail("unknown flags")
		return h
	}
	if h.flags&flagOpen != 0 {
		h.ttl = r.uvarint("ttl")
		h.window = r.uvarint("window")
		for n := r.count("evicted"); n > 0; n-- {
			h.evicted = append(h.evicted, SessionID(r.uvarint("evicted")))
		}
	}
	if h.flags&flagSession != 0 {
		h.session = SessionID(r.uvarint("session"))
		h.seq = r.uvarint("session sequence")
		h.acked = r.uvarint("acknowledged")
		h.digest = r.uint64("digest")
		h.outcome = r.bytes("outcome")
	}
	if h.flags&flagVersion != 0 {
		h.version = r.uvarint("machine version")
	}
	h.events = r.count("event count")
	return h
}

func (r *reader) event() (data, digests []byte) {
	data = r.bytes("event")
	n := r.uvarint("effects")
	if n > uint64(len(r.b)) {
		r.fail("effects")
		return nil, nil
	}
	return data, r.take(2*n, "effects")
}

func appendEvent(b, data, digests []byte) []byte {
	b = appendBytes(b, data)
	b = binary.AppendUvarint(b, uint64(len(digests)/2))
	return append(b, digests...)
}

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendReplies(b []byte, replies [][]byte) []byte {
	b = append(b, outcomeReplies)
	b = binary.AppendUvarint(b, uint64(len(replies)))
	for _, r := range replies {
		b = appendBytes(b, r)
	}
	return b
}

func appendRejection(b []byte, r *Rejection) []byte {
	b = append(b, outcomeRejection)
	b = appendBytes(b, []byte(r.Code))
	b = appendBytes(b, []byte(r.Message))
	return appendBytes(b, r.Detail)
}

// decodeOutcome returns copies.
func decodeOutcome(b []byte) (replies [][]byte, rejection *Rejection, err error) {
	r := reader{b: append([]byte(nil), b...)}
	switch kind := r.byte("outcome"); {
	case r.err != nil:
	case kind == outcomeReplies:
		n := r.count("replies")
		replies = make([][]byte, 0, n)
		for ; n > 0; n-- {
			replies = append(replies, r.bytes("reply"))
		}
	case kind == outcomeRejection:
		rejection = &Rejection{Code: Code(r.bytes("code")), Message: string(r.bytes("message")), Detail: r.bytes("detail")}
	default:
		r.fail(fmt.Sprintf("outcome of kind %d", kind))
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after the outcome")
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	return replies, rejection, nil
}
