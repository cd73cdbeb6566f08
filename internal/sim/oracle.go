package sim

import (
	"bytes"
	"fmt"
	"sort"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
)

// oracle is what a shard's log says, entry by entry in the order in which they
// became known to be committed: when the first replica applied them. It replays them on a model of the
// sessions, and has the workload's model replay them too, and so knows what every decision, answer and hash has to be.
type oracle struct {
	c        *checker
	shard    core.ShardID
	model    model
	entries  []committedEntry // entries[i] has index i+1
	log      []shadowEntry    // the same as they are, if a backup may be restored
	sessions map[core.SessionID]*sessionModel
	live     int
	happened int      // operations, in the entry being learned
	configs  []config // ascending by index
	version  uint64   // of the machine, in force
	restored bool     // from here on
}

// committedEntry is an entry, and the shard after it.
type committedEntry struct {
	term, hash uint64
	seq, chain uint64
	time       int64
	sessions   int
	known      int64 // since when
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
	o := &oracle{c: c, shard: id, sessions: map[core.SessionID]*sessionModel{}, configs: []config{{}}}
	for i := range c.s.swarm.nodes {
		o.configs[0].voters = o.configs[0].voters.with(core.NodeID(i + 1))
	}
	o.model = c.s.work.newModel(o)
	return o
}

func (o *oracle) last() core.Index { return core.Index(len(o.entries)) }

// lastAt returns the last entry that was known to be committed at a time.
func (o *oracle) lastAt(t int64) core.Index {
	return core.Index(sort.Search(len(o.entries), func(i int) bool { return o.entries[i].known > t }))
}

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

// learn takes the next committed entry.
func (o *oracle) learn(e shadowEntry) {
	i, before := o.last()+1, o.after(o.last())
	after := before
	after.term, after.hash, after.known = e.term, xxhash.Sum64(e.data), o.c.s.now
	o.entries = append(o.entries, after)
	if o.c.s.swarm.every[faultBackup] > 0 {
		o.log = append(o.log, e)
	}
	if e.term < before.term {
		o.fail("log", "entry %d has term %d after term %d", i, e.term, before.term)
	}
	defer o.model.end(i)
	if e.kind != uint8(raftpb.EntryNormal) {
		o.model.begin(i, e.term, nil)
		if e.kind != uint8(raftpb.EntryConfChangeV2) {
			o.fail("log", "entry %d is of kind %d", i, e.kind)
			return
		}
		o.change(i, e.data)
		return
	}
	if len(e.data) == 0 {
		o.model.begin(i, e.term, nil) // raft's own
		return
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
	o.model.begin(i, e.term, &d)
	o.expire(i, d.time)
	next := o.version
	defer func() { o.version = next }()
	for n := range d.requests {
		if v := d.requests[n].version; v != 0 {
			o.activate(i, next, v)
			next = v
			continue
		}
		o.request(i, n, d.time, &d.requests[n])
	}
	last := &o.entries[i-1]
	last.seq, last.time, last.chain, last.sessions = d.seq, d.time, d.chain, o.live
	if limit := o.c.s.swarm.core.Sessions.Max; o.live > limit {
		o.fail("sessions", "%d after entry %d, %d are allowed", o.live, i, limit)
	}
}

// activate checks that a version of the machine becomes active when every member has a program for it.
func (o *oracle) activate(i core.Index, now, v uint64) {
	o.c.s.stats.Activations++
	o.c.s.tell("version %d of the machine becomes active after entry %d", v, i)
	if v <= now {
		o.fail("version", "entry %d makes version %d active after version %d", i, v, now)
	}
	for _, m := range o.latest().members() {
		if ran := o.c.s.node(m).ran; ran < v {
			o.fail("version", "entry %d makes version %d active, and node %d has never had a program for more than %d", i, v, m, ran)
		}
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
		if r.timed != o.restored {
			o.fail("sessions", "entry %d opens a session by time: %v, and the shard was restored: %v", i, r.timed, o.restored)
		}
		for _, id := range r.evicted {
			o.close(o.sessions[id], i)
		}
		id := core.SessionIDAt(i, ordinal, core.Timestamp(now), r.timed)
		o.sessions[id] = &sessionModel{ttl: int64(r.ttl), used: now, window: r.window, openedAt: i, done: map[uint64]*recorded{}}
		o.live++
		return
	case r.close:
		o.close(o.sessions[r.id], i)
		return
	case r.session:
		o.record(i, now, r)
	}
	if r.outcome.code != "" && len(r.events) > 0 {
		o.fail("decision", "entry %d has events of a rejected command", i)
	}
	o.model.request(i, ordinal, now, r)
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

// commit notes that an operation has happened: once, whole, and not if somebody was told that it never would.
func (o *oracle) commit(i core.Index, op *operation, commands int) {
	switch {
	case op.committed != 0:
		o.fail("exactly-once", "%v is in entry %d and in entry %d", op, op.committed, i)
	case commands != len(op.encoded):
		o.fail("all-or-nothing", "%v is in entry %d with %d commands", op, i, commands)
	case !op.mayHappen():
		o.fail("not-proposed", "%v is in entry %d, and every attempt was told that it did not happen", op, i)
	}
	op.committed, op.committedAt, op.ordinal = i, o.c.s.now, o.happened
	o.happened++
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
