package state

// A layer takes in hundreds of thousands of keys and values between two flushes. Allocated one by one, they were a
// fifth of all work under a load of ledger entries: to allocate, and above all for the garbage collector to follow. So
// they come out of chunks, which grow from small ones, for the many shards that have little to remember.

const (
	firstChunkBytes = 512
	maxChunkBytes   = 64 << 10
	firstBlockCells = 8
	maxBlockCells   = 1024
)

// chunk hands out copies of bytes that share their memory. One that is still in use keeps its whole chunk.
type chunk struct {
	free []byte // of length 0
	size int
}

func (c *chunk) copy(b []byte) []byte {
	if len(b) > maxChunkBytes/16 {
		return append(make([]byte, 0, len(b)), b...) // too much of a chunk to be worth it
	}
	if cap(c.free) < len(b) || c.free == nil {
		c.size = max(min(2*c.size, maxChunkBytes), firstChunkBytes, len(b))
		c.free = make([]byte, 0, c.size)
	}
	n := len(b)
	out := append(c.free, b...)
	c.free = out[n:n:cap(out)]
	return out[:n:n]
}

// cells hands out cells from blocks of them.
type cells struct{ blocks [][]cell }

func (c *cells) next() *cell {
	n := len(c.blocks)
	if n == 0 || len(c.blocks[n-1]) == cap(c.blocks[n-1]) {
		size := firstBlockCells
		if n > 0 {
			size = min(2*cap(c.blocks[n-1]), maxBlockCells)
		}
		c.blocks = append(c.blocks, make([]cell, 0, size))
		n++
	}
	block := &c.blocks[n-1]
	*block = (*block)[:len(*block)+1]
	return &(*block)[len(*block)-1]
}
