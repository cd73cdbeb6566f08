package core

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// Who takes part in a shard changes through its log (Raft thesis, chapter 4; for several at once, joint consensus, section 4.3). A change is an
// entry of raft's own kind, which stands among the leader's decisions as a batch without commands. It takes
// effect when it is applied, one at a time. What raft refuses becomes an empty entry: then the caller is told so.
//
// Raft would leave a joint configuration by itself, with an entry that no batch stands for. So it is told not to, and
// every leader leaves the joint configuration that it finds.

// Configuration is who takes part in a shard, as of a position of its log.
type Configuration struct {
	Index Index // of the entry that made it; 0: as the shard was made
	// Ascending. Outgoing and LearnersNext are empty but in between two configurations, when the majorities of both count.
	Voters, Outgoing, Learners, LearnersNext []NodeID
	// Addresses of members, as far as a change has named them.
	Addresses map[NodeID]string
	// Removed were members, and never will be again.
	Removed []NodeID
}

// Has reports whether the node is a member.
func (c *Configuration) Has(n NodeID) bool {
	return slices.Contains(c.Voters, n) || slices.Contains(c.Outgoing, n) || slices.Contains(c.Learners, n)
}

// Joint reports whether it is one in between.
func (c *Configuration) Joint() bool { return len(c.Outgoing) > 0 }

// Members returns all members, ascending.
func (c *Configuration) Members() []NodeID {
	all := slices.Concat(c.Voters, c.Outgoing, c.Learners)
	slices.Sort(all)
	return slices.Compact(all)
}

func (c *Configuration) confState() raftpb.ConfState {
	return raftpb.ConfState{Voters: rawIDs(c.Voters), VotersOutgoing: rawIDs(c.Outgoing), Learners: rawIDs(c.Learners), LearnersNext: rawIDs(c.LearnersNext)}
}

func rawIDs(ids []NodeID) []uint64 {
	var raw []uint64
	for _, id := range ids {
		raw = append(raw, uint64(id))
	}
	return raw
}

func nodeIDs(raw []uint64) []NodeID {
	var ids []NodeID
	for _, id := range raw {
		ids = append(ids, NodeID(id))
	}
	slices.Sort(ids)
	return ids
}

// after returns the configuration that a change at index leads to. What it shares with c is not changed.
func (c *Configuration) after(index Index, cs *raftpb.ConfState, note changeNote) Configuration {
	n := Configuration{
		Index: index, Voters: nodeIDs(cs.Voters), Outgoing: nodeIDs(cs.VotersOutgoing), Learners: nodeIDs(cs.Learners),
		LearnersNext: nodeIDs(cs.LearnersNext), Addresses: map[NodeID]string{}, Removed: slices.Clone(c.Removed),
	}
	for _, id := range c.Members() {
		if !n.Has(id) {
			n.Removed = append(n.Removed, id)
		}
	}
	slices.Sort(n.Removed)
	n.Removed = slices.Compact(n.Removed)
	for _, addresses := range []map[NodeID]string{c.Addresses, note.addresses} {
		for id, a := range addresses { // any order: they are keys of a map again
			if n.Has(id) {
				n.Addresses[id] = a
			}
		}
	}
	return n
}

// ChangeKind is what a change of members does.
type ChangeKind uint8

// The kinds of change. They stand in the log: never renumber them.
const (
	ChangeAddLearner ChangeKind = 1 + iota
	ChangePromote
	ChangeRemove
	ChangeReplace // Old goes, Node, a learner, becomes a voter, in one joint change
	ChangeAddress
	changeLeaveJoint // by leaders themselves
)

func (k ChangeKind) String() string {
	switch k {
	case ChangeAddLearner:
		return "add learner"
	case ChangePromote:
		return "promote"
	case ChangeRemove:
		return "remove"
	case ChangeReplace:
		return "replace"
	case ChangeAddress:
		return "address"
	case changeLeaveJoint:
		return "leave joint"
	}
	return fmt.Sprintf("change %d", uint8(k))
}

// Change is a change of a shard's members.
type Change struct {
	Kind    ChangeKind
	Node    NodeID
	Old     NodeID // of ChangeReplace
	Address string // of ChangeAddLearner and ChangeAddress
}

func (c *Change) String() string {
	switch c.Kind {
	case ChangeReplace:
		return fmt.Sprintf("replace node %d by node %d", c.Old, c.Node)
	case changeLeaveJoint:
		return "leave the joint configuration"
	}
	s := fmt.Sprintf("%v node %d", c.Kind, c.Node)
	if c.Address != "" {
		s += " at " + c.Address
	}
	return s
}

// MaxAddressBytes is the longest address of a node.
const MaxAddressBytes = 256

// changeNote travels as the context of raft's change: version (1 byte, 1), kind (1 byte), count of addresses, then
// node id (varint) and address (bytes) of each, ascending by id. Every change carries all
// addresses that the leader knows, so that a newcomer finds everybody.
type changeNote struct {
	kind      ChangeKind
	addresses map[NodeID]string
}

const changeVersion = 1

func (n *changeNote) encode() []byte {
	b := []byte{changeVersion, byte(n.kind)}
	return appendAddresses(b, n.addresses)
}

func appendAddresses(b []byte, addresses map[NodeID]string) []byte {
	ids := make([]NodeID, 0, len(addresses))
	for id := range addresses { // any order: they are sorted
		ids = append(ids, id)
	}
	slices.Sort(ids)
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = binary.AppendUvarint(b, uint64(id))
		b = appendBytes(b, []byte(addresses[id]))
	}
	return b
}

func (r *reader) addresses() map[NodeID]string {
	m := map[NodeID]string{}
	for n := r.count("addresses"); n > 0; n-- {
		id := NodeID(r.uvarint("node"))
		m[id] = string(r.bytes("address"))
	}
	return m
}

func decodeChangeNote(b []byte) (n changeNote, err error) {
	r := reader{b: b}
	if v := r.byte("version"); r.err == nil && v != changeVersion {
		return n, fmt.Errorf("the change of members has version %d, this program knows %d", v, changeVersion)
	}
	n.kind = ChangeKind(r.byte("kind"))
	n.addresses = r.addresses()
	return n, r.err
}

// decodeChange takes the data of a committed entry of a change apart.
func decodeChange(t raftpb.EntryType, data []byte) (cc raftpb.ConfChangeV2, note changeNote, err error) {
	if t != raftpb.EntryConfChangeV2 {
		return cc, note, fmt.Errorf("it is of raft type %v, which this version does not know", t)
	}
	if err := cc.Unmarshal(data); err != nil {
		return cc, note, err
	}
	note, err = decodeChangeNote(cc.Context)
	return cc, note, err
}

// change is a change of members on its way through a leader.
type change struct {
	Change
	req   *Request // nil: the leader's own, out of a joint configuration
	since int64    // monotonic ns, when it was asked for
	// waits: it is not known yet whether those who stay answer; meanwhile everything else goes on.
	waits bool
}

// acceptChange takes a request to change the members, or refuses it.
func (r *Replica) acceptChange(q *Request) {
	l := r.lead
	switch {
	case q.Change == nil:
		r.finish(q, Result{}, notProposed(CodeChangeRefused, "the request names no change"))
	case l.change != nil || l.changing:
		r.finish(q, Result{}, notProposed(CodeChangePending, "another change of the members of shard %d is under way", r.shard))
	default:
		l.change = &change{Change: *q.Change, req: q, since: r.w.now.Mono}
		l.change.waits = r.awaitsAnswers(l.change)
	}
}

// changeSettled: raft refuses a change while an earlier one may be unapplied, and what it calls applied lags behind.
func (r *Replica) changeSettled() bool {
	return !r.lead.changing && Index(r.rn.BasicStatus().Applied) >= max(r.conf.Index, r.lead.first)
}

// changeDue reports whether a change of members is to be proposed next: then no new batch is begun, or under load there would never be room.
func (r *Replica) changeDue() bool {
	c := r.lead.change
	return (c != nil && !c.waits || c == nil && r.conf.Joint()) && r.changeSettled()
}

// proposeChange hands a change to raft, when everything before it has been and no other is under way.
func (r *Replica) proposeChange() {
	l := r.lead
	if l.change == nil && r.conf.Joint() && !l.changing && !mutated("stay-joint") {
		l.change = &change{Change: Change{Kind: changeLeaveJoint}}
	}
	c := l.change
	if c != nil && c.waits {
		c.waits = r.awaitsAnswers(c)
	}
	if c == nil || c.waits || !r.changeSettled() || l.open != nil || l.transferee != 0 || len(l.inflight) >= r.cfg.Limits.PipelineDepth {
		return
	}
	l.change = nil
	if err := r.refusesChange(&c.Change); err != nil {
		if c.req != nil {
			r.finish(c.req, Result{}, err)
		}
		return
	}
	cc := r.confChange(&c.Change)
	mark := r.state.Mark()
	b := &batch{term: l.term, index: l.head.index + 1, start: mark, end: mark, startChain: r.apply.chain, chain: r.apply.chain, change: c}
	if c.req != nil {
		b.decided = []decided{{req: c.req, result: Result{Index: b.index}}}
		b.observed = c.req.Observer != nil
	}
	l.inflight = append(l.inflight, b)
	l.changing = true
	if err := r.rn.ProposeConfChange(cc); err != nil {
		l.inflight = l.inflight[:len(l.inflight)-1]
		l.changing = false
		b.fail(r, notProposed(CodeTransfer, "raft did not take the change: %v", err))
		return
	}
	b.observe(StepProposed)
	l.head.index = b.index
	r.firstFlush()
	r.logger.Info("change of members proposed", "change", c.String(), "index", uint64(b.index))
}

// firstFlush begins the flush that a snapshot takes, if there was none yet, before anything is decided on top of a change of members. That hides the first entry (see
// raftLog.changed): a voter that has nothing yet needs a snapshot, and may be needed for what is in flight, which the next flush would wait for.
func (r *Replica) firstFlush() {
	if r.log.flushed == 0 && !r.freezing && !r.flushing && !mutated("no-first-flush") {
		r.freeze()
	}
}

// confChange says it in raft's words.
func (r *Replica) confChange(c *Change) raftpb.ConfChangeV2 {
	note := changeNote{kind: c.Kind, addresses: map[NodeID]string{}}
	for _, id := range r.conf.Members() {
		if a := r.address(id); a != "" {
			note.addresses[id] = a
		}
	}
	if c.Address != "" {
		note.addresses[c.Node] = c.Address
	}
	cc := raftpb.ConfChangeV2{Context: note.encode()}
	one := func(t raftpb.ConfChangeType, id NodeID) {
		cc.Changes = append(cc.Changes, raftpb.ConfChangeSingle{Type: t, NodeID: uint64(id)})
	}
	switch c.Kind {
	case ChangeAddLearner:
		one(raftpb.ConfChangeAddLearnerNode, c.Node)
	case ChangePromote:
		one(raftpb.ConfChangeAddNode, c.Node)
	case ChangeRemove:
		one(raftpb.ConfChangeRemoveNode, c.Node)
	case ChangeReplace:
		one(raftpb.ConfChangeAddNode, c.Node)
		one(raftpb.ConfChangeRemoveNode, c.Old)
		cc.Transition = raftpb.ConfChangeTransitionJointExplicit
	case ChangeAddress:
		one(raftpb.ConfChangeUpdateNode, c.Node)
	}
	return cc
}

// address returns where a member is found: what the log says, else what this node was told.
func (r *Replica) address(id NodeID) string {
	if a := r.conf.Addresses[id]; a != "" {
		return a
	}
	return r.w.env.Address(id)
}

// refusesChange checks a change against the configuration that is applied.
func (r *Replica) refusesChange(c *Change) error {
	refuse := func(format string, args ...any) error { return notProposed(CodeChangeRefused, format, args...) }
	conf := &r.conf
	if c.Kind == changeLeaveJoint {
		if !conf.Joint() {
			return refuse("shard %d is in no joint configuration", r.shard)
		}
		if !slices.Contains(conf.Voters, r.cfg.Node) {
			// It would vote itself out of office: another leads the shard out.
			return r.handOver()
		}
		return nil
	}
	if conf.Joint() {
		return notProposed(CodeChangePending, "the members of shard %d are being replaced; wait until that is done", r.shard)
	}
	switch c.Kind {
	case ChangeAddLearner:
		switch {
		case c.Node == 0:
			return refuse("node ids start at 1")
		case conf.Has(c.Node):
			return refuse("node %d is a member of shard %d already", c.Node, r.shard)
		case slices.Contains(conf.Removed, c.Node) && !mutated("reuse-ids"):
			return refuse("node %d was a member of shard %d and was removed: ids are never reused, give the new node another", c.Node, r.shard)
		case len(conf.Learners)+len(conf.Voters) >= maxMembers:
			return refuse("shard %d has %d members, more are not allowed", r.shard, maxMembers)
		}
		return checkAddress(c.Address)
	case ChangeAddress:
		if !conf.Has(c.Node) {
			return refuse("node %d is no member of shard %d (members: %v)", c.Node, r.shard, conf.Members())
		}
		return checkAddress(c.Address)
	case ChangePromote:
		return r.promotable(c.Node)
	case ChangeReplace:
		if !slices.Contains(conf.Voters, c.Old) {
			return refuse("node %d is no voter of shard %d (voters: %v)", c.Old, r.shard, conf.Voters)
		}
		if err := r.promotable(c.Node); err != nil {
			return err
		}
		if c.Old == r.cfg.Node {
			return r.handOver()
		}
		return r.aliveAfter(c, c.Old)
	case ChangeRemove:
		switch {
		case !conf.Has(c.Node):
			return refuse("node %d is no member of shard %d (members: %v)", c.Node, r.shard, conf.Members())
		case slices.Contains(conf.Voters, c.Node) && len(conf.Voters) == 1:
			return refuse("node %d is the only voter of shard %d: promote another first", c.Node, r.shard)
		case c.Node == r.cfg.Node:
			return r.handOver()
		}
		return r.aliveAfter(c, c.Node)
	}
	return refuse("there is no %v", c.Kind)
}

// maxMembers of a shard, learners included.
const maxMembers = 64

func checkAddress(a string) error {
	if a == "" || len(a) > MaxAddressBytes {
		return notProposed(CodeChangeRefused, "the address has %d bytes: 1 to %d, as host:port", len(a), MaxAddressBytes)
	}
	return nil
}

// promotable checks that a learner is one, and has caught up: a voter that lacks most of the log would be one in name only.
func (r *Replica) promotable(id NodeID) error {
	if !slices.Contains(r.conf.Learners, id) {
		return notProposed(CodeChangeRefused, "node %d is no learner of shard %d (learners: %v): add it first", id, r.shard, r.conf.Learners)
	}
	var p tracker.Progress
	r.rn.WithProgress(func(node uint64, _ raft.ProgressType, pr tracker.Progress) {
		if NodeID(node) == id {
			p = pr
		}
	})
	last := r.log.last()
	if mutated("promote-unready") {
		return nil
	}
	if p.State != tracker.StateReplicate || p.Match+uint64(2*r.cfg.Limits.PipelineDepth) < last || Index(p.Match) < r.conf.Index {
		e := notProposed(CodeNotCaughtUp, "node %d has entries up to %d of %d (%v): wait until it has caught up", id, p.Match, last, p.State)
		e.RetryAfter = time.Duration(r.cfg.HeartbeatTicks) * r.cfg.Tick
		return e
	}
	return nil
}

// aliveAfter refuses a removal after which those who are left and answer are no majority: nothing could be committed any more.
func (r *Replica) aliveAfter(c *Change, goes NodeID) error {
	if !slices.Contains(r.conf.Voters, goes) {
		return nil // a learner
	}
	left, answer, _ := r.staying(c, goes)
	if answer < left/2+1 && !mutated("remove-the-last-alive") {
		return notProposed(CodeChangeRefused, "of the %d voters that would be left only %d answer, which is no majority: bring them back, or replace those that are gone first", left, answer)
	}
	return nil
}

// staying counts the voters that a change leaves: all, those whose replica answers, and those whose node does although the replica has not lately.
func (r *Replica) staying(c *Change, goes NodeID) (left, answer, silent int) {
	for _, v := range r.conf.Voters {
		switch {
		case v == goes:
			continue
		case v == r.cfg.Node || r.answers(v):
			answer++
		case r.w.alive(v):
			silent++
		}
		left++
	}
	if c.Kind == ChangeReplace {
		left, answer = left+1, answer+1 // it has just said that it caught up
	}
	return left, answer, silent
}

// answers reports whether a replica has lately sent this leader anything. That its node is alive says nothing of that: it may have stopped there.
func (r *Replica) answers(n NodeID) bool {
	at, ok := r.lead.heard[n]
	return ok && r.w.now.Mono-at < r.electionNanos() && r.w.alive(n)
}

// awaitsAnswers reports whether the answers to the next heartbeats may decide whether a voter can go: the shard may have been at rest.
func (r *Replica) awaitsAnswers(c *change) bool {
	goes := c.Node
	if c.Kind == ChangeReplace {
		goes = c.Old
	} else if c.Kind != ChangeRemove {
		return false
	}
	if !slices.Contains(r.conf.Voters, goes) || goes == r.cfg.Node || r.w.now.Mono-c.since > 2*r.electionNanos() {
		return false
	}
	left, answer, silent := r.staying(&c.Change, goes)
	return answer < left/2+1 && answer+silent >= left/2+1
}

// handOver has a leader that is to go hand over first: who does not take part cannot commit.
func (r *Replica) handOver() error {
	to := r.bestVoter()
	if to == 0 {
		return notProposed(CodeTransfer, "node %d leads shard %d and finds nobody to hand leadership to", r.cfg.Node, r.shard)
	}
	r.wake()
	r.lead.transferee = to
	r.touch()
	e := notProposed(CodeTransfer, "node %d leads shard %d: it hands leadership to node %d first, ask that one", r.cfg.Node, r.shard, to)
	e.Leader = to
	e.RetryAfter = time.Duration(r.cfg.HeartbeatTicks) * r.cfg.Tick
	return e
}

// bestVoter is the other voter, of the configuration to come if there is one, that has most of the log, and answers if one does. 0: there is none whose node is alive.
func (r *Replica) bestVoter() (best NodeID) {
	match, answers := uint64(0), false
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		n := NodeID(id)
		if n == r.cfg.Node || !slices.Contains(r.conf.Voters, n) || !r.w.alive(n) {
			return
		}
		a := r.answers(n)
		if best == 0 || a && !answers || a == answers && (p.Match > match || p.Match == match && n < best) {
			best, match, answers = n, p.Match, a
		}
	})
	return best
}

// applyChange makes a committed change effective. An empty entry in its place says that raft refused it.
func (r *Replica) applyChange(e *raftpb.Entry) {
	cc, note, err := decodeChange(e.Type, e.Data)
	if err != nil {
		panic(broken(CodeCorruption, err, "the change of members at entry %d", e.Index))
	}
	cs := r.rn.ApplyConfChange(cc)
	r.noteDue = true
	r.setConfiguration(r.conf.after(Index(e.Index), cs, note))
	r.logger.Info("members changed", "index", e.Index, "change", note.kind.String(), "voters", r.conf.Voters, "outgoing", r.conf.Outgoing, "learners", r.conf.Learners)
	r.touch() // raft may have something to send to a newcomer
}

// noteMembers writes down that a change of members is committed. For other entries that is found out again after a restart, by those who
// have them; but who was removed by this one is told so, and stops: nobody might be left to find it out with.
func (r *Replica) noteMembers() {
	if !r.noteDue || r.writing {
		return
	}
	r.writeCommit()
}

// writeCommit writes down what is applied as committed: a restart must find it again.
func (r *Replica) writeCommit() {
	r.noteDue = false
	r.log.hard.Commit = max(r.log.hard.Commit, min(uint64(r.applied), r.log.last()))
	at := r.applied
	r.w.write(nil, record(r.shard, r.log.hard, nil))
	r.w.out.then = append(r.w.out.then, func() { r.membersKnown = max(r.membersKnown, at) })
}

func (r *Replica) setConfiguration(c Configuration) {
	r.conf, r.known = c, nil
	r.log.conf = c.confState()
	if r.rn == nil {
		r.log.changed = c.Index > 0
	}
	r.w.members(r)
	if len(c.Voters) > 0 && !c.Has(r.cfg.Node) {
		r.leaving = true
	}
}

// hideFirst hides the first entry, see raftLog.changed, as soon as raft does not look at it any more: it counts as applied there
// a little later than here.
func (r *Replica) hideFirst() {
	if !r.log.changed && r.conf.Index > 0 {
		r.log.changed = r.rn.BasicStatus().Applied > 0
	}
}

// members sees to it that the worker and its world know the replica's members.
func (w *Worker) members(r *Replica) {
	for _, id := range r.others() {
		if _, known := w.peers[id]; !known {
			w.peers[id] = true
		}
	}
	c := r.conf
	if len(r.known) > 0 {
		c.Addresses = maps.Clone(r.known)
		maps.Copy(c.Addresses, r.conf.Addresses)
	}
	w.env.Members(r.shard, c)
}

// others are the other members, with those that are by entries that this replica lacks; ascending.
func (r *Replica) others() []NodeID {
	all := r.conf.Members()
	for id := range r.known { // any order: they are sorted
		all = append(all, id)
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(id NodeID) bool { return id == r.cfg.Node })
}

// vouchedFor reports whether a node that is no member here is to be believed all the same: this node was told of it, by its
// configuration or by other shards, or a member knows it. Until then the members are asked.
func (r *Replica) vouchedFor(n NodeID) bool {
	if _, ok := r.known[n]; ok || r.w.env.Address(n) != "" {
		return true
	}
	if now := r.w.now.Mono; now-r.askedOf > int64(r.cfg.HeartbeatTicks)*int64(r.cfg.Tick) {
		r.askedOf = now
		for _, m := range r.conf.Members() {
			if m != r.cfg.Node {
				r.w.env.SendNote(m, Note{Shard: r.shard, Kind: noteWho, A: uint64(n)})
			}
		}
	}
	return false
}

func (r *Replica) answerWho(n Note) {
	if id := NodeID(n.A); r.conf.Has(id) {
		r.w.env.SendNote(n.From, Note{Shard: r.shard, Kind: noteKnown, A: n.A, B: uint64(r.conf.Index), Data: []byte(r.address(id))})
	}
}

func (r *Replica) hearKnown(n Note) {
	if r.conf.Has(n.From) && Index(n.B) > r.conf.Index {
		r.meet(NodeID(n.A), string(n.Data))
	}
}

// meet notes a member by entries that this replica lacks.
func (r *Replica) meet(n NodeID, address string) {
	if n == 0 || n == r.cfg.Node || r.conf.Has(n) || len(address) > MaxAddressBytes || len(r.known) >= maxMembers {
		return
	}
	if was, ok := r.known[n]; ok && was == address {
		return
	}
	if r.known == nil {
		r.known = map[NodeID]string{}
	}
	r.known[n] = address
	r.w.members(r)
}

// departure is what a replica knows that was removed, or was told so.
type departure struct {
	index  Index           // of the latest configuration without it that it was told of
	voters []NodeID        // of that
	told   map[NodeID]bool // by whom
	since  int64           // monotonic ns, when a majority of the voters had told it; 0: not yet
}

// leave ends a replica that is no member any more, but not before those who are members can do without its vote. That it has applied its removal says
// that the removal is committed, not that anybody else knows: whoever does not would count on it, in an election, and
// for what is to be committed. So it goes on voting and acknowledging, serves nobody, and asks, until every voter has told it that it is removed, or a majority
// a while ago: a leader tells the others what is committed with every heartbeat.
//
// A leader that finds itself removed has its successor elected first: raft v3.5 would let it go on, without a vote of its own.
func (r *Replica) leave() {
	if l := r.lead; l != nil {
		if l.transferee == 0 {
			if to := r.bestVoter(); to != 0 {
				l.transferee = to
			}
		}
		return
	}
	if r.writing || !r.dispensable() && !mutated("leave-at-once") {
		return
	}
	r.writeCommit()
	r.stop(r.removedError(max(r.departure.index, r.conf.Index)))
}

// votersNow returns the latest configuration that this replica was told of, or has applied itself: its voters, and by which entry.
func (r *Replica) votersNow() ([]NodeID, Index) {
	if d := &r.departure; d.index >= r.conf.Index && len(d.voters) > 0 {
		return d.voters, d.index
	}
	return r.conf.Voters, r.conf.Index
}

// dispensable reports whether nobody counts on a removed replica any more.
func (r *Replica) dispensable() bool {
	d := &r.departure
	voters, _ := r.votersNow()
	told := 0
	for _, v := range voters {
		if d.told[v] {
			told++
		}
	}
	if told <= len(voters)/2 {
		d.since = 0
		return false
	}
	if d.since == 0 {
		d.since = r.w.now.Mono
	}
	return told == len(voters) || r.w.now.Mono-d.since > departurePatience*r.electionNanos()
}

// departurePatience is how many election timeouts a replica waits for the last voters to tell it that it was removed.
const departurePatience = 10

// tellRemoved answers one that does not know that it is no member any more, and says who are voters now, so that it can ask them too: nobody else would tell it.
func (r *Replica) tellRemoved(n NodeID) {
	if r.membersKnown < r.conf.Index && !mutated("tell-before-sync") {
		return // a restart could forget, and count on it again
	}
	voters := map[NodeID]string{}
	for _, v := range r.conf.Voters {
		voters[v] = r.address(v)
	}
	r.w.env.SendNote(n, Note{Shard: r.shard, Kind: noteRemoved, A: uint64(r.conf.Index), Data: appendAddresses(nil, voters)})
}

// hearRemoved takes a member's word that this replica was removed. Ids are never used again, so it cannot be old news.
func (r *Replica) hearRemoved(n Note) {
	rd := reader{b: n.Data}
	voters := rd.addresses()
	if _, self := voters[r.cfg.Node]; rd.err != nil || len(voters) == 0 || len(voters) > maxMembers || self {
		r.stats.Strange++
		return
	}
	if r.lead != nil || Index(n.A) <= r.conf.Index && !r.leaving {
		return
	}
	d := &r.departure
	if d.told == nil {
		d.told = map[NodeID]bool{}
	}
	if len(d.told) < 2*maxMembers {
		d.told[n.From] = true
	}
	if Index(n.A) >= d.index {
		d.index, d.voters = Index(n.A), slices.Sorted(maps.Keys(voters))
		for _, v := range d.voters {
			r.meet(v, voters[v])
		}
	}
	r.touch()
}

// pointOn answers one that calls out to a replica that was removed itself: it does not know who decides now, but who did after it.
func (r *Replica) pointOn(to NodeID) {
	if !r.leaving && len(r.departure.told) == 0 || mutated("gone-say-nothing") {
		return
	}
	if slices.Contains(r.conf.Removed, to) {
		r.tellRemoved(to)
		return
	}
	voters, index := r.votersNow()
	for _, v := range voters {
		address := r.address(v)
		if a := r.known[v]; a != "" {
			address = a
		}
		r.w.env.SendNote(to, Note{Shard: r.shard, Kind: noteKnown, A: uint64(v), B: uint64(index), Data: []byte(address)})
	}
}

// tellChanged tells one that asks for a vote that the latest change of members is committed. Without that it may need the vote of one that was removed, and whose log is
// longer, for good: that one does not vote for it, and cannot be elected. (Raft's messages of an election do not say what is committed.)
func (r *Replica) tellChanged(m *raftpb.Message) {
	if r.conf.Index == 0 || mutated("keep-changes-secret") {
		return
	}
	first, _ := r.log.FirstIndex() // never fails
	at := uint64(r.conf.Index)
	if at+1 < first { // it is not there any more: the end of the other's log may be
		at = min(m.Index, uint64(r.applied))
	}
	if at+1 < first || at < uint64(r.conf.Index) {
		return
	}
	if term, err := r.log.Term(at); err == nil {
		r.w.env.SendNote(NodeID(m.From), Note{Shard: r.shard, Kind: noteChanged, A: at, B: term})
	}
}

// hearChanged takes a member's word that an entry which this replica has is committed. Raft takes that from leaders only, or from its storage: so it starts anew. What it
// has not handed out yet is lost, and nobody was told of it.
func (r *Replica) hearChanged(n Note) {
	if r.lead != nil || r.role == raft.StateLeader || r.writing || r.installing != nil || n.A <= r.rn.BasicStatus().Commit || n.A > r.log.last() {
		return
	}
	if term, err := r.log.Term(n.A); err != nil || term != n.B {
		return
	}
	r.log.hard.Commit = max(r.log.hard.Commit, uint64(r.applied), n.A)
	rn, err := raft.NewRawNode(r.raftConfig())
	if err != nil {
		panic(broken(CodeCorruption, err, "raft does not start anew"))
	}
	r.logger.Info("a change of members is committed, says a member", "index", n.A, "node", uint64(n.From))
	r.rn = rn
	r.reads.reset()
	r.wake()
}

func (r *Replica) removedError(at Index) *Error {
	return broken(CodeRemoved, nil, "node %d was removed from shard %d by entry %d, and is no member any more; its data can be deleted when it has no other shards", r.cfg.Node, r.shard, at)
}
