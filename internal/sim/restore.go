package sim

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// A backup is cut of a node that goes on, as rsm/backup.go does it, step by step. When the run is over, a second cluster is made from the last
// backup that came to its end: of other nodes, by another name, at the end of the backup or somewhere before it, and with crashes at any step of it. It
// then has a run of its own, with faults, under all rules: its log is the first cluster's up to that position. Clients go on with sessions that they
// had, and ask again for what they had asked for. And what nodes of the first cluster had sent still arrives.

const (
	restoredName = "sim, restored"
	backupDir    = "backup"
)

// drawRestores draws whether there are backups, from a source of its own.
func (s *swarm) drawRestores(r *rand.Rand) {
	if r.IntN(4) == 0 {
		s.every[faultBackup] = faultMeans[faultBackup] * pick[int64](r, 1, 1, 3)
	}
}

// backup is one that came to its end.
type backup struct {
	manifest *snapshot.Backup
	fs       *vfs.MemFS // has it in backupDir
	history  bool       // it has the journal instead of snapshots
}

// backingUp is one under way.
type backingUp struct {
	n       *node
	r       *rand.Rand
	gen     uint64
	dir     string
	history bool // the journal instead of snapshots
	w       *snapshot.BackupWriter
	cut     *state.Cut // of the shard that is next
	tail    []state.JournalEntry
}

func (f *faults) backup(n *node) {
	if !n.up {
		return
	}
	b := &backingUp{n: n, r: f.r, gen: n.gen, dir: fmt.Sprintf("%s-%d", backupDir, f.s.stats.Faults[faultBackup])}
	b.history = f.s.swarm.core.KeepJournal && f.r.IntN(2) == 0
	sink, err := snapshot.NewDirSink(errorfs.Wrap(n.disk.fs, n.faults), b.dir, 0)
	if err == nil {
		b.w, err = snapshot.NewBackupWriter(sink, snapshot.Backup{Cluster: n.cluster, Node: uint64(n.id), Made: n.time().Wall},
			snapshot.BackupOptions{TableBytes: snapshotTableBytes, JournalBytes: pick[int64](f.r, 1<<10, 64<<10, 1<<20)})
	}
	if err != nil {
		b.fails(err)
		return
	}
	b.pin(1)
}

func (b *backingUp) fails(err error) {
	b.n.s.trace.note("n%d: no backup: %v", b.n.id, err)
	e, refused := errors.AsType[*core.Error](err)
	if !b.n.disk.mayFail(err) && !b.n.hasDamage(err) && !(refused && e.Code == core.CodeNotReached) && !(refused && b.n.rotten != "") && !b.n.waitsForRepair(err) && !(refused && e.Code == core.CodeRemoved) {
		b.n.s.fail("backup", "node %d: %v", b.n.id, err)
	}
}

// pin takes hold of a shard at its applied index (rsm's Node.pin).
func (b *backingUp) pin(id core.ShardID) {
	n := b.n
	n.workerOf(id).call(func(w *core.Worker) {
		var err error
		after := core.Index(0)
		switch b.cut, err = n.store.Cut(uint64(id)); {
		case err == nil:
			after = core.Index(b.cut.Index())
			n.pins = append(n.pins, b.cut)
		case errors.Is(err, state.ErrNotFlushed):
			err = nil
		}
		var applied core.Index
		if err == nil {
			b.tail, applied, err = w.Committed(id, after)
		}
		switch {
		case err != nil:
			b.release()
			b.fails(err)
		case applied == 0:
			b.release() // there is nothing of the shard yet
		default:
			n.after(exp(b.r, n.s.swarm.flush), func() { b.write(id) })
		}
	})
}

// release gives back what the present shard was read from.
func (b *backingUp) release() {
	if b.cut == nil || b.n.gen != b.gen {
		return
	}
	if i := slices.Index(b.n.pins, b.cut); i >= 0 {
		b.n.pins = slices.Delete(b.n.pins, i, i+1)
		b.cut.Close()
	}
}

func (b *backingUp) write(id core.ShardID) {
	n, s := b.n, b.n.s
	defer b.release()
	src := snapshot.BackupSource{Shard: uint64(id), Cut: b.cut, Entries: b.entries()}
	var err error
	switch {
	case b.history:
		src.Cut = nil
		if b.cut == nil {
			break
		}
		if first, last := b.cut.JournalBounds(); first != 1 || last != b.cut.Index() {
			return // a snapshot was installed: this node does not have all of it
		}
	case b.cut != nil:
		src.Info, err = core.SnapshotInfo(n.cluster, b.cut.Meta())
	}
	ctx := context.Background()
	if err == nil {
		err = b.w.Add(ctx, src)
	}
	if err != nil {
		b.fails(err)
		return
	}
	if id < s.work.shards() {
		n.after(exp(b.r, n.s.swarm.flush), func() { b.pin(id + 1) })
		return
	}
	made, err := b.w.Finish()
	if err != nil {
		b.fails(err)
		return
	}
	if n.disk.steps.crashed != nil {
		return // it crashes in the middle of this
	}
	shelf := vfs.NewCrashableMem()
	if _, err := vfs.Clone(n.disk.fs, shelf, b.dir, backupDir, vfs.CloneSync); err != nil {
		s.fail("harness", "a backup of node %d: %v", n.id, err)
		return
	}
	if _, err := snapshot.VerifyBackup(ctx, shelf, backupDir, nil); err != nil {
		s.fail("backup", "that of node %d: %v", n.id, err)
	}
	for i := range made.Shards {
		if bs := &made.Shards[i]; core.Index(bs.Last()) > s.check.shards[bs.Shard].last() {
			s.fail("backup", "that of node %d has shard %d up to %d, and nobody has applied more than %d", n.id, bs.Shard, bs.Last(), s.check.shards[bs.Shard].last())
		}
	}
	s.backup = &backup{made, shelf, b.history}
	s.stats.Backups++
	s.trace.event(evBackup, n.id, made.Shards[0].Last(), made.Shards[len(made.Shards)-1].Last(), 0, 0)
}

// entries are what was committed since the flush, and the journal before it if wanted.
func (b *backingUp) entries() iter.Seq2[snapshot.Entry, error] {
	return func(yield func(snapshot.Entry, error) bool) {
		if b.history && b.cut != nil {
			enough := errors.New("enough")
			err := b.cut.Journal(1, b.cut.Index()+1, func(e state.JournalEntry) error {
				if !yield(e, nil) {
					return enough
				}
				return nil
			})
			if errors.Is(err, enough) || err != nil && !yield(snapshot.Entry{}, err) || err != nil {
				return
			}
		}
		for _, e := range b.tail {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// next returns the cluster that is made from this one's backup, or nil if there is none.
func (s *sim) next() *sim {
	old, builtins := s.work.(*builtin)
	if s.failure != nil || s.backup == nil || !builtins {
		return nil
	}
	r := stream(s.seed, 20)
	n := &sim{opts: s.opts, seed: scramble(s.seed ^ 0xbac), logger: s.logger, cache: s.cache, trace: s.trace, swarm: s.swarm, now: s.now, stats: s.stats, first: s}
	n.opts.plan = nil
	n.rng = stream(n.seed, 1)
	n.trace.now = &n.now
	w := &n.swarm
	w.nodes, w.spares, w.proxies = pick(r, 1, 2, 3, 3, 5), 0, 0
	w.chaos = time.Duration(300+r.IntN(1000)) * time.Millisecond
	for _, kind := range []int{faultAddLearner, faultPromote, faultRemove, faultReplace, faultAddress, faultProxy, faultStream, faultBackup} {
		w.every[kind] = 0
	}
	// The identities of commands go on: the log has the old ones.
	n.work = &builtin{s: n, ids: old.ids, digests: old.digests, keys: old.keys}
	n.check = newChecker(n)
	return n
}

// target is what a backup is restored to.
type target struct {
	o     datadir.Restore
	want  map[core.ShardID]core.Index // what each shard must come to be at
	wrong bool                        // there is no such position
	steps int                         // that a restore takes
}

// target draws it, and finds out from the log what it has to lead to.
func (s *sim) target(r *rand.Rand) *target {
	b := s.first.backup.manifest
	t := &target{want: map[core.ShardID]core.Index{}, o: datadir.Restore{Backup: backupDir, Cluster: restoredName, Logger: s.logger}}
	for _, n := range s.nodes {
		t.o.Members = append(t.o.Members, n.id)
	}
	mode, until := r.IntN(3), int64(0)
	if mode == 1 {
		t.o.Position = map[core.ShardID]core.Index{}
	} else if some := &b.Shards[r.IntN(len(b.Shards))]; mode == 2 {
		at := core.Index(some.First() + r.Uint64N(some.Last()-some.First()+1))
		if until = s.first.check.shards[some.Shard].after(at).time; until > 0 {
			t.o.Until = time.Unix(0, until)
		}
	}
	for i := range b.Shards {
		bs := &b.Shards[i]
		id, at := core.ShardID(bs.Shard), core.Index(bs.Last())
		if mode == 1 && r.IntN(3) > 0 {
			at = core.Index(bs.First() + r.Uint64N(bs.Last()-bs.First()+1))
			t.o.Position[id] = at
		}
		if until > 0 {
			log := s.first.check.shards[id]
			t.wrong = t.wrong || bs.HasSnapshot() && log.after(core.Index(bs.Index)).time > until
			for at = core.Index(bs.Index); at < core.Index(bs.Last()) && log.after(at+1).time <= until; at++ {
				continue
			}
			t.wrong = t.wrong || at < core.Index(bs.Last()) && log.after(at).time == 0
		}
		t.want[id] = at
	}
	return t
}

// restore makes the nodes of this cluster from a backup of the first.
func (s *sim) restore() {
	r := stream(s.seed, 21)
	t := s.target(r)
	if t.wrong {
		d := newRestoring(s.first.backup.fs)
		t.o.Disk, t.o.Nodes = d, map[core.NodeID]string{1: dataDir}
		if _, err := t.o.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "cannot be restored to") {
			s.fail("restore", "to %v, which is before all that the backup has: %v", t.o.Until, err)
			return
		}
		t.o.Until, t.wrong = time.Time{}, false
		for i := range s.first.backup.manifest.Shards {
			bs := &s.first.backup.manifest.Shards[i]
			t.want[core.ShardID(bs.Shard)] = core.Index(bs.Last())
		}
	}
	s.trace.note("RESTORE to %v, on the nodes %v", t.want, t.o.Members)
	for _, n := range s.nodes {
		n.restore(t, r)
		if s.failure != nil {
			return
		}
	}
	s.stats.Restored++
	if s.first.backup.history {
		s.stats.RestoredHistories++
	}
	s.replay(t)
}

// restore makes the data of one node, with crashes in between.
func (n *node) restore(t *target, r *rand.Rand) {
	s := n.s
	t.o.Nodes = map[core.NodeID]string{n.id: dataDir}
	if t.steps == 0 { // on no disk at all, to know how many there are
		d := newRestoring(s.first.backup.fs)
		t.o.Disk = d
		if _, err := t.o.Run(context.Background()); err != nil {
			s.fail("restore", "%v", err)
			return
		}
		t.steps = d.steps
	}
	crashes := pick(r, 0, 1, 1, 2, 3)
	d := newRestoring(s.first.backup.fs)
	for {
		if crashes > 0 {
			d.crashAt = 1 + r.IntN(t.steps)
		}
		t.o.Disk = d
		shards, err := t.o.Run(context.Background())
		if err != nil {
			s.fail("restore", "node %d: %v", n.id, err)
			return
		}
		for _, sh := range shards {
			if sh.Index != t.want[sh.Shard] {
				s.fail("restore", "shard %d is restored to %d, wanted was %d", sh.Shard, sh.Index, t.want[sh.Shard])
				return
			}
		}
		if crashes > 0 && d.left != nil {
			crashes--
			s.stats.RestoreCrashes++
			d = d.left
		}
		id, err := datadir.Load(d, dataDir)
		switch {
		case err == nil && id != nil:
			n.adopt(d, id, t)
			return
		case err != nil && !strings.Contains(err.Error(), "was being restored"):
			s.fail("restore", "node %d, after a crash: %v", n.id, err)
			return
		}
	}
}

// adopt takes over a directory that a restore has made.
func (n *node) adopt(d *restoring, id *datadir.Identity, t *target) {
	n.cluster, n.restored = id.Cluster, id.Restored()
	if id.Cluster != restoredName || id.Node != n.id {
		n.s.fail("restore", "the data of node %d of %q says that it is node %d of %q", n.id, restoredName, id.Node, id.Cluster)
	}
	n.disk.fs, n.disk.log = d.mem, wal.NewMemory()
	for _, records := range d.records {
		if err := n.disk.log.Append(records); err != nil {
			n.s.fail("restore", "the log of node %d: %v", n.id, err)
			return
		}
		for i := range records {
			n.disk.shadow[core.ShardID(records[i].Shard)].add(&records[i])
		}
	}
	for i := range n.s.first.backup.manifest.Shards {
		bs := &n.s.first.backup.manifest.Shards[i]
		n.installed[bs.Shard] = core.Index(bs.Index)
		n.cutShort[bs.Shard] = true
		n.ran = max(n.ran, n.s.swarm.programs)
		if has := max(n.installed[bs.Shard], n.disk.shadow[core.ShardID(bs.Shard)].last()); has != t.want[core.ShardID(bs.Shard)] {
			n.s.fail("restore", "node %d is complete, and has shard %d up to %d, wanted was %d", n.id, bs.Shard, has, t.want[core.ShardID(bs.Shard)])
		}
	}
}

// replay has this cluster's oracles learn the log of the first, up to where it goes on from. Changes of members are none here.
func (s *sim) replay(t *target) {
	for _, o := range s.work.(*builtin).ids {
		o.committed, o.replies = 0, nil
	}
	for id := core.ShardID(1); id <= s.work.shards(); id++ {
		for _, e := range s.first.check.shards[id].log[:t.want[id]] {
			if e.kind != uint8(raftpb.EntryNormal) {
				e = shadowEntry{term: e.term, kind: uint8(raftpb.EntryNormal), hash: xxhash.Sum64(nil)}
			}
			s.check.shards[id].learn(e)
		}
		s.check.shards[id].restored = true
		if got, was := s.check.shards[id].after(t.want[id]), s.first.check.shards[id].after(t.want[id]); got.chain != was.chain || got.sessions != was.sessions {
			s.fail("harness", "shard %d at %d has the hash %x and %d sessions, and had %x and %d", id, t.want[id], got.chain, got.sessions, was.chain, was.sessions)
		}
	}
}

// inherit has clients go on with sessions of the first cluster, as far as the log that was restored has them, and ask once more for what they had asked for:
// what is in that log must not happen again, and what is not may.
func (s *sim) inherit() {
	type key struct {
		shard core.ShardID
		id    core.SessionID
	}
	given := map[key]*clientSession{}
	next := [shardCount + 1]int{}
	for _, was := range s.first.clients {
		for id := core.ShardID(1); id <= s.work.shards(); id++ {
			of := was.sessions[id]
			if of == nil || next[id] == len(s.clients) {
				continue
			}
			known := s.check.shards[id].sessions[of.id]
			if !known.isOpen(s.check.shards[id].last()) {
				continue
			}
			c := s.clients[next[id]]
			next[id]++
			sess := &clientSession{id: of.id, acked: known.acked, last: known.acked, finished: map[uint64]bool{}}
			for seq := range known.done { // any order: the highest is looked for
				sess.last = max(sess.last, seq)
			}
			for seq := sess.acked + 1; seq <= sess.last; seq++ {
				sess.finished[seq] = true
			}
			c.useSessions, c.sessions[id], given[key{id, of.id}] = true, sess, sess
			s.stats.Inherited++
		}
	}
	again := map[key]int{}
	ops := slices.Clone(s.first.check.ops)
	slices.Reverse(ops) // the latest are those that a client may be in doubt of
	for _, o := range ops {
		if o.session == nil || o.kind != core.KindCommand || o.rogue {
			continue
		}
		if k := (key{o.shard, o.session.id}); given[k] != nil && again[k] < 4 {
			again[k]++
			s.askAgain(o, given[k])
		}
	}
}

// askAgain has the heir of a session ask for a command under the number that it has.
func (s *sim) askAgain(o *operation, sess *clientSession) {
	i := slices.IndexFunc(s.clients, func(c *client) bool { return c.sessions[o.shard] == sess })
	c := s.clients[i]
	n := s.check.newOperation(c, opKey{c.num, 1 << 20, int(o.num)})
	n.shard, n.kind, n.builtinOp, n.encoded, n.session, n.seq = o.shard, o.kind, o.builtinOp, o.encoded, sess, o.seq
	n.committed, n.committedAt, n.ordinal, n.replies = o.committed, s.now, o.ordinal, o.replies
	n.before = o.committed != 0
	n.asked = 1 // by the client, in the first cluster: its place in the log may be before what is known now
	sess.last = max(sess.last, o.seq)
	b := s.work.(*builtin)
	for _, cmd := range o.cmds {
		b.ids[cmd.id-1] = n
	}
	s.stats.AskedAgain++
	s.after(exp(n.r, 20*millisecond), func() { c.start(n, func() {}) })
}

// haunt has frames of the first cluster arrive, for as long as there are faults. The transport refuses them by the name of the cluster.
func (s *sim) haunt(r *rand.Rand) {
	old := s.first.net.old
	if len(old) == 0 || s.calm {
		return
	}
	s.after(exp(r, 20*millisecond), func() {
		f := old[r.IntN(len(old))]
		if int(f.from) <= len(s.nodes) && int(f.to) <= len(s.nodes) {
			if n := s.node(f.to); n.up && !n.isPaused() && n.cluster == clusterName {
				f.bytes = slices.Clone(f.bytes)
				n.receive(f)
			}
		}
		s.haunt(r)
	})
}

// restoring is the disk that a node is restored on. It can crash before any operation that changes something: what that leaves is kept, and the rest is done in vain.
type restoring struct {
	vfs.FS
	mem     *vfs.MemFS
	records [][]wal.Record // of the log
	steps   int            // so far
	crashAt int            // 0: it does not
	left    *restoring
}

var _ datadir.Disk = (*restoring)(nil)

// newRestoring has the backup, and nothing else.
func newRestoring(shelf *vfs.MemFS) *restoring {
	d := restoringOn(vfs.NewCrashableMem(), nil)
	if _, err := vfs.Clone(shelf, d.mem, backupDir, backupDir, vfs.CloneSync); err != nil {
		panic(err) // a file system in memory has no reason to fail
	}
	makeDataDir(d.mem)
	return d
}

func restoringOn(mem *vfs.MemFS, records [][]wal.Record) *restoring {
	d := &restoring{mem: mem, records: records}
	d.FS = errorfs.Wrap(mem, d)
	return d
}

// MaybeError implements errorfs.Injector.
func (d *restoring) MaybeError(op errorfs.Op) error {
	if changes(op.Kind) {
		d.step()
	}
	return nil
}

func (d *restoring) String() string { return "the steps of a restore" }

func (d *restoring) step() {
	if d.steps++; d.steps == d.crashAt {
		d.left = restoringOn(d.mem.CrashClone(vfs.CrashCloneCfg{}), slices.Clone(d.records))
	}
}

// WriteFile implements datadir.Disk.
func (d *restoring) WriteFile(name string, b []byte) error {
	f, err := d.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// SyncAbove implements datadir.Disk.
func (d *restoring) SyncAbove(dir string) error {
	f, err := d.OpenDir(d.PathDir(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// RemoveAll implements vfs.FS. The log is no file here.
func (d *restoring) RemoveAll(name string) error {
	if d.PathBase(name) == datadir.WALDir {
		d.step()
		d.records = nil
	}
	return d.FS.RemoveAll(name)
}

// OpenLog implements datadir.Disk.
func (d *restoring) OpenLog(string) (datadir.Log, error) { return (*restoringLog)(d), nil }

// restoringLog is the log that is written: each payload is durable, or not there.
type restoringLog restoring

func (l *restoringLog) Append(records []wal.Record) error {
	(*restoring)(l).step()
	copied := slices.Clone(records)
	for i := range copied {
		copied[i].Entries = slices.Clone(copied[i].Entries)
	}
	l.records = append(l.records, copied)
	return nil
}

func (l *restoringLog) Close() error { return nil }
