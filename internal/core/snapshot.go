package core

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// A follower that needs what the journal does not have any more gets a snapshot (Raft, section 7). Raft's message carries its manifest only.
//
//	leader                          another replica                 the follower
//	raft asks for a snapshot
//	  noteCutWanted  ─────────────► flushes if need be, cuts
//	  noteCutting: how far  ◄──────
//	  noteCut, manifest ◄──────────
//	MsgSnap: source, manifest  ──────────────────────────────────► fetches the chunks from the source, or any
//	  noteFetching: how far  ◄────────────────────────────────────  other that has it
//	                                                                hands MsgSnap to raft, installs
//	MsgAppResp  ◄─────────────────────────────────────────────────
//
// The leader is spared where another replica can cut; it cuts itself if none does in time. From the moment that a snapshot is offered
// the journal is kept from there on, within its cap, so that what is transferred is of use when it has arrived.
// What was fetched before a transfer broke off is not fetched again.

// offered is the snapshot that a leader has for those who need one.
type offered struct {
	source   NodeID
	manifest []byte
	index    Index
	term     Term
}

// cutting is a leader's request for a snapshot.
type cutting struct {
	from  NodeID
	min   Index
	bytes int64 // that are written, as it says
	moved int64 // monotonic ns, when it was begun, or when last more was written
	asked int64 // the same, when it was asked last
}

// transfer is what a leader knows of a snapshot on its way.
type transfer struct {
	heard        int64 // monotonic ns
	bytes, total int64
	index        uint64 // of the snapshot
}

// CutDone is a cut under way, or a failed one.
type CutDone struct {
	Shard ShardID
	// Set by the Env: the manifest of what was cut.
	Manifest []byte
	Err      error
	// Progress may be called by the Env with how many bytes are written; on any goroutine.
	Progress func(bytes int64)
	// Hurry says that the cut must not rest for the sake of others any more: the journal that has to continue it fills up, or somebody
	// waits for its end. On any goroutine.
	Hurry func() bool

	done func(*CutDone) // on the worker's goroutine
}

// Fetch is a snapshot being fetched from peers.
type Fetch struct {
	Shard    ShardID
	Manifest []byte
	// Sources are to be asked in this order, and again, until one has it.
	Sources []NodeID
	// Progress may be called by the Env with what has arrived; on any goroutine.
	Progress func(bytes, total int64)

	// Set by the Env.
	Snapshot *snapshot.Snapshot
	Err      error

	message  raftpb.Message // that the snapshot came with
	index    Index
	progress fetchProgress
}

// InstallDone is a snapshot being put in the place of a shard's state.
type InstallDone struct {
	Shard ShardID
	Job   *state.InstallJob
	// Snapshot is what is installed; afterwards the Env may remove what is older.
	Snapshot *snapshot.Snapshot
	// Repair: the state that is replaced may be wrong, and so may be all other snapshots of it that the Env has.
	Repair bool
	Err    error // set by the Env after Job.Run

	done func(*InstallDone) // nil: it is the replica's own, out of a Ready
}

// ErrNoSource is wrapped by the error of a Fetch that found nobody who has the snapshot.
var ErrNoSource = errors.New("nobody who can be reached has it")

// SnapshotInfo returns what a manifest says of a flush, from its meta record.
func SnapshotInfo(cluster string, data []byte) (snapshot.Info, error) {
	m, err := decodeMeta(data)
	if err != nil {
		return snapshot.Info{}, err
	}
	c := &m.conf
	return snapshot.Info{
		Cluster: cluster, Term: uint64(m.term), MachineVersion: m.machine, Time: int64(m.time), Hash: m.chain,
		Config: snapshot.Config{Voters: rawIDs(c.Voters), Outgoing: rawIDs(c.Outgoing), Learners: rawIDs(c.Learners), LearnersNext: rawIDs(c.LearnersNext)},
	}, nil
}

// The data of a raft snapshot: version (1 byte, 1), source (varint), manifest.
const snapDataVersion = 1

func (o *offered) encode() []byte {
	b := binary.AppendUvarint([]byte{snapDataVersion}, uint64(o.source))
	return append(b, o.manifest...)
}

// offer answers raft, which needs a snapshot for somebody. Without a fitting one it has one cut, and raft asks again.
func (r *Replica) offer() (raftpb.Snapshot, error) {
	l := r.lead
	if l == nil || !l.ready && mutated("offer-when-ready") {
		// A leader that has not committed its first entry yet may need the follower for that: it offers what it has applied.
		return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
	}
	r.noticeStranded()
	if o := l.offered; o != nil && r.fits(o.index) { // see also leftOut
		l.offeredAt = r.w.now.Mono
		m, _, err := snapshot.Decode(o.manifest)
		if err != nil {
			panic(broken(CodeCorruption, err, "the manifest of a snapshot"))
		}
		return raftpb.Snapshot{Data: o.encode(), Metadata: raftpb.SnapshotMetadata{
			Index: uint64(o.index), Term: uint64(o.term), ConfState: raftpb.ConfState{
				Voters: m.Config.Voters, VotersOutgoing: m.Config.Outgoing, Learners: m.Config.Learners, LearnersNext: m.Config.LearnersNext},
		}}, nil
	}
	l.snapWanted = true
	r.touch()
	return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
}

// fits reports whether the log continues a snapshot. It may be of before a change of members: who installs it learns of that from the log.
func (r *Replica) fits(index Index) bool {
	first, _ := r.log.FirstIndex() // never fails
	return uint64(index)+1 >= first && index <= r.applied && (index >= r.conf.Index || !mutated("cut-after-the-change"))
}

// leftOut reports whether a snapshot knows nothing of its receiver, who came later. Raft would refuse it there, and does not say here for whom it
// asks; so it is not sent, and a newer one is wanted.
func (r *Replica) leftOut(m *raftpb.Message) bool {
	c := &m.Snapshot.Metadata.ConfState
	if r.lead == nil || slices.Contains(c.Voters, m.To) || slices.Contains(c.VotersOutgoing, m.To) || slices.Contains(c.Learners, m.To) || mutated("fits-any") {
		return false
	}
	r.rn.ReportSnapshot(m.To, raft.SnapshotFailure) // raft asks again after a heartbeat
	r.lead.snapWanted, r.lead.newerWanted = true, true
	r.touch()
	return true
}

// leastCut is what a snapshot must have at least. A newcomer needs one that knows it. A voter may not be made to wait for that: the flush of a leader's
// head waits for what is in flight to be committed, and that perhaps for this voter. It does with any that the log continues: it had its own addition on disk
// when it was promoted, and what it lacks is newer.
func (r *Replica) leastCut() Index {
	first, _ := r.log.FirstIndex() // never fails
	if o := r.lead.offered; o == nil || !r.fits(o.index) {
		voter := false
		r.rn.WithProgress(func(id uint64, t raft.ProgressType, p tracker.Progress) {
			voter = voter || t != raft.ProgressTypeLearner && id != uint64(r.cfg.Node) && p.Next < first
		})
		if voter && !mutated("cut-after-the-change") {
			return Index(first - 1)
		}
	}
	return max(r.conf.Index, Index(first-1))
}

// wantSnapshot has one cut: by another replica, or here if none can.
func (r *Replica) wantSnapshot() {
	l := r.lead
	if l == nil || !l.snapWanted {
		return
	}
	l.snapWanted = false
	if l.offered != nil && r.fits(l.offered.index) && !l.newerWanted {
		return
	}
	least := r.leastCut()
	if c := l.cutting; c != nil {
		now := r.w.now.Mono
		sooner := least < c.min // there is somebody who may not wait for what was wanted first
		if c.from == r.cfg.Node {
			if sooner {
				c.min = least
				r.cuts = slices.DeleteFunc(r.cuts, func(c cutWanted) bool { return c.to == 0 && len(c.ask) == 0 })
				r.cut(cutWanted{min: least, hurry: true})
			}
			return
		}
		// One that has gone, or was removed meanwhile, will not answer.
		there := r.conf.Has(c.from) && r.w.alive(c.from) || mutated("ask-the-gone")
		if there && now-c.moved < cutPatience*r.electionNanos() {
			if c.min = min(c.min, least); sooner || now-c.asked > askAgain*r.electionNanos() && !mutated("ask-once") {
				r.askCut(c) // the question may have been lost, or the answer, or the cut with a restart
			}
			return
		}
		r.failedCut(c.from)
	}
	l.cutting = &cutting{from: r.cutter(least), min: least, moved: r.w.now.Mono}
	if l.cutting.from == r.cfg.Node {
		r.cut(cutWanted{min: least, hurry: true})
		return
	}
	r.askCut(l.cutting)
}

func (r *Replica) askCut(c *cutting) {
	c.asked = r.w.now.Mono
	r.w.env.SendNote(c.from, Note{Shard: r.shard, Kind: noteCutWanted, A: uint64(c.min)})
}

// askAgain is after how many election timeouts a replica is asked for its cut once more: who is at it goes on with it.
const askAgain = 4

// cutPatience is how many election timeouts a leader waits for another replica's cut that gets no further. However long it takes, one that does
// is waited for. If it is given up all the same, the state is cut in two places: that costs disk, not correctness.
const cutPatience = 60

func (r *Replica) electionNanos() int64 { return int64(r.cfg.ElectionTicks) * int64(r.cfg.Tick) }

// failedCut remembers who could not provide a snapshot. For as long as one that is silent is waited for, others are asked; then it may have been repaired, or have room.
func (r *Replica) failedCut(n NodeID) {
	l := r.lead
	if l.cutFailed == nil {
		l.cutFailed = map[NodeID]int64{}
	}
	l.cutFailed[n] = r.w.now.Mono
}

func (r *Replica) hasFailedCut(n NodeID) bool {
	at, failed := r.lead.cutFailed[n]
	return failed && r.w.now.Mono-at < cutPatience*r.electionNanos()
}

// cutter is the replica that is to cut: not this leader if another follows closely.
func (r *Replica) cutter(least Index) (best NodeID) {
	match := uint64(0)
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		n := NodeID(id)
		if n == r.cfg.Node || r.hasFailedCut(n) || p.State != tracker.StateReplicate || Index(p.Match) < least || !r.w.alive(n) {
			return
		}
		if best == 0 || p.Match > match || p.Match == match && n < best {
			best, match = n, p.Match
		}
	})
	if best == 0 {
		return r.cfg.Node
	}
	return best
}

// cutWanted is who waits for a cut of this replica.
type cutWanted struct {
	min   Index
	hurry bool   // a replica waits for it
	to    NodeID // 0: this leader, or a caller
	ask   []func(manifest []byte, err error)
	ctx   context.Context // of the caller who asks, nil: it is none
}

// cut makes a snapshot that has at least min, for a leader or for this replica's own use.
func (r *Replica) cut(c cutWanted) {
	r.cuts = append(r.cuts, c)
	r.hurryCut()
	r.nextCut()
}

// nextCut begins a cut that is wanted, as soon as what one of them must have is flushed.
func (r *Replica) nextCut() {
	if len(r.cuts) == 0 || r.cutUnderWay || r.installing != nil {
		return
	}
	due := func(c cutWanted) bool { return Index(r.log.flushed) >= c.min && r.log.flushed > 0 }
	if !slices.ContainsFunc(r.cuts, due) {
		if r.applied > Index(r.log.flushed) {
			r.freezeWanted = true
			r.maybeFreeze()
		}
		return // after the flush, or when more is applied
	}
	r.cutUnderWay = true
	r.cutBytes.Store(0)
	r.cutTold = 0
	r.cutFrom = Index(r.log.flushed)
	r.cutHurry.Store(false)
	r.hurryCut()
	r.w.env.Cut(&CutDone{Shard: r.shard, Progress: r.cutBytes.Store, Hurry: r.cutHurry.Load, done: r.cutDone})
}

// hurryCut has a cut hurry when a replica waits for it, which is one less that can be lost meanwhile, or when a quarter of what the journal may
// keep has come after it: a snapshot is of no use if the journal does not continue it any more when it has arrived. So does an installation that waits for
// the cut to end.
func (r *Replica) hurryCut() {
	switch {
	case !r.cutUnderWay:
		return
	case r.installing != nil, slices.ContainsFunc(r.cuts, func(c cutWanted) bool { return c.hurry }):
		r.cutHurry.Store(true)
		return
	case r.cfg.JournalMaxBytes == 0:
		return
	}
	bytes := r.unflushedBytes()
	for _, m := range r.marks {
		if m.last > r.cutFrom {
			bytes += m.bytes
		}
	}
	if bytes > r.cfg.JournalMaxBytes/4 {
		r.cutHurry.Store(true)
	}
}

// cutDone hands a cut to whoever waited for it.
func (r *Replica) cutDone(d *CutDone) {
	defer r.contain()
	defer r.continueInstall() // which waits for it
	r.cutUnderWay = false
	var index Index
	if d.Err == nil {
		m, _, err := snapshot.Decode(d.Manifest)
		if err != nil {
			d.Err = err
		} else {
			index = Index(m.Index)
		}
	}
	if d.Err != nil {
		r.logger.Warn("a snapshot could not be cut", "reason", d.Err)
	}
	still := r.cuts[:0:0]
	for _, c := range r.cuts {
		if d.Err == nil && index < c.min {
			still = append(still, c)
			continue
		}
		for _, f := range c.ask {
			f(d.Manifest, d.Err)
		}
		if len(c.ask) > 0 {
			continue
		}
		if c.to != 0 {
			n := Note{Shard: r.shard, Kind: noteCut, A: uint64(c.min), Data: d.Manifest}
			if d.Err != nil {
				n.Data = nil
			}
			r.w.env.SendNote(c.to, n)
			continue
		}
		r.takeOffer(r.cfg.Node, d.Manifest, d.Err)
	}
	r.cuts = still
	if state.IsDamage(d.Err) && r.broken == nil && !mutated("damaged-cuts-again") {
		// It would meet the damage with every attempt, and whoever needs the snapshot would wait for ever if this is the leader.
		panic(broken(CodeStorage, d.Err, "the state store could not be read for a snapshot"))
	}
	r.nextCut()
}

// failCuts answers those who wait for a cut of a replica that stops.
func (r *Replica) failCuts(err error) {
	for _, c := range r.cuts {
		for _, f := range c.ask {
			f(nil, err)
		}
	}
	r.cuts = nil
}

// hearCut takes another replica's snapshot, or its refusal.
func (r *Replica) hearCut(n Note) {
	l := r.lead
	if l == nil || l.cutting == nil || l.cutting.from != n.From {
		return
	}
	var err error
	if len(n.Data) == 0 {
		err = fmt.Errorf("node %d cannot cut", n.From)
	}
	r.takeOffer(n.From, n.Data, err)
}

// tellCutting says to a leader who waits for a cut how far it is.
func (r *Replica) tellCutting() {
	bytes := r.cutBytes.Load()
	if !r.cutUnderWay || bytes == r.cutTold {
		return
	}
	r.cutTold = bytes
	for _, c := range r.cuts {
		if c.to != 0 {
			r.w.env.SendNote(c.to, Note{Shard: r.shard, Kind: noteCutting, A: uint64(c.min), B: uint64(bytes)})
		}
	}
}

// hearCutting takes the word of a replica that cuts.
func (r *Replica) hearCutting(n Note) {
	l := r.lead
	if l == nil || l.cutting == nil || l.cutting.from != n.From || uint64(l.cutting.min) != n.A {
		return
	}
	if c := l.cutting; int64(n.B) > c.bytes {
		c.bytes, c.moved = int64(n.B), r.w.now.Mono
	}
}

// takeOffer makes a snapshot the one that raft is given.
func (r *Replica) takeOffer(source NodeID, manifest []byte, err error) {
	l := r.lead
	if l == nil || l.cutting == nil {
		return
	}
	var m *snapshot.Manifest
	if err == nil {
		m, _, err = snapshot.Decode(manifest)
	}
	if err == nil && (m.Shard != uint64(r.shard) || Index(m.Index) > r.applied) {
		err = fmt.Errorf("it is of shard %d at %d", m.Shard, m.Index)
	}
	l.cutting = nil
	if err != nil {
		r.failedCut(source)
		r.logger.Warn("no snapshot for a follower", "source", uint64(source), "reason", err)
		return
	}
	l.offered = &offered{source: source, manifest: manifest, index: Index(m.Index), term: Term(m.Term)}
	l.newerWanted = false
	l.offeredAt = r.w.now.Mono
	r.logger.Info("snapshot for followers", "source", uint64(source), "index", m.Index, "bytes", m.Bytes())
}

// pinned returns from where on a snapshot on its way needs the log, or false.
func (r *Replica) pinned() (Index, bool) {
	if l := r.lead; l != nil && l.offered != nil {
		return l.offered.index, true
	}
	return 0, false
}

// offerPatience is how many election timeouts a snapshot is kept for whoever may need it next.
const offerPatience = 40

// tickSnapshots gives up on followers that are not heard of, and lets go of a snapshot that nobody needs.
func (r *Replica) tickSnapshots() {
	r.hurryCut()
	r.tellCutting()
	if f := r.fetch; f != nil {
		r.tellProgress(f.index, f.progress.bytes.Load(), f.progress.total.Load())
	} else if in := r.installing; in != nil {
		r.tellProgress(Index(in.snap.Manifest.Index), in.snap.Manifest.Bytes(), in.snap.Manifest.Bytes())
	}
	l := r.lead
	if l == nil {
		return
	}
	now := r.w.now.Mono
	var silent []uint64
	busy := false
	first, _ := r.log.FirstIndex() // never fails
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		t := l.transfers[NodeID(id)]
		if t != nil && p.Match >= t.index && (p.State != tracker.StateSnapshot || p.PendingSnapshot > t.index) {
			if p.Match+1 < first {
				r.overtaken(NodeID(id), t.index, first)
			}
			delete(l.transfers, NodeID(id))
			t = nil
		}
		if p.State != tracker.StateSnapshot {
			delete(l.transfers, NodeID(id))
			return
		}
		busy = true
		if t == nil {
			t = &transfer{heard: now, index: p.PendingSnapshot}
			if l.transfers == nil {
				l.transfers = map[NodeID]*transfer{}
			}
			l.transfers[NodeID(id)] = t
		}
		if now-t.heard > 2*r.electionNanos() {
			silent = append(silent, id)
		}
	})
	for _, id := range silent {
		delete(l.transfers, NodeID(id))
		r.rn.ReportSnapshot(id, raft.SnapshotFailure)
		r.touch()
	}
	if busy {
		l.offeredAt = now
	} else if l.offered != nil && now-l.offeredAt > offerPatience*r.electionNanos() {
		l.offered = nil
	}
}

// overtaken speaks up when a snapshot has arrived and the journal does not continue it any more. The next one comes, and as long as nothing
// changes, it is overtaken as well.
func (r *Replica) overtaken(n NodeID, index, first uint64) {
	r.stats.Overtaken++
	r.logger.Error("a snapshot was of no use any more when it had arrived: what was decided meanwhile exceeds JournalMaxBytes. Raise that, or "+
		"SnapshotBytesPerSecond, or see that less is decided for a while; otherwise this member never catches up",
		"member", uint64(n), "snapshot", index, "journal_from", first, "max_bytes", r.cfg.JournalMaxBytes)
}

// fetchProgress is written by who fetches and read by the worker.
type fetchProgress struct{ bytes, total atomic.Int64 }

// tellProgress says to the leader that the transfer goes on.
func (r *Replica) tellProgress(index Index, bytes, total int64) {
	if r.leader == 0 || r.leader == r.cfg.Node {
		return
	}
	r.w.env.SendNote(r.leader, Note{Shard: r.shard, Kind: noteFetching, A: uint64(index), B: uint64(bytes), C: uint64(total)})
}

// hearFetching takes the word of a follower that fetches.
func (r *Replica) hearFetching(n Note) {
	l := r.lead
	if l == nil {
		return
	}
	t := l.transfers[n.From]
	if t == nil {
		return
	}
	t.heard, t.bytes, t.total = r.w.now.Mono, int64(n.B), int64(n.C)
	if n.Kind == noteFetchFailed {
		r.logger.Warn("a follower could not fetch the snapshot", "follower", uint64(n.From), "index", n.A, "reason", string(n.Data))
		delete(l.transfers, n.From)
		if n.B != 0 && l.offered != nil && uint64(l.offered.index) == n.A { // nobody has it any more
			r.failedCut(l.offered.source) // another may do better
			l.offered = nil
		}
		r.rn.ReportSnapshot(uint64(n.From), raft.SnapshotFailure)
		r.touch()
	}
}

// hearSnapshot takes a snapshot's manifest from the leader. Raft gets to see it when all of it is here.
func (r *Replica) hearSnapshot(m *Message) {
	meta := m.Raft.Snapshot.Metadata
	if m.Raft.Term < uint64(r.raftTerm) || Index(meta.Index) <= Index(r.rn.BasicStatus().Commit) {
		_ = r.rn.Step(m.Raft) // it answers with what it has
		return
	}
	if r.installing != nil || r.have != nil {
		return // the one that raft has must still be here when it asks for it
	}
	if f := r.fetch; f != nil {
		if uint64(f.index) == meta.Index {
			f.message = m.Raft // of a later term, perhaps
		}
		return // one at a time: what is on its way is of use to any leader
	}
	if uint64(r.fetchFailed) == meta.Index && r.w.now.Mono-r.fetchFailedAt < 4*r.electionNanos() {
		return // what was in the way then, a full disk perhaps, is hardly gone
	}
	rd := reader{b: m.Raft.Snapshot.Data}
	version := rd.byte("version")
	source := NodeID(rd.uvarint("source"))
	manifest, _, err := snapshot.Decode(rd.b)
	switch {
	case rd.err != nil || version != snapDataVersion:
		err = fmt.Errorf("%w: a snapshot's message of version %d", errEntry, version)
	case err == nil && (manifest.Shard != uint64(r.shard) || manifest.Index != meta.Index || manifest.Term != meta.Term):
		err = fmt.Errorf("%w: the manifest is of shard %d at %d, the message of shard %d at %d", errEntry, manifest.Shard, manifest.Index, r.shard, meta.Index)
	case err == nil && manifest.MachineVersion > r.maxVersion():
		err = fmt.Errorf("version %d of the machine is active, this program knows up to %d: start the newer program", manifest.MachineVersion, r.maxVersion())
	}
	if err != nil {
		r.stats.Strange++
		r.logger.Warn("a snapshot was refused", "from", uint64(m.From), "reason", err)
		r.w.env.SendNote(m.From, Note{Shard: r.shard, Kind: noteFetchFailed, A: meta.Index, Data: []byte(err.Error())})
		return
	}
	f := &Fetch{Shard: r.shard, Manifest: append([]byte(nil), rd.b...), message: m.Raft, index: Index(meta.Index)}
	for _, n := range append([]NodeID{source, m.From}, r.conf.Members()...) {
		if n != r.cfg.Node && !slices.Contains(f.Sources, n) {
			f.Sources = append(f.Sources, n)
		}
	}
	f.Progress = func(bytes, total int64) {
		f.progress.bytes.Store(bytes)
		f.progress.total.Store(total)
	}
	r.fetch = f
	r.stats.SnapshotsFetched++
	r.logger.Info("fetching a snapshot", "index", meta.Index, "bytes", manifest.Bytes(), "source", uint64(source))
	r.w.env.Fetch(f)
}

// fetched hands a complete snapshot to raft.
func (r *Replica) fetched(f *Fetch) {
	defer r.contain()
	if r.fetch == f {
		r.fetch = nil
	}
	if r.broken != nil {
		return
	}
	if f.Err != nil {
		r.logger.Warn("a snapshot could not be fetched", "index", uint64(f.index), "reason", f.Err)
		if r.leader != 0 && r.leader != r.cfg.Node {
			n := Note{Shard: r.shard, Kind: noteFetchFailed, A: uint64(f.index), Data: []byte(f.Err.Error())}
			if errors.Is(f.Err, ErrNoSource) {
				n.B = 1
			}
			r.w.env.SendNote(r.leader, n)
			r.fetchFailed, r.fetchFailedAt = f.index, r.w.now.Mono
		}
		return
	}
	if r.leader == 0 || r.leader == r.cfg.Node {
		return // whoever leads next sends it, or another, again
	}
	m := f.message
	// The snapshot is of what is committed, whoever says so: it may have taken longer than its sender led.
	m.From, m.Term = uint64(r.leader), uint64(r.raftTerm)
	// Who takes part is what the manifest says, which is checked against the state when it is installed.
	c := &f.Snapshot.Manifest.Config
	m.Snapshot.Metadata.ConfState = raftpb.ConfState{Voters: c.Voters, VotersOutgoing: c.Outgoing, Learners: c.Learners, LearnersNext: c.LearnersNext}
	r.have = f.Snapshot
	_ = r.rn.Step(m)
	r.touch()
}

// installing is a Ready with a snapshot, between raft and the state store.
//
// What is durable when, and what a crash leaves: first the promise (term and vote), since the log still ends where it did. Then the
// state, in one step of the store: from there on, a restart finds it, and keeps of the log what continues it (restore). Then a
// record that begins the log anew after the snapshot.
type installing struct {
	snap     *snapshot.Snapshot
	promised bool // the write of term and vote is under way
	job      *state.InstallJob
	done     bool // the state is the snapshot's
}

// beginInstall takes a Ready whose snapshot is to replace the state.
func (r *Replica) beginInstall(rd raft.Ready) {
	if r.have == nil || r.have.Manifest.Index != rd.Snapshot.Metadata.Index || r.have.Manifest.Term != rd.Snapshot.Metadata.Term {
		panic(broken(CodeCorruption, nil, "raft wants a snapshot at %d installed that was not fetched", rd.Snapshot.Metadata.Index))
	}
	r.writing, r.ready, r.fresh = true, rd, rd.Entries
	if mutated("ack-before-install") {
		r.sendAll(rd.Messages)
	} else {
		r.held = append(r.held, rd.Messages...)
	}
	r.installing = &installing{snap: r.have}
	r.have = nil
	r.takeReadStates(rd.ReadStates)
	hard := rd.HardState
	if (hard.Term != r.log.hard.Term || hard.Vote != r.log.hard.Vote) && !mutated("install-before-promise") {
		hard.Commit = r.log.hard.Commit // up to the snapshot it is not there yet
		if !raft.IsEmptyHardState(rd.HardState) {
			r.installing.promised = true
			r.w.write(r, record(r.shard, hard, nil))
			return
		}
	}
	r.continueInstall()
}

// continueInstall goes on when what had to come before is done.
func (r *Replica) continueInstall() {
	in := r.installing
	if in == nil || r.broken != nil || in.promised || in.job != nil || r.flushing || r.cutUnderWay {
		return
	}
	if r.freezing {
		r.freezing = false
		r.state.Unfreeze()
	}
	job, err := r.state.Install(in.snap.Install())
	if err != nil {
		panic(broken(CodeStorage, err, "the snapshot at %d", in.snap.Manifest.Index))
	}
	in.job = job
	r.w.env.Install(&InstallDone{Shard: r.shard, Job: job, Snapshot: in.snap})
}

// installed continues after the state has been replaced.
func (r *Replica) installed(d *InstallDone) {
	defer r.contain()
	in := r.installing
	if in == nil || in.job != d.Job {
		return
	}
	if r.broken != nil || d.Err != nil {
		if d.Err != nil {
			r.state.AbandonInstall(d.Job)
		} else {
			r.state.Installed(d.Job)
		}
		r.abandonInstall()
		if r.broken != nil {
			r.recordLoss()
			return
		}
		// Raft has moved on to the snapshot already. A restart begins with what is on disk.
		panic(broken(CodeStorage, d.Err, "the snapshot at %d could not be installed", in.snap.Manifest.Index))
	}
	r.state.Installed(d.Job)
	in.done = true
	if err := r.adopt(in.snap.Manifest); err != nil {
		r.abandonInstall()
		code := CodeCorruption
		if state.IsDamage(err) {
			code = CodeStorage // as when it is met later: a peer can help
		}
		panic(broken(code, err, "the snapshot at %d", in.snap.Manifest.Index))
	}
	rd := r.ready
	hard := r.log.hard
	if !raft.IsEmptyHardState(rd.HardState) {
		hard = rd.HardState
	}
	hard.Commit = max(hard.Commit, uint64(r.applied))
	rec := record(r.shard, hard, r.fresh)
	if !mutated("no-restart-after") {
		rec.RestartAfter = uint64(r.applied)
	}
	r.writeEntries(rec)
}

// abandonInstall ends an installation whose replica has stopped: it must not hold back the log for ever. Whether the state is the
// snapshot's already or not, a restart finds out.
func (r *Replica) abandonInstall() {
	r.installing, r.writing, r.ready, r.fresh, r.held = nil, false, raft.Ready{}, nil, nil
}

// adopt makes what the state store says now what this replica has applied.
func (r *Replica) adopt(m *snapshot.Manifest) error {
	meta, err := decodeMeta(r.state.Meta())
	switch {
	case err != nil:
		return err
	case uint64(meta.applied) != m.Index || uint64(meta.term) != m.Term || meta.chain != m.Hash:
		return fmt.Errorf("the manifest says index %d, term %d, hash %016x, the tables say %d, %d, %016x", m.Index, m.Term, m.Hash, meta.applied, meta.term, meta.chain)
	}
	c, mc := &meta.conf, &m.Config
	if !slices.Equal(rawIDs(c.Voters), mc.Voters) || !slices.Equal(rawIDs(c.Outgoing), mc.Outgoing) ||
		!slices.Equal(rawIDs(c.Learners), mc.Learners) || !slices.Equal(rawIDs(c.LearnersNext), mc.LearnersNext) {
		return fmt.Errorf("the manifest says that the members are %v, the tables say %v", *mc, *c)
	}
	sessions, err := loadSessions(r.state)
	if err != nil {
		return err
	}
	r.meta, r.sessions = meta, sessions
	r.apply.chain = r.chain
	r.committed = r.state.Mark()
	hard := r.log.hard
	log := newRaftLog(r.state, r.applied, r.meta.term, r.cfg.Limits.LogCacheBytes)
	*r.log = *log // raft holds the pointer
	r.log.hard, r.log.offer = hard, r.offer
	r.everywhere = min(r.everywhere, r.applied)
	r.marks = nil
	r.unread = nil // it is not there any more
	r.noteDue = true
	r.setConfiguration(r.conf)
	r.stats.SnapshotsInstalled++
	// The log is not told that it may let go: should it drop the entry that the snapshot contradicts, and not those after it, a
	// restart could not see that they are void. The record that follows voids them all.
	r.logger.Info("snapshot installed", "index", m.Index, "bytes", m.Bytes())
	return nil
}

// noticeStranded speaks up when a voter needs what every voter has had: it has lost part of its log.
func (r *Replica) noticeStranded() {
	first, _ := r.log.FirstIndex() // never fails
	if r.cutShort || uint64(r.everywhere)+1 < first {
		return // the journal was cut short, others may be in need
	}
	lost := NodeID(0)
	r.rn.WithProgress(func(id uint64, t raft.ProgressType, p tracker.Progress) {
		if t != raft.ProgressTypeLearner && p.Next < first && slices.Contains(r.conf.Voters, NodeID(id)) {
			lost = NodeID(id)
		}
	})
	if lost == 0 {
		return
	}
	r.stats.Stranded++
	if now := r.w.now.Mono; r.goneAt == 0 || now-r.goneAt > int64(time.Minute) {
		r.goneAt = now
		r.logger.Error("a voter asks for entries that every voter has had on disk: it has lost part of its log. It gets a snapshot, but "+
			"what it acknowledged may have counted: check its disk, and better replace it by a new node", "voter", uint64(lost), "first_index", first)
	}
}
