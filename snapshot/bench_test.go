package snapshot

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

// BenchmarkCut cuts 200,000 keys of about 100 bytes, half of which compresses, onto the disk.
func BenchmarkCut(b *testing.B) {
	w := newWorld(b, vfs.Default, b.TempDir())
	r := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 100)
	for i := range 200000 {
		for j := range 50 {
			value[j] = byte(r.Uint32())
		}
		w.shard.Set(fmt.Appendf(nil, "account %08d", i), value)
	}
	w.index = 1
	w.flush(state.Flush{})
	d := openDir(b, vfs.Default, b.TempDir())
	var s *Snapshot
	for b.Loop() {
		s = w.cut(d, CutOptions{Info: testInfo()})
		b.StopTimer()
		if err := d.Remove(s.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.SetBytes(200000 * 116)
	b.ReportMetric(float64(s.Manifest.Bytes()), "bytes")
}
