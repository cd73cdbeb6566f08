package transport

import "sync"

// bufferClasses are the capacities of pooled buffers. Small frames get small
// buffers: gRPC holds up to 64 KiB of frames that are under way, which would be
// hundreds of buffers of 4 MiB if a heartbeat were given one of those.
var bufferClasses = [...]int{4 << 10, 64 << 10, 512 << 10, softFrameBytes + 64<<10}

// bufferPool recycles the buffers of outgoing frames. gRPC gives a buffer back
// through Put once its bytes are on the socket (mem.BufferPool), which is later
// than SendMsg returns. The zero value is ready. Safe for concurrent use.
type bufferPool struct {
	classes [len(bufferClasses)]sync.Pool
}

// Get returns a buffer of length 0 that holds at least n bytes, with any content.
// (mem.BufferPool asks for length n; gRPC never calls Get on the pool of a buffer
// that it was handed, and the frames begin empty.)
func (p *bufferPool) Get(n int) *[]byte {
	for i, size := range bufferClasses {
		if n > size {
			continue
		}
		if b, ok := p.classes[i].Get().(*[]byte); ok {
			return b
		}
		b := make([]byte, 0, size)
		return &b
	}
	b := make([]byte, 0, n)
	return &b
}

// Put takes a buffer back. One that is larger than the largest class is left to
// the collector, so that a single huge item does not stay in memory.
func (p *bufferPool) Put(b *[]byte) {
	last := len(bufferClasses) - 1
	if cap(*b) > bufferClasses[last]*3/2 {
		return
	}
	for i := last; i >= 0; i-- {
		if cap(*b) >= bufferClasses[i] {
			*b = (*b)[:0]
			p.classes[i].Put(b)
			return
		}
	}
}

// grow returns a buffer with the content of b and room for n more bytes. Unlike
// append it moves from class to class, so b can be used again at once.
func (p *bufferPool) grow(b *[]byte, n int) *[]byte {
	if cap(*b)-len(*b) >= n {
		return b
	}
	next := p.Get(max(len(*b)+n, min(2*cap(*b), bufferClasses[len(bufferClasses)-1])))
	*next = append(*next, *b...)
	p.Put(b)
	return next
}
