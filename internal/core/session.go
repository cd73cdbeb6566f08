package core

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/cespare/xxhash/v2"

	"github.com/decree-raft/decree/internal/state"
)

// Exactly-once: (session, sequence) names a command for ever. Its outcome is
// kept until the client acknowledges it or the session ends. The table is part of the
// replicated state: it changes only when an entry is applied, and the same on
// every replica (Raft thesis, section 6.3).

// An outcome is the remembered fate of one sequence number.
type outcome struct {
	known  bool
	digest uint64 // of the commands, to tell a retry from a reuse
	index  Index
	data   []byte // see entry.go, "outcome"; owned by the session
}

// MaxSequence is the highest sequence number of a session. What is added to one does not overflow.
const MaxSequence = 1<<63 - 1

type session struct {
	id     SessionID
	ttl    int64 // ns of entry time without use after which the session expires
	window uint64
	used   Timestamp // entry time of the last use
	place  uint64    // orders sessions of one time: grows with every use on the shard
	acked  uint64

	// ring[seq % len(ring)] is the outcome of seq, for acked < seq <= acked+len(ring).
	// Its length is a power of two and grows up to the window.
	ring []outcome

	bytes      int      // of ring and of what its slots hold, also that which is kept for use again
	last       uint64   // the highest sequence with an outcome
	prev, next *session // by last use, oldest first
	dirty      bool

	// Leader only: what has been decided and is not committed.
	inflight      map[uint64]*Request
	inflightUses  int
	inflightUsed  Timestamp // entry time of the latest of them
	inflightAcked uint64    // the highest acknowledgement that came with them
	leaving       bool      // its end is in flight: closed or evicted
}

func (s *session) slot(seq uint64) *outcome { return &s.ring[seq&uint64(len(s.ring)-1)] }

// lookup returns the outcome of seq if it is known.
func (s *session) lookup(seq uint64) *outcome {
	if seq <= s.acked || seq-s.acked > uint64(len(s.ring)) {
		return nil
	}
	if o := s.slot(seq); o.known {
		return o
	}
	return nil
}

func (s *session) acknowledge(upTo uint64) {
	if upTo <= s.acked {
		return
	}
	for n := range min(upTo-s.acked, uint64(len(s.ring))) {
		o := s.slot(s.acked + 1 + n)
		o.known = false
		if cap(o.data) > keptOutcome {
			s.bytes -= cap(o.data)
			o.data = nil // do not let large replies stay for ever
		}
	}
	s.acked = upTo
	s.shrink()
}

func (s *session) record(seq, digest uint64, index Index, data []byte) {
	if seq <= s.acked {
		return
	}
	s.grow(seq)
	o := s.slot(seq)
	if o.known {
		return
	}
	s.bytes -= cap(o.data)
	o.known, o.digest, o.index = true, digest, index
	o.data = append(o.data[:0], data...)
	s.bytes += cap(o.data)
	s.last = max(s.last, seq)
}

// grow makes the ring reach seq.
func (s *session) grow(seq uint64) {
	n := max(1, len(s.ring))
	for uint64(n) < seq-s.acked {
		n *= 2
	}
	if n != len(s.ring) {
		s.resize(n)
	}
}

// shrink gives back the room of a ring in which little is left. What remains is enough for a few outcomes,
// so that a session with little in flight reuses what it has, and one with much at a time does not make it anew for each.
func (s *session) shrink() {
	need := smallRing / 4
	for s.last > s.acked && uint64(need) < s.last-s.acked {
		need *= 2
	}
	if len(s.ring) > 4*need {
		s.resize(2 * need)
	}
}

// resize gives the ring another length, in which everything known has its place.
func (s *session) resize(n int) {
	old := *s
	s.ring = make([]outcome, n)
	s.bytes += n * outcomeBytes
	for i := range old.ring {
		s.bytes -= outcomeBytes + cap(old.ring[i].data)
	}
	for i := range uint64(min(n, len(old.ring))) {
		q := s.acked + 1 + i
		o := s.slot(q)
		*o = *old.slot(q)
		s.bytes += cap(o.data)
	}
}

// What sessions take is bounded, per session and per shard; beyond that, commands wait until outcomes are acknowledged. The bounds are for
// the leader that decides: how much memory a session takes depends on its history on this node, and no entry does on it.
const (
	outcomeBytes     = int(unsafe.Sizeof(outcome{}))
	keptOutcome      = 256 // memory of an outcome that is used again, at most
	smallRing        = 16  // outcomes: a ring that is not made smaller
	maxSessionBytes  = 32 << 20
	maxSessionsBytes = 512 << 20
	// idleSessionBytes is more than a session takes of which nothing is known any more, so that those never use up the bound.
	idleSessionBytes = 8 << 10
)

// maxSessions is the bound of all sessions of a shard that may have so many of them.
func maxSessions(n int) int { return max(maxSessionsBytes, n*idleSessionBytes) }

// sessionTable holds all sessions of a shard.
type sessionTable struct {
	byID    map[SessionID]*session
	oldest  *session
	newest  *session
	uses    uint64
	bytes   int // of all sessions
	dirty   []*session
	removed []SessionID // since the last flush
}

func newSessionTable() *sessionTable {
	return &sessionTable{byID: map[SessionID]*session{}}
}

func (t *sessionTable) unlink(s *session) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		t.oldest = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		t.newest = s.prev
	}
	s.prev, s.next = nil, nil
}

func (t *sessionTable) pushNewest(s *session) {
	s.prev, s.next = t.newest, nil
	if t.newest != nil {
		t.newest.next = s
	} else {
		t.oldest = s
	}
	t.newest = s
}

func (t *sessionTable) touch(s *session, now Timestamp) {
	t.uses++
	s.used, s.place = now, t.uses
	if t.newest != s {
		t.unlink(s)
		t.pushNewest(s)
	}
	if !s.dirty {
		s.dirty = true
		t.dirty = append(t.dirty, s)
	}
}

func (t *sessionTable) open(id SessionID, ttl int64, window uint64, now Timestamp) {
	s := &session{id: id, ttl: ttl, window: window}
	t.byID[id] = s
	t.pushNewest(s)
	t.touch(s, now)
}

func (t *sessionTable) remove(id SessionID) {
	s := t.byID[id]
	if s == nil {
		return
	}
	delete(t.byID, id)
	t.bytes -= s.bytes
	t.unlink(s)
	t.removed = append(t.removed, id)
}

// expire removes what has not been used for its time to live. It runs first when an
// entry is applied, so that every replica forgets the same at the same place.
func (t *sessionTable) expire(now Timestamp) {
	if mutated("no-expiry") {
		return
	}
	for s := t.oldest; s != nil && s.expired(now); s = t.oldest {
		t.remove(s.id)
	}
}

func (s *session) expired(now Timestamp) bool { return int64(now-s.used) > s.ttl }

// willExpire: when an entry of this time comes to be applied, after what is in flight, it will expire the session first.
func (s *session) willExpire(at Timestamp) bool {
	used := s.used
	if s.inflightUses > 0 && mutated("no-expiry-in-flight") {
		return false
	}
	if s.inflightUses > 0 {
		used = max(used, s.inflightUsed)
	}
	return int64(at-used) > s.ttl
}

// willBeAcked is what is acknowledged when an entry decided now comes to be applied.
func (s *session) willBeAcked() uint64 {
	if s.inflightUses == 0 || mutated("ack-only-applied") {
		return s.acked
	}
	return max(s.acked, s.inflightAcked)
}

// victims returns up to n sessions to evict by an entry of this time, the longest unused first, sparing those
// with commands in flight. Those that the entry will expire anyway are counted instead: evicting
// them too would make room for one session twice.
func (t *sessionTable) victims(n int, at Timestamp) (ids []SessionID, expiring int) {
	for s := t.oldest; s != nil && len(ids)+expiring < n; s = s.next {
		switch {
		case s.leaving:
		case s.willExpire(at) && !mutated("evict-expired"):
			expiring++
		case s.inflightUses == 0:
			ids = append(ids, s.id)
		}
	}
	return ids, expiring
}

// apply brings the table forward by one request of an applied entry.
func (t *sessionTable) apply(h *requestHeader, now Timestamp, index Index, ordinal int) {
	if h.flags&flagOpen != 0 {
		for _, id := range h.evicted {
			t.remove(id)
		}
		t.open(SessionIDAt(index, ordinal, now, h.flags&flagTimed != 0), int64(h.ttl), h.window, now)
		return
	}
	if h.flags&flagClose != 0 {
		t.remove(h.session)
		return
	}
	if h.flags&flagSession == 0 {
		return
	}
	// Missing only if the clock jumped by more than a TTL between two entries in flight, or the session
	// was closed in between: then a retry is refused, as of any session that is gone.
	if s := t.byID[h.session]; s != nil {
		t.touch(s, now)
		before := s.bytes
		s.acknowledge(h.acked)
		s.record(h.seq, h.digest, index, h.outcome)
		t.bytes += s.bytes - before
	}
}

// SessionIDAt returns the id of the session that is opened at a place in the log: that place. After a restore, some places are there a second time, with other
// entries, while clients still hold sessions of the first time. An entry's time is never there again. So what leaders of a restored shard
// decide says that place and time make the id together (flagTimed). Its highest bit keeps it apart from those that are places.
func SessionIDAt(index Index, ordinal int, now Timestamp, timed bool) SessionID {
	place := uint64(index)*maxRequestsPerEntry + uint64(ordinal)
	if !timed {
		return SessionID(place)
	}
	return SessionID(mix(place, uint64(now)) | 1<<63)
}

// knows reports whether a request asks again for what its session has the outcome of, or what is being decided.
func (r *Replica) knows(q *Request) bool {
	s := r.sessions.byID[q.Session]
	return s != nil && (s.inflight[q.Sequence] != nil || s.lookup(q.Sequence) != nil)
}

func digestOf(commands [][]byte) uint64 {
	if len(commands) == 1 {
		return xxhash.Sum64(commands[0])
	}
	h := uint64(len(commands))
	for _, c := range commands {
		h = mix(h, xxhash.Sum64(c))
	}
	return h
}

// flushed returns what changed since the last call, encoded for the state store.
func (t *sessionTable) flushed() (out []state.KV) {
	for _, id := range t.removed {
		out = append(out, state.KV{Key: sessionKey(id)})
	}
	t.removed = t.removed[:0]
	for _, s := range t.dirty {
		s.dirty = false
		if t.byID[s.id] == s {
			out = append(out, state.KV{Key: sessionKey(s.id), Value: s.encode()})
		}
	}
	t.dirty = t.dirty[:0]
	return out
}

func sessionKey(id SessionID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

const sessionVersion = 1

// encode writes: version (1 byte), then varints ttl, window, used, place,
// acknowledged, count; for each known outcome: varint distance from
// acknowledged, digest (8 bytes), varint index, data (bytes).
func (s *session) encode() []byte {
	b := []byte{sessionVersion}
	for _, v := range []uint64{uint64(s.ttl), s.window, uint64(s.used), s.place, s.acked} {
		b = binary.AppendUvarint(b, v)
	}
	n := 0
	for i := range s.ring {
		if s.ring[i].known {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	for seq := s.acked + 1; n > 0; seq++ {
		o := s.slot(seq)
		if !o.known {
			continue
		}
		n--
		b = binary.AppendUvarint(b, seq-s.acked)
		b = binary.LittleEndian.AppendUint64(b, o.digest)
		b = binary.AppendUvarint(b, uint64(o.index))
		b = appendBytes(b, o.data)
	}
	return b
}

func decodeSession(id SessionID, b []byte) (*session, error) {
	r := reader{b: b}
	if v := r.byte("version"); v != sessionVersion {
		return nil, fmt.Errorf("session %d is stored in version %d, this program knows %d", id, v, sessionVersion)
	}
	s := &session{id: id}
	s.ttl = int64(r.uvarint("ttl"))
	s.window = r.uvarint("window")
	s.used = Timestamp(r.uvarint("used"))
	s.place = r.uvarint("place")
	s.acked = r.uvarint("acknowledged")
	for n := r.count("outcomes"); n > 0 && r.err == nil; n-- {
		seq := s.acked + r.uvarint("sequence")
		digest := r.uint64("digest")
		index := Index(r.uvarint("index"))
		data := r.bytes("outcome")
		if seq > s.acked+s.window {
			r.fail("sequence beyond the window")
		}
		if r.err == nil {
			s.record(seq, digest, index, data)
		}
	}
	return s, r.err
}

// loadSessions rebuilds the table of the last flush.
func loadSessions(from *state.Shard) (*sessionTable, error) {
	t := newSessionTable()
	var all []*session
	err := from.LoadSessions(func(key, value []byte) error {
		if len(key) != 8 {
			return fmt.Errorf("session key of %d bytes, want 8", len(key))
		}
		s, err := decodeSession(SessionID(binary.BigEndian.Uint64(key)), value)
		all = append(all, s)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load sessions: %w", err)
	}
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.place, b.place) })
	for _, s := range all {
		t.byID[s.id] = s
		t.pushNewest(s)
		t.uses = max(t.uses, s.place)
		t.bytes += s.bytes
	}
	return t, nil
}

// SessionOptions are what a session is opened with. They are replicated, so
// changing them changes sessions opened from then on.
type SessionOptions struct {
	// TTL is how long, in entry time, a session outlives its last use. Default 1 hour.
	TTL time.Duration
	// Window is how many sequences may be unacknowledged at once. Default 4096.
	Window uint64
	// Max is how many sessions a shard keeps; the longest unused is evicted for a new one. Default 65,536.
	Max int
}
