package admit

import (
	"math"
	"time"
)

// How a limiter measures and moves. See the package's doc for what it does and where it is from.
const (
	windowTime    = 20 * time.Millisecond // of a window at least; and 4 times the base
	windowAnswers = 16                    // in a window at least

	probeTime  = 100 * time.Millisecond // of the measurement in a probe; and 4 times what it measures
	probeLimit = 2 * time.Second        // after which a probe that found too few answers is given up
	rarely     = 32                     // times the base between probes at least: one takes three or four, with little at work
	often      = 5                      // times as often are slow shards probed that have a floor: few are at work there, and a stall in a probe, or before one, holds up most of them
	recheck    = 20                     // what cannot wait is due at the next multiple of ProbeEvery/20

	settleTime = 500 * time.Millisecond // for older requests at most; those that still are at work are held up by something else

	afterProbe = 0.3                   // how far a limit falls after a probe at most: what came before it may have been one hiccup
	unproven   = 0.7                   // of the last limit that was right: below it, a probe decides
	backOff    = 0.9                   // after a refusal from behind
	backOffGap = 10 * time.Millisecond // between two of them at least
	creep      = 0.01                  // by which a limit grows in one window near to where there was a refusal from behind; 1 at least

	floorRate = 10000 // requests per second: a shard that does them keeps all of Config.Floor; one that does a tenth, a thousandth of it
	deep      = 4     // times deepFloor: from a limit above that a probe goes down to it, as most may be a queue
)

// limiter finds the limit of one shard. Whoever owns it holds a lock.
type limiter struct {
	min, max, target float64
	most             float64 // Floor
	every            int64   // ProbeEvery

	limit float64 // between probes
	// right is the last limit that was found right, by a probe or by growing with a good latency.
	right float64
	base  float64 // latency without a queue, in ns; 0 while nothing is known

	// gen counts the changes of what is allowed, and older is how many of the requests at work began before the last one: while there are
	// some, they tell of another limit.
	gen      uint32
	older    int
	settleBy int64

	// The window. It is open once what is older is done.
	open  bool
	start int64
	n     int
	sum   float64 // of latencies, in ns
	sqr   float64 // of their squares
	// pressed: in this window as much was at work as the limit allows. held: a client would have had more at work, and may not, wherever the limit is.
	// dropped: there was a refusal from behind.
	pressed, held, dropped bool

	probing   bool
	giveUp    int64   // when the probe ends without a result
	before    float64 // latency in the last window that was pressed; 0 if there was none since the last probe
	bounded   bool    // in that window less was at work than the limit allows, by a client's own bound
	nextProbe int64
	lastBack  int64
	// tooMuch is a limit at which there were refusals from behind; 0 if that is long ago.
	tooMuch float64

	pace pace
	deep bool // this probe goes down to deepFloor
	// probed is how many were at work in the probe that the base is from; 0 if it is from none. That may have been a queue, if the shard has been found to be slow since.
	probed float64
}

func newLimiter(c *Config) limiter {
	return limiter{
		min: float64(c.MinLimit), max: float64(c.MaxLimit), target: c.Target, most: float64(c.Floor), every: int64(c.ProbeEvery),
		limit: float64(c.InitialLimit), right: float64(c.InitialLimit), pace: newPace(),
	}
}

// floor is what the limit does not fall below.
func (l *limiter) floor() float64 {
	part := l.part()
	return max(l.min, l.most*part*part*part)
}

// deepFloor is what a probe that goes down at once goes down to: with less, a slow shard would do next to nothing in it.
func (l *limiter) deepFloor() float64 {
	part := l.part()
	return max(l.min, l.most*part*part)
}

// slow reports whether the shard is known to be too slow for all of Floor.
func (l *limiter) slow() bool { return l.floored() && l.part() < 1 }

// part is how much of Floor the shard is worth.
func (l *limiter) part() float64 { return min(l.pace.best()/floorRate, 1) }

// allowed is how many requests may be at work now.
func (l *limiter) allowed() int {
	switch {
	case l.probing && l.deep:
		return int(l.deepFloor())
	case l.probing:
		return int(max(l.floor(), l.limit/(2*l.target)))
	}
	return int(l.limit)
}

// goesDeep reports whether a probe that begins now goes down at once.
func (l *limiter) goesDeep() bool { return l.floored() && l.limit > deep*l.deepFloor() }

// floored reports whether the limit of a shard depends on how fast it is.
func (l *limiter) floored() bool { return l.most > l.min }

// left is told of every request that is done, first. atWork is without it.
func (l *limiter) left(now int64, gen uint32, atWork int) {
	if gen != l.gen && l.older > 0 {
		l.older--
	}
	l.expire(now, atWork)
	if !l.probing && l.before > 0 && now >= l.nextProbe {
		// On the dot, not at the end of a window, so that others do it at the same time.
		l.beginProbe(now, atWork)
	}
	if !l.open && (l.older == 0 || now >= l.settleBy) {
		l.opens(now)
	}
}

// expire gives up a probe that gets no answers, such as one that ran into an election.
func (l *limiter) expire(now int64, atWork int) {
	if l.probing && now >= l.giveUp {
		l.probing, l.before = false, 0
		l.nextProbe = l.due(now, l.every)
		l.changed(now, atWork)
	}
}

func (l *limiter) opens(now int64) {
	l.open, l.start, l.n, l.sum, l.sqr, l.pressed, l.held, l.dropped = true, now, 0, 0, 0, false, false, false
}

// changed: what is at work from before tells nothing about the new limit.
func (l *limiter) changed(now int64, atWork int) {
	l.gen++
	l.older = atWork
	l.open, l.settleBy = false, now+int64(settleTime)
	if atWork == 0 {
		l.opens(now)
	}
}

// answered is told of every answer, after left.
func (l *limiter) answered(now, latency int64, gen uint32, atWork int) {
	if !l.open || gen != l.gen {
		return
	}
	l.n++
	l.sum += float64(latency)
	l.sqr += float64(latency) * float64(latency)
	mean := l.sum / float64(l.n)
	if l.n < windowAnswers {
		return
	}
	switch elapsed := float64(now - l.start); {
	case elapsed < 0: // a clock went back
		l.opens(now)
	case l.probing:
		long := l.deep && 2*mean > l.before && elapsed >= l.before // a quarter at work takes as long, and no stall does: it is the way, and no queue
		if elapsed >= float64(probeTime) && (elapsed >= 4*mean || long) {
			l.endProbe(now, atWork)
		}
	case elapsed >= max(float64(windowTime), 4*l.base):
		l.endWindow(now, mean, atWork)
	}
}

// typical is what a window says about the base: the root mean square, twice the mean at most. The mean alone tolerates too
// little where the service itself varies: who may wait 15 ms for one fsync in fifty loses nothing by a queue of 5 ms,
// and without one the service has nothing to do after it.
func (l *limiter) typical() float64 {
	mean := l.sum / float64(l.n)
	return min(math.Sqrt(l.sqr/float64(l.n)), 2*mean)
}

func (l *limiter) endWindow(now int64, latency float64, atWork int) {
	pressed, held, dropped, typical := l.pressed, l.held, l.dropped, l.typical()
	l.opens(now)
	switch {
	case l.base == 0 && !pressed && !held:
		l.base = typical
	case l.base > typical:
		l.base += (typical - l.base) / 4 // not at once: a mean over a few fsyncs is noisy
	}
	if pressed || held { // what a client's own bound leaves may be a queue as well: a probe tells
		l.before, l.bounded = latency, !pressed
	}
	if !pressed {
		return
	}
	if l.base == 0 {
		l.nextProbe = now // nothing is known: at once
		return
	}
	if l.floored() && l.probed > deep*l.deepFloor() {
		l.nextProbe = min(l.nextProbe, l.due(now, l.every/recheck))
	}
	next := l.limit + (l.limit*l.target*l.base/latency-l.limit)/2
	switch {
	case next > l.limit && dropped:
		return
	case next > l.limit:
		if next > backOff*l.tooMuch && l.tooMuch > 0 {
			next = min(next, max(backOff*l.tooMuch, l.limit+max(1, creep*l.limit)))
		}
	case next < unproven*l.right:
		l.nextProbe = min(l.nextProbe, l.due(now, l.every/recheck))
		next = unproven * l.right
	}
	l.set(now, next, atWork)
	l.right = max(l.right, l.limit)
}

// set changes the limit.
func (l *limiter) set(now int64, limit float64, atWork int) {
	was := l.allowed()
	l.limit = min(max(limit, l.floor()), l.max)
	if l.allowed() != was {
		l.changed(now, atWork)
	}
}

func (l *limiter) beginProbe(now int64, atWork int) {
	l.probing, l.deep = true, l.goesDeep()
	if l.bounded { // a probe from a limit that nobody comes near lowers nothing, and takes the queue for the base
		l.limit = min(l.limit, max(float64(atWork), l.floor()))
	}
	l.giveUp = now + int64(probeLimit)
	// A long queue may have to go first, and few at work take many rounds. Without a floor no later probe would do better, so there is time for all that this one takes.
	switch rounds := math.Ceil(windowAnswers / float64(l.allowed())); {
	case l.deep || rounds > 1:
		l.giveUp = max(l.giveUp, now+int64((2+rounds)*l.before))
	case !l.floored():
		l.giveUp = max(l.giveUp, now+int64(6*l.before))
	}
	l.changed(now, atWork)
}

func (l *limiter) endProbe(now int64, atWork int) {
	base, was := l.typical(), l.base
	l.probed = float64(l.allowed())
	l.base = base
	// Never up: that is for windows that were pressed.
	least := afterProbe * l.limit
	if l.deep { // most of it was a queue
		least = min(least, deep*l.deepFloor())
	}
	l.limit = max(min(l.limit*l.target*l.base/l.before, l.limit), least, l.floor())
	l.probing, l.before, l.tooMuch = false, 0, 0
	l.nextProbe = l.afterLast(now, base)
	// A hiccup, or a queue so long that it was not gone: again. Where few are at work, a small one is enough.
	if base > 1.5*was || base < was/1.5 || l.slow() && base > 1.2*was {
		l.nextProbe = l.due(now, l.every/recheck)
	}
	l.right = l.limit
	l.changed(now, atWork)
}

// afterLast is when a probe is due that follows one now. One in three at least is not left out, as the service may have become faster.
func (l *limiter) afterLast(now int64, base float64) int64 {
	every := l.every
	if l.slow() {
		every /= often
	}
	return l.due(now+min(rarely*int64(base), 2*l.every), every)
}

// due is the next multiple of every, the same for everybody with the same clock.
func (l *limiter) due(now, every int64) int64 {
	return now - now%every + every
}

// refused is told of every request that was refused from behind because of overload.
func (l *limiter) refused(now int64, latency int64, atWork int) {
	l.dropped = true
	if gap := now - l.lastBack; gap >= 0 && gap < max(int64(backOffGap), latency) {
		return
	}
	l.lastBack, l.tooMuch = now, l.limit
	l.set(now, l.limit*backOff, atWork)
	l.right = min(l.right, l.limit)
}
