package rsm

import (
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// flushesUnderWay knows since when each flush has been due: from when it was handed out, waiting for its turn included.
type flushesUnderWay struct {
	mu    sync.Mutex
	since map[*core.FlushDone]int64 // monotonic ns
}

func (u *flushesUnderWay) begin(f *core.FlushDone, now int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.since == nil {
		u.since = map[*core.FlushDone]int64{}
	}
	u.since[f] = now
}

func (u *flushesUnderWay) end(f *core.FlushDone) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.since, f)
}

// oldest returns the age and the shard of the flush that has been due for longest, 0 if there is none.
func (u *flushesUnderWay) oldest(now int64) (age time.Duration, shard ShardID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for f, at := range u.since {
		if a := time.Duration(now - at); a > age {
			age, shard = a, f.Shard
		}
	}
	return age, shard
}
