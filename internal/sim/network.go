package sim

import (
	"math/rand/v2"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/decree-raft/decree/internal/core"
)

// network carries frames between nodes.
type network struct {
	s   *sim
	r   *rand.Rand
	cut [][]int // [from][to]: how many faults cut this direction
	// broke is how many of the connections [from][to] have: something that was sent on each was lost. Met is that of the latest of which [to] has read something of [from].
	broke, met [][]int
	due        [][]int64 // when the latest frame of the link arrives, for links that keep order

	spare [][]byte // memory of frames that have been read
	idle  []*flight
	old   []frame // some that were sent, see haunt

	slowest int64   // the longest that a frame has taken, or will
	late    []int64 // late[i]: the longest that a frame had taken that was read within the i-th lateSpan, which a pause makes longer
}

// flight is a frame on its way. It is used again: frames are most of what happens.
type flight struct {
	frame
	n   *network
	run func() // land, made once
}

// fly has a frame arrive at a time.
func (n *network) fly(f frame, at int64) {
	if len(n.idle) == 0 {
		fl := &flight{n: n}
		fl.run = fl.land
		n.idle = append(n.idle, fl)
	}
	last := len(n.idle) - 1
	fl := n.idle[last]
	n.idle = n.idle[:last]
	fl.frame = f
	n.s.at(at, fl.run)
}

func (fl *flight) land() {
	f, n := fl.frame, fl.n
	fl.frame = frame{}
	n.idle = append(n.idle, fl)
	n.s.node(f.to).arrive(f)
}

// frame is what a node has sent to another.
type frame struct {
	from, to core.NodeID
	bytes    []byte
	hash     uint64
	doubled  bool
	conn     int // the connection that it was sent on
	sent     int64
}

// memory returns room for a frame.
func (n *network) memory() []byte {
	if k := len(n.spare); k > 0 {
		b := n.spare[k-1]
		n.spare = n.spare[:k-1]
		return b
	}
	return nil
}

// read gives back the memory of a frame that nobody will look at again.
func (n *network) read(f frame) {
	if !f.doubled {
		n.spare = append(n.spare, f.bytes[:0])
	}
}

func newNetwork(s *sim, r *rand.Rand) *network {
	n := &network{s: s, r: r}
	all := s.swarm.nodes + s.swarm.spares
	for range all + 1 {
		n.cut = append(n.cut, make([]int, all+1))
		n.broke = append(n.broke, make([]int, all+1))
		n.met = append(n.met, make([]int, all+1))
		n.due = append(n.due, make([]int64, all+1))
	}
	return n
}

// send decides a frame's fate. The bytes belong to the network.
func (n *network) send(from, to core.NodeID, b []byte) {
	sw, f := &n.s.swarm, frame{from: from, to: to, bytes: b, hash: xxhash.Sum64(b), sent: n.s.now}
	cut := n.cut[from][to] > 0
	if cut || !n.s.calm && chance(n.r, sw.loss) {
		n.s.stats.FramesLost++
		n.s.trace.event(evFrameLost, from, uint64(to), f.hash, uint64(len(b)), b2u(cut))
		n.s.trace.frame(&f)
		n.reportLoss(from, to)
		n.read(f)
		return
	}
	if sw.every[faultBackup] > 0 && len(n.old) < 200 && n.r.IntN(10) == 0 {
		n.old = append(n.old, frame{from: from, to: to, bytes: slices.Clone(b), hash: f.hash, doubled: true, sent: n.s.now})
	}
	f.conn = n.broke[from][to]
	copies := 1
	if !sw.ordered && !n.s.calm && chance(n.r, sw.dup) {
		copies, f.doubled = 2, true
	}
	for range copies {
		delay := n.delay()
		at := n.s.now + delay
		if sw.ordered {
			at = max(at, n.due[from][to])
			n.due[from][to] = at
		}
		n.slowest = max(n.slowest, at-n.s.now)
		n.s.trace.event(evFrameSent, from, uint64(to), f.hash, uint64(len(b)), uint64(delay/microsecond))
		n.s.trace.frame(&f)
		n.fly(f, at)
	}
}

func (n *network) delay() int64 {
	if n.s.calm {
		return exp(n.r, min(n.s.swarm.net.mean, millisecond))
	}
	return n.s.swarm.net.draw(n.r)
}

const lateSpan = 100 * millisecond

// arrived notes what a frame has taken until its node read it.
func (n *network) arrived(f frame) {
	i := int(n.s.now / lateSpan)
	for len(n.late) <= i {
		n.late = append(n.late, 0)
	}
	n.late[i] = max(n.late[i], n.s.now-f.sent)
}

// delaysSince returns the longest that any frame took that was read since a time, or that the network has delayed any by.
func (n *network) delaysSince(t int64) int64 {
	d := n.slowest
	for i := max(0, t/lateSpan); i < int64(len(n.late)); i++ {
		d = max(d, n.late[i])
	}
	return d
}

// reportLoss tells the sender now and then, as a transport does when a connection breaks, and the receiver with whatever it reads next that was sent after that.
func (n *network) reportLoss(from, to core.NodeID) {
	n.broke[from][to]++
	if n.r.IntN(4) != 0 {
		return
	}
	sender := n.s.node(from)
	sender.after(exp(n.r, 5*millisecond), func() { sender.unreachable(to) })
}

// gap reports whether a frame is the first that is read of a connection: something before it was lost. Frames may overtake each other, and this one need not be the first that was sent.
func (n *network) gap(f frame) bool {
	if f.conn <= n.met[f.from][f.to] {
		return false
	}
	n.met[f.from][f.to] = f.conn
	return true
}

// block cuts a direction until the function that it returns is called.
func (n *network) block(from, to core.NodeID) (heal func()) {
	n.cut[from][to]++
	return func() { n.cut[from][to]-- }
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
