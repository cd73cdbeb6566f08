package rsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// Snapshots: what internal/core/snapshot.go decides, this file does, on goroutines of its own. Each node keeps its newest
// snapshot of a shard; what is older goes when nobody reads it.

// Calls from node to node.
const (
	callChunk = 1 // for a chunk of a snapshot: id (32 bytes), file, chunk (varints)
	callCut   = 2 // for a snapshot: shard, least index (varints); the answer is its manifest
	// for the journal that a replica in service has: shard (varint); the answer is its first and its last entry (varints), 0 and 0 if there is none
	callJournal = 3
)

// Cut implements core.Env.
func (w *worker) Cut(c *core.CutDone) {
	w.e.background(func(ctx context.Context) {
		var s *snapshot.Snapshot
		if s, c.Err = w.e.cut(ctx, c); c.Err == nil {
			c.Manifest, c.Err = s.EncodedManifest()
		}
		w.post(func(in *core.Input) { in.Cuts = append(in.Cuts, c) })
	})
}

// background runs f until it ends or the engine stops.
func (e *engine) background(f func(context.Context)) {
	e.bg.add()
	go func() {
		defer e.bg.done()
		e.alive(context.Background(), f)
	}()
}

// foreground runs f on the caller's goroutine, which is none of the engine's. The engine's end waits for it; errClosed: it has begun to end.
func (e *engine) foreground(ctx context.Context, f func(context.Context)) error {
	if !e.bg.begin() {
		return errClosed
	}
	defer e.bg.done()
	e.alive(ctx, f)
	return nil
}

// alive runs f with a context that ends with the engine too.
func (e *engine) alive(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(e.life, func() { cancel(errClosed) })
	defer stop()
	f(ctx)
}

// cut writes a snapshot of a shard's last flush, or finds that there is one of it.
func (e *engine) cut(ctx context.Context, d *core.CutDone) (*snapshot.Snapshot, error) {
	c, err := e.store.Cut(uint64(d.Shard))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	info, err := core.SnapshotInfo(e.cluster, c.Meta())
	if err != nil {
		return nil, err
	}
	for _, s := range e.snaps.List() { // a repair may have replaced another state of the same index
		if s.Manifest.Shard == c.Shard() && s.Manifest.Index == c.Index() && s.Manifest.Hash == info.Hash {
			return s, nil
		}
	}
	o := snapshot.CutOptions{Info: info, BytesPerSecond: e.rate, Rest: e.rests(d.Hurry), Progress: func(p snapshot.Progress) { d.Progress(p.Bytes) }}
	s, err := e.snaps.Cut(ctx, c, o)
	if err == nil {
		e.removeOlder(s, false)
	}
	return s, err
}

// cutRest is how many times as long as it has worked a cut rests, where there is somebody to rest for. It is told by its own work how fast
// the disk is and how much others want of it, so that no rate has to be known; and it ends, after so many times as long. maxRest is as long
// as it rests at a time: who waits for it wants to see it get on.
const (
	cutRest = 3
	maxRest = 500 * time.Millisecond
)

// rests returns what a cut of this node asks how long to rest. It rests for the log, as long as that is written; not for the network, nor for
// those who only read. hurry takes its rests away.
func (e *engine) rests(hurry func() bool) func(worked time.Duration) time.Duration {
	seen := e.log.Stats().Appends
	return func(worked time.Duration) time.Duration {
		before := seen
		if seen = e.log.Stats().Appends; seen == before || hurry() {
			return 0
		}
		return min(cutRest*worked, maxRest)
	}
}

// removeOlder removes a shard's snapshots but for the one given. What is being read stays until the next time, unless it must not be used: then who reads it asks elsewhere.
func (e *engine) removeOlder(than *snapshot.Snapshot, mustGo bool) {
	for _, s := range e.snaps.List() {
		switch {
		case s.Manifest.Shard != than.Manifest.Shard || s.ID == than.ID || s.Manifest.Index > than.Manifest.Index:
		case mustGo:
			e.discard(s.ID)
		case !e.reads.recent(s.ID):
			if err := e.snaps.Remove(s.ID); err != nil && !errors.Is(err, snapshot.ErrBusy) {
				e.logger.Warn("an old snapshot could not be removed", "dir", s.Dir, "reason", err)
			}
		}
	}
}

// discard removes a snapshot that must not be used any more.
func (e *engine) discard(id snapshot.ID) {
	if err := e.snaps.Discard(id); err != nil && !errors.Is(err, snapshot.ErrNotFound) {
		e.logger.Warn("a snapshot that must not be used could not be removed", "reason", err)
	}
}

// removePartials removes what was fetched in vain: of snapshots that this replica does not need any more, since it has flushed as much itself. It is called on a worker's
// goroutine, which must not wait even to learn whether there is any: the directory may be in the middle of something that the disk does not end. One goroutine does it for all.
func (e *engine) removePartials(shard ShardID, flushed Index) {
	e.vain.Lock()
	defer e.vain.Unlock()
	if e.vain.of == nil {
		e.vain.of = map[ShardID]Index{}
		e.background(func(context.Context) {
			for id, upTo, more := e.nextInVain(); more; id, upTo, more = e.nextInVain() {
				if err := e.snaps.RemovePartials(uint64(id), uint64(upTo)); err != nil {
					e.logger.Warn("what was fetched of a snapshot could not be removed", "shard", uint64(id), "reason", err)
				}
			}
		})
	}
	e.vain.of[shard] = flushed
}

// inVain is up to where what was fetched of shards is to be removed; nil if nobody is at that.
type inVain struct {
	sync.Mutex
	of map[ShardID]Index
}

// nextInVain takes one out of them, any of them. With none it is to be the last call.
func (e *engine) nextInVain() (ShardID, Index, bool) {
	e.vain.Lock()
	defer e.vain.Unlock()
	for id, upTo := range e.vain.of {
		delete(e.vain.of, id)
		return id, upTo, true
	}
	e.vain.of = nil
	return 0, 0, false
}

// recentReads are the snapshots that peers fetch from: a newer one must not take them away under their hands.
type recentReads struct {
	pause time.Duration // how long a peer may take from chunk to chunk
	mu    sync.Mutex
	at    map[snapshot.ID]time.Time
}

// readPause is what recentReads.pause is, but for tests.
const readPause = time.Minute

func (r *recentReads) note(id snapshot.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil {
		r.at = map[snapshot.ID]time.Time{}
	}
	r.at[id] = time.Now()
}

func (r *recentReads) recent(id snapshot.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.at[id]
	if ok && time.Since(at) > r.pause {
		delete(r.at, id)
		return false
	}
	return ok
}

// serve answers a peer's call.
func (e *engine) serve(ctx context.Context, from uint64, method uint8, request []byte) ([]byte, error) {
	switch method {
	case callChunk:
		return e.serveChunk(ctx, request)
	case callCut:
		return e.serveCut(ctx, request)
	case callJournal:
		return e.serveJournal(ctx, request)
	}
	return nil, fmt.Errorf("node %d knows no call %d: it may be older than node %d", e.node, method, from)
}

func (e *engine) serveCut(ctx context.Context, request []byte) ([]byte, error) {
	shard, n := binary.Uvarint(request)
	least, m := binary.Uvarint(request[max(n, 0):])
	if n <= 0 || m <= 0 || n+m != len(request) {
		return nil, errors.New("the request for a snapshot is malformed")
	}
	s := e.shard(ShardID(shard))
	if s == nil {
		return nil, fmt.Errorf("node %d hosts no shard %d", e.node, shard)
	}
	return s.cut(ctx, func(w *core.Worker, f func([]byte, error)) { w.CutAtLeast(ctx, s.id, Index(least), f) })
}

func (e *engine) serveJournal(ctx context.Context, request []byte) ([]byte, error) {
	shard, n := binary.Uvarint(request)
	if n <= 0 || n != len(request) {
		return nil, errors.New("the request for a journal is malformed")
	}
	if e.shard(ShardID(shard)) == nil {
		return nil, fmt.Errorf("node %d hosts no shard %d", e.node, shard)
	}
	var first, last Index
	serves := false
	if err := e.look(ctx, ShardID(shard), func(w *core.Worker) { first, last, serves = w.JournalBounds(ShardID(shard)) }); err != nil {
		return nil, err
	}
	if !serves {
		return nil, fmt.Errorf("the replica of shard %d on node %d is out of service", shard, e.node)
	}
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(first)), uint64(last)), nil
}

func (e *engine) serveChunk(ctx context.Context, request []byte) ([]byte, error) {
	var id snapshot.ID
	if len(request) < len(id) {
		return nil, fmt.Errorf("the request for a chunk has %d bytes", len(request))
	}
	rest := request[copy(id[:], request):]
	file, n := binary.Uvarint(rest)
	chunk, m := binary.Uvarint(rest[max(n, 0):])
	if n <= 0 || m <= 0 || n+m != len(rest) || file >= snapshot.MaxFiles || chunk > snapshot.MaxFileBytes {
		return nil, errors.New("the request for a chunk is malformed")
	}
	src, err := e.snaps.Source(id)
	if err != nil {
		return nil, err
	}
	e.reads.note(id)
	b, err := src.Fetch(ctx, id, int(file), int(chunk))
	src.Close()
	e.sent.Add(uint64(len(b)))
	if errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		e.removeDamaged(id, err)
	}
	return b, err
}

// removeDamaged removes a snapshot that is not what it was: it would be offered again and again, as long as nothing is flushed.
func (e *engine) removeDamaged(id snapshot.ID, why error) {
	e.logger.Error("a snapshot on this disk is damaged, and is removed; the next one is cut anew; check the disk", "reason", why)
	if err := e.snaps.Remove(id); err != nil && !errors.Is(err, snapshot.ErrBusy) && !errors.Is(err, snapshot.ErrNotFound) { // who else reads it finds the damage too
		e.logger.Warn("a damaged snapshot could not be removed", "reason", err)
	}
}

// Fetch implements core.Env.
func (w *worker) Fetch(f *core.Fetch) {
	w.e.background(func(ctx context.Context) {
		f.Snapshot, f.Err = w.e.fetch(ctx, f)
		w.post(func(in *core.Input) { in.Fetched = append(in.Fetched, f) })
	})
}

// How often all sources of a snapshot are tried in a row without a single new chunk, and how long one is waited for.
const (
	fetchRounds  = 5
	chunkTimeout = 20 * time.Second
)

// fetch receives a snapshot and reads all of it once: raft must not be told of one that cannot be installed.
func (e *engine) fetch(ctx context.Context, f *core.Fetch) (*snapshot.Snapshot, error) {
	if len(f.Sources) == 0 {
		return nil, errors.New("nobody is known to have it")
	}
	for again := false; ; again = true {
		s, err := e.receiveFrom(ctx, f)
		if err != nil {
			return nil, err
		}
		_, err = snapshot.Verify(ctx, e.fs, s.Dir)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		gone := e.snaps.Remove(s.ID) // by its name too: Receive would find it here again
		if errors.Is(err, snapshot.ErrNotFound) && errors.Is(gone, snapshot.ErrNotFound) {
			return nil, err // a repair has discarded it; who needs it still asks again
		}
		if err = errors.Join(err, gone); again {
			// Once it may have been this disk. The next would have the same name, and so the same bytes.
			return nil, fmt.Errorf("%w that can be installed: %w", core.ErrNoSource, err)
		}
		e.logger.Warn("a snapshot is damaged, and is fetched anew", "reason", err)
	}
}

// receiveFrom has the chunks of a snapshot fetched, from one source after the other.
func (e *engine) receiveFrom(ctx context.Context, f *core.Fetch) (*snapshot.Snapshot, error) {
	src := &peerSource{e: e, sources: f.Sources}
	most, here := int64(0), int64(0) // bytes that have passed their checks, ever, and in this attempt
	o := snapshot.ReceiveOptions{Cluster: e.cluster, Shard: uint64(f.Shard), BytesPerSecond: e.rate, Progress: func(p snapshot.Progress) {
		here = p.Bytes
		f.Progress(p.Bytes, p.Total)
	}}
	for failed := 0; ; {
		s, err := e.snaps.Receive(ctx, f.Manifest, src, o)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, snapshot.ErrForeign) || errors.Is(err, snapshot.ErrNewerFormat) || errors.Is(err, snapshot.ErrNoSpace) || errors.Is(err, snapshot.ErrTooLarge) {
			return nil, err
		}
		// What was answered is no progress: peers may send what fits a chunk's checksum and not the file's, again and again.
		if failed++; here > most {
			most, failed = here, 1
		}
		if failed >= fetchRounds*len(f.Sources) {
			return nil, fmt.Errorf("%w: %w", core.ErrNoSource, err)
		}
		src.next()
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// peerSource fetches chunks from one peer after the other.
type peerSource struct {
	e       *engine
	sources []NodeID
	at      int
}

func (p *peerSource) next() { p.at++ }

// Fetch implements snapshot.Fetcher.
func (p *peerSource) Fetch(ctx context.Context, id snapshot.ID, file, chunk int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	request := binary.AppendUvarint(binary.AppendUvarint(id[:], uint64(file)), uint64(chunk))
	return p.e.transport.Call(ctx, uint64(p.sources[p.at%len(p.sources)]), callChunk, request)
}

// Install implements core.Env.
func (w *worker) Install(d *core.InstallDone) {
	w.e.background(func(ctx context.Context) {
		d.Err = d.Job.Run(ctx)
		switch {
		case d.Err == nil:
			w.e.removeOlder(d.Snapshot, d.Repair)
		case errors.Is(d.Err, state.ErrNotSynced):
			w.e.discard(d.Snapshot.ID) // a repair would find it here, and believe it
		}
		w.post(func(in *core.Input) { in.Installed = append(in.Installed, d) })
	})
}

// SnapshotInfo is a snapshot on a node's disk.
type SnapshotInfo struct {
	ID    string // hexadecimal
	Shard ShardID
	Index Index
	Term  Term
	Time  Timestamp
	Hash  uint64
	Bytes int64
	Files int
	Dir   string
}

// Snapshots lists the complete snapshots on the node's disk, by shard and index. It keeps the newest of each shard,
// and until the next one is cut also the one before that, if a peer was fetching it.
func (n *Node) Snapshots() (list []SnapshotInfo) {
	for _, s := range n.engine.snaps.List() {
		list = append(list, snapshotInfo(s))
	}
	return list
}

func snapshotInfo(s *snapshot.Snapshot) SnapshotInfo {
	m := s.Manifest
	return SnapshotInfo{
		ID: s.ID.String(), Shard: ShardID(m.Shard), Index: Index(m.Index), Term: Term(m.Term), Time: Timestamp(m.Time), Hash: m.Hash,
		Bytes: m.Bytes(), Files: len(m.Files), Dir: s.Dir,
	}
}

// CutSnapshot writes a snapshot of the shard, while the shard goes on: as of its last flush, or, if fresh, as of what is applied when it is
// called. It stays until the next one of the shard. CodeNotReached: there is nothing to write yet. With ErrUnknown, when ctx ends or the node does, it may be written yet; with
// CodeCompacted it was, and another one has taken its place.
func (s *Shard) CutSnapshot(ctx context.Context, fresh bool) (SnapshotInfo, error) {
	manifest, err := s.cut(ctx, func(w *core.Worker, f func([]byte, error)) { w.Cut(ctx, s.id, fresh, f) })
	if err != nil {
		return SnapshotInfo{}, err
	}
	return s.node.written(manifest)
}

// written returns the snapshot that a cut has written.
func (n *Node) written(manifest []byte) (SnapshotInfo, error) {
	_, id, err := snapshot.Decode(manifest)
	if err != nil {
		return SnapshotInfo{}, err
	}
	for _, sn := range n.engine.snaps.List() {
		if sn.ID == id {
			return snapshotInfo(sn), nil
		}
	}
	return SnapshotInfo{}, &Error{Kind: ErrUnknown, Code: core.CodeCompacted, Message: "the snapshot was written, and a later one has taken its place already; list them"}
}

// cut has the worker write a snapshot, and waits for it.
func (s *Shard) cut(ctx context.Context, ask func(w *core.Worker, f func(manifest []byte, err error))) ([]byte, error) {
	type outcome struct {
		manifest []byte
		err      error
	}
	got := make(chan outcome, 1)
	err := s.node.engine.call(ctx, s.id, func(w *core.Worker) {
		ask(w, func(manifest []byte, err error) { got <- outcome{manifest, err} })
	})
	if err != nil {
		return nil, err
	}
	select {
	case o := <-got:
		return o.manifest, o.err
	case <-ctx.Done():
		return nil, &Error{Kind: ErrUnknown, Code: core.CodeCancelled, Message: "the caller stopped waiting; the snapshot goes on", Cause: context.Cause(ctx)}
	case <-s.node.done:
		return nil, &Error{Kind: ErrUnknown, Code: core.CodeClosed, Message: "the snapshot was wanted, and may have been written, when this node stopped"}
	}
}
