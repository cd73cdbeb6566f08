package wal

import (
	"fmt"
	"testing"
)

// batch makes n entries of 128 bytes, spread over shards.
func batch(n, shards int) []Record {
	records := make([]Record, shards)
	for s := range records {
		records[s] = Record{Shard: uint64(s + 1), HardState: HardState{Term: 1}}
		records[s].Entries = make([]Entry, n/shards)
		for i := range records[s].Entries {
			records[s].Entries[i] = Entry{Term: 1, Data: make([]byte, 128)}
		}
	}
	return records
}

// advance moves the entries behind those of the Append before.
func advance(records []Record, round int) {
	for s := range records {
		n := len(records[s].Entries)
		for i := range records[s].Entries {
			records[s].Entries[i].Index = uint64(round*n + i + 1)
		}
	}
}

// BenchmarkAppend is one engine pass, fsync and release of segments included.
func BenchmarkAppend(b *testing.B) {
	for _, tc := range []struct{ entries, shards int }{{1, 1}, {128, 1}, {1024, 1}, {1024, 64}} {
		b.Run(fmt.Sprintf("entries=%d/shards=%d", tc.entries, tc.shards), func(b *testing.B) {
			w, _, err := Open(Options{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			benchmarkLog(b, w, tc.entries, tc.shards)
			s := w.Stats()
			b.ReportMetric(float64(s.SyncTotal.Microseconds())/float64(s.Fsyncs), "us/sync")
		})
	}
}

// BenchmarkMemory is the same without a disk: what encoding and bookkeeping cost.
func BenchmarkMemory(b *testing.B) {
	for _, tc := range []struct{ entries, shards int }{{1, 1}, {1024, 1}, {1024, 64}} {
		b.Run(fmt.Sprintf("entries=%d/shards=%d", tc.entries, tc.shards), func(b *testing.B) {
			benchmarkLog(b, NewMemory(), tc.entries, tc.shards)
		})
	}
}

func benchmarkLog(b *testing.B, l Log, entries, shards int) {
	records := batch(entries, shards)
	b.SetBytes(int64(128 * entries))
	b.ReportAllocs()
	for round := 0; b.Loop(); round++ {
		advance(records, round)
		if err := l.Append(records); err != nil {
			b.Fatal(err)
		}
		for s := range records {
			l.Flushed(records[s].Shard, records[s].Entries[0].Index-1)
		}
	}
	b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkEncode(b *testing.B) {
	records := batch(1024, 1)
	advance(records, 0)
	var buf []byte
	b.SetBytes(128 * 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = encodePayload(buf[:0], 1, 0, records)
	}
}

func BenchmarkDecode(b *testing.B) {
	records := batch(1024, 1)
	advance(records, 0)
	buf := encodePayload(nil, 1, 0, records)
	b.SetBytes(128 * 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodePayload(1, buf); err != nil {
			b.Fatal(err)
		}
	}
}
