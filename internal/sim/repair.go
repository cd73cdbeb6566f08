package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/snapshot"
)

// What rsm/repair.go does on goroutines, in events: a replica that has met damage is given the state of another member. A crash may come
// at any step of it, also between any two operations on files (crashSteps).
//
// A disk is damaged while its node runs. One that has been mended can be damaged again, and so can another after it: at any time a
// majority of all disks is intact. What no peer can help with, the log and the store's manifest, is damaged seldom: it costs the node.

// drawRepairs draws what concerns repairs and crashes between two operations on files, from a source of its own.
func (s *swarm) drawRepairs(r *rand.Rand) {
	s.repairs, s.rotForGood = r.IntN(3) > 0, pick(r, 0, 0, 0.1)
	if s.repairs && s.spares == 0 && s.nodes > 1 && r.IntN(4) == 0 {
		s.every[faultRot] = faultMeans[faultRot] * pick[int64](r, 1, 1, 2) / 2
	}
	if r.IntN(3) == 0 {
		s.every[faultStep] = faultMeans[faultStep] * pick[int64](r, 1, 2, 6)
	}
}

// damage is a file that is not what it was, under all of its names: a table that came with a snapshot is linked from it.
type damage struct {
	files   []damagedFile
	forGood bool // no peer can help
}

type damagedFile struct {
	path  string
	shard core.ShardID // of a table of the state store, else 0
}

// spoil damages a file of a running node, if that can be spared.
func (f *faults) spoil(n *node) {
	intact := 0
	for _, other := range f.s.nodes {
		if other.lookAtRot(); other.rotten == "" {
			intact++
		}
	}
	n.tellDamage()
	if n.rotten != "" || !n.up || n.unfit != nil || 2*(intact-1) <= len(f.s.nodes) && !f.s.swarm.ruin {
		return
	}
	d, path := n.disk, ""
	if chance(f.r, f.s.swarm.rotForGood) {
		if f.r.IntN(3) == 0 {
			f.s.stats.Rotten++
			f.crash(n) // what a log has is read when a node starts
			d.rotLog()
			n.rot = damage{forGood: true}
			return
		}
		path = tableDir + "/" + d.manifest()
		n.rot.forGood = true
	} else if f.r.IntN(3) == 0 {
		path = n.snapshotFile(f.r)
	} else {
		path = n.someTable(core.ShardID(1+f.r.IntN(int(f.s.work.shards()))), f.r)
	}
	if path == "" || !d.spoil(f.r, path) {
		n.rot = damage{}
		return
	}
	f.s.stats.Rotten++
	f.s.trace.note("n%d: the damage is in %v", n.id, n.rot.files)
	if f.r.IntN(3) == 0 {
		f.crash(n)
	}
	n.tellDamage()
}

// tellDamage has the replicas of a damaged table told, as a compaction would that meets it, which nobody may ever read.
func (n *node) tellDamage() {
	if !n.s.swarm.tells || !n.up {
		return
	}
	for _, d := range n.rot.files {
		if d.shard == 0 {
			continue
		}
		n.s.stats.Told++
		n.workerOf(d.shard).post(func(in *core.Input) {
			in.Calls = append(in.Calls, func(w *core.Worker) {
				w.Unreadable(d.shard, fmt.Errorf("%s is damaged, and nobody has read it", d.path))
			})
		})
	}
}

// ruined: so many disks are damaged that the cluster may stand still. What it says must be right all the same, and name the files.
func (s *sim) ruined() bool {
	rotten := 0
	for _, n := range s.nodes {
		if n.rotten != "" {
			rotten++
		}
	}
	return s.swarm.ruin && 2*rotten >= len(s.nodes)
}

// spoil changes a byte of a file, as it is read from now on and after a crash.
func (d *disk) spoil(r *rand.Rand, path string) bool {
	n := d.n
	b, err := d.fs.UnsafeGetFileDataBuffer(path)
	if err != nil || len(b) == 0 {
		return false
	}
	n.rot.files = []damagedFile{{path: path}}
	if !n.rot.forGood {
		n.rot.files = n.namesOf(&b[0])
	}
	at, bits := r.IntN(len(b)), byte(1+r.IntN(255))
	b[at] ^= bits
	file, err := d.fs.Open(path)
	if err == nil {
		err = file.Sync() // a crash leaves the damage there
		_ = file.Close()
	}
	if err != nil {
		n.s.fail("harness", "%s of node %d: %v", path, n.id, err)
	}
	n.rotten = d.fs.PathBase(path)
	n.s.trace.event(evRot, n.id, uint64(bits), uint64(at), uint64(len(b)), 0)
	return true
}

// namesOf returns all that the file with this memory is called.
func (n *node) namesOf(memory *byte) (names []damagedFile) {
	is := func(path string) bool {
		b, err := n.disk.fs.UnsafeGetFileDataBuffer(path)
		return err == nil && len(b) > 0 && &b[0] == memory
	}
	for id := core.ShardID(1); id <= n.s.work.shards(); id++ {
		for _, path := range n.tablesOf(id) {
			if is(path) {
				names = append(names, damagedFile{path, id})
			}
		}
	}
	for _, path := range n.snapshotFiles() {
		if is(path) {
			names = append(names, damagedFile{path: path})
		}
	}
	return names
}

// tablesOf are the files that a shard's state is in, by what the store says: pebble takes away those that are not needed any more when it likes.
func (n *node) tablesOf(id core.ShardID) (paths []string) {
	tables, err := n.store.Tables(uint64(id))
	if err != nil && n.unfit == nil {
		n.s.fail("state", "node %d: %v", n.id, err)
	}
	for _, name := range tables {
		paths = append(paths, tableDir+"/"+name)
	}
	return paths
}

func (n *node) someTable(id core.ShardID, r *rand.Rand) string {
	tables := n.tablesOf(id)
	if len(tables) == 0 {
		return ""
	}
	return tables[r.IntN(len(tables))]
}

// snapshotFiles are those of complete snapshots.
func (n *node) snapshotFiles() (paths []string) {
	for _, s := range n.snaps.List() {
		names, err := n.disk.fs.List(s.Dir)
		if err != nil {
			continue
		}
		slices.Sort(names)
		for _, name := range names {
			paths = append(paths, n.disk.fs.PathJoin(s.Dir, name))
		}
	}
	return paths
}

func (n *node) snapshotFile(r *rand.Rand) string {
	files := n.snapshotFiles()
	if len(files) == 0 {
		return ""
	}
	return files[r.IntN(len(files))]
}

// lookAtRot notices that what was damaged is gone, or not in use any more.
func (n *node) lookAtRot() {
	if len(n.rot.files) == 0 || n.rot.forGood || n.store == nil || n.unfit != nil {
		return
	}
	if n.disk.steps.crashed != nil {
		return // it has crashed in this event already, before what removed the file: that may be there again
	}
	n.rot.files = slices.DeleteFunc(n.rot.files, func(d damagedFile) bool {
		if d.shard != 0 {
			return !slices.Contains(n.tablesOf(d.shard), d.path)
		}
		_, err := n.disk.fs.Stat(d.path)
		return err != nil
	})
	if len(n.rot.files) > 0 {
		return
	}
	n.s.trace.note("n%d: %s is not there any more", n.id, n.rotten)
	for _, c := range n.cuts {
		c.rotten = n.rotten
	}
	n.rot, n.rotten = damage{}, ""
}

// hasDamage reports whether an error is what a damaged file of this node has to lead to.
func (n *node) hasDamage(err error) bool { return n.rotten != "" && n.namesDamage(err) }

// namesDamage: who is to mend it must be told which file it is.
func (n *node) namesDamage(err error) bool {
	if namesDamage(err, n.rotten) {
		return true
	}
	for _, d := range n.rot.files {
		if strings.Contains(err.Error(), strings.TrimSuffix(n.disk.fs.PathBase(d.path), ".sst")) {
			return true
		}
	}
	return false
}

// removeDamaged is what rsm's engine does with a snapshot that turns out to be damaged when a peer asks for it.
func (n *node) removeDamaged(id snapshot.ID, why error) {
	if !n.hasDamage(why) {
		n.s.fail("snapshot", "node %d has a snapshot that is not whole: %v", n.id, why)
	}
	n.s.stats.SnapshotsDamaged++
	_ = n.snaps.Remove(id) // one that is busy goes when somebody else meets the damage
	n.lookAtRot()
}

// repairing is the repair of one replica, from when it stopped until it is in service again.
type repairing struct {
	n      *node
	w      *worker // of the incarnation in which the replica stopped
	shard  core.ShardID
	why    *core.Error // for which it stopped
	pause  int64       // until the next attempt
	least  core.Index
	member []core.NodeID
}

// waitsForRepair reports whether an error is that of a replica that is being repaired. The damage may be gone already: it is in service when its log has been told.
func (n *node) waitsForRepair(err error) bool {
	for _, r := range n.repairs {
		if r != nil && r.w.gen == n.gen && errors.Is(err, r.why) {
			return true
		}
	}
	return false
}

// repair is rsm's repairStopped, which looks at the reason too: foundDamage lets through the same.
func (n *node) repair(w *worker, id core.ShardID, why *core.Error) {
	if !n.s.swarm.repairs {
		return
	}
	r := &repairing{n: n, w: w, shard: id, why: why, pause: 5 * int64(n.s.swarm.tick)}
	n.repairs[id] = r
	n.after(exp(n.snapRand, r.pause), r.begin)
}

// call runs f with the core's worker, in a pass.
func (w *worker) call(f func(*core.Worker)) {
	w.post(func(in *core.Input) { in.Calls = append(in.Calls, f) })
}

func (r *repairing) begin() {
	r.w.call(func(c *core.Worker) {
		st, _ := c.Status(r.shard)
		if st.Err != r.why {
			return // it is in service, or has stopped again
		}
		var err error
		if r.least, r.member, err = c.Repairable(r.shard); err != nil {
			r.again(err)
			return
		}
		r.n.s.tell("shard %d on node %d looks for a state to be repaired with", r.shard, r.n.id)
		r.ask(0)
	})
}

func (r *repairing) again(why error) {
	r.n.s.trace.note("n%d: shard %d is not repaired: %v", r.n.id, r.shard, why)
	r.pause = min(2*r.pause, 500*millisecond)
	r.n.after(exp(r.n.snapRand, r.pause), r.begin)
}

// ask has a member cut a snapshot, or the next one if it does not answer.
func (r *repairing) ask(i int) {
	n, s := r.n, r.n.s
	if i == len(r.member) {
		r.again(fmt.Errorf("none of the members %v could help", r.member))
		return
	}
	peer, answered := s.node(r.member[i]), false
	next := func(err error) {
		if !answered {
			answered = true
			s.trace.note("n%d: node %d does not help to repair shard %d: %v", n.id, peer.id, r.shard, err)
			r.ask(i + 1)
		}
	}
	n.after(min(8*int64(s.swarm.core.ElectionTicks)*n.rate, second), func() { next(fmt.Errorf("it does not answer")) })
	if !n.reaches(peer) {
		n.after(exp(n.snapRand, 5*millisecond), func() { next(fmt.Errorf("it cannot be reached")) })
		return
	}
	least := r.least
	n.after(s.swarm.net.draw(n.snapRand), func() {
		if !peer.up || len(peer.workers) == 0 {
			return
		}
		gen := peer.gen
		peer.workerOf(r.shard).call(func(c *core.Worker) {
			c.CutAtLeast(context.Background(), r.shard, least, func(manifest []byte, err error) {
				if r.w.gen != n.gen || !peer.up || peer.gen != gen || !n.reaches(peer) {
					return
				}
				n.after(exp(n.snapRand, s.swarm.net.mean), func() {
					switch {
					case answered:
					case err != nil:
						next(err)
					default:
						answered = true
						r.fetch(i, manifest)
					}
				})
			})
		})
	})
}

// reaches reports whether a call to a peer can be answered now.
func (n *node) reaches(peer *node) bool {
	cut := n.s.net.cut[n.id][peer.id] > 0 || n.s.net.cut[peer.id][n.id] > 0
	return n.up && peer.up && !peer.isPaused() && !cut && n.dial[peer.id] != ""
}

func (r *repairing) fetch(i int, manifest []byte) {
	sources := append([]core.NodeID{r.member[i]}, slices.Delete(slices.Clone(r.member), i, i+1)...)
	f := &core.Fetch{Shard: r.shard, Manifest: manifest, Sources: sources, Progress: func(int64, int64) {}}
	r.n.s.stats.Fetches++
	r.n.fetchOn(&fetching{w: r.w, f: f, then: func() {
		if f.Err != nil {
			r.again(f.Err)
			return
		}
		r.w.call(func(c *core.Worker) { c.Repair(r.shard, f.Snapshot, r.done) })
	}})
}

// done is called in a pass, when the replica is in service again, or is not.
func (r *repairing) done(err error) {
	n := r.n
	if err != nil {
		r.again(err)
		return
	}
	n.repairs[r.shard] = nil
	n.s.stats.Repaired++
	n.s.trace.event(evRepaired, n.id, uint64(r.shard), 0, 0, 0)
	n.s.tell("shard %d on node %d is repaired", r.shard, n.id)
	n.lookAtRot()
	n.s.check.repaired(r.w, r.shard)
}

// repaired: a replica begins anew, with the state of another.
func (c *checker) repaired(w *worker, id core.ShardID) {
	c.begins(w, id)
	w.n.cutShort[id] = true
	c.compareState(w, id)
}

// steps has a node crash in the middle of what it does with its files.
type steps struct {
	left      int        // operations until then, 0: it is not going to
	inInstall int        // the same, counted from the beginning of the next installation
	crashed   *vfs.MemFS // what the crash has left, before the rest of the event was run in vain
}

// crashInStep has a node crash soon, just before it does something to a file.
func (f *faults) crashInStep(n *node) {
	if !n.up {
		return
	}
	n.disk.steps = steps{}
	steps := 1 + f.r.IntN(80)
	if f.r.IntN(2) == 0 {
		steps = 1 + f.r.IntN(12)
	}
	if f.r.IntN(2) == 0 {
		n.disk.steps.inInstall = steps
	} else {
		n.disk.steps.left = steps
	}
}

// changes reports whether an operation changes a file. Removals are left out: pebble has them on a goroutine of its own.
func changes(op errorfs.OpKind) bool {
	switch op {
	case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpLink, errorfs.OpMkdirAll, errorfs.OpRename:
		return true
	}
	return false
}

// step is called before each operation that changes a file.
func (d *disk) step(op errorfs.OpKind) {
	if d.steps.left == 0 || !changes(op) {
		return
	}
	if d.steps.left--; d.steps.left == 0 {
		d.steps.crashed = d.fs.CrashClone(vfs.CrashCloneCfg{})
		d.n.s.stepped = append(d.n.s.stepped, d.n)
	}
}

// endStep crashes the nodes that should have crashed in the event that has ended. Nothing that it did afterwards has left them.
func (s *sim) endStep() {
	for _, n := range s.stepped {
		left := n.disk.steps.crashed
		if left == nil {
			continue
		}
		s.stats.StepCrashes++
		s.trace.note("n%d crashed in the middle of what it did to its files", n.id)
		if n.up {
			s.faults.crash(n)
		} else {
			n.disk.fs, n.disk.steps = left, steps{}
		}
	}
	s.stepped = s.stepped[:0]
}
