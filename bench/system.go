package main

import (
	"context"
	"fmt"
)

// System is one system under test: three replicas of every shard in this process, talking over loopback TCP, with
// fsync on and everything on disk. Calls go to the node that leads the shard. Safe for use by many goroutines.
//
// Commands and keys are shared between calls and systems: nobody may change them.
type System interface {
	// Write returns when the command is committed and applied at the leader.
	Write(ctx context.Context, shard int, command []byte) error
	// StartWrite hands a command over without waiting for it; the caller keeps many in flight and calls wait exactly
	// once for each. It must cost no goroutine and no timer per call.
	StartWrite(ctx context.Context, shard int, command []byte) (wait func(context.Context) error, err error)
	// Read is a linearizable read of one key.
	Read(ctx context.Context, shard int, key []byte) error
	// StartRead is to Read what StartWrite is to Write.
	StartRead(ctx context.Context, shard int, key []byte) (wait func(context.Context) error, err error)
	// Fsyncs counts the fsync and fdatasync calls of all three replicas so far; -1 if they cannot be counted without
	// changing what is measured.
	Fsyncs() int64
	// Close stops all three replicas.
	Close() error
}

// options say what a System is to run.
type options struct {
	Dir     string  // an empty directory of its own, on a real disk
	Shards  int     // numbered from 0
	Machine machine // one of the contender's machines
}

// contender is a system that the benchmark knows how to start.
type contender struct {
	name     string
	about    string    // one line for -help
	extra    bool      // measured only if -systems names it
	machines []machine // the ones that it runs; a cell of any other machine runs its first instead
	start    func(context.Context, options) (System, error)
	// workload makes the commands of a machine whose encoding is the contender's own; nil for the common ones.
	workload func(machine, int) (workload, error)
}

// machine names a replicated state machine.
type machine string

const (
	noop   machine = "noop"   // does nothing; commands are random bytes
	kv     machine = "kv"     // a map; commands are an 8-byte key and a value
	ledger machine = "ledger" // Decree's example service; transfers between 10,000 accounts
)

// runs is the machine that the contender runs in a cell: dragonboat has no ledger, and shows its no-op machine there.
func (c contender) runs(m machine) machine {
	for _, have := range c.machines {
		if have == m {
			return m
		}
	}
	return c.machines[0]
}

func find(all []contender, name string) (contender, error) {
	for _, c := range all {
		if c.name == name {
			return c, nil
		}
	}
	return contender{}, fmt.Errorf("no system is called %q", name)
}
