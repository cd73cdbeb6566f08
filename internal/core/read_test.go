package core

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// ask hands in a linearizable read, which the next pass takes.
func (h *hand) ask() *asked {
	a := &asked{}
	a.req = &Request{Kind: KindRead, Shard: 1, Done: func(*Request) { a.done++ }}
	h.in.Requests = append(h.in.Requests, a.req)
	return a
}

type asked struct {
	req  *Request
	done int
}

// A read that no command is there for has leadership confirmed, and writes nothing.
func TestReadAloneWritesNothing(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("x")
	last := h.replica().log.last()
	a := h.ask()
	h.pass(1)
	if a.done != 0 {
		t.Fatal("the read was answered before a quorum confirmed the leader")
	}
	h.settle(0)
	if a.done != 1 || a.req.Err != nil || a.req.Result.Index != Index(last) {
		t.Fatalf("the read ended %d times, with %v, at index %d, want once at %d", a.done, a.req.Err, a.req.Result.Index, last)
	}
	if now := h.replica().log.last(); now != last {
		t.Fatalf("the log went from %d to %d for a read", last, now)
	}
}

// With a command it shares the entry.
func TestReadRidesWithACommand(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	last := h.replica().log.last()
	a := h.ask()
	h.submit("x")
	if a.done != 1 || a.req.Err != nil || a.req.Result.Index != Index(last+1) {
		t.Fatalf("the read ended %d times, with %v, at index %d, want once at %d", a.done, a.req.Err, a.req.Result.Index, last+1)
	}
}

// Who sends a command and then a read, without waiting, must see the command: it may be in flight, and not committed.
func TestReadAloneComesAfterWhatIsInFlight(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.deaf = map[uint64]bool{1: true, 3: true} // they confirm the leader, and acknowledge nothing
	h.submit("x")
	last := h.replica().log.last()
	a := h.ask()
	h.settle(4)
	if a.done != 0 {
		t.Fatalf("the read was answered at index %d, and the command before it at %d is not committed", a.req.Result.Index, last)
	}
	h.deaf = nil
	h.settle(4)
	if a.done != 1 || a.req.Err != nil || a.req.Result.Index != Index(last) {
		t.Fatalf("the read ended %d times, with %v, at index %d, want once at %d", a.done, a.req.Err, a.req.Result.Index, last)
	}
}

// [G6] It ends with the leadership: what it waits for may never be in another leader's log.
func TestReadAloneEndsWithTheLeadership(t *testing.T) {
	for _, when := range []string{"asked", "wanted", "confirmed"} {
		t.Run(when, func(t *testing.T) {
			h := newHand(t, Limits{})
			h.lead()
			h.deaf = map[uint64]bool{1: true, 3: true}
			if when == "confirmed" {
				h.submit("x")
			}
			a := h.ask()
			if when == "confirmed" {
				h.settle(4)
			} else {
				h.pass(1)
			}
			if when == "wanted" {
				a = h.ask() // while the round for the first is under way
				h.pass(1)
			}
			q := &h.replica().reads
			if got := map[string]int{"asked": len(q.asked), "wanted": len(q.wanted), "confirmed": len(q.waiting)}; got[when] == 0 {
				t.Fatalf("the read is not %s: %v", when, got)
			}
			h.message(raftpb.Message{Type: raftpb.MsgHeartbeat, From: 1, Term: uint64(h.replica().raftTerm) + 1})
			h.pass(1)
			var e *Error
			if a.done != 1 || !errors.As(a.req.Err, &e) || e.Code != CodeLeadershipLost || e.Kind != ErrNotProposed {
				t.Fatalf("the read ended %d times, with %v, want once, as not proposed", a.done, a.req.Err)
			}
		})
	}
}
