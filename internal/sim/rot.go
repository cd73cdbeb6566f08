package sim

import (
	"errors"
	"slices"
	"strings"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// rot crashes a node, and changes bits of what its disk has, if one can be spared for the rest of the run.
func (f *faults) rot(n *node) {
	intact := 0
	for _, other := range f.s.nodes {
		if other.rotten != "" {
			continue
		}
		intact++
		if len(n.disk.tables()) == 0 && len(other.disk.tables()) > 0 {
			n = other // most of what a disk has is there
		}
	}
	if 2*(intact-1) <= len(f.s.nodes) || n.rotten != "" {
		return
	}
	if young := f.s.now < int64(f.s.swarm.chaos)*2/3; young && len(n.disk.tables()) == 0 && f.r.IntN(6) > 0 {
		return // few disks can be spared: wait until there is more on them
	}
	f.crash(n)
	f.s.stats.Rotten++
	if f.r.IntN(3) == 0 || !n.disk.rotState() {
		n.disk.rotLog()
	}
	f.s.trace.note("n%d: the damage is in %s", n.id, n.rotten)
}

// flip changes one bit, or a few of one byte.
func (d *disk) flip(b []byte) {
	at, bits := d.r.IntN(len(b)), byte(1)<<d.r.IntN(8)
	if d.r.IntN(3) == 0 {
		bits = byte(1 + d.r.IntN(255))
	}
	b[at] ^= bits
	d.n.s.trace.event(evRot, d.n.id, uint64(bits), uint64(at), uint64(len(b)), 0)
}

func (d *disk) rotLog() {
	segments, _ := d.log.Size()
	which := d.r.IntN(segments)
	d.log.Damage(func(name string, b []byte) []byte {
		if which == 0 && len(b) > 0 {
			d.n.rotten = name
			d.flip(b)
		}
		which--
		return b
	})
}

const tableDir = stateDir + "/pebble"

// files returns the names of the state store's files, sorted.
func (d *disk) files() []string {
	names, err := d.fs.List(tableDir)
	if err != nil {
		return nil // not created yet
	}
	slices.Sort(names)
	return names
}

// tables are all part of the store, since nothing is compacted here.
func (d *disk) tables() []string {
	return slices.DeleteFunc(d.files(), func(name string) bool { return !strings.HasSuffix(name, ".sst") })
}

// manifest returns the one in use: the newest.
func (d *disk) manifest() (name string) {
	for _, f := range d.files() {
		if strings.HasPrefix(f, "MANIFEST-") {
			name = f
		}
	}
	return name
}

// rotState damages a table, or the manifest, and reports whether there was something to damage.
func (d *disk) rotState() bool {
	name := d.manifest()
	switch tables := d.tables(); {
	case len(tables) > 0 && d.r.IntN(6) > 0:
		name = tables[d.r.IntN(len(tables))]
	case name == "" || d.r.IntN(2) == 0:
		return false
	}
	b, err := d.fs.UnsafeGetFileDataBuffer(tableDir + "/" + name)
	if err != nil || len(b) == 0 {
		return false
	}
	d.n.rotten = name
	d.flip(b)
	return true
}

// unfitStore is told that the state store has given up.
func (n *node) unfitStore(err error) {
	n.unfit = err
	if !n.disk.mayFail(err) && n.rotten == "" {
		n.s.fail("state", "the store of node %d: %v", n.id, err)
	}
}

// refused: the node does not start. With a full disk it will be tried again; with a damaged one it stays out.
func (n *node) refused(err error) {
	s := n.s
	n.up = false
	s.trace.event(evRefused, n.id, n.gen, 0, 0, 0)
	s.trace.note("n%d: %v", n.id, err)
	n.release()
	switch {
	case n.disk.mayFail(err) && n.disk.full > 0:
		s.faults.restart(n)
	case n.program < s.swarm.programs && strings.Contains(err.Error(), "start the newer program"):
		n.program = s.swarm.programs
		s.faults.restart(n)
	case n.rotten == "":
		s.fail("restart", "node %d does not come back: %v", n.id, err)
	case !n.namesDamage(err):
		s.fail("rot", "%s of node %d is damaged, and the node says: %v", n.rotten, n.id, err)
	default:
		n.out = true
		s.stats.RotRefused++
	}
}

// namesDamage: who is to mend it must be told which file it is. What a manifest has lost only shows in what follows from it.
func namesDamage(err error, file string) bool {
	if c, ok := errors.AsType[*wal.CorruptionError](err); ok {
		return c.File == file
	}
	return strings.HasPrefix(file, "MANIFEST-") || strings.Contains(err.Error(), strings.TrimSuffix(file, ".sst"))
}

// foundDamage reports whether a replica stopped because it has read what is damaged: for a reason that rsm's repairStopped takes for damage, no other.
func (n *node) foundDamage(id core.ShardID, err *core.Error) bool {
	if n.rotten == "" || err.Code != core.CodeStorage {
		return false
	}
	n.s.trace.note("n%d shard %d: %v", n.id, id, err)
	if !n.namesDamage(err) {
		n.s.fail("rot", "%s of node %d is damaged, and shard %d says: %v", n.rotten, n.id, id, err)
	}
	n.s.stats.RotStopped++
	n.repair(n.workerOf(id), id, err)
	return true
}

// readsDamage is deferred where the checker itself reads a state: damage that it comes upon is not the core's fault.
func (n *node) readsDamage(id core.ShardID) {
	if n.rotten == "" {
		return
	}
	p := recover()
	if err, ok := p.(*state.ReadError); ok {
		n.s.trace.note("n%d shard %d: the checker reads: %v", n.id, id, err)
	} else if p != nil {
		panic(p)
	}
}
