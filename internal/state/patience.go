package state

import (
	"errors"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	failedPause    = 100 * time.Millisecond
	failedPauseMax = 10 * time.Second
)

// patience is pebble's scheduler of compactions, but for a pause after one that has failed: pebble picks the same again at once, and so for ever if what is damaged
// lies in level 0. To wait where pebble tells of the failure would hold its lock, which flushes need, and whoever takes the first
// version of a flush: a worker that waited for it would stand still with all its shards.
//
// While it pauses, pebble is allowed no compaction, by the very number that the scheduler asks it for.
type patience struct {
	*pebble.ConcurrencyLimitScheduler // grants only when a compaction ends or asks
	first                             time.Duration

	mu     sync.Mutex // pebble's locks come before it
	paused bool
	over   bool          // nothing is granted any more
	pause  time.Duration // the last; 0: none since a compaction ended well
	timer  *time.Timer
	failed []error // of compactions, which pebble has yet to report as errors
}

func newPatience(first time.Duration) *patience {
	return &patience{ConcurrencyLimitScheduler: pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest(), first: first}
}

// Register implements pebble.CompactionScheduler.
func (p *patience) Register(n int, db pebble.DBForCompaction) {
	p.ConcurrencyLimitScheduler.Register(n, pausedDB{db, p})
}

// Unregister implements pebble.CompactionScheduler. A timer that fires all the same finds that the scheduler grants nothing any more.
func (p *patience) Unregister() {
	p.mu.Lock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	p.ConcurrencyLimitScheduler.Unregister()
}

type pausedDB struct {
	pebble.DBForCompaction
	p *patience
}

func (d pausedDB) GetAllowedWithoutPermission() int {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if d.p.paused {
		return 0
	}
	return d.DBForCompaction.GetAllowedWithoutPermission()
}

// ended is told of every compaction, under pebble's lock.
func (p *patience) ended(i pebble.CompactionInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case i.Err == nil:
		p.pause = 0
	case !errors.Is(i.Err, pebble.ErrCancelledCompaction): // which is none of pebble's background errors
		p.failed = append(p.failed, i.Err)
	}
}

// noteFailure reports whether a background error is a compaction's, and if so begins a pause.
func (p *patience) noteFailure(err error) (compaction bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.failed {
		if errors.Is(err, p.failed[i]) {
			p.failed = append(p.failed[:i], p.failed[i+1:]...)
			compaction = true
			break
		}
	}
	if !compaction {
		return false
	}
	p.pause = min(max(2*p.pause, p.first), max(p.first, failedPauseMax))
	p.paused = true
	if p.timer != nil {
		p.timer.Stop()
	}
	if !p.over {
		p.timer = time.AfterFunc(p.pause, p.resume)
	}
	return true
}

// resume ends the pause and has pebble granted what waits. It must not be called under pebble's lock.
func (p *patience) resume() {
	p.mu.Lock()
	p.paused = p.over
	p.mu.Unlock()
	if ok, h := p.TrySchedule(); ok {
		h.Done() // which gives it to whoever waits
	}
}

// end allows no compaction any more. What runs is not waited for.
func (p *patience) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused, p.over = true, true
	if p.timer != nil {
		p.timer.Stop()
	}
}
