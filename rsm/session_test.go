package rsm

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// One command, one execution: however often it is asked for, by whom, and of which leader.
func TestRetriesShareOneOutcome(t *testing.T) {
	c := startCluster(t, "", counters{})
	id := openOnLeader(t, c, 1)
	req := Request{Commands: [][]byte{[]byte("a"), []byte("b")}, Session: id, Sequence: 1}
	no := Request{Commands: [][]byte{[]byte("fail")}, Session: id, Sequence: 2}
	var wg sync.WaitGroup
	for range 50 { // at the same time: in-flight duplicates share one outcome
		wg.Go(func() {
			res, err := doOnLeader(t, c, 1, req)
			if err != nil || len(res.Replies) != 2 || res.Replies[0][7] != 1 {
				t.Errorf("got %v, %v", res.Replies, err)
			}
			if _, err := doOnLeader(t, c, 1, no); !errors.Is(err, &Rejection{Code: "failed"}) {
				t.Errorf("got %v, want the rejection", err)
			}
		})
	}
	wg.Wait()
	// Of the next leader, after everybody has restarted: the same outcome, though it would be another now.
	if _, err := c.Client(1).Submit(within(t), []byte("closed")); err != nil {
		t.Fatal(err)
	}
	for id := NodeID(1); id <= 3; id++ {
		c.Kill(id)
	}
	for id := NodeID(1); id <= 3; id++ {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	res, err := doOnLeader(t, c, 1, req)
	if err != nil || len(res.Replies) != 2 || res.Replies[0][7] != 1 {
		t.Errorf("after a restart: %v, %v", res.Replies, err)
	}
	if _, err := doOnLeader(t, c, 1, no); !errors.Is(err, &Rejection{Code: "failed"}) {
		t.Errorf("after a restart: %v, want the same rejection as before", err)
	}
	answer, err := c.Client(1).Read(within(t), Linearizable, []byte("a"))
	if n := sum(t, answer, err); n != 1 {
		t.Errorf("executed %d times", n)
	}
}

func TestSessionRefusals(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s, func(cfg *Config) { cfg.Sessions = SessionOptions{Window: 8, Max: 2, TTL: time.Minute} })
	s := leaderOf(t, c, 1).Shard(1)
	open := func() SessionID {
		id, err := s.OpenSession(within(t))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	do := func(id SessionID, seq, acked uint64, command string) error {
		_, err := s.Do(within(t), Request{Commands: [][]byte{[]byte(command)}, Session: id, Sequence: seq, Acknowledged: acked})
		return err
	}
	want := func(what string, err error, code Code) {
		t.Helper()
		if !errors.Is(err, &Error{Kind: ErrNotProposed, Code: code}) || errors.Is(err, ErrRejected) {
			t.Errorf("%s: got %v, want code %s, not proposed: nothing was decided", what, err, code)
		}
	}
	a := open()
	for seq := uint64(1); seq <= 3; seq++ {
		if err := do(a, seq, 0, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := do(a, 3, 0, "b"); !errors.Is(err, &Rejection{Code: core.CodeSequenceReused}) {
		t.Errorf("reused number: got %v", err)
	}
	want("beyond the window", do(a, 9, 0, "b"), core.CodeSequenceTooHigh)
	if err := do(a, 4, 2, "a"); err != nil {
		t.Fatal(err)
	}
	if err := do(a, 9, 2, "b"); err != nil { // it was not a decision
		t.Errorf("when there is room: %v", err)
	}
	want("acknowledged", do(a, 2, 2, "a"), core.CodeSequenceAcked)
	want("unknown session", do(12345, 1, 0, "a"), core.CodeSessionExpired)

	b, third := open(), open() // the limit is 2: the longest unused, a, goes
	want("evicted", do(a, 5, 4, "a"), core.CodeSessionExpired)
	if err := do(b, 1, 0, "b"); err != nil {
		t.Errorf("b was evicted too: %v", err)
	}
	if err := s.CloseSession(within(t), third); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSession(within(t), third); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	want("closed", do(third, 1, 0, "a"), core.CodeSessionExpired)
	answer, err := s.Read(within(t), Linearizable, []byte("a"))
	if n := sum(t, answer, err); n != 4 {
		t.Errorf("a is %d, want 4: a refused command was executed, or an accepted one was not", n)
	}
}

// A client with thousands of commands in flight, over changes of leader.
func TestClientPipelines(t *testing.T) {
	c := startCluster(t, "", counters{})
	client := c.Client(1)
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			r, err := client.Submit(within(t), fmt.Appendf(nil, "key-%d", i))
			if n := sum(t, r, err); n != 1 {
				t.Errorf("key %d: %d", i, n)
			}
		})
		if i == 1000 || i == 2000 {
			id := leaderOf(t, c, 1).ID()
			c.Kill(id)
			if err := c.Restart(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	sameHashes(t, c, 1)
	if err := client.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// Read your writes on any replica, by token; and an age for what is stale.
func TestReadLevels(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	s := leaderOf(t, c, 1).Shard(1)
	for n := uint64(1); n <= 50; n++ {
		res, err := s.Do(within(t), Request{Commands: [][]byte{[]byte("a")}})
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range c.Nodes() {
			for _, level := range []Level{AtToken, ReadIndex} {
				r, err := node.Shard(1).ReadAt(within(t), level, res.Index, []byte("a"))
				if got := sum(t, r.Answer, err); got != n {
					t.Fatalf("%v read on node %d: %d, want %d", level, node.ID(), got, n)
				}
			}
		}
	}
	for _, node := range c.Nodes() {
		r, err := node.Shard(1).ReadAt(within(t), Stale, 0, []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		if r.Age < 0 || r.Age > 5*time.Second {
			t.Errorf("node %d says its answer is up to %v old", node.ID(), r.Age)
		}
	}
	follower := c.Node(s.node.ID()%3 + 1)
	if _, err := follower.Shard(1).Read(within(t), Linearizable, nil); !errors.Is(err, ErrNotProposed) {
		t.Errorf("a follower answered a log read: %v", err)
	}
}

// A query that runs long holds up neither the shard nor other queries.
func TestLongQuery(t *testing.T) {
	release := make(chan struct{})
	c := startCluster(t, "", slowQuery{release: release}, patient10s)
	s := leaderOf(t, c, 1).Shard(1)
	var long []*Call
	for range 3 {
		long = append(long, s.GoRead(Linearizable, 0, []byte("slow")))
	}
	for n := uint64(1); n <= 20; n++ {
		r, err := s.Submit(within(t), []byte("a"))
		if got := sum(t, r, err); got != n {
			t.Fatalf("got %d, want %d", got, n)
		}
		r, err = s.Read(within(t), Linearizable, []byte("a"))
		if got := sum(t, r, err); got != n {
			t.Fatalf("read %d, want %d", got, n)
		}
	}
	close(release)
	for _, call := range long {
		res, err := call.Wait(within(t))
		// The first command may have shared the queries' entry; no later one can have.
		if got := sum(t, res.Answer, err); got > 1 {
			t.Errorf("the long query saw %d: a later state than that of its position", got)
		}
	}
}

type slowQuery struct {
	counters
	release chan struct{}
}

func (m slowQuery) Query(v View, q []byte) ([]byte, error) {
	if string(q) == "slow" {
		<-m.release
		q = []byte("a")
	}
	return m.counters.Query(v, q)
}
