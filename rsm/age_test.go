package rsm

import (
	"errors"
	"math"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/transport"
)

// noted is a transport that keeps what is said of commits.
type noted struct {
	transport.Peer
	notes []core.CommitNote
}

func (n *noted) Append(_ uint64, _ int, encode func([]byte) []byte) bool {
	return core.DecodeFrame(1, 2, encode(nil), core.Receiver{Commit: func(c core.CommitNote) { n.notes = append(n.notes, c) }}) == nil
}

// A leader's word for its age is as of when it is sent: other shards may have kept the worker for seconds since the pass began.
//
// Mutation with which it was seen to fail: notes go with the age that they had then.
func TestNotesAgeWithTheirPass(t *testing.T) {
	out := &noted{}
	w := &worker{e: &engine{transport: out, start: time.Now()}}
	w.began = w.e.mono()
	for _, age := range []time.Duration{0, time.Second, math.MaxInt64 - 1, math.MaxInt64} {
		w.SendCommit(2, core.CommitNote{Shard: 1, Term: 1, Age: age})
	}
	time.Sleep(20 * time.Millisecond)
	if len(out.notes) > 0 {
		t.Errorf("%d notes before the pass has ended", len(out.notes))
	}
	w.tellCommits()
	if len(out.notes) != 4 {
		t.Fatalf("%d notes", len(out.notes))
	}
	took := out.notes[0].Age
	if took < 20*time.Millisecond || out.notes[1].Age != took+time.Second || out.notes[2].Age != math.MaxInt64 || out.notes[3].Age != math.MaxInt64 {
		t.Errorf("%v", out.notes)
	}
	if w.tellCommits(); len(out.notes) != 4 {
		t.Error("they are sent twice")
	}
}

// A message that waits for a long pass is as old as it is when it is taken in, whatever its node has said since.
//
// Mutation with which it was seen to fail: who receives a message does not say when.
func TestMessagesHaveATime(t *testing.T) {
	c := startCluster(t, "", counters{}, func(cfg *Config) { cfg.Workers = 1 })
	n := leaderOf(t, c, 1)
	held, release := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- n.engine.call(within(t), 1, func(*core.Worker) {
			close(held)
			<-release
		})
	}()
	<-held
	w := n.engine.workers[0]
	before := n.engine.mono()
	m := raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: uint64(n.ID()%3 + 1), To: uint64(n.ID()), Term: 1}
	n.engine.receive(m.From, core.AppendMessage(nil, 1, &m))
	after := n.engine.mono()
	w.mu.Lock()
	found := false
	for _, got := range w.in.Messages {
		found = found || got.Raft.Type == m.Type && got.At >= before && got.At <= after
	}
	w.mu.Unlock()
	close(release)
	if err := <-ended; err != nil || !found {
		t.Errorf("found: %v; %v", found, err)
	}
}

// A repair that the end of the node leaves under way may have happened.
//
// Mutation with which it was seen to fail: it is said to be not proposed.
func TestRepairAtTheEndOfItsNode(t *testing.T) {
	disk := newHungDisk()
	t.Cleanup(disk.release)
	_, s := stoppedByDamage(t, func(cfg *Config) { cfg.wrapFS = disk.wrap })
	disk.hang(inIngest)
	repaired := make(chan error, 1)
	go func() { repaired <- s.Repair(within(t)) }()
	disk.wait(t)
	go s.node.Close()
	if err, ok := soon(func() error { return <-repaired }); !ok || !errors.Is(err, ErrUnknown) || !isCode(err, CodeClosed) {
		t.Errorf("who asked is told: %v, %v", ok, err)
	}
	disk.release()
}
