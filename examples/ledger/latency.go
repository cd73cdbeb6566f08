package main

import (
	"math/bits"
	"time"
)

// subBits is how finely a histogram divides each power of two: 32 parts, so that a value is off by 3 % at most.
const subBits = 5

// histogram counts durations in buckets that grow with them. The zero value is empty. It is not for concurrent use.
type histogram struct {
	buckets [64 << subBits]uint64
	count   uint64
	max     time.Duration
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift<<subBits + int(v>>shift)
}

// upperEdge is the greatest duration of a bucket.
func upperEdge(bucket int) time.Duration {
	if bucket < 2<<subBits {
		return time.Duration(bucket)
	}
	shift := bucket>>subBits - 1
	return time.Duration(uint64(bucket&(1<<subBits-1)+1<<subBits+1)<<shift - 1)
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
	h.max = max(h.max, d)
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.buckets {
		h.buckets[i] += n
	}
	h.count += other.count
	h.max = max(h.max, other.max)
}

// quantile returns the duration that a share q of all stays within.
func (h *histogram) quantile(q float64) time.Duration {
	want := max(uint64(q*float64(h.count)+0.5), 1)
	var seen uint64
	for i, n := range h.buckets {
		if seen += n; seen >= want {
			return min(upperEdge(i), h.max)
		}
	}
	return h.max
}
