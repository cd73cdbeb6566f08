package admit

import (
	"fmt"
	"time"
)

// Config is the bounds of a Controller. Zero fields take their defaults.
type Config struct {
	// ClientCount is how many requests of one client may be at work at once, over all shards. The last eighth
	// is for requests that make room. Default 4096, at least 8.
	ClientCount int
	// ClientBytes is how many bytes those may have. Default 32 MiB, at least 4 KiB.
	ClientBytes int64
	// ShardCount is how many requests may be at work on one shard, whatever its adaptive limit. Default 12,288, at least 12.
	ShardCount int
	// ShardBytes is how many bytes those may have. Ordinary requests get 5/6 of it. Default 64 MiB, at least 4 KiB.
	ShardBytes int64

	// Clients is how many clients are told apart at once; the others share one record. Default 4096.
	Clients int
	// Shards is how many shards are kept at once. Default 4096.
	Shards int

	// Target is which latency is tolerated, as a multiple of the latency without a queue. More
	// gives a little more throughput where the service batches, and longer queues. From 1.2 to 10. Default 1.5, as Floor sees to
	// fast shards; 1.8 without one, as a service of which some fsyncs take 50 times as long as the others has nothing to do after those with less.
	Target float64
	// InitialLimit is the adaptive limit of a shard of which nothing is known. Default 64, within MinLimit and MaxLimit.
	InitialLimit int
	// MinLimit and MaxLimit bound the adaptive limit. MinLimit: default 4, at least 2.
	// MaxLimit: default, and at most, 2/3 of ShardCount; the rest is for overcommitment and the reserve.
	MinLimit, MaxLimit int
	// Floor is how far the adaptive limit of a fast shard falls at most, whatever the latency, and that of one whose speed is not known yet; of
	// slow ones it is less, see the package's doc. Default MinLimit, which is none; within MinLimit and MaxLimit.
	Floor int
	// ProbeEvery is how often the latency without a queue is measured again. Default 10 s, at least 1 s.
	ProbeEvery time.Duration
}

const (
	reserveOfClient = 8 // 1/8 of a client's bounds is for requests that make room
	steps           = 8 // a step is 1/8 of a shard's limit
)

// resolved fills in the defaults.
func (c Config) resolved() (Config, error) {
	for _, f := range []struct {
		name       string
		v          *int
		ifZero, at int
	}{
		{"ClientCount", &c.ClientCount, 4096, reserveOfClient},
		{"ShardCount", &c.ShardCount, 12288, 12},
		{"Clients", &c.Clients, 4096, 1},
		{"Shards", &c.Shards, 4096, 1},
		{"MinLimit", &c.MinLimit, 4, 2},
	} {
		if *f.v == 0 {
			*f.v = f.ifZero
		}
		if *f.v < f.at || *f.v > 1<<30 {
			return c, fmt.Errorf("admit: %s is %d; from %d to %d are allowed, 0 for the default %d", f.name, *f.v, f.at, 1<<30, f.ifZero)
		}
	}
	for _, f := range []struct {
		name   string
		v      *int64
		ifZero int64
	}{
		{"ClientBytes", &c.ClientBytes, 32 << 20},
		{"ShardBytes", &c.ShardBytes, 64 << 20},
	} {
		if *f.v == 0 {
			*f.v = f.ifZero
		}
		if *f.v < 4096 || *f.v > 1<<50 {
			return c, fmt.Errorf("admit: %s is %d; from 4096 to %d are allowed, 0 for the default %d", f.name, *f.v, int64(1)<<50, f.ifZero)
		}
	}
	most := c.ShardCount * 2 / 3
	if c.MaxLimit == 0 {
		c.MaxLimit = most
	}
	if c.MaxLimit < c.MinLimit || c.MaxLimit > most {
		return c, fmt.Errorf("admit: MaxLimit is %d; from MinLimit (%d) to 2/3 of ShardCount (%d) are allowed", c.MaxLimit, c.MinLimit, most)
	}
	if c.InitialLimit == 0 {
		c.InitialLimit = min(max(64, c.MinLimit), c.MaxLimit)
	}
	if c.InitialLimit < c.MinLimit || c.InitialLimit > c.MaxLimit {
		return c, fmt.Errorf("admit: InitialLimit is %d; from MinLimit (%d) to MaxLimit (%d) are allowed", c.InitialLimit, c.MinLimit, c.MaxLimit)
	}
	if c.Floor == 0 {
		c.Floor = c.MinLimit
	}
	if c.Floor < c.MinLimit || c.Floor > c.MaxLimit {
		return c, fmt.Errorf("admit: Floor is %d; from MinLimit (%d) to MaxLimit (%d) are allowed", c.Floor, c.MinLimit, c.MaxLimit)
	}
	if c.Target == 0 && c.Floor > c.MinLimit {
		c.Target = 1.5
	} else if c.Target == 0 {
		c.Target = 1.8
	}
	if !(c.Target >= 1.2 && c.Target <= 10) { // so that NaN is refused
		return c, fmt.Errorf("admit: Target is %v; from 1.2 to 10 are allowed, 0 for the default", c.Target)
	}
	if c.ProbeEvery == 0 {
		c.ProbeEvery = 10 * time.Second
	}
	if c.ProbeEvery < time.Second || c.ProbeEvery > time.Hour {
		return c, fmt.Errorf("admit: ProbeEvery is %v; from 1s to 1h are allowed, 0 for the default 10s", c.ProbeEvery)
	}
	return c, nil
}
