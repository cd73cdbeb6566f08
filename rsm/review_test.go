package rsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/wal"
)

// The tests of this file stand for faults that a hostile reading of the code found.

// Members are not changed by configuration: two sets of voters can have two majorities.
func TestVotersAreFixed(t *testing.T) {
	dir := t.TempDir()
	single := Config{Cluster: "c", Node: 1, Dir: dir, Peers: map[NodeID]string{1: "127.0.0.1:0"}, Shards: []ShardConfig{{ID: 1, Machine: counters{}}}}
	quick(&single)
	n, err := Start(single)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Shard(1).WaitReady(within(t)); err != nil {
		t.Fatal(err)
	}
	n.Kill()
	three := single
	three.Peers = map[NodeID]string{1: "127.0.0.1:0", 2: "127.0.0.1:1", 3: "127.0.0.1:2"}
	if _, err := Start(three); !errors.Is(err, ErrVotersChanged) || !strings.Contains(err.Error(), "[1 2 3]") {
		t.Errorf("started with other voters: %v", err)
	}
	three.Shards = []ShardConfig{{ID: 2, Machine: counters{}, Voters: []NodeID{1}}}
	if _, err := Start(three); err == nil || !strings.Contains(err.Error(), "shard 1") {
		t.Errorf("started without a shard that it has data of: %v", err)
	}
}

// What does not come from a voter, or is not what peers say to each other, does nothing.
func TestStrangeMessages(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	if _, err := c.Client(1).Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	n := leaderOf(t, c, 1)
	from := n.ID()%3 + 1
	for _, m := range []raftpb.Message{
		{Type: raftpb.MsgProp, Entries: []raftpb.Entry{{Data: []byte("x")}}},
		{Type: raftpb.MsgProp},
		{Type: raftpb.MsgReadIndex},
		{Type: raftpb.MsgSnap, Term: 1000, Snapshot: raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: 1000, Term: 1000}}},
		{Type: raftpb.MsgHup}, {Type: raftpb.MsgBeat}, {Type: raftpb.MsgTransferLeader}, {Type: 99},
	} {
		m.From, m.To = uint64(from), uint64(n.ID())
		n.engine.receive(uint64(from), core.AppendMessage(nil, 1, &m))
	}
	n.engine.receive(uint64(from), []byte("garbage"))
	foreign := raftpb.Message{Type: raftpb.MsgVote, Term: 1000, From: 9, To: uint64(n.ID())}
	n.engine.receive(uint64(from), core.AppendMessage(nil, 1, &foreign))
	for range 10 {
		if _, err := c.Client(1).Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
	}
	sameHashes(t, c, 1)
	st, err := n.Shard(1).Status()
	if err != nil || st.Stats.Strange < 7 || st.Term > 900 {
		t.Errorf("%d strange messages counted, term %d, %v", st.Stats.Strange, st.Term, err)
	}
}

type bigReplies struct{ counters }

func (bigReplies) Decide(v View, c Command) ([][]byte, []byte, error) {
	if bytes.HasPrefix(c.Data, []byte("reject")) {
		return nil, nil, &Rejection{Code: "big", Detail: make([]byte, 9<<20)}
	}
	if bytes.HasPrefix(c.Data, []byte("big")) {
		return nil, make([]byte, 4<<20), nil
	}
	return counters{}.Decide(v, c)
}

// What a request puts into the log is bounded as a whole, replies and reasons included.
func TestEntryBoundCountsEverything(t *testing.T) {
	c := startCluster(t, "", bigReplies{}, patient10s) // it decides 80 MiB in one go
	s := leaderOf(t, c, 1).Shard(1)
	id, err := s.OpenSession(within(t))
	if err != nil {
		t.Fatal(err)
	}
	big := Request{Session: id, Sequence: 1}
	for range 20 {
		big.Commands = append(big.Commands, []byte("big"))
	}
	for seq, r := range []Request{big, {Commands: [][]byte{[]byte("reject")}}} {
		r.Session, r.Sequence = id, uint64(seq+1)
		if _, err := s.Do(within(t), r); !errors.Is(err, &Rejection{Code: core.CodeEntryTooLarge}) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Errorf("the shard does not go on: %v", err)
	}
}

type aliasing struct{ counters }

func (aliasing) Query(v View, q []byte) ([]byte, error) { a, _ := v.Get(q); return a, nil }

// What callers get is theirs: writing to it does not reach the state.
func TestAnswersAreCopies(t *testing.T) {
	c := startCluster(t, "", aliasing{}, patient10s)
	s := leaderOf(t, c, 1).Shard(1)
	for n := uint64(1); n <= 3; n++ {
		reply, err := s.Submit(within(t), []byte("a"))
		if got := sum(t, reply, err); got != n {
			t.Fatalf("got %d, want %d: a caller's write reached the state", got, n)
		}
		for _, level := range []Level{Linearizable, Stale} {
			answer, err := s.Read(within(t), level, []byte("a"))
			if err != nil {
				t.Fatal(err)
			}
			clear(answer)
		}
		clear(reply)
	}
}

// A caller that stops waiting has its buffer back: what is executed is what was submitted.
func TestAbandonedBufferIsNotRead(t *testing.T) {
	gate := make(chan struct{})
	c := startCluster(t, "", counters{onApply: func(_ State, e Event) {
		if bytes.HasSuffix(e.Data, []byte("gate")) {
			<-gate
		}
	}}, patient10s)
	s := leaderOf(t, c, 1).Shard(1)
	held := s.Go(Request{Commands: [][]byte{[]byte("gate")}})
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // it is in the queue behind the gate before anybody looks whether its caller still waits
	command := []byte("aaaa")
	if _, err := s.Submit(ctx, command); !errors.Is(err, ErrUnknown) {
		t.Errorf("abandoned with %v", err)
	}
	copy(command, "bbbb")
	close(gate)
	if _, err := held.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the abandoned command is executed", func() bool {
		answer, err := c.Client(1).Read(within(t), Linearizable, []byte("aaaa"))
		return sum(t, answer, err) == 1
	})
	answer, err := c.Client(1).Read(within(t), Linearizable, []byte("bbbb"))
	if sum(t, answer, err) != 0 {
		t.Error("a command was executed that nobody submitted")
	}
}

// A replica that is behind does not claim to be fresh.
func TestStaleAgeIsHonest(t *testing.T) {
	c := startCluster(t, "", counters{})
	followers(t, c, 3)
	client := c.Client(1)
	if _, err := client.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	fresh := func() time.Duration {
		r, err := c.Node(3).Shard(1).ReadAt(within(t), Stale, 0, []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		return r.Age
	}
	eventually(t, "a follower that keeps up is fresh", func() bool { return fresh() < 500*time.Millisecond })
	leader := leaderOf(t, c, 1).ID()
	for id := NodeID(1); id < 3; id++ {
		c.Cut(3, id)
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := client.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	if age := fresh(); age < 200*time.Millisecond {
		t.Errorf("cut off for 300ms from leader %d, it says its answer is at most %v old", leader, age)
	}
	c.Kill(3)
	if err := c.Restart(3); err != nil {
		t.Fatal(err)
	}
	if age := fresh(); age != math.MaxInt64 {
		t.Errorf("just restarted and cut off, it says its answer is at most %v old", age)
	}
}

// stuckLog is a log whose disk stops answering.
type stuckLog struct {
	wal.Log
	stuck, release chan struct{}
}

func (l *stuckLog) Append(r []wal.Record) error {
	select {
	case <-l.stuck:
		<-l.release
	default:
	}
	return l.Log.Append(r)
}

// A write to the log that hangs stops the node within its bound, and ends every call, without waiting for the disk.
func TestStuckDiskStopsNode(t *testing.T) {
	l := &stuckLog{stuck: make(chan struct{}), release: make(chan struct{})}
	defer close(l.release)
	stopped := make(chan error, 1)
	c := startCluster(t, "", counters{}, func(cfg *Config) {
		if cfg.Node == 1 {
			cfg.FsyncStall = max(300*time.Millisecond, cfg.ElectionTimeout)
			cfg.OnStop = func(err error) { stopped <- err }
			cfg.wrapLog = func(log wal.Log) wal.Log { l.Log = log; return l }
		}
	})
	eventually(t, "node 1 leads", func() bool {
		n := leaderOf(t, c, 1)
		if n.ID() != 1 {
			_ = n.Shard(1).TransferLeadership(within(t), 1)
		}
		return n.ID() == 1
	})
	s := c.Node(1).Shard(1)
	close(l.stuck)
	others := make(chan error, 1)
	go func() { // who follows by now writes too
		_, err := c.Client(1).Submit(within(t), []byte("b"))
		others <- err
	}()
	var pending []*Call
	for range 5 {
		pending = append(pending, s.Go(Request{Commands: [][]byte{[]byte("a")}}))
	}
	select {
	case err := <-stopped:
		if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "FsyncStall") {
			t.Errorf("stopped with %v", err)
		}
	case <-time.After(hangs):
		t.Fatal("the node does not stop")
	}
	for _, call := range pending {
		if _, err := call.Wait(within(t)); err == nil {
			t.Error("answered from a disk that does not answer")
		}
	}
	if err := <-others; err != nil {
		t.Errorf("the other two do not go on: %v", err)
	}
}

// A replica that is out of service does not fill the node's disk with the log it keeps.
func TestStoppedReplicaDoesNotPinTheLog(t *testing.T) {
	if testing.Short() {
		t.Skip("writes several segments")
	}
	bad := counters{onApply: func(_ State, e Event) {
		if bytes.HasSuffix(e.Data, []byte("bomb")) {
			panic("boom")
		}
	}}
	c := startCluster(t, t.TempDir(), counters{}, onNode(3, bad), patient10s, func(cfg *Config) {
		cfg.LogSegments = 2
		cfg.Limits.FlushBytes = 4 << 20
	})
	followers(t, c, 3)
	if _, err := c.Client(1).Submit(within(t), []byte("bomb")); err != nil {
		t.Fatal(err)
	}
	stoppedWith(t, c.Node(3).Shard(1), core.CodeApplyPanic)
	s := leaderOf(t, c, 2).Shard(2)
	for i := range 8 {
		ctx := within(t)
		key := make([]byte, 3000)
		binary.BigEndian.PutUint32(key, uint32(i))
		var calls []*Call
		for range 8000 {
			calls = append(calls, s.Go(Request{Commands: [][]byte{key}}))
		}
		for _, call := range calls {
			if _, err := call.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "segments are released on the node with the stopped replica", func() bool {
		if _, err := s.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
		segments, _ := c.Node(3).log.Size()
		return segments <= 3
	})
}

// Thousands of sessions opened at once cost neither the limit nor the leadership.
func TestBurstOfSessions(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s, func(cfg *Config) { cfg.Sessions.Max = 100 })
	s := leaderOf(t, c, 1).Shard(1)
	var calls []*Call
	for range 20000 {
		call := newCall()
		call.req.Kind = core.KindOpenSession
		calls = append(calls, s.start(t.Context(), call))
	}
	opened := 0
	for _, call := range calls {
		_, err := call.Wait(within(t))
		if err == nil {
			opened++
		} else if !errors.Is(err, &Error{Code: core.CodeOverloaded}) {
			t.Fatal(err)
		}
	}
	st, err := s.Status()
	if err != nil || st.Sessions > 100 || opened < 100 {
		t.Errorf("%d sessions, %d were opened, %v", st.Sessions, opened, err)
	}
}

// Sixty-four callers of two nodes that point at each other do not spin.
func TestClientPausesBetweenHints(t *testing.T) {
	attempts := 0
	client := NewClient(func(NodeID) *Shard { return nil }, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	inDoubt := false
	err := client.retryWith(ctx, &inDoubt, func() (NodeID, error) {
		attempts++
		client.mu.Lock()
		asked := client.guess
		client.mu.Unlock()
		other := asked%2 + 1
		return asked, &Error{Kind: ErrNotProposed, Code: core.CodeNotLeader, Leader: other, Message: fmt.Sprint("ask ", other)}
	})
	if !errors.Is(err, ErrNotProposed) || attempts > 400 {
		t.Errorf("%d attempts in 100ms, %v", attempts, err)
	}
	// In doubt once, in doubt to the end, whatever the last attempt said.
	inDoubt = true
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	err = client.retryWith(ctx, &inDoubt, func() (NodeID, error) { return 1, errUnreachable })
	if !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotProposed) {
		t.Errorf("an error of two kinds, or of the wrong one: %v", err)
	}
}

// A leader that always has the next batch open flushes all the same: memory and log stay bounded.
func TestSaturatedLeaderFlushes(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, patient10s, func(cfg *Config) {
		cfg.Limits.FlushBytes, cfg.Limits.BatchBytes = 1<<20, 256<<10
	})
	s := leaderOf(t, c, 1).Shard(1)
	ctx := within(t)
	var calls []*Call
	for i := range 4000 {
		key := make([]byte, 4000)
		binary.BigEndian.PutUint32(key, uint32(i))
		calls = append(calls, s.Go(Request{Commands: [][]byte{key}}))
	}
	for _, call := range calls {
		if _, err := call.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the leader has flushed several times", func() bool {
		st, err := s.Status()
		return err == nil && st.Stats.Flushes >= 3 && st.Memory < 16<<20
	})
}

type leavesScansOpen struct{ counters }

func (m leavesScansOpen) Decide(v View, c Command) ([][]byte, []byte, error) {
	next, _ := iter.Pull2(v.Scan(nil, nil)) // and never stopped
	next()
	if string(c.Data) == "no" {
		return nil, nil, Reject("no", "as told")
	}
	return m.counters.Decide(v, c)
}

// A machine that does not finish its scans harms nobody.
func TestScansLeftOpen(t *testing.T) {
	c := startCluster(t, "", leavesScansOpen{})
	client := c.Client(1)
	for n := uint64(1); n <= 10; n++ {
		reply, err := client.Submit(within(t), []byte("a"))
		if got := sum(t, reply, err); got != n {
			t.Fatalf("got %d, want %d", got, n)
		}
		if _, err := client.Submit(within(t), []byte("no")); !errors.Is(err, &Rejection{Code: "no"}) {
			t.Fatal(err)
		}
	}
	sameHashes(t, c, 1)
}

// A port that another program holds for a moment keeps no node of a cluster from coming back.
//
// Mutation with which it was seen to fail: one attempt.
func TestRestartWaitsForItsPort(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, patient10s)
	address := c.Node(1).Addr()
	c.Kill(1)
	taken, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("somebody else has the port: %v", err)
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = taken.Close() })
	if err := c.Restart(1); err != nil {
		t.Fatal(err)
	}
	sameHashes(t, c, 1)
}

// A Start that fails fixes nothing for the next one.
func TestFailedStartChangesNothing(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	cfg := Config{Cluster: "c", Node: 1, Dir: t.TempDir(), Listen: busy.Addr().String(), Peers: map[NodeID]string{1: "127.0.0.1:0"}, Shards: []ShardConfig{{ID: 22, Machine: counters{}}}}
	quick(&cfg)
	if _, err := Start(cfg); err == nil {
		t.Fatal("started on a port that is in use")
	}
	cfg.Listen = ":0"
	if _, err := Start(cfg); !errors.Is(err, ErrInsecure) {
		t.Fatalf("a port for everybody: %v", err)
	}
	cfg.Listen, cfg.Shards[0].ID = "127.0.0.1:0", 2
	n, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Kill()
}
