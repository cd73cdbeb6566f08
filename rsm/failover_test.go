package rsm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// Leaders die without warning, again and again, and come back: nothing
// acknowledged is lost, nothing is doubled [G5, G8, G12 of the embedded client].
func TestKillLeaders(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "disk": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, dir, counters{}, func(cfg *Config) { cfg.Limits.FlushBytes = 64 << 10 })
			l := startLoad(t, c, 1, 16)
			for range 5 {
				before := l.total()
				eventually(t, "commands go through", func() bool { return l.total() > before+500 })
				id := leaderOf(t, c, 1).ID()
				c.Kill(id)
				before = l.total()
				eventually(t, "commands go through without the old leader", func() bool { return l.total() > before+100 })
				if err := c.Restart(id); err != nil {
					t.Fatal(err)
				}
			}
			l.finish(t)
			l.check(t, c, 1)
			sameHashes(t, c, 1)
		})
	}
}

// All nodes die at once, and come back by themselves with everything acknowledged.
func TestKillAll(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, func(cfg *Config) { cfg.Limits.FlushBytes = 64 << 10 })
	l := startLoad(t, c, 1, 16)
	for range 3 {
		before := l.total()
		eventually(t, "commands go through", func() bool { return l.total() > before+2000 })
		for _, n := range c.Nodes() {
			flushed(t, n, 1) // they restart from that
		}
		for id := NodeID(1); id <= 3; id++ {
			c.Kill(id)
		}
		for id := NodeID(1); id <= 3; id++ {
			if err := c.Restart(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.finish(t)
	l.check(t, c, 1)
	sameHashes(t, c, 1)
}

// A leader that is cut off answers nothing: no write, no read, no rejection [G5, G7].
// Its calls end, in time, with an error that says what is known [G6].
func TestPartitionedLeaderAnswersNothing(t *testing.T) {
	c := startCluster(t, "", counters{}, func(cfg *Config) { cfg.ElectionTimeout = time.Second }) // it leads until it is cut off
	old := leaderOf(t, c, 1)
	s := old.Shard(1)
	session, err := s.OpenSession(within(t))
	if err != nil {
		t.Fatal(err)
	}
	first := Request{Commands: [][]byte{[]byte("a")}, Session: session, Sequence: 1}
	if _, err := s.Do(within(t), first); err != nil {
		t.Fatal(err)
	}
	for id := NodeID(1); id <= 3; id++ {
		if id != old.ID() {
			c.Cut(old.ID(), id)
		}
	}
	started := time.Now()
	pending := map[string]*Call{
		"write":     s.Go(Request{Commands: [][]byte{[]byte("a")}}),
		"rejection": s.Go(Request{Commands: [][]byte{[]byte("fail")}}),
		"read":      s.GoRead(Linearizable, 0, []byte("a")),
		"readindex": s.GoRead(ReadIndex, 0, []byte("a")),
		"retry":     s.Go(first),
		"session":   s.Go(Request{Commands: [][]byte{[]byte("a")}, Session: 999, Sequence: 1}),
	}
	for name, call := range pending {
		res, err := call.Wait(within(t))
		switch {
		case err == nil || errors.Is(err, ErrRejected):
			t.Errorf("%s: a leader without a quorum answered: %+v, %v", name, res, err)
		case name == "write" && !errors.Is(err, ErrUnknown):
			t.Errorf("write: proposed, so its outcome is unknown, got: %v", err)
		case (name == "read" || name == "readindex") && !errors.Is(err, ErrNotProposed):
			t.Errorf("%s: a read is always safe to repeat, got: %v", name, err)
		}
	}
	if d := time.Since(started); d > 5*time.Second {
		t.Errorf("pending calls ended after %v", d)
	}
	// The majority goes on, and the old leader learns what it missed.
	client := c.Client(1)
	if got := func() uint64 { r, err := client.Submit(within(t), []byte("a")); return sum(t, r, err) }(); got != 2 {
		t.Errorf("the majority counts %d, want 2: the cut-off write cannot have been committed", got)
	}
	c.Heal()
	sameHashes(t, c, 1)
}

// With the default settings, commands are answered again within two seconds of the leader's death: median of ten.
func TestFailoverTime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten elections with default timeouts")
	}
	c := startCluster(t, t.TempDir(), counters{}, func(cfg *Config) {
		cfg.HeartbeatInterval, cfg.ElectionTimeout = 0, 0
		*cfg = cfg.withDefaults()
	})
	client := c.Client(1)
	var took, slow []time.Duration
	for range 10 {
		if _, err := client.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		if _, err := client.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, time.Since(started))
		id := leaderOf(t, c, 1).ID()
		started = time.Now()
		c.Kill(id)
		if _, err := client.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(started))
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
		sameHashes(t, c, 1)
	}
	t.Logf("without answers for %v; a command takes %v", took, slow)
	// An election is a few writes to the disks, and so is the command behind it: what they take is the machine's, and next to nothing on one that is at rest.
	if m, limit := median(took), 2*time.Second+6*median(slow); m > limit {
		t.Errorf("the median of %v is %v, over %v", took, m, limit)
	}
}

// What ends with its caller's context says whether it happened, like every other call, and why.
//
// Mutations with which it was seen to fail: the transfer, the hand-over and the journal return the context's error itself.
func TestEndedContext(t *testing.T) {
	c := startCluster(t, "", counters{}, func(cfg *Config) { cfg.ElectionTimeout, cfg.FsyncStall = 10*time.Second, 20*time.Second }) // nobody else comes to lead
	n := leaderOf(t, c, 1)
	s, to := n.Shard(1), n.ID()%3+1
	c.Cut(n.ID(), to) // it cannot take over
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	soon := func() context.Context { // it ends when what is asked for has begun
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	for _, test := range []struct {
		name string
		call func() error
		kind error
		code Code
		why  error
	}{
		{"leader", func() error { _, err := c.Leader(ended, 9); return err }, ErrNotProposed, CodeNoLeader, context.Canceled},
		{"journal", func() error { _, _, err := s.Journal(ended, 1, 0); return err }, ErrNotProposed, CodeCancelled, context.Canceled},
		{"a transfer that is not begun", func() error { return s.TransferLeadership(ended, to) }, ErrNotProposed, CodeCancelled, context.Canceled},
		{"transfer", func() error { return s.TransferLeadership(soon(), to) }, ErrUnknown, CodeCancelled, context.DeadlineExceeded},
		{"drain", func() error { return n.Drain(soon()) }, ErrUnknown, CodeCancelled, context.DeadlineExceeded}, // the transfer is under way
	} {
		if err := test.call(); !errors.Is(err, &Error{Kind: test.kind, Code: test.code}) || !errors.Is(err, test.why) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestTransferLeadership(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	l := startLoad(t, c, 1, 8)
	for range 5 {
		from := leaderOf(t, c, 1)
		to := from.ID()%3 + 1
		if err := from.Shard(1).TransferLeadership(within(t), to); err != nil {
			t.Fatal(err)
		}
		before := l.total()
		eventually(t, "commands go through under the new leader", func() bool { return l.total() > before+100 })
	}
	n := leaderOf(t, c, 1)
	if err := n.Shard(1).TransferLeadership(within(t), 9); !errors.Is(err, &Error{Code: core.CodeTransfer}) {
		t.Errorf("transfer to a stranger: %v", err)
	}
	follower := c.Node(n.ID()%3 + 1)
	if err := follower.Shard(1).TransferLeadership(within(t), 1); !errors.Is(err, ErrNotProposed) {
		t.Errorf("transfer by a follower: %v", err)
	}
	l.finish(t)
	l.check(t, c, 1)
}

// Close hands leadership over first: nobody waits for an election timeout.
func TestCloseHandsOver(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s)
	n := leaderOf(t, c, 1)
	client := c.Client(1)
	if _, err := client.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	if _, err := client.Submit(ctx, []byte("a")); err != nil {
		t.Fatalf("after %v: %v", time.Since(started), err)
	}
}
