package core

import (
	"fmt"
	"time"

	"go.etcd.io/etcd/raft/v3"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// Worker is the single writer of some of a node's shards. It does no I/O and
// reads no clock: Pass is a function of its inputs and of what Env answers, so that the simulator runs
// this very code under one seed. A Worker is used by one goroutine at a time.
type Worker struct {
	cfg      Config
	env      Env
	now      Now
	replicas map[ShardID]*Replica
	order    []*Replica // by shard, for what concerns all
	touched  []*Replica // in this pass
	putOff   []*Replica // that have more to decide, in the next
	passes   uint64
	out      *Write // of this pass
	peers    map[NodeID]bool
	before   map[NodeID]int64 // when each had been heard as of the end of the last pass
	diskLow  bool

	scratch []byte // events of the request being decided
	buffer  int    // size of recent entries
}

// NewWorker returns a worker without shards. The config must be valid.
func NewWorker(cfg Config, env Env, now Now) *Worker {
	return &Worker{cfg: cfg, env: env, now: now, replicas: map[ShardID]*Replica{}, peers: map[NodeID]bool{}, before: map[NodeID]int64{}}
}

// AddShard starts a replica. What it has to send or write goes out with the next Pass.
func (w *Worker) AddShard(id ShardID, d Deps) error {
	if w.replicas[id] != nil {
		return fmt.Errorf("shard %d is there already", id)
	}
	r, err := newReplica(w, id, d)
	if err != nil {
		return err
	}
	w.replicas[id] = r
	w.order = append(w.order, r)
	r.touch()
	return nil
}

// Pass takes in what has arrived and brings every shard concerned as far as it goes.
func (w *Worker) Pass(now Now, in *Input) {
	w.now = now
	w.passes++
	for _, r := range w.putOff {
		r.touch()
	}
	w.putOff = w.putOff[:0]
	if len(in.Gaps) > 0 { // first: others may end the rest too, and do not know of them
		for _, r := range w.order {
			r.missed(in.Gaps)
		}
	}
	for _, f := range in.Calls {
		f(w)
	}
	for _, wr := range in.Written {
		for _, r := range wr.replicas {
			r.touch()
			r.written()
		}
		for _, f := range wr.then {
			f()
		}
	}
	for _, f := range in.Flushed {
		if r := w.replicas[f.Shard]; r != nil {
			r.flushed(f)
			r.touch()
		}
	}
	for _, d := range in.Installed {
		if r := w.replicas[d.Shard]; r != nil {
			if d.done != nil {
				d.done(d)
			} else {
				r.installed(d)
			}
			r.touch()
		}
	}
	for _, d := range in.Cuts {
		if r := w.replicas[d.Shard]; r != nil {
			d.done(d)
			r.touch()
		}
	}
	for _, f := range in.Fetched {
		if r := w.replicas[f.Shard]; r != nil {
			r.fetched(f)
		}
	}
	for _, n := range in.Notes {
		if r := w.replicas[n.Shard]; r != nil {
			r.hear(n)
			r.touch()
		}
	}
	for i := range in.Messages {
		if r := w.replicas[in.Messages[i].Shard]; r != nil {
			r.touch()
			r.step(&in.Messages[i])
		}
	}
	for _, n := range in.Commits {
		if r := w.replicas[n.Shard]; r != nil {
			r.hearCommit(n)
		}
	}
	for _, p := range in.Unreachable {
		w.unreachable(p)
	}
	for range in.Ticks {
		w.tick()
	}
	for _, q := range in.Requests {
		w.accept(q)
	}
	for i := 0; i < len(w.touched); i++ { // a replica touched meanwhile is appended
		r := w.touched[i]
		r.touched = false
		r.process()
	}
	w.touched = w.touched[:0]
	for _, q := range in.Quiesces { // now that what came with them has been seen to
		if r := w.replicas[q.Shard]; r != nil {
			r.agreeToQuiesce(q)
		}
	}
	for _, id := range in.Pinned {
		if r := w.replicas[id]; r != nil {
			r.unpin()
		}
	}
	if w.out != nil {
		out := w.out
		w.out = nil
		w.env.Write(out)
	}
	for p := range w.peers { // any order: each is looked at for itself
		w.before[p] = w.env.LastHeard(p)
	}
}

// More reports whether there is more to decide than the last pass had time for: the next is due at once.
func (w *Worker) More() bool { return len(w.putOff) > 0 }

// heardBefore returns when a peer had been heard as of the end of the last pass, all of which has been seen to. 0: there is no word of that.
func (w *Worker) heardBefore(p NodeID) int64 { return w.before[p] }

// accept gives a request to its replica, or refuses it.
func (w *Worker) accept(q *Request) {
	q.observe(StepTaken, Place{})
	r := w.replicas[q.Shard]
	if r == nil {
		q.finish(Result{}, notProposed(CodeNoShard, "node %d hosts no shard %d", w.cfg.Node, q.Shard))
		return
	}
	q.size = q.bytes()
	if err := r.refuses(q); err != nil {
		r.stats.Refused++
		q.finish(Result{}, err)
		return
	}
	r.pending.requests++
	r.pending.bytes += q.size
	if q.Kind != KindRead || q.Level < AtToken {
		r.wake() // the others are answered from what is here
	}
	r.touch()
	if mutated("local-read") && r.lead != nil && q.Kind == KindRead && q.Level == Linearizable {
		r.reads.due = append(r.reads.due, q)
		return
	}
	if q.Kind == KindRead && q.Level != Linearizable {
		r.addRead(q)
		return
	}
	if r.lead == nil {
		r.finish(q, Result{}, r.notLeader())
		return
	}
	if q.Kind == KindChange {
		r.acceptChange(q)
		return
	}
	r.queue = append(r.queue, q)
}

// refuses checks a request against what does not depend on its decision.
func (r *Replica) refuses(q *Request) error {
	l := &r.cfg.Limits
	switch {
	case r.broken != nil:
		return r.broken
	case r.leaving && r.lead == nil:
		return r.removedError(r.conf.Index)
	case len(r.conf.Voters) == 0:
		// Nothing that it could wait for, and nothing to read.
		e := notProposed(CodeNotReached, "node %d has nothing of shard %d yet, it waits to be added; ask another", r.cfg.Node, r.shard)
		e.RetryAfter = r.cfg.Tick
		return e
	case r.pending.requests+int(r.running.Load()) >= l.MaxQueuedRequests || r.pending.bytes+q.size > l.MaxQueuedBytes:
		e := notProposed(CodeOverloaded, "%d calls with %d bytes are pending on shard %d (allowed: %d and %d)",
			r.pending.requests, r.pending.bytes, r.shard, l.MaxQueuedRequests, l.MaxQueuedBytes)
		e.RetryAfter = r.cfg.Tick
		return e
	case r.stuck() && q.Kind != KindChange && (q.Kind != KindRead || q.Level == Linearizable):
		return r.stuckError()
	case q.Kind == KindRead && q.Level == AtToken:
		return r.refusesToken(q)
	case q.Kind == KindRead || q.Kind == KindChange:
		return nil
	case r.w.diskLow && !q.MakesRoom && q.Kind == KindCommand && r.lead != nil && !r.knows(q):
		// Sessions are few and small, and what makes room needs one to be done once. Whoever does not lead says so: the leader may have room.
		e := notProposed(CodeDiskLow, "node %d is low on disk space: commands are refused until there is more, reads go on", r.cfg.Node)
		e.RetryAfter = time.Second
		return e
	case len(q.Commands) > l.MaxRequestCommands:
		return notProposed(CodeTooManyCommands, "the request has %d commands, %d are allowed (MaxRequestCommands): send them in several requests", len(q.Commands), l.MaxRequestCommands)
	case q.Kind == KindCommand && len(q.Commands) == 0:
		return notProposed(CodeBadRequest, "the request has no command: it needs at least one")
	case q.Session != 0 && q.Kind == KindCommand && q.Sequence == 0:
		return notProposed(CodeBadRequest, "the sequence number is 0: within a session numbers start at 1")
	case q.Sequence > MaxSequence:
		return notProposed(CodeBadRequest, "the sequence number is %d: within a session numbers go up to %d", q.Sequence, uint64(MaxSequence))
	}
	for _, c := range q.Commands {
		if len(c) > l.MaxCommandBytes {
			return notProposed(CodeCommandTooLarge, "the command has %d bytes, %d are allowed (MaxCommandBytes)", len(c), l.MaxCommandBytes)
		}
	}
	return nil
}

func (w *Worker) tick() {
	for p, was := range w.peers { // any order: silence wakes replicas, and nothing else
		if is := w.heard(p); is != was {
			w.peers[p] = is
			if !is {
				for _, r := range w.order {
					r.peerSilent(p)
				}
			}
		}
	}
	for _, r := range w.order {
		r.tick()
	}
}

func (w *Worker) heard(p NodeID) bool {
	return w.now.Mono-w.env.LastHeard(p) < int64(w.cfg.ElectionTicks)*int64(w.cfg.Tick)
}

func (w *Worker) alive(p NodeID) bool { return w.peers[p] }

// unreachable tells raft that messages to the peer were lost, so that it probes instead of streaming.
func (w *Worker) unreachable(p NodeID) {
	for _, r := range w.order {
		if r.broken == nil && r.lead != nil && !r.quiet {
			r.rn.ReportUnreachable(uint64(p))
			r.touch()
		}
	}
}

// SetDiskLow switches the refusal of commands for want of disk space.
func (w *Worker) SetDiskLow(low bool) { w.diskLow = low }

func (r *Replica) touch() {
	if !r.touched {
		r.touched = true
		r.w.touched = append(r.w.touched, r)
	}
}

// write adds a record to what this pass makes durable; r, if not nil, is told when it is.
func (w *Worker) write(r *Replica, rec wal.Record) {
	if w.out == nil {
		w.out = newWrite()
	}
	w.out.Records = append(w.out.Records, rec)
	if r != nil {
		w.out.replicas = append(w.out.replicas, r)
	}
}

func (w *Worker) bufferHint() int { return max(512, w.buffer+w.buffer/4) }

// bufferUsed keeps a decaying maximum, so that one large entry does not make all later ones large.
func (w *Worker) bufferUsed(n int) { w.buffer = max(n, w.buffer-w.buffer/8) }

// Stop ends every call that is pending. The worker must not be used any more.
func (w *Worker) Stop(err *Error) {
	for _, r := range w.order {
		if r.broken == nil {
			r.quietStop(err)
		}
	}
}

func (r *Replica) quietStop(err *Error) {
	if r.lead != nil {
		if b := r.lead.open; b != nil {
			b.fail(r, err)
		}
		if c := r.lead.change; c != nil && c.req != nil {
			r.finish(c.req, Result{}, err)
		}
		for _, b := range r.lead.inflight {
			b.fail(r, unknown(err.Code, "the node stopped while the entry was under way"))
		}
	}
	for _, q := range r.queue {
		r.finish(q, Result{}, err)
	}
	r.reads.failAll(r, err)
	cuts := err
	if r.cutUnderWay {
		cuts = unknown(err.Code, "the node stopped while the snapshot was being written")
	}
	r.failCuts(cuts)
	r.broken, r.lead, r.queue = err, nil, nil
}

// Status is what a replica looks like between two passes.
type Status struct {
	Shard        ShardID
	Role         string // leader, follower, candidate, pre-candidate, stopped
	Term         Term
	Leader       NodeID // 0: unknown
	Voters       []NodeID
	Learners     []NodeID
	Members      Configuration // not to be changed
	Version      uint64        // of the machine, active
	MaxVersion   uint64        // that this program can run
	JournalBytes int64         // about; what followers or history need
	JournalShort bool          // it has lost, for want of room (Config.JournalMaxBytes), what a member lacks, which needs a snapshot
	Applied      Index
	Commit       Index
	Last         Index  // of the log, durable
	Flushed      Index  // what the state store has on disk
	Sequence     uint64 // decided entries so far
	Time         Timestamp
	Hash         uint64 // of all state changes up to Applied; equal on all replicas
	Sessions     int
	Inflight     int   // entries proposed and not applied
	Queued       int   // calls pending
	Memory       int64 // bytes: what is not flushed, log and sessions
	Quiet        bool
	Err          *Error // why it serves nobody: it stopped, or it was removed and votes as long as somebody counts on that
	Damage       *Error // met in its state by the store, and not read by anybody: it goes on, since the shard could not without it
	Stats        Stats
}

// Status returns the status of a shard, or false if the worker has no such shard.
func (w *Worker) Status(id ShardID) (s Status, ok bool) {
	if ok = w.Look(id, &s); ok {
		s.JournalBytes = w.replicas[id].journalBytes()
	}
	return s, ok
}

// Look is Status but for JournalBytes, which has to be read from tables, into a Status that is used again: for who looks after every pass.
func (w *Worker) Look(id ShardID, s *Status) bool {
	r := w.replicas[id]
	if r == nil {
		return false
	}
	*s = Status{
		Shard: id, Role: roleNames[r.role], Term: r.raftTerm, Leader: r.leader, Voters: r.conf.Voters, Learners: r.conf.Learners, Members: r.conf, Version: r.meta.machine, MaxVersion: r.maxVersion(), JournalShort: r.cutShort,
		Applied: r.applied, Last: Index(r.log.last()), Flushed: Index(r.log.flushed),
		Sequence: r.seq, Time: r.time, Hash: r.chain, Sessions: len(r.sessions.byID), Queued: r.pending.requests,
		Quiet: r.quiet, Err: r.broken, Stats: r.stats, Memory: r.state.LayerBytes() + r.log.bytes + int64(r.sessions.bytes),
	}
	if r.unread != nil && r.broken == nil {
		s.Damage = r.unread.err
	}
	if r.broken == nil && r.damaged != nil {
		s.Err = r.damaged
	}
	if s.Err != nil {
		s.Role = "stopped"
		return true
	}
	if r.leaving && r.lead == nil {
		s.Err = r.removedError(r.conf.Index) // it serves nobody, and votes as long as somebody counts on that
	}
	s.Commit = Index(r.rn.BasicStatus().Commit)
	if r.lead != nil {
		s.Inflight = len(r.lead.inflight)
	}
	return true
}

// Version returns the state of a shard at its applied index, with that index and
// its hash. The caller must Close it. For audits.
func (w *Worker) Version(id ShardID) (v *state.Version, at Index, hash uint64, ok bool) {
	r := w.replicas[id]
	if r == nil || r.broken != nil || r.damaged != nil {
		return nil, 0, 0, false
	}
	return r.appliedVersion(), r.applied, r.chain, true
}

// Transfer starts handing leadership of a shard to another voter.
func (w *Worker) Transfer(id ShardID, to NodeID) error {
	r := w.replicas[id]
	switch {
	case r == nil:
		return notProposed(CodeNoShard, "node %d hosts no shard %d", w.cfg.Node, id)
	case r.broken != nil:
		return r.broken
	case r.lead == nil:
		return r.notLeader()
	case r.lead.transferee != 0:
		return notProposed(CodeTransfer, "leadership of shard %d is on its way to node %d already", id, r.lead.transferee)
	}
	for _, v := range r.conf.Voters {
		if v == to && v != w.cfg.Node {
			r.wake()
			r.lead.transferee = to
			r.touch()
			return nil
		}
	}
	return notProposed(CodeTransfer, "node %d is no other voter of shard %d (voters: %v)", to, id, r.conf.Voters)
}

// CancelTransfer takes back what Transfer has begun, and reports whether it did: only if raft has not been told of it yet. Raft gives one up after an election
// timeout, but the other replica may have been told to campaign by then, and does when its disk lets it.
func (w *Worker) CancelTransfer(id ShardID, to NodeID) bool {
	r := w.replicas[id]
	if r == nil || r.lead == nil || r.lead.transferee != to || r.lead.transferSent {
		return false
	}
	r.lead.transferee = 0
	r.touch()
	return true
}

var roleNames = [...]string{
	raft.StateFollower: "follower", raft.StateCandidate: "candidate",
	raft.StateLeader: "leader", raft.StatePreCandidate: "pre-candidate",
}
