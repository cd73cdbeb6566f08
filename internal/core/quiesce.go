package core

import (
	"slices"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// An idle shard rests: its replicas are not ticked and send nothing, so that a
// thousand of them cost next to nothing. That nodes are alive is told by one beat
// per pair of nodes, whatever the number of shards.
//
// The leader proposes rest when nothing has happened for a while and every
// voter has everything; a follower agrees if it sees the same. Any message or
// request wakes a replica. A node that falls silent wakes the replicas that it leads, which
// then elect, and those that lead with it as a member, which then check their quorum.
// A follower that did not agree goes on ticking, campaigns in the end, and so wakes the leader.
//
// A beat says that a node is alive, and not that it still leads. So who rests must hear the nodes of all voters: whoever
// led instead would tell it, as a new leader does not rest before all members answer, and its words come before its next beat. A
// follower that does not hear one of them wakes, or does not agree, although its leader hears all: another may lead
// whom it cannot hear, and it would take its leader's beats for word that nothing has happened. For the same reason a gap in what a voter's node
// sends ends the rest, however short it was: those words may have been lost in it, and the next beat comes all the same.

// tick advances raft's clock, unless the shard rests.
func (r *Replica) tick() {
	defer r.contain()
	if r.broken != nil {
		return
	}
	if err := r.unreadable.Load(); err != nil && !mutated("unreadable-leads") {
		// Others can answer what this replica cannot, but not while it leads.
		r.stop(err)
		return
	}
	if r.lookAtDamage(); r.broken != nil {
		return
	}
	r.tickReads()
	r.tickSnapshots()
	r.watchFlush()
	if r.quiet {
		return
	}
	if !r.deaf() {
		r.rn.Tick()
	}
	r.idleTicks++
	r.ticks++
	r.tellVersion()
	r.callOut()
	r.touch()
	if n := r.cfg.QuiesceTicks; n > 0 && r.lead != nil && r.idleTicks >= n && r.idleTicks%r.cfg.HeartbeatTicks == 0 {
		r.proposeQuiesce()
	}
}

// callOut wakes the others where a replica that cannot campaign hears nothing: a learner that did not agree to rest, or came back while they rested.
func (r *Replica) callOut() {
	r.silent++
	patience := r.cfg.ElectionTicks
	if slices.Contains(r.conf.Voters, r.cfg.Node) && len(r.departure.told) == 0 {
		if mutated("ask-voters-only") {
			return
		}
		patience *= 4 // it campaigns, but that asks voters only: were all of them removed, as it was, the learners know
	}
	if r.silent%patience != 0 {
		return
	}
	r.wakeOthers()
}

func (r *Replica) busy() bool {
	q := &r.reads
	return r.writing || r.fetch != nil || r.leaving || len(r.cuts) > 0 || len(r.queue)+len(q.due)+len(q.waiting)+len(q.wanted)+len(q.asked) > 0 ||
		uint64(r.applied) != r.log.last()
}

func (r *Replica) proposeQuiesce() {
	l := r.lead
	if r.busy() || r.stuffed(4) || !l.ready || l.open != nil || len(l.inflight) > 0 || l.transferee != 0 || l.change != nil || r.conf.Joint() || r.gapLately() || r.mayRaise() {
		return
	}
	last, same := r.log.last(), true
	r.rn.WithProgress(func(_ uint64, _ raft.ProgressType, p tracker.Progress) {
		same = same && p.Match == last
	})
	members := r.conf.Members()
	for _, v := range members {
		same = same && (v == r.cfg.Node || r.w.alive(v))
	}
	if !same {
		return
	}
	for _, v := range members {
		if v != r.cfg.Node {
			r.w.env.SendQuiesce(v, Quiesce{Shard: r.shard, Term: r.raftTerm, Last: Index(last)})
		}
	}
	r.quiet = true
}

// agreeToQuiesce looks at the voters' nodes too: should one have fallen silent in this very pass, or something of it been lost, nothing would wake the replica. The leader, which hears
// that one perhaps, is told, so that it goes on.
func (r *Replica) agreeToQuiesce(q Quiesce) {
	if r.broken != nil {
		return
	}
	deaf := r.gapLately()
	for _, v := range r.conf.Voters {
		deaf = deaf || v != r.cfg.Node && !r.w.alive(v)
	}
	if deaf {
		r.w.env.SendNote(q.From, Note{Shard: r.shard, Kind: noteAwake})
		return
	}
	if !r.busy() && r.leader == q.From && r.raftTerm == q.Term &&
		Index(r.log.last()) == q.Last && r.applied == q.Last {
		r.quiet = true
		if r.maxVersion() > r.meta.machine {
			r.sayVersion() // it may have come back with a newer program since it last did
		}
	}
}

// wakeOthers ends the rest of the other replicas: this one hears nothing, or it led and stops, while its node goes on beating.
func (r *Replica) wakeOthers() {
	for _, m := range r.others() {
		r.w.env.SendNote(m, Note{Shard: r.shard, Kind: noteAwake})
	}
}

// wake ends the rest. What that has said of the age up to the last pass stays true. What this one brings may be what wakes, and more of it than has been seen to
// yet: that the voters were heard with it is no word for what is in it.
func (r *Replica) wake() {
	at := int64(0)
	if r.quiet {
		at = r.votersHeard(r.w.heardBefore)
	}
	r.wakeAsOf(at)
}

// wakeAsOf ends the rest, up to a time of which this replica had applied all that was committed; 0: of none.
func (r *Replica) wakeAsOf(at int64) {
	if mutated("no-wake") {
		return
	}
	r.currentAt = max(r.currentAt, at)
	r.quiet = false
	r.idleTicks = 0
}

func (r *Replica) wakeFor(m *raftpb.Message) {
	if m.Type != raftpb.MsgHeartbeat && m.Type != raftpb.MsgHeartbeatResp {
		r.idleTicks = 0
	}
	if !r.quiet || m.Type == raftpb.MsgHeartbeatResp {
		return // the answer to the last heartbeat before the rest
	}
	if NodeID(m.From) == r.leader && Term(m.Term) <= r.raftTerm {
		r.wake()
	} else {
		r.wakeAsOf(0) // who brings news of another leader was heard with it, and that is no word for what was before
	}
	if campaigns := m.Type == raftpb.MsgPreVote || m.Type == raftpb.MsgVote; campaigns && NodeID(m.From) == r.leader {
		// The leader itself campaigns: it has restarted, and does not lead any more. Without
		// this, the leader's lease, whose clock stood still, would refuse it for a whole timeout.
		for range r.cfg.ElectionTicks {
			r.rn.TickQuiesced()
		}
	}
}

// peerSilent wakes the replicas for which the peer matters. Their leader, which may hear the peer, is told: else it would say nothing, and they would elect another.
func (r *Replica) peerSilent(peer NodeID) {
	if !r.quiet || r.lead == nil && !slices.Contains(r.conf.Voters, peer) {
		return
	}
	r.wake()
	r.tellLeader(peer)
}

// missed wakes the replica where something of a voter's node was lost. Its state is known to be whole as of the last that came before. It does not rest again before whoever
// leads has had an election timeout to say so: what was lost may have been that another one does.
func (r *Replica) missed(gaps []Gap) {
	at, lost := r.w.now.Mono, false
	for _, g := range gaps {
		if slices.Contains(r.conf.Voters, g.Peer) {
			at, lost = min(at, g.Heard), true
		}
	}
	if !lost {
		return
	}
	r.gapAt = r.w.now.Mono
	if r.quiet {
		r.wakeAsOf(min(at, r.votersHeard(r.w.heardBefore)))
		r.tellLeader(0)
	}
}

// gapLately: it is too early to rest, see missed.
func (r *Replica) gapLately() bool { return r.gapAt > 0 && r.w.now.Mono-r.gapAt < r.electionNanos() }

// tellLeader has the leader go on, unless it is who is missed.
func (r *Replica) tellLeader(missed NodeID) {
	if r.lead == nil && r.leader != 0 && r.leader != missed {
		r.w.env.SendNote(r.leader, Note{Shard: r.shard, Kind: noteAwake})
	}
}
