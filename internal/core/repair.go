package core

import (
	"fmt"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// Repair: a replica that stopped because what its disk has is damaged, or is not what the others have, is given the state of another
// replica, and goes on under its own name. It may, because what it has promised stands in the log and not in the state: term and
// vote are kept, and of the entries that it acknowledged those up to the snapshot are in the snapshot, and those after it are kept too.
// That is so for a snapshot that is not older than the last flush: what lies before that is not in the log any more.

// repair is one under way.
type repair struct {
	snap *snapshot.Snapshot
	job  *state.InstallJob // nil: the snapshot's term is not durable yet
	log  wal.ShardLog
	done func(error)
}

// Repairable returns the least index that a snapshot must have to repair a replica that has stopped, and who may have one; or why it cannot be repaired: with a time to ask again after
// while it still writes what it was writing when it stopped.
func (w *Worker) Repairable(id ShardID) (least Index, members []NodeID, err error) {
	r := w.replicas[id]
	switch {
	case r == nil:
		return 0, nil, notProposed(CodeNoShard, "node %d hosts no shard %d", w.cfg.Node, id)
	case r.broken == nil:
		return 0, nil, notProposed(CodeRepair, "the replica of shard %d on node %d is in service: there is nothing to repair", id, w.cfg.Node)
	case r.broken.Code == CodeRemoved || r.broken.Code == CodeUnsupported || r.broken.Code == CodeClosed:
		return 0, nil, notProposed(CodeRepair, "no state of a peer helps here: %v", r.broken)
	case r.lostTo != 0:
		// Its votes may be gone with the entries: it could vote twice.
		return 0, nil, notProposed(CodeRepair, "the log of node %d has lost what shard %d had acknowledged, which no state of a peer brings back: replace the node by a new one (decree replace)", w.cfg.Node, id)
	case r.repairing != nil:
		return 0, nil, notProposed(CodeRepair, "the replica of shard %d on node %d is being repaired", id, w.cfg.Node)
	case r.writing || r.flushing || r.installing != nil:
		e := notProposed(CodeRepair, "the replica of shard %d has not come to rest yet; try again", id) // and what it is writing may be what a snapshot must have
		e.RetryAfter = w.cfg.Tick
		return 0, nil, e
	}
	for _, m := range r.conf.Members() {
		if m != w.cfg.Node && m != r.leader {
			members = append(members, m)
		}
	}
	if r.leader != 0 && r.leader != w.cfg.Node {
		members = append(members, r.leader) // last: it has enough to do
	}
	if len(members) == 0 {
		return 0, nil, notProposed(CodeRepair, "shard %d has no other member that could help: restore a backup", id)
	}
	// The state may be ahead of what the replica knows to be flushed: a snapshot had been installed when it stopped.
	return max(1, Index(r.log.flushed), Index(r.state.FlushedIndex())), members, nil
}

// Repair puts a snapshot, verified, in the place of the state of a replica that has stopped, and starts it anew. done is called once, on the worker's goroutine.
func (w *Worker) Repair(id ShardID, s *snapshot.Snapshot, done func(error)) {
	least, _, err := w.Repairable(id)
	if err == nil && Index(s.Manifest.Index) < least {
		err = notProposed(CodeRepair, "the snapshot is of index %d, and must be of %d at least", s.Manifest.Index, least)
	}
	r := w.replicas[id]
	if v := s.Manifest.MachineVersion; err == nil && v > r.maxVersion() {
		err = notProposed(CodeRepair, "version %d of the machine is active, this program knows up to %d: start the newer program", v, r.maxVersion())
	}
	if err != nil {
		done(err)
		return
	}
	if bytes := r.keptBytes(s.Manifest); bytes > maxRewriteBytes {
		done(notProposed(CodeRepair, "the log of shard %d has %d bytes after the snapshot at %d, %d are allowed: it takes a later snapshot; try again", id, bytes, s.Manifest.Index, maxRewriteBytes))
		return
	}
	r.repairing = &repair{snap: s, done: done}
	if hard := r.log.hard; hard.Term < s.Manifest.Term && !mutated("repair-before-promise") {
		// A crash after the installation must not leave a state of a term that the log has never heard of.
		hard.Term, hard.Vote = s.Manifest.Term, 0
		r.log.hard = hard
		w.write(r, record(id, hard, nil))
		return
	}
	r.beginRepair()
}

// beginRepair has the state replaced, when the log has its term.
func (r *Replica) beginRepair() {
	rp := r.repairing
	r.state.EndScans() // a machine that panicked may have left some
	job, err := r.state.Install(rp.snap.Install())
	if err != nil {
		r.repairing = nil
		r.failed(rp, fmt.Errorf("the snapshot cannot be installed: %w", err))
		return
	}
	rp.job = job
	r.w.env.Install(&InstallDone{Shard: r.shard, Job: job, Snapshot: rp.snap, Repair: true, done: r.repaired})
}

// repaired continues after the state has been replaced: the log is made to continue it.
func (r *Replica) repaired(d *InstallDone) {
	rp := r.repairing
	if d.Err != nil {
		r.state.AbandonInstall(d.Job)
		r.repairing = nil
		r.failed(rp, fmt.Errorf("the snapshot could not be installed: %w", d.Err))
		return
	}
	r.state.Installed(d.Job)
	r.state.SetUndo(false) // it may have led when it stopped
	at, term := rp.snap.Manifest.Index, rp.snap.Manifest.Term
	hard := r.log.hard
	if hard.Term < term {
		hard.Term, hard.Vote = term, 0
	}
	if mutated("repair-forgets-vote") {
		hard.Vote = 0
	}
	rec := record(r.shard, hard, r.kept(rp.snap.Manifest)) // not cut, see cutRecord; Repair has seen that it is not too large
	rec.RestartAfter = at
	last := at + uint64(len(rec.Entries))
	rec.HardState.Commit = max(at, min(hard.Commit, last))
	rp.log = wal.ShardLog{HardState: rec.HardState, Entries: rec.Entries}
	r.w.write(r, rec)
}

// kept returns the entries that stay after a snapshot: what is acknowledged must not be forgotten.
func (r *Replica) kept(m *snapshot.Manifest) []raftpb.Entry {
	last := r.log.last()
	if m.Index >= last || m.Index < r.log.flushed || mutated("repair-forgets-log") {
		return nil
	}
	if here, err := r.log.Term(m.Index); err != nil || here != m.Term {
		return nil
	}
	return r.log.slice(m.Index+1, last)
}

func (r *Replica) keptBytes(m *snapshot.Manifest) (bytes int64) {
	for _, e := range r.kept(m) {
		bytes += entryBytes(&e)
	}
	return bytes
}

// restart takes the place of a replica that was repaired, when its log is durable too.
func (r *Replica) restart() {
	rp := r.repairing
	r.repairing = nil
	n, err := r.again(Deps{Machine: r.machine, State: r.state, Log: rp.log, Rand: r.rand, Logger: r.parent})
	if err != nil {
		r.log = rp.after(r) // what the disk has: the next attempt goes on from there
		r.failed(rp, err)
		return
	}
	for i := range r.w.order {
		if r.w.order[i] == r {
			r.w.order[i] = n
		}
	}
	r.w.replicas[r.shard] = n
	n.logger.Info("replica repaired", "index", uint64(n.applied))
	n.touch()
	rp.done(nil)
}

// failed says so to who asked for the repair, who may have left, and to who reads the log.
func (r *Replica) failed(rp *repair, err error) {
	r.logger.Warn("replica not repaired", "index", rp.snap.Manifest.Index, "reason", err)
	rp.done(err)
}

// after returns the log as it is on disk behind the snapshot.
func (rp *repair) after(r *Replica) *raftLog {
	m := rp.snap.Manifest
	log := newRaftLog(r.state, Index(m.Index), Term(m.Term), r.cfg.Limits.LogCacheBytes)
	log.conf, log.changed, log.offer = r.log.conf, r.log.changed, r.log.offer
	log.hard = raftpb.HardState{Term: rp.log.HardState.Term, Vote: rp.log.HardState.Vote, Commit: rp.log.HardState.Commit}
	if last := r.log.last(); len(rp.log.Entries) > 0 {
		_ = log.append(r.log.slice(m.Index+1, last)) // they fit: rp.log was made of them
	}
	return log
}

// again makes a replica like r. What it reads may turn out to be damaged once more.
func (r *Replica) again(d Deps) (n *Replica, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it does not start: %s", panicText(p))
		}
	}()
	if n, err = newReplica(r.w, r.shard, d); err == nil && n.damaged != nil {
		return nil, n.damaged
	}
	return n, err
}
