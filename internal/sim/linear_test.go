package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/decree-raft/decree/internal/core"
)

// The judge: porcupine on what clients saw. It shares nothing with the oracle but the history.

const judgePatience = 20 * time.Second

// judge reports whether the history is linearizable: each register for itself, each bank as a whole.
func judge(h *History) error {
	for key, ops := range h.Registers {
		if err := judgeOne(registerModel, ops); err != nil {
			return fmt.Errorf("register %d: %w", key, err)
		}
	}
	for first, ops := range h.Banks {
		if err := judgeOne(bankModel(int64(first)), ops); err != nil {
			return fmt.Errorf("bank from account %d: %w", first, err)
		}
	}
	return nil
}

// judgeOne first has the order judged that the log gives: it leaves next to nothing to search for. If that is a
// legal order, and goes against nobody's clock, it proves the history linearizable. If not, the judge gets the
// history as the clients saw it, and has the last word.
func judgeOne(m porcupine.Model, ops []HistoryOp) error {
	narrow, wide := make([]porcupine.Operation, len(ops)), make([]porcupine.Operation, len(ops))
	for i := range ops {
		o := &ops[i]
		wide[i] = porcupine.Operation{ClientId: o.Client, Input: o, Output: o, Call: o.Call, Return: o.Return}
		narrow[i] = wide[i]
		narrow[i].Call, narrow[i].Return = place(o)
	}
	if inRealTime(ops) && porcupine.CheckOperationsTimeout(m, narrow, judgePatience) == porcupine.Ok {
		return nil
	}
	switch porcupine.CheckOperationsTimeout(m, wide, judgePatience) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		return fmt.Errorf("%d operations are not linearizable", len(ops))
	}
	return fmt.Errorf("no verdict on %d operations within %v", len(ops), judgePatience)
}

// place is where an operation stands in the log: what happened has a point, what was
// rejected may stand anywhere in its entry, and a read stands at the end.
func place(o *HistoryOp) (from, to int64) {
	const room = 1 << 20 // more than twice the operations of an entry
	entry := int64(o.Index) * room
	switch {
	case o.Read:
		return entry + room - 2, entry + room - 1
	case o.Rejected != "":
		return entry, entry + room - 3
	}
	return entry + 1 + 2*int64(o.Ordinal), entry + 2 + 2*int64(o.Ordinal)
}

// inRealTime reports whether the order of the log is that of time, for operations of which one ended before the other began.
func inRealTime(ops []HistoryOp) bool {
	byReturn := make([]*HistoryOp, len(ops))
	for i := range ops {
		byReturn[i] = &ops[i]
	}
	byCall := slices.Clone(byReturn)
	slices.SortFunc(byReturn, func(a, b *HistoryOp) int { return cmp.Compare(a.Return, b.Return) })
	slices.SortFunc(byCall, func(a, b *HistoryOp) int { return cmp.Compare(a.Call, b.Call) })
	ended, highest := 0, int64(0) // the earliest place that an operation may have after those that ended
	for i := range byCall {
		for ended < len(byReturn) && byReturn[ended].Return < byCall[i].Call {
			from, _ := place(byReturn[ended])
			highest = max(highest, from)
			ended++
		}
		if _, to := place(byCall[i]); to < highest {
			return false
		}
		if from, to := place(byCall[i]); to-from > 1 && from < highest {
			return false // two rejections of one entry could stand the wrong way round: let the judge see
		}
	}
	return true
}

var registerModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		v, o := state.(int64), input.(*HistoryOp)
		if o.Read {
			return o.Value == v, v
		}
		after, replies, rejected := v, []int64(nil), core.Code("")
		for _, c := range o.Commands {
			switch {
			case c.op == opSet:
				replies, after = append(replies, after), c.arg
			case c.op == opAdd:
				after += c.arg
				replies = append(replies, after)
			case c.op == opCAS && after == c.old:
				replies, after = append(replies, after), c.arg
			case c.op == opTake && after >= c.arg:
				after -= c.arg
				replies = append(replies, after)
			case c.op == opCAS:
				rejected = codeMismatch
			default:
				rejected = codeShort
			}
			if rejected != "" {
				return o.Rejected == rejected && o.Value == after, v
			}
		}
		return o.Rejected == "" && equal(replies, o.Replies), after
	},
	Equal: func(a, b any) bool { return a == b },
}

// bankModel is the bank whose accounts begin at first.
func bankModel(first int64) porcupine.Model {
	var start [accounts]int64
	for i := range start {
		start[i] = startBalance
	}
	return porcupine.Model{
		Init: func() any { return start },
		Step: func(state, input, _ any) (bool, any) {
			before, o := state.([accounts]int64), input.(*HistoryOp)
			if o.Read {
				return o.Balances == before, before
			}
			b := before
			for i, c := range o.Commands {
				from := &b[int64(c.key)-first]
				if *from < c.arg {
					return o.Rejected == codeShort && o.Value == *from, before
				}
				*from -= c.arg
				if o.Rejected == "" && o.Replies[i] != *from {
					return false, before
				}
				b[c.old-first] += c.arg
			}
			return o.Rejected == "", b
		},
		Equal: func(a, b any) bool { return a == b },
	}
}

func equal(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
