package rsm

import "sync"

// tasks are what an engine waits for when it ends. It is no WaitGroup, whose counter may not rise while somebody waits: the pass of a worker that was given up
// may return then, and hand out queries and flushes.
type tasks struct {
	mu     sync.Mutex
	n      int
	ending bool
	idle   chan struct{} // closed when there are none; nil: nobody waits
}

// add counts one more. It is for the engine's own goroutines, and for those that are counted themselves.
func (t *tasks) add() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

// begin is add for who comes from elsewhere, and reports false when the engine ends: then nothing may begin.
func (t *tasks) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending {
		return false
	}
	t.n++
	return true
}

func (t *tasks) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// end lets nothing begin any more.
func (t *tasks) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ending = true
}

// over returns a channel that is closed as soon as there are none.
func (t *tasks) over() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		now := make(chan struct{})
		close(now)
		return now
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	return t.idle
}
