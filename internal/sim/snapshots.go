package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// What rsm/snapshots.go does on goroutines, in events: a cut, a fetch of a few chunks at a time, an installation. A crash
// loses what is under way, or finds that it has happened and nobody was told. Files and chunks are small, so that a snapshot has many.

const (
	clusterName        = "sim"
	dataDir            = "data"
	stateDir           = dataDir + "/" + datadir.StateDir
	snapshotDir        = dataDir + "/snap"
	snapshotTableBytes = 8 << 10
)

// cutting is a cut under way.
type cutting struct {
	w      *worker
	done   *core.CutDone
	from   *state.Cut // what it is of, once that is pinned
	rotten string     // a file that was damaged and has been replaced since that: it is read all the same
}

// fetching is a snapshot on its way to this node.
type fetching struct {
	w      *worker
	f      *core.Fetch
	at     int    // the source that is asked
	failed int    // attempts in a row
	again  bool   // it was whole once, and then not
	then   func() // of one that is no follower's, see repair.go
}

// replacing is an installation under way.
type replacing struct {
	w    *worker
	done *core.InstallDone
	ran  bool
}

func (n *node) openSnapshots() (err error) {
	n.snaps, err = snapshot.Open(snapshot.Options{Path: snapshotDir, FS: errorfs.Wrap(n.disk.fs, n.faults), Logger: n.s.logger})
	return err
}

// Cut implements core.Env.
func (w *worker) Cut(c *core.CutDone) {
	n := w.n
	took := exp(n.snapRand, n.s.swarm.flush)
	n.s.trace.event(evCut, n.id, uint64(c.Shard), uint64(took/microsecond), 0, 0)
	entry := &cutting{w: w, done: c}
	n.cuts = append(n.cuts, entry)
	n.after(took/4, func() {
		if entry.from, c.Err = n.store.Cut(uint64(c.Shard)); c.Err != nil {
			n.endCut(entry)
			return
		}
		n.after(took, func() {
			n.cut(entry)
			n.endCut(entry)
		})
	})
}

// cut writes the snapshot that was pinned.
func (n *node) cut(e *cutting) {
	defer e.from.Close()
	for _, s := range n.snaps.List() {
		if s.Manifest.Shard == e.from.Shard() && s.Manifest.Index == e.from.Index() {
			e.done.Manifest, e.done.Err = s.EncodedManifest()
			return
		}
	}
	info, err := core.SnapshotInfo(n.cluster, e.from.Meta())
	if err != nil {
		n.s.fail("snapshot", "node %d cannot read the meta record of shard %d: %v", n.id, e.from.Shard(), err)
		return
	}
	s, err := n.snaps.Cut(context.Background(), e.from, snapshot.CutOptions{Info: info, TableBytes: snapshotTableBytes, ChunkBytes: snapshot.MinChunkBytes})
	if e.done.Err = err; err != nil {
		if !n.disk.mayFail(err) && n.rotten == "" && !(e.rotten != "" && namesDamage(err, e.rotten)) {
			n.s.fail("snapshot", "node %d cannot cut shard %d: %v", n.id, e.from.Shard(), err)
		}
		return
	}
	n.s.stats.Cuts++
	n.s.check.cut(n, s)
	e.done.Manifest, e.done.Err = s.EncodedManifest()
	n.removeOlder(s)
}

func (n *node) endCut(e *cutting) {
	n.cuts = slices.DeleteFunc(n.cuts, func(c *cutting) bool { return c == e })
	n.s.trace.event(evCutDone, n.id, uint64(e.done.Shard), b2u(e.done.Err == nil), uint64(len(e.done.Manifest)), 0)
	e.w.post(func(in *core.Input) { in.Cuts = append(in.Cuts, e.done) })
}

// removeOlder keeps a shard's newest snapshot, as rsm does.
func (n *node) removeOlder(than *snapshot.Snapshot) {
	for _, s := range n.snaps.List() {
		if s.Manifest.Shard == than.Manifest.Shard && s.ID != than.ID && s.Manifest.Index <= than.Manifest.Index {
			_ = n.snaps.Remove(s.ID) // one that stays is removed the next time
		}
	}
}

// Fetch implements core.Env.
func (w *worker) Fetch(f *core.Fetch) {
	n := w.n
	n.s.stats.Fetches++
	n.s.trace.event(evFetch, n.id, uint64(f.Shard), uint64(len(f.Manifest)), uint64(len(f.Sources)), 0)
	n.fetchOn(&fetching{w: w, f: f})
}

func (n *node) fetchOn(e *fetching) {
	n.after(exp(n.snapRand, n.s.swarm.chunk), func() { n.fetch(e) })
}

// fetchRounds is how often all sources are tried in a row without a single new chunk.
const fetchRounds = 5

// errLater ends a Receive whose next chunks come with a later event.
var errLater = errors.New("later")

// fetch asks for a few chunks.
func (n *node) fetch(e *fetching) {
	if n.isPaused() {
		n.fetchOn(e)
		return
	}
	p := &peerSource{n: n, from: n.s.node(e.f.Sources[e.at%len(e.f.Sources)]), left: 1 + n.snapRand.IntN(n.s.swarm.chunks)}
	ctx := context.Background()
	o := snapshot.ReceiveOptions{Cluster: n.cluster, Shard: uint64(e.f.Shard), Progress: func(p snapshot.Progress) { e.f.Progress(p.Bytes, p.Total) }}
	s, err := n.snaps.Receive(ctx, e.f.Manifest, p, o)
	n.s.trace.event(evChunks, n.id, uint64(e.f.Shard), uint64(p.from.id), uint64(p.got), b2u(err == nil))
	n.s.stats.Chunks += p.got
	switch {
	case err == nil:
		if _, err = snapshot.Verify(ctx, n.disk.fs, s.Dir); err != nil {
			n.removeDamaged(s.ID, err)
			if s = nil; !e.again {
				e.again = true
				n.fetchOn(e)
				return
			}
		}
		n.fetched(e, s, err)
	case errors.Is(err, errLater):
		e.failed = 0
		n.fetchOn(e)
	case errors.Is(err, snapshot.ErrForeign), errors.Is(err, snapshot.ErrNewerFormat), errors.Is(err, snapshot.ErrTooLarge):
		n.s.fail("snapshot", "node %d refuses a snapshot of shard %d: %v", n.id, e.f.Shard, err)
	default:
		n.s.trace.note("%v", err)
		if e.failed++; p.got > 0 {
			e.failed = 0
		}
		if e.at++; e.failed >= fetchRounds*len(e.f.Sources) {
			n.fetched(e, nil, err)
			return
		}
		n.after(n.snapRand.Int64N(100*millisecond), func() { n.fetchOn(e) })
	}
}

func (n *node) fetched(e *fetching, s *snapshot.Snapshot, err error) {
	if err != nil && !n.disk.mayFail(err) {
		err = fmt.Errorf("%w: %w", core.ErrNoSource, err)
	}
	e.f.Snapshot, e.f.Err = s, err
	n.s.trace.event(evFetched, n.id, uint64(e.f.Shard), b2u(err == nil), 0, 0)
	if e.then != nil {
		e.then()
		return
	}
	e.w.post(func(in *core.Input) { in.Fetched = append(in.Fetched, e.f) })
}

// peerSource fetches chunks from a peer, as long as it is there, and only so many.
type peerSource struct {
	n, from   *node
	left, got int
}

// Fetch implements snapshot.Fetcher.
func (p *peerSource) Fetch(ctx context.Context, id snapshot.ID, file, chunk int) ([]byte, error) {
	s, r := p.n.s, p.n.snapRand
	switch cut := s.net.cut[p.n.id][p.from.id] > 0 || s.net.cut[p.from.id][p.n.id] > 0; {
	case p.left == 0:
		return nil, errLater
	case !p.from.up || p.from.isPaused() || cut || p.n.dial[p.from.id] == "" || !s.calm && chance(r, s.swarm.loss):
		return nil, fmt.Errorf("node %d does not answer", p.from.id)
	}
	src, err := p.from.snaps.Source(id)
	if err != nil {
		return nil, err
	}
	b, err := src.Fetch(ctx, id, file, chunk)
	src.Close()
	if errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		p.from.removeDamaged(id, err)
	}
	if err != nil {
		return nil, err
	}
	p.left--
	p.got++
	if !s.calm && chance(r, s.swarm.chunkFlips) {
		s.stats.ChunksDamaged++
		p.got--
		at, bit := r.IntN(len(b)), byte(1)<<r.IntN(8)
		b[at] ^= bit
		s.trace.event(evChunkFlip, p.n.id, uint64(file), uint64(chunk), uint64(at), uint64(bit))
	}
	return b, nil
}

// Install implements core.Env.
func (w *worker) Install(d *core.InstallDone) {
	n := w.n
	took := exp(n.snapRand, n.s.swarm.flush)
	n.s.trace.event(evInstall, n.id, uint64(d.Shard), d.Snapshot.Manifest.Index, uint64(took/microsecond), 0)
	entry := &replacing{w: w, done: d}
	n.installs = append(n.installs, entry)
	n.after(took, func() {
		n.install(entry)
		if d.Err != nil && n.unfit != nil {
			n.s.faults.broken(n, d.Err)
			return
		}
		// A crash may come before anybody has heard of it.
		n.after(exp(n.snapRand, n.s.swarm.passDelay), func() {
			n.installs = slices.DeleteFunc(n.installs, func(r *replacing) bool { return r == entry })
			n.lookAtRot()
			n.s.trace.event(evInstalled, n.id, uint64(d.Shard), d.Snapshot.Manifest.Index, b2u(d.Err == nil), 0)
			w.post(func(in *core.Input) { in.Installed = append(in.Installed, d) })
		})
	})
}

func (n *node) install(e *replacing) {
	d := e.done
	e.ran = true
	if s := &n.disk.steps; s.inInstall > 0 {
		s.left, s.inInstall = s.inInstall, 0
	}
	if d.Err = d.Job.Run(context.Background()); d.Err != nil {
		if !n.disk.mayFail(d.Err) && !n.hasDamage(d.Err) {
			n.s.fail("snapshot", "node %d cannot install shard %d at %d: %v", n.id, d.Shard, d.Snapshot.Manifest.Index, d.Err)
		}
		if errors.Is(d.Err, state.ErrNotSynced) {
			_ = n.snaps.Discard(d.Snapshot.ID)
		}
		return
	}
	if term := n.disk.shadow[d.Shard].hard.Term; term < d.Snapshot.Manifest.Term {
		// After a crash now the state would be of a later term than any that the replica has heard of.
		n.s.fail("promise", "node %d installs a snapshot of shard %d of term %d, and its disk has term %d", n.id, d.Shard, d.Snapshot.Manifest.Term, term)
	}
	n.s.stats.Installs++
	n.installed[d.Shard] = core.Index(d.Snapshot.Manifest.Index)
	n.removeOlder(d.Snapshot)
}

// crashSnapshots lets some of what is under way have happened.
func (n *node) crashSnapshots() {
	for _, c := range n.cuts {
		if c.from != nil && n.snapRand.IntN(2) == 0 {
			n.cut(c)
		} else if c.from != nil {
			c.from.Close()
		}
	}
	for _, r := range n.installs {
		if !r.ran && n.snapRand.IntN(2) == 0 {
			n.install(r)
		}
	}
	n.cuts, n.installs = nil, nil
}
