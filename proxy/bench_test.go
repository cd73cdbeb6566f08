package proxy_test

import (
	"fmt"
	"testing"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
)

// BenchmarkThrough is a client that keeps many commands in flight through a proxy. The module bench compares it with the embedded rate.
func BenchmarkThrough(b *testing.B) {
	for _, inFlight := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("in-flight=%d", inFlight), func(b *testing.B) {
			c := startCluster(b)
			_, s := startProxy(b, proxy.Config{Nodes: anyNode(c)})
			sh := dial(b, s.Addr()).Shard(1)
			ctx := within(b)
			window := make([]*client.Pending, inFlight)
			b.ResetTimer()
			for i := range b.N {
				p := &window[i%inFlight]
				if *p != nil {
					if _, err := (*p).Wait(ctx); err != nil {
						b.Fatal(err)
					}
				}
				*p = sh.Go(ctx, []byte("a command of some bytes"))
			}
			for _, p := range window {
				if p != nil {
					<-p.Done()
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
		})
	}
}
