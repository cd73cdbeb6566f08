package clock

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/route"
)

// A clock that sleeps until a far deadline wakes for a near one, and ticks for nothing when nothing is due.
func TestClock(t *testing.T) {
	epoch := time.Now()
	now := func() int64 { return int64(time.Since(epoch)) }
	k := New(now)
	r := route.New(route.Config{Shard: 1, Sooner: k.Sooner})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var ticks atomic.Int64
	go func() {
		defer close(ended)
		k.Run(ctx, func(f func(*route.Router)) {
			ticks.Add(1)
			f(r)
		})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	done := make(chan *route.Call, 2)
	submit := func(deadline time.Duration) {
		r.Submit(now(), &route.Call{Kind: route.Read, Shard: 1, Deadline: now() + int64(deadline), Done: func(c *route.Call) { done <- c }})
	}
	submit(time.Hour) // which waits for a leader, and is tried now and then
	// Nobody waits any more: the far deadline alone is left.
	r.Targets(now(), []route.Target{silent{}})
	r.Learn(now(), silent{}, 1)
	for {
		before := ticks.Load()
		time.Sleep(200 * time.Millisecond)
		if ticks.Load() == before {
			break
		}
	}
	submit(20 * time.Millisecond)
	select {
	case c := <-done:
		if c.Err == nil || c.Deadline > now() {
			t.Errorf("it ended with %v", c.Err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the near deadline was slept through")
	}
}

// silent takes calls and does not answer.
type silent struct{}

func (silent) Send(*route.Call, uint32) bool { return true }
