package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
)

// Who takes part in a shard, as its log says: read once more from the entries, with none of core's code.

// config is who takes part from an entry on.
type config struct {
	index                            core.Index // 0: as the shard was made
	voters, outgoing, learners, next ids
	removed                          ids
	addresses                        map[core.NodeID]string
}

// ids are a set, ascending.
type ids []core.NodeID

func (s ids) has(n core.NodeID) bool { return slices.Contains(s, n) }

func (s ids) with(n core.NodeID) ids {
	if s.has(n) {
		return s
	}
	s = append(slices.Clone(s), n)
	slices.Sort(s)
	return s
}

func (s ids) without(n core.NodeID) ids {
	return slices.DeleteFunc(slices.Clone(s), func(m core.NodeID) bool { return m == n })
}

func (c *config) has(n core.NodeID) bool {
	return c.voters.has(n) || c.outgoing.has(n) || c.learners.has(n)
}

func (c *config) members() (all ids) {
	for _, set := range []ids{c.voters, c.outgoing, c.learners} {
		for _, n := range set {
			all = all.with(n)
		}
	}
	return all
}

func (c *config) joint() bool { return len(c.outgoing) > 0 }

// quorum reports whether the nodes for which yes is true decide: a majority of the voters, and in between two configurations of both.
func (c *config) quorum(yes func(core.NodeID) bool) bool {
	for _, set := range []ids{c.voters, c.outgoing} {
		n := 0
		for _, v := range set {
			if yes(v) {
				n++
			}
		}
		if len(set) > 0 && 2*n <= len(set) {
			return false
		}
	}
	return true
}

// disjoint reports whether each of two configurations could decide without the other: two leaders, two truths.
func disjoint(a, b *config) bool {
	all := a.members()
	for _, n := range b.members() {
		all = all.with(n)
	}
	for set := range 1 << len(all) {
		in := func(n core.NodeID) bool { return set>>slices.Index(all, n)&1 == 1 }
		if a.quorum(in) && b.quorum(func(n core.NodeID) bool { return !in(n) }) {
			return true
		}
	}
	return false
}

func (c *config) String() string {
	return fmt.Sprintf("voters %v, outgoing %v, learners %v, next %v, removed %v, addresses %v as of %d", c.voters, c.outgoing, c.learners, c.next, c.removed, c.addresses, c.index)
}

// equal compares with what a replica says.
func (c *config) equal(o *core.Configuration) bool {
	return c.index == o.Index && slices.Equal(c.voters, o.Voters) && slices.Equal(c.outgoing, o.Outgoing) && slices.Equal(c.learners, o.Learners) &&
		slices.Equal(c.next, o.LearnersNext) && slices.Equal(c.removed, o.Removed) && maps.Equal(c.addresses, o.Addresses)
}

// logChange is an entry that changes the members.
type logChange struct {
	kind      core.ChangeKind
	addresses map[core.NodeID]string
	raft      raftpb.ConfChangeV2
}

// leaveJoint is the kind of change that leaders make by themselves.
const leaveJoint core.ChangeKind = 6

func decodeLogChange(data []byte) (l logChange, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != any(errDecode) {
				panic(p)
			}
			err = errDecode
		}
	}()
	if err := l.raft.Unmarshal(data); err != nil {
		return l, err
	}
	d := decoder{l.raft.Context}
	if d.u8() != 1 {
		return l, errDecode
	}
	l.kind, l.addresses = core.ChangeKind(d.u8()), map[core.NodeID]string{}
	for n := d.n(); n > 0; n-- {
		id := core.NodeID(d.n())
		l.addresses[id] = string(d.bytes())
	}
	if len(d.b) > 0 {
		return l, errDecode
	}
	return l, nil
}

// key names the change whoever asks for it, and how often. No change can happen twice, since no id is used again; addresses are new ones each time.
func (l *logChange) key(shard core.ShardID) changeKey {
	k := changeKey{shard: shard, Change: core.Change{Kind: l.kind}}
	for _, c := range l.raft.Changes {
		if c.Type == raftpb.ConfChangeRemoveNode && l.kind == core.ChangeReplace {
			k.Old = core.NodeID(c.NodeID)
		} else {
			k.Node = core.NodeID(c.NodeID)
		}
	}
	if l.kind == core.ChangeAddLearner || l.kind == core.ChangeAddress {
		k.Address = l.addresses[k.Node]
	}
	return k
}

// after returns the configuration after a change, by the rules of raft (thesis, 4.3).
func (c *config) after(i core.Index, l *logChange) config {
	n := *c
	n.index = i
	switch cc := &l.raft; {
	case len(cc.Changes) == 0:
		n.outgoing = nil
		for _, m := range c.next {
			n.learners = n.learners.with(m)
		}
		n.next = nil
	default:
		if cc.Transition != raftpb.ConfChangeTransitionAuto || len(cc.Changes) > 1 {
			n.outgoing = c.voters
		}
		for _, one := range cc.Changes {
			id := core.NodeID(one.NodeID)
			switch one.Type {
			case raftpb.ConfChangeAddNode:
				n.voters, n.learners, n.next = n.voters.with(id), n.learners.without(id), n.next.without(id)
			case raftpb.ConfChangeAddLearnerNode:
				n.voters = n.voters.without(id)
				if n.outgoing.has(id) {
					n.next = n.next.with(id)
				} else {
					n.learners = n.learners.with(id)
				}
			case raftpb.ConfChangeRemoveNode:
				n.voters, n.learners, n.next = n.voters.without(id), n.learners.without(id), n.next.without(id)
			case raftpb.ConfChangeUpdateNode:
			}
		}
	}
	for _, m := range c.members() {
		if !n.has(m) {
			n.removed = n.removed.with(m)
		}
	}
	n.addresses = map[core.NodeID]string{}
	for _, from := range []map[core.NodeID]string{c.addresses, l.addresses} {
		for id, a := range from { // any order: they are keys of a map again
			if n.has(id) {
				n.addresses[id] = a
			}
		}
	}
	return n
}

// config returns the configuration after entry i.
func (o *oracle) config(i core.Index) *config {
	k := len(o.configs) - 1
	for k > 0 && o.configs[k].index > i {
		k--
	}
	return &o.configs[k]
}

func (o *oracle) latest() *config { return &o.configs[len(o.configs)-1] }

// change takes an entry that changes the members.
func (o *oracle) change(i core.Index, data []byte) {
	l, err := decodeLogChange(data)
	if err != nil {
		o.fail("members", "entry %d: %v", i, err)
		return
	}
	before := *o.latest()
	o.c.s.trace.note("shard %d, entry %d: %v %v", o.shard, i, l.kind, l.raft.Changes)
	key := l.key(o.shard)
	if l.kind != leaveJoint {
		o.c.s.stats.Changes++
		switch c := o.c.changes[key]; {
		case c == nil:
			o.fail("members", "entry %d has a change that nobody asked for: %v", i, &key.Change)
		case c.committed != 0:
			o.fail("members", "entry %d has a change that is in entry %d: %v", i, c.committed, &key.Change)
		case !c.mayHappen():
			o.fail("not-proposed", "entry %d has %v, and every attempt was told that it did not happen", i, &key.Change)
		default:
			c.committed = i
		}
	}
	sound := true
	switch n := key.Node; l.kind {
	case core.ChangeAddLearner:
		sound = n != 0 && !before.has(n) && !before.removed.has(n)
	case core.ChangePromote:
		sound = before.learners.has(n)
	case core.ChangeReplace:
		sound = before.learners.has(n) && before.voters.has(key.Old)
	case core.ChangeRemove:
		sound = before.has(n) && len(before.voters.without(n)) > 0
	case core.ChangeAddress:
		sound = before.has(n)
	}
	after := before.after(i, &l)
	switch {
	case !sound:
		o.fail("members", "entry %d: %v makes no sense for %v", i, &key.Change, &before)
	case before.joint() == (l.kind != leaveJoint):
		o.fail("members", "entry %d: %v of %v", i, &key.Change, &before)
	case len(after.voters) == 0 || disjoint(&before, &after):
		o.fail("members", "entry %d: %v could decide without %v", i, &after, &before)
	}
	o.configs = append(o.configs, after)
	if o.c.s.work.shards() > 1 {
		o.c.s.tell("the members of shard %d are: voters %v, learners %v", o.shard, after.voters, after.learners)
	} else {
		o.c.s.tell("the members are: voters %v, learners %v", after.voters, after.learners)
	}
}

// changeKey names a change that is asked for.
type changeKey struct {
	shard core.ShardID
	core.Change
}

// memberChange is a change that operators want, with all that came of it.
type memberChange struct {
	num       int
	key       changeKey
	attempts  []*changeAttempt
	committed core.Index
}

type changeAttempt struct {
	c       *memberChange
	num     int
	node    *node
	gen     uint64
	req     core.Request
	answers int
}

func (c *memberChange) mayHappen() bool {
	return slices.ContainsFunc(c.attempts, func(a *changeAttempt) bool {
		return a.answers == 0 || verdictOf(a.req.Err) != notProposed
	})
}

// members asks for a change, most often one that makes sense.
func (f *faults) members(kind int) {
	s := f.s
	shard := core.ShardID(1 + f.r.IntN(int(s.work.shards())))
	conf := s.check.shards[shard].latest()
	one := func(from ids) core.NodeID {
		if len(from) == 0 || f.r.IntN(12) == 0 {
			return core.NodeID(1 + f.r.IntN(len(s.nodes)))
		}
		return from[f.r.IntN(len(from))]
	}
	s.changes++
	address := fmt.Sprintf("address%d", s.changes)
	var c core.Change
	switch kind {
	case faultAddLearner:
		var free ids
		for _, n := range s.nodes {
			if !conf.has(n.id) && !conf.removed.has(n.id) {
				free = append(free, n.id)
			}
		}
		c = core.Change{Kind: core.ChangeAddLearner, Node: one(free), Address: address}
	case faultPromote:
		c = core.Change{Kind: core.ChangePromote, Node: one(conf.learners)}
	case faultRemove:
		if len(conf.voters) <= 2 && f.r.IntN(4) > 0 {
			return
		}
		c = core.Change{Kind: core.ChangeRemove, Node: one(conf.members())}
		if f.r.IntN(3) == 0 {
			c.Node = max(1, s.check.someLeader(shard))
		}
	case faultReplace:
		c = core.Change{Kind: core.ChangeReplace, Node: one(conf.learners), Old: one(conf.voters)}
	case faultAddress:
		c = core.Change{Kind: core.ChangeAddress, Node: one(conf.members()), Address: address}
	}
	key := changeKey{shard, c}
	m := s.check.changes[key]
	if m == nil {
		m = &memberChange{num: len(s.check.changes) + 1, key: key}
		s.check.changes[key] = m
		s.check.changeList = append(s.check.changeList, m)
	}
	s.trace.note("shard %d: %v", shard, &m.key.Change)
	f.ask(m, max(1, s.check.someLeader(shard)), 1+f.r.IntN(10))
}

// ask asks a node for a change, and others after it.
func (f *faults) ask(m *memberChange, of core.NodeID, times int) {
	s := f.s
	again := func(to core.NodeID) {
		if to == 0 {
			to = core.NodeID(1 + f.r.IntN(len(s.nodes)))
		}
		if times > 1 && !s.calm {
			s.after(exp(f.r, 30*millisecond), func() { f.ask(m, to, times-1) })
		}
	}
	n := s.node(of)
	if !n.up || s.calm {
		again(0)
		return
	}
	a := &changeAttempt{c: m, num: len(m.attempts) + 1, node: n, gen: n.gen}
	m.attempts = append(m.attempts, a)
	change := m.key.Change
	a.req = core.Request{Kind: core.KindChange, Shard: m.key.shard, Change: &change}
	a.req.Done = func(*core.Request) {
		if n.up && n.gen == a.gen {
			a.answers++
			s.changeAnswers = append(s.changeAnswers, func() {
				s.trace.event(evChangeAnswer, n.id, uint64(m.key.shard), uint64(m.num), uint64(a.num), uint64(verdictOf(a.req.Err)))
				s.trace.note("%v: at %d, error %v", &m.key.Change, a.req.Result.Index, a.req.Err)
				s.check.changeAnswer(a)
				var e *core.Error
				twice := m.key.Kind == core.ChangeAddress && verdictOf(a.req.Err) != notProposed // would happen twice, perhaps
				if errors.As(a.req.Err, &e) && e.Code != core.CodeChangeRefused && !twice {
					again(e.Leader)
				}
			})
		}
	}
	s.trace.event(evChange, n.id, uint64(m.key.shard), uint64(m.num), uint64(a.num), 0)
	s.trace.note("%v", &m.key.Change)
	n.workerOf(m.key.shard).post(func(in *core.Input) { in.Requests = append(in.Requests, &a.req) })
}

// changeAnswer checks what an operator was told.
func (c *checker) changeAnswer(a *changeAttempt) {
	m := a.c
	if a.answers > 1 {
		c.s.fail("answers", "%v was answered %d times", &m.key.Change, a.answers)
		return
	}
	var e *core.Error
	if errors.As(a.req.Err, &e) {
		c.s.stats.Codes[e.Code]++
	}
	switch index := a.req.Result.Index; verdictOf(a.req.Err) {
	case happened:
		if applied := a.node.applied[m.key.shard]; index == 0 || index > applied || m.committed != index {
			c.s.fail("members", "%v was answered from index %d by node %d, which has applied %d, and is in entry %d", &m.key.Change, index, a.node.id, applied, m.committed)
		}
	case notProposed:
		c.s.stats.ChangesRefused++
		if m.committed != 0 && !m.mayHappen() {
			c.s.fail("not-proposed", "%v was told %v, and is in entry %d", &m.key.Change, a.req.Err, m.committed)
		}
	case rejected, refused:
		c.s.fail("members", "%v was answered %v", &m.key.Change, a.req.Err)
	case unknownOutcome:
	}
}

// proposes checks a change when its leader first writes it: who is to vote has caught up, and who stays can go on.
func (c *checker) proposes(n *node, id core.ShardID, i core.Index, term core.Term, data []byte) {
	if c.leaders[leaderKey{id, term}] != n.id || c.proposed[proposedKey{id, i, term}] {
		return
	}
	c.proposed[proposedKey{id, i, term}] = true
	l, err := decodeLogChange(data)
	if err != nil {
		return // see oracle.change
	}
	key, depth := l.key(id), core.Index(c.s.swarm.core.Limits.PipelineDepth)
	conf := c.shards[id].config(n.applied[id])
	if l.kind == core.ChangePromote || l.kind == core.ChangeReplace {
		other := c.s.node(key.Node)
		has := other.disk.shadow[id].last()
		if other.up && other.store != nil {
			// What a snapshot has brought is in the state store, and need not be in the log.
			has = max(has, core.Index(other.shards[id-1].FlushedIndex()))
		}
		if other.up && (has+3*depth+2 < i || has < conf.index) {
			c.s.fail("members", "shard %d: entry %d makes a voter of node %d, whose log ends at %d", id, i, key.Node, has)
		}
	}
	if n.confs[id].Index != conf.index {
		return // an earlier change was applied in this very pass, and is not learned yet
	}
	gone := key.Old
	if l.kind == core.ChangeRemove {
		gone = key.Node
	}
	if gone == 0 || !conf.voters.has(gone) {
		return
	}
	left, alive := 0, 0
	patience := int64(c.s.swarm.core.ElectionTicks+4)*n.rate + 20*c.s.swarm.passDelay
	for _, v := range conf.voters {
		if v == gone {
			continue
		}
		left++
		if v == n.id || n.mono()-n.heard[v] < patience {
			alive++
		}
	}
	if l.kind == core.ChangeReplace {
		left, alive = left+1, alive+1
	}
	if 2*alive <= left {
		c.s.fail("members", "shard %d: entry %d removes node %d, and of the %d voters that stay node %d has heard of %d", id, i, gone, left, n.id, alive)
	}
}

type proposedKey struct {
	shard core.ShardID
	index core.Index
	term  core.Term
}

// observeMembers checks what a replica says of the members.
func (c *checker) observeMembers(n *node, st *core.Status) {
	conf := c.shards[st.Shard].config(st.Applied)
	if !conf.equal(&st.Members) && (conf.index > 0 || !n.spare() || st.Applied > 0) {
		c.s.fail("members", "shard %d on node %d at %d: %+v; the log says %v", st.Shard, n.id, st.Applied, st.Members, conf)
	}
}

// wentAway reports whether a replica stopped because it is no member any more.
func (c *checker) wentAway(n *node, id core.ShardID, err *core.Error) bool {
	if err.Code != core.CodeRemoved {
		return false
	}
	if !c.shards[id].latest().removed.has(n.id) {
		c.s.fail("removed", "shard %d on node %d: %v, and %v", id, n.id, err, c.shards[id].latest())
	}
	if !n.left[id] {
		n.left[id] = true
		c.s.stats.Left++
	}
	return true
}
