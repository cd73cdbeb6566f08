package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// slow is a machine of which a leader decides about two thousand commands per second, whatever else the processors do.
type slow struct{ counters }

func (s slow) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	time.Sleep(400 * time.Microsecond)
	return s.counters.Decide(v, c)
}

// offered is what came of an offered load.
type offered struct {
	done, refused, failed int
	rate                  float64 // of what was done
	p50, p99              time.Duration
	unexplained           int // refusals without a time to come back, or a reason
}

func (o offered) String() string {
	return fmt.Sprintf("%.0f done per second, p50 %v, p99 %v; %d refused, %d failed", o.rate, o.p50, o.p99, o.refused, o.failed)
}

// offer sends unary commands at a rate, without waiting for answers, for a while. They come over 16 connections, and nobody asks again.
func offer(t *testing.T, address string, rate float64, span time.Duration) offered {
	t.Helper()
	var clients []decreev1.DecreeServiceClient
	for range 16 {
		conn, err := grpc.NewClient(address, access.DialOptions(nil, nil)...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		clients = append(clients, decreev1.NewDecreeServiceClient(conn))
	}
	var mu sync.Mutex
	var o offered
	var took []time.Duration
	var wg sync.WaitGroup
	var atWork atomic.Int64
	began := time.Now()
	for n := 0; time.Since(began) < span; n++ {
		if ahead := time.Duration(float64(n)/rate*float64(time.Second)) - time.Since(began); ahead > 0 {
			time.Sleep(ahead)
		}
		atWork.Add(1)
		wg.Go(func() {
			defer atWork.Add(-1)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			start := time.Now()
			_, err := clients[n%len(clients)].Submit(ctx, &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}})
			d := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			var e *core.Error
			switch {
			case err == nil:
				o.done++
				took = append(took, d)
			case errors.As(wire.FromStatus(err), &e) && e.Code == core.CodeOverloaded:
				o.refused++
				if e.RetryAfter <= 0 || e.Message == "" || e.Kind != core.ErrNotProposed {
					o.unexplained++
				}
			default:
				o.failed++
			}
		})
	}
	wg.Wait()
	o.rate = float64(o.done) / time.Since(began).Seconds()
	if slices.Sort(took); len(took) > 0 {
		o.p50, o.p99 = took[len(took)/2], took[len(took)*99/100]
	}
	return o
}

// Three times what a shard can do is offered: the rest is refused with a reason and a time, what is taken is done about as fast as before, and no memory piles up.
// It measures a machine that does nothing else, and so runs with -hold only (make overload); proxy/internal/admit has the same in virtual time.
func TestOverload(t *testing.T) {
	if !*holdFlag {
		t.Skip("skipped without -hold: it measures")
	}
	c, err := rsm.StartCluster(rsm.ClusterConfig{Dir: t.TempDir(), Shards: []rsm.ShardConfig{{ID: 1, Machine: slow{}}},
		Configure: func(cfg *rsm.Config) { cfg.DiskWatermark, cfg.Services = -1, proxy.Register }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := proxy.New(proxy.Config{Nodes: anyNode(c)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const span, goodput, slower = 10 * time.Second, 0.8, 5.0
	offer(t, s.Addr(), 100, span/2) // everybody is there
	calm := offer(t, s.Addr(), 200, span)
	most := 0.0
	for _, rate := range []float64{1000, 1400, 1800, 2200} {
		o := offer(t, s.Addr(), rate, span/2)
		t.Logf("offered %.0f: %v", rate, o)
		most = max(most, o.rate)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	over := offer(t, s.Addr(), 3*most, span)
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("unloaded %v; peak %.0f per second; at three times that: %v; heap %d to %d MiB", calm, most, over, before.HeapAlloc>>20, after.HeapAlloc>>20)
	if over.rate < goodput*most {
		t.Errorf("at three times the peak %.0f are done per second, of %.0f: at least %.2f times are wanted", over.rate, most, goodput)
	}
	if over.p99 > time.Duration(slower*float64(calm.p99)) {
		t.Errorf("what is taken takes %v, and %v without load: at most %.0f times are wanted", over.p99, calm.p99, slower)
	}
	if over.refused == 0 || over.unexplained > 0 || over.failed > 0 {
		t.Errorf("%d refused, %d of them without a reason and a time; %d failed otherwise", over.refused, over.unexplained, over.failed)
	}
}
