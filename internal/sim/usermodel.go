package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/probe"
)

// userModel replays a shard's log through the user's own machine, on a map, in one thread: each command is decided once more by a
// machine that has just been made, and each event applied. A model of the user's, if there is one, follows.
type userModel struct {
	w        *userWork
	o        *oracle
	machine  core.Machine
	versions []*probe.Memory // versions[i] is the state after entry i
	models   []any           // as versions
	effects  [][]effect      // effects[i] is what the events of entry i wrote
	rejects  map[uint64]rejectedAt

	// Of the entry at hand.
	index  core.Index
	state  *probe.Memory
	model  any
	groups [][]decidedCommand // of its requests, in their order
}

type rejectedAt struct {
	index     core.Index
	rejection *core.Rejection // nil: the library's own, for which the machine is not asked
}

func (w *userWork) newModel(o *oracle) model {
	return &userModel{
		w: w, o: o, machine: w.u.New(), rejects: map[uint64]rejectedAt{},
		versions: []*probe.Memory{{}}, models: []any{w.u.Model}, effects: [][]effect{nil},
	}
}

// begin finds out what was decided for the entry. The log tells of a rejection that there was one, but not what was asked.
func (m *userModel) begin(i core.Index, term uint64, d *logEntry) {
	last := len(m.versions) - 1
	m.index, m.state, m.model, m.groups = i, m.versions[last].Copy(), m.models[last], nil
	m.effects = append(m.effects, nil)
	if d == nil {
		return
	}
	requests := 0
	for k := range d.requests {
		if r := &d.requests[k]; !r.open && !r.close && r.version == 0 {
			requests++
		}
	}
	leader := m.o.c.leaders[leaderKey{m.o.shard, core.Term(term)}]
	for _, c := range m.w.decided[decidedKey{leader, core.Timestamp(d.time)}] {
		if c.tag.n == 0 {
			m.groups = append(m.groups, nil)
		}
		if n := len(m.groups); n > 0 {
			m.groups[n-1] = append(m.groups[n-1], c)
		}
	}
	if n := len(m.groups); n >= requests {
		m.groups = m.groups[n-requests:] // what is in front was decided for an entry that was lost
	} else {
		m.o.fail("harness", "entry %d has %d requests, and node %d is known to have decided %d", i, requests, leader, n)
	}
}

func (m *userModel) end(core.Index) {
	m.versions, m.models = append(m.versions, m.state), append(m.models, m.model)
	// Not each time when there is much: it may take long.
	if m.index <= 64 || m.index%16 == 0 {
		m.invariant()
	}
}

func (m *userModel) finish() { m.invariant() }

func (m *userModel) invariant() {
	if m.w.u.Invariant == nil || m.o.c.s.failure != nil {
		return
	}
	if err := m.w.u.Invariant(m.state); err != nil {
		m.w.blame(&probe.Fault{Rule: "invariant", Expected: "the invariant holds after every entry", Seen: err.Error()}, "the state after entry %d", m.index)
	}
}

func (m *userModel) request(i core.Index, _ int, now int64, r *logRequest) {
	if len(m.groups) == 0 || m.o.c.s.failure != nil {
		return
	}
	group := m.groups[0]
	m.groups = m.groups[1:]
	state, model, before := m.state.Copy(), m.model, len(m.effects[i])
	var events, replies [][]byte
	var rejection *core.Rejection
	for _, c := range group {
		command := m.w.command(c.tag, c.data, core.Timestamp(now), c.version)
		if !m.decideAgain(state, &c, command) || !m.step(&model, &c, command) {
			return
		}
		if rejection = c.Rejection; rejection != nil {
			break
		}
		replies = append(replies, c.Reply)
		encoded := encodeEvents(c.tag, c.Events)
		events = append(events, encoded...)
		if !m.apply(state, now, c.version, encoded) {
			return
		}
	}
	op := m.w.ops[group[0].tag.op]
	byLibrary := rejection == nil && len(r.events) == 0 // a limit was broken
	if rejection != nil || byLibrary {
		m.effects[i] = m.effects[i][:before]
		m.rejects[group[0].tag.op] = rejectedAt{i, rejection}
		if len(r.events) > 0 || r.session && (r.outcome.code == "" || rejection != nil && r.outcome.code != rejection.Code) {
			m.o.fail("decision", "entry %d: %v was decided to be rejected (%v); the log has %d events and the outcome %q", i, op, rejection, len(r.events), r.outcome.code)
		}
		return
	}
	if !slices.EqualFunc(events, r.events, bytes.Equal) || r.session && !slices.EqualFunc(replies, r.outcome.replies, bytes.Equal) {
		m.o.fail("decision", "entry %d: %v was decided into other events or replies than the log has", i, op)
		return
	}
	m.o.commit(i, op, len(group))
	op.replies = replies
	m.state, m.model = state, model
}

// decideAgain has a new machine decide a command at its place in the log.
func (m *userModel) decideAgain(state core.View, c *decidedCommand, command core.Command) bool {
	u := m.w.u
	if u.ImpureDecide {
		return true
	}
	fresh := func() (probe.Decision, bool) {
		d, f := probe.Decide(u.New(), state, m.w.command(c.tag, c.data, command.Time, command.Version))
		if f != nil {
			m.w.blame(f, "Decide of command %s, by a new machine on the state before it", u.show(PartCommand, c.data))
		}
		return d, f == nil
	}
	once, ok := fresh()
	if !ok {
		return false
	}
	if u.sameDecision(&once, &c.Decision) {
		return true
	}
	twice, ok := fresh()
	if !ok {
		return false
	}
	f := &probe.Fault{Rule: probe.RuleHidden, Expected: fmt.Sprintf("a machine that was just made decides it into %s, as often as it is asked", u.showDecision(&once)),
		Seen: fmt.Sprintf("the machine that had been running decided %s: it depends on something that it keeps outside of its view", u.showDecision(&c.Decision))}
	if !u.sameDecision(&once, &twice) {
		f.Rule = probe.RuleDecideTwice
		f.Expected = fmt.Sprintf("one state, one command, one time and one random source give one decision: %s", u.showDecision(&once))
		f.Seen = fmt.Sprintf("decided a second time by a machine that was just made: %s", u.showDecision(&twice))
	}
	m.w.blame(f, "Decide of command %s in entry %d", u.show(PartCommand, c.data), m.index)
	return false
}

// step asks the user's model.
func (m *userModel) step(model *any, c *decidedCommand, command core.Command) bool {
	u := m.w.u
	if *model == nil {
		return true
	}
	next, want := u.Step(*model, command)
	*model = next
	if u.fits(PartReply, want, c.Reply, c.Rejection) {
		return true
	}
	m.w.blame(&probe.Fault{Rule: "model", Expected: "the model says " + u.showWanted(PartReply, want), Seen: "the machine decided " + u.showOutcome(PartReply, c.Reply, c.Rejection)},
		"command %s in entry %d", u.show(PartCommand, c.data), m.index)
	return false
}

func (u *User) fits(p Part, want Outcome, got []byte, r *core.Rejection) bool {
	switch {
	case want.Any:
		return true
	case r != nil:
		return want.Code == r.Code
	}
	return want.Code == "" && u.same(p, want.Reply, got)
}

func (u *User) showWanted(p Part, want Outcome) string {
	if want.Code != "" {
		return fmt.Sprintf("rejected (%s)", want.Code)
	}
	return u.show(p, want.Reply)
}

func (m *userModel) apply(state *probe.Memory, now int64, version uint64, events [][]byte) bool {
	for _, data := range events {
		p := core.Position{Shard: m.o.shard, Index: m.index, Ordinal: uint32(len(m.effects[m.index]))}
		writes, f := applyTagged(m.machine, state, core.Event{Data: data, Position: p, Time: core.Timestamp(now), Version: version})
		if f != nil {
			m.w.blame(f, "Apply in a replay of the log, of %s", m.w.describeEvent(p, data))
			return false
		}
		state.Write(writes)
		m.effects[m.index] = append(m.effects[m.index], effect{data, version, writes})
	}
	return true
}

// compareEffect compares what a replica wrote for an event with what the replay did.
func (m *userModel) compareEffect(where string, p core.Position, this effect) {
	list := m.effects[p.Index]
	if int(p.Ordinal) >= len(list) || !bytes.Equal(list[p.Ordinal].data, this.data) {
		m.o.fail("harness", "the event at %v is not in the replay", p)
		return
	}
	if was := list[p.Ordinal].version; was != this.version {
		m.o.fail("version", "the event at %v was decided under version %d, and is applied under %d %s", p, was, this.version, where)
		return
	}
	if f := probe.CompareWrites(list[p.Ordinal].writes, this.writes, "in a replay of the log", where); f != nil {
		m.w.blame(f, "Apply of %s", m.w.describeEvent(p, this.data))
	}
}

// applied compares what a leader wrote ahead, now that the entry is committed.
func (m *userModel) applied(n *node, i core.Index) {
	k := aheadKey{n.id, i}
	a := m.w.ahead[k]
	at := m.o.after(i)
	if a == nil || int64(a.time) != at.time || m.o.c.leaders[leaderKey{m.o.shard, core.Term(at.term)}] != n.id || len(a.events) != len(m.effects[i]) {
		return
	}
	for ordinal, e := range a.events {
		if m.o.c.s.failure == nil {
			m.compareEffect(fmt.Sprintf("on node %d, which led", n.id), core.Position{Shard: m.o.shard, Index: i, Ordinal: uint32(ordinal)}, e)
		}
	}
}

func (m *userModel) rejected(o *operation, at core.Index, r *core.Rejection) {
	was, ok := m.rejects[o.id.id()]
	if !ok || was.index != at || was.rejection != nil && (was.rejection.Code != r.Code || was.rejection.Message != r.Message || !bytes.Equal(was.rejection.Detail, r.Detail)) {
		m.o.fail("decision", "%v was told %v at index %d, where the log has no such rejection", o, r, at)
	}
}

// read answers a query once more, at its place in the log.
func (m *userModel) read(a *attempt) {
	o, res, u := a.op, &a.req.Result, m.w.u
	var told *core.Rejection
	if a.req.Err != nil {
		told = probe.RejectionOf(a.req.Err)
	}
	if m.o.c.s.failure != nil || int(res.Index) >= len(m.versions) {
		return
	}
	want, rejection, f := probe.Query(u.New(), m.versions[res.Index], o.query)
	where := fmt.Sprintf("query %s, answered by node %d from entry %d", u.show(PartQuery, o.query), a.node.id, res.Index)
	if f != nil {
		m.w.blame(f, "%s", where)
		return
	}
	expected := Outcome{Reply: want}
	if rejection != nil {
		expected = Outcome{Code: rejection.Code}
	}
	if !u.fits(PartAnswer, expected, res.Answer, told) {
		m.w.blame(&probe.Fault{Rule: "query", Expected: "a machine that was just made answers " + u.showOutcome(PartAnswer, want, rejection) + " from the state that the log gives",
			Seen: u.showOutcome(PartAnswer, res.Answer, told)}, "%s", where)
		return
	}
	if model := m.models[res.Index]; model != nil && u.Answer != nil {
		if want := u.Answer(model, o.query); !u.fits(PartAnswer, want, res.Answer, told) {
			m.w.blame(&probe.Fault{Rule: "model", Expected: "the model says " + u.showWanted(PartAnswer, want), Seen: "the machine answered " + u.showOutcome(PartAnswer, res.Answer, told)}, "%s", where)
		}
	}
}

func (m *userModel) compare(n *node, v core.View, at core.Index) {
	if d := probe.Compare(m.versions[at], v); d != nil {
		m.w.blame(&probe.Fault{Rule: "state", Key: d.Key, Expected: "the log's replay has " + showValue(d.One, d.InOne), Seen: "the replica has " + showValue(d.Other, d.InOther)},
			"the state of node %d after entry %d", n.id, at)
	}
}

func showValue(v []byte, there bool) string {
	if !there {
		return "no such key"
	}
	return fmt.Sprintf("%q", v)
}

func (u *User) sameDecision(a, b *probe.Decision) bool {
	if (a.Rejection == nil) != (b.Rejection == nil) {
		return false
	}
	if r, o := a.Rejection, b.Rejection; r != nil {
		return r.Code == o.Code && r.Message == o.Message && bytes.Equal(r.Detail, o.Detail)
	}
	return u.same(PartReply, a.Reply, b.Reply) &&
		slices.EqualFunc(a.Events, b.Events, func(x, y []byte) bool { return u.same(PartEvent, x, y) })
}

func (u *User) showDecision(d *probe.Decision) string {
	if d.Rejection != nil {
		return u.showOutcome(PartReply, nil, d.Rejection)
	}
	s := count(len(d.Events), "event")
	for i, e := range d.Events {
		sep := ", "
		if i == 0 {
			sep = " "
		}
		s += sep + u.show(PartEvent, e)
	}
	return s + " and the reply " + u.show(PartReply, d.Reply)
}

// Replay applies the log of a run without failure once more, from its beginning, with a machine that was just made, and
// reports the first event that writes something else than it did. It is for a user's machine only.
func (r *Result) Replay() *Failure {
	w := r.run.work.(*userWork)
	o := r.run.check.shards[1]
	m, state, machine := o.model.(*userModel), new(probe.Memory), w.u.New()
	for i, events := range m.effects {
		for k, e := range events {
			p := core.Position{Shard: o.shard, Index: core.Index(i), Ordinal: uint32(k)}
			writes, f := applyTagged(machine, state, core.Event{Data: e.data, Position: p, Time: core.Timestamp(o.after(p.Index).time), Version: e.version})
			if f == nil {
				f = probe.CompareWrites(e.writes, writes, "when the cluster ran", "now")
			}
			if f != nil {
				w.blame(f, "Apply in a replay of the log, of %s", w.describeEvent(p, e.data))
				return r.run.failure
			}
			state.Write(writes)
		}
	}
	return nil
}
