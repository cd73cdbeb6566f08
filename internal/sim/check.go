package sim

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// checker holds every rule that a run must keep; see the package's doc for the list.
type checker struct {
	s       *sim
	rng     *rand.Rand
	shards  [shardCount + 1]*oracle // shards[0] is none
	ops     []*operation            // ops[i] has number i+1
	leaders map[leaderKey]core.NodeID
	latest  [shardCount + 1]core.NodeID // who was last seen to lead
	status  core.Status                 // of observe

	turns  uint64       // calls that were given to nodes
	behind [][]*attempt // linearizable reads that were answered, by node, in that order

	changes    map[changeKey]*memberChange // of the members
	changeList []*memberChange             // the same, in order
	proposed   map[proposedKey]bool        // changes that have been written
}

type leaderKey struct {
	shard core.ShardID
	term  core.Term
}

func newChecker(s *sim) *checker {
	c := &checker{s: s, rng: stream(s.seed, 5), leaders: map[leaderKey]core.NodeID{},
		changes: map[changeKey]*memberChange{}, proposed: map[proposedKey]bool{}}
	for id := core.ShardID(1); id <= s.work.shards(); id++ {
		c.shards[id] = newOracle(c, id)
	}
	return c
}

func (c *checker) newOperation(cl *client, id opKey) *operation {
	o := &operation{num: uint64(len(c.ops) + 1), id: id, r: opStream(c.s.seed, id), client: cl, begun: c.s.now}
	c.ops = append(c.ops, o)
	return o
}

func (c *checker) someLeader(id core.ShardID) core.NodeID { return c.latest[id] }

// promise checks that what a message says is true after a crash as well: votes and
// acknowledgements may leave only when they are on disk. A later term on disk is as good: what this one
// promised was kept until that one ended it.
func (c *checker) promise(n *node, id core.ShardID, m *raftpb.Message) {
	disk := n.disk.shadow[id]
	ok := true
	switch m.Type {
	case raftpb.MsgVote:
		ok = disk.hard.Term > m.Term || disk.hard.Term == m.Term && disk.hard.Vote == uint64(n.id)
	case raftpb.MsgVoteResp:
		ok = m.Reject || disk.hard.Term > m.Term || disk.hard.Term == m.Term && disk.hard.Vote == m.To
	case raftpb.MsgAppResp:
		ok = m.Reject || disk.hard.Term > m.Term || disk.hard.Term == m.Term && uint64(max(disk.last(), n.installed[id])) >= m.Index
	}
	if !ok {
		c.s.fail("promise", "node %d sends %v of term %d, index %d to %d, while its disk has %+v and entries of shard %d up to %d",
			n.id, m.Type, m.Term, m.Index, m.To, disk.hard, id, disk.last())
	}
}

// stopped: no replica may go out of service, unless a machine is at fault.
func (c *checker) stopped(n *node, id core.ShardID, err *core.Error) {
	if c.s.opts.Nondeterministic && err.Code == core.CodeDivergence {
		c.s.stats.Stopped++
		c.s.end()
		return
	}
	if n.foundDamage(id, err) || c.wentAway(n, id, err) || n.tooOld(err) {
		return
	}
	if err.Code == core.CodeStorage && n.disk.mayFail(err) {
		n.s.faults.restartSoon(n) // an installation that failed
		return
	}
	c.s.fail("stopped", "shard %d on node %d: %v", id, n.id, err)
}

// restarted checks what an incarnation starts with.
func (c *checker) restarted(w *worker) {
	for _, id := range w.shards {
		c.begins(w, id)
		// A crash may have come before an installation was durable.
		w.n.installed[id] = min(w.n.installed[id], w.n.journal[id].start)
	}
	c.observe(w)
	for _, id := range w.shards {
		c.compareState(w, id)
	}
}

// begins: a replica starts with what its disk has.
func (c *checker) begins(w *worker, id core.ShardID) {
	w.n.applied[id], w.n.counted[id] = 0, core.Stats{}
	at := core.Index(w.n.shards[id-1].FlushedIndex())
	w.n.journal[id] = flushedAt{at, at, at, at}
}

// observe checks a worker's shards after a pass.
func (c *checker) observe(w *worker) {
	st := &c.status
	for _, id := range w.shards {
		w.core.Look(id, st)
		if st.Err != nil {
			w.n.cutShort[id] = w.n.cutShort[id] || st.Stats.JournalShort > 0
			if st.Err.Code == core.CodeStorage && w.n.applied[id] == 0 {
				continue // it met the damage before it was a replica
			}
			if st.Err.Code == core.CodeRemoved || w.n.rotten != "" {
				c.observeApplied(w.n, st) // it may have answered before it went
			}
			continue // see stopped
		}
		c.observeLeader(w.n, st)
		c.observeApplied(w.n, st)
		if c.s.failure != nil {
			return
		}
		c.observeMembers(w.n, st)
		before := &w.n.counted[id]
		if st.Stats.JournalShort > 0 || st.Stats.SnapshotsInstalled > 0 {
			w.n.cutShort[id] = true
		}
		c.s.stats.JournalsShort += int(st.Stats.JournalShort - before.JournalShort)
		if st.Stats.SnapshotsInstalled > before.SnapshotsInstalled {
			c.compareState(w, id)
		}
		c.s.stats.Rollbacks += st.Stats.Rollbacks - before.Rollbacks
		c.s.stats.Duplicates += st.Stats.Duplicates - before.Duplicates
		*before = st.Stats
		l := &c.s.swarm.core.Limits
		if st.Queued < 0 || st.Queued > l.MaxQueuedRequests+1 || // the leader's own, that activates a version
			st.Inflight > l.PipelineDepth || st.Memory > c.s.swarm.maxMemory {
			c.s.fail("bounds", "shard %d on node %d: %d calls pending, %d entries in flight, %d bytes", id, w.n.id, st.Queued, st.Inflight, st.Memory)
		}
		if st.Stats.Voids > 0 {
			c.s.fail("void", "shard %d on node %d found a void entry", id, w.n.id)
		}
		if c.rng.IntN(200) == 0 && c.s.failure == nil {
			c.compareState(w, id)
		}
	}
}

func (c *checker) observeLeader(n *node, st *core.Status) {
	if st.Role != "leader" {
		return
	}
	k := leaderKey{st.Shard, st.Term}
	if was, ok := c.leaders[k]; ok && was != n.id {
		c.s.fail("one-leader", "shard %d: node %d and node %d both lead term %d", st.Shard, was, n.id, st.Term)
	} else if !ok {
		c.leaders[k] = n.id
		if c.s.work.shards() > 1 {
			c.s.tell("node %d leads shard %d (term %d)", n.id, st.Shard, st.Term)
		} else {
			c.s.tell("node %d leads (term %d)", n.id, st.Term)
		}
		c.s.stats.Leaders++
	}
	c.latest[st.Shard] = n.id
}

// observeApplied checks the entries that a replica has applied since the last look, and where they have brought it.
func (c *checker) observeApplied(n *node, st *core.Status) {
	o, disk := c.shards[st.Shard], n.disk.shadow[st.Shard]
	was := n.applied[st.Shard]
	if st.Applied < was {
		c.s.fail("applied", "shard %d on node %d went back from %d to %d", st.Shard, n.id, was, st.Applied)
		return
	}
	if !c.learnUpTo(n, st.Shard, st.Applied) {
		return
	}
	// What a snapshot has brought was applied elsewhere. How the replica came to have it, the state's comparison need not know.
	if jump := min(max(n.installed[st.Shard], disk.base), st.Applied); jump > was {
		was = jump
	}
	for i := was + 1; i <= st.Applied; i++ {
		e, ok := disk.at(i)
		if !ok {
			c.s.fail("durability", "shard %d on node %d applied entry %d, which is not on its disk", st.Shard, n.id, i)
			return
		}
		if known := o.after(i); known.term != e.term || known.hash != e.hash {
			c.s.fail("committed-changed", "shard %d on node %d applied another entry %d (term %d) than was committed (term %d)",
				st.Shard, n.id, i, e.term, known.term)
		}
	}
	for i := was + 1; i <= st.Applied && c.s.failure == nil; i++ {
		o.model.applied(n, i)
	}
	n.applied[st.Shard] = st.Applied
	if c.s.failure != nil {
		return
	}
	if st.Applied > was {
		c.s.trace.event(evApplied, n.id, uint64(st.Shard), uint64(st.Applied), st.Hash, uint64(st.Term))
	}
	at := o.after(st.Applied)
	// A replica that stopped in the middle of an entry, whose time has ended sessions, shows nobody what it has of them.
	halfway := st.Err != nil && st.Err.Code != core.CodeRemoved
	if st.Hash != at.chain || st.Sequence != at.seq || int64(st.Time) != at.time || st.Sessions != at.sessions && !halfway {
		c.s.fail("hash", "shard %d on node %d at %d: hash %x, sequence %d, time %d, %d sessions; the log says %x, %d, %d, %d", st.Shard, n.id,
			st.Applied, st.Hash, st.Sequence, st.Time, st.Sessions, at.chain, at.seq, at.time, at.sessions)
	}
}

// learnUpTo takes entries that a replica applies for committed, as its disk has them, and reports whether all is well.
func (c *checker) learnUpTo(n *node, id core.ShardID, upTo core.Index) bool {
	o, disk := c.shards[id], n.disk.shadow[id]
	for i := o.last() + 1; i <= upTo && c.s.failure == nil; i++ {
		e, ok := disk.at(i)
		if !ok {
			c.s.fail("durability", "shard %d on node %d applied entry %d, which is not on its disk", id, n.id, i)
			return false
		}
		c.majority(id, i, e)
		o.learn(e)
	}
	return c.s.failure == nil
}

// majority: what anybody applies must already be on the disks of a majority of the voters.
func (c *checker) majority(id core.ShardID, i core.Index, e shadowEntry) {
	var on ids
	for _, n := range c.s.nodes {
		if other, ok := n.disk.shadow[id].at(i); ok && other.term == e.term && other.hash == e.hash {
			on = append(on, n.id)
		}
	}
	// A change takes effect where it is applied: what is committed together with it, its leader has counted by the members before it.
	o := c.shards[id]
	now := o.config(i - 1)
	before := o.config(max(now.index, 1) - 1)
	if !now.quorum(on.has) && !before.quorum(on.has) {
		c.s.fail("durability", "shard %d: entry %d is applied, and on the disks of %v; %v", id, i, on, now)
	}
}

// compareState compares all of a replica's state with the model's.
func (c *checker) compareState(w *worker, id core.ShardID) {
	v, at, _, ok := w.core.Version(id)
	if !ok {
		return
	}
	defer v.Close()
	defer w.n.readsDamage(id)
	c.shards[id].model.compare(w.n, v, at)
	c.compareJournal(w.n, id)
}

// compareJournal compares a replica's journal with what was committed, and with what other voters may still ask it for.
func (c *checker) compareJournal(n *node, id core.ShardID) {
	st := n.shards[id-1]
	first, last := st.JournalBounds()
	if last == 0 {
		return
	}
	for _, other := range c.s.nodes {
		// The first entry is there for its term: whoever has it can be sent what follows.
		if conf := c.shards[id].latest(); other.spare() || conf.removed.has(other.id) {
			continue // one that joins begins with a snapshot, if need be
		}
		if has := uint64(max(other.disk.shadow[id].last(), other.installed[id])); has < first && first > 1 && !n.cutShort[id] && other.rotten == "" {
			c.s.fail("journal", "shard %d on node %d begins with entry %d, node %d ends at %d", id, n.id, first, other.id, has)
			return
		}
	}
	bytes := int64(0) // without the first entry, which is there for its term
	err := st.WholeJournal(func(e state.JournalEntry) error {
		if known := c.shards[id].after(core.Index(e.Index)); uint64(known.term) != e.Term || known.hash != xxhash.Sum64(e.Data) {
			c.s.fail("journal", "shard %d on node %d has another entry %d of term %d than was committed, of term %d", id, n.id, e.Index, e.Term, known.term)
			return errOther
		}
		if e.Index > first {
			bytes += int64(len(e.Data)) + 64
		}
		return nil
	})
	switch {
	case err == errOther:
		return
	case err != nil:
		if n.rotten == "" {
			c.s.fail("journal", "shard %d on node %d: %v", id, n.id, err)
		}
		return
	}
	c.journalBounded(n, id, core.Index(first), bytes)
	if flushed := st.FlushedIndex(); last != flushed {
		c.s.fail("journal", "shard %d on node %d ends with entry %d, and is flushed to %d", id, n.id, last, flushed)
	}
}

var errOther = errors.New("another entry")

// journalBounded: of more than the cap nothing is kept but what the last two flushes have added: raft takes note of what is applied with the write after
// the one during which it was, and until then may look at it. (Of what an incarnation began with it only knows about how much it is.)
func (c *checker) journalBounded(n *node, id core.ShardID, first core.Index, bytes int64) {
	j, limit := &n.journal[id], c.s.swarm.core.JournalMaxBytes
	if !c.s.swarm.core.KeepJournal && limit > 0 && bytes > limit && first > j.start && first < j.earlier {
		c.s.fail("journal", "shard %d on node %d has %d bytes of journal from %d on, %d are allowed; the last flushes were at %d, %d and %d", id, n.id, bytes, first, limit, j.earlier, j.before, j.last)
	}
}

// answer checks what a node has answered.
func (c *checker) answer(a *attempt) {
	o, res, v := a.op, &a.req.Result, a.verdict()
	if a.answers > 1 {
		c.s.fail("answers", "%v was answered %d times", o, a.answers)
		return
	}
	if code := a.code(); code != "" {
		c.s.stats.Codes[code]++
	}
	switch v {
	case notProposed:
		c.s.stats.NotProposed++
		if o.committed != 0 && !o.mayHappen() {
			c.s.fail("not-proposed", "%v was told %v, and is in entry %d", o, a.req.Err, o.committed)
		}
		return
	case unknownOutcome:
		c.s.stats.Unknown++
		return
	case refused:
		c.s.stats.Refused++
		c.refusal(a)
		return
	case happened, rejected:
	}
	if applied := a.node.applied[o.shard]; res.Index > applied || res.Index == 0 && o.kind != core.KindRead {
		c.s.fail("too-early", "%v was answered from index %d, node %d has applied %d", o, res.Index, a.node.id, applied)
		return
	}
	if o.answered == 0 {
		o.answered = c.s.now
	}
	switch o.kind {
	case core.KindRead:
		c.read(a)
	case core.KindCommand:
		c.command(a)
	case core.KindOpenSession:
		if v == happened && !c.shards[o.shard].sessions[res.Session].isOpen(o.floor+1) && c.shards[o.shard].sessions[res.Session] == nil {
			c.s.fail("sessions", "%v: session %d is not in the log", o, res.Session)
		}
	case core.KindCloseSession:
		if s := c.shards[o.shard].sessions[o.session.id]; s.isOpen(res.Index) {
			c.s.fail("sessions", "%v: closed at %d, and open there", o, res.Index)
		}
	}
}

// within returns the position that an answer must be of at least to a question that came at a time, if it is said to be no older than age. What the
// network takes is not in an age: twice, as a leader hears its followers before it speaks. How long the answer took is not looked at.
func (c *checker) within(shard core.ShardID, at, age int64) core.Index {
	if age >= at {
		return 0
	}
	return c.shards[shard].lastAt(at - age - 2*c.s.net.delaysSince(at-age-2*second))
}

func (c *checker) read(a *attempt) {
	o, res := a.op, &a.req.Result
	c.s.stats.Reads++
	want := core.Index(0)
	switch o.level {
	case core.Linearizable, core.ReadIndex:
		want = a.floor
	case core.AtToken:
		want = o.token
	case core.Stale:
		if res.Age < 0 {
			c.s.fail("read", "%v: %v old", o, res.Age)
		}
		want = c.within(o.shard, a.givenAt, int64(res.Age))
	}
	if res.Index < want {
		c.s.fail("stale-read", "%v was answered from index %d, and had to see %d", o, res.Index, want)
	}
	if o.level == core.Linearizable {
		for int(a.node.id) >= len(c.behind) {
			c.behind = append(c.behind, nil)
		}
		c.behind[a.node.id] = append(c.behind[a.node.id], a)
	}
	c.shards[o.shard].model.read(a)
}

// inTurn: a linearizable read sees every command that its leader took before it, also one that nobody had waited for. (One
// with a session may have been decided for another attempt.)
func (c *checker) inTurn(a *attempt) {
	if a.op.session != nil || int(a.node.id) >= len(c.behind) {
		return
	}
	reads := c.behind[a.node.id]
	for i := len(reads) - 1; i >= 0 && reads[i].at >= a.givenAt; i-- {
		r := reads[i]
		if r.op.shard == a.op.shard && r.gen == a.gen && r.turn > a.turn && r.req.Result.Index < a.req.Result.Index {
			c.s.fail("order", "%v was answered from index %d, and %v, which node %d was given before it, is at %d", r.op, r.req.Result.Index, a.op, a.node.id, a.req.Result.Index)
		}
	}
}

// command checks the outcome of a command against the log.
func (c *checker) command(a *attempt) {
	o, res := a.op, &a.req.Result
	or := c.shards[o.shard]
	var rejection *core.Rejection
	errors.As(a.req.Err, &rejection)
	if rejection == nil {
		c.s.stats.Acked++
	} else {
		c.s.stats.Rejected++
	}
	if rejection == nil {
		c.inTurn(a)
	}
	if res.Index <= o.floor {
		c.s.fail("real-time", "%v is at index %d, and was asked when %d was committed", o, res.Index, o.floor)
	}
	told := logOutcome{replies: res.Replies}
	if rejection != nil {
		told = logOutcome{code: rejection.Code, detail: rejection.Detail}
	}
	switch {
	case o.session != nil:
		s := or.sessions[o.session.id]
		if s == nil || s.done[o.seq] == nil || s.done[o.seq].index != res.Index || !s.done[o.seq].outcome.same(told) {
			c.s.fail("outcome", "%v was told %v at index %d, which is not in the log so", o, told, res.Index)
		}
	case rejection == nil:
		if o.committed != res.Index {
			c.s.fail("outcome", "%v was acknowledged at index %d; it is in entry %d", o, res.Index, o.committed)
		}
	default:
		or.model.rejected(o, res.Index, rejection)
	}
	if rejection != nil && o.committed != 0 {
		c.s.fail("outcome", "%v was rejected, and is in entry %d", o, o.committed)
	}
	if rejection == nil && o.committed == res.Index {
		if !slices.EqualFunc(res.Replies, o.replies, bytes.Equal) {
			c.s.fail("outcome", "%v was told %x, the log says %x", o, res.Replies, o.replies)
		}
	}
}

// refusal checks that a command was refused for what its session was at the position of the answer.
func (c *checker) refusal(a *attempt) {
	o, at := a.op, a.req.Result.Index
	or := c.shards[o.shard]
	if at > a.node.applied[o.shard] {
		c.s.fail("too-early", "%v was refused at index %d, node %d has applied %d", o, at, a.node.id, a.node.applied[o.shard])
		return
	}
	if at <= a.floor {
		c.s.fail("real-time", "%v was refused at index %d, and was asked when %d was committed", o, at, a.floor)
	}
	s := or.sessions[o.session.id]
	switch a.code() {
	case core.CodeSessionExpired:
		if s.isOpen(at) {
			c.s.fail("refusal", "%v: the session is open at index %d", o, at)
		}
	case core.CodeSequenceReused:
		if d := s.done[o.seq]; d == nil || d.index > at || d.digest == digestOf(o.encoded) {
			c.s.fail("refusal", "%v: the number was not used for another command", o)
		}
	case core.CodeSequenceAcked:
		if o.seq > s.acked && o.seq > a.req.Acknowledged {
			c.s.fail("refusal", "%v: %d were acknowledged", o, s.acked)
		}
	}
	if o.committed != 0 && !o.mayHappen() {
		c.s.fail("not-proposed", "%v was refused (%v), and is in entry %d", o, a.req.Err, o.committed)
	}
}

// digestOf is that of a request with one command; 0 fits no other.
func digestOf(encoded [][]byte) uint64 {
	if len(encoded) == 1 {
		return xxhash.Sum64(encoded[0])
	}
	return 0
}

// cut checks a snapshot that a node has cut: it is of what was committed.
func (c *checker) cut(n *node, s *snapshot.Snapshot) {
	m, o := s.Manifest, c.shards[s.Manifest.Shard]
	if core.Index(m.Index) > o.last() {
		c.s.fail("snapshot", "node %d cut shard %d at %d, and nobody has applied more than %d", n.id, m.Shard, m.Index, o.last())
		return
	}
	if at := o.after(core.Index(m.Index)); m.Term != at.term || m.Hash != at.chain || m.Time != at.time {
		c.s.fail("snapshot", "node %d cut shard %d at %d with term %d, hash %x, time %d; the log says %d, %x, %d", n.id, m.Shard, m.Index, m.Term, m.Hash, m.Time, at.term, at.chain, at.time)
	}
}
