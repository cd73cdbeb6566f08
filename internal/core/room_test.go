package core

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// request has a request answered.
func (h *hand) request(q Request) (Result, error) {
	h.t.Helper()
	ended := false
	q.Shard, q.Done = 1, func(*Request) { ended = true }
	h.in.Requests = append(h.in.Requests, &q)
	h.settle(2)
	if !ended {
		h.t.Fatal("no answer")
	}
	return q.Result, q.Err
}

// opens opens a session.
func (h *hand) opens() SessionID {
	h.t.Helper()
	opened, err := h.request(Request{Kind: KindOpenSession})
	if err != nil {
		h.t.Fatal(err)
	}
	return opened.Session
}

// Where the leader's disk is low, who asks again for what has happened, or is under way, is told its outcome. What is new is refused, unless it makes room.
//
// Mutations with which it was seen to fail: refuses does not look into the session; it looks for outcomes only, or for what is under way only.
func TestAskingAgainOnALowDisk(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	session := h.opens()
	command := func(seq uint64) Request {
		return Request{Kind: KindCommand, Session: session, Sequence: seq, Commands: [][]byte{[]byte("+a")}}
	}
	first, err := h.request(command(1))
	if err != nil {
		t.Fatal(err)
	}
	var under, again Request = command(2), command(2)
	for _, q := range []*Request{&under, &again} {
		q.Shard, q.Err, q.Done = 1, errors.New("no answer"), func(*Request) {}
		h.in.Requests = append(h.in.Requests, q)
		h.pass(1)
		h.w.SetDiskLow(true)
	}
	h.settle(2)
	if under.Err != nil || again.Err != nil || again.Result.Index != under.Result.Index {
		t.Errorf("under way: %v at %d; asked again: %v at %d", under.Err, under.Result.Index, again.Err, again.Result.Index)
	}
	if res, err := h.request(command(1)); err != nil || res.Index != first.Index {
		t.Errorf("asked again: at %d, %v; it happened at %d", res.Index, err, first.Index)
	}
	low := &Error{Kind: ErrNotProposed, Code: CodeDiskLow}
	for name, q := range map[string]Request{"a new number": command(3), "without a session": {Kind: KindCommand, Commands: [][]byte{[]byte("+a")}}} {
		if _, err := h.request(q); !errors.Is(err, low) {
			t.Errorf("%s: %v", name, err)
		}
	}
	room := command(4)
	room.MakesRoom = true
	if _, err := h.request(room); err != nil {
		t.Errorf("what makes room: %v", err)
	}
}

// A node that does not lead says so although its disk is low: clients wait for a leader's disk, and this one's is another.
//
// Mutation with which it was seen to fail: refuses does not ask who leads.
func TestLowDiskOfAFollower(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.w.SetDiskLow(true)
	h.message(raftpb.Message{From: 3, Type: raftpb.MsgHeartbeat, Term: uint64(h.replica().raftTerm) + 1})
	h.pass(1)
	var e *Error
	if _, err := h.request(Request{Kind: KindCommand, Commands: [][]byte{[]byte("+a")}}); !errors.As(err, &e) || e.Code != CodeNotLeader || e.Leader != 3 {
		t.Errorf("it says %v", err)
	}
}
