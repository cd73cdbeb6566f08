package snapshot

import (
	"context"
	"time"
)

// limiter spaces out bytes so that no more than perSecond pass in the long run, and lets who writes them rest. One goroutine uses it.
type limiter struct {
	perSecond int64 // 0: no limit
	next      time.Time

	rest func(worked time.Duration) time.Duration // CutOptions.Rest; nil: no rests
	woke time.Time                                // when the last rest ended

	// For tests.
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) error
}

func newLimiter(perSecond int64, rest func(worked time.Duration) time.Duration) *limiter {
	return &limiter{perSecond: perSecond, rest: rest, woke: time.Now(), now: time.Now, sleep: sleep}
}

const (
	// burst is how much of idle time is made up for: a writer that waits for its disk now and then still reaches its rate.
	burst = 100 * time.Millisecond
	// restAfter is how long there is work before a rest, at least: timers are no finer than that.
	restAfter = 2 * time.Millisecond
)

// wait returns when n more bytes may pass, or with ctx's error.
func (l *limiter) wait(ctx context.Context, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l.perSecond <= 0 && l.rest == nil {
		return nil
	}
	now := l.now()
	d := max(l.spaced(now, n), l.rested(now))
	if d <= 0 {
		return nil
	}
	err := l.sleep(ctx, d)
	l.woke = l.now()
	return err
}

// spaced is how long n bytes have to wait for those before them.
func (l *limiter) spaced(now time.Time, n int) time.Duration {
	if l.perSecond <= 0 {
		return 0
	}
	if earliest := now.Add(-burst); l.next.Before(earliest) {
		l.next = earliest
	}
	d := l.next.Sub(now)
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.perSecond) * float64(time.Second)))
	return d
}

// rested is how long to rest from what was done since the last time.
func (l *limiter) rested(now time.Time) time.Duration {
	worked := now.Sub(l.woke)
	if l.rest == nil || worked < restAfter {
		return 0
	}
	l.woke = now
	return l.rest(worked)
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
