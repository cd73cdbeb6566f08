package core

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"strings"

	"github.com/decree-raft/decree/internal/state"
)

// leadership is what a replica has while it leads one term.
type leadership struct {
	term Term
	// ready: the empty entry of this term, and so everything before it, has been
	// applied. Before that nothing is decided [G1].
	ready bool

	// head is the position after the last entry that was proposed.
	head struct {
		index Index
		seq   uint64
		time  Timestamp
		// machine is the version that comes to be active.
		machine uint64
	}
	inflight []*batch // proposed and not yet applied, in log order
	open     *batch   // being decided; not handed to raft yet

	opening, evicting int // sessions, by entries in flight

	noted map[uint64]int64 // when each voter was last sent a CommitNote
	heard map[NodeID]int64 // monotonic ns, when the replica of each member last answered this leader

	versions map[NodeID]versionWord // that members can run, see version.go
	raising  uint64                 // being activated

	first    Index   // of the entries that this leader decides
	change   *change // of the members, to be proposed
	changing bool    // one is in flight

	// Snapshots for those who need one, see snapshot.go.
	snapWanted  bool
	newerWanted bool // somebody is no member yet in what is offered
	offered     *offered
	offeredAt   int64
	cutting     *cutting
	cutFailed   map[NodeID]int64 // monotonic ns, when a node could not provide one
	transfers   map[NodeID]*transfer

	sparing sparing // see damage.go

	transferee   NodeID // leadership is to go there; nothing new is decided meanwhile
	transferSent bool
}

// batch is one entry in the making: everything that was decided between two writes.
type batch struct {
	term  Term
	index Index
	seq   uint64
	time  Timestamp
	chain uint64 // after it

	start      state.Mark // before its first effect
	startChain uint64
	end        state.Mark // after its last

	buf     []byte // entry.go, requests from offset entryHeaderMax on; nil as long as it has nothing but reads
	ordinal uint32 // of the next event
	decided []decided
	riders  []rider
	reads   []*Request
	version *state.Version // what the reads see

	machine     uint64 // version under which it is decided
	nextMachine uint64 // active after it, if not 0

	change *change // a change of the members: it has no sequence number, and nothing else is in the entry

	size     int  // of the entry
	late     bool // deciding it has taken long: it goes out before more is decided
	observed bool // some call of it has an Observer
}

// observe tells those calls of the batch that want to know how far it is.
func (b *batch) observe(s Step) {
	if !b.observed {
		return
	}
	at := Place{Term: b.term, Index: b.index, Requests: len(b.decided) + len(b.riders) + len(b.reads), Bytes: b.size}
	for i := range b.decided {
		for q := b.decided[i].req; q != nil; q = q.next {
			q.observe(s, at)
		}
	}
	for i := range b.riders {
		b.riders[i].req.observe(s, at)
	}
	for _, q := range b.reads {
		q.observe(s, at)
	}
}

// decided is a request whose outcome stands in the entry.
type decided struct {
	req    *Request
	header *requestHeader // nil without a session
	result Result
	err    error
}

// rider is an answer that needs no record, but may not leave before the entry is committed [G5].
type rider struct {
	req    *Request
	result Result
	err    error
}

// fail ends every call of the batch.
func (b *batch) fail(r *Replica, err *Error) {
	for _, d := range b.decided {
		r.finish(d.req, Result{}, err)
	}
	b.failRiders(r, err)
}

// failRiders ends those calls of the batch that change nothing: whatever became of the entry, they did not happen.
func (b *batch) failRiders(r *Replica, err *Error) {
	if err.Kind == ErrUnknown {
		safe := *err
		safe.Kind = ErrNotProposed
		err = &safe
	}
	for _, d := range b.riders {
		e := err
		if d.req.Session != 0 {
			// The number may have been decided at an earlier attempt, as a retry it probably was: that
			// this attempt was not proposed must not invite a second execution under another number.
			in := *err
			in.Kind = ErrUnknown
			e = &in
		}
		r.finish(d.req, Result{}, e)
	}
	for _, q := range b.reads {
		r.finish(q, Result{}, err)
	}
	if b.version != nil {
		b.version.Close()
		b.version = nil
	}
}

// becomeReady starts deciding: the state's head is now exactly what is applied.
func (r *Replica) becomeReady() {
	l := r.lead
	l.ready = true
	l.head.index, l.head.seq, l.head.time = r.applied, r.seq, r.time
	l.first = r.applied
	l.head.machine = r.meta.machine
	r.state.SetUndo(true)
	r.committed = r.state.Mark()
	r.apply.chain = r.chain
	if r.conf.Index > 0 {
		r.firstFlush()
	}
}

// decideQueue moves requests from the queue into the open batch, as many as it takes.
func (r *Replica) decideQueue() {
	l := r.lead
	if l == nil || !l.ready || l.transferee != 0 || r.stuffed(4) || !r.mayDecide() {
		return
	}
	if l.open == nil && r.changeDue() {
		return
	}
	n := 0
	for n < len(r.queue) && !r.batchFull() {
		r.decideOne(r.queue[n])
		r.queue[n] = nil
		n++
		if r.tooLong() {
			break
		}
	}
	if n == len(r.queue) {
		r.queue = r.queue[:0]
	} else {
		r.queue = r.queue[n:]
	}
}

func (r *Replica) batchFull() bool {
	b := r.lead.open
	if b == nil {
		return len(r.lead.inflight) >= r.cfg.Limits.PipelineDepth
	}
	return len(b.buf) >= r.cfg.Limits.BatchBytes+entryHeaderMax ||
		len(b.decided)+len(b.riders)+len(b.reads) >= maxRequestsPerEntry-1
}

// openBatch returns the open batch, which it starts if there is none.
func (r *Replica) openBatch() *batch {
	l := r.lead
	if l.open == nil {
		l.open = &batch{
			term: l.term, index: l.head.index + 1, seq: l.head.seq + 1,
			time:    r.entryTime(),
			machine: l.head.machine,
			start:   r.state.Mark(), startChain: r.apply.chain,
		}
	}
	return l.open
}

// entryTime: the next leader's clock may be behind; an entry's never is.
func (r *Replica) entryTime() Timestamp {
	if mutated("time-goes-back") {
		return Timestamp(r.w.now.Wall)
	}
	return max(Timestamp(r.w.now.Wall), r.lead.head.time+1)
}

func (r *Replica) decideOne(q *Request) {
	b := r.openBatch()
	b.observed = b.observed || q.Observer != nil
	if b.buf == nil && q.Kind != KindRead {
		b.buf = make([]byte, entryHeaderMax, r.w.bufferHint())
	}
	switch q.Kind {
	case KindRead:
		if l := r.lead; mutated("read-joins-inflight") && len(l.inflight) > 0 {
			b = l.inflight[len(l.inflight)-1]
			if b.version == nil {
				b.version = r.state.CommittedVersion(b.end)
			}
		}
		b.reads = append(b.reads, q)
	case KindOpenSession:
		q.observe(StepDeciding, Place{})
		r.decideOpen(b, q)
		q.observe(StepDecided, Place{})
	case KindCloseSession:
		q.observe(StepDeciding, Place{})
		r.decideClose(b, q)
		q.observe(StepDecided, Place{})
	case kindVersion:
		r.decideVersion(b, q)
	default:
		if q.Session == 0 || r.admit(b, q) {
			r.decideCommands(b, q)
		}
	}
}

func (r *Replica) decideOpen(b *batch, q *Request) {
	o := r.cfg.Sessions
	h := &requestHeader{flags: flagOpen, ttl: uint64(o.TTL), window: o.Window}
	if r.restored {
		h.flags |= flagTimed
	}
	l := r.lead
	if over := len(r.sessions.byID) + l.opening - l.evicting + 1 - o.Max; over > 0 {
		expiring := 0
		if l.evicting < maxEvicting {
			h.evicted, expiring = r.sessions.victims(over, b.time)
		}
		if len(h.evicted)+expiring < over {
			b.ride(q, notProposed(CodeOverloaded, "all %d sessions of the shard are in use", o.Max))
			return
		}
		for _, id := range h.evicted {
			r.sessions.byID[id].leaving = true
		}
	}
	l.opening++
	l.evicting += len(h.evicted)
	ordinal := len(b.decided)
	b.buf = h.append(b.buf)
	b.decided = append(b.decided, decided{req: q, header: h,
		result: Result{Session: SessionIDAt(b.index, ordinal, b.time, r.restored), Index: b.index}})
}

// maxEvicting sessions may be on their way out at once: they are skipped one by one when the next is looked for.
const maxEvicting = 256

func (r *Replica) decideClose(b *batch, q *Request) {
	s := r.sessions.byID[q.Session]
	if s == nil || s.leaving {
		b.ride(q, nil) // closed already: the same outcome
		return
	}
	s.leaving = !mutated("close-only-applied")
	h := &requestHeader{flags: flagClose | flagSession, session: q.Session}
	b.buf = h.append(b.buf)
	b.decided = append(b.decided, decided{req: q, header: h, result: Result{Index: b.index}})
}

func (b *batch) ride(q *Request, err error) {
	b.riders = append(b.riders, rider{req: q, err: err, result: Result{Index: b.index}})
}

// admit reports whether a command with a session is to be decided. If not, it
// is a retry, or refused, and has been given its place among the riders.
func (r *Replica) admit(b *batch, q *Request) bool {
	// Nothing of a refusal is recorded, and an earlier attempt may have been decided: it says of this attempt that it was not proposed, and no more.
	refuse := func(code Code, format string, args ...any) bool {
		b.ride(q, notProposed(code, format, args...))
		return false
	}
	reused := func(was string) bool {
		b.ride(q, &Rejection{Code: CodeSequenceReused, Message: fmt.Sprintf("sequence %d of session %d %s for another command", q.Sequence, q.Session, was)})
		return false
	}
	s := r.sessions.byID[q.Session]
	if s == nil || s.leaving || s.willExpire(b.time) {
		return refuse(CodeSessionExpired, "session %d is not open: it expired, was evicted or never was; open another. Whether its last commands happened must be read from the state", q.Session)
	}
	q.digest = digestOf(q.Commands)
	if first := s.inflight[q.Sequence]; first != nil && !mutated("no-inflight-dedup") {
		if first.digest != q.digest {
			return reused("is in use")
		}
		// One execution, one outcome, as many answers as there are askers.
		q.next, first.next = first.next, q
		for _, under := range r.lead.inflight { // which of them has it is not worth knowing
			under.observed = under.observed || q.Observer != nil
		}
		r.stats.Duplicates++
		return false
	}
	if o := s.lookup(q.Sequence); o != nil && !mutated("no-dedup") {
		if o.digest != q.digest && !mutated("no-digest") {
			return reused("was used")
		}
		r.rideOutcome(b, q, o)
		return false
	}
	switch acked := s.willBeAcked(); {
	case q.Sequence <= acked && !mutated("no-ack-window"):
		return refuse(CodeSequenceAcked, "sequence %d of session %d was acknowledged (up to %d); its outcome is gone. Whether it happened must be read from the state", q.Sequence, q.Session, acked)
	case q.Sequence > max(s.acked, q.Acknowledged)+s.window:
		return refuse(CodeSequenceTooHigh, "sequence %d of session %d is more than %d beyond what was acknowledged (%d): acknowledge outcomes, and send it again", q.Sequence, q.Session, s.window, max(s.acked, q.Acknowledged))
	case q.Acknowledged >= q.Sequence:
		return refuse(CodeSequenceAcked, "sequence %d of session %d comes with an acknowledgement of itself (%d)", q.Sequence, q.Session, q.Acknowledged)
	}
	// What is full is emptied by commands that acknowledge, as nothing else does that: one that leaves nothing before it is taken. It need not acknowledge more than those
	// before: as long as the lowest number that is open has no outcome, none can. There is one such number until somebody acknowledges more. Where it is all sessions together that are full,
	// it must give back its session's share at least, or those who have little would fill what others empty; and there is an end to that.
	limit, all := maxSessions(r.cfg.Sessions.Max), r.sessions.bytes
	empties := q.Acknowledged >= s.willBeAcked() && q.Acknowledged+1 == q.Sequence
	if all > limit {
		empties = empties && all <= 2*limit && s.bytes >= limit/len(r.sessions.byID)
	}
	if !empties && (s.bytes > maxSessionBytes || all > limit) {
		e := notProposed(CodeOverloaded, "the session keeps %d bytes for outcomes, all sessions %d (allowed: %d and %d): acknowledge them; a command that acknowledges all before it is taken",
			s.bytes, all, maxSessionBytes, limit)
		e.RetryAfter = r.cfg.Tick
		b.ride(q, e)
		return false
	}
	if s.inflight == nil {
		s.inflight = map[uint64]*Request{}
	}
	s.inflightAcked = max(s.willBeAcked(), q.Acknowledged)
	s.inflight[q.Sequence] = q
	s.inflightUses++
	s.inflightUsed = b.time
	return true
}

// rideOutcome answers a retry from the session, as soon as leadership is confirmed.
func (r *Replica) rideOutcome(b *batch, q *Request, o *outcome) {
	replies, rejection, err := decodeOutcome(o.data)
	if err != nil {
		panic(broken(CodeCorruption, err, "the stored outcome of session %d, sequence %d", q.Session, q.Sequence))
	}
	ri := rider{req: q, result: Result{Replies: replies, Index: o.index}}
	if rejection != nil {
		ri.err = rejection
	}
	b.riders = append(b.riders, ri)
	r.stats.Duplicates++
}

// decideCommands runs the machine on the commands of a request, all or nothing.
func (r *Replica) decideCommands(b *batch, q *Request) {
	d := decided{req: q, result: Result{Index: b.index}}
	r.w.scratch = r.w.scratch[:0]
	q.observe(StepDeciding, Place{})
	events, rejection := r.execute(b, q, &d.result)
	q.observe(StepDecided, Place{})
	var h requestHeader
	h.events = events
	if rejection != nil {
		d.result.Replies = nil
		d.err = rejection
	}
	if q.Session != 0 {
		h.flags = flagSession
		h.session, h.seq, h.acked, h.digest = q.Session, q.Sequence, q.Acknowledged, q.digest
		if rejection != nil {
			h.outcome = appendRejection(nil, rejection)
		} else {
			h.outcome = appendReplies(nil, d.result.Replies)
		}
		kept := h
		d.header = &kept
	}
	if rejection != nil && mutated("early-rejection") {
		d.result.Index = r.applied
		r.finish(q, d.result, d.err)
		return
	}
	b.buf = h.append(b.buf)
	b.buf = append(b.buf, r.w.scratch...)
	b.decided = append(b.decided, d)
}

// execute decides each command on the effects of the one before, and applies its
// events to the head of the state. On a rejection, or a panic of the machine, nothing stays.
func (r *Replica) execute(b *batch, q *Request, res *Result) (events int, rejection *Rejection) {
	mark, chain, ordinal := r.state.Mark(), r.apply.chain, b.ordinal
	defer func() {
		r.state.EndScans() // that the machine began and did not finish
		if p := recover(); p != nil {
			rejection = r.machinePanicked(p)
		}
		if rejection != nil {
			r.state.Rollback(mark)
			r.apply.chain, b.ordinal, events = chain, ordinal, 0
			r.w.scratch = r.w.scratch[:0]
		}
	}()
	res.Replies = q.replySpace()
	replied := 0
	for _, data := range q.Commands {
		out, reply, err := r.decide(Command{Data: data, Time: b.time, Version: b.machine, Rand: r.rand})
		r.state.EndScans()
		if err != nil {
			return 0, boundedRejection(err, "command", r.cfg.Limits.MaxEntryBytes)
		}
		// A copy: the machine may have returned memory of the state, or of the command, and the caller may write to it.
		res.Replies = append(res.Replies, bytes.Clone(reply))
		replied += len(reply)
		for _, e := range out {
			r.applyDecided(b, e)
			replied += 2 * binary.MaxVarintLen64
		}
		events += len(out)
		if size := len(r.w.scratch) + replied; size > r.cfg.Limits.MaxEntryBytes {
			return 0, &Rejection{Code: CodeEntryTooLarge, Message: fmt.Sprintf(
				"the decision takes %d bytes, %d are allowed (MaxEntryBytes); split the command", size, r.cfg.Limits.MaxEntryBytes)}
		}
	}
	return events, nil
}

// boundedRejection is what of the machine's error goes into the log, or to who asked.
func boundedRejection(err error, what string, most int) *Rejection {
	rejection := rejectionOf(err)
	if size := len(rejection.Code) + len(rejection.Message) + len(rejection.Detail); size > most {
		return &Rejection{Code: CodeEntryTooLarge, Message: fmt.Sprintf("the machine rejected the %s with %d bytes of reasons, %d are allowed (MaxEntryBytes)", what, size, most)}
	}
	return rejection
}

// decide asks the machine, on the speculative state [G2].
func (r *Replica) decide(c Command) (events [][]byte, reply []byte, err error) {
	if mutated("decide-on-committed") {
		v := r.appliedVersion()
		defer v.Close()
		return r.machine.Decide(v, c)
	}
	return r.machine.Decide(r.apply.readView, c)
}

func (r *Replica) applyDecided(b *batch, data []byte) {
	r.apply.collect()
	r.machine.Apply(&r.apply, Event{
		Data: data, Time: b.time, Version: b.machine,
		Position: Position{Shard: r.shard, Index: b.index, Ordinal: b.ordinal},
	})
	r.state.EndScans()
	b.ordinal++
	r.w.scratch = appendEvent(r.w.scratch, data, r.apply.digests)
}

// machinePanicked turns a panic of the leader's Decide or Apply into a rejection: nothing has been
// replicated, so nothing has diverged, and the command must not kill one leader after the other.
func (r *Replica) machinePanicked(p any) *Rejection {
	switch cause := p.(type) {
	case *state.ReadError, *Error:
		panic(p) // not the machine's
	case *state.LimitError:
		code := CodeValueTooLarge
		if cause.What == "key" {
			code = CodeKeyTooLarge
		}
		return &Rejection{Code: code, Message: cause.Error()}
	}
	r.stats.MachinePanics++
	text := panicText(p)
	if r.logger.Enabled(context.Background(), slog.LevelError) { // a stack is dear
		r.logger.Error("the machine panicked on a command, which is rejected", "reason", text, "stack", string(debug.Stack()))
	}
	return &Rejection{Code: CodeMachinePanic, Message: "the machine panicked: " + text}
}

// maxPanicText bounds what a panic says in the log and to callers: it says what it likes, and an entry that no frame takes would stop the shard for good.
const maxPanicText = 4 << 10

// panicText is the value of a panic in words. What is large by itself is not even formatted.
func panicText(p any) (text string) {
	v := reflect.ValueOf(p)
	switch v.Kind() {
	case reflect.String:
		if v.Len() > maxPanicText {
			return clipped(v.String())
		}
	case reflect.Slice, reflect.Array, reflect.Map:
		if v.Len() > maxPanicText {
			return fmt.Sprintf("a %T of %d elements", p, v.Len())
		}
	default:
	}
	return clipped(fmt.Sprint(p))
}

func clipped(text string) string {
	if len(text) <= maxPanicText {
		return strings.ToValidUTF8(text, "\uFFFD") // who asks for it over the network is told in protobuf's strings
	}
	return fmt.Sprintf("%s... (%d bytes)", strings.ToValidUTF8(text[:maxPanicText], ""), len(text))
}

// propose hands the open batch to raft as one entry. It is called when raft
// can take it right away, so that whatever comes during a write shares the next entry.
func (r *Replica) propose() {
	l := r.lead
	if l == nil || !l.ready {
		return
	}
	for l.open != nil && len(l.inflight) < r.cfg.Limits.PipelineDepth {
		if r.onlyReads(l.open) {
			r.confirmReads(l)
		} else {
			r.proposeOpen(l)
		}
		r.decideQueue() // what a full batch left over goes along in the same write
	}
	r.proposeChange()
	if l.transferee != 0 && l.open == nil && !l.transferSent {
		l.transferSent = true
		r.rn.TransferLeader(uint64(l.transferee))
	}
}

// onlyReads reports whether a batch needs no entry. (A leader that has removed itself cannot have reads confirmed, see serveReads.)
func (r *Replica) onlyReads(b *batch) bool {
	return len(b.decided)+len(b.riders) == 0 && !r.leaving
}

// confirmReads hands the reads of a batch without commands to a round of ReadIndex that is yet to begin [G7], which costs no write. The batch
// is as if it had never been: it has changed nothing. A read that waits until everything before it is applied is ordered with commands as if it had ridden.
func (r *Replica) confirmReads(l *leadership) {
	for _, q := range l.open.reads {
		q.queuedAt = r.w.now.Mono
		if !mutated("read-overtakes") {
			q.readIndex = l.head.index
		}
	}
	switch {
	case mutated("unconfirmed-read"):
		r.reads.waiting = append(r.reads.waiting, l.open.reads...)
	case mutated("read-joins-round") && len(r.reads.asked) > 0:
		r.reads.asked = append(r.reads.asked, l.open.reads...)
	default:
		r.reads.wanted = append(r.reads.wanted, l.open.reads...)
	}
	l.open = nil
}

func (r *Replica) proposeOpen(l *leadership) {
	b := l.open
	if b.buf == nil {
		b.buf = make([]byte, entryHeaderMax)
	}
	b.chain = chainEntry(r.apply.chain, b.seq, b.time)
	r.apply.chain = b.chain
	b.end = r.state.Mark()
	entry := sealEntry(b.buf, entryHeader{term: b.term, seq: b.seq, time: b.time, chain: b.chain, requests: len(b.decided)})
	r.w.bufferUsed(len(b.buf))
	if b.late {
		r.inPass().over = true
	}
	b.size = len(entry)
	b.buf = nil // the entry is raft's now
	if len(b.reads) > 0 {
		b.version = r.state.Version()
	}
	l.open = nil
	l.inflight = append(l.inflight, b) // first: should raft panic, stop finds the batch and ends its calls
	if err := r.rn.Propose(entry); err != nil {
		l.inflight = l.inflight[:len(l.inflight)-1]
		r.refused(b, err)
		return
	}
	b.observe(StepProposed)
	l.head.index, l.head.seq, l.head.time = b.index, b.seq, b.time
	if b.nextMachine != 0 {
		l.head.machine = b.nextMachine
	}
	// Here and not only at the end of a pass: under load the next batch is open by then, always.
	r.maybeFreeze()
}

// refused undoes a batch that raft did not take, before anything else is decided [G4].
func (r *Replica) refused(b *batch, err error) {
	if !mutated("no-rollback-when-refused") {
		r.rollback(b.start, b.startChain)
	}
	r.forget(b)
	if b.nextMachine != 0 {
		r.lead.raising = 0
	}
	b.fail(r, notProposed(CodeTransfer, "raft did not take the entry: %v", err))
}

func (r *Replica) rollback(to state.Mark, chain uint64) {
	r.stats.Rollbacks++
	r.state.Rollback(to)
	r.apply.chain = chain
}

// forget takes what a batch did out of the sessions' notes of what is in flight.
func (r *Replica) forget(b *batch) {
	for i := range b.decided {
		h := b.decided[i].header
		if h == nil {
			continue
		}
		if h.flags&flagOpen != 0 && r.lead != nil {
			r.lead.opening--
			r.lead.evicting -= len(h.evicted)
		}
		for _, id := range h.evicted {
			if s := r.sessions.byID[id]; s != nil {
				s.leaving = false
			}
		}
		if s := r.sessions.byID[h.session]; s != nil && h.flags&flagClose != 0 {
			s.leaving = false
		}
		if h.flags != flagSession {
			continue
		}
		if s := r.sessions.byID[h.session]; s != nil && s.inflight[h.seq] == b.decided[i].req {
			delete(s.inflight, h.seq)
			s.inflightUses--
		}
	}
}

// stepDown ends a leadership: speculative state goes, then every pending call gets its answer [G4, G6].
func (r *Replica) stepDown(leader NodeID) {
	l := r.lead
	// First: should anything below panic, stop finds what is in flight and ends its calls.
	r.orphans = append(r.orphans, l.inflight...)
	r.lead = nil
	r.logger.Info("no longer leader", "term", uint64(l.term), "new_leader", uint64(leader))
	r.reads.reset()
	r.failLeadersReads(leader)
	if c := l.change; c != nil && c.req != nil {
		e := notProposed(CodeLeadershipLost, "leadership of shard %d went before the change was proposed", r.shard)
		e.Leader = leader
		r.finish(c.req, Result{}, e)
	}
	if !l.ready {
		return
	}
	if !mutated("no-rollback") {
		r.rollback(r.committed, r.chain)
	}
	r.state.Release(r.state.Mark())
	r.state.SetUndo(false)
	if r.freezing {
		r.freezing = false
		r.state.Unfreeze()
	}
	if b := l.open; b != nil {
		r.forget(b)
		e := notProposed(CodeLeadershipLost, "leadership of shard %d went before the command was proposed", r.shard)
		e.Leader = leader
		b.fail(r, e)
	}
	for _, b := range l.inflight {
		r.forget(b)
	}
	// What was proposed may still turn out within this pass, see settle and settleOrphans.
}

// settle answers the calls of a former leader's entry when the entry that was
// committed in its place is applied. Only a committed entry proves anything: one that merely
// stands in the log may itself be overwritten.
func (r *Replica) settle(index Index, term Term, void, change bool) {
	for len(r.orphans) > 0 && r.orphans[0].index <= index {
		b := r.orphans[0]
		r.orphans = r.orphans[1:]
		switch {
		case b.index != index:
			b.fail(r, unknown(CodeLeadershipLost, "leadership of shard %d went while the entry was under way", r.shard))
		case b.term != term || void || (b.change != nil) != change:
			b.fail(r, notProposed(CodeOverwritten, "another leader's entry was committed at index %d", index))
		default:
			b.observe(StepCommitted)
			for _, d := range b.decided {
				r.finish(d.req, d.result, d.err)
			}
			b.failRiders(r, notProposed(CodeLeadershipLost, "leadership of shard %d went", r.shard))
		}
	}
}

// settleOrphans ends what is left at the end of the pass in which leadership went.
func (r *Replica) settleOrphans() {
	for _, b := range r.orphans {
		if mutated("forget-pending") {
			continue
		}
		e := unknown(CodeLeadershipLost, "leadership of shard %d went while the entry at index %d was under way; it may yet be committed", r.shard, b.index)
		e.Leader = r.leader
		if mutated("unknown-as-not-proposed") {
			e.Kind = ErrNotProposed
		}
		b.fail(r, e)
	}
	r.orphans = nil
}
