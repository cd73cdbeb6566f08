package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/probe"
)

// User is a machine that is not the simulator's own, with what clients ask of it and what is known of it.
type User struct {
	// New returns a machine as a program that has just started has it.
	New func() core.Machine
	// Command and Query draw what a client asks, and depend on nothing else. Query may be nil: nothing is read.
	Command, Query func(*rand.Rand) []byte
	// Invariant, if set, says what is wrong with a state.
	Invariant func(core.View) error
	// Model, if not nil, is a state to which Step says the outcome of each command and Answer that of each query. Neither changes the state it is given.
	Model  any
	Step   func(state any, c core.Command) (next any, o Outcome)
	Answer func(state any, query []byte) Outcome
	// ImpureDecide: Decide looks at more than its view, its command and what it is given with it.
	ImpureDecide bool
	// Same tells whether two encodings mean the same; Show makes one readable. Nil: bytes are compared, and quoted.
	Same map[Part]func(a, b []byte) bool
	Show map[Part]func([]byte) string
}

// Part is what of a machine an encoding stands for.
type Part uint8

// The parts.
const (
	PartCommand Part = iota
	PartEvent
	PartReply
	PartQuery
	PartAnswer
)

// Outcome is what a model expects of a command or query.
type Outcome struct {
	Reply []byte    // or the answer
	Code  core.Code // of the rejection; "" if there is to be none
	Any   bool      // the model does not know
}

func (u *User) same(p Part, a, b []byte) bool {
	if f := u.Same[p]; f != nil {
		return f(a, b)
	}
	return bytes.Equal(a, b)
}

func (u *User) show(p Part, b []byte) string {
	if f := u.Show[p]; f != nil {
		return f(b)
	}
	return fmt.Sprintf("%q", b)
}

func (u *User) showOutcome(p Part, reply []byte, r *core.Rejection) string {
	if r == nil {
		return u.show(p, reply)
	}
	s := r.Error()
	if len(r.Detail) > 0 {
		s += fmt.Sprintf(" (detail %q)", r.Detail)
	}
	return s
}

// userWork is the workload on a user's machine. There is one shard of it: more would only make the story longer.
type userWork struct {
	s   *sim
	u   *User
	ops map[uint64]*operation
	// decided is what the machine of a node decided for an entry, rejections included, in its order.
	decided map[decidedKey][]decidedCommand
	// ahead is what the machine of a node wrote for the events that it had decided itself, before they were committed.
	ahead map[aheadKey]*aheadEntry
}

type decidedKey struct {
	node core.NodeID
	time core.Timestamp // no two entries of a log have the same
}

type decidedCommand struct {
	tag     tag
	data    []byte
	version uint64 // that was active
	probe.Decision
}

type aheadKey struct {
	node  core.NodeID
	index core.Index
}

type aheadEntry struct {
	time   core.Timestamp
	events []effect // by ordinal
}

// effect is what an event wrote.
type effect struct {
	data    []byte // as in the log
	version uint64 // under which it was decided
	writes  []probe.Write
}

// tag is put in front of each command, and of each of its events, so that both can be told apart from all others: the operation, and
// which of its commands.
type tag struct {
	op uint64
	n  byte
}

const tagBytes = 9

func (t tag) append(b []byte) []byte { return append(binary.BigEndian.AppendUint64(b, t.op), t.n) }

func untag(b []byte) (tag, []byte) {
	return tag{binary.BigEndian.Uint64(b), b[8]}, b[tagBytes:]
}

// An event has one byte more: a command that was decided into no event at all has one that only says so.
const (
	eventOfMachine = iota
	eventOfNothing
)

func newUserWork(s *sim, u *User) *userWork {
	return &userWork{s: s, u: u, ops: map[uint64]*operation{}, decided: map[decidedKey][]decidedCommand{}, ahead: map[aheadKey]*aheadEntry{}}
}

// tune: the limits of production, since only the user knows how large things get. A machine with versions begins with nodes whose programs
// differ, and is brought to the newest while it works; the others have one version, and no programs to exchange.
func (w *userWork) tune(s *swarm) {
	d := core.Config{}.WithDefaults().Limits
	l := &s.core.Limits
	l.MaxCommandBytes, l.MaxEntryBytes, l.MaxKeyBytes, l.MaxValueBytes = d.MaxCommandBytes+tagBytes, d.MaxEntryBytes, d.MaxKeyBytes, d.MaxValueBytes
	l.MaxQueuedBytes = d.MaxQueuedBytes
	s.maxMemory, s.narrow = 1<<30, 0
	s.proxies, s.every[faultProxy], s.every[faultStream] = 0, 0, 0
	if s.programs = highest(w.u.New()); s.programs == 0 {
		s.every[faultUpgrade], s.every[faultDowngrade] = 0, 0
	} else if s.every[faultUpgrade] == 0 {
		s.every[faultUpgrade] = faultMeans[faultUpgrade]
	}
}

func (w *userWork) shards() core.ShardID { return 1 }
func (w *userWork) reads() bool          { return w.u.Query != nil }

func (w *userWork) machine(n *node, _ core.ShardID) core.Machine {
	m := &watched{w: w, n: n, m: w.u.New()}
	if w.s.swarm.programs > 0 {
		return &watchedVersions{m, n.running}
	}
	return m
}

// highest returns the highest version that a machine can run.
func highest(m core.Machine) uint64 {
	if v, ok := m.(core.Versioned); ok {
		return v.MaxVersion()
	}
	return 0
}

func (w *userWork) place(o *operation) {
	o.shard = 1
	w.ops[o.id.id()] = o
}

func (w *userWork) drawRead(o *operation) { o.query = w.u.Query(o.r) }
func (w *userWork) readAll(o *operation)  { w.drawRead(o) }

func (w *userWork) drawCommands(o *operation) {
	n := 1
	if o.r.IntN(6) == 0 {
		n = 2 + o.r.IntN(2)
	}
	for i := range n {
		o.encoded = append(o.encoded, append(tag{o.id.id(), byte(i)}.append(nil), w.u.Command(o.r)...))
	}
}

func (w *userWork) describe(o *operation) string {
	if o.kind == core.KindRead {
		return "query " + w.u.show(PartQuery, o.query)
	}
	var all []string
	for _, c := range o.encoded {
		all = append(all, w.u.show(PartCommand, c[tagBytes:]))
	}
	return strings.Join(all, " and ")
}

func (w *userWork) describeAnswer(a *attempt) string {
	if a.op.kind == core.KindRead {
		return w.u.show(PartAnswer, a.req.Result.Answer)
	}
	var all []string
	for _, r := range a.req.Result.Replies {
		all = append(all, w.u.show(PartReply, r))
	}
	return strings.Join(all, " and ")
}

// command is what Decide is given: the same whoever asks, random source included.
func (w *userWork) command(t tag, data []byte, at core.Timestamp, version uint64) core.Command {
	return core.Command{Data: data, Time: at, Version: version, Rand: rand.New(rand.NewPCG(w.s.seed^scramble(t.op+uint64(t.n)<<56), uint64(at)))}
}

// blame ends the run with a fault of the machine's.
func (w *userWork) blame(f *probe.Fault, format string, args ...any) {
	if w.s.failure != nil {
		return
	}
	where := fmt.Sprintf(format, args...)
	if f.Key != nil {
		where += fmt.Sprintf(", key %q", f.Key)
	}
	w.s.fail(f.Rule, "%s", where)
	w.s.failure.Expected, w.s.failure.Seen = f.Expected, f.Seen
}

// watched is a user's machine on a node, with somebody who looks at each of its calls.
type watched struct {
	w *userWork
	n *node
	m core.Machine
	// own are the events that this node has just decided, and will apply next.
	own [][]byte
}

// watchedVersions is a watched machine with versions, in the program that its node runs.
type watchedVersions struct {
	*watched
	program uint64
}

var _ core.Versioned = (*watchedVersions)(nil)

// MaxVersion implements core.Versioned.
func (m *watchedVersions) MaxVersion() uint64 { return m.program }

var errEnded = errors.New("the run has ended") // whatever follows a failure does not count

func (m *watched) Decide(v core.View, c core.Command) (events [][]byte, reply []byte, err error) {
	t, data := untag(c.Data)
	d, f := probe.Decide(m.m, v, m.w.command(t, data, c.Time, c.Version))
	if f != nil {
		m.w.blame(f, "Decide on node %d, of command %s", m.n.id, m.w.u.show(PartCommand, data))
		return nil, nil, errEnded
	}
	k := decidedKey{m.n.id, c.Time}
	m.w.decided[k] = append(m.w.decided[k], decidedCommand{t, data, c.Version, d})
	m.own = nil
	if d.Rejection != nil {
		return nil, nil, d.Rejection
	}
	m.own = encodeEvents(t, d.Events)
	return m.own, d.Reply, nil
}

func encodeEvents(t tag, events [][]byte) (out [][]byte) {
	for _, e := range events {
		out = append(out, append(append(t.append(nil), eventOfMachine), e...))
	}
	if len(events) == 0 {
		out = append(out, append(t.append(nil), eventOfNothing))
	}
	return out
}

// applyTagged has an event as it stands in the log applied, without changing the state.
func applyTagged(m core.Machine, v core.View, e core.Event) ([]probe.Write, *probe.Fault) {
	_, rest := untag(e.Data)
	if rest[0] == eventOfNothing {
		return nil, nil
	}
	e.Data = rest[1:]
	return probe.Apply(m, v, e)
}

func (m *watched) Apply(s core.State, e core.Event) {
	if m.w.s.failure != nil {
		return
	}
	writes, f := applyTagged(m.m, s, e)
	if f != nil {
		m.w.blame(f, "Apply on node %d, of %s", m.n.id, m.w.describeEvent(e.Position, e.Data))
		return
	}
	this := effect{bytes.Clone(e.Data), e.Version, writes}
	if len(m.own) > 0 && bytes.Equal(m.own[0], e.Data) {
		m.own = m.own[1:]
		m.w.wroteAhead(m.n.id, e, this)
	} else {
		m.own = nil
		m.w.wroteLater(m.n, e, this)
	}
	for i := range writes {
		if wr := &writes[i]; wr.Delete {
			s.Delete(wr.Key)
		} else {
			s.Set(wr.Key, wr.Value)
		}
	}
}

func (m *watched) Query(v core.View, q []byte) ([]byte, error) {
	answer, rejection, f := probe.Query(m.m, v, q)
	switch {
	case f != nil:
		m.w.blame(f, "Query on node %d, of %s", m.n.id, m.w.u.show(PartQuery, q))
		return nil, errEnded
	case rejection != nil:
		return nil, rejection
	}
	return answer, nil
}

// describeEvent names an event by its place, its content, and the command that it came from.
func (w *userWork) describeEvent(p core.Position, data []byte) string {
	t, rest := untag(data)
	s := fmt.Sprintf("event %s at %v", w.u.show(PartEvent, rest[1:]), p)
	if o := w.ops[t.op]; o != nil && int(t.n) < len(o.encoded) {
		s += ", which command " + w.u.show(PartCommand, o.encoded[t.n][tagBytes:]) + " was decided into"
	}
	return s
}

// wroteAhead notes what a leader wrote. It is compared when the entry is committed, if ever.
func (w *userWork) wroteAhead(n core.NodeID, e core.Event, this effect) {
	k := aheadKey{n, e.Position.Index}
	a := w.ahead[k]
	if a == nil || a.time != e.Time || int(e.Position.Ordinal) > len(a.events) {
		a = &aheadEntry{time: e.Time}
		w.ahead[k] = a
	}
	if int(e.Position.Ordinal) <= len(a.events) { // what stood there or behind was taken back
		a.events = append(a.events[:e.Position.Ordinal], this)
	}
}

// wroteLater compares what a replica wrote for an event of a committed entry with what its leader wrote, and with the log's replay.
func (w *userWork) wroteLater(n *node, e core.Event, this effect) {
	c, p := w.s.check, e.Position
	if !c.learnUpTo(n, p.Shard, p.Index) {
		return
	}
	o := c.shards[p.Shard]
	leader := c.leaders[leaderKey{p.Shard, core.Term(o.after(p.Index).term)}]
	here := fmt.Sprintf("on node %d", n.id)
	if a := w.ahead[aheadKey{leader, p.Index}]; a != nil && a.time == e.Time && int(p.Ordinal) < len(a.events) && bytes.Equal(a.events[p.Ordinal].data, this.data) {
		if f := probe.CompareWrites(a.events[p.Ordinal].writes, this.writes, fmt.Sprintf("on node %d, which led", leader), here); f != nil {
			w.blame(f, "Apply of %s", w.describeEvent(p, e.Data))
			return
		}
	}
	o.model.(*userModel).compareEffect(here, p, this)
}
