package rsm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// What a client has waited for is in its error: the code of the last refusal, when to come back, and whether anything may have happened.
func TestClientSaysWhyItWaited(t *testing.T) {
	low := &Error{Kind: ErrNotProposed, Code: core.CodeDiskLow, RetryAfter: time.Millisecond, Message: "low"}
	far := &Error{Kind: ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: time.Hour, Message: "full"}
	lost := &Error{Kind: ErrUnknown, Code: core.CodeLeadershipLost, Message: "lost"}
	cut := &Error{Kind: ErrUnknown, Code: core.CodeCancelled, Message: "the caller stopped waiting"}
	full := &Error{Kind: ErrNotProposed, Code: core.CodeSequenceTooHigh, Message: "full"}
	bad := &Error{Kind: ErrNotProposed, Code: core.CodeBadRequest, Message: "bad"}
	for name, tt := range map[string]struct {
		answers []error // the last again and again
		kind    error
		code    Code
		after   time.Duration
		once    bool // not longer than it takes
	}{
		"low":                       {[]error{low}, ErrNotProposed, core.CodeDiskLow, time.Millisecond, false},
		"in doubt, then low":        {[]error{lost, low}, ErrUnknown, core.CodeDiskLow, time.Millisecond, false},
		"low, then cut off":         {[]error{low, cut}, ErrUnknown, core.CodeDiskLow, time.Millisecond, false},
		"unreachable":               {[]error{low, errUnreachable}, ErrNotProposed, core.CodeUnreachable, 0, false},
		"later than the deadline":   {[]error{far}, ErrNotProposed, core.CodeOverloaded, time.Hour, true},
		"in doubt, and later":       {[]error{lost, far}, ErrUnknown, core.CodeOverloaded, time.Hour, false},
		"a full window":             {[]error{full}, ErrNotProposed, core.CodeCancelled, 0, false},
		"bad":                       {[]error{bad}, ErrNotProposed, core.CodeBadRequest, 0, true},
		"in doubt, and then bad":    {[]error{lost, bad}, ErrUnknown, core.CodeBadRequest, 0, false},
		"low at first, and then no": {[]error{low, &Rejection{Code: "no"}}, ErrRejected, "no", 0, true},
	} {
		client := NewClient(func(NodeID) *Shard { return nil }, 3)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		attempts, inDoubt := 0, false
		err := client.retryWith(ctx, &inDoubt, func() (NodeID, error) {
			attempts++
			return 1, tt.answers[min(attempts, len(tt.answers))-1]
		})
		for _, kind := range []error{ErrRejected, ErrNotProposed, ErrUnknown, ErrBroken} {
			if errors.Is(err, kind) != (kind == tt.kind) {
				t.Errorf("%s: %v", name, err)
			}
		}
		e, no := core.Verdict(err)
		if e != nil && (e.Code != tt.code || e.RetryAfter != tt.after) || no != nil && no.Code != tt.code {
			t.Errorf("%s: %v, after %v", name, err, e.RetryAfter)
		}
		if tt.once && attempts != len(tt.answers) {
			t.Errorf("%s: asked %d times", name, attempts)
		}
	}
	// Whoever comes too late asks nobody, so that nothing is in doubt.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	client := NewClient(func(NodeID) *Shard { t.Error("asked"); return nil }, 3)
	if _, err := client.Submit(ctx, []byte("a")); !errors.Is(err, ErrNotProposed) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Nobody waits for a shard that no node hosts; but for a node that is down, which may.
func TestClientOfNoShard(t *testing.T) {
	c := startCluster(t, "", counters{})
	ctx := within(t)
	if _, err := c.Client(9).Submit(ctx, []byte("a")); !errors.Is(err, &Error{Kind: ErrNotProposed, Code: core.CodeNoShard}) || ctx.Err() != nil {
		t.Error(err)
	}
	c.Kill(2)
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := c.Client(9).Submit(ctx, []byte("a")); !errors.Is(err, ErrNotProposed) || ctx.Err() == nil {
		t.Error(err)
	}
}

// A client of a cluster goes on when each of its nodes has been replaced, though it has called nobody meanwhile.
func TestClientFollowsReplacements(t *testing.T) {
	c := startCluster(t, "", counters{})
	used, fresh := c.Client(1), c.Client(1)
	if _, err := used.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	for old := NodeID(1); old <= 3; old++ {
		n, err := c.Join(old + 3)
		if err != nil {
			t.Fatal(err)
		}
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), n.ID(), n.Addr()) }); err != nil {
			t.Fatal(err)
		}
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.Replace(within(t), old, n.ID()) }); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the replaced node says so", func() bool {
			st, err := c.Node(old).Shard(1).Status()
			return err == nil && st.Err != nil && st.Err.Code == core.CodeRemoved
		})
		c.Kill(old)
	}
	for n, client := range []*Client{used, fresh} {
		reply, err := client.Submit(within(t), []byte("a"))
		if got := sum(t, reply, err); got != uint64(n+2) {
			t.Errorf("%d commands were done %d times", n+2, got)
		}
	}
}
