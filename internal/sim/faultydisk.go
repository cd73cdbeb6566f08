package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/wal"
)

// Disks fail in four ways:
//
//	torn    a write that a crash interrupts has left some of its bytes: the log's end is repaired, the node comes back
//	error   a write or an fsync fails: the node stops at once, and comes back [G10]
//	full    for a while nothing can be written, in the log, the tables or the manifest: as above, and again until there is room
//	rot     a bit of what was durable is another: the node must find out, say where, and not serve it
//
// The last is mended by a peer, where that is drawn and can be (repair.go). Otherwise a node with such a disk may stay out to the end of the
// run. Only as many nodes have one at a time as can be spared: a quorum keeps intact disks, and must go on.

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
	if !changes(op.Kind) {
		return nil // before a look at the node: pebble removes files on a goroutine of its own
	}
	if f.n == nil || !f.n.up {
		return nil
	}
	d := f.n.disk
	d.step(op.Kind)
	switch {
	case d.failFile && strings.HasSuffix(op.Path, ".sst"):
		d.failFile = false
		return errDisk
	case d.full > 0 && op.Kind != errorfs.OpRename && op.Kind != errorfs.OpFileSync && op.Kind != errorfs.OpFileSyncData:
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
