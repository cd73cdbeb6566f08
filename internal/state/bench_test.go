package state

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const hotKeys = 10000

func hotKey(buf []byte, i uint64) []byte {
	return binary.BigEndian.AppendUint64(append(buf[:0], "account/"...), i)
}

func benchShard(b *testing.B, flushed, clean bool) *Shard {
	s := mustOpenBench(b)
	h := openShard(b, s, 1)
	value := make([]byte, 64)
	for i := range uint64(hotKeys) {
		h.Set(hotKey(nil, i*7), value)
	}
	if flushed {
		flush(b, h, Flush{Index: 1})
		if !clean {
			h.clean = nil
		}
	}
	return h
}

func mustOpenBench(b *testing.B) *Store {
	s, err := Open(Options{Dir: b.TempDir(), FS: vfs.Default, Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

func BenchmarkGet(b *testing.B) {
	for _, c := range []struct {
		name           string
		flushed, clean bool
		stride         uint64 // of the keys asked for; 7 is of those that exist
	}{
		{"active", false, false, 7}, {"clean", true, true, 7}, {"pebble", true, false, 7}, {"pebble-absent", true, false, 11},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := benchShard(b, c.flushed, c.clean)
			r := rand.New(rand.NewPCG(1, 1))
			var buf [16]byte
			b.ReportAllocs()
			for b.Loop() {
				h.Get(hotKey(buf[:], r.Uint64N(hotKeys)*c.stride))
			}
		})
	}
}

func BenchmarkSet(b *testing.B) {
	for _, undo := range []bool{false, true} {
		b.Run(fmt.Sprintf("undo=%v", undo), func(b *testing.B) {
			h := benchShard(b, false, false)
			h.SetUndo(undo)
			r := rand.New(rand.NewPCG(1, 1))
			var buf [16]byte
			value := make([]byte, 64)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				h.Set(hotKey(buf[:], r.Uint64N(hotKeys)*7), value)
				if n++; n%1000 == 0 && undo {
					h.Release(h.Mark())
				}
			}
		})
	}
}

// What a version costs is mostly what the writes after it copy.
func BenchmarkVersion(b *testing.B) {
	for _, writes := range []int{0, 1, 100, 1000} {
		b.Run(fmt.Sprintf("writes=%d", writes), func(b *testing.B) {
			h := benchShard(b, true, true)
			r := rand.New(rand.NewPCG(1, 1))
			for i := range uint64(hotKeys) {
				h.Set(hotKey(nil, i*7), nil)
			}
			var buf [16]byte
			value := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				v := h.Version()
				for range writes {
					h.Set(hotKey(buf[:], r.Uint64N(hotKeys)*7), value)
				}
				v.Close()
			}
		})
	}
}

func BenchmarkRollback1000(b *testing.B) {
	h := benchShard(b, false, false)
	h.SetUndo(true)
	value := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		m := h.Mark()
		for i := range uint64(1000) {
			h.Set(hotKey(nil, i*10), value) // one in seven is known
		}
		h.Rollback(m)
	}
}

func BenchmarkScan100(b *testing.B) {
	for _, flushed := range []bool{false, true} {
		for _, n := range []int{1, 100} {
			b.Run(fmt.Sprintf("flushed=%v/n=%d", flushed, n), func(b *testing.B) {
				h := benchShard(b, flushed, true)
				for i := range uint64(hotKeys) {
					h.Set(hotKey(nil, i*7+1), nil)
				}
				r := rand.New(rand.NewPCG(1, 1))
				var buf [16]byte
				b.ReportAllocs()
				for b.Loop() {
					left := n
					for range h.Scan(hotKey(buf[:], r.Uint64N(hotKeys)*7), nil) {
						if left--; left == 0 {
							break
						}
					}
				}
			})
		}
	}
}

func BenchmarkFlush100k(b *testing.B) {
	h := openShard(b, mustOpenBench(b), 1)
	value := make([]byte, 64)
	r := rand.New(rand.NewPCG(1, 1))
	index := uint64(0)
	for b.Loop() {
		b.StopTimer()
		for range 100000 {
			binary.BigEndian.PutUint64(value, r.Uint64())
			h.Set(hotKey(nil, r.Uint64N(1000000)), value)
		}
		f := Flush{Meta: []byte("meta")}
		for range 2000 { // of 50 transfers each
			index++
			f.Journal = append(f.Journal, JournalEntry{Index: index, Term: 1, Data: randomBytes(r, 50*40)})
		}
		f.Index = index
		b.StartTimer()
		flush(b, h, f)
	}
	b.ReportMetric(float64(h.store.Metrics().L0Sublevels), "sublevels")
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 { // half of it compresses
		binary.BigEndian.PutUint32(b[i:], r.Uint32())
	}
	return b
}
