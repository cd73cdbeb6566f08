package rsm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	benchBytes = flag.Int("bench.bytes", 128, "bytes of a command of the benchmarks")
	benchKeep  = flag.Bool("bench.keep", false, "leave GOMAXPROCS alone, see docs/decisions/0006-gomaxprocs.md")
)

// noop replicates the command and changes nothing: what remains is the price of the library.
type noop struct{}

func (noop) Decide(_ View, c Command) ([][]byte, []byte, error) { return [][]byte{c.Data}, nil, nil }
func (noop) Apply(State, Event)                                 {}
func (noop) Query(View, []byte) ([]byte, error)                 { return nil, nil }

// BenchmarkSubmit is for profiles; bench/ has the comparison. Three nodes on disk, over loopback.
func BenchmarkSubmit(b *testing.B) {
	for _, shards := range []int{1, 64} {
		for _, callers := range []int{1, 16, 256, 2048} {
			b.Run(fmt.Sprintf("shards=%d/callers=%d", shards, callers), func(b *testing.B) {
				leaders := benchCluster(b, shards)
				command := make([]byte, *benchBytes)
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range callers {
					wg.Go(func() {
						s := leaders[i%shards]
						for left.Add(-1) >= 0 {
							if _, err := s.Submit(context.Background(), command); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			})
		}
		b.Run(fmt.Sprintf("shards=%d/callers=64x64", shards), func(b *testing.B) {
			leaders := benchCluster(b, shards)
			commands := [][]byte{make([]byte, *benchBytes)}
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					s := leaders[i%shards]
					var flight [64]*Call
					for n := 0; ; n++ {
						if c := flight[n%64]; c != nil {
							if _, err := c.Wait(context.Background()); err != nil {
								b.Error(err)
								return
							}
							flight[n%64] = nil
						}
						if left.Add(-1) < 0 {
							break
						}
						flight[n%64] = s.Go(Request{Commands: commands})
					}
					for _, c := range flight {
						if c != nil {
							_, _ = c.Wait(context.Background())
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}

func benchCluster(b *testing.B, shards int) (leaders []*Shard) {
	dir, err := os.MkdirTemp("", "decree-bench-")
	if err != nil {
		b.Fatal(err)
	}
	cfg := ClusterConfig{Dir: dir, Configure: func(c *Config) { c.KeepGOMAXPROCS = *benchKeep }}
	for i := range shards {
		cfg.Shards = append(cfg.Shards, ShardConfig{ID: ShardID(i + 1), Machine: noop{}})
	}
	c, err := StartCluster(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Close()
		_ = os.RemoveAll(dir)
	})
	for i := range shards {
		n, err := c.Leader(context.Background(), ShardID(i+1))
		if err != nil {
			b.Fatal(err)
		}
		leaders = append(leaders, n.Shard(ShardID(i+1)))
	}
	return leaders
}
