package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/testkit"
)

// bareSim is what a simulation costs that has nothing in it but raft: three nodes with a RawNode for each of two groups, a clock, a
// network, disks that take time and lose what they had not done, clients that ask. It draws the same swarm as the simulator from the same seed, so
// ticks, latencies, losses and faults are the same; there are no machine, no store, no frames, no sessions and no checks. It is the
// measure for the simulator's speed: an absolute one would be a machine's.
//
// It is made to be quick: flights are used again, a pass is no event, nothing is hashed.
type bareSim struct {
	w       swarm
	now     int64
	queue   eventQueue
	net     *rand.Rand
	faults  *rand.Rand
	ask     *rand.Rand
	nodes   []*bareNode // nodes[i] has id i+1
	cut     [bareNodes + 1][bareNodes + 1]int
	due     [bareNodes + 1][bareNodes + 1]int64
	idle    []*bareFlight
	guess   []int  // by group: which node is asked first
	waiting int    // operations that no leader has taken yet
	ops     uint64 // asked
	every   int64  // mean ns between two operations
	calm    bool

	events, answered, injected int
}

const (
	bareNodes = 3
	// bareInterval is the mean time between two operations: as many are answered in a simulated second as the simulator checks.
	bareInterval = 4_700 * microsecond
	bareFew      = 25 * millisecond
	bareRetry    = 20 * millisecond
	bareReads    = 0.4 // share of operations that read the index
	bareCalm     = time.Second
)

type bareNode struct {
	s      *bareSim
	id     int
	rate   int64
	up     bool
	gen    uint64
	paused int64
	slow   int
	groups []*bareGroup
}

// bareGroup is a replica. Its storage outlives its incarnations.
type bareGroup struct {
	n       *bareNode
	num     int
	storage *raft.MemoryStorage
	rn      *raft.RawNode
	rd      raft.Ready // being written
	writing bool
	applied uint64
	asked   map[uint64]bool // operations that were asked here and have no answer yet
	reads   []raft.ReadState
	synced  func()
}

// bareFlight is a message on its way.
type bareFlight struct {
	s         *bareSim
	to, group int
	bytes     []byte
	run       func()
}

// quietLogger drops what raft says.
type quietLogger struct{ raft.Logger }

func (quietLogger) Debug(...any)            {}
func (quietLogger) Debugf(string, ...any)   {}
func (quietLogger) Info(...any)             {}
func (quietLogger) Infof(string, ...any)    {}
func (quietLogger) Warning(...any)          {}
func (quietLogger) Warningf(string, ...any) {}
func (quietLogger) Error(...any)            {}
func (quietLogger) Errorf(string, ...any)   {}

func newBareSim(seed uint64, groups int, every int64) *bareSim {
	s := &bareSim{w: drawSwarm(stream(seed, 2)), guess: make([]int, groups), every: every, net: stream(seed, 3), faults: stream(seed, 4), ask: stream(seed, 5)}
	for i := range bareNodes {
		n := &bareNode{s: s, id: i + 1, rate: int64(s.w.tick) * (90 + s.faults.Int64N(21)) / 100}
		for k := range groups {
			g := &bareGroup{n: n, num: k, storage: raft.NewMemoryStorage()}
			first := raftpb.SnapshotMetadata{Index: 1, Term: 1, ConfState: raftpb.ConfState{Voters: []uint64{1, 2, 3}}}
			if err := g.storage.ApplySnapshot(raftpb.Snapshot{Metadata: first}); err != nil {
				panic(err)
			}
			g.applied = 1
			n.groups = append(n.groups, g)
		}
		s.nodes = append(s.nodes, n)
	}
	return s
}

// run runs the seed to its end and returns how much virtual time that was.
func (s *bareSim) run() time.Duration {
	for _, n := range s.nodes {
		n.start()
	}
	for kind, mean := range s.w.every {
		if mean > 0 {
			s.schedule(kind, mean)
		}
	}
	s.next()
	s.at(int64(s.w.chaos), s.beCalm)
	end := int64(s.w.chaos + bareCalm)
	for {
		at, t, _ := s.queue.pop() // ticks go on for ever
		if at > end {
			return time.Duration(end)
		}
		s.now = at
		s.events++
		t.run()
	}
}

func (s *bareSim) at(t int64, f func()) { s.queue.push(max(t, s.now), task{run: f}) }

func (s *bareSim) after(d int64, f func()) { s.at(s.now+d, f) }

// schedule has faults of a kind come, as the simulator does: those that say something to raft.
func (s *bareSim) schedule(kind int, mean int64) {
	s.after(exp(s.faults, mean), func() {
		if !s.calm {
			s.inject(kind, s.nodes[s.faults.IntN(bareNodes)])
			s.schedule(kind, mean)
		}
	})
}

func (s *bareSim) inject(kind int, n *bareNode) {
	s.injected++
	switch kind {
	case faultCrash, faultStop, faultDiskError, faultDiskFull:
		n.crash()
	case faultCrashAll:
		for _, n := range s.nodes {
			n.crash()
		}
	case faultPause:
		n.paused = s.now + min(exp(s.faults, s.w.last), longestPause)
	case faultTransfer:
		if g := n.groups[s.faults.IntN(len(n.groups))]; n.up {
			g.rn.TransferLeader(uint64(1 + s.faults.IntN(bareNodes)))
			g.work()
		}
	case faultSlowDisk:
		n.slow++
		s.after(exp(s.faults, s.w.last), func() { n.slow-- })
	case faultUnreachable:
		n.unreachable(uint64(1 + s.faults.IntN(bareNodes)))
	case faultIsolate:
		s.block(func(a, b int) bool { return a == n.id || b == n.id })
	case faultSleepyLeader:
		n.paused = s.now + min(3*int64(s.w.core.ElectionTicks)*n.rate, longestPause)
		s.block(func(_, b int) bool { return b == n.id })
	case faultHalves:
		side := s.faults.IntN(1 << (bareNodes + 1))
		s.block(func(a, b int) bool { return side>>a&1 != side>>b&1 })
	case faultOneWay:
		s.block(func(a, _ int) bool { return a == n.id })
	case faultBridge:
		s.block(func(a, b int) bool { return a != n.id && b != n.id })
	case faultFlap:
		other := 1 + n.id%bareNodes
		s.block(func(a, b int) bool { return a == n.id && b == other || a == other && b == n.id })
	default:
		s.injected-- // of what is not here
	}
}

// block cuts directions of the network, each for a while of its own.
func (s *bareSim) block(pairs func(from, to int) bool) {
	for a := 1; a <= bareNodes; a++ {
		for b := 1; b <= bareNodes; b++ {
			if a != b && pairs(a, b) {
				s.cut[a][b]++
				s.after(exp(s.faults, s.w.last), func() { s.cut[a][b]-- })
			}
		}
	}
}

// beCalm ends the faults; what blocks or hangs ends by itself.
func (s *bareSim) beCalm() {
	s.calm = true
	for _, n := range s.nodes {
		if !n.up {
			n.start()
		}
	}
}

// next asks for the next operation, of a node that is likely to lead.
func (s *bareSim) next() {
	s.after(exp(s.ask, s.every), s.next)
	if s.waiting == s.w.clients*s.w.width {
		return // everybody who might ask waits
	}
	s.ops++
	data := make([]byte, 0, commandBytes)
	if size := commandBytes; chance(s.ask, s.w.padChance) {
		data = make([]byte, 0, size+s.ask.IntN(s.w.pad))
	}
	data = binary.BigEndian.AppendUint64(data, s.ops)
	s.waiting++
	s.attempt(s.ask.IntN(len(s.guess)), data[:cap(data)], chance(s.ask, bareReads))
}

func (s *bareSim) attempt(group int, data []byte, read bool) {
	n := s.nodes[s.guess[group]]
	g := n.groups[group]
	if n.up && s.now >= n.paused && g.rn.BasicStatus().RaftState == raft.StateLeader {
		s.waiting--
		g.asked[binary.BigEndian.Uint64(data)] = true
		if read {
			g.rn.ReadIndex(data[:8])
		} else if err := g.rn.Propose(data); err != nil {
			delete(g.asked, binary.BigEndian.Uint64(data)) // it leads, and gives its place to another
		}
		g.work()
		return
	}
	s.guess[group] = (s.guess[group] + 1) % bareNodes
	s.after(exp(s.ask, bareRetry), func() { s.attempt(group, data, read) })
}

func (n *bareNode) start() {
	n.gen++
	n.up, n.paused = true, 0
	for _, g := range n.groups {
		g.open()
	}
	gen := n.gen
	var tick func()
	tick = func() {
		switch s := n.s; {
		case !n.up || n.gen != gen:
			return
		case s.now < n.paused:
			s.at(n.paused, tick)
			return
		}
		n.s.after(n.rate, tick)
		for _, g := range n.groups {
			g.rn.Tick()
			g.work()
		}
	}
	n.s.after(n.s.faults.Int64N(n.rate), tick)
}

// crash loses what the disk had not done, or half of the time has it.
func (n *bareNode) crash() {
	if !n.up {
		return
	}
	n.up = false
	for _, g := range n.groups {
		if g.writing && n.s.faults.IntN(2) == 0 {
			g.save()
		}
	}
	gen := n.gen
	n.s.after(exp(n.s.faults, n.s.w.last), func() {
		if !n.up && n.gen == gen {
			n.start()
		}
	})
}

func (n *bareNode) unreachable(peer uint64) {
	if n.up && int(peer) != n.id {
		for _, g := range n.groups {
			g.rn.ReportUnreachable(peer)
			g.work()
		}
	}
}

// open begins an incarnation with what the storage has.
func (g *bareGroup) open() {
	n, c := g.n, &g.n.s.w.core
	rn, err := raft.NewRawNode(&raft.Config{
		ID: uint64(n.id), ElectionTick: c.ElectionTicks, HeartbeatTick: c.HeartbeatTicks, Storage: g.storage, Applied: g.applied,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 64, CheckQuorum: true, PreVote: true, DisableProposalForwarding: true, Logger: quietLogger{},
	})
	if err != nil {
		panic(err)
	}
	g.rn, g.rd, g.writing, g.asked, g.reads = rn, raft.Ready{}, false, map[uint64]bool{}, nil
	gen := n.gen
	g.synced = func() {
		switch {
		case !n.up || n.gen != gen:
		case n.s.now < n.paused:
			n.s.at(n.paused, g.synced)
		default:
			g.save()
			g.writing = false
			g.finish(&g.rd)
			g.work()
		}
	}
}

// work does what raft has ready: what must be on disk first takes its time.
func (g *bareGroup) work() {
	for !g.writing && g.rn.HasReady() {
		g.rd = g.rn.Ready()
		if !g.rd.MustSync {
			g.save()
			g.finish(&g.rd)
			continue
		}
		g.writing = true
		s := g.n.s
		took := s.w.fsync.draw(s.net)
		if s.calm {
			took = min(took, 5*millisecond)
		} else if g.n.slow > 0 {
			took = 50*millisecond + exp(s.net, 200*millisecond)
		}
		s.after(took, g.synced)
	}
}

func (g *bareGroup) save() {
	if !raft.IsEmptyHardState(g.rd.HardState) {
		_ = g.storage.SetHardState(g.rd.HardState) // never fails
	}
	if err := g.storage.Append(g.rd.Entries); err != nil {
		panic(err)
	}
}

// finish sends and applies what is durable.
func (g *bareGroup) finish(rd *raft.Ready) {
	for i := range rd.Messages {
		g.n.s.send(g, &rd.Messages[i])
	}
	for i := range rd.CommittedEntries {
		e := &rd.CommittedEntries[i]
		if g.applied = e.Index; len(e.Data) > 0 {
			g.answer(e.Data)
		}
	}
	g.reads = append(g.reads, rd.ReadStates...)
	g.reads = slices.DeleteFunc(g.reads, func(r raft.ReadState) bool {
		if r.Index > g.applied {
			return false
		}
		g.answer(r.RequestCtx)
		return true
	})
	g.rn.Advance(*rd)
}

func (g *bareGroup) answer(data []byte) {
	if id := binary.BigEndian.Uint64(data); g.asked[id] {
		delete(g.asked, id)
		g.n.s.answered++
	}
}

// send decides a message's fate.
func (s *bareSim) send(g *bareGroup, m *raftpb.Message) {
	from, to := g.n.id, int(m.To)
	if s.cut[from][to] > 0 || !s.calm && chance(s.net, s.w.loss) {
		if n := g.n; s.net.IntN(4) == 0 {
			peer := m.To
			s.after(exp(s.net, 5*millisecond), func() { n.unreachable(peer) })
		}
		return
	}
	copies := 1
	if !s.w.ordered && !s.calm && chance(s.net, s.w.dup) {
		copies = 2
	}
	for range copies {
		delay := exp(s.net, min(s.w.net.mean, millisecond))
		if !s.calm {
			delay = s.w.net.draw(s.net)
		}
		at := s.now + delay
		if s.w.ordered {
			at = max(at, s.due[from][to])
			s.due[from][to] = at
		}
		f := s.flight()
		f.to, f.group = to, g.num
		if size := m.Size(); cap(f.bytes) < size {
			f.bytes = make([]byte, size)
		} else {
			f.bytes = f.bytes[:size]
		}
		if _, err := m.MarshalTo(f.bytes); err != nil {
			panic(err)
		}
		s.at(at, f.run)
	}
}

// flight returns one that has landed, or a new one.
func (s *bareSim) flight() *bareFlight {
	if last := len(s.idle) - 1; last >= 0 {
		f := s.idle[last]
		s.idle = s.idle[:last]
		return f
	}
	f := &bareFlight{s: s}
	f.run = f.land
	return f
}

func (f *bareFlight) land() {
	n := f.s.nodes[f.to-1]
	if n.up && f.s.now < n.paused {
		f.s.at(n.paused, f.run)
		return
	}
	f.s.idle = append(f.s.idle, f)
	if !n.up {
		return
	}
	var m raftpb.Message
	if err := m.Unmarshal(f.bytes); err != nil {
		panic(err)
	}
	g := n.groups[f.group]
	_ = g.rn.Step(m) // an error is of a message that raft does not want
	g.work()
}

// bareStats are what many seeds came to.
type bareStats struct {
	virtual                    time.Duration
	events, answered, injected int
}

func (t *bareStats) run(seed uint64, groups int, every int64) {
	oneRun.Lock()
	defer oneRun.Unlock()
	seedRaft(seed)
	s := newBareSim(seed, groups, every)
	t.virtual += s.run()
	t.events += s.events
	t.answered += s.answered
	t.injected += s.injected
}

func (t *bareStats) report(b *testing.B) {
	b.ReportMetric(float64(t.answered)/t.virtual.Seconds(), "ops/sim-s")
	b.ReportMetric(float64(t.injected)/t.virtual.Seconds(), "faults/sim-s")
	b.ReportMetric(float64(t.events)/t.virtual.Seconds(), "events/sim-s")
}

// BenchmarkBareRaft measures how much faster than time three nodes of nothing but raft run; one iteration is one seed. With as
// many groups and operations as the simulator has, and with few.
func BenchmarkBareRaft(b *testing.B) {
	b.Run("groups=2", func(b *testing.B) { benchmarkBare(b, 2, bareInterval) })
	b.Run("groups=1,few", func(b *testing.B) { benchmarkBare(b, 1, bareFew) })
}

func benchmarkBare(b *testing.B, groups int, every int64) {
	var t bareStats
	seed := uint64(1)
	for b.Loop() {
		t.run(seed, groups, every)
		seed++
	}
	b.ReportMetric(t.virtual.Seconds()/b.Elapsed().Seconds(), "sim-s/s")
	b.ReportMetric(float64(t.events)/b.Elapsed().Seconds(), "events/s")
	t.report(b)
}

// BenchmarkProportion measures how many times what bare raft costs the simulator costs, checks and all. One iteration is a round: a
// few seeds of one, then the same of the other, so that both meet the same machine. What is said of all rounds is the median.
func BenchmarkProportion(b *testing.B) {
	const seeds, barePerFull = 10, 8 // so that both take about as long
	var ratios, full, bare []float64
	for b.Loop() {
		first := uint64(1 + len(ratios)*seeds)
		began := time.Now()
		virtual := time.Duration(0)
		for seed := first; seed < first+seeds; seed++ {
			r := runJudged(seed, Options{tune: threeNodes})
			if r.Failure != nil {
				b.Fatalf("seed %d: %v", seed, r.Failure)
			}
			virtual += r.Virtual
		}
		between := time.Now()
		var t bareStats
		for range barePerFull {
			for seed := first; seed < first+seeds; seed++ {
				t.run(seed, 2, bareInterval)
			}
		}
		full = append(full, virtual.Seconds()/between.Sub(began).Seconds())
		bare = append(bare, t.virtual.Seconds()/time.Since(between).Seconds())
		ratios = append(ratios, bare[len(bare)-1]/full[len(full)-1])
	}
	for unit, of := range map[string][]float64{"sim-s/s": full, "bare-sim-s/s": bare, "times": ratios} {
		b.ReportMetric(median(of), unit)
	}
	b.Logf("times in each round: %.1f", ratios)
}

func median(of []float64) float64 {
	s := slices.Sorted(slices.Values(of))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

// TestBareRaft: a measure that is idle, or another each time, measures nothing.
func TestBareRaft(t *testing.T) {
	testkit.SkipUnderRace(t)
	var one, two bareStats
	for seed := uint64(1); seed <= 20; seed++ {
		one.run(seed, 2, bareInterval)
		two.run(seed, 2, bareInterval)
	}
	if one != two {
		t.Errorf("the same seeds give %+v and %+v", one, two)
	}
	if ops := float64(one.answered) / one.virtual.Seconds(); ops < 75 || one.injected == 0 {
		t.Errorf("%.0f operations are answered in a simulated second, and %d faults came in all", ops, one.injected)
	}
}
