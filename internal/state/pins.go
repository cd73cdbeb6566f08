package state

import (
	"sync"
	"time"
)

// pins are what is pinned of pebble, and since when: for metrics only, as nothing that is decided may know the time.
type pins struct {
	mu    sync.Mutex
	since map[*base]time.Time
}

func (p *pins) add(b *base) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since == nil {
		p.since = make(map[*base]time.Time)
	}
	p.since[b] = time.Now()
}

func (p *pins) remove(b *base) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.since, b)
}

// oldest returns for how long the oldest is pinned.
func (p *pins) oldest() (age time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.since {
		age = max(age, time.Since(at))
	}
	return age
}
