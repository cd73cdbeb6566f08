package transport

import (
	"runtime"
	"testing"
)

// BenchmarkPingPong measures a round trip: two hops over loopback.
func BenchmarkPingPong(b *testing.B) {
	for name, payload := range map[string]int{"100B": 100, "64KiB": 64 << 10} {
		b.Run(name, func(b *testing.B) { pingPong(b, make([]byte, payload)) })
	}
}

func pingPong(b *testing.B, item []byte) {
	back := make(chan struct{}, 1)
	var x, y *testNode
	ready := make(chan struct{})
	put := func(buf []byte) []byte { return append(buf, item...) }
	x, y = startPair(b, func(c *Config) {
		c.Receive = func(from uint64, _ []byte) {
			<-ready
			if from == 1 {
				y.Append(1, len(item), put)
				y.Flush()
				return
			}
			back <- struct{}{}
		}
	})
	close(ready)
	await(b, x.connected, "1 to 2")
	await(b, y.connected, "2 to 1")
	b.ReportAllocs()
	for b.Loop() {
		x.Append(2, len(item), put)
		x.Flush()
		<-back
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(2*b.N), "µs/hop")
}

// BenchmarkThroughput sends items of 1 KiB one way, with a Flush after each 32.
func BenchmarkThroughput(b *testing.B) {
	item := make([]byte, 1024)
	got := make(chan int, 1024)
	x, _ := startPair(b, func(c *Config) { c.Receive = func(_ uint64, f []byte) { got <- len(f) } })
	await(b, x.connected, "connection")
	b.SetBytes(int64(len(item)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for left := b.N * len(item); left > 0; {
			left -= <-got
		}
	}()
	put := func(buf []byte) []byte { return append(buf, item...) }
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		for !x.Append(2, len(item), put) {
			x.Flush()
			runtime.Gosched()
		}
		if i%32 == 31 {
			x.Flush()
		}
	}
	x.Flush()
	<-done
}

// BenchmarkAppend is what an engine pays per message.
func BenchmarkAppend(b *testing.B) {
	item := make([]byte, 128)
	q := newQueue(64<<20, 64<<20, &bufferPool{})
	put := func(buf []byte) []byte { return append(buf, item...) }
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := q.append(len(item), put); !ok {
			q.drop()
		}
	}
}
