// Package histogram counts durations without locks, for metrics.
package histogram

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets is how many buckets there are: each is twice as wide as the one before, and what is longer than the last counts in the sum and the number only.
const Buckets = 21

// shortest is the binary logarithm, in nanoseconds, of the first bucket's upper bound: 33 µs. The last one's is 34 s.
const shortest = 15

// Histogram may be recorded to, and read, from any goroutine.
type Histogram struct {
	buckets [Buckets + 1]atomic.Uint64
	nanos   atomic.Uint64
}

// Record counts a duration; a negative one as 0.
func (h *Histogram) Record(d time.Duration) {
	n := uint64(max(0, d))
	i := 0
	if n > 1<<shortest {
		i = min(bits.Len64(n-1)-shortest, Buckets)
	}
	h.buckets[i].Add(1)
	h.nanos.Add(n)
}

// Counts are what a Histogram has counted. A snapshot.
type Counts struct {
	Buckets [Buckets + 1]uint64 // not added up
	Sum     time.Duration
}

// Counts returns what was counted.
func (h *Histogram) Counts() Counts {
	var c Counts
	for i := range h.buckets {
		c.Buckets[i] = h.buckets[i].Load()
	}
	c.Sum = time.Duration(h.nanos.Load())
	return c
}

// Cumulative returns how many durations were counted, their sum in seconds, and how many were no longer than each bound in seconds, as Prometheus has it.
func (c *Counts) Cumulative() (count uint64, sum float64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, Buckets)
	for i, n := range c.Buckets {
		count += n
		if i < Buckets {
			upTo[time.Duration(1<<(shortest+i)).Seconds()] = count
		}
	}
	return count, c.Sum.Seconds(), upTo
}
