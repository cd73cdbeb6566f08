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
	"github.com/decree-raft/decree/rsm"
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
				*p = sh.Go(ctx, add("a command of some bytes"))
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

// BenchmarkHops is what one call costs on each way to the shard that leads, in medians, taking turns: of the shard itself, and by unary call and by stream of its
// node's own port and of a proxy. A stale read waits for nobody, so that it shows the way alone.
func BenchmarkHops(b *testing.B) {
	c := startCluster(b)
	_, s := startProxy(b, proxy.Config{Nodes: anyNode(c)})
	leader, err := c.Leader(within(b), 1)
	if err != nil {
		b.Fatal(err)
	}
	ctx, key := context.Background(), []byte("a")
	type way struct {
		name        string
		write, read func() error
	}
	ways := []way{{"embedded",
		func() error { _, err := leader.Shard(1).Submit(ctx, key); return err },
		func() error { _, err := leader.Shard(1).Read(ctx, rsm.Stale, key); return err }}}
	for name, address := range map[string]string{"node": leader.Addr(), "proxy": s.Addr()} {
		conn, err := grpc.NewClient(address, access.DialOptions(nil, nil)...)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		unary, stream := decreev1.NewDecreeServiceClient(conn), dial(b, address).Shard(1)
		ways = append(ways, way{"unary-" + name,
			func() error {
				_, err := unary.Submit(ctx, &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{key}})
				return err
			},
			func() error {
				_, err := unary.Read(ctx, &decreev1.ReadRequest{Shard: 1, Query: key, Level: decreev1.Level_LEVEL_STALE})
				return err
			}}, way{"stream-" + name,
			func() error { _, err := stream.Submit(ctx, key); return err },
			func() error { _, err := stream.Read(ctx, rsm.Stale, key); return err }})
	}
	for _, kind := range []string{"read", "write"} {
		b.Run(kind, func(b *testing.B) {
			took := make([][]time.Duration, len(ways))
			for b.Loop() {
				for i, w := range ways {
					call := w.read
					if kind == "write" {
						call = w.write
					}
					began := time.Now()
					if err := call(); err != nil {
						b.Fatal(err)
					}
					took[i] = append(took[i], time.Since(began))
				}
			}
			for i, w := range ways {
				slices.Sort(took[i])
				b.ReportMetric(float64(took[i][len(took[i])/2].Microseconds()), w.name+"-µs")
			}
		})
	}
}
