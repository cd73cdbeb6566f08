package core

import (
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Reads at tokens that nobody has yet take a quarter of the room for calls at most, so that whoever may only read cannot keep commands out. A leader refuses
// them at once: what it has not got, nobody has been told of.
//
// Mutations with which it was seen to fail: token reads have no bound of their own; a leader lets them wait; what does not wait any more goes on counting; a leader does not say that it should be
// asked again.
func TestTokensThatNobodyHas(t *testing.T) {
	h := newHand(t, Limits{MaxQueuedRequests: 40})
	var codes []Code
	var last *Error
	ask := func(level Level, token Index) {
		h.in.Requests = append(h.in.Requests, &Request{Kind: KindRead, Shard: 1, Level: level, Token: token, Done: func(q *Request) {
			if e := (*Error)(nil); errors.As(q.Err, &e) {
				codes, last = append(codes, e.Code), e
			}
		}})
	}
	count := func(c Code) (n int) {
		for _, got := range codes {
			if got == c {
				n++
			}
		}
		return n
	}
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: []raftpb.Entry{{Term: 1, Index: 1}}, Commit: 1})
	h.pass(1)
	h.sync()
	h.pass(1)
	for range 2 {
		codes = nil
		for range 40 {
			ask(AtToken, 1<<63)
		}
		h.pass(1)
		if n := count(CodeOverloaded); n != 30 || len(codes) != n {
			t.Fatalf("%d of 40 were refused for want of room, want 30: %v", n, codes)
		}
		if got := h.replica().pending.requests; got != 10 {
			t.Errorf("%d are pending, want 10", got)
		}
		// They are given up, and others have their room.
		h.message(raftpb.Message{Type: raftpb.MsgHeartbeat, From: 1, Term: 1})
		h.in.Ticks = 1
		h.pass(60_000)
		if n := count(CodeNotReached); n != 10 || h.replica().pending.requests != 0 {
			t.Fatalf("%d were given up, want 10; %d are pending", n, h.replica().pending.requests)
		}
	}
	ask(AtToken, 2) // one that is reached
	h.pass(1)
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Index: 1, LogTerm: 1, Entries: []raftpb.Entry{{Term: 1, Index: 2}}, Commit: 2})
	h.pass(1)
	h.sync()
	h.pass(1)
	if r := h.replica(); r.reads.tokens != (pendingBound{}) || r.applied != 2 {
		t.Errorf("at %d, %+v are counted as waiting", r.applied, r.reads.tokens)
	}

	h = newHand(t, Limits{})
	h.lead()
	codes = nil
	ask(AtToken, 1<<63)
	h.pass(1)
	if count(CodeNotReached) != 1 || h.replica().pending.requests != 0 {
		t.Errorf("a leader answers %v, %d are pending", codes, h.replica().pending.requests)
	}
	// It may have been deposed, and not know it: whoever has a good token asks again, and does not do without it.
	if last == nil || last.RetryAfter <= 0 || !strings.Contains(last.Message, "ask again") {
		t.Errorf("a leader says %v", last)
	}
	ask(AtToken, h.replica().applied)
	h.pass(1)
	if len(codes) != 1 {
		t.Errorf("a token that it has: %v", codes)
	}
}
