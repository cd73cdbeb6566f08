package core

import (
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// Damage that the state store meets by itself, in a compaction, may lie where nobody will read for years. A replica that stops for it is repaired from a peer; but the peer
// may lack what this replica and one that is gone had acknowledged, and then cannot be elected without it either: the shard would stand still for ever, for a block that nobody
// wanted. So a replica stops for such damage only where the shard can do without it, as far as it knows; until then it goes on, and says so. Whoever reads the damage
// gets an error, and the replica stops, as ever.

// unread is damage that was met, and that nobody has read.
type unread struct {
	err      *Error
	logged   int64 // monotonic ns
	handedIn Term  // leadership was to be handed over
}

// unreadPause is how often a replica says that it goes on with damage.
const unreadPause = time.Minute

// Unreadable tells a replica that its state is damaged, which it has not read itself. It stops as soon as the shard can do without it.
func (w *Worker) Unreadable(id ShardID, err error) {
	if r := w.replicas[id]; r != nil && r.broken == nil && r.unread == nil {
		r.unread = &unread{err: broken(CodeStorage, err, "a table of the state store is damaged")}
	}
}

// lookAtDamage stops the replica for damage that nobody has read, if it may. It is called with every tick.
func (r *Replica) lookAtDamage() {
	u := r.unread
	if u == nil {
		return
	}
	if r.expendable() {
		r.stop(u.err)
		return
	}
	if r.lead != nil {
		if r.quiet {
			r.wake() // to hear who answers
		}
		r.passOn(u)
	}
	if now := r.w.now.Mono; u.logged == 0 || now-u.logged > int64(unreadPause) {
		u.logged = now
		r.logger.Error("a table of this replica is damaged, where nobody has read yet, and the shard could not go on without it: too few of the other voters answer. "+
			"It goes on, and is repaired when they are back; bring them back, or put new nodes in their place, before somebody reads there", "damage", u.err, "voters", r.conf.Voters)
	}
}

// expendable reports whether the shard goes on without this replica, as far as it knows: there is a majority of the voters without it that answers. What it has acknowledged
// and is committed, one of them has as well. A follower knows of the others no more than that their nodes are alive, and whether there is a leader, which has everything.
func (r *Replica) expendable() bool {
	for _, voters := range [][]NodeID{r.conf.Voters, r.conf.Outgoing} {
		if !slices.Contains(voters, r.cfg.Node) {
			continue
		}
		if r.leader == 0 {
			return false
		}
		n := 0
		for _, v := range voters {
			if v != r.cfg.Node && (r.lead != nil && r.answers(v) || r.lead == nil && r.w.alive(v)) {
				n++
			}
		}
		if n < len(voters)/2+1 {
			return false
		}
	}
	return true
}

// passOn hands leadership over, once in a term, to a voter that lacks nothing: reads that reach the leader do not meet the damage then.
func (r *Replica) passOn(u *unread) {
	l := r.lead
	if u.handedIn == l.term || !l.ready || l.transferee != 0 || l.change != nil {
		return
	}
	to := r.bestVoter()
	if to == 0 || !r.answers(to) {
		return
	}
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if NodeID(id) == to && p.Match == r.log.last() {
			u.handedIn, l.transferee = l.term, to
			r.touch()
		}
	})
}
