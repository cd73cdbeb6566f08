// Package route decides where a call goes, and what becomes of it when whoever was asked says no or nothing.
//
// A Router is for one shard. It takes what it is told about the topology as a hint: the replica that is asked checks. An answer that
// says that the call certainly did not happen sends it on; one that leaves that open does so only if asking twice does no harm, as the
// shard knows the call by its session number. Calls wait here while nobody leads, up to their deadlines. So a change of leader is nothing but latency [G12].
//
// Nothing here reads a clock or starts a goroutine: proxies, clients and the simulator drive the same code.
package route

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// Target is somebody who can be asked: a node, or a proxy.
type Target interface {
	// Send hands an attempt on, and reports whether it could. The outcome comes through Call.Answer or Call.Lost, later, and not from within
	// Send, which must not block.
	Send(c *Call, attempt uint32) bool
}

// Config configures a Router.
type Config struct {
	Shard core.ShardID
	// Any: whoever is reached answers for everybody, as a proxy does. Otherwise calls wait until somebody is known to lead.
	Any bool
	// Resolve returns who is meant by an error's hint, or nil.
	Resolve func(*core.Error) Target
	// Lead is called when a leader is wanted and none is known. It must not block, nor call the router.
	Lead func()
	// Missing, if set, says why nobody can be asked, or "": in the words with which calls end that have waited for that. It must not block, nor call the router.
	Missing func() string
	// Sooner, if set, is called when Tick has something to do at a time, earlier than was known. It must not block, nor call the router.
	Sooner func(at int64)
	// MaxWaiting bounds the calls, and MaxWaitingBytes what they hold, that wait for a leader: further ones are refused. Those that a target had taken already may
	// wait beside them, as they are held anyway.
	MaxWaiting      int
	MaxWaitingBytes int64
}

const (
	// maxBounces: replicas may point at each other.
	maxBounces = 3
	// The pause before a call is tried again doubles from the first to the second.
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond
	// disbelief is how long a hint that was denied is not taken again.
	disbelief = 300 * time.Millisecond
	// roomPause is how soon a target that had no room is tried again.
	roomPause = 5 * time.Millisecond
)

// Stats count what a Router has done. A snapshot.
type Stats struct {
	Calls, Waiting        int   // under way, and those of them that wait for a leader
	WaitingBytes          int64 // that the latter hold
	Retries, Refused, Led uint64
	TimedOut              uint64
}

// Router routes the calls of one shard. Its methods may be called from any goroutine.
type Router struct {
	cfg Config
	due atomic.Int64 // when Tick has something to do
	led atomic.Bool  // leader is not nil

	mu      sync.Mutex
	targets []Target
	leader  Target
	term    core.Term // in which it was said to lead
	refuted hint      // the last that was wrong, as the one whom it names said
	// refutedUntil ends that: a term that was made up may come true.
	refutedUntil int64
	turn         int
	all          Call // ring of all calls
	waiting      []*Call
	held         int64 // bytes of waiting
	closed       error
	stats        Stats
}

// hint says that somebody leads in a term.
type hint struct {
	leader Target
	term   core.Term
}

// New returns a router that knows nobody yet.
func New(cfg Config) *Router {
	r := &Router{cfg: cfg}
	r.cfg.MaxWaiting = cmp.Or(cfg.MaxWaiting, 1<<16)
	r.cfg.MaxWaitingBytes = cmp.Or(cfg.MaxWaitingBytes, 256<<20)
	r.all.prev, r.all.next = &r.all, &r.all
	r.due.Store(math.MaxInt64)
	return r
}

// Stats returns what was counted.
func (r *Router) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Waiting, s.WaitingBytes = len(r.waiting), r.held
	return s
}

// Submit takes a call in.
func (r *Router) Submit(now int64, c *Call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.router = r
	c.prev, c.next = r.all.prev, &r.all
	c.prev.next, c.next.prev = c, c
	r.stats.Calls++
	if r.closed != nil {
		r.finish(c, core.Result{}, r.closed)
		return
	}
	if c.Deadline <= now { // nobody is asked, so that nothing is in doubt
		r.expire(c)
		return
	}
	r.sooner(c.Deadline)
	if !r.send(c) {
		if len(r.waiting) >= r.cfg.MaxWaiting || r.held+int64(c.Size()) > r.cfg.MaxWaitingBytes {
			r.refuse(c)
			return
		}
		r.park(now, c, 0)
	}
}

func (r *Router) refuse(c *Call) {
	r.stats.Refused++
	r.finish(c, core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: lastPause,
		Message: fmt.Sprintf("%d calls wait for a leader of shard %d already", len(r.waiting), r.cfg.Shard)})
}

func (r *Router) sooner(at int64) {
	if at >= r.due.Load() {
		return
	}
	r.due.Store(at)
	if r.cfg.Sooner != nil {
		r.cfg.Sooner(at)
	}
}

// Targets says who may be asked. Calls that were sent to others stay there.
func (r *Router) Targets(now int64, targets []Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets = slices.Clone(targets)
	r.flush(now)
}

// Learn takes a hint about who leads, and reports whether it did. One of an earlier term is old news while somebody is believed to lead: after that any is
// worth a try, as a term that somebody made up must not keep the others out for ever. One that the leader itself has just denied is wrong,
// whoever repeats it; but not for ever, as it may have been true too early.
func (r *Router) Learn(now int64, leader Target, term core.Term) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leader == nil || r.leader != nil && term < r.term || r.refuted == (hint{leader, term}) && now < r.refutedUntil {
		return false
	}
	overtaken := term > r.term || r.leader == nil
	r.term = term
	if leader == r.leader {
		return true
	}
	r.lead(leader)
	if overtaken {
		r.resend(now)
	}
	r.flush(now)
	return true
}

func (r *Router) lead(t Target) {
	if t != nil && t != r.leader {
		r.stats.Led++
	}
	r.leader = t
	r.led.Store(t != nil)
}

// Led reports whether somebody is known to lead.
func (r *Router) Led() bool { return r.led.Load() }

// resend sends what overtaken leaders have not answered to their successor: the answer may never come.
func (r *Router) resend(now int64) {
	for c := r.all.next; c != &r.all; c = c.next {
		if c.target != r.leader && !c.parked && !c.anywhere() && c.repeatable() {
			c.inDoubt = c.inDoubt || c.changes()
			r.stats.Retries++
			if !r.send(c) {
				r.park(now, c, 0)
			}
		}
	}
}

// Up says that a target can be reached, perhaps again.
func (r *Router) Up(now int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flush(now)
}

// Down says that a target cannot be reached.
func (r *Router) Down(t Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leader == t {
		r.lead(nil)
	}
}

// Refuse ends the calls that wait: whoever could be asked has said that it will not answer this caller.
func (r *Router) Refuse(why *core.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.waiting {
		e := *why
		if c.mayHappen() {
			e.Kind = core.ErrUnknown
		}
		r.finish(c, core.Result{}, &e)
	}
	clear(r.waiting)
	r.waiting, r.held = r.waiting[:0], 0
}

// Close ends all calls with an error, also those that come later: as unknown, what may have happened.
func (r *Router) Close(why *core.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = why
	for r.all.next != &r.all {
		c := r.all.next
		e := *why
		if c.mayHappen() {
			e.Kind = core.ErrUnknown
		}
		r.finish(c, core.Result{}, &e)
	}
	r.waiting, r.held = nil, 0
}

// send hands a call to who can answer it, and reports whether it could.
func (r *Router) send(c *Call) bool {
	if c.anywhere() && !r.cfg.Any && r.spread(c) {
		return true
	}
	if r.leader != nil && r.try(r.leader, c) {
		return true
	}
	if !r.cfg.Any {
		return false
	}
	for range r.targets {
		t := r.targets[r.turn%len(r.targets)]
		if r.try(t, c) {
			r.lead(t)
			return true
		}
		r.turn++
	}
	return false
}

// spread sends a read to one replica after the other, but not to the one that has just failed it, if there is another.
func (r *Router) spread(c *Call) bool {
	failed := c.target
	for range r.targets {
		r.turn++
		if t := r.targets[r.turn%len(r.targets)]; t != failed && r.try(t, c) {
			return true
		}
	}
	return failed != nil && r.try(failed, c)
}

func (r *Router) try(t Target, c *Call) bool {
	c.attempt++
	if c.Mark != nil {
		c.Acknowledged = c.Mark(c)
	}
	if !t.Send(c, c.attempt) {
		return false
	}
	c.target, c.term, c.parked = t, r.term, false
	c.step("sent", t, nil)
	return true
}

// park lets a call wait for a leader, at least for a while.
func (r *Router) park(now int64, c *Call, pause time.Duration) {
	c.parked, c.bounces = true, 0
	c.step("waits", nil, nil)
	c.attempt++ // what was sent counts for nothing any more
	c.notBefore = now + int64(pause)
	r.waiting = append(r.waiting, c)
	r.held += int64(c.Size())
	if pause == 0 {
		pause = r.patience()
		r.wanted()
	}
	r.sooner(min(now+int64(pause), c.end()))
}

// patience is how long to wait for news, or for room.
func (r *Router) patience() time.Duration {
	if r.leader != nil {
		return roomPause
	}
	return lastPause
}

func (r *Router) wanted() {
	if r.leader == nil && r.cfg.Lead != nil {
		r.cfg.Lead()
	}
}

// flush sends what waits and may go.
func (r *Router) flush(now int64) {
	if len(r.waiting) == 0 {
		return
	}
	due := int64(math.MaxInt64)
	kept := r.waiting[:0]
	for _, c := range r.waiting {
		if c.notBefore <= now && r.send(c) {
			r.held -= int64(c.Size())
			continue
		}
		if c.notBefore > now {
			due = min(due, c.notBefore)
		} else {
			due = min(due, now+int64(r.patience()))
		}
		kept = append(kept, c)
	}
	clear(r.waiting[len(kept):])
	r.waiting = kept
	r.sooner(due)
}

// Due returns when Tick has something to do.
func (r *Router) Due() int64 { return r.due.Load() }

// Tick does what is due: ends calls whose deadline has come, and tries others again.
func (r *Router) Tick(now int64) {
	if now < r.due.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	due := int64(math.MaxInt64)
	late := false
	for c := r.all.next; c != &r.all; {
		next := c.next
		if c.end() <= now {
			late = late || c.parked
			r.expire(c)
		} else {
			due = min(due, c.end())
		}
		c = next
	}
	if late {
		r.forgetFinished()
	}
	r.due.Store(due)
	r.flush(now)
	if len(r.waiting) > 0 {
		r.wanted()
	}
}

// forgetFinished takes calls that have ended out of those that wait.
func (r *Router) forgetFinished() {
	r.waiting = slices.DeleteFunc(r.waiting, func(c *Call) bool { return c.finished })
	r.held = 0
	for _, c := range r.waiting {
		r.held += int64(c.Size())
	}
}

// expire ends a call at its deadline.
func (r *Router) expire(c *Call) {
	r.stats.TimedOut++
	c.Late = true
	r.finish(c, core.Result{}, core.Late(c.mayHappen(), r.last(c), context.DeadlineExceeded))
}

// last is what keeps a call from its outcome: the last that was said of it, or that nobody could be asked.
func (r *Router) last(c *Call) error {
	switch {
	case c.last != nil:
		return c.last
	case !c.parked || r.leader != nil: // somebody has it, or had no room for it
		return nil
	case r.cfg.Any || c.anywhere():
		return fmt.Errorf("nobody is reached who could be asked about shard %d", r.cfg.Shard)
	}
	why := ""
	if r.cfg.Missing != nil {
		why = r.cfg.Missing()
	}
	why = cmp.Or(why, fmt.Sprintf("nobody is known to lead shard %d", r.cfg.Shard))
	return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNoLeader, Message: why + ", so that nobody could be asked"}
}

// finish takes the call out, but for waiting, and gives it its outcome.
func (r *Router) finish(c *Call, res core.Result, err error) {
	c.prev.next, c.next.prev = c.next, c.prev
	c.Held = c.target != nil && !c.parked && (c.target == r.leader || c.anywhere())
	c.prev, c.next, c.target, c.finished = nil, nil, nil, true
	c.attempt++ // what still comes in counts for nothing
	r.stats.Calls--
	c.Result, c.Err, c.last = res, err, nil
	c.Done(c)
}

func (r *Router) answer(now int64, c *Call, attempt uint32, res core.Result, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.attempt != attempt && (c.finished || c.parked || !mutated("late-answer")) {
		return
	}
	if err == nil {
		r.finish(c, res, nil)
		return
	}
	c.failures++
	c.last = err
	c.step("failed", c.target, err)
	switch e, no := core.Verdict(err); {
	case no != nil, e == nil:
		r.finish(c, core.Result{}, err)
	case e.Code == core.CodeAnswerTooLarge && (e.Kind != core.ErrNotProposed || !c.inDoubt): // and it would be again
		r.finish(c, core.Result{}, err)
	case e.Code == core.CodeSequenceTooHigh && c.Mark == nil && !c.inDoubt:
		r.finish(c, core.Result{}, err)
	case e.Code == core.CodeSequenceTooHigh:
		r.again(now, c, errTooHigh) // outcomes of others make room
	case e.Code.Ended():
		r.finish(c, core.Result{}, ended(c, e))
	case e.Kind == core.ErrNotProposed && final(e.Code) && !c.inDoubt:
		r.finish(c, core.Result{}, err)
	case e.Kind != core.ErrNotProposed && !c.repeatable():
		r.finish(c, core.Result{}, err)
	default:
		c.inDoubt = c.inDoubt || e.Kind != core.ErrNotProposed && c.changes()
		r.again(now, c, e)
	}
}

// ended is the answer to a call whose session does not know it. A session that ended, or forgot, while an attempt was unknown took the outcome with it.
func ended(c *Call, why *core.Error) error {
	if c.inDoubt && !mutated("expired-is-not-proposed") {
		return &core.Error{Kind: core.ErrUnknown, Code: why.Code,
			Message: "the session does not know any more what became of it: read from the state whether it happened (" + why.Error() + ")"}
	}
	return why
}

var errTooHigh = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded, Message: "the window of the session is full"}

// final: asking again, or somebody else, would not help, or is for the caller to decide.
func final(code core.Code) bool { return code.Final() || code.Busy() }

// again sends a call on, or puts it off.
func (r *Router) again(now int64, c *Call, e *core.Error) {
	r.stats.Retries++
	from, pause := c.target, min(firstPause<<min(c.failures, 16), lastPause)
	var hinted Target
	if r.cfg.Resolve != nil && (e.Leader != 0 || e.LeaderAddress != "") {
		hinted = r.cfg.Resolve(e)
	}
	if e.Code.Busy() {
		r.park(now, c, max(e.RetryAfter, pause))
		return
	}
	if r.leader == from && (!c.anywhere() || r.cfg.Any) { // with Any these, too, go to the leader first
		if denies(e.Code) && c.term == r.term && r.term != 0 {
			// It was asked when it was said to lead. So nobody else's word for that counts.
			r.refuted, r.refutedUntil = hint{from, r.term}, now+int64(disbelief)
		}
		r.lead(nil)
		r.turn++
	}
	if hinted != nil && hinted != from && !c.anywhere() {
		if r.leader == nil {
			r.lead(hinted)
			defer r.flush(now)
		}
		if c.bounces++; c.bounces <= maxBounces && r.send(c) {
			return
		}
	}
	if c.anywhere() && c.failures <= len(r.targets) && r.send(c) {
		return
	}
	r.park(now, c, pause)
	r.wanted()
}

// denies: who says so does not lead.
func denies(code core.Code) bool {
	switch code {
	case core.CodeNotLeader, core.CodeNoLeader, core.CodeNoShard, core.CodeRemoved:
		return true
	}
	return false
}
