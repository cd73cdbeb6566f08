// Package limitlog writes each thing that keeps happening once a minute: a peer that is refused comes back every second, and
// strangers as often as they like. It has no goroutines.
package limitlog

import (
	"log/slog"
	"sync"
	"time"
)

const (
	every   = time.Minute
	maxKeys = 256
)

// Log is a logger of warnings that repeat themselves. Safe for concurrent use.
type Log struct {
	log *slog.Logger

	mu sync.Mutex
	// seen is bounded: it is emptied when full, which costs a few repeated lines.
	seen map[Key]*entry
}

// Key is what makes two lines the same. Peer is 0 for a stranger's.
type Key struct {
	Peer   uint64
	Reason string
}

type entry struct {
	at      time.Time
	skipped int
}

// New returns a Log that writes to log, or nowhere if that is nil.
func New(log *slog.Logger) *Log {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Log{log: log, seen: map[Key]*entry{}}
}

// Warn writes a line, unless one with the same key was written less than a minute ago.
func (l *Log) Warn(key Key, msg string, attrs ...any) {
	skipped, ok := l.allow(key)
	if !ok {
		return
	}
	if skipped > 0 {
		attrs = append(attrs, "repeated", skipped)
	}
	l.log.Warn(msg, attrs...)
}

func (l *Log) allow(key Key) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.seen[key]
	if s == nil {
		if len(l.seen) >= maxKeys {
			clear(l.seen)
		}
		l.seen[key] = &entry{at: time.Now()}
		return 0, true
	}
	if time.Since(s.at) < every {
		s.skipped++
		return 0, false
	}
	skipped, s.skipped, s.at = s.skipped, 0, time.Now()
	return skipped, true
}

// Skipped returns how many lines of a peer were left out since one was written.
func (l *Log) Skipped(peer uint64) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, s := range l.seen {
		if k.Peer == peer {
			n += s.skipped
		}
	}
	return n
}

// Forget makes a peer's next failure news again.
func (l *Log) Forget(peer uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.seen {
		if k.Peer == peer {
			delete(l.seen, k)
		}
	}
}
