package sim

import (
	"bytes"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/decree-raft/decree/internal/core"
)

// oracle is what a shard's log says, entry by entry in the order in which they
// became known to be committed: when the first replica applied them. It replays them on a model of the
// machines and of the sessions, and so knows what every decision, answer and hash has to be.
type oracle struct {
	c        *checker
	shard    core.ShardID
	entries  []committedEntry // entries[i] has index i+1
	values   map[uint16][]valueAt
	sessions map[core.SessionID]*sessionModel
	live     int
	happened int // operations, in the entry being learned
}

// committedEntry is an entry, and the shard after it.
type committedEntry struct {
	term, hash uint64
	seq, chain uint64
	time       int64
	sessions   int
}

type valueAt struct {
	index core.Index
	value int64
}

type sessionModel struct {
	ttl, used          int64
	window, acked      uint64
	openedAt, closedAt core.Index // closedAt 0: open
	done               map[uint64]*recorded
}

// recorded is the fate of a sequence number.
type recorded struct {
	index   core.Index
	digest  uint64
	outcome logOutcome
}

func newOracle(c *checker, id core.ShardID) *oracle {
	return &oracle{c: c, shard: id, values: map[uint16][]valueAt{}, sessions: map[core.SessionID]*sessionModel{}}
}

func (o *oracle) last() core.Index { return core.Index(len(o.entries)) }

// after returns the shard after an entry.
func (o *oracle) after(i core.Index) committedEntry {
	if i == 0 {
		return committedEntry{}
	}
	return o.entries[i-1]
}

func (o *oracle) fail(rule, format string, args ...any) {
	o.c.s.fail(rule, "shard %d: %s", o.shard, fmt.Sprintf(format, args...))
}

func (o *oracle) initial() int64 {
	if o.shard == bank {
		return startBalance
	}
	return 0
}

// value returns a key's value after an entry.
func (o *oracle) value(k uint16, at core.Index) int64 {
	list := o.values[k]
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].index <= at {
			return list[i].value
		}
	}
	return o.initial()
}

func (o *oracle) latest(k uint16) int64 { return o.value(k, o.last()) }

// sawAt reports whether a decision of entry i can have seen this value: the one before the entry, or any within it.
func (o *oracle) sawAt(k uint16, i core.Index, value int64) bool {
	if o.value(k, i-1) == value {
		return true
	}
	for _, v := range o.values[k] {
		if v.index == i && v.value == value {
			return true
		}
	}
	return false
}

func (o *oracle) set(k uint16, i core.Index, v int64) {
	o.values[k] = append(o.values[k], valueAt{i, v})
}

// learn takes the next committed entry.
func (o *oracle) learn(e shadowEntry) {
	i, before := o.last()+1, o.after(o.last())
	after := before
	after.term, after.hash = e.term, xxhash.Sum64(e.data)
	o.entries = append(o.entries, after)
	if e.term < before.term {
		o.fail("log", "entry %d has term %d after term %d", i, e.term, before.term)
	}
	if len(e.data) == 0 {
		return // raft's own
	}
	d, err := decodeEntry(e.data)
	switch {
	case err != nil:
		o.fail("log", "entry %d: %v", i, err)
		return
	case d.term != e.term || d.seq != before.seq+1:
		o.fail("void", "entry %d of term %d was decided in term %d; its number is %d after %d", i, e.term, d.term, d.seq, before.seq)
		return
	case d.time <= before.time:
		o.fail("time", "entry %d has time %d after %d", i, d.time, before.time)
	}
	o.happened = 0
	o.expire(i, d.time)
	for n := range d.requests {
		o.request(i, n, d.time, &d.requests[n])
	}
	last := &o.entries[i-1]
	last.seq, last.time, last.chain, last.sessions = d.seq, d.time, d.chain, o.live
	if limit := o.c.s.swarm.core.Sessions.Max; o.live > limit {
		o.fail("sessions", "%d after entry %d, %d are allowed", o.live, i, limit)
	}
}

func (o *oracle) expire(i core.Index, now int64) {
	for _, s := range o.sessions { // any order: all that have expired are closed
		if s.closedAt == 0 && now-s.used > s.ttl {
			o.close(s, i)
		}
	}
}

func (o *oracle) close(s *sessionModel, i core.Index) {
	if s != nil && s.closedAt == 0 {
		s.closedAt = i
		o.live--
	}
}

func (o *oracle) request(i core.Index, ordinal int, now int64, r *logRequest) {
	switch {
	case r.open:
		for _, id := range r.evicted {
			o.close(o.sessions[id], i)
		}
		id := core.SessionID(uint64(i)<<16 + uint64(ordinal))
		o.sessions[id] = &sessionModel{ttl: int64(r.ttl), used: now, window: r.window, openedAt: i, done: map[uint64]*recorded{}}
		o.live++
		return
	case r.close:
		o.close(o.sessions[r.id], i)
		return
	case r.session:
		o.record(i, now, r)
		if r.outcome.code != "" {
			o.rejection(i, r)
		}
	}
	o.events(i, r)
}

// record enters a command's fate into its session: once, and only into one that is open.
func (o *oracle) record(i core.Index, now int64, r *logRequest) {
	s := o.sessions[r.id]
	switch {
	case s == nil || s.closedAt != 0:
		o.fail("session-order", "entry %d has command %d of session %d, which is not open there", i, r.seq, r.id)
		return
	case s.done[r.seq] != nil:
		o.fail("exactly-once", "entry %d has command %d of session %d again, after entry %d", i, r.seq, r.id, s.done[r.seq].index)
	case r.seq <= s.acked:
		o.fail("session-order", "entry %d has command %d of session %d, of which %d were acknowledged", i, r.seq, r.id, s.acked)
	case r.seq > max(s.acked, r.acked)+s.window:
		o.fail("session-order", "entry %d has command %d of session %d, beyond its window", i, r.seq, r.id)
	}
	s.used, s.acked = now, max(s.acked, r.acked)
	s.done[r.seq] = &recorded{index: i, digest: r.digest, outcome: r.outcome}
}

// rejection checks that a rejected single command had to be rejected, on the state at its place.
func (o *oracle) rejection(i core.Index, r *logRequest) {
	if len(r.events) > 0 {
		o.fail("decision", "entry %d has events of a rejected command", i)
	}
	cmd, ok := o.c.digests[r.digest]
	if !ok {
		return // several commands
	}
	now, code := o.latest(cmd.key), r.outcome.code
	right := false
	switch cmd.op {
	case opCAS:
		right = code == codeMismatch && now != cmd.old
	case opTake, opTransfer:
		right = code == codeShort && now < cmd.arg
	case opPanic:
		right = code == core.CodeMachinePanic
	case opHuge:
		right = code == core.CodeValueTooLarge
	case opSet, opAdd:
	}
	if !right || (code == codeMismatch || code == codeShort) && decodeValue(r.outcome.detail) != now {
		o.fail("decision", "entry %d rejects %v with %s %x on value %d", i, cmd, code, r.outcome.detail, now)
	}
}

// events replays what was decided in one request, and checks that it is what had to be decided.
func (o *oracle) events(i core.Index, r *logRequest) {
	var op *operation
	for n, data := range r.events {
		cmd, value := decodeEvent(data)
		reply, want, ok := o.decide(cmd)
		if !ok || value != want {
			o.fail("decision", "entry %d: %v decided %d on value %d", i, cmd, value, o.latest(cmd.key))
		}
		if r.session && (n >= len(r.outcome.replies) || decodeValue(r.outcome.replies[n]) != reply) {
			o.fail("decision", "entry %d: %v replies %x, want %d", i, cmd, r.outcome.replies, reply)
		}
		o.set(cmd.key, i, value)
		if cmd.op == opTransfer {
			to := uint16(cmd.old)
			o.set(to, i, o.latest(to)+cmd.arg)
		}
		this := o.c.byID(cmd.id)
		if n == 0 {
			op = this
			o.commit(i, op, len(r.events))
		} else if this != op {
			o.fail("log", "entry %d mixes commands of two requests", i)
		}
		op.values = append(op.values, reply)
	}
}

// decide is the model's own understanding of the machines.
func (o *oracle) decide(c command) (reply, value int64, ok bool) {
	now := o.latest(c.key)
	switch c.op {
	case opSet:
		return now, c.arg, true
	case opAdd:
		return now + c.arg, now + c.arg, true
	case opCAS:
		return now, c.arg, now == c.old
	case opTake, opTransfer:
		return now - c.arg, now - c.arg, now >= c.arg
	case opPanic, opHuge:
	}
	return 0, 0, false
}

// commit notes that an operation has happened: once, whole, and not if somebody was told that it never would.
func (o *oracle) commit(i core.Index, op *operation, events int) {
	switch {
	case op.committed != 0:
		o.fail("exactly-once", "%v is in entry %d and in entry %d", op, op.committed, i)
	case events != len(op.cmds):
		o.fail("all-or-nothing", "%v is in entry %d with %d events", op, i, events)
	case !op.mayHappen():
		o.fail("not-proposed", "%v is in entry %d, and every attempt was told that it did not happen", op, i)
	}
	op.committed, op.committedAt, op.ordinal = i, o.c.s.now, o.happened
	o.happened++
}

// answer returns what a query must say at a position.
func (o *oracle) answer(k uint16, at core.Index) (b []byte) {
	if k != queryAll {
		if v := o.value(k, at); v != o.initial() || o.touched(k, at) && o.shard == bank {
			b = appendPair(b, k, v)
		}
		return b
	}
	for k := range o.c.keys {
		if v := o.value(k, at); o.shard == registers && v != 0 || o.shard == bank && o.touched(k, at) {
			b = appendPair(b, k, v)
		}
	}
	return b
}

// touched reports whether a key was written up to a position.
func (o *oracle) touched(k uint16, at core.Index) bool {
	list := o.values[k]
	return len(list) > 0 && list[0].index <= at
}

// isOpen reports whether a session is open after entry i.
func (s *sessionModel) isOpen(i core.Index) bool {
	return s != nil && s.openedAt <= i && (s.closedAt == 0 || s.closedAt > i)
}

func (a logOutcome) same(b logOutcome) bool {
	if a.code != b.code || len(a.replies) != len(b.replies) || !bytes.Equal(a.detail, b.detail) {
		return false
	}
	for i := range a.replies {
		if !bytes.Equal(a.replies[i], b.replies[i]) {
			return false
		}
	}
	return true
}
