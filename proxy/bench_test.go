package proxy_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
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

// BenchmarkUnary is what a unary call through a proxy costs more than the same call of the shard itself, in medians, taking turns.
func BenchmarkUnary(b *testing.B) {
	c := startCluster(b)
	_, s := startProxy(b, proxy.Config{Nodes: anyNode(c)})
	conn, err := grpc.NewClient(s.Addr(), access.DialOptions(nil, nil)...)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	unary := decreev1.NewDecreeServiceClient(conn)
	leader, err := c.Leader(within(b), 1)
	if err != nil {
		b.Fatal(err)
	}
	shard := leader.Shard(1)
	ctx := context.Background()
	var direct, through []time.Duration
	for b.Loop() {
		began := time.Now()
		_, err := shard.Submit(ctx, []byte("a"))
		between := time.Now()
		if err == nil {
			_, err = unary.Submit(ctx, &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}})
		}
		if err != nil {
			b.Fatal(err)
		}
		direct, through = append(direct, between.Sub(began)), append(through, time.Since(between))
	}
	slices.Sort(direct)
	slices.Sort(through)
	b.ReportMetric(float64(direct[len(direct)/2].Microseconds()), "direct-µs")
	b.ReportMetric(float64((through[len(through)/2] - direct[len(direct)/2]).Microseconds()), "added-µs")
}
