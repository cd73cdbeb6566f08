package core

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// Replica is one member of a shard. Everything in it belongs to its worker's goroutine.
type Replica struct {
	shard   ShardID
	w       *Worker
	cfg     *Config
	logger  *slog.Logger
	parent  *slog.Logger // without the shard
	machine Machine
	rand    *rand.Rand

	rn    *raft.RawNode
	log   *raftLog
	state *state.Shard

	// What has been applied, and is the same on every replica at the same index.
	// Invariant: on a leader that is ready, the head of the state store is ahead
	// of it by exactly the effects of lead.inflight and lead.open, all of which
	// can be undone back to the mark committed.
	meta
	sessions  *sessionTable
	apply     applyState
	committed state.Mark
	applying  *Event // while the machine's Apply runs on a replicated event

	// What raft says, as of the last observe.
	role     raft.StateType
	raftTerm Term
	leader   NodeID

	lead      *leadership // nil unless leading
	queue     []*Request  // to be decided or to ride, in order of arrival
	pace      pace
	orphans   []*batch // in flight when leadership went; settled within the pass
	leaving   bool     // no member any more, see members.go
	departure departure
	// What a restart would know of the members: noteDue, a record of the commit index is due; membersKnown, up to here it is on disk.
	noteDue      bool
	membersKnown Index
	known        map[NodeID]string // members by entries that this replica lacks, with their addresses
	askedOf      int64             // monotonic ns, when it was last asked who somebody is

	toldVersion bool // to the present leader
	reads       readQueue
	pending     pendingBound
	running     atomic.Int64 // queries that have left pending and not ended
	// unreadable is why a query, on another goroutine, could not read the state; noticed with the next tick.
	unreadable atomic.Pointer[Error]
	unread     *unread // damage that nobody has read, see damage.go
	givenBy    NodeID  // who last handed leadership to this replica
	givenTerm  Term    // of the leadership that was handed over

	// The one Ready that raft allows at a time, while the WAL writes it.
	writing bool
	ready   raft.Ready
	fresh   []raftpb.Entry   // of its entries, those that are being written
	held    []raftpb.Message // that must not leave before the write is durable

	everywhere Index // see retain.go
	marks      []journalMark

	journalAt   uint64 // the flush as of which journalSize is
	journalSize int64
	cutShort    bool  // the journal has lost, for want of room, what somebody may need
	goneAt      int64 // when a stranded voter was last logged

	// Snapshots, see snapshot.go.
	cuts          []cutWanted
	cutUnderWay   bool
	cutBytes      atomic.Int64 // of the cut under way; written by who cuts
	cutTold       int64        // of these, that a leader was told of
	cutFrom       Index        // what the cut under way has at least
	cutHurry      atomic.Bool  // it must not rest any more
	fetch         *Fetch
	have          *snapshot.Snapshot // fetched, and handed to raft, which has not been heard since
	fetchFailed   Index              // the last that could not be
	fetchFailedAt int64
	installing    *installing
	repairing     *repair // see repair.go

	freezeWanted bool // whatever has gathered: the log needs it

	rewritten uint64 // the end of the log when it was last written again, for the sake of its segment

	freezing bool // the state is frozen at freezeAt, which is not committed yet
	freezeAt Index
	flushing bool
	untaken  int // messages that raft was given while nothing is taken from it, see full
	// ticks that this leader could decide nothing, since a flush has ended
	stuffedTicks int

	quiet     bool
	idleTicks int
	ticks     int        // since the start
	silent    int        // ticks since a message
	note      CommitNote // the leader's last word that is not applied yet
	noteAt    int64
	currentAt int64 // monotonic ns as of when this replica, following or at rest, had applied all that was committed; 0: never
	gapAt     int64 // monotonic ns when something of a voter's node was lost last, see missed; 0: never

	touched bool // is on the worker's list for this pass
	broken  *Error
	lostTo  uint64 // why it is broken: of the entries up to here, which it acknowledged, some are gone; 0: none
	damaged *Error // found when it was made: it stops before it does anything
	stats   Stats
}

// pendingBound bounds the calls that a replica holds.
type pendingBound struct{ requests, bytes int }

// Stats are counters since the replica started.
type Stats struct {
	Entries       uint64 // applied
	Commands      uint64 // decided here and committed
	Rejections    uint64 // of those
	LogReads      uint64 // answered by riding the log
	OtherReads    uint64 // answered without that
	Duplicates    uint64 // retries answered from a session
	Voids         uint64 // entries that failed the check of term and sequence
	Rollbacks     uint64 // times that speculative state was thrown away
	MachinePanics uint64 // contained in Decide, Query or the leader's Apply
	Refused       uint64 // calls turned away by a limit
	Flushes       uint64
	Strange       uint64 // messages from peers that were not acceptable
	Stranded      uint64 // times that a voter asked for what every voter had had: it has lost part of its log
	JournalShort  uint64 // flushes that dropped entries which a member may lack, for want of room (Config.JournalMaxBytes)

	Overtaken uint64 // times that a snapshot had arrived at a member and the journal did not continue it any more (Config.JournalMaxBytes)

	SnapshotsFetched   uint64 // begun
	SnapshotsInstalled uint64
}

func newReplica(w *Worker, id ShardID, d Deps) (*Replica, error) {
	r := &Replica{
		shard: id, w: w, cfg: &w.cfg, machine: d.Machine, state: d.State, rand: d.Rand,
		parent: d.Logger, logger: d.Logger.With("shard", uint64(id)),
	}
	r.apply.s, r.apply.limits = d.State, &w.cfg.Limits
	if err := r.restore(d); err != nil {
		return nil, fmt.Errorf("shard %d: %w", id, err)
	}
	rn, err := raft.NewRawNode(r.raftConfig())
	if err != nil {
		return nil, fmt.Errorf("shard %d: %w", id, err)
	}
	r.rn = rn
	if r.applied == 0 && r.log.last() == 0 && raft.IsEmptyHardState(r.log.hard) && r.firstCandidate() {
		// A new shard need not wait for a timeout; each has its own first candidate, which spreads the leaders.
		_ = rn.Campaign()
	}
	r.observe()
	return r, nil
}

func (r *Replica) raftConfig() *raft.Config {
	return &raft.Config{
		ID:                        uint64(r.cfg.Node),
		ElectionTick:              r.cfg.ElectionTicks,
		HeartbeatTick:             r.cfg.HeartbeatTicks,
		Storage:                   r.log,
		Applied:                   uint64(r.applied),
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  8 << 20,
		MaxUncommittedEntriesSize: 1 << 30, // bounded by pipeline depth and entry size; see proposal
		MaxInflightMsgs:           64,      // of 1 MiB, or an entry if that is larger: raft v3.5 has no bound in bytes
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    raftLogger{r.logger},
		// A follower cannot decide, so it has nothing to forward.
		DisableProposalForwarding: true,
	}
}

// restore rebuilds what a crash left: the last flush, and the WAL's entries after it.
func (r *Replica) restore(d Deps) error {
	r.conf.Voters, r.restored = d.Voters, d.Restored
	if data := d.State.Meta(); data != nil {
		m, err := decodeMeta(data)
		if err != nil {
			return err
		}
		r.meta = m
	}
	r.apply.chain = r.chain
	var err error
	r.sessions, err = loadSessions(d.State)
	if state.IsDamage(err) {
		// What it has promised is in the log, and how far the state is in its record: it can be repaired like one that met the damage later.
		r.sessions, r.damaged = newSessionTable(), broken(CodeStorage, err, "the state store could not be read")
	} else if err != nil {
		return err
	}
	r.log = newRaftLog(d.State, r.applied, r.meta.term, r.cfg.Limits.LogCacheBytes)
	r.log.offer = r.offer
	hs := d.Log.HardState
	if r.applied > 0 && hs.Term == 0 {
		return fmt.Errorf("the state is flushed up to index %d, but the write-ahead log knows nothing of the shard: "+
			"this node has lost part of its log and may not come back under its old id; remove its data and add it as a new node", r.applied)
	}
	if err := r.log.append(r.continuing(d.Log.Entries)); err != nil {
		return fmt.Errorf("the write-ahead log does not continue the state: %w", err)
	}
	if hs.Commit > r.log.last() {
		return fmt.Errorf("entries up to %d are known to be committed, but the log ends at %d: this node has lost part of its "+
			"log and may not come back under its old id; remove its data and add it as a new node", hs.Commit, r.log.last())
	}
	r.log.hard = raftpb.HardState{Term: hs.Term, Vote: hs.Vote, Commit: max(hs.Commit, uint64(r.applied))}
	r.membersKnown = Index(r.log.hard.Commit)
	if limit := r.maxVersion(); r.meta.machine > limit {
		return fmt.Errorf("version %d of the machine is active, this program knows up to %d: start the newer program", r.meta.machine, limit)
	}
	r.setConfiguration(r.conf)
	r.settleLog(&d.Log)
	return nil
}

// continuing returns the entries after what is applied, those that continue it.
func (r *Replica) continuing(stored []wal.Entry) (entries []raftpb.Entry) {
	for _, e := range Continuing(r.applied, r.meta.term, stored) {
		entries = append(entries, raftpb.Entry{Index: e.Index, Term: e.Term, Type: raftpb.EntryType(e.Type), Data: e.Data})
	}
	return entries
}

// settleLog makes the write-ahead log agree with the state that was found. After a crash between the installation of a snapshot and
// the record of it, the log ends before the state, or contradicts it: what comes next could not be appended, or would be dropped
// by the next restart. Otherwise the log is told what is flushed: a shard at rest must not hold back what others could release.
func (r *Replica) settleLog(stored *wal.ShardLog) {
	if r.applied == 0 {
		return
	}
	end := stored.RestartAfter // of a snapshot before this one, with nothing after it
	if n := len(stored.Entries); n > 0 {
		end = stored.Entries[n-1].Index
	}
	due := end != 0 && end < uint64(r.applied)
	for _, e := range stored.Entries {
		due = due || Index(e.Index) == r.applied && Term(e.Term) != r.meta.term
	}
	if !due || mutated("no-restart-record") {
		r.w.env.Flushed(r.shard, r.applied)
		return
	}
	rec := record(r.shard, r.log.hard, r.log.slice(r.log.flushed+1, r.log.last()))
	rec.RestartAfter = uint64(r.applied)
	r.w.write(nil, rec)
}

func (r *Replica) firstCandidate() bool {
	v := r.conf.Voters
	return len(v) > 0 && v[uint64(r.shard)%uint64(len(v))] == r.cfg.Node
}

// process brings the replica as far as the inputs so far allow.
func (r *Replica) process() {
	defer r.contain()
	if r.broken != nil {
		return
	}
	if r.damaged != nil {
		r.stop(r.damaged)
		return
	}
	r.observe()
	r.noteMembers()
	r.promoteCommitted()
	r.decideQueue()
	for range 16 { // bounded: each round consumes what raft had ready
		if r.writing || r.full() {
			break
		}
		r.propose()
		if !r.rn.HasReady() {
			break
		}
		r.takeReady()
		r.observe()
		r.promoteCommitted()
		r.decideQueue()
	}
	if r.inPass().over && len(r.queue) > 0 {
		r.putOff()
	}
	r.settleOrphans()
	r.serveReads()
	r.wantSnapshot()
	r.nextCut()
	r.maybeFreeze()
	if r.leaving || len(r.departure.told) > 0 {
		r.leave()
	}
}

// contain keeps a fault of this shard from taking others down: the replica stops, with the reason.
func (r *Replica) contain() {
	p := recover()
	if p == nil {
		return
	}
	var err *Error
	switch cause := p.(type) {
	case *Error:
		err = cause
	case *state.ReadError:
		err = broken(CodeStorage, cause, "the state store could not be read")
	default:
		if damage, ok := p.(error); ok && state.IsDamage(damage) && !mutated("damaged-journal") {
			err = broken(CodeStorage, damage, "the journal could not be read") // raft panics with what its storage says
		} else if e := r.applying; e != nil {
			err = broken(CodeApplyPanic, nil, "the machine panicked when it applied the event at %v: %s", e.Position, panicText(p))
		} else {
			err = broken(CodeCorruption, nil, "an invariant does not hold: %s", panicText(p))
			if strings.Contains(fmt.Sprint(p), "tocommit") {
				// raft's words for: the leader counts on entries that this replica acknowledged and does not have.
				err.Message = fmt.Sprintf("this node has lost part of its log and may not go on under its id; remove its data and add it as a new node (%v)", p)
				var commit uint64
				_, _ = fmt.Sscanf(fmt.Sprint(p), "tocommit(%d)", &commit)
				r.lostTo = max(commit, r.log.last()+1)
			}
		}
		r.logger.Error("panic", "reason", panicText(p), "stack", string(debug.Stack()))
	}
	r.stop(err)
	r.recordLoss()
}

// recordLoss makes it durable that entries are gone that this replica had acknowledged. Whoever starts the node again finds a log that ends before
// what is committed, and is refused (restore): else it would vote for somebody who lacks them too.
func (r *Replica) recordLoss() {
	if r.writing || r.lostTo <= r.log.hard.Commit { // what is being written may say less; it comes back to this
		return
	}
	r.log.hard.Commit = r.lostTo
	r.w.write(nil, record(r.shard, r.log.hard, nil))
}

// stop takes the replica out of service. It will neither vote, apply nor flush again.
func (r *Replica) stop(err *Error) {
	if r.broken != nil {
		return
	}
	r.broken = err
	r.logger.Error("replica stopped", "reason", err)
	if in := r.installing; in != nil && !in.promised && in.job == nil {
		r.abandonInstall()
	}
	inflight := r.orphans
	if r.lead != nil {
		r.wakeOthers()
		inflight = append(inflight, r.lead.inflight...)
		if b := r.lead.open; b != nil {
			b.fail(r, err)
		}
		if c := r.lead.change; c != nil && c.req != nil {
			r.finish(c.req, Result{}, err)
		}
	}
	for _, b := range inflight {
		b.fail(r, unknown(err.Code, "the replica stopped while the entry was under way: %s", err.Message))
	}
	r.orphans, r.lead = nil, nil
	for _, q := range r.queue {
		r.finish(q, Result{}, err)
	}
	r.queue = nil
	r.reads.failAll(r, err)
	r.failCuts(err)
	r.w.env.Changed(r.shard, 0, r.raftTerm)
	r.w.env.Stopped(r.shard, err)
}

// observe notices what raft has become, and acts on a change before anything else is decided.
func (r *Replica) observe() {
	st := r.rn.BasicStatus()
	role, term, leader := st.RaftState, Term(st.Term), NodeID(st.Lead)
	if r.lead != nil && (role != raft.StateLeader || term != r.lead.term && !mutated("compare-roles")) {
		// Terms are compared, not roles: a leader that lost and won again between two looks has lost [G4].
		r.stepDown(leader)
	}
	if role == raft.StateLeader && r.lead == nil {
		r.lead = &leadership{term: term, heard: map[NodeID]int64{}}
		if mutated("decide-before-own-entry") {
			r.becomeReady()
		}
		r.logger.Info("leader", "term", uint64(term))
	}
	if term != r.raftTerm || leader != r.leader || role != r.role {
		r.cuts = slices.DeleteFunc(r.cuts, func(c cutWanted) bool { return len(c.ask) == 0 }) // for the leader that was
		r.toldVersion = false
		r.reads.reset()
		r.wake()
		r.w.env.Changed(r.shard, leader, term)
	}
	r.role, r.raftTerm, r.leader = role, term, leader
	if r.lead == nil && len(r.queue) > 0 {
		r.refuseQueue()
	}
	if r.lead != nil && r.lead.transferee != 0 && st.LeadTransferee == 0 && r.lead.transferSent {
		r.lead.transferee, r.lead.transferSent = 0, false // it was given up: go on
	}
}

func (r *Replica) refuseQueue() {
	for _, q := range r.queue {
		r.finish(q, Result{}, r.notLeader())
	}
	r.queue = r.queue[:0]
}

func (r *Replica) notLeader() *Error {
	if r.leader == 0 || r.leader == r.cfg.Node {
		e := notProposed(CodeNoLeader, "shard %d has no known leader", r.shard)
		e.RetryAfter = r.cfg.Tick
		return e
	}
	e := notProposed(CodeNotLeader, "node %d does not lead shard %d, node %d does", r.cfg.Node, r.shard, r.leader)
	e.Leader = r.leader
	return e
}

// takeReady handles one Ready. The order of things is raft's contract (raft/doc.go; Raft thesis 10.2.1).
func (r *Replica) takeReady() {
	r.untaken = 0
	rd := r.rn.Ready()
	if !raft.IsEmptySnap(rd.Snapshot) {
		r.beginInstall(rd)
		return
	}
	r.have = nil // raft did not want it
	hard := r.log.hard
	if !raft.IsEmptyHardState(rd.HardState) {
		hard = rd.HardState
	}
	promised := hard.Term != r.log.hard.Term || hard.Vote != r.log.hard.Vote
	fresh := r.log.missing(rd.Entries)
	if !promised && len(fresh) == 0 {
		// A commit index alone is not worth a write: it is found out again.
		r.log.hard = hard
		r.sendAll(rd.Messages)
		r.takeReadStates(rd.ReadStates)
		r.applyCommitted(rd.CommittedEntries)
		r.advance(rd)
		return
	}
	// A leader may replicate while it writes; everything else says "I have it", or "I vote", and waits. So does word of what is
	// committed and not on disk here: a single voter commits what it appends, and a learner would apply what a crash takes back.
	durable := r.log.last()
	if len(fresh) > 0 {
		durable = min(durable, fresh[0].Index-1)
	}
	for i := range rd.Messages {
		m := &rd.Messages[i]
		early := r.lead != nil && !promised && (m.Type == raftpb.MsgApp || m.Type == raftpb.MsgHeartbeat) &&
			(m.Commit <= durable || mutated("commit-before-sync"))
		if early || mutated("send-before-sync") {
			r.send(m)
		} else {
			r.held = append(r.held, *m)
		}
	}
	r.writing, r.ready, r.fresh = true, rd, fresh
	r.writeEntries(record(r.shard, hard, fresh))
	r.takeReadStates(rd.ReadStates)
	// What is committed may be applied now where this node has it on disk already. (With a
	// single voter, and on followers, it may be part of this very write: etcd#14370.)
	r.applyCommitted(r.durable(rd.CommittedEntries, fresh))
}

// durable returns those of the committed entries of a Ready that are on disk before its fresh ones are written. An index alone does not tell:
// at those that are being written, the disk may have another term's entries still.
func (r *Replica) durable(committed, fresh []raftpb.Entry) []raftpb.Entry {
	last, n := r.log.last(), len(committed)
	if mutated("apply-before-sync") {
		last = 1 << 62
	}
	if len(fresh) > 0 && !mutated("apply-before-sync") && !mutated("durable-by-index") {
		last = min(last, fresh[0].Index-1)
	}
	for n > 0 && committed[n-1].Index > last {
		n--
	}
	return committed[:n]
}

// written continues after the outstanding Ready has become durable.
func (r *Replica) written() {
	defer r.contain()
	if rp := r.repairing; rp != nil {
		if rp.job == nil {
			r.beginRepair()
		} else {
			r.restart()
		}
		return
	}
	if !r.writing {
		return
	}
	rd := r.ready
	if in := r.installing; in != nil && !in.done {
		// It was the promise that comes before the installation.
		r.log.hard.Term, r.log.hard.Vote = rd.HardState.Term, rd.HardState.Vote
		in.promised = false
		if r.broken != nil {
			r.abandonInstall()
			r.recordLoss()
			return
		}
		r.continueInstall()
		return
	}
	r.installing = nil
	fresh := r.fresh
	r.writing, r.ready, r.fresh = false, raft.Ready{}, nil
	if err := r.log.append(fresh); err != nil {
		panic(broken(CodeCorruption, err, "raft saved entries that do not fit"))
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		r.log.hard = rd.HardState
	}
	if r.broken != nil {
		r.recordLoss()
		return // the log is kept for unpin
	}
	r.sendAll(r.held)
	r.held = r.held[:0]
	r.applyCommitted(rd.CommittedEntries)
	r.advance(rd)
}

// advance tells raft that a Ready is done with.
func (r *Replica) advance(rd raft.Ready) {
	r.rn.Advance(rd)
	r.hideFirst()
}

func record(shard ShardID, hard raftpb.HardState, entries []raftpb.Entry) wal.Record {
	rec := wal.Record{
		Shard:     uint64(shard),
		HardState: wal.HardState{Term: hard.Term, Vote: hard.Vote, Commit: hard.Commit},
	}
	if mutated("forget-vote") {
		rec.HardState.Vote = 0
	}
	if len(entries) > 0 {
		rec.Entries = make([]wal.Entry, len(entries))
		for i, e := range entries {
			rec.Entries[i] = wal.Entry{Index: e.Index, Term: e.Term, Type: uint8(e.Type), Data: e.Data}
		}
	}
	return rec
}

// maxRecordBytes is how much of a Ready goes into one record of the log, or one entry if that is larger. A follower that took nothing for
// seconds finds up to 64 messages of 32 MiB, which are one Ready; a record has a limit, and a node whose log cannot be written stops.
const maxRecordBytes = 64 << 20

// writeEntries has the outstanding Ready written, in as many records as it takes.
func (r *Replica) writeEntries(rec wal.Record) {
	records := cutRecord(rec, maxRecordBytes)
	for _, rec := range records[:len(records)-1] {
		r.w.write(nil, rec)
	}
	r.w.write(r, records[len(records)-1])
}

// cutRecord cuts a record into several with at most so many bytes, or one entry, each. Of those, a crash leaves the first few: a promise with the
// beginning of the entries, as if the leader had sent no more. No entry counts as committed that is not there yet.
// A record that repeats what is on disk must not be cut: its beginning alone would take back what was acknowledged (see raftLog.missing).
func cutRecord(rec wal.Record, limit int64) (records []wal.Record) {
	rest, commit := rec.Entries, rec.HardState.Commit
	for {
		n, bytes := 0, int64(0)
		for n < len(rest) && (n == 0 || bytes+int64(len(rest[n].Data)) <= limit) {
			bytes += int64(len(rest[n].Data)) + entryOverhead
			n++
		}
		if n == len(rest) {
			rec.Entries, rec.HardState.Commit = rest, commit
			return append(records, rec)
		}
		rec.Entries, rest = rest[:n], rest[n:]
		rec.HardState.Commit = min(commit, rec.Entries[n-1].Index)
		records = append(records, rec)
		rec.RestartAfter = 0
	}
}

func (r *Replica) sendAll(messages []raftpb.Message) {
	for i := range messages {
		r.send(&messages[i])
	}
}

func (r *Replica) send(m *raftpb.Message) {
	// raft would pass on a ReadIndex that reached it when it no longer led, under the name
	// of who asked. The peer would refuse that; who asked asks again.
	ours := m.From == uint64(r.cfg.Node) || mutated("forward-read-index")
	if m.Type == raftpb.MsgSnap && r.leftOut(m) {
		return
	}
	if ours && m.To != uint64(r.cfg.Node) && m.To != 0 {
		r.w.env.Send(NodeID(m.To), r.shard, m)
		if r.lead != nil && r.lead.ready {
			r.tellCommit(m)
		}
	}
}

// step gives raft a message from a peer.
func (r *Replica) step(m *Message) {
	defer r.contain()
	if r.broken != nil {
		return
	}
	if r.late(&m.Raft) {
		return
	}
	if !r.acceptable(m) {
		r.stats.Strange++
		return
	}
	r.wakeFor(&m.Raft)
	r.silent = 0
	if r.deaf() {
		return
	}
	if r.full() {
		r.untaken++
	}
	if l := r.lead; l != nil && r.follows(&m.Raft) {
		l.heard[m.From] = min(m.At, r.w.now.Mono) // it may have waited for a long pass, and its sender have found another leader since
	}
	switch m.Raft.Type {
	case raftpb.MsgSnap:
		r.hearSnapshot(m)
		return
	case raftpb.MsgPreVote, raftpb.MsgVote:
		r.tellChanged(&m.Raft)
	case raftpb.MsgTimeoutNow:
		r.givenBy, r.givenTerm = m.From, Term(m.Raft.Term)+1
	}
	// What raft refuses (an unknown sender, an answer to a former term) is not an error of ours.
	_ = r.rn.Step(m.Raft)
}

// follows reports whether a message is what only a follower of this leader says. Anything else, a vote that is asked for, an answer to a former leader,
// may come from who follows another, which has committed what this one lacks.
func (r *Replica) follows(m *raftpb.Message) bool {
	return (m.Type == raftpb.MsgAppResp || m.Type == raftpb.MsgHeartbeatResp) && Term(m.Term) == r.raftTerm
}

// acceptable lets through what a member of this shard may have to say, and what raft can take: it trusts its callers, and
// we do not trust the network. A sender that is no member here may be one by entries that this replica lacks: those who
// are members here know. One that was removed is told so.
func (r *Replica) acceptable(m *Message) bool {
	switch {
	case r.conf.Has(m.From) || len(r.conf.Voters) == 0:
	case slices.Contains(r.conf.Removed, m.From):
		r.tellRemoved(m.From)
		return false
	case !r.vouchedFor(m.From):
		return false
	}
	if m.Raft.Term == 0 && m.Raft.Type != raftpb.MsgReadIndex {
		return false // raft would take it for a word of this node's own
	}
	switch m.Raft.Type {
	case raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTimeoutNow,
		raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp:
		return true
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		return !r.leaving && len(m.Raft.Entries) == 1 && len(m.Raft.Entries[0].Data) == 8
	case raftpb.MsgSnap:
		return m.Raft.Snapshot.Metadata.Index > 0
	}
	return false // proposals, which are never forwarded; what only a node tells itself
}

// hear takes a note from a replica.
func (r *Replica) hear(n Note) {
	defer r.contain()
	if r.broken != nil {
		switch {
		case r.broken.Code == CodeRemoved && n.Kind == noteAwake:
			r.pointOn(n.From)
		case n.Kind == noteCutWanted: // no: a leader that hears nothing waits for long, and followers with it
			r.w.env.SendNote(n.From, Note{Shard: r.shard, Kind: noteCut, A: n.A})
		}
		return
	}
	if slices.Contains(r.conf.Removed, n.From) {
		if n.Kind != noteRemoved { // two that were removed would tell each other for ever
			r.tellRemoved(n.From)
		}
		return
	}
	if !r.conf.Has(n.From) && len(r.conf.Voters) > 0 && !r.vouchedFor(n.From) {
		r.stats.Strange++
		return
	}
	switch n.Kind {
	case noteAwake:
		r.wake()
		r.pointOn(n.From)
	case noteCutWanted:
		if n.From != r.leader || n.A > r.log.last() {
			return
		}
		r.cuts = slices.DeleteFunc(r.cuts, func(c cutWanted) bool { return c.to == n.From })
		r.cut(cutWanted{min: Index(n.A), to: n.From, hurry: true})
	case noteCut:
		r.hearCut(n)
	case noteCutting:
		r.hearCutting(n)
	case noteFetching, noteFetchFailed:
		r.hearFetching(n)
	case noteRemoved:
		r.hearRemoved(n)
	case noteWho:
		r.answerWho(n)
	case noteKnown:
		r.hearKnown(n)
	case noteVersions:
		r.hearVersions(n)
	case noteChanged:
		r.hearChanged(n)
	case noteMayStop:
		r.hearMayStop(n)
	case noteStop:
		r.hearStop(n)
	}
}

// finish hands a request back.
func (r *Replica) finish(q *Request, res Result, err error) {
	for p := q; p != nil; p = p.next {
		r.pending.requests--
		r.pending.bytes -= p.size
	}
	q.finish(res, err)
}

// raftLogger gives raft's messages to slog: its own Info is our Debug.
type raftLogger struct{ l *slog.Logger }

func (l raftLogger) Debug(...any)                   {}
func (l raftLogger) Debugf(string, ...any)          {}
func (l raftLogger) Info(v ...any)                  { l.l.Debug(fmt.Sprint(v...)) }
func (l raftLogger) Infof(format string, v ...any)  { l.infof(format, v...) }
func (l raftLogger) Warning(v ...any)               { l.l.Warn(fmt.Sprint(v...)) }
func (l raftLogger) Warningf(f string, v ...any)    { l.l.Warn(fmt.Sprintf(f, v...)) }
func (l raftLogger) Error(v ...any)                 { l.l.Error(fmt.Sprint(v...)) }
func (l raftLogger) Errorf(format string, v ...any) { l.l.Error(fmt.Sprintf(format, v...)) }
func (l raftLogger) Fatal(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
func (l raftLogger) Panic(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l raftLogger) Panicf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }

func (l raftLogger) infof(format string, v ...any) {
	if l.l.Enabled(context.Background(), slog.LevelDebug) {
		l.l.Debug(fmt.Sprintf(format, v...))
	}
}
