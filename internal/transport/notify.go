package transport

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	notifyEvery = 50 * time.Millisecond
	maxPending  = 4096
	logEvery    = time.Minute
	maxLogKeys  = 256
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

// limitedLog writes each thing that keeps happening once a minute: a peer that
// is refused comes back every second, and strangers as often as they like.
// Safe for concurrent use.
type limitedLog struct {
	log *slog.Logger

	mu sync.Mutex
	// seen is bounded: it is emptied when full, which costs a few repeated lines.
	seen map[logKey]*logSeen
}

// logKey is what makes two lines the same. peer is 0 for a stranger's.
type logKey struct {
	peer   uint64
	reason string
}

type logSeen struct {
	at      time.Time
	skipped int
}

func newLimitedLog(log *slog.Logger) *limitedLog {
	return &limitedLog{log: log, seen: map[logKey]*logSeen{}}
}

func (l *limitedLog) warn(key logKey, msg string, attrs ...any) {
	skipped, ok := l.allow(key)
	if !ok {
		return
	}
	if skipped > 0 {
		attrs = append(attrs, "repeated", skipped)
	}
	l.log.Warn(msg, attrs...)
}

func (l *limitedLog) allow(key logKey) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.seen[key]
	if s == nil {
		if len(l.seen) >= maxLogKeys {
			clear(l.seen)
		}
		l.seen[key] = &logSeen{at: time.Now()}
		return 0, true
	}
	if time.Since(s.at) < logEvery {
		s.skipped++
		return 0, false
	}
	skipped, s.skipped, s.at = s.skipped, 0, time.Now()
	return skipped, true
}

// forget makes a peer's next failure news again.
func (l *limitedLog) forget(peer uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.seen {
		if k.peer == peer {
			delete(l.seen, k)
		}
	}
}
