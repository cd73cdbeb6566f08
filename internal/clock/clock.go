// Package clock ticks the routers of a process (internal/route), which know no time of their own.
package clock

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/internal/route"
)

// A Clock ticks routers when something is due, and sleeps otherwise: whoever is idle costs nothing.
type Clock struct {
	now  func() int64
	at   atomic.Int64 // when to wake
	wake chan struct{}
}

// closest is how soon after a tick the next may be: deadlines and pauses are kept to about that.
const closest = 2 * time.Millisecond

// New returns a clock over a time in nanoseconds.
func New(now func() int64) *Clock {
	k := &Clock{now: now, wake: make(chan struct{}, 1)}
	k.at.Store(math.MaxInt64)
	return k
}

// Sooner says that something is due at a time. It is for route.Config.Sooner, and does not block.
func (k *Clock) Sooner(at int64) {
	if !k.lower(at) {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *Clock) lower(at int64) bool {
	for {
		old := k.at.Load()
		if at >= old {
			return false
		}
		if k.at.CompareAndSwap(old, at) {
			return true
		}
	}
}

// Run ticks until ctx ends. each calls its argument for every router whose route.Config.Sooner is the clock's.
func (k *Clock) Run(ctx context.Context, each func(func(*route.Router))) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-t.C:
			k.at.Store(math.MaxInt64) // what becomes due from here on lowers it again
			each(func(r *route.Router) {
				r.Tick(k.now())
				k.lower(r.Due())
			})
		}
		// Not longer than an hour: far ahead is often "never", which is no time to compute with.
		t.Reset(min(max(time.Duration(k.at.Load()-k.now()), closest), time.Hour))
	}
}
