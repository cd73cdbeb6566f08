package sim

import (
	"math/rand/v2"

	"github.com/cespare/xxhash/v2"

	"github.com/decree-raft/decree/internal/core"
)

// network carries frames between nodes.
type network struct {
	s   *sim
	r   *rand.Rand
	cut [][]int   // [from][to]: how many faults cut this direction
	due [][]int64 // when the latest frame of the link arrives, for links that keep order
}

func newNetwork(s *sim, r *rand.Rand) *network {
	n := &network{s: s, r: r}
	for range s.swarm.nodes + 1 {
		n.cut = append(n.cut, make([]int, s.swarm.nodes+1))
		n.due = append(n.due, make([]int64, s.swarm.nodes+1))
	}
	return n
}

// send decides a frame's fate. The frame belongs to the network.
func (n *network) send(from, to core.NodeID, frame []byte) {
	sw, hash := &n.s.swarm, xxhash.Sum64(frame)
	cut := n.cut[from][to] > 0
	if cut || !n.s.calm && chance(n.r, sw.loss) {
		n.s.stats.FramesLost++
		n.s.trace.event(evFrameLost, from, uint64(to), hash, uint64(len(frame)), b2u(cut))
		n.reportLoss(from, to)
		return
	}
	copies := 1
	if !sw.ordered && !n.s.calm && chance(n.r, sw.dup) {
		copies = 2
	}
	for range copies {
		delay := n.delay()
		at := n.s.now + delay
		if sw.ordered {
			at = max(at, n.due[from][to])
			n.due[from][to] = at
		}
		n.s.trace.event(evFrameSent, from, uint64(to), hash, uint64(len(frame)), uint64(delay/microsecond))
		n.s.at(at, func() { n.s.node(to).arrive(from, frame, hash) })
	}
}

func (n *network) delay() int64 {
	if n.s.calm {
		return exp(n.r, min(n.s.swarm.net.mean, millisecond))
	}
	return n.s.swarm.net.draw(n.r)
}

// reportLoss tells the sender now and then, as a transport does when a connection breaks.
func (n *network) reportLoss(from, to core.NodeID) {
	if n.r.IntN(4) != 0 {
		return
	}
	sender := n.s.node(from)
	sender.after(exp(n.r, 5*millisecond), func() { sender.unreachable(to) })
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
