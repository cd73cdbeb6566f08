package sim

import (
	"math/rand"
	"sync"
	_ "unsafe" // for go:linkname
)

// lockedRand has the layout of etcd raft v3.5's type of that name.
type lockedRand struct {
	mu   sync.Mutex
	rand *rand.Rand
}

// raftRand draws raft's election timeouts, for every raft group of the process. It is seeded from the clock,
// and raft v3.5 offers no way to put another in its place.
//
//go:linkname raftRand go.etcd.io/etcd/raft/v3.globalRand
var raftRand *lockedRand

func seedRaft(seed uint64) {
	raftRand.mu.Lock()
	defer raftRand.mu.Unlock()
	raftRand.rand = rand.New(rand.NewSource(int64(seed)))
}
