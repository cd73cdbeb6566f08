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
}

// Number names a command for ever.
type Number struct {
	Session      core.SessionID
	Sequence     uint64
	Acknowledged uint64 // as it was when the number was given out
}

// TryBegin returns the next number, if there is a session and room in it.
func (w *Window) TryBegin() (Number, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next()
}

// next is TryBegin with w.mu held.
func (w *Window) next() (Number, bool) {
	if w.id == 0 || w.last-w.acked >= MaxUnacknowledged {
		return Number{}, false
	}
	w.last++
	return Number{w.id, w.last, w.acked}, true
}

// Begin returns the next number, when there is a session and room in it. Its error says that the command was not proposed.
func (w *Window) Begin(ctx context.Context) (Number, error) {
	for {
		w.mu.Lock()
		if n, ok := w.next(); ok {
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
