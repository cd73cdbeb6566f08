package sim

import (
	"encoding/binary"

	"github.com/decree-raft/decree/internal/core"
)

// History is what clients saw of the registers and of the bank, for an outside judge of linearizability.
// It knows what became of every command whose outcome the client was not told: the log says so.
type History struct {
	Registers map[uint16][]HistoryOp
	Banks     map[uint16][]HistoryOp // by first account
}

// HistoryOp is a request and its outcome.
type HistoryOp struct {
	Client       int
	Call, Return int64      // virtual ns
	Index        core.Index // where the log has it; a read: the last entry that it saw
	Ordinal      int        // among the commands that the entry made happen
	Read         bool
	Commands     []command // of a write
	Rejected     core.Code // of a write, else ""
	Value        int64     // of a read of a register; of a rejection, what it was rejected on
	Replies      []int64   // of a write that happened
	Balances     [accounts]int64
}

func (b *builtin) history() History {
	h := History{Registers: map[uint16][]HistoryOp{}, Banks: map[uint16][]HistoryOp{}}
	for _, o := range b.s.check.ops {
		switch o.kind {
		case core.KindRead:
			historyReads(&h, o)
		case core.KindCommand:
			if op, ok := historyWrite(o); ok {
				if o.shard == bank {
					h.Banks[o.bank] = append(h.Banks[o.bank], op)
				} else {
					h.Registers[o.cmds[0].key] = append(h.Registers[o.cmds[0].key], op)
				}
			}
		}
	}
	return h
}

func historyReads(h *History, o *operation) {
	if o.level != core.Linearizable && o.level != core.ReadIndex || (o.key == queryAll) != (o.shard == bank) {
		return
	}
	for _, a := range o.attempts {
		if a.answers == 0 || a.req.Err != nil {
			continue
		}
		op := HistoryOp{Client: o.client.num, Call: a.givenAt, Return: a.at, Index: a.req.Result.Index, Read: true}
		pairs := a.req.Result.Answer
		if o.shard == registers {
			if len(pairs) > 0 {
				op.Value = decodeValue(pairs[2:])
			}
			h.Registers[o.key] = append(h.Registers[o.key], op)
			continue
		}
		for i := range op.Balances {
			op.Balances[i] = startBalance
		}
		for ; len(pairs) > 0; pairs = pairs[10:] {
			if k := int(binary.BigEndian.Uint16(pairs)) - int(o.bank); k >= 0 && k < accounts {
				op.Balances[k] = decodeValue(pairs[2:])
			}
		}
		h.Banks[o.bank] = append(h.Banks[o.bank], op)
	}
}

// historyWrite leaves out what had no effect and was answered to nobody.
func historyWrite(o *operation) (op HistoryOp, ok bool) {
	op = HistoryOp{Client: o.client.num, Call: o.asked, Commands: o.cmds}
	if o.committed != 0 {
		op.Return, op.Index, op.Ordinal = o.committedAt, o.committed, o.ordinal
		for _, r := range o.replies {
			op.Replies = append(op.Replies, decodeValue(r))
		}
		if o.answered != 0 {
			op.Return = o.answered
		}
		return op, true
	}
	for _, a := range o.attempts {
		if a.answers > 0 && a.verdict() == rejected && (a.code() == codeMismatch || a.code() == codeShort) {
			op.Return, op.Rejected, op.Index = a.at, a.code(), a.req.Result.Index
			op.Value = rejectedOn(a.req.Err)
			return op, true
		}
	}
	return op, false
}

func rejectedOn(err error) int64 {
	r, _ := err.(*core.Rejection)
	return decodeValue(r.Detail)
}
