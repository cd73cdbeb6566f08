package core

import (
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// Damage that the state store meets by itself, in a compaction, may lie where nobody will read for years. A replica that stops for it is repaired from a peer; but the peer
// may lack what this replica and one that is gone had acknowledged, and then cannot be elected without it either: the shard would stand still for ever, for a block that nobody
// wanted. So a replica stops for such damage only where the shard can do without it; until then it goes on, and says so. Whoever reads the damage
// gets an error, and the replica stops, as ever.
//
// Whether the shard can do without it only the leader knows: a follower hears of the other followers' nodes, not of their replicas, and two that
// have met damage would count on each other.
//
//	follower                       leader
//	  noteMayStop: this one?  ────►
//	                          ◄────  noteStop: yes, this one. Whoever was told so is not counted on
//
// There is no no: the follower asks again, and goes on meanwhile. An answer counts for the last question only, in this term only, and for an election timeout since it was asked; the
// leader does without whom it has permitted to stop for three. So one that is late stops nobody who is counted on.

// unread is damage that was met, and that nobody has read.
type unread struct {
	err      *Error
	logged   int64 // monotonic ns, as all times here
	askedAt  int64 // the leader, and the name of the question
	term     Term  // that this replica leads
	since    int64 // it does
	handedAt int64 // leadership was to be handed over
}

// unreadPause is how often a replica says that it goes on with damage, and hands leadership over for it.
const unreadPause = time.Minute

// sparing is what a leader knows for the sake of those who have met damage.
type sparing struct {
	asked     map[NodeID]int64 // when they last did: they have unread damage
	permitted map[NodeID]int64 // to stop
	// bar is what was committed one to two election timeouts ago: who has less lags.
	bar, nextBar Index
	barAt        int64
}

// Unreadable tells a replica that its state is damaged, which it has not read itself. It stops as soon as the shard can do without it.
func (w *Worker) Unreadable(id ShardID, err error) {
	if r := w.replicas[id]; r != nil && r.broken == nil && r.unread == nil {
		r.unread = &unread{err: broken(CodeStorage, err, "a table of the state store is damaged")}
	}
}

// lookAtDamage stops the replica for damage that nobody has read, if it may. It is called with every tick.
func (r *Replica) lookAtDamage() {
	now := r.w.now.Mono
	if l := r.lead; l != nil && now-l.sparing.barAt >= r.electionNanos() {
		s := &l.sparing
		s.bar, s.nextBar, s.barAt = s.nextBar, Index(r.rn.BasicStatus().Commit), now
	}
	u := r.unread
	if u == nil {
		return
	}
	switch {
	case r.lead != nil:
		if r.spares(r.cfg.Node) {
			r.stop(u.err)
			return
		}
		if r.quiet {
			r.wake() // to hear who answers
		}
		r.passOn(u)
	case !slices.Contains(r.conf.Voters, r.cfg.Node) && !slices.Contains(r.conf.Outgoing, r.cfg.Node):
		r.stop(u.err) // nobody counts on it
		return
	case r.leader != 0 && (u.askedAt == 0 || now-u.askedAt >= r.electionNanos()/2):
		u.askedAt = now
		r.w.env.SendNote(r.leader, Note{Shard: r.shard, Kind: noteMayStop, A: uint64(now)})
	}
	if u.logged == 0 || now-u.logged > int64(unreadPause) {
		u.logged = now
		r.logger.Error("a table of this replica is damaged, where nobody has read yet, and the shard could not go on without it: too few of the other voters answer, and lack nothing. "+
			"It goes on, and is repaired when they are back; bring them back, or put new nodes in their place, before somebody reads there", "damage", u.err, "voters", r.conf.Voters)
	}
}

// hearMayStop permits a follower to stop for unread damage, if the shard goes on without it.
func (r *Replica) hearMayStop(n Note) {
	l := r.lead
	if l == nil {
		return
	}
	if r.quiet {
		r.wake() // to hear who answers
	}
	s := &l.sparing
	if s.asked == nil {
		s.asked, s.permitted = map[NodeID]int64{}, map[NodeID]int64{}
	}
	s.asked[n.From] = r.w.now.Mono
	if r.spares(n.From) {
		s.permitted[n.From] = r.w.now.Mono
		r.w.env.SendNote(n.From, Note{Shard: r.shard, Kind: noteStop, A: n.A, B: uint64(l.term)})
	}
}

// hearStop takes the leader's permission.
func (r *Replica) hearStop(n Note) {
	u := r.unread
	if u != nil && r.lead == nil && n.From == r.leader && Term(n.B) == r.raftTerm && n.A == uint64(u.askedAt) && r.w.now.Mono-u.askedAt < r.electionNanos() {
		r.stop(u.err)
	}
}

// spares reports whether the shard that this replica leads goes on without one of its members: a majority of the voters is in service without it, and not behind.
// What that member has acknowledged and is committed, one of them has as well.
func (r *Replica) spares(n NodeID) bool {
	l := r.lead
	if !l.ready || l.change != nil || l.changing {
		return false
	}
	for _, voters := range [][]NodeID{r.conf.Voters, r.conf.Outgoing} {
		if !slices.Contains(voters, n) {
			continue
		}
		up := 0
		for _, v := range voters {
			if v != n && r.keepsUp(v) {
				up++
			}
		}
		if up < len(voters)/2+1 {
			return false
		}
	}
	return true
}

// keepsUp reports whether a voter is in service and not behind, as far as this leader knows. One that was permitted to stop is not counted on
// until it has stopped for certain, if it does, and has been silent for an election timeout. Who has acknowledged an entry of this term is not stopped by an earlier leader's word any more.
func (r *Replica) keepsUp(v NodeID) bool {
	if v == r.cfg.Node {
		return !r.stuck()
	}
	s := &r.lead.sparing
	if at, ok := s.permitted[v]; ok && r.w.now.Mono-at < 3*r.electionNanos() {
		return false
	}
	return r.answers(v) && r.matched(v) >= uint64(max(r.lead.first, s.bar))
}

// matched returns up to where a member is known to have this leader's log.
func (r *Replica) matched(n NodeID) (match uint64) {
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if NodeID(id) == n {
			match = p.Match
		}
	})
	return match
}

// passOn hands leadership over to a voter that lacks nothing: reads that reach the leader do not meet the damage then. Not to one that has damage of its own, of which those
// who have it have told within half an election timeout; nor to the one that handed it over to this replica, which had a reason; and seldom, so that it does not go round.
func (r *Replica) passOn(u *unread) {
	l, now := r.lead, r.w.now.Mono
	if u.term != l.term {
		u.term, u.since = l.term, now
	}
	if now-u.since < r.electionNanos() || u.handedAt != 0 && now-u.handedAt < int64(unreadPause) || !l.ready || l.transferee != 0 || l.change != nil {
		return
	}
	for _, v := range r.conf.Voters {
		at, asked := l.sparing.asked[v]
		if v == r.cfg.Node || v == r.givenBy && r.givenTerm == l.term || asked && now-at < 2*r.electionNanos() || !r.keepsUp(v) {
			continue
		}
		u.handedAt, l.transferee = now, v
		r.touch()
		return
	}
}
