package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// result is what one round of one cell measured on one system. Ops are those that ended within the measured time.
type result struct {
	Seconds    float64 `json:"seconds"`
	Ops        int64   `json:"ops"`
	OpsPerS    float64 `json:"ops_per_s"`
	P50ms      float64 `json:"p50_ms"`
	P99ms      float64 `json:"p99_ms"`
	FsyncsPerS float64 `json:"fsyncs_per_s"` // -1: not counted
	CPUs       float64 `json:"cpus"`         // processor time used, by system and callers together, per second
	Errors     int64   `json:"errors"`
	FirstError string  `json:"first_error,omitempty"`
}

const (
	opTimeout      = 30 * time.Second // past the end of the round: an operation that takes longer is an error
	errorPause     = 5 * time.Millisecond
	latencySample  = 8  // with many callers, or pipelines, the time of every eighth request is taken
	latencyStripes = 64 // callers beyond these share histograms: 2,048 would fill the memory and the caches
)

// The phases of a round.
const (
	warming int32 = iota
	measuring
	stopping
)

// load runs the callers of one round.
type load struct {
	sys   System
	cell  cell
	work  workload
	phase atomic.Int32

	counts  []callerCount // by caller, each written by that caller alone
	stripes [latencyStripes]latencies

	errorOnce  sync.Once
	firstError string
}

type callerCount struct {
	ops, errors int64
	_           [48]byte // a cache line of its own
}

type latencies struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
	_  [40]byte
}

// setUp writes the workload's setup to every shard.
func setUp(ctx context.Context, sys System, shards int, w workload) error {
	for shard := range shards {
		var waits []func(context.Context) error
		for i, command := range w.setup {
			wait, err := sys.StartWrite(ctx, shard, command)
			if err != nil {
				return fmt.Errorf("set up shard %d: %w", shard, err)
			}
			waits = append(waits, wait)
			if len(waits) < 256 && i < len(w.setup)-1 {
				continue
			}
			for _, wait := range waits {
				if err := wait(ctx); err != nil {
					return fmt.Errorf("set up shard %d: %w", shard, err)
				}
			}
			waits = waits[:0]
		}
	}
	return nil
}

// measure runs one round: the callers start, go on for the warm-up, and are then counted for the given time.
func measure(sys System, c cell, w workload, warm, span time.Duration) result {
	l := &load{sys: sys, cell: c, work: w}
	pipelined := c.InFlight > 1
	callers := c.Clients
	l.counts = make([]callerCount, callers)
	for i := range l.stripes {
		l.stripes[i].h = hdrhistogram.New(1, int64(2*opTimeout/time.Microsecond), 3)
	}

	deadline := time.Now().Add(warm + span + opTimeout)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			// A context for each caller: all of them waiting on one Done channel would contend for its lock.
			ctx, cancel := context.WithDeadline(context.Background(), deadline)
			defer cancel()
			if pipelined {
				l.pipelining(ctx, i)
			} else {
				l.waiting(ctx, i)
			}
		})
	}

	time.Sleep(warm)
	fsyncs, cpu, start := sys.Fsyncs(), processCPU(), time.Now()
	l.phase.Store(measuring)
	time.Sleep(span)
	l.phase.Store(stopping)
	took := time.Since(start).Seconds()
	fsyncs, cpu = sys.Fsyncs()-fsyncs, processCPU()-cpu
	wg.Wait()

	r := result{Seconds: took, FsyncsPerS: float64(fsyncs) / took, CPUs: cpu.Seconds() / took, FirstError: l.firstError}
	if sys.Fsyncs() < 0 {
		r.FsyncsPerS = -1
	}
	for i := range l.counts {
		r.Ops += l.counts[i].ops
		r.Errors += l.counts[i].errors
	}
	all := l.stripes[0].h
	for i := 1; i < len(l.stripes); i++ {
		all.Merge(l.stripes[i].h)
	}
	r.OpsPerS = float64(r.Ops) / took
	r.P50ms = float64(all.ValueAtQuantile(50)) / 1000
	r.P99ms = float64(all.ValueAtQuantile(99)) / 1000
	return r
}

// waiting is a caller that waits for each request before it sends the next.
func (l *load) waiting(ctx context.Context, caller int) {
	sample := 1
	if len(l.counts) > latencyStripes {
		sample = latencySample
	}
	for i := l.first(caller); ; i++ {
		var started time.Time
		if i%sample == 0 {
			started = time.Now()
		}
		shard := i % l.cell.Shards
		var err error
		if l.writes(i) {
			err = l.sys.Write(ctx, shard, l.work.writes[i%len(l.work.writes)])
		} else {
			err = l.sys.Read(ctx, shard, l.work.reads[i%len(l.work.reads)])
		}
		if !l.ended(caller, err, started) {
			return
		}
	}
}

// pipelining is a caller that keeps many requests in flight, and waits for the oldest before it sends another.
func (l *load) pipelining(ctx context.Context, caller int) {
	type flight struct {
		wait    func(context.Context) error
		started time.Time // zero: its time is not taken
	}
	window := make([]flight, l.cell.InFlight)
	going := true
	for i, n := l.first(caller), 0; going; i, n = i+1, n+1 {
		slot := &window[n%len(window)]
		if slot.wait != nil {
			going = l.land(ctx, caller, slot.wait, slot.started)
		}
		*slot = flight{}
		if n%latencySample == 0 {
			slot.started = time.Now()
		}
		var wait func(context.Context) error
		var err error
		if l.writes(i) {
			wait, err = l.sys.StartWrite(ctx, i%l.cell.Shards, l.work.writes[i%len(l.work.writes)])
		} else {
			wait, err = l.sys.StartRead(ctx, i%l.cell.Shards, l.work.reads[i%len(l.work.reads)])
		}
		if err != nil {
			going = l.ended(caller, err, time.Time{}) && going
			continue
		}
		slot.wait = wait
	}
	for _, slot := range window {
		if slot.wait != nil {
			l.land(ctx, caller, slot.wait, slot.started)
		}
	}
}

// land waits for one request in flight; false: the round is over.
func (l *load) land(ctx context.Context, caller int, wait func(context.Context) error, started time.Time) bool {
	return l.ended(caller, wait(ctx), started)
}

// first is where a caller starts in the shards and the commands. From there it goes round all of them: callers that
// stayed with one shard each would leave most of 64 shards idle under 16 callers.
func (l *load) first(caller int) int { return caller * 7919 }

// writes reports whether request i is a write.
func (l *load) writes(i int) bool { return l.cell.Mode == write || l.cell.Mode == mixed && isWrite(i) }

// isWrite picks one of every ten requests, each time at another place, so that the writes reach every shard.
func isWrite(i int) bool { return i%10 == i/10%10 }

// ended counts one request, and takes its time unless started is zero; false: the round is over.
func (l *load) ended(caller int, err error, started time.Time) bool {
	phase := l.phase.Load()
	if err != nil {
		if phase == measuring {
			l.errorOnce.Do(func() { l.firstError = err.Error() })
			l.counts[caller].errors++
		}
		time.Sleep(errorPause)
		return phase != stopping
	}
	if phase == measuring {
		l.counts[caller].ops++
		if !started.IsZero() {
			took := time.Since(started)
			s := &l.stripes[caller%latencyStripes]
			s.mu.Lock()
			_ = s.h.RecordValue(took.Microseconds()) // out of range only past opTimeout, and that is an error already
			s.mu.Unlock()
		}
	}
	return phase != stopping
}

// processCPU is the processor time that this process has used.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
