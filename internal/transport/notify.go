package transport

import (
	"context"
	"sync"
	"time"
)

const (
	notifyEvery = 50 * time.Millisecond
	maxPending  = 4096
)

// notifier calls Unreachable. Not Append itself: it runs in the middle of an
// engine's pass, which would have to expect to be called back while it calls.
// Nor the peer's sender, which may be the very goroutine that is stuck.
type notifier struct {
	call func(peer uint64)
	wake chan struct{}

	mu sync.Mutex
	// pending is bounded, as Append may be called with any number as a peer.
	pending map[uint64]struct{}
}

func newNotifier(call func(uint64)) *notifier {
	return &notifier{call: call, wake: make(chan struct{}, 1), pending: map[uint64]struct{}{}}
}

// mark asks for a call; marks that come before it are one.
func (n *notifier) mark(peer uint64) {
	if n.call == nil {
		return
	}
	n.mu.Lock()
	if len(n.pending) < maxPending {
		n.pending[peer] = struct{}{}
	}
	n.mu.Unlock()
	signal(n.wake)
}

// run makes a round of calls at most every 50 ms, so no peer is reported more often.
func (n *notifier) run(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		}
		for peer := range n.swap() {
			if ctx.Err() != nil {
				return
			}
			n.call(peer)
		}
		pause.Reset(notifyEvery)
	}
}

func (n *notifier) swap() map[uint64]struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	marked := n.pending
	n.pending = map[uint64]struct{}{}
	return marked
}

// signal wakes the one goroutine that waits on c, now or when it next does.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
