package core

import (
	"errors"
	"slices"
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

// On a disk that takes longer for a write than a round waits, the answers wait behind the write: they count when it is done.
func TestReadAloneOnASlowDisk(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	a := h.ask()
	h.pass(1)
	for i := range 12 {
		for range 8 { // peers answer at once, and the disk after three quarters of an election timeout
			if i > 0 || a.done > 0 || len(h.writes) == 0 {
				h.in.Requests = append(h.in.Requests, &Request{Kind: KindCommand, Shard: 1, Commands: [][]byte{[]byte("x")}, Done: func(*Request) {}})
			}
			h.in.Ticks = 1
			h.pass(75)
			sent := h.sent
			h.sent = nil
			for k := range sent {
				h.answer(&sent[k])
			}
		}
		h.sync()
		h.pass(1)
	}
	if a.done != 1 || a.req.Err != nil {
		t.Fatalf("the read ended %d times, with %v, want an answer", a.done, a.req.Err)
	}
}

// What was asked for again need not begin again: any answer that was asked for after the reads came will do, and none that was before.
func TestReadAloneAskedAgain(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.settle(0)
	h.gone = map[uint64]bool{1: true, 3: true}
	first := h.ask()
	h.pass(1)
	heartbeats := h.sent
	second := h.ask() // after the round began
	h.pass(1)
	for range 9 { // more than half an election timeout: it is asked again, for both
		h.in.Ticks = 1
		h.pass(50)
	}
	h.gone, h.sent = nil, nil
	for i := range heartbeats {
		h.answer(&heartbeats[i])
	}
	h.pass(1)
	if first.done != 1 || first.req.Err != nil {
		t.Fatalf("the late answer did not count: the first read ended %d times, with %v", first.done, first.req.Err)
	}
	if second.done != 0 {
		t.Fatal("the second read was answered by a round that began before it came")
	}
	h.settle(4)
	if second.done != 1 || second.req.Err != nil {
		t.Fatalf("the second read ended %d times, with %v", second.done, second.req.Err)
	}
}

// Who asked a leader that is none any more asks the next one at once, and does not wait for an answer that may be lost.
func TestReadIndexAsksTheNextLeaderAtOnce(t *testing.T) {
	h := newHand(t, Limits{})
	term := uint64(h.replica().raftTerm) + 1
	follow := func(leader uint64) {
		h.message(raftpb.Message{Type: raftpb.MsgHeartbeat, From: leader, Term: term})
		h.pass(1)
		h.sync()
		h.pass(1)
		term++
	}
	asks := func() (to []uint64) {
		for _, m := range h.sent {
			if m.Type == raftpb.MsgReadIndex {
				to = append(to, m.To)
			}
		}
		h.sent = nil
		return to
	}
	follow(1)
	h.in.Requests = append(h.in.Requests, &Request{Kind: KindRead, Level: ReadIndex, Shard: 1, Done: func(*Request) {}})
	h.pass(1)
	if to := asks(); !slices.Equal(to, []uint64{1}) {
		t.Fatalf("nodes %v were asked, want the leader, 1", to)
	}
	follow(3)
	if to := asks(); !slices.Equal(to, []uint64{3}) {
		t.Fatalf("nodes %v were asked, want the next leader, 3", to)
	}
}
