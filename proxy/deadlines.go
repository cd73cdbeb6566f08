package proxy

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/route"
)

// sweepPause is between two looks for calls whose time is over, at least.
const sweepPause = 10 * time.Millisecond

// deadlines end calls that a node was handed and has not answered in time: a shard whose disk hangs answers nobody, and nodes know no deadlines.
type deadlines struct {
	mu    sync.Mutex
	calls timed // ring
	due   int64 // when the timer is; math.MaxInt64: it is not set
	timer *time.Timer
}

// timed is a call until its outcome or its deadline, whichever comes first.
type timed struct {
	call       *route.Call
	prev, next *timed // nil: there is an outcome
}

func newDeadlines() *deadlines {
	d := &deadlines{due: math.MaxInt64}
	d.calls.prev, d.calls.next = &d.calls, &d.calls
	return d
}

func (d *deadlines) add(c *route.Call) *timed {
	t := &timed{call: c}
	d.mu.Lock()
	defer d.mu.Unlock()
	t.prev, t.next = d.calls.prev, &d.calls
	t.prev.next, t.next.prev = t, t
	if c.Deadline < d.due {
		d.set(c.Deadline)
	}
	return t
}

// take reports whether the call has no outcome yet: then who asks gives it one.
func (d *deadlines) take(t *timed) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return t.leave()
}

func (t *timed) leave() bool {
	if t.next == nil {
		return false
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.prev, t.next = nil, nil
	return true
}

// set has sweep called at a time. d.mu is held.
func (d *deadlines) set(at int64) {
	d.due = at
	wait := max(time.Duration(at-monotonic()), 0)
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, d.sweep)
		return
	}
	d.timer.Reset(wait)
}

func (d *deadlines) sweep() {
	var late []*route.Call
	d.mu.Lock()
	now, due := monotonic(), int64(math.MaxInt64)
	for t := d.calls.next; t != &d.calls; {
		next := t.next
		if t.call.Deadline <= now {
			t.leave()
			late = append(late, t.call)
		} else {
			due = min(due, t.call.Deadline)
		}
		t = next
	}
	d.due = due
	if due != math.MaxInt64 {
		d.set(max(due, now+int64(sweepPause)))
	}
	d.mu.Unlock()
	for _, c := range late {
		c.Err = c.Abandoned("no answer before the deadline of the call", context.DeadlineExceeded)
		c.Done(c)
	}
}
