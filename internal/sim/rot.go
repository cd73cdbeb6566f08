package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// Disks fail in four ways:
//
//	torn    a write that a crash interrupts has left some of its bytes: the log's end is repaired, the node comes back
//	error   a write or an fsync fails: the node stops at once, and comes back [G10]
//	full    for a while nothing can be written, in the log, the tables or the manifest: as above, and again until there is room
//	rot     a bit of what was durable is another: the node must find out, say where, and not serve it
//
// The last cannot be mended: nothing brings a node up to date from others yet. So a node with such a disk may stay out to the end of the
// run, and only as many nodes get one as can be spared: a quorum keeps intact disks, and must go on.

// faultyDisk is what is wrong with a disk.
type faultyDisk struct {
	r        *rand.Rand
	full     int  // faults that leave no room
	failLog  bool // the next write of the log fails
	failFile bool // the next write of a file of the state store fails
	torn     bool // the log ends in a write that was torn
}

var errDisk = errors.New("input/output error (simulated)")

func (d *faultyDisk) failNext(file bool) {
	d.failFile, d.failLog = d.failFile || file, d.failLog || !file
}

// heal is for calm times.
func (d *faultyDisk) heal() { d.failLog, d.failFile = false, false }

// writeFails reports why the log's write under way fails. In a full disk most writes fit into what was preallocated.
func (d *faultyDisk) writeFails() error {
	switch {
	case d.failLog:
		d.failLog = false
		return errDisk
	case d.full > 0 && d.r.IntN(4) == 0:
		return syscall.ENOSPC
	}
	return nil
}

// mayFail reports whether an error of the state store is one that was ordered.
func (d *faultyDisk) mayFail(err error) bool {
	return errors.Is(err, errDisk) || errors.Is(err, syscall.ENOSPC)
}

// storeFaults is what an incarnation's state store knows of the run: a store that has failed may never end, and must not keep the run in memory.
type storeFaults struct{ n *node } // nil when the incarnation has ended: what it still closes, nobody will see

func (f *storeFaults) OnFatal(err error) {
	if f.n != nil {
		f.n.unfitStore(err)
	}
}

// MaybeError implements errorfs.Injector.
func (f *storeFaults) MaybeError(op errorfs.Op) error {
	if f.n == nil || !f.n.up {
		return nil
	}
	switch op.Kind {
	case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpLink, errorfs.OpMkdirAll:
	default:
		return nil
	}
	d := f.n.disk
	switch {
	case d.failFile && strings.HasSuffix(op.Path, ".sst"):
		d.failFile = false
		return errDisk
	case d.full > 0 && op.Kind != errorfs.OpFileSync && op.Kind != errorfs.OpFileSyncData:
		return syscall.ENOSPC
	}
	return nil
}

func (f *storeFaults) String() string { return "the faults of a simulated disk" }

// tear leaves some of the bytes of the write under way: the file ends early, or there are zeros from some byte on, or
// some sectors are missing. At least one byte is not as it was written.
func (d *disk) tear() {
	size, offset, lost := 0, 0, 0
	err := d.log.Tear(d.records(), func(b []byte, at int) []byte {
		last := len(bytes.TrimRight(b, "\x00")) - 1
		whole := bytes.Clone(b)
		switch size, offset = len(b), at; d.r.IntN(3) {
		case 0:
			b = b[:d.r.IntN(last+1)]
		case 1:
			clear(b[d.r.IntN(last+1):])
		case 2:
			d.loseSectors(b, at, last)
		}
		lost = size - len(b)
		for i := range b {
			if b[i] != whole[i] {
				lost++
			}
		}
		return b
	})
	if err != nil {
		d.n.s.fail("wal", "a torn write on node %d: %v", d.n.id, err)
	}
	d.torn = true
	d.n.s.stats.WritesTorn++
	d.n.s.trace.event(evTorn, d.n.id, uint64(offset), uint64(size), uint64(lost), 0)
}

func (d *disk) loseSectors(b []byte, at, last int) {
	const sector = 512
	lost := false
	for from := 0; from < len(b); {
		to := min(from+sector-(at+from)%sector, len(b))
		if d.r.IntN(2) == 0 || !lost && from <= last && last < to {
			lost = lost || len(bytes.TrimLeft(b[from:to], "\x00")) > 0
			clear(b[from:to])
		}
		from = to
	}
}

// judgeRepair: only what was torn may be cut off.
func (d *disk) judgeRepair(r *wal.Repair) error {
	if r != nil && !d.torn && d.n.rotten == "" {
		return fmt.Errorf("the log was repaired at byte %d of %s, and nothing was torn", r.Offset, r.File)
	}
	d.torn = false
	return nil
}

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

const tableDir = "state/pebble"

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
	case n.rotten == "":
		s.fail("restart", "node %d does not come back: %v", n.id, err)
	case !namesDamage(err, n.rotten):
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

// foundDamage reports whether a replica stopped because it has read what is damaged.
func (n *node) foundDamage(id core.ShardID, err *core.Error) bool {
	if n.rotten == "" || err.Code != core.CodeStorage && err.Code != core.CodeCorruption {
		return false
	}
	n.s.trace.note("n%d shard %d: %v", n.id, id, err)
	if !namesDamage(err, n.rotten) {
		n.s.fail("rot", "%s of node %d is damaged, and shard %d says: %v", n.rotten, n.id, id, err)
	}
	n.s.stats.RotStopped++
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
