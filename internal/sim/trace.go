package sim

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
)

// A what is a kind of event in the trace.
type what uint8

const (
	evStart what = iota
	evCrash
	evStop
	evPass
	evFrameSent
	evFrameLost
	evFrameGot
	evSync
	evSynced
	evSyncLost
	evFlush
	evFlushed
	evFlushLost
	evApplied
	evLeader
	evSubmit
	evAnswer
	evGiveUp
	evFault
	evHeal
	evPhase
	evStopped
	evBroken
	evTorn
	evRot
	evRefused
)

// formats of an event's node and four numbers, for people.
var formats = [...]string{
	evStart:     "n%d starts, incarnation %d%.0d%.0d%.0d",
	evCrash:     "n%d CRASHES, incarnation %d%.0d%.0d%.0d",
	evStop:      "n%d is stopped, incarnation %d%.0d%.0d%.0d",
	evPass:      "n%d worker %d pass: %d messages, %d requests, %d writes back",
	evFrameSent: "n%d -> n%d frame %016x, %d bytes, arrives after %dus",
	evFrameLost: "n%d -> n%d frame %016x LOST (%d bytes, cut: %d)",
	evFrameGot:  "n%d <- n%d frame %016x, %d bytes%.0d",
	evSync:      "n%d log: writing %d records, takes %dus%.0d%.0d",
	evSynced:    "n%d log: %d records durable (%d payload bytes in all)%.0d%.0d",
	evSyncLost:  "n%d log: %d records LOST (in flight but durable: %d)%.0d%.0d",
	evFlush:     "n%d shard %d flush begins, takes %dus%.0d%.0d",
	evFlushed:   "n%d shard %d flushed to %d%.0d%.0d",
	evFlushLost: "n%d %d flushes LOST, %d durable but not known%.0d%.0d",
	evApplied:   "n%d shard %d applied %d, hash %016x, term %d",
	evLeader:    "n%d shard %d sees leader n%d in term %d%.0d",
	evSubmit:    "n%d shard %d <- op %d attempt %d kind %d",
	evAnswer:    "n%d shard %d -> op %d attempt %d outcome %d",
	evGiveUp:    "n%d shard %d op %d attempt %d timed out%.0d",
	evFault:     "n%d FAULT %d (%d, %d, %d)",
	evHeal:      "n%d fault %d ends (%d, %d, %d)",
	evPhase:     "%.0dPHASE %d%.0d%.0d%.0d",
	evStopped:   "n%d shard %d replica STOPPED%.0d%.0d%.0d",
	evBroken:    "n%d disk FAILED, incarnation %d ends%.0d%.0d%.0d",
	evTorn:      "n%d log: write TORN at byte %d: %d bytes, of which %d are lost%.0d",
	evRot:       "n%d disk ROTS: bit %d of byte %d of %d bytes%.0d",
	evRefused:   "n%d REFUSES to start, incarnation %d%.0d%.0d%.0d",
}

// trace is the run as a sequence of numbers: hashed always, written out for people if asked to.
type trace struct {
	now    *int64
	hash   *xxhash.Digest
	events uint64
	buf    []byte    // events that are still to be hashed
	out    io.Writer // or nil
}

// eventBytes is an event in the hash; eventsAtOnce are hashed together.
const eventBytes, eventsAtOnce = 42, 128

func newTrace(now *int64, out io.Writer) *trace {
	return &trace{now: now, hash: xxhash.New(), buf: make([]byte, 0, eventBytes*eventsAtOnce), out: out}
}

// sum returns the hash of all events so far.
func (t *trace) sum() uint64 {
	_, _ = t.hash.Write(t.buf) // never fails
	t.buf = t.buf[:0]
	return t.hash.Sum64()
}

func (t *trace) event(kind what, node core.NodeID, a, b, c, d uint64) {
	t.events++
	if len(t.buf) == cap(t.buf) {
		t.sum()
	}
	n := len(t.buf)
	t.buf = t.buf[:n+eventBytes]
	buf := t.buf[n:]
	buf[0], buf[1] = byte(kind), byte(node)
	binary.LittleEndian.PutUint64(buf[2:], uint64(*t.now))
	binary.LittleEndian.PutUint64(buf[10:], a)
	binary.LittleEndian.PutUint64(buf[18:], b)
	binary.LittleEndian.PutUint64(buf[26:], c)
	binary.LittleEndian.PutUint64(buf[34:], d)
	if t.out != nil {
		t.printf(formats[kind], node, a, b, c, d)
	}
}

// note explains an event; it is not part of the hash.
func (t *trace) note(format string, args ...any) {
	if t.out != nil {
		t.printf("    "+format, args...)
	}
}

func (t *trace) printf(format string, args ...any) {
	fmt.Fprintf(t.out, "%12.3fms  %s\n", float64(*t.now)/1e6, fmt.Sprintf(format, args...))
}

func (t *trace) message(shard core.ShardID, m *raftpb.Message) {
	if t.out != nil {
		t.printf("    shard %d %v n%d->n%d term %d prev %d/%d commit %d reject %v, %d entries, context %x", shard, m.Type, m.From, m.To,
			m.Term, m.Index, m.LogTerm, m.Commit, m.Reject, len(m.Entries), m.Context)
	}
}
