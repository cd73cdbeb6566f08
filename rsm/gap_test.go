package rsm

import (
	"log/slog"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// The workers are told of gaps in what a peer sends, with the time of the last frame before it: of another stream, of a frame that cannot be read, and of what found no room in a
// mailbox. Of several gaps between two passes the first counts.
//
// Mutations with which it was seen to fail: the node does not listen to the transport's Gap; postPeer tells nothing; receive tells nothing of a frame that it refuses; addGap adds each; who was
// met was heard; LastHeard asks the peer.
func TestGapsReachWorkers(t *testing.T) {
	e := &engine{node: 2, start: time.Now(), logger: slog.New(slog.DiscardHandler)}
	for range 2 {
		e.workers = append(e.workers, &worker{e: e, heard: map[NodeID]int64{}, wake: make(chan struct{}, 1)})
	}
	e.peers.met(1, 4)
	want := func(what string, heard ...int64) {
		t.Helper()
		for i, w := range e.workers {
			ok := len(w.in.Gaps) == min(1, len(heard))
			if ok && len(heard) > 0 {
				ok = w.in.Gaps[0] == core.Gap{Peer: 1, Heard: heard[0]}
			}
			if !ok {
				t.Errorf("%s: worker %d is told %v, want %v", what, i, w.in.Gaps, heard)
			}
			w.in.Gaps = nil
		}
	}
	notes := core.AppendNote(core.AppendNote(nil, core.Note{Shard: 2}), core.Note{Shard: 3})
	e.gap(1)
	want("who was never heard", 0)
	w := e.workers[0]
	if w.listen(); w.LastHeard(1) != 0 {
		t.Error("who was never heard was heard")
	}
	e.receive(1, notes)
	want("a frame")
	if w.LastHeard(1) != 0 {
		t.Error("a pass that goes on hears what comes with the next")
	}
	if w.listen(); w.LastHeard(1) < 1 {
		t.Error("the next pass does not hear it")
	}
	e.peers.get(1).heard.Store(6)
	e.gap(1)
	e.receive(1, notes)
	e.gap(1)
	want("another stream, and one more", 6)
	e.peers.get(1).heard.Store(7)
	e.receive(1, []byte{255})
	want("what is no frame", 7)
	for _, w := range e.workers {
		w.peerBytes = mailboxPeerBytes + 1
	}
	e.peers.get(1).heard.Store(8)
	e.receive(1, notes)
	e.receive(1, notes)
	want("full mailboxes", 8)
}

// A cluster's nodes tell each other of gaps.
func TestGapWakes(t *testing.T) {
	c, err := StartCluster(ClusterConfig{Shards: []ShardConfig{{ID: 1, Machine: counters{}}}, Configure: func(cfg *Config) {
		quick(cfg)
		cfg.QuiesceAfter = time.Second
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	resting := func(n *Node) bool {
		s, err := n.Shard(1).Status()
		return err == nil && s.Quiet
	}
	eventually(t, "all rest", func() bool { return resting(c.Node(1)) && resting(c.Node(2)) && resting(c.Node(3)) })
	c.network.Cut(3, 1)
	if c.Node(3).engine.transport.Append(1, 1, func(b []byte) []byte { return core.AppendBeat(b) }) {
		t.Fatal("taken, though the link is cut")
	}
	c.network.Heal(3, 1)
	eventually(t, "node 1 wakes", func() bool { return !resting(c.Node(1)) })
}
