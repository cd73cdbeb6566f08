package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/decree-raft/decree/internal/core"
)

// builtin is the workload on the simulator's own machines: registers on one shard, the bank on the other.
type builtin struct {
	s       *sim
	ids     []*operation       // ids[i] is of the command with id i+1
	digests map[uint64]command // of requests with one command
	keys    uint16             // keys below it may have been used
}

// builtinOp is what an operation on these machines asks for.
type builtinOp struct {
	key  uint16 // of a read
	bank uint16 // the first account of the bank in use
	cmds []command
}

// keysAtOnce are in use at a time. After a while others follow, so that the history of each stays short enough to judge.
const (
	keysAtOnce   = 4
	commandsEach = 60
	// commandsPerBank counts those of the registers too.
	commandsPerBank = 250
)

func newBuiltin(s *sim) *builtin { return &builtin{s: s, digests: map[uint64]command{}} }

func (b *builtin) tune(*swarm)          {}
func (b *builtin) shards() core.ShardID { return shardCount }
func (b *builtin) reads() bool          { return true }

func (b *builtin) machine(n *node, _ core.ShardID) core.Machine {
	if b.s.opts.Nondeterministic && n.id == 1 {
		// Not while it leads: what a leader does is right by definition, and all others would stop.
		return &machine{max: n.program, nondeterministic: func() bool { return b.s.check.someLeader(registers) != n.id && n.rng.IntN(200) == 0 }}
	}
	return &machine{max: n.program}
}

func (b *builtin) newID(o *operation) uint64 {
	b.ids = append(b.ids, o)
	return uint64(len(b.ids))
}

func (b *builtin) byID(id uint64) *operation { return b.ids[id-1] }

func (b *builtin) someKey(r *rand.Rand) uint16 {
	k := uint16(len(b.ids)/(keysAtOnce*commandsEach)*keysAtOnce + r.IntN(keysAtOnce))
	b.keys = max(b.keys, k+2)
	return k
}

// someBank returns the first account of the bank in use.
func (b *builtin) someBank() uint16 {
	k := uint16(len(b.ids) / commandsPerBank * accounts)
	b.keys = max(b.keys, k+accounts)
	return k
}

func (b *builtin) place(o *operation) { o.shard, o.bank = pick(o.r, registers, bank), b.someBank() }

func (b *builtin) drawRead(o *operation) {
	o.key = b.someKey(o.r)
	if o.shard == bank || o.r.IntN(10) == 0 {
		o.key = queryAll
	}
	o.query = query(o.key)
}

func (b *builtin) readAll(o *operation) { o.key, o.query = queryAll, query(queryAll) }

func (b *builtin) describe(o *operation) string {
	switch {
	case o.kind != core.KindRead:
		return fmt.Sprint(o.cmds)
	case o.key == queryAll:
		return "everything"
	}
	return fmt.Sprintf("key %d", o.key)
}

func (b *builtin) describeAnswer(a *attempt) string {
	if a.op.kind == core.KindRead {
		return fmt.Sprintf("%x", a.req.Result.Answer)
	}
	return fmt.Sprintf("%x", a.req.Result.Replies)
}

func (b *builtin) drawCommands(o *operation) {
	n, w := 1, &b.s.swarm
	if o.r.IntN(6) == 0 {
		n = 2 + o.r.IntN(2)
	}
	for i := range n {
		cmd := command{id: b.newID(o)}
		if chance(o.r, w.padChance) {
			cmd.pad = o.r.IntN(w.pad)
		}
		if o.shard == bank {
			from := o.r.IntN(accounts)
			to := (from + 1 + o.r.IntN(accounts-1)) % accounts
			cmd.op, cmd.key, cmd.old = opTransfer, o.bank+uint16(from), int64(o.bank)+int64(to)
			cmd.arg = 1 + o.r.Int64N(startBalance)
		} else {
			b.drawRegister(&cmd, o, i)
		}
		o.cmds = append(o.cmds, cmd)
		o.encoded = append(o.encoded, cmd.encode())
	}
	if n == 1 {
		b.digests[digestOf(o.encoded)] = o.cmds[0]
	}
}

// drawRegister: all commands of a request are on one key, so that keys can be judged one by one.
func (b *builtin) drawRegister(cmd *command, o *operation, i int) {
	if i == 0 {
		cmd.key = b.someKey(o.r)
	} else {
		cmd.key = o.cmds[0].key
	}
	cmd.arg = 1 + o.r.Int64N(20)
	switch p := o.r.IntN(40); {
	case p < 10:
		cmd.op, cmd.arg = opSet, int64(cmd.id)*100
		if p == 0 {
			cmd.arg = 0 // deletes
		}
	case p < 20:
		cmd.op = opAdd
	case p < 30:
		cmd.op, cmd.arg = opCAS, int64(cmd.id)*100
		cmd.old = b.s.check.shards[o.shard].model.(*builtinModel).latest(cmd.key) // likely to be right, and wrong when others are quick
	case p < 38:
		cmd.op, cmd.arg = opTake, 1+o.r.Int64N(1000)
	case p == 38:
		cmd.op = opPanic
	default:
		cmd.op = opHuge
	}
}

func (b *builtin) newModel(o *oracle) model {
	return &builtinModel{b: b, o: o}
}

// builtinModel is the model's own understanding of both machines: it shares no code with them but the encoding of commands.
type builtinModel struct {
	b      *builtin
	o      *oracle
	values [][]valueAt // by key: they are counted from 0
	buf    []byte      // of compare
}

type valueAt struct {
	index   core.Index
	value   int64
	version uint64 // of the machine that wrote it
	pad     int    // bytes behind it
}

func (m *builtinModel) begin(core.Index, uint64, *logEntry) {}
func (m *builtinModel) end(core.Index)                      {}
func (m *builtinModel) applied(*node, core.Index)           {}
func (m *builtinModel) finish()                             {}

func (m *builtinModel) initial() int64 {
	if m.o.shard == bank {
		return startBalance
	}
	return 0
}

// history returns all values that a key has had.
func (m *builtinModel) history(k uint16) []valueAt {
	if int(k) >= len(m.values) {
		return nil
	}
	return m.values[k]
}

// value returns a key's value after an entry.
func (m *builtinModel) value(k uint16, at core.Index) int64 {
	list := m.history(k)
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].index <= at {
			return list[i].value
		}
	}
	return m.initial()
}

func (m *builtinModel) latest(k uint16) int64 { return m.value(k, m.o.last()) }

// sawAt reports whether a decision of entry i can have seen this value: the one before the entry, or any within it.
func (m *builtinModel) sawAt(k uint16, i core.Index, value int64) bool {
	if m.value(k, i-1) == value {
		return true
	}
	for _, v := range m.history(k) {
		if v.index == i && v.value == value {
			return true
		}
	}
	return false
}

func (m *builtinModel) set(k uint16, i core.Index, v int64, pad int) {
	for int(k) >= len(m.values) {
		m.values = append(m.values, nil)
	}
	m.values[k] = append(m.values[k], valueAt{i, v, m.o.version, pad})
}

func (m *builtinModel) request(i core.Index, _ int, _ int64, r *logRequest) {
	if r.outcome.code != "" {
		m.rejection(i, r)
	}
	m.events(i, r)
}

// rejection checks that a rejected single command had to be rejected, on the state at its place.
func (m *builtinModel) rejection(i core.Index, r *logRequest) {
	cmd, ok := m.b.digests[r.digest]
	if !ok {
		return // several commands
	}
	now, code := m.latest(cmd.key), r.outcome.code
	right := false
	switch cmd.op {
	case opCAS:
		right = code == codeMismatch && now != cmd.old
	case opTake, opTransfer:
		right = code == codeShort && now < cmd.arg
	case opPanic:
		right = code == core.CodeMachinePanic
	case opHuge:
		right = code == core.CodeValueTooLarge
	case opSet, opAdd:
	}
	if m.b.s.swarm.narrow > 0 { // whoever led had its own limits
		right = right || code == core.CodeKeyTooLarge || code == core.CodeValueTooLarge && 8+cmd.pad+1 > narrowValueBytes
	}
	if !right || (code == codeMismatch || code == codeShort) && decodeValue(r.outcome.detail) != now {
		m.o.fail("decision", "entry %d rejects %v with %s %x on value %d", i, cmd, code, r.outcome.detail, now)
	}
}

// events replays what was decided in one request, and checks that it is what had to be decided.
func (m *builtinModel) events(i core.Index, r *logRequest) {
	var op *operation
	for n, data := range r.events {
		cmd, value, version := decodeEvent(data)
		if version != m.o.version {
			m.o.fail("version", "entry %d: %v was decided by version %d, and %d is active", i, cmd, version, m.o.version)
		}
		reply, want, ok := m.decide(cmd)
		if !ok || value != want {
			m.o.fail("decision", "entry %d: %v decided %d on value %d", i, cmd, value, m.latest(cmd.key))
		}
		if r.session && (n >= len(r.outcome.replies) || decodeValue(r.outcome.replies[n]) != reply) {
			m.o.fail("decision", "entry %d: %v replies %x, want %d", i, cmd, r.outcome.replies, reply)
		}
		m.set(cmd.key, i, value, cmd.pad)
		if cmd.op == opTransfer {
			to := uint16(cmd.old)
			m.set(to, i, m.latest(to)+cmd.arg, 0)
		}
		this := m.b.byID(cmd.id)
		if n == 0 {
			op = this
			m.o.commit(i, op, len(r.events))
		} else if this != op {
			m.o.fail("log", "entry %d mixes commands of two requests", i)
		}
		op.replies = append(op.replies, encodeValue(reply))
	}
}

// decide is the model's own understanding of the machines.
func (m *builtinModel) decide(c command) (reply, value int64, ok bool) {
	now := m.latest(c.key)
	switch c.op {
	case opSet:
		return now, c.arg, true
	case opAdd:
		return now + c.arg, now + c.arg, true
	case opCAS:
		return now, c.arg, now == c.old
	case opTake, opTransfer:
		return now - c.arg, now - c.arg, now >= c.arg
	case opPanic, opHuge:
	}
	return 0, 0, false
}

func (m *builtinModel) rejected(o *operation, at core.Index, r *core.Rejection) {
	if (r.Code == codeMismatch || r.Code == codeShort) && len(o.cmds) == 1 && !m.sawAt(o.cmds[0].key, at, decodeValue(r.Detail)) {
		m.o.fail("decision", "%v was rejected at index %d on value %x, which was never there", o, at, r.Detail)
	}
}

func (m *builtinModel) read(a *attempt) {
	o, res := a.op, &a.req.Result
	if a.req.Err != nil {
		m.o.fail("read", "%v: %v", o, a.req.Err)
	} else if want := m.answer(o.key, res.Index); !bytes.Equal(want, res.Answer) {
		m.o.fail("read", "%v at index %d: %x, want %x", o, res.Index, res.Answer, want)
	}
}

func (m *builtinModel) compare(n *node, v core.View, at core.Index) {
	got, want := m.buf[:0], m.answer(queryAll, at)
	defer func() { m.buf = got }()
	for key, data := range v.Scan([]byte{'k'}, []byte{'l'}) {
		k := binary.BigEndian.Uint16(key[1:])
		got = appendPair(got, k, decodeValue(data))
		list := m.history(k)
		for len(list) > 0 && list[len(list)-1].index > at {
			list = list[:len(list)-1]
		}
		if len(list) == 0 {
			m.o.fail("state", "node %d at %d: key %d was never set", n.id, at, k)
			return
		}
		is, tag := list[len(list)-1], 0
		if is.version > 0 {
			tag = 1
		}
		if len(data) != 8+is.pad+tag || tag > 0 && uint64(data[len(data)-1]) != is.version {
			m.o.fail("version", "node %d at %d: key %d has %d bytes, ending with %x; it was written under version %d, with %d bytes of padding", n.id, at, k, len(data), data[len(data)-1], is.version, is.pad)
			return
		}
	}
	if !bytes.Equal(got, want) {
		m.o.fail("state", "node %d at %d: %x, want %x", n.id, at, got, want)
	}
}

// answer returns what a query must say at a position.
func (m *builtinModel) answer(k uint16, at core.Index) (b []byte) {
	if k != queryAll {
		if v := m.value(k, at); v != m.initial() || m.touched(k, at) && m.o.shard == bank {
			b = appendPair(b, k, v)
		}
		return b
	}
	for k := range m.b.keys {
		if v := m.value(k, at); m.o.shard == registers && v != 0 || m.o.shard == bank && m.touched(k, at) {
			b = appendPair(b, k, v)
		}
	}
	return b
}

// touched reports whether a key was written up to a position.
func (m *builtinModel) touched(k uint16, at core.Index) bool {
	list := m.history(k)
	return len(list) > 0 && list[0].index <= at
}
