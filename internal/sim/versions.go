package sim

import (
	"github.com/decree-raft/decree/internal/core"
)

// Programs differ in the versions of the machine that they can run. Nodes are started with newer ones, one after the other, and now and then with
// an older one again, as long as what only the newer one can run is not active.

// exchange has a node started again with another program.
func (f *faults) exchange(kind int, n *node) {
	s, to := f.s, n.program
	if kind == faultUpgrade {
		to = min(to+1+f.r.Uint64N(2), s.swarm.programs)
	} else if to > 0 {
		to--
	}
	for id := core.ShardID(1); id <= s.work.shards(); id++ {
		if s.check.shards[id].version > to {
			return
		}
	}
	if to == n.program {
		return
	}
	s.stats.Upgrades++
	s.trace.event(evProgram, n.id, to, n.program, 0, 0)
	s.tell("node %d is to run program %d, after %d", n.id, to, n.program)
	if f.r.IntN(2) == 0 {
		f.crash(n)
	} else {
		f.stop(n, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "the node is closed"})
	}
	n.program = to
}

// tooOld reports whether a replica stopped because its program cannot run what is active: it went back to it too late, or
// joined with it. Whoever looks after it starts the newest.
func (n *node) tooOld(err *core.Error) bool {
	if err.Code != core.CodeUnsupported || n.running >= n.s.swarm.programs {
		return false
	}
	n.program = n.s.swarm.programs
	n.s.faults.restartSoon(n)
	return true
}

// newest has a node run the newest program from now on.
func (n *node) newest() {
	if n.program == n.s.swarm.programs {
		return
	}
	n.program = n.s.swarm.programs
	if n.up {
		n.stop(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "the node is closed"})
		n.start()
	}
}
