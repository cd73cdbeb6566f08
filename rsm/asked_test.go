package rsm

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/decree-raft/decree/internal/core"
)

// hungNode is the leader of shard 1 with a worker in a pass that does not return until the test ends; another one has shard 2.
func hungNode(t *testing.T, metrics prometheus.Registerer) *Node {
	t.Helper()
	m := stuck{in: make(chan struct{}), out: make(chan struct{})}
	c := startCluster(t, "", m, patient10s, func(cfg *Config) { cfg.Workers, cfg.Metrics = 2, metrics })
	t.Cleanup(func() { close(m.out) })
	n := leaderOf(t, c, 1)
	n.Shard(1).Go(Request{Commands: [][]byte{[]byte("hang")}})
	<-m.in
	return n
}

// Who asks a worker that does not answer, and stops waiting, is told so, and what it asked is not done any more.
//
// Mutations with which it was seen to fail: a replacement asks for the members without its context; there is no bound of what waits.
func TestQuestionsToAPassThatHangs(t *testing.T) {
	n := hungNode(t, nil)
	s := n.Shard(1)
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	for name, ask := range map[string]func() error{
		"status":       func() error { _, err := s.StatusContext(short()); return err },
		"members":      func() error { _, err := s.MembersContext(short()); return err },
		"journal":      func() error { _, _, err := s.Journal(short(), 1, 1); return err },
		"transfer":     func() error { return s.TransferLeadership(short(), 2) },
		"cut":          func() error { _, err := s.CutSnapshot(short(), true); return err },
		"repair":       func() error { return s.Repair(short()) },
		"node status":  func() error { _, err := n.StatusContext(short()); return err },
		"replaced":     func() error { return s.replaced(short()) },
		"node drained": func() error { return n.Drain(short()) },
	} {
		ended := make(chan error, 1)
		go func() { ended <- ask() }()
		select {
		case err := <-ended:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s waits", name)
		}
	}
	eventually(t, "the shard that answers in time is there, without the other", func() bool {
		st, err := n.StatusContext(short())
		if !errors.Is(err, &Error{Code: core.CodeCancelled}) || slices.ContainsFunc(st.Shards, func(s ShardStatus) bool { return s.Shard != 2 }) {
			t.Fatalf("the shards that answer: %v; %v", st.Shards, err)
		}
		return len(st.Shards) == 1
	})
	// What it knows without its worker.
	if at, serves := s.Topology(); !serves || at.Term == 0 || len(at.Members) != 3 {
		t.Errorf("%+v, %v", at, serves)
	}
	// There is an end to what waits, though nobody waits for it any more.
	ctx, leave := context.WithCancel(t.Context())
	var asked sync.WaitGroup
	for range mailboxCalls {
		asked.Go(func() { _ = n.engine.call(ctx, 1, func(*core.Worker) { t.Error("it was done after all") }) })
	}
	eventually(t, "there is no room for more", func() bool {
		w := n.engine.workerOf(1)
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.in.Calls) == mailboxCalls
	})
	leave()
	asked.Wait()
	err := n.engine.call(short(), 1, func(*core.Worker) { t.Error("it was done after all") })
	if !errors.Is(err, &Error{Kind: ErrNotProposed, Code: core.CodeOverloaded}) {
		t.Errorf("the last of too many: %v", err)
	}
}

// A transfer to a voter that does not take over has an end, long before its caller's patience, and says that it may still come.
//
// Mutation with which it was seen to fail: it is waited for as long as the caller waits.
func TestTransferToWhoIsAway(t *testing.T) {
	c := startCluster(t, "", counters{})
	away := leaderOf(t, c, 1).ID()%3 + 1
	c.Kill(away)
	var err error
	eventually(t, "it ends by itself", func() bool { // on a busy machine another may lead by now, or it may not have begun
		err = leaderOf(t, c, 1).Shard(1).TransferLeadership(within(t), away)
		return errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeTransfer}) || errors.Is(err, &Error{Code: core.CodeCancelled})
	})
	if !errors.Is(err, &Error{Code: core.CodeTransfer}) {
		t.Errorf("it ended with %v", err)
	}
}

// A scrape does not wait for a worker that does not answer, and has everything else.
func TestMetricsOfAPassThatHangs(t *testing.T) {
	r := prometheus.NewRegistry()
	node := strconv.FormatUint(uint64(hungNode(t, r).ID()), 10)
	got := make(chan []string, 1)
	go func() {
		var shards []string
		families, _ := r.Gather()
		for _, f := range families {
			if f.GetName() == "decree_shard_term" {
				for _, m := range f.Metric {
					if m.Label[0].GetValue() == node { // sorted: node, shard
						shards = append(shards, m.Label[1].GetValue())
					}
				}
			}
		}
		got <- shards
	}()
	select {
	case shards := <-got:
		if len(shards) != 1 || shards[0] != "2" {
			t.Errorf("the shards %v are there", shards)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it waits")
	}
}

// A drain does not take a shard whose worker has no room for the question for one without other voters. What the end of the node leaves of a drain may happen if a transfer has begun.
//
// Mutations with which it was seen to fail, one by one: a worker that does not say how many voters there are has none but this one; the end of the node is errClosed; it is ErrUnknown though nothing had begun.
func TestDrainSaysWhatItKnows(t *testing.T) {
	n := hungNode(t, nil)
	n.engine.workerOf(1).post(func(in *core.Input) {
		for len(in.Calls) < mailboxCalls {
			in.Calls = append(in.Calls, func(*core.Worker) {})
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := n.Drain(ctx); !errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeCancelled}) {
		t.Errorf("the node leads: %v", err)
	}

	c := startCluster(t, "", counters{}, patient10s)
	n = leaderOf(t, c, 1)
	for id := range NodeID(3) {
		if id+1 != n.ID() {
			c.Cut(n.ID(), id+1) // nobody can take over
		}
	}
	drained := make(chan error, 1)
	go func() { drained <- n.Drain(within(t)) }()
	eventually(t, "a transfer has begun", func() bool {
		var err error
		if e := n.engine.call(within(t), 1, func(w *core.Worker) { err = w.Transfer(1, 9) }); e != nil {
			t.Fatal(e)
		}
		return strings.Contains(err.Error(), "on its way")
	})
	n.Kill()
	if err := <-drained; !errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeClosed}) {
		t.Errorf("the node stopped under way: %v", err)
	}
	if err := n.Drain(within(t)); !errors.Is(err, errClosed) {
		t.Errorf("the node had stopped: %v", err)
	}
}
