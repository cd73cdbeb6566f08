package proxy

import "sync"

// tally counts what is open, by a key, up to a bound. Any goroutine may use it; the zero tally has counted nothing.
type tally struct {
	mu   sync.Mutex
	open map[string]int // none is 0
}

// take counts one more of a key until end is called, once, unless there are most of them.
func (t *tally) take(key string, most int) (end func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[key] >= most {
		return nil, false
	}
	if t.open == nil {
		t.open = map[string]int{}
	}
	t.open[key]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.open[key]--; t.open[key] == 0 {
			delete(t.open, key)
		}
	}, true
}
