package rsm

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/session"
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
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		attempts, inDoubt := 0, false
		err := client.retryWith(ctx, &inDoubt, func() (NodeID, error) {
			if attempts++; attempts == len(tt.answers) {
				time.AfterFunc(20*time.Millisecond, cancel) // the caller's time is over, and not before it has heard all of them
			}
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

// A command that waits for a disk stops none of those that free it, and is asked again under another number: but under the same one from the first attempt on that may have
// happened, as under another it could happen twice [G11, G12].
//
// Mutations with which it was seen to fail: it waits under its number; a doubt is no reason to keep it.
func TestClientWaitsForADisk(t *testing.T) {
	client := NewClient(func(NodeID) *Shard { return &Shard{} }, 3)
	client.window.Open = func(context.Context) (SessionID, error) { return 5, nil }
	low := &Error{Kind: ErrNotProposed, Code: core.CodeDiskLow, RetryAfter: time.Millisecond, Message: "low"}
	refused, room, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error)
	go func() {
		_, err := client.do(within(t), Request{}, func(*Shard, context.Context, Request) (Result, error) {
			select {
			case refused <- struct{}{}:
			default:
			}
			select {
			case <-room:
				return Result{}, nil
			default:
				return Result{}, low
			}
		})
		ended <- err
	}()
	<-refused
	for range 10000 {
		if _, err := client.do(within(t), Request{MakesRoom: true}, func(*Shard, context.Context, Request) (Result, error) { return Result{}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	close(room)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for name, doubt := range map[string]error{
		"unknown": &Error{Kind: ErrUnknown, Code: core.CodeLeadershipLost}, "broken": &Error{Kind: ErrBroken, Code: core.CodeStorage}, "a stranger's": errors.New("lost"),
	} {
		client.window.Forget(5) // numbers start at 1
		answers := []error{low, &Error{Kind: ErrNotProposed, Code: core.CodeNotLeader, Leader: 2}, low, doubt, low, &Error{Kind: ErrNotProposed, Code: core.CodeNotLeader, Leader: 3}, low, nil}
		var numbers []uint64
		if _, err := client.do(within(t), Request{}, func(_ *Shard, _ context.Context, r Request) (Result, error) {
			numbers = append(numbers, r.Sequence)
			return Result{}, answers[len(numbers)-1]
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Equal(numbers, []uint64{1, 2, 2, 3, 3, 3, 3, 3}) {
			t.Errorf("%s: the attempts have the numbers %d", name, numbers)
		}
	}
	// One whose time is over while it is put off says for what, and leaves its place.
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	if _, err := client.do(ctx, Request{}, func(*Shard, context.Context, Request) (Result, error) {
		time.AfterFunc(20*time.Millisecond, cancel)
		return Result{}, low
	}); !errors.Is(err, low) {
		t.Error(err)
	}
	for range 4096 - 256 {
		if _, ok := client.window.TryBegin(session.Claim{}); !ok {
			t.Fatal("a place is still taken")
		}
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
