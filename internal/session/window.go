// Package session keeps a client's side of exactly-once: one session of a shard, the numbers that it gives to commands, and up to which of
// them all outcomes are known.
package session

import (
	"context"
	"sync"

	"github.com/decree-raft/decree/internal/core"
)

// MaxUnacknowledged is how far the numbers given out may be ahead of the first one whose outcome is not known: within the default
// window of a session.
const MaxUnacknowledged = 4096

// forRoom of them are for commands that make room only: others, which may wait for those, never have all.
const forRoom = 256

// ErrNumbered refuses a request that has a number already.
var ErrNumbered = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeBadRequest,
	Message: "the request names a session, or a number in one: a client has its own; leave Session, Sequence and Acknowledged 0"}

// Window is a client's session, which is opened when it is needed. Any number of goroutines may use it.
type Window struct {
	// Open opens a session on the shard.
	Open func(ctx context.Context) (core.SessionID, error)

	mu      sync.Mutex
	id      core.SessionID
	opening chan struct{} // closed when the opening under way ends
	room    chan struct{} // closed when numbers are free again; nil if nobody waits
	last    uint64        // given out
	acked   uint64        // outcomes known up to here
	known   map[uint64]bool
	putOff  uint64 // commands that have given up their numbers, and come back
}

// Claim says who wants a number.
type Claim struct {
	MakesRoom bool // as rsm.Request.MakesRoom
	Back      bool // it was put off: see PutOff
}

// Number names a command for ever.
type Number struct {
	Session      core.SessionID
	Sequence     uint64
	Acknowledged uint64 // as it was when the number was given out
}

// TryBegin returns the next number, if there is a session and room in it.
func (w *Window) TryBegin(c Claim) (Number, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next(c)
}

// next is TryBegin with w.mu held.
func (w *Window) next(c Claim) (Number, bool) {
	taken, limit := w.last-w.acked, uint64(MaxUnacknowledged)
	switch {
	case c.Back && !c.MakesRoom:
		limit /= 2 // where one in doubt keeps its number, those that come back again and again do not take all that follow it
	case !c.MakesRoom:
		if w.putOff > 0 && taken >= limit/2-forRoom {
			return Number{}, false // those that come back go first
		}
		taken, limit = taken+w.putOff, limit-forRoom // who was put off has kept its place
	case !c.Back:
		taken = max(taken, w.putOff)
	}
	if w.id == 0 || taken >= limit {
		return Number{}, false
	}
	if c.Back {
		w.leave()
	}
	w.last++
	return Number{w.id, w.last, w.acked}, true
}

// Begin returns the next number, when there is a session and room in it. Its error says that the command was not proposed.
func (w *Window) Begin(ctx context.Context, c Claim) (Number, error) {
	for {
		w.mu.Lock()
		if n, ok := w.next(c); ok {
			w.mu.Unlock()
			return n, nil
		}
		switch {
		case w.id != 0:
			if w.room == nil {
				w.room = make(chan struct{})
			}
			room := w.room
			w.mu.Unlock()
			select {
			case <-room:
			case <-ctx.Done():
				return Number{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded, Cause: ctx.Err(),
					Message: "too many commands of this client wait for their outcomes"}
			}
		case w.opening != nil:
			opening := w.opening
			w.mu.Unlock()
			select {
			case <-opening:
			case <-ctx.Done():
				return Number{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeCancelled, Message: "no session in time", Cause: ctx.Err()}
			}
		default:
			w.opening = make(chan struct{})
			w.mu.Unlock()
			if err := w.open(ctx); err != nil {
				return Number{}, err
			}
		}
	}
}

// open opens a session. That an opening may have happened unseen does not matter: it expires.
func (w *Window) open(ctx context.Context) error {
	id, err := w.Open(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.opening)
	w.opening = nil
	if err == nil {
		w.id, w.last, w.acked, w.known = id, 0, 0, map[uint64]bool{}
		return nil
	}
	if e, ok := err.(*core.Error); ok && e.Kind != core.ErrNotProposed {
		safe := *e
		safe.Kind = core.ErrNotProposed // the command, which this is about, was not
		return &safe
	}
	return err
}

// Acknowledged returns up to which number outcomes are known: what a request with this number may say.
func (w *Window) Acknowledged(n Number) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.id != n.Session {
		return 0
	}
	return min(w.acked, n.Sequence-1)
}

// Finish notes that nobody will ask for the outcome of n again.
func (w *Window) Finish(n Number) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finish(n)
}

// finish is Finish with w.mu held.
func (w *Window) finish(n Number) {
	if w.id != n.Session {
		return
	}
	if n.Sequence != w.acked+1 {
		w.known[n.Sequence] = true
		return
	}
	w.acked++
	for len(w.known) > 0 && w.known[w.acked+1] {
		w.acked++
		delete(w.known, w.acked)
	}
	w.wake()
}

// PutsOff reports whether an attempt ended with what PutOff is for: it was refused for want of disk, which may last, while commands that make room are taken.
//
// Of "overloaded" that is not true. A session that is full is emptied by the command that acknowledges all before it: the one with the lowest number. If those that wait took
// new ones, none would stay that.
func PutsOff(err error) bool {
	e, _ := core.Verdict(err)
	return e != nil && e.Kind == core.ErrNotProposed && e.Code == core.CodeDiskLow
}

// PutOff gives up the number of a command that was refused for a while: it comes back for another (Claim.Back), or Leaves. It keeps its place among those that may be under way.
// Who waited under a number would keep all that come after it from being acknowledged: a window, or a session's memory, full of commands that made room would wait for
// the one that waits for room [G11].
//
// Invariant: no attempt under n has been executed, or ever will be. Else the one under the next number would be the second [G12]. This is so if each of them was refused as
// ErrNotProposed, which says so of its attempt for ever, by who was asked, and no other is without an answer:
//   - Attempts follow each other. Nobody asks two at a time. The next one is sent when the last was answered; or while it was not, as its stream broke, or another leads by now,
//     and that is a doubt. So is every answer but ErrNotProposed.
//   - A doubt, once there, stays with the number: a router does not return the refusal then, but goes on asking under n until the deadline, and ends with ErrUnknown
//     (Call.inDoubt). A proxy on the way does the same with its own attempts before it answers ErrNotProposed. rsm.Client keeps account of it itself (Client.Do).
//   - Nothing on the way sends an attempt twice: a stream delivers it once or breaks, and gRPC's own retries are off. So no copy comes late, and what was answered once is over.
//
// Beyond that n is acknowledged from here on: a copy that came all the same is refused (sequence_acked), once any later command was decided.
func (w *Window) PutOff(n Number) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finish(n)
	w.putOff++
}

// Leave gives up the place of a command that was put off and does not come back.
func (w *Window) Leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leave()
	w.wake() // its place is free
}

// leave notes that one of those that were put off is none any more. After the last of them others need not stop early, which those that wait are to know. w.mu is held.
func (w *Window) leave() {
	if w.putOff--; w.putOff == 0 {
		w.wake()
	}
}

func (w *Window) wake() {
	if w.room != nil {
		close(w.room)
		w.room = nil
	}
}

// Forget drops a session that has ended: the next Begin opens another.
func (w *Window) Forget(id core.SessionID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.id == id {
		w.id = 0
		w.wake()
	}
}

// Take drops the session and returns it, 0 if there is none: to be closed.
func (w *Window) Take() core.SessionID {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := w.id
	w.id = 0
	w.wake()
	return id
}
