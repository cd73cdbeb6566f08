package sim

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// The kinds of faults that come and go. Those of the network that are always there while it is not calm (loss,
// delay, duplicates, disorder) are in network.go; slow fsyncs and passes are in swarm.go.
const (
	faultCrash = iota
	faultCrashAll
	faultStop
	faultPause
	faultClock
	faultTransfer
	faultIsolate
	faultHalves
	faultOneWay
	faultBridge
	faultFlap
	faultSlowDisk
	faultDiskError
	faultDiskLow
	faultPin
	faultUnreachable
	faultSleepyLeader
	faultDiskFull
	faultRot
	faultCut
	faultAddLearner
	faultPromote
	faultRemove
	faultReplace
	faultAddress
	faultUpgrade
	faultDowngrade
	faultProxy
	faultStream
	faultStep
	faultBackup
	faultKinds
)

var faultNames = [faultKinds]string{
	"crash", "crash-all", "stop", "pause", "clock", "transfer", "isolate", "halves", "one-way", "bridge", "flap",
	"slow-disk", "disk-error", "disk-low", "pin", "unreachable", "sleepy-leader",
	"disk-full", "rot",
	"cut", "add-learner", "promote", "remove", "replace", "address", "upgrade", "downgrade",
	"proxy", "stream", "step", "backup",
}

// faultMeans are the mean times between two faults of a kind, when the seed has it.
var faultMeans = [faultKinds]int64{
	faultCrash: 400 * millisecond, faultCrashAll: 1500 * millisecond, faultStop: 600 * millisecond,
	faultPause: 300 * millisecond, faultClock: 100 * millisecond, faultTransfer: 200 * millisecond,
	faultIsolate: 400 * millisecond, faultHalves: 600 * millisecond, faultOneWay: 300 * millisecond,
	faultBridge: 600 * millisecond, faultFlap: 500 * millisecond, faultSlowDisk: 500 * millisecond,
	faultDiskError: 800 * millisecond, faultDiskLow: 500 * millisecond, faultPin: 50 * millisecond,
	faultUnreachable: 100 * millisecond, faultSleepyLeader: 500 * millisecond,
	faultDiskFull: 800 * millisecond, faultRot: 1000 * millisecond,

	faultCut:        100 * millisecond,
	faultAddLearner: 300 * millisecond, faultPromote: 150 * millisecond, faultRemove: 600 * millisecond, faultReplace: 400 * millisecond,
	faultAddress: 600 * millisecond, faultUpgrade: 300 * millisecond, faultDowngrade: 600 * millisecond,

	faultProxy: 400 * millisecond, faultStream: 50 * millisecond,

	faultStep: 200 * millisecond, faultBackup: 700 * millisecond,
}

// longestPause keeps a pause from outlasting the calm phase's patience.
const longestPause = 2 * second

// faults breaks things. Each fault has a copy of its own, with a random source of its own, so that
// leaving out one leaves the others what they were; what is under way they share.
type faults struct {
	s    *sim
	r    *rand.Rand
	kind int
	*underWay
}

type underWay struct{ active []*activeFault }

// activeFault is one that lasts. It heals after its time, or when calm begins.
type activeFault struct {
	kind   int
	node   core.NodeID
	heal   func()
	healed bool
}

func newFaults(s *sim) *faults {
	f := &faults{s: s, r: stream(s.seed, 4), underWay: &underWay{}}
	if s.opts.plan != nil {
		for _, p := range s.opts.plan.faults {
			f.at(p.at, p.id)
		}
		return f
	}
	for kind, mean := range s.swarm.every {
		if mean > 0 {
			f.schedule(stream(s.seed, 400+uint64(kind)), faultKey{kind, 1}, mean)
		}
	}
	return f
}

func (f *faults) schedule(times *rand.Rand, id faultKey, mean int64) {
	f.s.after(exp(times, mean), func() {
		if !f.s.calm {
			f.begin(id)
			f.schedule(times, faultKey{id.kind, id.n + 1}, mean)
		}
	})
}

func (f *faults) at(t int64, id faultKey) {
	f.s.at(t, func() {
		if !f.s.calm {
			f.begin(id)
		}
	})
}

// begin has the n-th fault of a kind happen, with its own random source.
func (f *faults) begin(id faultKey) {
	one := &faults{s: f.s, r: stream(f.s.seed, scramble(uint64(id.kind+1)<<32|uint64(id.n))), underWay: f.underWay}
	f.s.broke = append(f.s.broke, plannedFault{id: id, at: f.s.now})
	one.kind = id.kind
	one.inject(id.kind)
}

func (f *faults) inject(kind int) {
	s, n := f.s, f.victim()
	s.stats.Faults[kind]++
	s.trace.event(evFault, n.id, uint64(kind), 0, 0, 0)
	tell := s.trace.note
	switch kind {
	case faultCrash:
		if n.up && f.r.IntN(2) == 0 {
			tell("n%d will, in the middle of what its next pass sends", n.id)
			n.crashAfterPass = true
		} else {
			tell("n%d, at once", n.id)
			f.crash(n)
		}
	case faultCrashAll:
		tell("every node, at once")
		for _, n := range s.nodes {
			f.crash(n)
		}
	case faultStop:
		tell("n%d is told to, in order", n.id)
		f.stop(n, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "the node is closed"})
	case faultDiskError:
		file := f.r.IntN(3) == 0
		tell("the next write of n%d fails, in a table: %v", n.id, file)
		n.disk.failNext(file)
	case faultDiskFull:
		tell("there is no room left on n%d", n.id)
		n.disk.full++
		f.lasts(kind, n, func() { n.disk.full-- })
	case faultRot:
		tell("a file of n%d, if it can be spared", n.id)
		if s.swarm.repairs {
			f.spoil(n)
		} else {
			f.rot(n)
		}
	case faultPause:
		n.paused = s.now + min(exp(f.r, s.swarm.last), longestPause)
		tell("n%d sleeps for %v", n.id, time.Duration(n.paused-s.now))
	case faultSleepyLeader:
		f.sleepyLeader(n)
		tell("n%d sleeps for %v, and is cut off until after that", n.id, time.Duration(n.paused-s.now))
	case faultClock:
		by := pick[int64](f.r, -200, -10, -1, 1, 10, 60, 200) * (second + f.r.Int64N(second))
		n.skew += by
		tell("that of n%d jumps by %v", n.id, time.Duration(by))
	case faultTransfer:
		f.transfer(n)
	case faultSlowDisk:
		tell("an fsync of n%d takes 50 ms and more", n.id)
		n.disk.slow++
		f.lasts(kind, n, func() { n.disk.slow-- })
	case faultDiskLow:
		tell("n%d refuses commands", n.id)
		f.diskLow(n)
	case faultPin:
		if n.up {
			id := core.ShardID(1 + f.r.IntN(shardCount))
			tell("n%d is told that shard %d holds back its log", n.id, id)
			n.pin(id)
		}
	case faultUnreachable:
		if n.up {
			id := core.NodeID(1 + f.r.IntN(len(s.nodes)))
			tell("n%d is told that it cannot reach n%d", n.id, id)
			n.unreachable(id)
		}
	case faultCut:
		f.cutSnapshot(n)
	case faultAddLearner, faultPromote, faultRemove, faultReplace, faultAddress:
		f.members(kind)
	case faultUpgrade, faultDowngrade:
		f.exchange(kind, n)
	case faultProxy:
		tell("of a proxy")
		f.crashProxy()
	case faultStream:
		tell("of a client to a proxy, or of a proxy to a node")
		f.troubleStream()
	case faultBackup:
		tell("n%d is told to back up", n.id)
		f.backup(n)
	case faultStep:
		tell("n%d will, in the middle of what it does to its files", n.id)
		f.crashInStep(n)
	default:
		f.partition(kind, n)
	}
}

// victim is any node, or more likely one that leads.
func (f *faults) victim() *node {
	n := f.pickVictim()
	f.s.tellFault(f.kind, n)
	return n
}

func (f *faults) pickVictim() *node {
	if f.r.IntN(2) == 0 {
		if id := f.s.check.someLeader(core.ShardID(1 + f.r.IntN(shardCount))); id != 0 {
			return f.s.node(id)
		}
	}
	return f.s.nodes[f.r.IntN(len(f.s.nodes))]
}

// lasts has a fault healed after a while.
func (f *faults) lasts(kind int, n *node, heal func()) {
	f.lastsUntil(kind, n, f.s.now+exp(f.r, f.s.swarm.last), heal)
}

func (f *faults) lastsUntil(kind int, n *node, t int64, heal func()) {
	a := &activeFault{kind: kind, node: n.id, heal: heal}
	f.active = append(f.active, a)
	f.s.at(t, func() { f.end(a) })
}

func (f *faults) end(a *activeFault) {
	if a.healed {
		return
	}
	a.healed = true
	a.heal()
	f.s.trace.event(evHeal, a.node, uint64(a.kind), 0, 0, 0)
	for i := range f.active {
		if f.active[i] == a {
			f.active = append(f.active[:i:i], f.active[i+1:]...)
			break
		}
	}
}

func (f *faults) crash(n *node) {
	if n.up {
		n.crash()
		f.restart(n)
	}
}

func (f *faults) restart(n *node) {
	gen := n.gen
	f.s.after(exp(f.r, f.s.swarm.last), func() {
		if !n.up && n.gen == gen && !n.out {
			n.start()
		}
	})
}

func (f *faults) stop(n *node, reason *core.Error) {
	if n.up {
		n.stop(reason)
		f.restart(n)
	}
}

// restartSoon has a node whose replica has stopped started again by whoever looks after it.
func (f *faults) restartSoon(n *node) {
	gen := n.gen
	f.s.after(exp(f.r, f.s.swarm.last), func() {
		if n.up && n.gen == gen {
			f.stop(n, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "the node is closed"})
		}
	})
}

// cutSnapshot has a snapshot of a shard written: of what is applied now, which needs a flush, or of the last flush.
func (f *faults) cutSnapshot(n *node) {
	id, fresh := core.ShardID(1+f.r.IntN(int(f.s.work.shards()))), f.r.IntN(4) > 0
	f.s.trace.note("n%d is told to cut a snapshot of shard %d, a fresh one: %v", n.id, id, fresh)
	if n.up {
		n.workerOf(id).post(func(in *core.Input) {
			in.Calls = append(in.Calls, func(c *core.Worker) { c.Cut(context.Background(), id, fresh, func([]byte, error) {}) })
		})
	}
}

// broken stops a node whose disk has failed, as rsm's engine does [G10]. Whoever looks after it starts it again.
func (f *faults) broken(n *node, err error) {
	f.s.stats.DiskFailures++
	f.s.trace.event(evBroken, n.id, n.gen, 0, 0, 0)
	f.s.trace.note("n%d stops: %v", n.id, err)
	f.stop(n, &core.Error{Kind: core.ErrBroken, Code: core.CodeStorage, Message: "the disk failed", Cause: err})
}

// sleepyLeader lets a node sleep, cuts it off a little later, and until after it has woken: as a leader of
// the past, with the last answers of its followers and new requests waiting for it (etcd#20418).
func (f *faults) sleepyLeader(n *node) {
	s := f.s
	n.paused = s.now + min(3*int64(s.swarm.core.ElectionTicks)*n.rate+exp(f.r, s.swarm.last), longestPause)
	heal := n.paused + exp(f.r, s.swarm.last)
	s.after(exp(f.r, 2*(s.swarm.net.mean+s.swarm.fsync.mean)), func() {
		for _, other := range s.nodes {
			if other != n && !s.calm {
				f.lastsUntil(faultSleepyLeader, other, heal, f.cut(other, n))
			}
		}
	})
}

func (f *faults) transfer(n *node) {
	to := core.NodeID(1 + f.r.IntN(len(f.s.nodes)))
	id := core.ShardID(1 + f.r.IntN(shardCount))
	f.s.trace.note("n%d hands shard %d to n%d, if it leads it", n.id, id, to)
	if n.up {
		w := n.workerOf(id)
		w.post(func(in *core.Input) {
			in.Calls = append(in.Calls, func(c *core.Worker) { _ = c.Transfer(id, to) }) // a refusal is fine
		})
	}
}

func (f *faults) diskLow(n *node) {
	set := func(low bool) {
		n.diskLow = low
		if n.up {
			for _, w := range n.workers {
				w.post(func(in *core.Input) { in.Calls = append(in.Calls, func(c *core.Worker) { c.SetDiskLow(low) }) })
			}
		}
	}
	set(true)
	f.lasts(faultDiskLow, n, func() { set(false) })
}

// partition cuts directions of the network.
func (f *faults) partition(kind int, n *node) {
	nodes := f.s.nodes
	other := nodes[f.r.IntN(len(nodes))]
	cut := func(pairs func(a, b *node) bool) {
		for _, a := range nodes {
			for _, b := range nodes {
				if a != b && pairs(a, b) {
					f.lasts(kind, a, f.cut(a, b)) // each direction heals at its own time
				}
			}
		}
	}
	switch kind {
	case faultIsolate:
		cut(func(a, b *node) bool { return a == n || b == n })
	case faultHalves:
		side := make([]bool, len(nodes)+1)
		for i := range side {
			side[i] = f.r.IntN(2) == 0
		}
		cut(func(a, b *node) bool { return side[a.id] != side[b.id] })
	case faultOneWay:
		if f.r.IntN(2) == 0 {
			cut(func(a, b *node) bool { return a == n })
		} else {
			cut(func(a, b *node) bool { return b == n })
		}
	case faultBridge: // n sees everybody, the others see nobody else
		cut(func(a, b *node) bool { return a != n && b != n })
	case faultFlap:
		f.flap(n, other, 2+f.r.IntN(8))
	}
}

// cut blocks a direction of the network until the function that it returns is called.
func (f *faults) cut(from, to *node) (heal func()) {
	f.s.trace.note("from n%d to n%d nothing arrives", from.id, to.id)
	return f.s.net.block(from.id, to.id)
}

// flap cuts the link between two nodes again and again.
func (f *faults) flap(a, b *node, times int) {
	if a == b || times == 0 || f.s.calm {
		return
	}
	one, two := f.cut(a, b), f.cut(b, a)
	f.lasts(faultFlap, a, func() { one(); two() })
	f.s.after(exp(f.r, 2*f.s.swarm.last), func() { f.flap(a, b, times-1) })
}

// calm ends all faults and brings every node back.
func (f *faults) calm() {
	for len(f.active) > 0 {
		f.end(f.active[0])
	}
	f.s.calmProxies()
	for _, n := range f.s.nodes {
		n.crashAfterPass = false
		n.disk.heal()
		n.disk.steps = steps{}
		n.newest()
		if !n.up && !n.out {
			n.start()
		}
	}
}
