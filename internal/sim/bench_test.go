package sim

import (
	"testing"
	"time"
)

// BenchmarkSim measures how much faster than time a cluster of three nodes and two shards runs, all checks included: one
// iteration is one seed. What happens in a simulated second is reported too, for an idle cluster would be quick. With members that come and go, some
// clusters have up to six nodes, each of which takes its time.
func BenchmarkSim(b *testing.B) {
	b.Run("nodes=3", func(b *testing.B) { benchmarkSim(b, threeNodes) })
	b.Run("nodes=3/few", func(b *testing.B) { benchmarkSim(b, fewOperations) })
	b.Run("members", func(b *testing.B) { benchmarkSim(b, func(s *swarm) { s.nodes = 3 }) })
}

func threeNodes(s *swarm) {
	s.nodes = 3
	membersStay(s)
}

// fewOperations has about as many operations in a simulated second as the simulation of nothing but raft has with bareFew. A client
// waits for its answers and has phases in which it does not ask, so it must ask two and a half times as often for that.
func fewOperations(s *swarm) {
	threeNodes(s)
	s.think = bareFew * 2 / 5 * int64(s.clients*s.width)
}

func benchmarkSim(b *testing.B, tune func(*swarm)) {
	var virtual time.Duration
	var total Stats
	seed := uint64(1)
	for b.Loop() {
		r := runJudged(seed, Options{tune: tune})
		if r.Failure != nil {
			b.Fatalf("seed %d: %v", seed, r.Failure)
		}
		virtual += r.Virtual
		total.add(&r.Stats)
		seed++
	}
	real := b.Elapsed().Seconds()
	b.ReportMetric(virtual.Seconds()/real, "sim-s/s")
	b.ReportMetric(float64(seed-1)/real, "seeds/s")
	b.ReportMetric(float64(total.Operations())/virtual.Seconds(), "ops/sim-s")
	b.ReportMetric(float64(total.Injected())/virtual.Seconds(), "faults/sim-s")
	b.Logf("%d operations/s and %d faults/s of real time", int(float64(total.Operations())/real), int(float64(total.Injected())/real))
}
