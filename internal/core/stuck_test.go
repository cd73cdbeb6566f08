package core

import (
	"errors"
	"testing"
)

// A leader whose flush does not end hands leadership over when it has been unable to decide for some election timeouts, and what waits for it ends as not
// proposed. When the flush ends after all, and nobody has taken over, it goes on.
//
// Mutations with which it was seen to fail: nobody looks; leadership stays; the queue is kept; calls are taken although nothing is decided.
func TestFlushThatHangs(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	h.hung = true
	for c := 'A'; c <= 'H'; c++ {
		h.submit(string(c))
	}
	r := h.replica()
	if !r.stuffed(4) {
		t.Fatal("not stuffed")
	}
	var got []error
	ask := func(q Request) {
		q.Shard, q.Done = 1, func(q *Request) { got = append(got, q.Err) }
		h.in.Requests = append(h.in.Requests, &q)
	}
	refused := func(want int) {
		t.Helper()
		if len(got) != want {
			t.Fatalf("%d calls have ended, want %d", len(got), want)
		}
		for _, err := range got {
			if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeOverloaded || !errors.Is(err, ErrNotProposed) {
				t.Errorf("got %v, want overloaded, not proposed", err)
			}
		}
		got = nil
	}
	ask(Request{Kind: KindCommand, Commands: [][]byte{[]byte("x")}})
	ask(Request{Kind: KindRead})
	h.settle(4 * r.cfg.ElectionTicks)
	if len(got) > 0 || len(h.handedTo) > 0 {
		t.Fatalf("too early: %v, handed to %v", got, h.handedTo)
	}
	h.settle(4 * r.cfg.ElectionTicks)
	refused(2)
	if len(h.handedTo) == 0 {
		t.Error("leadership stays")
	}
	ask(Request{Kind: KindCommand, Commands: [][]byte{[]byte("x")}})
	ask(Request{Kind: KindOpenSession})
	ask(Request{Kind: KindRead})
	h.pass(1)
	refused(3)
	ask(Request{Kind: KindRead, Level: Stale})
	h.pass(1)
	if len(got) != 1 || got[0] != nil {
		t.Errorf("a stale read ends with %v", got)
	}
	got = nil
	h.hung = false
	h.settle(2 * r.cfg.ElectionTicks)
	ask(Request{Kind: KindCommand, Commands: [][]byte{[]byte("x")}})
	h.settle(2)
	if r.lead == nil || len(got) != 1 || got[0] != nil {
		t.Errorf("after the flush: %v, leads %v", got, r.lead != nil)
	}
}
