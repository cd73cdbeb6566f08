package wal_test

import (
	"fmt"
	"os"

	"github.com/decree-raft/decree/wal"
)

// Two shards share one fsync; after a restart each has its own log again.
func Example() {
	dir, err := os.MkdirTemp("", "wal")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	log, _, err := wal.Open(wal.Options{Dir: dir})
	if err != nil {
		panic(err)
	}
	err = log.Append([]wal.Record{
		{Shard: 1, HardState: wal.HardState{Term: 2, Vote: 1}, Entries: []wal.Entry{{Index: 1, Term: 2, Data: []byte("a")}}},
		{Shard: 7, Entries: []wal.Entry{{Index: 40, Term: 5}, {Index: 41, Term: 5, Data: []byte("b")}}},
	})
	if err != nil {
		panic(err) // not durable, and never to be tried again
	}
	fmt.Println("fsyncs:", log.Stats().Fsyncs)
	if err := log.Close(); err != nil {
		panic(err)
	}

	log, found, err := wal.Open(wal.Options{Dir: dir})
	if err != nil {
		panic(err)
	}
	defer log.Close()
	fmt.Println("shard 1:", found.Shards[1].HardState, len(found.Shards[1].Entries))
	fmt.Println("shard 7:", found.Shards[7].Entries[1].Index, string(found.Shards[7].Entries[1].Data))
	// Output:
	// fsyncs: 1
	// shard 1: {2 1 0} 1
	// shard 7: 41 b
}
