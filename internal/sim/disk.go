package sim

import (
	"errors"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/wal"
)

// disk outlives the node's incarnations: the write-ahead log, and the file system under the state store.
//
// A write of the log is one frame: a crash while it is under way leaves all of it, nothing, or some of its bytes, see tear. Which writes share a payload is decided as in rsm's engine: whatever has come while the disk was busy.
type disk struct {
	n   *node
	log *wal.Memory
	fs  *vfs.MemFS

	queue   []logWrite
	writing []logWrite // under way
	slow    int        // faults that make it slow
	faultyDisk
	steps steps

	// shadow is what was made durable, kept apart from what wal.Memory says: one per shard.
	shadow [shardCount + 1]*shadowLog
}

type logWrite struct {
	w     *worker
	write *core.Write
}

// shadowLog is a shard's log as a disk must have it.
type shadowLog struct {
	hard    wal.HardState
	base    core.Index    // the log begins after it: what a snapshot has taken the place of
	entries []shadowEntry // entries[i] has index base+i+1
}

type shadowEntry struct {
	term uint64
	kind uint8 // raft's
	hash uint64
	data []byte
}

func newDisk(n *node) *disk {
	d := &disk{n: n, faultyDisk: faultyDisk{r: stream(n.s.seed, 400+uint64(n.id))}, log: wal.NewMemory(), fs: vfs.NewCrashableMem()}
	for id := range d.shadow {
		d.shadow[id] = &shadowLog{}
	}
	makeDataDir(d.fs)
	return d
}

// makeDataDir makes a node's data directory, durably.
func makeDataDir(fs *vfs.MemFS) {
	err := fs.MkdirAll(dataDir, 0o700)
	if err == nil {
		var root vfs.File
		if root, err = fs.OpenDir("/"); err == nil {
			err = errors.Join(root.Sync(), root.Close())
		}
	}
	if err != nil {
		panic(err) // a file system in memory has no reason to fail
	}
}

func (d *disk) add(w *worker, write *core.Write) {
	d.queue = append(d.queue, logWrite{w, write})
	if len(d.writing) == 0 {
		d.begin()
	}
}

func (d *disk) begin() {
	s := d.n.s
	d.writing, d.queue = d.queue, nil
	took := s.swarm.fsync.draw(d.n.rng)
	if s.calm {
		took = min(took, 5*millisecond)
	} else if d.slow > 0 {
		took = 50*millisecond + exp(d.n.rng, 200*millisecond)
		if d.n.rng.IntN(4) == 0 { // hangs for longer than it takes the others to elect
			took = min(int64(1+d.n.rng.IntN(3))*int64(s.swarm.core.ElectionTicks)*d.n.rate, longestPause)
		}
	}
	s.trace.event(evSync, d.n.id, uint64(len(d.writing)), uint64(took/microsecond), 0, 0)
	s.trace.records("sync of", d.records())
	d.n.after(took, d.done)
}

// done makes the write under way durable and says so.
func (d *disk) done() {
	if err := d.writeFails(); err != nil {
		d.n.s.faults.broken(d.n, err) // what of the write has reached the disk, crash decides: nobody can know
		return
	}
	if err := d.append(); err != nil {
		d.n.s.fail("wal", "append on node %d: %v", d.n.id, err)
		return
	}
	for _, lw := range d.writing {
		lw.w.post(func(in *core.Input) { in.Written = append(in.Written, lw.write) })
	}
	d.writing = nil
	if len(d.queue) > 0 {
		d.begin()
	}
}

func (d *disk) append() error {
	records := d.records()
	if err := d.log.Append(records); err != nil {
		return err
	}
	for i := range records {
		r := &records[i]
		l := d.shadow[core.ShardID(r.Shard)]
		if was, is := l.hard, r.HardState; !r.Forget && !is.IsZero() && (is.Term < was.Term || is.Term == was.Term && was.Vote != 0 && is.Vote != was.Vote) {
			d.n.s.fail("promise", "the log of node %d takes back what shard %d promised: it has term %d with a vote for %d, and now term %d with a vote for %d", d.n.id, r.Shard, was.Term, was.Vote, is.Term, is.Vote)
		}
		if l.gap(r) && d.n.installed[core.ShardID(r.Shard)] < core.Index(r.Entries[0].Index)-1 {
			d.n.s.fail("wal", "node %d writes entry %d of shard %d, whose log ends at %d, and no snapshot brought what is between", d.n.id, r.Entries[0].Index, r.Shard, l.last())
		}
		l.add(r)
	}
	_, size := d.log.Size()
	d.n.s.trace.event(evSynced, d.n.id, uint64(len(records)), uint64(size), 0, 0)
	d.n.s.trace.records("synced", records)
	return nil
}

// traceLost tells what a crash has cost.
func (d *disk) traceLost(written bool) {
	if !written {
		d.n.s.trace.records("lost", d.records())
	}
	for _, lw := range d.queue {
		d.n.s.trace.records("lost", lw.write.Records)
	}
}

// records are those of the write under way.
func (d *disk) records() []wal.Record {
	if len(d.writing) == 1 {
		return d.writing[0].write.Records
	}
	var all []wal.Record
	for _, lw := range d.writing {
		all = append(all, lw.write.Records...)
	}
	return all
}

// gap reports whether a record goes on behind where the log ends, as far as that is known here. The log itself does not know it after a restart that found nothing left of a
// shard but its hard state: what follows then may come after a snapshot.
func (l *shadowLog) gap(r *wal.Record) bool {
	return r.RestartAfter == 0 && !r.Forget && len(l.entries) > 0 && len(r.Entries) > 0 && core.Index(r.Entries[0].Index) > l.last()+1
}

func (l *shadowLog) add(r *wal.Record) {
	if l.gap(r) {
		l.entries = nil
	}
	if r.Forget {
		*l = shadowLog{}
	}
	if r.RestartAfter != 0 {
		l.base, l.entries = core.Index(r.RestartAfter), nil
	}
	if !r.HardState.IsZero() {
		l.hard = r.HardState
	}
	if len(r.Entries) == 0 {
		return
	}
	if len(l.entries) == 0 {
		l.base = core.Index(r.Entries[0].Index) - 1 // a log with nothing in it may begin anywhere: after a snapshot
	}
	l.entries = l.entries[:core.Index(r.Entries[0].Index)-1-l.base]
	for _, e := range r.Entries {
		l.entries = append(l.entries, shadowEntry{term: e.Term, kind: e.Type, hash: xxhash.Sum64(e.Data), data: e.Data})
	}
}

func (l *shadowLog) last() core.Index { return l.base + core.Index(len(l.entries)) }

// at returns an entry, and false if the log ends before it, or begins after it.
func (l *shadowLog) at(i core.Index) (shadowEntry, bool) {
	if i <= l.base || i > l.last() {
		return shadowEntry{}, false
	}
	return l.entries[i-l.base-1], true
}

// crash loses what was not durable. The write under way may have been, although nobody was told.
func (d *disk) crash() {
	happened := uint64(0)
	switch {
	case len(d.writing) == 0:
	case chance(d.r, d.n.s.swarm.torn):
		d.tear()
	case d.n.rng.IntN(2) == 0:
		if err := d.append(); err != nil {
			d.n.s.fail("wal", "append on node %d: %v", d.n.id, err)
		}
		happened = uint64(len(d.writing))
	}
	if lost := len(d.writing) + len(d.queue) - int(happened); lost > 0 {
		d.n.s.stats.WritesLost += lost
		d.n.s.trace.event(evSyncLost, d.n.id, uint64(lost), happened, 0, 0)
		d.traceLost(happened > 0)
	}
	d.writing, d.queue = nil, nil
	if left := d.steps.crashed; left != nil {
		d.fs = left
	} else {
		d.fs = d.fs.CrashClone(vfs.CrashCloneCfg{})
	}
	d.steps = steps{}
}

// reopen returns what a restart finds in the log, compared with what must be there.
func (d *disk) reopen() (*wal.Recovered, error) {
	log, rec, err := d.log.Reopen()
	if err != nil {
		return nil, err
	}
	if err := d.judgeRepair(rec.Repaired); err != nil {
		return nil, err
	}
	d.n.s.stats.SegmentsReleased += int(d.log.Stats().Released)
	d.log = log
	for id := core.ShardID(1); id <= shardCount; id++ {
		shadow := d.shadow[id]
		l := rec.Shards[uint64(id)]
		if l == nil {
			l = &wal.ShardLog{}
		}
		if l.HardState != shadow.hard {
			return nil, errors.New("the log came back with another hard state")
		}
		for _, e := range l.Entries {
			if s, ok := shadow.at(core.Index(e.Index)); !ok || s.term != e.Term || s.hash != xxhash.Sum64(e.Data) {
				return nil, errors.New("the log came back with other entries")
			}
		}
		if n := len(l.Entries); n > 0 && core.Index(l.Entries[n-1].Index) != shadow.last() {
			return nil, errors.New("the log came back shorter or longer")
		}
	}
	return rec, nil
}
