package admit

import (
	"math"
	"slices"
	"time"
)

// How a pace is measured.
const (
	paceTime    = time.Second           // of a measurement at least
	paceAnswers = 16                    // in one at least
	paceGap     = 50 * time.Millisecond // between two requests that find it full, at most; and twice the latency
	paceKept    = 4                     // so many measurements count
	paceUnknown = 2                     // before so many, the shard is as fast as can be
)

// pace is how fast a shard answers while as much is at work as is allowed, at its best of late. A rate says what a shard is capable of only while
// it has enough to do; so the time that is measured is that between two requests that found it full, if they are near to each other. The
// best of some seconds, as less at work makes a shard that commits in batches slower, and a floor that followed its last rate would follow itself down.
type pace struct {
	rates [paceKept]float64 // per second, the last one first
	last  int64             // when it was full
	since int               // answers since
	n     int               // answers in this measurement
	took  float64
}

func newPace() (p pace) {
	for i := paceUnknown; i < paceKept; i++ {
		p.rates[i] = math.Inf(1)
	}
	return p
}

func (p *pace) best() float64 { return slices.Max(p.rates[:]) }

// answered is told of every answer.
func (p *pace) answered() { p.since++ }

// full is told when somebody asks and as much is at work as is allowed.
func (p *pace) full(now, latency int64) {
	gap, n := now-p.last, p.since
	if gap == 0 {
		return
	}
	if gap < 0 || gap > max(int64(paceGap), 2*latency) {
		n, gap = 0, 0
	}
	p.last, p.since = now, 0
	p.n += n
	p.took += float64(gap)
	if p.took < float64(paceTime) || p.n < paceAnswers {
		return
	}
	copy(p.rates[1:], p.rates[:])
	p.rates[0] = float64(p.n) / p.took * 1e9
	p.n, p.took = 0, 0
}
