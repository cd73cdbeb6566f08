package sim

import (
	"math/rand/v2"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

const (
	shardCount    = 2
	registers     = core.ShardID(1)
	bank          = core.ShardID(2)
	maxValueBytes = 8 << 10

	narrowValueBytes = 100
)

// swarm is what a seed draws: each run is a system of its own, with some faults and not others. Drawing all
// faults always would hide what needs one of them alone, for long (swarm testing).
type swarm struct {
	nodes, workers int
	tick           time.Duration
	core           core.Config
	logSegments    int
	chaos          time.Duration

	passDelay int64 // mean ns from an input to the pass that takes it
	pace      int64 // mean ns that pass from one look of a worker at its clock to the next, 0: passes take no time
	fsync     latency
	flush     int64
	net       latency
	ordered   bool // frames of a link do not overtake each other, and none is doubled
	loss, dup float64

	every [faultKinds]int64 // mean ns between two faults of a kind, 0: never
	last  int64             // mean ns that a fault lasts
	torn  float64           // share of the writes under way in a crash that are torn, and neither whole nor lost

	clients, width    int
	think             int64
	pad               int     // bytes of large commands
	padChance         float64 // of a command to be large
	sessions          float64 // share of clients that use sessions
	patience          int64   // of a client with one attempt
	clientLoss        float64 // of a request or a reply between client and node
	idleEvery, idleOf int64   // phases in which nobody asks
	longQueries       float64
	reads             int   // percent of what is asked
	linear            bool  // most of them linearizable
	lateTicks         bool  // who has slept reads what came meanwhile before its clock ticks
	maxMemory         int64 // that a replica may take

	proxies int     // 0: every client asks nodes
	proxied float64 // share of clients that ask through them
	silence int64   // of a stream on which calls wait, before it is given up

	spares     int     // nodes that may be added
	programs   uint64  // the highest version of the machine that there is
	chunk      int64   // mean ns from a few chunks of a snapshot to the next
	chunks     int     // that come at a time, at most
	chunkFlips float64 // of a chunk to arrive damaged
	repairs    bool    // replicas that have met damage are repaired
	rotForGood float64 // of damage to be such that no peer can help
	ruin       bool    // more disks may be damaged than can be spared
	tells      bool    // replicas are told of damage that they have not read
	narrow     int     // one of so many incarnations of nodes has narrow limits of what may be set; 0: none
}

// latency is a mean with a heavy tail.
type latency struct {
	mean, tail int64
	tailChance float64
}

func (l latency) draw(r *rand.Rand) int64 {
	if chance(r, l.tailChance) {
		return exp(r, l.tail)
	}
	return exp(r, l.mean)
}

const (
	microsecond = int64(time.Microsecond)
	millisecond = int64(time.Millisecond)
	second      = int64(time.Second)
)

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func drawSwarm(r *rand.Rand) swarm {
	s := swarm{
		nodes: pick(r, 1, 3, 3, 3, 3, 3, 3, 5), workers: 1 + r.IntN(2),
		tick:        pick[time.Duration](r, 5, 10, 20) * time.Millisecond,
		logSegments: 2, chaos: time.Duration(1500+r.IntN(3500)) * time.Millisecond,
		passDelay: pick[int64](r, 5, 50, 500) * microsecond,
		fsync:     latency{pick[int64](r, 20, 200, 2000) * microsecond, pick[int64](r, 10, 100) * millisecond, pick(r, 0, 0.01, 0.05)},
		flush:     pick[int64](r, 1, 10, 100) * millisecond,
		net:       latency{pick[int64](r, 50, 300, 2000) * microsecond, pick[int64](r, 10, 100, 400) * millisecond, pick(r, 0, 0, 0.01, 0.05)},
		ordered:   r.IntN(2) == 0,
		loss:      pick(r, 0, 0, 0.01, 0.1), dup: pick(r, 0, 0, 0.02, 0.2),
		last:    pick[int64](r, 50, 200, 600) * millisecond,
		clients: 2 + r.IntN(7), width: 1 + r.IntN(5),
		think: pick[int64](r, 1, 3, 10) * millisecond / 2,
		pad:   pick(r, 200, 2000, 6000), padChance: pick(r, 0, 0.1, 0.6),
		sessions: pick(r, 0, 0.5, 0.7, 1), patience: pick[int64](r, 50, 200, 800) * millisecond,
		clientLoss: pick(r, 0, 0.02, 0.1), longQueries: pick(r, 0, 0.1),
		maxMemory: 16 << 20, reads: usualReads,
	}
	s.torn = pick(r, 0, 0.3, 0.8)
	if r.IntN(3) == 0 {
		s.idleEvery, s.idleOf = 500*millisecond, 700*millisecond
	}
	s.core = drawCore(r, s.tick)
	for k := range faultCut {
		if r.IntN(4) == 0 {
			s.every[k] = faultMeans[k] * pick[int64](r, 1, 2, 6)
		}
	}
	s.core.KeepJournal = r.IntN(4) == 0
	return s
}

func drawCore(r *rand.Rand, tick time.Duration) core.Config {
	election := 8 + r.IntN(9)
	c := core.Config{
		Tick: tick, HeartbeatTicks: 2, ElectionTicks: election, QuiesceTicks: pick(r, -1, election, 3*election),
		Limits: core.Limits{
			MaxCommandBytes: 8 << 10, MaxEntryBytes: 64 << 10, MaxKeyBytes: 64, MaxValueBytes: maxValueBytes,
			BatchBytes: pick(r, 1, 500, 60<<10), PipelineDepth: pick(r, 1, 2, 4, 16),
			MaxQueuedRequests: pick(r, 4, 64, 4096), MaxQueuedBytes: 1 << 20,
			FlushBytes: pick[int64](r, 64<<10, 128<<10, 1<<20), LogCacheBytes: pick[int64](r, 1, 8<<10, 1<<20),
		},
		Sessions: core.SessionOptions{TTL: time.Minute, Window: pick[uint64](r, 2, 8, 64), Max: pick(r, 3, 8, 100)},
	}
	return c.WithDefaults()
}

// drawMembers draws what concerns snapshots, members and versions. It has a source of its own, so that the rest of a seed is what it was.
func (s *swarm) drawMembers(r *rand.Rand) {
	s.chunk, s.chunks = pick[int64](r, 1, 5, 30)*millisecond, pick(r, 1, 3, 100)
	s.chunkFlips = pick(r, 0, 0, 0.05, 0.3)
	s.core.JournalMaxBytes = pick[int64](r, 1<<30, 1<<30, 1, 1, 16<<10, 100<<10)
	some := func(kinds ...int) {
		for _, k := range kinds {
			s.every[k] = faultMeans[k] * pick[int64](r, 1, 1, 2, 6)
		}
	}
	if s.core.JournalMaxBytes < 1<<30 || r.IntN(3) == 0 {
		some(faultCut)
	}
	if r.IntN(5) < 2 {
		// Each member must be able to come back, or the last ones could not go on.
		s.every[faultRot] = 0
		s.spares = 1 + r.IntN(3)
		some(faultAddLearner, faultPromote, faultRemove, faultReplace, faultAddress)
		if r.IntN(4) == 0 {
			s.every[faultRemove] = 0
		}
	}
	if r.IntN(4) == 0 {
		s.programs = 1 + r.Uint64N(2)
		some(faultUpgrade)
		if r.IntN(2) == 0 {
			some(faultDowngrade)
		}
	}
}

// drawLimits draws whether nodes have limits of their own, from a source of its own.
func (s *swarm) drawLimits(r *rand.Rand) { s.narrow = pick(r, 0, 0, 2, 3) }

// limits returns those of a node's incarnation: they are configured node by node, and change with a restart.
func (s *swarm) limits(id core.NodeID, gen uint64) core.Limits {
	l := s.core.Limits
	if s.narrow > 0 && (uint64(id)+gen)%uint64(s.narrow) == 0 {
		l.MaxValueBytes = narrowValueBytes
		if gen%2 == 0 {
			l.MaxKeyBytes = 2 // no key of the machines fits
		}
	}
	return l
}

// drawPace draws whether passes take time, from a source of its own.
func (s *swarm) drawPace(r *rand.Rand) {
	s.pace = pick(r, 0, 0, 0, 0, 0, 0, 200*microsecond, 2*millisecond)
}

// usualReads is the share of reads, in percent, where a seed does not have mostly reads.
const usualReads = 35

// drawReads draws whether there are next to no commands, from a source of its own: reads that no command is there for go another way.
func (s *swarm) drawReads(r *rand.Rand) {
	if r.IntN(8) > 0 {
		return
	}
	s.reads, s.linear, s.lateTicks = pick(r, 80, 95, 97), true, r.IntN(2) == 0
}

// drawProxies draws what concerns proxies, from a source of its own.
func (s *swarm) drawProxies(r *rand.Rand) {
	if s.proxies = pick(r, 0, 0, 0, 1, 2); s.proxies == 0 {
		return
	}
	s.proxied, s.silence = pick(r, 0.5, 1), pick[int64](r, 50, 200, 500)*millisecond
	for _, k := range []int{faultProxy, faultStream} {
		if r.IntN(3) > 0 {
			s.every[k] = faultMeans[k] * pick[int64](r, 1, 2, 6)
		}
	}
}
