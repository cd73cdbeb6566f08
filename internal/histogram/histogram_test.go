package histogram

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Every duration counts from its bound on, and for none below.
func TestCumulative(t *testing.T) {
	for _, d := range []time.Duration{-1, 0, 1, 1 << shortest, 1<<shortest + 1, time.Millisecond, time.Second, 1 << (shortest + Buckets - 1), 1<<(shortest+Buckets-1) + 1, time.Hour,
		rand.N(time.Minute)} {
		var h Histogram
		h.Record(d)
		c := h.Counts()
		count, sum, upTo := c.Cumulative()
		if count != 1 || sum != max(0, d).Seconds() || len(upTo) != Buckets {
			t.Errorf("%v: %d, %g, %d bounds", d, count, sum, len(upTo))
		}
		for bound, n := range upTo {
			if (n == 1) != (d.Seconds() <= bound) {
				t.Errorf("%v: %d are no longer than %g s", d, n, bound)
			}
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	for i := range b.N {
		h.Record(time.Duration(i) * time.Microsecond)
	}
}
