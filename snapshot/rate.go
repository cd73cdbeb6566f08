package snapshot

import (
	"context"
	"time"
)

// limiter spaces out bytes so that no more than perSecond pass in the long run. One goroutine uses it.
type limiter struct {
	perSecond int64 // 0: no limit
	next      time.Time

	// For tests.
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) error
}

func newLimiter(perSecond int64) *limiter {
	return &limiter{perSecond: perSecond, now: time.Now, sleep: sleep}
}

// burst is how much of idle time is made up for: a writer that waits for its disk now and then still reaches its rate.
const burst = 100 * time.Millisecond

// wait returns when n more bytes may pass, or with ctx's error.
func (l *limiter) wait(ctx context.Context, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l.perSecond <= 0 {
		return nil
	}
	now := l.now()
	if earliest := now.Add(-burst); l.next.Before(earliest) {
		l.next = earliest
	}
	d := l.next.Sub(now)
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.perSecond) * float64(time.Second)))
	if d <= 0 {
		return nil
	}
	return l.sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
