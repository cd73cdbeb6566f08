package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var all, other histogram
	var exact []time.Duration
	for i := range 20_000 {
		d := time.Duration(r.Uint64() >> (1 + r.IntN(62)))
		exact = append(exact, d)
		if i%2 == 0 {
			all.add(d)
		} else {
			other.add(d)
		}
	}
	all.merge(&other)
	slices.Sort(exact)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		want := exact[max(int(q*float64(len(exact))+0.5), 1)-1]
		got := all.quantile(q)
		if got < want || float64(got) > float64(want)*1.04+1 {
			t.Errorf("quantile %v: %d, want %d to 4 %% above", q, got, want)
		}
	}
	if all.max != exact[len(exact)-1] || all.count != 20_000 {
		t.Errorf("max %v, count %d", all.max, all.count)
	}
	if (&histogram{}).quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
}

func TestBuckets(t *testing.T) {
	last := -1
	for v := uint64(0); v < 1<<62; v += v/64 + 1 {
		b := bucketOf(time.Duration(v))
		if b < last || upperEdge(b) < time.Duration(v) || b > 0 && upperEdge(b-1) >= time.Duration(v) {
			t.Fatalf("%d is in bucket %d, which ends at %d", v, b, upperEdge(b))
		}
		last = b
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
	if got := milliseconds(1500 * time.Microsecond); got != "1.50 ms" {
		t.Error(got)
	}
	if got := scaled("1050", 2) + " " + scaled("1 * 2^128 + 1", 2); got != "10.50 1 * 2^128 + 1" {
		t.Error(got)
	}
}
