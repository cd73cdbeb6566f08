package transport

import "sync"

// frame is an outgoing frame: a buffer that begins with room for the header, and
// the number of items in it.
type frame struct {
	buf   *[]byte
	items int
}

func (f frame) payload() int { return len(*f.buf) - frameHeaderSize }

// queue holds what waits for one peer. Any goroutine appends; one takes.
//
// A single growing buffer that is swapped with a second one would do, were it not
// for a peer that is slow: the buffer would grow to the whole limit, by copying,
// and be sent as one frame that nobody else's messages can overtake. So the queue
// is a list of frames of about 4 MiB of which only the last is appended to.
type queue struct {
	limit, maxItem int
	pool           *bufferPool

	mu sync.Mutex
	// frames are in order; the last one is open. Invariant: none is empty.
	frames []frame
	// bytes is the payload of frames and of the frame that was taken but not
	// released yet. Invariant: 0 <= bytes <= limit.
	bytes  int
	closed bool
}

func newQueue(limit, maxItem int, pool *bufferPool) *queue {
	return &queue{limit: limit, maxItem: maxItem, pool: pool}
}

// append adds one item and returns its size. ok is false where it does not fit;
// then the queue is as it was.
func (q *queue) append(size int, encode func([]byte) []byte) (n int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock() // deferred, as encode is not ours and may panic
	size = max(size, 1)
	if q.closed || size > q.maxItem || size > q.limit-q.bytes {
		return size, false
	}
	f, fresh := q.open(size)
	old := len(*f.buf)
	buf := encode(*f.buf)
	if len(buf) < old {
		panic("transport: encode returned less than it was given")
	}
	// size was only what the caller expected: this is the item.
	n = len(buf) - old
	*f.buf = buf[:old]
	ok = n <= q.maxItem && n <= q.limit-q.bytes
	if ok && n > 0 {
		*f.buf = buf
		f.items++
		q.bytes += n
	}
	switch {
	case f.items == 0:
		q.pool.Put(f.buf)
	case fresh:
		q.frames = append(q.frames, f)
	default:
		q.frames[len(q.frames)-1] = f
	}
	return n, ok
}

// open returns the frame that takes the next size bytes. A fresh one is not in the list yet.
func (q *queue) open(size int) (f frame, fresh bool) {
	if n := len(q.frames); n > 0 && q.frames[n-1].payload()+size <= softFrameBytes {
		f = q.frames[n-1]
		f.buf = q.pool.grow(f.buf, size)
		// The list must not show a buffer that has gone back to the pool, even if encode panics.
		q.frames[n-1] = f
		return f, false
	}
	f.buf = q.pool.Get(frameHeaderSize + size)
	*f.buf = (*f.buf)[:frameHeaderSize]
	return f, true
}

// take removes the oldest frame. Its bytes count until release.
func (q *queue) take() (f frame, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.frames) == 0 {
		return frame{}, false
	}
	f = q.frames[0]
	n := copy(q.frames, q.frames[1:])
	q.frames[n] = frame{}
	q.frames = q.frames[:n]
	return f, true
}

// release ends the accounting of a frame that was taken.
func (q *queue) release(payload int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes -= payload; q.bytes < 0 {
		panic("transport: a frame was released twice")
	}
}

// drop empties the queue and returns how much was in it.
func (q *queue) drop() (items, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, f := range q.frames {
		items += f.items
		bytes += f.payload()
		q.pool.Put(f.buf)
		q.frames[i] = frame{}
	}
	q.frames = q.frames[:0]
	q.bytes -= bytes
	return items, bytes
}

// close makes every later append fail. What is queued stays until drop.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

func (q *queue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}
