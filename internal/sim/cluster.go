package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// node is what rsm.Node, its engine and its clock are in production. One struct stands
// for all incarnations: gen counts them, and what an earlier one has begun is ignored.
type node struct {
	s    *sim
	id   core.NodeID
	rng  *rand.Rand
	disk *disk
	home string // where it is found

	up      bool
	gen     uint64
	store   *state.Store
	faults  *storeFaults
	shards  []*state.Shard
	workers []*worker
	heard   []int64 // by peer
	frames  [][]byte
	flushes []*flush // begun and not known to be durable
	queries []*core.QueryBatch

	snaps    *snapshot.Dir
	snapRand *rand.Rand // of cuts, fetches and installations
	cuts     []*cutting
	installs []*replacing
	// installed is the last snapshot that the state store has taken over, by shard, whatever the log knows of it.
	installed [shardCount + 1]core.Index
	journal   [shardCount + 1]flushedAt
	repairs   [shardCount + 1]*repairing         // under way, by shard
	cutShort  [shardCount + 1]bool               // the journal has lost what others may need
	confs     [shardCount + 1]core.Configuration // as the core last said
	dial      []string                           // the transport's: where peers were last found, by this incarnation
	left      [shardCount + 1]bool               // the replica knows that it was removed
	program   uint64                             // the highest version of the machine that it can run
	running   uint64                             // the same, of this incarnation
	ran       uint64                             // the highest that it ever could

	applied [shardCount + 1]core.Index // as the checker saw it
	counted [shardCount + 1]core.Stats
	ticks   int
	ticker  func() // tick, made once
	rate    int64  // ns of a tick on this node

	skew           int64 // of the wall clock
	paused         int64 // until when
	crashAfterPass bool
	diskLow        bool

	cluster  string       // whose node it is
	restored bool         // as its identity says
	pins     []*state.Cut // of a backup under way

	rotten string // the file of its disk that was damaged, "" if none
	rot    damage // the same, where it can be repaired
	out    bool   // for good: it does not start on what its disk has
	unfit  error  // of the state store, which will not close in order any more

}

// worker is a core.Worker with its mailbox and its Env.
type worker struct {
	n      *node
	num    int
	gen    uint64
	core   *core.Worker
	in     core.Input
	spare  core.Input // the last pass's, for its memory
	pass   func()
	waits  bool             // a pass is due
	spent  int64            // of this pass
	until  int64            // when the last one is over
	notes  core.CommitNotes // of this pass
	shards []core.ShardID
}

// flushedAt are a shard's last three flushes, and the one that this incarnation began with.
type flushedAt struct{ start, earlier, before, last core.Index }

type flush struct {
	w    *worker
	done *core.FlushDone
}

var _ core.Env = (*worker)(nil)

func newNode(s *sim, id core.NodeID) *node {
	n := &node{s: s, id: id, rng: stream(s.seed, 100+uint64(id)), snapRand: stream(s.seed, 500+uint64(id)), cluster: clusterName, home: fmt.Sprintf("n%d", id)}
	n.disk, n.ticker = newDisk(n), n.tick
	n.rate = int64(s.swarm.tick) * (90 + n.rng.Int64N(21)) / 100
	if top := s.swarm.programs; top > 0 {
		n.program = stream(s.seed, 600+uint64(id)).Uint64N(top + 1)
	}
	n.skew = n.rng.Int64N(20*second) - 10*second
	return n
}

// mono starts where no difference of times can be negative.
func (n *node) mono() int64 { return n.s.now + 3600*second }

func (n *node) time() core.Now {
	return core.Now{Mono: n.mono(), Wall: 1_700_000_000*second + n.s.now + n.skew}
}

// after runs f unless this incarnation has ended by then.
func (n *node) after(d int64, f func()) {
	n.s.queue.push(max(n.s.now+d, n.s.now), task{f, n, n.gen})
}

// voters are those that a shard was made with. A spare has none: it joins.
func (n *node) voters() (all []core.NodeID) {
	if n.spare() {
		return nil
	}
	for i := range n.s.swarm.nodes {
		all = append(all, core.NodeID(i+1))
	}
	return all
}

func (n *node) spare() bool { return int(n.id) > n.s.swarm.nodes }

// address returns where a peer is found as far as this node knows: its configuration names the first nodes, logs all others.
func (n *node) address(p core.NodeID) string {
	latest, address := core.Index(0), ""
	if int(p) <= n.s.swarm.nodes || p == n.id {
		address = n.s.node(p).home
	}
	for i := range n.confs {
		c := &n.confs[i]
		if a := c.Addresses[p]; a != "" && (c.Index > latest || latest == 0) {
			latest, address = c.Index, a
		}
	}
	return address
}

// locate brings the transport up to date. A peer of which this node had not heard counts as heard of now, as in rsm. One that has
// been removed is still talked to, so that it learns of it.
func (n *node) locate() {
	for _, p := range n.s.nodes {
		if a := n.address(p.id); a != "" && p != n && n.dial[p.id] != a {
			n.dial[p.id] = a
			if n.heard[p.id] == 0 {
				n.heard[p.id] = n.mono()
			}
		}
	}
}

// start opens what the disk holds and joins the others.
func (n *node) start() {
	n.gen++
	n.up = true
	n.s.stats.Restarts++
	n.s.trace.event(evStart, n.id, n.gen, 0, 0, 0)
	if n.gen > 1 {
		n.s.tell("node %d starts again", n.id)
	}
	n.paused, n.crashAfterPass, n.diskLow, n.ticks = 0, false, false, 0
	n.unfit = nil
	n.heard = make([]int64, len(n.s.nodes)+1)
	n.confs, n.dial = [shardCount + 1]core.Configuration{}, make([]string, len(n.s.nodes)+1)
	n.locate()
	n.running, n.ran = n.program, max(n.ran, n.program)
	n.frames = make([][]byte, len(n.s.nodes)+1)
	if err := n.open(); err != nil {
		n.refused(err)
		return
	}
	for _, w := range n.workers {
		n.s.check.restarted(w)
		w.wake()
	}
	n.after(n.rng.Int64N(n.rate), n.ticker)
}

func (n *node) open() error {
	n.store, n.workers, n.shards = nil, nil, nil
	rec, err := n.disk.reopen()
	if err != nil {
		return err
	}
	n.faults = &storeFaults{n}
	n.store, err = state.Open(state.Options{
		Dir: stateDir, FS: errorfs.Wrap(n.disk.fs, n.faults), Cache: n.s.cache, Logger: n.s.logger, DisableCompactions: true, OnFatal: n.faults.OnFatal,
	})
	if err != nil {
		return err
	}
	if err := n.openSnapshots(); err != nil {
		return err
	}
	cfg := n.s.swarm.core
	cfg.Node, cfg.Limits = n.id, n.s.swarm.limits(n.id, n.gen)
	if err := cfg.Validate(); err != nil {
		return err
	}
	for i := range n.s.swarm.workers {
		w := &worker{n: n, num: i, gen: n.gen}
		w.core = core.NewWorker(cfg, w, n.time())
		w.pass = w.runPass
		n.workers = append(n.workers, w)
	}
	for id := core.ShardID(1); id <= n.s.work.shards(); id++ {
		st, err := n.store.Shard(uint64(id))
		if err != nil {
			return err
		}
		n.shards = append(n.shards, st)
		d := core.Deps{
			Machine: n.s.work.machine(n, id), State: st, Voters: n.voters(), Rand: stream(n.rng.Uint64(), uint64(id)),
			Logger: n.s.logger.With("node", uint64(n.id)), Restored: n.restored,
		}
		if l := rec.Shards[uint64(id)]; l != nil {
			d.Log = *l
		}
		w := n.workerOf(id)
		w.shards = append(w.shards, id)
		if err := w.core.AddShard(id, d); err != nil {
			return err
		}
	}
	n.lookAtRot()
	return nil
}

func (n *node) workerOf(id core.ShardID) *worker { return n.workers[int(id)%len(n.workers)] }

// crash ends the incarnation as a power cut does: nothing is said to anybody.
func (n *node) crash() {
	n.s.stats.Crashes++
	n.s.trace.event(evCrash, n.id, n.gen, 0, 0, 0)
	n.up = false
	n.crashFlushes()
	n.crashSnapshots()
	n.disk.crash()
	n.release()
}

// crashFlushes lets some of the flushes under way have become durable.
func (n *node) crashFlushes() {
	lost, durable := 0, 0
	for _, f := range n.flushes {
		if n.rng.IntN(2) == 0 {
			lost++
			continue
		}
		durable++
		if err := f.done.Job.Run(); err != nil && !n.disk.mayFail(err) && !n.hasDamage(err) {
			n.s.fail("state", "flush on node %d: %v", n.id, err)
		}
	}
	if len(n.flushes) > 0 {
		n.s.trace.event(evFlushLost, n.id, uint64(lost), uint64(durable), 0, 0)
	}
	n.flushes = nil
}

// stop ends the incarnation in order: everybody who waits gets an answer.
func (n *node) stop(reason *core.Error) {
	n.s.trace.event(evStop, n.id, n.gen, 0, 0, 0)
	for _, w := range n.workers {
		for _, q := range w.in.Requests { // that no pass has seen, see rsm's worker.close
			q.Err = reason
			q.Done(q)
		}
		w.in = core.Input{}
		w.core.Stop(reason)
	}
	n.up = false
	n.crashFlushes()
	n.crashSnapshots()
	n.disk.crash()
	n.release()
}

// release gives back the memory of an incarnation that has ended.
func (n *node) release() {
	for _, w := range n.workers {
		w.core.Stop(&core.Error{Kind: core.ErrUnknown, Code: core.CodeClosed, Message: "crashed"}) // closes versions; answers go nowhere
	}
	for _, b := range n.queries {
		for b.RunOne() {
			continue
		}
	}
	n.queries = nil
	for _, c := range n.cuts {
		if c.from != nil {
			c.from.Close()
		}
	}
	n.cuts, n.installs = nil, nil
	for _, c := range n.pins {
		c.Close()
	}
	n.pins = nil
	for _, st := range n.shards {
		st.Close()
	}
	if n.store != nil {
		if err := n.store.Close(); err != nil && n.unfit == nil {
			n.s.fail("state", "closing the store of node %d: %v", n.id, err)
		}
	}
	n.store, n.workers, n.shards = nil, nil, nil
	if n.faults != nil {
		n.faults.n = nil
	}
}

// end is called when the run is over.
func (n *node) end() {
	if n.up && n.store != nil {
		n.up = false
		n.release()
	}
}

// tick is rsm's clock.
func (n *node) tick() {
	n.after(n.rate, n.ticker)
	if n.isPaused() && n.s.swarm.lateTicks {
		return
	}
	for _, w := range n.workers {
		w.in.Ticks = min(w.in.Ticks+1, 2)
		w.wake()
	}
	if n.isPaused() {
		return
	}
	n.ticks++
	if n.ticks%2 == 0 {
		for p := range n.frames {
			if p != 0 && core.NodeID(p) != n.id && n.dial[p] != "" {
				n.frames[p] = core.AppendBeat(n.frame(core.NodeID(p)))
			}
		}
		n.sendFrames(len(n.frames))
	}
	if segments, _ := n.disk.log.Size(); segments > n.s.swarm.logSegments && n.ticks%10 == 0 {
		for _, pin := range n.disk.log.Pinned() {
			n.pin(core.ShardID(pin.Shard))
		}
	}
}

func (n *node) pin(id core.ShardID) {
	n.workerOf(id).post(func(in *core.Input) { in.Pinned = append(in.Pinned, id) })
}

func (n *node) unreachable(p core.NodeID) {
	for _, w := range n.workers {
		w.post(func(in *core.Input) { in.Unreachable = append(in.Unreachable, p) })
	}
}

func (n *node) isPaused() bool { return n.s.now < n.paused }

// arrive takes a frame from the network. A paused process reads it when it goes on, before or after its first pass.
func (n *node) arrive(f frame) {
	switch {
	case !n.up:
		n.s.net.read(f)
	case n.isPaused():
		n.after(n.paused-n.s.now+exp(n.rng, n.s.swarm.passDelay), func() { n.receive(f) })
	default:
		n.receive(f)
	}
}

func (n *node) receive(f frame) {
	n.s.trace.event(evFrameGot, n.id, uint64(f.from), f.hash, uint64(len(f.bytes)), 0)
	n.s.trace.frame(&f)
	n.s.net.arrived(f)
	if n.s.net.gap(f) {
		g := core.Gap{Peer: f.from, Heard: n.heard[f.from]}
		for _, w := range n.workers {
			w.post(func(in *core.Input) { in.Gaps = append(in.Gaps, g) })
		}
	}
	n.heard[f.from] = n.mono()
	kept := false
	if n.dial[f.from] == "" {
		n.dial[f.from] = n.s.node(f.from).home // who dials says where it is found
	}
	err := core.DecodeFrame(f.from, n.id, f.bytes, core.Receiver{
		Message: func(m core.Message) {
			m.At = n.mono()
			kept = kept || len(m.Raft.Entries) > 0 || len(m.Raft.Snapshot.Data) > 0 // whose data may share the frame's memory
			n.workerOf(m.Shard).post(func(in *core.Input) { in.Messages = append(in.Messages, m) })
		},
		Quiesce: func(q core.Quiesce) {
			n.workerOf(q.Shard).post(func(in *core.Input) { in.Quiesces = append(in.Quiesces, q) })
		},
		Commit: func(c core.CommitNote) {
			c.At = n.mono()
			n.workerOf(c.Shard).post(func(in *core.Input) { in.Commits = append(in.Commits, c) })
		},
		Note: func(m core.Note) {
			n.workerOf(m.Shard).post(func(in *core.Input) { in.Notes = append(in.Notes, m) })
		},
	})
	if err != nil {
		n.s.fail("frame", "from node %d to node %d: %v", f.from, n.id, err)
	}
	if !kept {
		n.s.net.read(f)
	}
}

// frame returns the frame that gathers for a peer.
func (n *node) frame(to core.NodeID) []byte {
	if n.frames[to] == nil {
		n.frames[to] = n.s.net.memory()
	}
	return n.frames[to]
}

// sendFrames sends what has gathered for the first peers only, if upTo says so: a process can die between two.
func (n *node) sendFrames(upTo int) {
	for p, frame := range n.frames {
		if len(frame) > 0 {
			n.frames[p] = nil
			switch {
			case n.dial[p] == "": // nobody has said where it is
				n.s.net.spare = append(n.s.net.spare, frame[:0])
			case p < upTo:
				n.s.net.send(n.id, core.NodeID(p), frame)
			}
		}
	}
}

// post adds to the next pass's input.
func (w *worker) post(add func(*core.Input)) {
	add(&w.in)
	w.wake()
}

func (w *worker) wake() {
	if !w.waits {
		w.waits = true
		w.n.after(max(0, w.until-w.n.s.now)+exp(w.n.rng, w.n.s.swarm.passDelay), w.pass)
	}
}

func (w *worker) runPass() {
	n := w.n
	if n.isPaused() {
		n.after(n.paused-n.s.now+exp(n.rng, n.s.swarm.passDelay), w.pass)
		return
	}
	w.waits = false
	in := w.in
	w.in, w.spare = w.spare, core.Input{}
	n.s.trace.event(evPass, n.id, uint64(w.num), uint64(len(in.Messages)), uint64(len(in.Requests)), uint64(len(in.Written)))
	if w.spent = 0; n.s.swarm.pace > 0 && chance(n.rng, 0.05) { // whatever keeps it, such as what is applied
		w.spent = exp(n.rng, 20*n.s.swarm.pace)
	}
	w.core.Pass(n.time(), &in)
	w.tellCommits()
	w.spare = emptied(in)
	n.s.check.observe(w)
	if n.crashAfterPass {
		n.sendFrames(1 + n.rng.IntN(len(n.frames)))
		n.s.takeAnswers()
		n.s.faults.crash(n)
		return
	}
	if w.until = n.s.now + w.spent; w.spent > 0 {
		n.after(w.spent, func() { n.sendFrames(len(n.frames)) })
	} else {
		n.sendFrames(len(n.frames))
	}
	if w.core.More() {
		w.wake()
	}
}

// emptied returns the input's slices for use again, without what they held.
func emptied(in core.Input) core.Input {
	clear(in.Messages)
	clear(in.Requests)
	clear(in.Written)
	clear(in.Flushed)
	clear(in.Calls)
	clear(in.Notes)
	clear(in.Cuts)
	clear(in.Fetched)
	clear(in.Installed)
	return core.Input{
		Messages: in.Messages[:0], Quiesces: in.Quiesces[:0], Commits: in.Commits[:0], Requests: in.Requests[:0], Written: in.Written[:0],
		Flushed: in.Flushed[:0], Unreachable: in.Unreachable[:0], Gaps: in.Gaps[:0], Pinned: in.Pinned[:0], Calls: in.Calls[:0],
		Notes: in.Notes[:0], Cuts: in.Cuts[:0], Fetched: in.Fetched[:0], Installed: in.Installed[:0],
	}
}

// The core's Env.

func (w *worker) Send(to core.NodeID, shard core.ShardID, m *raftpb.Message) {
	w.n.s.check.promise(w.n, shard, m)
	w.n.frames[to] = core.AppendMessage(w.n.frame(to), shard, m)
}

func (w *worker) SendQuiesce(to core.NodeID, q core.Quiesce) {
	w.n.frames[to] = core.AppendQuiesce(w.n.frame(to), q)
}

// SendCommit keeps a note until the pass ends.
func (w *worker) SendCommit(to core.NodeID, c core.CommitNote) { w.notes.Add(to, c) }

func (w *worker) tellCommits() {
	w.notes.Send(time.Duration(w.spent), func(to core.NodeID, c core.CommitNote) { w.n.frames[to] = core.AppendCommit(w.n.frame(to), c) })
}

// Spent lets a pass take time, if the swarm says so, by how often it is asked.
func (w *worker) Spent() int64 {
	if mean := w.n.s.swarm.pace; mean > 0 {
		w.spent += exp(w.n.rng, mean)
	}
	return w.spent
}

func (w *worker) SendNote(to core.NodeID, m core.Note) {
	w.n.frames[to] = core.AppendNote(w.n.frame(to), m)
}

func (w *worker) Address(p core.NodeID) string { return w.n.address(p) }

func (w *worker) Members(shard core.ShardID, c core.Configuration) {
	n := w.n
	n.confs[shard] = c
	n.locate()
	n.s.trace.event(evMembers, n.id, uint64(shard), uint64(c.Index), uint64(len(c.Voters)), uint64(len(c.Outgoing))<<32|uint64(len(c.Learners)))
	n.s.trace.note("voters %v, outgoing %v, learners %v, removed %v, addresses %v", c.Voters, c.Outgoing, c.Learners, c.Removed, c.Addresses)
}

func (w *worker) Write(wr *core.Write) {
	for i := range wr.Records {
		r := &wr.Records[i]
		for k := range r.Entries {
			if e := &r.Entries[k]; e.Type == uint8(raftpb.EntryConfChangeV2) {
				w.n.s.check.proposes(w.n, core.ShardID(r.Shard), core.Index(e.Index), core.Term(e.Term), e.Data)
			}
		}
	}
	w.n.disk.add(w, wr)
}

// Query runs at once, or long after: the state goes on, the version may not.
func (w *worker) Query(b *core.QueryBatch) {
	n := w.n
	if !chance(n.rng, n.s.swarm.longQueries) {
		for b.RunOne() {
			continue
		}
		return
	}
	n.queries = append(n.queries, b)
	n.after(exp(n.rng, 50*millisecond), func() {
		for b.RunOne() {
			continue
		}
	})
}

func (w *worker) Flush(f *core.FlushDone) {
	n := w.n
	took := exp(n.rng, n.s.swarm.flush)
	n.s.trace.event(evFlush, n.id, uint64(f.Shard), uint64(took/microsecond), 0, 0)
	entry := &flush{w, f}
	n.flushes = append(n.flushes, entry)
	n.after(took, func() {
		f.Err = f.Job.Run()
		for i := range n.flushes {
			if n.flushes[i] == entry {
				n.flushes = append(n.flushes[:i:i], n.flushes[i+1:]...)
				break
			}
		}
		if f.Err != nil && !n.hasDamage(f.Err) {
			if !n.disk.mayFail(f.Err) {
				n.s.fail("state", "flush on node %d: %v", n.id, f.Err)
			}
			n.s.faults.broken(n, f.Err)
			return
		}
		w.post(func(in *core.Input) { in.Flushed = append(in.Flushed, f) })
	})
}

func (w *worker) Flushed(shard core.ShardID, index core.Index) {
	w.n.s.stats.Flushes++
	if j := &w.n.journal[shard]; index > j.last {
		j.earlier, j.before, j.last = j.before, j.last, index
	}
	w.n.s.trace.event(evFlushed, w.n.id, uint64(shard), uint64(index), 0, 0)
	w.n.disk.log.Flushed(uint64(shard), uint64(index))
}

func (w *worker) LastHeard(p core.NodeID) int64 { return w.n.heard[p] }

func (w *worker) Changed(shard core.ShardID, leader core.NodeID, term core.Term) {
	w.n.s.trace.event(evLeader, w.n.id, uint64(shard), uint64(leader), uint64(term), 0)
}

func (w *worker) Stopped(shard core.ShardID, err *core.Error) {
	w.n.s.trace.event(evStopped, w.n.id, uint64(shard), 0, 0, 0)
	w.n.s.check.stopped(w.n, shard, err)
}
