package client

import "sync/atomic"

// done is closed: once, and more often does nothing. Its channel is made only when somebody waits for it.
type done struct{ c atomic.Pointer[chan struct{}] }

var alreadyClosed = func() *chan struct{} {
	c := make(chan struct{})
	close(c)
	return &c
}()

func (d *done) closed() bool { return d.c.Load() == alreadyClosed }

func (d *done) close() {
	if c := d.c.Swap(alreadyClosed); c != nil && c != alreadyClosed {
		close(*c)
	}
}

func (d *done) channel() <-chan struct{} {
	if c := d.c.Load(); c != nil {
		return *c
	}
	c := make(chan struct{})
	if d.c.CompareAndSwap(nil, &c) {
		return c
	}
	return *d.c.Load()
}
