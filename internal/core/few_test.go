package core

import (
	"errors"
	"math"
	"slices"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// few are the replicas of a shard, on a node each, that hear each other as hands do: what depends on what all of them say can be put together here.
type few struct {
	t     *testing.T
	hands []*hand
	lost  func(from, to NodeID, n *Note) bool           // nil: no note is
	drops func(from, to NodeID, m *raftpb.Message) bool // nil: no message is lost
}

func newFew(t *testing.T, limits Limits, voters ...NodeID) *few {
	f := &few{t: t}
	for _, v := range voters {
		f.hands = append(f.hands, newHandOf(t, v, limits, voters))
	}
	return f
}

// of returns a node; nil if there is none.
func (f *few) of(id NodeID) *hand {
	for _, h := range f.hands {
		if h.node == id {
			return h
		}
	}
	return nil
}

// run has so many ticks pass. What is sent arrives with the next of three passes per tick.
func (f *few) run(ticks int) {
	for i := range 3 * ticks {
		for _, h := range f.hands {
			if i%3 == 0 {
				h.in.Ticks = 1
			}
			h.sync()
			h.pass(50 / 3)
		}
		for _, h := range f.hands {
			f.deliver(h)
		}
	}
}

func (f *few) deliver(h *hand) {
	for _, m := range h.sent {
		if to := f.of(NodeID(m.To)); to != nil && (f.drops == nil || !f.drops(h.node, to.node, &m)) {
			to.in.Messages = append(to.in.Messages, Message{From: h.node, Shard: 1, Raft: m, At: math.MaxInt64})
		}
	}
	for i, n := range h.notes {
		if to := f.of(h.noted[i]); to != nil && (f.lost == nil || !f.lost(h.node, to.node, &n)) {
			n.From = h.node
			to.in.Notes = append(to.in.Notes, n)
		}
	}
	for i, q := range h.rests {
		if to := f.of(h.restOf[i]); to != nil {
			q.From = h.node
			to.in.Quiesces = append(to.in.Quiesces, q)
		}
	}
	h.sent, h.notes, h.noted, h.rests, h.restOf = nil, nil, nil, nil, nil
}

// leader runs until there is one that is ready, and returns it.
func (f *few) leader() *hand {
	f.t.Helper()
	for range 200 {
		for _, h := range f.hands {
			if l := h.replica().lead; l != nil && l.ready {
				return h
			}
		}
		f.run(1)
	}
	f.t.Fatal("nobody leads")
	return nil
}

// others are all but one, ascending.
func (f *few) others(than *hand) (hands []*hand) {
	return slices.DeleteFunc(slices.Clone(f.hands), func(h *hand) bool { return h == than })
}

// submit returns what becomes of a command that the leader is given, after so many ticks.
func (f *few) submit(command string, ticks int) (ended bool, err error) {
	f.t.Helper()
	q := &Request{Kind: KindCommand, Shard: 1, Commands: [][]byte{[]byte(command)}, Done: func(q *Request) { ended, err = true, q.Err }}
	h := f.leader()
	h.in.Requests = append(h.in.Requests, q)
	f.run(ticks)
	return ended, err
}

func (h *hand) call(c func(*Worker)) { h.in.Calls = append(h.in.Calls, c) }

// meets tells the replica, with its next pass, of damage that nobody has read.
func (h *hand) meets() {
	h.call(func(w *Worker) { w.Unreadable(1, errors.New("damaged, for a test")) })
}

// dies stops the replica, as damage that was read does; its node goes on.
func (h *hand) dies() {
	h.call(func(w *Worker) { w.replicas[1].stop(broken(CodeStorage, nil, "read, for a test")) })
}
