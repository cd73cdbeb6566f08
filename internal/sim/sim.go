package sim

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
)

// Options are what a run takes beside its seed.
type Options struct {
	Trace io.Writer // gets the run for people to read; nil for none
	// Nondeterministic makes Apply differ on one node now and then. The core must find it out.
	Nondeterministic bool
	// User, if set, is run and judged instead of the simulator's own machines.
	User *User
	// tune, in tests, changes what the seed has drawn.
	tune func(*swarm)
	// MaxEvents ends a run that does not end; 0 means a bound that no sound run reaches.
	MaxEvents uint64

	plan *plan // what a shrunk run is made of; nil: whatever the seed gives
}

// Failure is the first rule that a run broke.
type Failure struct {
	Rule    string // short and stable: which checker
	Message string
	At      time.Duration // virtual
	// Expected and Seen, if not empty, say it once more, for people who know the machine and not the simulator.
	Expected, Seen string
}

func (f *Failure) Error() string { return fmt.Sprintf("%s at %v: %s", f.Rule, f.At, f.Message) }

// Result is a run.
type Result struct {
	Seed    uint64
	Hash    uint64 // of the trace
	Events  uint64
	Virtual time.Duration
	Failure *Failure // nil: all is well
	History History  // of the simulator's own machines
	Stats   Stats

	run *sim
}

// Stats tell whether the run did anything worth checking.
type Stats struct {
	Nodes, Restarts, Crashes, Stopped    int
	Faults                               [faultKinds]int
	Leaders, Entries, Flushes            int // entries: of both shards, as committed
	Rollbacks, Duplicates                uint64
	SegmentsReleased, WritesLost         int
	WritesTorn, DiskFailures             int
	Told                                 int // of damage that nobody has read
	Rotten, RotRefused, RotStopped       int // disks damaged; of these, nodes that did not start, replicas that stopped
	FramesLost                           int
	Cuts, Fetches, Installs              int // of snapshots
	Chunks, ChunksDamaged                int
	SnapshotsDamaged, Repaired           int // snapshots whose damage was found; replicas that were given the state of a peer
	StepCrashes                          int // between two operations on files
	Ruined                               int // clusters that stood still for damage that nobody could mend
	Backups, Restored, RestoreCrashes    int // clusters restored, crashes while they were
	RestoredHistories                    int // of these clusters, from a backup that has the journal instead of snapshots
	Inherited, AskedAgain                int // sessions and commands that were taken along
	JournalsShort                        int // flushes that dropped what somebody may need
	Changes, ChangesRefused              int // of the members: in the log; asked for and not proposed
	Left                                 int // replicas that were removed and know it
	Activations, Upgrades                int // of versions of the machine
	Proxied, ProxyDoubts                 int // calls through proxies; of these, ended as unknown
	ProxyCrashes, StreamsBroken          int
	Acked, Rejected, Refused             int
	NotProposed, Unknown, Reads, Retries int
	Codes                                map[core.Code]int // of errors
}

// Operations is how many answers were checked.
func (s *Stats) Operations() int { return s.Acked + s.Rejected + s.Refused + s.Reads }

// Injected is how many faults of all kinds came.
func (s *Stats) Injected() (n int) {
	for _, k := range s.Faults {
		n += k
	}
	return n
}

// sim is one run. All of it belongs to one goroutine.
type sim struct {
	opts   Options
	seed   uint64
	swarm  swarm
	work   workload
	now    int64 // virtual ns
	queue  eventQueue
	trace  *trace
	rng    *rand.Rand // of what is in no component of its own
	logger *slog.Logger
	cache  *state.Cache

	nodes   []*node // nodes[i] has id i+1
	net     *network
	faults  *faults
	clients []*client
	proxies []*proxy
	check   *checker
	answers []*attempt // that came in this event and are still to be checked

	stepped []*node        // that have crashed in the middle of this event, see repair.go
	first   *sim           // of which this one's nodes are restored, see restore.go
	backup  *backup        // the last, or nil
	calm    bool           // no more faults
	broke   []plannedFault // the faults so far
	told    []told         // of the run, if it is planned
	failure *Failure
	stats   Stats

	missing       string   // for which calm waits
	changes       int      // of members that were thought of
	changeAnswers []func() // to be checked, as answers
}

// cacheBytes of tables is more than a run reads, so that each block is read once in each incarnation. Where files are damaged under nodes that run,
// it is smallCache, so that they meet the damage: that is no more than pebble takes out of a cache for its memtable (MemTableSize in internal/state), so that nothing stays in it. With a
// smaller memtable there they would read from memory what is damaged on disk, and the runs would no longer show what they are to show.
const (
	cacheBytes = 16 << 20
	smallCache = 256 << 10
)

// oneRun: what raft draws is drawn from one source per process.
var oneRun sync.Mutex

// Run runs one seed to its end. Runs in one process wait for one another.
func Run(seed uint64, opts Options) *Result {
	oneRun.Lock()
	defer oneRun.Unlock()
	if opts.MaxEvents == 0 {
		opts.MaxEvents = 5_000_000
	}
	seedRaft(seed)
	s := &sim{opts: opts, seed: seed, rng: stream(seed, 1), logger: slog.New(slog.DiscardHandler)}
	s.trace = newTrace(&s.now, opts.Trace)
	if opts.Trace != nil {
		s.logger = slog.New(slog.NewTextHandler(logWriter{s.trace}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: dropTime}))
	}
	s.swarm = drawSwarm(stream(seed, 2))
	s.swarm.drawMembers(stream(seed, 6))
	s.swarm.drawProxies(stream(seed, 7))
	s.swarm.drawLimits(stream(seed, 10))
	s.swarm.drawRepairs(stream(seed, 8))
	if opts.User == nil && !opts.Nondeterministic {
		s.swarm.drawRestores(stream(seed, 9))
		s.swarm.drawReads(stream(seed, 11))
		s.swarm.drawPace(stream(seed, 12))
	}
	if opts.User != nil {
		s.work = newUserWork(s, opts.User)
	} else {
		s.work = newBuiltin(s)
	}
	s.work.tune(&s.swarm)
	if opts.plan != nil {
		opts.plan.tune(&s.swarm)
	}
	if opts.tune != nil {
		opts.tune(&s.swarm)
	}
	s.trace.note("seed %d: %+v", seed, s.swarm)
	s.stats.Nodes, s.stats.Codes = s.swarm.nodes, map[core.Code]int{}
	cache := int64(cacheBytes)
	if s.swarm.repairs {
		cache = smallCache
	}
	s.cache = state.NewCache(cache)
	defer s.cache.Close()
	s.check = newChecker(s)
	s.run()
	for _, n := range s.nodes {
		n.end()
	}
	r := &Result{Seed: seed}
	if b, ok := s.work.(*builtin); ok {
		r.History = b.history()
	}
	end := s
	if n := s.next(); n != nil {
		end = n
		n.run()
		for _, n := range n.nodes {
			n.end()
		}
	}
	r.Hash, r.Events, r.Virtual, r.Failure, r.Stats = end.trace.sum(), end.trace.events, time.Duration(end.now), end.failure, end.stats
	for _, o := range s.check.shards[1:] {
		if o != nil {
			r.Stats.Entries += len(o.entries)
		}
	}
	r.run = s
	return r
}

// stream is an independent source for each part, so that a change in one does not shift all the others.
func stream(seed, part uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, part)) }

func (s *sim) run() {
	defer func() {
		if p := recover(); p != nil {
			s.fail("panic", "%v\n%s", p, debug.Stack())
		}
	}()
	s.net = newNetwork(s, stream(s.seed, 3))
	for i := range s.swarm.nodes + s.swarm.spares {
		s.nodes = append(s.nodes, newNode(s, core.NodeID(i+1)))
	}
	if s.first != nil {
		if s.restore(); s.failure != nil {
			return
		}
	}
	s.faults = newFaults(s)
	for _, n := range s.nodes {
		n.start()
	}
	s.startProxies()
	s.startClients()
	if s.first != nil {
		s.inherit()
		s.haunt(stream(s.seed, 22))
	}
	s.after(int64(s.swarm.chaos), func() { s.beCalm() })
	for s.failure == nil {
		at, t, ok := s.queue.pop()
		if !ok {
			s.fail("harness", "nothing is left to happen")
			return
		}
		s.now = at
		if t.run == nil { // the end
			return
		}
		if t.ended() {
			continue
		}
		t.run()
		if len(s.stepped) > 0 {
			s.endStep()
		}
		s.takeAnswers()
		if s.trace.events > s.opts.MaxEvents {
			s.fail("harness", "more than %d events", s.opts.MaxEvents)
		}
	}
}

// fail records the first broken rule; the run ends with this event.
func (s *sim) fail(rule, format string, args ...any) {
	if s.failure != nil {
		return
	}
	s.failure = &Failure{Rule: rule, Message: fmt.Sprintf(format, args...), At: time.Duration(s.now)}
	s.trace.note("FAILURE %v", s.failure)
}

func (s *sim) node(id core.NodeID) *node { return s.nodes[id-1] }

// at has f run at a time; events of the same time run in the order in which they were given.
func (s *sim) at(t int64, f func()) { s.queue.push(max(t, s.now), task{run: f}) }

func (s *sim) after(d int64, f func()) { s.at(s.now+d, f) }

// end lets the run end here, with success unless a rule was broken.
func (s *sim) end() {
	s.queue = eventQueue{}
	s.queue.push(s.now, task{})
}

// exp draws an exponential with the given mean, capped at twenty times of it.
func exp(r *rand.Rand, mean int64) int64 {
	return int64(min(r.ExpFloat64(), 20) * float64(mean))
}

func chance(r *rand.Rand, p float64) bool { return p > 0 && r.Float64() < p }

// logWriter puts the core's own messages into the trace.
type logWriter struct{ t *trace }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.note("log: %s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func dropTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
