package client

import (
	"context"
	"sync/atomic"
	"time"
)

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

// wait reports whether the outcome is there before who waits leaves, which is when ctx ends. If that is as the call's own deadline has come, the router knows it too, what the
// call waited for, and whether it may have happened: that is worth the grace.
func (d *done) wait(ctx context.Context, deadline int64) bool {
	if d.closed() {
		return true
	}
	select {
	case <-d.channel():
		return true
	case <-ctx.Done():
	}
	if ctx.Err() != context.DeadlineExceeded || deadline > monotonic() {
		return false
	}
	select {
	case <-d.channel():
		return true
	case <-time.After(grace):
		return false
	}
}
