package proxy

import (
	"time"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/rsm"
)

// backend takes calls, and calls Done of each once.
type backend interface {
	start(now int64, c *route.Call)
	// leads reports whether somebody is known to lead the shard.
	leads(shard rsm.ShardID) bool
	// met is closed when it is known which cluster this is.
	met() <-chan struct{}
	// cluster is the cluster's name, "" while it is not known.
	cluster() string
	topology() *decreev1.GetTopologyResponse
}

var epoch = time.Now()

// unix is a clock that proxies have in common, about, and that never goes back.
func unix(now int64) int64 { return epochUnix + now }

var epochUnix = epoch.UnixNano()

// monotonic is the clock of all calls in this process, in nanoseconds.
func monotonic() int64 { return int64(time.Since(epoch)) }
