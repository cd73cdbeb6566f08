package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/decree-raft/decree/internal/core"
)

// Two machines: registers, a map of integers, and the bank, accounts whose sum
// never changes. A command has a unique id, and its event says what was decided and
// from what, so that the oracle can check every decision on its own.

type op uint8

const (
	opSet      op = iota // registers: key = arg; replies with the value before
	opAdd                // key += arg; replies with the value after
	opCAS                // key = arg if it is old; replies with old, rejects with the value
	opTake               // key -= arg if there is as much; replies with the value after, rejects with the value
	opPanic              // the leader's Apply panics half-way: must leave nothing
	opHuge               // Apply breaks a limit half-way: must leave nothing
	opTransfer           // bank: arg from key to old (an account); replies with the balance after, rejects with the balance
)

const (
	codeMismatch core.Code = "mismatch"
	codeShort    core.Code = "short"
)

// A bank has few accounts, and after a while another bank follows, with accounts of its own.
const (
	accounts     = 5
	startBalance = 100
)

type command struct {
	id  uint64
	op  op
	key uint16
	arg int64
	old int64
	pad int // bytes that make it large
}

const commandBytes = 8 + 1 + 2 + 8 + 8

func (c command) encode() []byte {
	b := make([]byte, 0, commandBytes+c.pad)
	b = binary.BigEndian.AppendUint64(b, c.id)
	b = append(b, byte(c.op))
	b = binary.BigEndian.AppendUint16(b, c.key)
	b = binary.BigEndian.AppendUint64(b, uint64(c.arg))
	b = binary.BigEndian.AppendUint64(b, uint64(c.old))
	b = b[:commandBytes+c.pad]
	for i := range b[commandBytes:] {
		b[commandBytes+i] = byte(c.id) + byte(i)
	}
	return b
}

func decodeCommand(b []byte) command {
	return command{
		id: binary.BigEndian.Uint64(b), op: op(b[8]), key: binary.BigEndian.Uint16(b[9:]),
		arg: int64(binary.BigEndian.Uint64(b[11:])), old: int64(binary.BigEndian.Uint64(b[19:])), pad: len(b) - commandBytes,
	}
}

func (c command) String() string {
	return fmt.Sprintf("#%d %s(key %d, %d, %d)", c.id, [...]string{"set", "add", "cas", "take", "panic", "huge", "transfer"}[c.op], c.key, c.arg, c.old)
}

// An event is the command's bytes and, behind them, the decided value and the version of the machine that decided.
func encodeEvent(command []byte, value int64, version uint64) []byte {
	b := append(make([]byte, 0, len(command)+9), command...)
	return append(binary.BigEndian.AppendUint64(b, uint64(value)), byte(version))
}

func decodeEvent(b []byte) (c command, value int64, version uint64) {
	n := len(b) - 9
	return decodeCommand(b[:n]), int64(binary.BigEndian.Uint64(b[n:])), uint64(b[n+8])
}

// stored is what is written for a value.
func stored(v int64, pad []byte, version uint64) []byte {
	b := append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(pad)+1), uint64(v)), pad...)
	if version > 0 {
		b = append(b, byte(version))
	}
	return b
}

func encodeValue(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }

func decodeValue(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) }

func keyName(k uint16) []byte { return []byte{'k', byte(k >> 8), byte(k)} }

// queryAll asks for everything instead of one key.
const queryAll = uint16(0xffff)

func query(k uint16) []byte { return binary.BigEndian.AppendUint16(nil, k) }

// machine is both machines: a shard's commands decide which it is.
type machine struct {
	// nondeterministic, if set, makes Apply write something else now and then: a user's fault, which must be found out.
	nondeterministic func() bool
	max              uint64 // the highest version that this program can run
}

var _ core.Versioned = (*machine)(nil)

// MaxVersion implements core.Versioned. From version 1 on, each value ends with the version under which it was written, and each event
// says under which it was decided.
func (m *machine) MaxVersion() uint64 { return m.max }

func get(v core.View, c op, k uint16) int64 {
	data, ok := v.Get(keyName(k))
	if !ok && c == opTransfer {
		return startBalance
	}
	if !ok {
		return 0
	}
	return decodeValue(data)
}

// Decide: the oracle and the judge have their own understanding of the commands, and share no code with it.
func (m *machine) Decide(v core.View, c core.Command) (events [][]byte, reply []byte, err error) {
	cmd := decodeCommand(c.Data)
	now := get(v, cmd.op, cmd.key)
	next, reply := now, encodeValue(now)
	reject := func(code core.Code) error {
		return &core.Rejection{Code: code, Message: cmd.String(), Detail: encodeValue(now)}
	}
	switch cmd.op {
	case opSet:
		next = cmd.arg
	case opAdd:
		next = now + cmd.arg
		reply = encodeValue(next)
	case opCAS:
		if now != cmd.old {
			return nil, nil, reject(codeMismatch)
		}
		next = cmd.arg
	case opTake, opTransfer:
		if now < cmd.arg {
			return nil, nil, reject(codeShort)
		}
		next = now - cmd.arg
		reply = encodeValue(next)
	}
	return [][]byte{encodeEvent(c.Data, next, c.Version)}, reply, nil
}

func (m *machine) Apply(s core.State, e core.Event) {
	cmd, value, _ := decodeEvent(e.Data)
	pad := e.Data[commandBytes : commandBytes+cmd.pad]
	switch cmd.op {
	case opPanic:
		s.Set(keyName(cmd.key), encodeValue(-1))
		s.Delete(keyName(cmd.key + 1))
		panic("as ordered")
	case opHuge:
		s.Set(keyName(cmd.key), encodeValue(-1))
		s.Set(keyName(cmd.key+1), make([]byte, maxValueBytes+1))
	case opTransfer:
		to := uint16(cmd.old)
		other := get(s, cmd.op, to)
		s.Set(keyName(cmd.key), stored(value, pad, e.Version))
		s.Set(keyName(to), stored(other+cmd.arg, nil, e.Version))
	default:
		if m.nondeterministic != nil && m.nondeterministic() {
			value++
		}
		if value == 0 {
			s.Delete(keyName(cmd.key))
		} else {
			s.Set(keyName(cmd.key), stored(value, pad, e.Version))
		}
	}
}

// Query answers with (key, value) pairs: of one key, or of all that are set.
func (m *machine) Query(v core.View, q []byte) (answer []byte, err error) {
	k := binary.BigEndian.Uint16(q)
	if k != queryAll {
		if data, ok := v.Get(keyName(k)); ok {
			answer = appendPair(answer, k, decodeValue(data))
		}
		return answer, nil
	}
	for key, data := range v.Scan([]byte{'k'}, []byte{'l'}) {
		answer = appendPair(answer, binary.BigEndian.Uint16(key[1:]), decodeValue(data))
	}
	return answer, nil
}

func appendPair(b []byte, k uint16, v int64) []byte {
	b = binary.BigEndian.AppendUint16(b, k)
	return binary.BigEndian.AppendUint64(b, uint64(v))
}
