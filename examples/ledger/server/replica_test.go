package server

import (
	"context"
	"sync"
	"testing"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/book/booktest"
	"github.com/decree-raft/decree/rsm"
)

// replica runs the machine in memory, alone: a shard of one, without a log.
type replica struct {
	mu       sync.Mutex
	state    booktest.Memory
	now      rsm.Timestamp // of the last command; far in the past
	version  uint64        // of the machine, that is active
	leader   rsm.NodeID
	err      error // of every call, if set
	requests []rsm.Request
	levels   []rsm.Level
	done     chan struct{}      // gets a token for each command, if set
	audits   chan chan struct{} // is given what each audit waits for, if set
}

func (r *replica) Do(_ context.Context, q rsm.Request) (rsm.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q)
	if r.done != nil {
		r.done <- struct{}{}
	}
	if r.err != nil {
		return rsm.Result{}, r.err
	}
	r.now++
	events, reply, err := book.Machine{}.Decide(&r.state, rsm.Command{Data: q.Commands[0], Time: r.now, Version: r.version})
	if err != nil {
		return rsm.Result{}, err
	}
	for _, e := range events {
		book.Machine{}.Apply(&r.state, rsm.Event{Data: e, Time: r.now, Version: r.version})
	}
	return rsm.Result{Replies: [][]byte{reply}}, nil
}

func (r *replica) Read(_ context.Context, level rsm.Level, query []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.levels = append(r.levels, level)
	if r.err != nil {
		return nil, r.err
	}
	return book.Machine{}.Query(&r.state, query)
}

func (r *replica) OpenSession(context.Context) (rsm.SessionID, error) { return 77, r.err }

func (r *replica) Audit(f func(rsm.View) error) (rsm.Index, uint64, error) {
	if r.err != nil {
		return 0, 0, r.err
	}
	if r.audits != nil {
		wait := make(chan struct{})
		r.audits <- wait
		<-wait
	}
	return 42, 0xABC, f(&r.state)
}

func (r *replica) Status() (rsm.ShardStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return rsm.ShardStatus{Time: r.now, Leader: r.leader, Role: "leader", Term: 3, Applied: 42, Hash: 0xABC, Version: r.version}, r.err
}

func (r *replica) Leader() rsm.NodeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leader
}

// newServer serves a replica that leads, on node 1.
func newServer(t testing.TB) (*Server, *replica) {
	r := &replica{leader: 1, now: 1_000_000_000}
	return New(Config{
		Node: 1, Replica: r, Shard: r,
		API: map[rsm.NodeID]string{1: "one:1", 2: "two:2"},
	}), r
}
