package core

import (
	"fmt"
	"testing"
)

// entries returns how many requests were decided into each entry that is being written.
func (h *hand) entries() (requests []int) {
	for _, w := range h.writes {
		for _, rec := range w.Records {
			for _, e := range rec.Entries {
				r := reader{b: e.Data}
				if header := r.header(); r.err == nil {
					requests = append(requests, header.requests)
				}
			}
		}
	}
	return requests
}

// A machine that takes a millisecond for a command does not decide a hundred of them before the first is written: a few go out, and the next are decided beside that.
// Whatever takes no time is one entry.
//
// Mutations with which it was seen to fail: no look at the clock; a late batch is filled on before it goes out; the next is begun before it goes out; what is left over waits for an input.
func TestDecidesWhileItWrites(t *testing.T) {
	const commands = 100
	for _, slow := range []bool{false, true} {
		t.Run(map[bool]string{false: "quick", true: "slow"}[slow], func(t *testing.T) {
			h := newHand(t, Limits{})
			h.lead()
			if slow {
				h.pace = func() int64 { return int64(h.replica().pace.decided) * 1e6 }
			}
			var ended []int
			for i := range commands {
				h.in.Requests = append(h.in.Requests, &Request{Shard: 1, Kind: KindCommand, Commands: [][]byte{fmt.Appendf(nil, "+%d", i)}, Done: func(q *Request) {
					if q.Err != nil {
						t.Errorf("command %d: %v", i, q.Err)
					}
					ended = append(ended, i)
				}})
			}
			h.pass(1)
			if !slow {
				if got := fmt.Sprint(h.entries()); got != "[100]" || h.w.More() {
					t.Errorf("entries with %s requests are written; more to decide: %v", got, h.w.More())
				}
				h.settle(0)
				return
			}
			few := h.entries()
			if len(few) != 1 || few[0] < 2 || few[0] > 8 {
				t.Fatalf("in the first pass entries with %v requests are written", few)
			}
			if !h.w.More() {
				t.Fatal("nothing is left over")
			}
			// Beside the write the next are decided, and none is added to it.
			h.pass(1)
			h.pass(1)
			if got := h.entries(); len(got) != 1 {
				t.Errorf("beside a write %v are written", got)
			}
			open := 0
			if b := h.replica().lead.open; b != nil {
				open = len(b.decided)
			}
			if open <= few[0] || open > 2*few[0] || !h.w.More() {
				t.Errorf("in two passes beside the write %d are decided", open)
			}
			// They go out before more are decided.
			h.sync()
			h.pass(1)
			if got := h.entries(); len(got) != 1 || got[0] != open {
				t.Errorf("after %d were decided beside the write, entries with %v are written", open, got)
			}
			if h.replica().lead.open != nil {
				t.Error("more are decided before they go out")
			}
			for passes := 0; h.w.More(); passes++ {
				if h.pass(1); passes > commands {
					t.Fatal("there is always more to decide")
				}
			}
			h.settle(0)
			if len(ended) != commands {
				t.Fatalf("%d of %d have an outcome", len(ended), commands)
			}
			for i, k := range ended {
				if i != k {
					t.Fatalf("they end in this order: %v", ended)
				}
			}
		})
	}
}

// What a pass has left over is no reason for one after the other while leadership is on its way to another, and nothing may be decided.
//
// Mutation with which it was seen to fail: that an earlier pass took long enough counts for this one.
func TestWaitsForATransfer(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.pace = func() int64 { return int64(h.replica().pace.decided) * 1e6 }
	for i := range 100 {
		h.in.Requests = append(h.in.Requests, &Request{Shard: 1, Kind: KindCommand, Commands: [][]byte{fmt.Appendf(nil, "+%d", i)}, Done: func(*Request) {}})
	}
	h.pass(1)
	if !h.w.More() {
		t.Fatal("nothing is left over")
	}
	if err := h.w.Transfer(1, 1); err != nil {
		t.Fatal(err)
	}
	h.pass(1)
	if h.w.More() {
		t.Error("the next pass is due at once, and can decide nothing")
	}
}
