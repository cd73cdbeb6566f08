package core

import (
	"bytes"
	"encoding/binary"
	"math"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/raft/v3"

	"github.com/decree-raft/decree/internal/state"
)

// Linearizable reads ride entries (decide.go), unless there is nothing but reads to ride with. This file has the others, and the running of queries.

// readQueue holds the reads that wait for something else than an entry of their own.
type readQueue struct {
	due     []*Request   // to be answered from what is applied now
	waiting []*Request   // for an index to be applied: AtToken, and ReadIndex when confirmed
	tokens  pendingBound // of those, AtToken

	// ReadIndex, and a leader's Linearizable without a command: those that came before a round of heartbeats
	// was asked for may share it, later ones must not. One round at a time, but one that gets no answer is asked for again:
	// an answer to any of these rounds is as good for those who were there when it began.
	wanted  []*Request
	asked   []*Request
	rounds  []readRound // that were asked for, in order; the last has all that are in asked
	askedAt int64
	again   bool   // another round is due for what has had no answer
	begun   uint64 // rounds so far
}

// readRound is one question to a quorum.
type readRound struct {
	num     uint64
	context uint64 // never used twice, so that an old answer fits nothing
}

// reset forgets the rounds under way: nobody need know what an answer from another term or leader proves (etcd#20418).
func (q *readQueue) reset() {
	if mutated("no-read-reset") {
		return
	}
	q.wanted = append(q.asked, q.wanted...)
	q.asked, q.rounds, q.again = nil, nil, false
}

func (q *readQueue) failAll(r *Replica, err *Error) {
	for _, list := range [][]*Request{q.due, q.waiting, q.wanted, q.asked} {
		for _, req := range list {
			r.finish(req, Result{}, err)
		}
	}
	*q = readQueue{}
}

// failLeadersReads ends the linearizable reads that a leader had begun to have confirmed [G6]. Another could confirm
// them, but an index that they wait for may never be reached in its log.
func (r *Replica) failLeadersReads(leader NodeID) {
	e := notProposed(CodeLeadershipLost, "leadership of shard %d went before the read was confirmed", r.shard)
	e.Leader = leader
	for _, list := range []*[]*Request{&r.reads.wanted, &r.reads.asked, &r.reads.waiting} {
		*list = slices.DeleteFunc(*list, func(q *Request) bool {
			ours := q.Level == Linearizable
			if ours {
				r.finish(q, Result{}, e)
			}
			return ours
		})
	}
}

// addRead takes a read that does not ride the log.
func (r *Replica) addRead(q *Request) {
	q.queuedAt = r.w.now.Mono
	switch q.Level {
	case Stale:
		r.reads.due = append(r.reads.due, q)
	case AtToken:
		q.readIndex = q.Token
		r.reads.waiting = append(r.reads.waiting, q)
		r.reads.tokens.requests++
		r.reads.tokens.bytes += q.size
	case ReadIndex:
		r.reads.wanted = append(r.reads.wanted, q)
	default:
		r.finish(q, Result{}, notProposed(CodeNotLeader, "there is no read level %d", q.Level))
	}
}

// waited notes that a read does not wait any more.
func (q *readQueue) waited(req *Request) {
	if req.Level == AtToken {
		q.tokens.requests--
		q.tokens.bytes -= req.size
	}
}

// refusesToken refuses reads at tokens that are waited for in vain, and more of them than there is room for: who may only read could
// otherwise fill the room for commands, which share the bound of all calls.
func (r *Replica) refusesToken(q *Request) error {
	if q.Token <= r.applied {
		return nil
	}
	if l := r.lead; l != nil && l.ready && q.Token > l.head.index {
		// Another may lead meanwhile, who has more.
		e := notProposed(CodeNotReached, "the token %d lies beyond the log of shard %d, which ends at %d on node %d, who leads it or did until lately: ask again. "+
			"If that stays so, the token is not of this shard, or of a time before a restore", q.Token, r.shard, l.head.index, r.cfg.Node)
		e.RetryAfter = r.cfg.Tick
		return e
	}
	limits, held := &r.cfg.Limits, &r.reads.tokens
	if requests, bytes := max(1, limits.MaxQueuedRequests/4), limits.MaxQueuedBytes/4; held.requests >= requests || held.requests > 0 && held.bytes+q.size > bytes {
		e := notProposed(CodeOverloaded, "%d reads with %d bytes wait for their tokens on shard %d (allowed: a quarter of the calls that may be pending, %d and %d)",
			held.requests, held.bytes, r.shard, requests, bytes)
		e.RetryAfter = r.cfg.Tick
		return e
	}
	return nil
}

// takeReadStates confirms the ReadIndex reads of a round: those that came before it began.
func (r *Replica) takeReadStates(states []raft.ReadState) {
	reads := &r.reads
	for _, s := range states {
		if len(s.RequestCtx) != 8 {
			continue
		}
		context := binary.LittleEndian.Uint64(s.RequestCtx)
		i := slices.IndexFunc(reads.rounds, func(o readRound) bool { return o.context == context })
		if i < 0 {
			continue
		}
		round := reads.rounds[i].num
		reads.asked = slices.DeleteFunc(reads.asked, func(q *Request) bool {
			confirmed := q.round <= round || mutated("late-answer-for-all")
			if confirmed {
				q.readIndex = max(q.readIndex, Index(s.Index))
				reads.waiting = append(reads.waiting, q)
			}
			return confirmed
		})
		if len(reads.asked) == 0 {
			i = len(reads.rounds) - 1
		}
		reads.rounds = slices.Delete(reads.rounds, 0, i+1)
	}
}

// serveReads answers what can be answered, and asks for what is wanted.
func (r *Replica) serveReads() {
	q := &r.reads
	if len(q.waiting) > 0 {
		still := q.waiting[:0]
		for _, req := range q.waiting {
			if req.readIndex <= r.applied {
				q.due = append(q.due, req)
				q.waited(req)
			} else {
				still = append(still, req)
			}
		}
		clear(q.waiting[len(still):])
		q.waiting = still
	}
	if len(q.due) > 0 {
		r.stats.OtherReads += uint64(len(q.due))
		r.query(r.appliedVersion(), q.due, Result{Index: r.applied, Age: r.age()})
		q.due = nil
	}
	if due := len(q.asked) == 0 && len(q.wanted) > 0 || len(q.asked) > 0 && q.again; due && r.leader != 0 && !r.leaving {
		// (A leader that has removed itself must not confirm anything: with one voter left, raft would not even ask that one.)
		r.askReadIndex()
	}
}

// askReadIndex begins a round for all who want one, and for those who have had no answer.
func (r *Replica) askReadIndex() {
	q := &r.reads
	q.begun++
	for _, req := range q.wanted {
		req.round = q.begun
	}
	if len(q.asked) == 0 {
		q.asked = q.wanted
	} else {
		q.asked = append(q.asked, q.wanted...)
	}
	q.wanted, q.again = nil, false
	round := readRound{num: q.begun, context: r.rand.Uint64() | 1}
	if mutated("same-read-context") {
		round.context = 1
	}
	q.rounds = append(q.rounds, round)
	q.askedAt = r.w.now.Mono
	r.rn.ReadIndex(binary.LittleEndian.AppendUint64(nil, round.context))
	r.touch() // the round starts with a Ready
}

// tickReads asks again for what got no answer, and gives up on what waits too long.
func (r *Replica) tickReads() {
	q := &r.reads
	if len(q.asked)+len(q.wanted)+len(q.waiting) == 0 {
		return
	}
	now, election := r.w.now.Mono, int64(r.cfg.ElectionTicks)*int64(r.cfg.Tick)
	q.wanted = r.giveUp(q.wanted, now-3*election, CodeNoLeader, "no leader of shard %d confirmed the read", r.shard)
	if len(q.asked) > 0 && now-q.askedAt > election/2 {
		q.again = true // the answers may have been lost, or wait behind a write
		if q.asked = r.giveUp(q.asked, now-3*election, CodeNoLeader, "no leader of shard %d confirmed the read", r.shard); len(q.asked) == 0 {
			q.rounds = q.rounds[:0]
		}
	}
	q.waiting = r.giveUp(q.waiting, now-8*election, CodeNotReached, "this replica of shard %d has applied up to index %d only; ask another", r.shard, r.applied)
	r.touch()
}

func (r *Replica) giveUp(list []*Request, before int64, code Code, format string, args ...any) []*Request {
	still := list[:0]
	for _, req := range list {
		if req.queuedAt < before {
			r.reads.waited(req)
			r.finish(req, Result{}, notProposed(code, format, args...))
		} else {
			still = append(still, req)
		}
	}
	clear(list[len(still):])
	return still
}

// appliedVersion is the state at the applied index: on a leader, without what is only decided.
func (r *Replica) appliedVersion() *state.Version {
	if r.lead != nil && r.lead.ready {
		return r.state.CommittedVersion(r.committed)
	}
	return r.state.Version()
}

// age bounds how old the applied state may be. A leader's is the time since its replicas were heard, of a quorum. A follower's is
// the time since it had applied everything that its leader said was committed, plus the leader's age then. While the
// shard rests, which all agreed to with nothing outstanding, it is the time since all voters' nodes were heard, see quiesce.go. What the
// network takes from the leader to here is not known, and not in it.
func (r *Replica) age() time.Duration {
	now := r.w.now.Mono
	r.catchUpNote()
	at := r.currentAt
	switch {
	case r.quiet:
		at = max(at, r.votersHeard(r.w.env.LastHeard))
	case r.lead != nil && r.lead.ready: // before that, it lacks what others have committed
		at = max(at, r.quorumHeard(now))
	}
	if at <= 0 {
		return math.MaxInt64
	}
	return time.Duration(now - at)
}

// hearCommit takes the leader's word of what is committed.
func (r *Replica) hearCommit(n CommitNote) {
	if r.broken != nil || n.From != r.leader || n.Term != r.raftTerm {
		return
	}
	r.everywhere = max(r.everywhere, n.Everywhere)
	r.catchUpNote()
	if r.note.Term == n.Term && r.note.Commit > r.applied {
		return // one at a time, or a replica that is always a little behind would never know how far
	}
	r.note, r.noteAt = n, n.At-int64(max(0, n.Age))
	r.catchUpNote()
}

// catchUpNote sees whether what the leader spoke of has been applied.
func (r *Replica) catchUpNote() {
	if r.noteAt != 0 && (r.applied >= r.note.Commit || mutated("age-of-the-unapplied")) {
		r.currentAt = max(r.currentAt, r.noteAt)
	}
}

// votersHeard returns since when the nodes of all other voters were heard, by what says that of one.
func (r *Replica) votersHeard(heard func(NodeID) int64) int64 {
	at := r.w.now.Mono
	for _, v := range r.conf.Voters {
		if v != r.cfg.Node {
			at = min(at, heard(v))
		}
	}
	return at
}

// quorumHeard returns the latest time since when the replicas of a quorum, this one included, were heard by this leader. That their nodes are alive
// does not say whom they follow.
func (r *Replica) quorumHeard(now int64) int64 {
	heard := r.majorityHeard(r.conf.Voters, now)
	if r.conf.Joint() {
		heard = min(heard, r.majorityHeard(r.conf.Outgoing, now))
	}
	return heard
}

func (r *Replica) majorityHeard(voters []NodeID, now int64) int64 {
	times := make([]int64, 0, len(voters))
	for _, v := range voters {
		if v == r.cfg.Node {
			times = append(times, now)
		} else {
			times = append(times, r.lead.heard[v]) // 0: never
		}
	}
	slices.Sort(times)
	return times[len(times)-(len(times)/2+1)]
}

// QueryBatch is a number of queries on one version of the state. RunOne may
// be called on several goroutines, so that one long query holds up nobody else.
type QueryBatch struct {
	machine Machine
	version *state.Version
	reqs    []*Request
	result  Result
	next    atomic.Int64
	left    atomic.Int64
	replica *Replica
}

func (r *Replica) query(v *state.Version, reqs []*Request, res Result) {
	for _, q := range reqs {
		r.pending.requests--
		r.pending.bytes -= q.size
		q.observe(StepReached, Place{Term: r.raftTerm, Index: res.Index})
	}
	r.running.Add(int64(len(reqs)))
	b := &QueryBatch{machine: r.machine, version: v, reqs: reqs, result: res, replica: r}
	b.left.Store(int64(len(reqs)))
	r.w.env.Query(b)
}

// RunOne runs the next query, and reports whether there was one.
func (b *QueryBatch) RunOne() bool {
	i := b.next.Add(1) - 1
	if i >= int64(len(b.reqs)) {
		return false
	}
	b.run(b.reqs[i])
	if b.left.Add(-1) == 0 {
		b.version.Close()
	}
	return true
}

func (b *QueryBatch) run(q *Request) {
	defer b.replica.running.Add(-1)
	res := b.result
	var err error
	q.observe(StepQuerying, Place{Index: res.Index})
	res.Answer, err = b.answer(q)
	if err != nil {
		res.Answer = nil
	}
	q.finish(res, err)
}

func (b *QueryBatch) answer(q *Request) (answer []byte, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case *state.ReadError:
			if mutated("serve-damage") {
				return
			}
			e := broken(CodeStorage, p, "the state store could not be read")
			b.replica.unreadable.CompareAndSwap(nil, e)
			err = e
		default:
			text := panicText(p)
			b.replica.logger.Error("the machine panicked on a query", "reason", text, "stack", string(debug.Stack()))
			err = &Rejection{Code: CodeMachinePanic, Message: "the machine panicked: " + text}
		}
	}()
	answer, err = b.machine.Query(b.version, q.Query)
	if err != nil {
		return nil, boundedRejection(err, "query", b.replica.cfg.Limits.MaxEntryBytes)
	}
	return bytes.Clone(answer), nil // it may be memory of the state, and the caller may write to it
}
