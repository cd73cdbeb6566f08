package core

import (
	"bytes"
	"errors"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/wal"
)

// decidedBy returns the entries that a leader under these limits makes of the commands, after that of its election.
func decidedBy(t *testing.T, limits Limits, commands ...string) (entries []raftpb.Entry) {
	h := newHand(t, limits)
	h.lead()
	for _, c := range commands {
		h.submit(c)
	}
	r := h.replica()
	for _, e := range r.log.slice(1, r.log.last()) {
		e.Term = 1
		entries = append(entries, e)
	}
	return entries
}

// Limits are each node's own: what one has decided, the others apply, at once and again after a restart.
func TestLimitsAreTheLeaders(t *testing.T) {
	long, short := string(bytes.Repeat([]byte("k"), 6<<10)), "k"
	wide, narrow := Limits{MaxKeyBytes: 8 << 10}, Limits{MaxKeyBytes: 4 << 10, MaxValueBytes: 4 << 10, FlushBytes: 1 << 20}
	entries := decidedBy(t, wide, "+"+long, "+"+short)
	h := newHand(t, narrow)
	n := uint64(len(entries))
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: entries, Commit: n})
	h.settle(0)
	has := func(key string, want bool) {
		t.Helper()
		if h.stopped != nil {
			t.Fatalf("the replica stopped: %v", h.stopped)
		}
		if _, ok := h.shard.Get([]byte(key)); ok != want {
			t.Errorf("a key of %d bytes is there: %v, want %v", len(key), ok, want)
		}
	}
	has(long, true)
	has(short, true)

	h.close()
	log := wal.ShardLog{HardState: wal.HardState{Term: 1, Commit: n}}
	for _, e := range entries {
		log.Entries = append(log.Entries, wal.Entry{Index: e.Index, Term: e.Term, Type: uint8(e.Type), Data: e.Data})
	}
	h.open(log)
	h.last = map[uint64]uint64{1: n, 3: n}
	h.lead()
	has(long, true)

	// As the leader it keeps to its own limits, and can still delete what is over them.
	var rejected error
	h.in.Requests = append(h.in.Requests, &Request{Kind: KindCommand, Shard: 1, Commands: [][]byte{[]byte("+" + long)}, Done: func(q *Request) { rejected = q.Err }})
	h.settle(2)
	if !errors.Is(rejected, &Rejection{Code: CodeKeyTooLarge}) {
		t.Errorf("setting it again gives %v", rejected)
	}
	h.submit("-" + long)
	has(long, false)
	has(short, true)
}

// A key that is over a follower's limit goes when its leader deletes it.
func TestDeleteOfALongKey(t *testing.T) {
	long := string(bytes.Repeat([]byte("k"), 6<<10))
	entries := decidedBy(t, Limits{MaxKeyBytes: 8 << 10}, "+"+long, "-"+long)
	h := newHand(t, Limits{MaxKeyBytes: 4 << 10})
	for i := range entries {
		e := &entries[i]
		h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Index: e.Index - 1, LogTerm: min(1, e.Index-1), Entries: entries[i : i+1], Commit: e.Index})
		h.settle(0)
	}
	if h.stopped != nil {
		t.Fatalf("the replica stopped: %v", h.stopped)
	}
	if _, ok := h.shard.Get([]byte(long)); ok {
		t.Error("it is still there")
	}
}

// What waits for flushes that cannot keep up fits a record of the log, into which it is written again: else a log could not release its segments.
func TestFlushBytesAreBounded(t *testing.T) {
	c := Config{Node: 1}.WithDefaults()
	for bytes, want := range map[int64]bool{64<<10 - 1: false, 64 << 10: true, 64 << 20: true, 64<<20 + 1: false} {
		c.Limits.FlushBytes = bytes
		if err := c.Validate(); (err == nil) != want {
			t.Errorf("FlushBytes %d: %v", bytes, err)
		}
	}
}

// reasons rejects queries with so many bytes of them.
type reasons struct {
	bulky
	bytes int
}

func (r reasons) Query(View, []byte) ([]byte, error) {
	return nil, &Rejection{Code: "no", Detail: make([]byte, r.bytes)}
}

// A query's rejection has a bound, as a command's: it has to travel to who asked.
//
// Mutation with which it was seen to fail: it goes as it is.
func TestRejectionOfAQuery(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	for _, bytes := range []int{1000, h.replica().cfg.Limits.MaxEntryBytes} {
		h.replica().machine = reasons{bytes: bytes}
		_, err := h.request(Request{Kind: KindRead, Level: Stale})
		if _, r := Verdict(err); r == nil || len(r.Detail) > 1000 || (r.Code == "no") != (bytes == 1000) {
			t.Errorf("%d bytes: %.200v", bytes, err)
		}
	}
}
