package rsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// BackupOptions say what goes into a backup, and how fast.
type BackupOptions struct {
	// Shards, by default all that the node hosts.
	Shards []ShardID
	// AtLeast has the log position that the backup of a shard must reach: the Index of a Result. Without it, the backup is of what this replica has
	// applied, which on the leader is all that was ever acknowledged, and on others can be a little behind.
	AtLeast map[ShardID]Index
	// History leaves the snapshots out and has the whole journal instead, from entry 1 on, so that every position there ever was can be
	// restored. It needs Config.KeepJournal since the shard was made. To restore it, every event is applied anew.
	History bool
	// BytesPerSecond bounds the writing; 0: no bound.
	BytesPerSecond int64
	// TableBytes is at what size a table ends, 0: 64 MiB.
	TableBytes int64
	// Progress is called now and then on the caller's goroutine; nil: not called.
	Progress func(snapshot.Progress)
}

// Backup writes a backup of the node's shards to w, as one stream (package snapshot has the format), while the node goes on working. Each shard is as of one position
// of its log; between shards there is none that they have in common. After an error what was written is no backup. A node that closes ends its backups. Neither that
// nor Config.BackupStall ends a Write that has begun: it may return after Backup has.
//
// It takes from the shard's worker no more time than it takes to list what was committed since the last flush; from the disk, what BytesPerSecond allows.
func (n *Node) Backup(ctx context.Context, w io.Writer, o BackupOptions) (*snapshot.Backup, error) {
	r := n.receiver(ctx)
	defer close(r.todo)
	return n.backup(ctx, snapshot.NewStreamSink(&streamWriter{r: r, w: w}), o)
}

// ErrBackupStalled is what a backup ends with whose receiver takes nothing: see Config.BackupStall.
var ErrBackupStalled = errors.New("the receiver of the backup has taken nothing for too long, and what it is of cannot be kept for ever")

// receiver does what a backup wants of whoever takes it, one thing after the other, on a goroutine of its own, which may be left behind with one that does not end.
type receiver struct {
	ctx   context.Context
	quit  <-chan struct{}
	stall time.Duration

	todo chan func() error // has room for the one that comes after what does not end
	done chan error        // has room for those that nobody waits for
	err  error
}

// receiver returns one whose todo is to be closed.
func (n *Node) receiver(ctx context.Context) *receiver {
	r := &receiver{ctx: ctx, quit: n.engine.quit, stall: n.cfg.BackupStall, todo: make(chan func() error, 1), done: make(chan error, 2)}
	if r.stall < 0 {
		r.stall = math.MaxInt64
	}
	go func() {
		for f := range r.todo {
			r.done <- f()
		}
	}()
	return r
}

// do does one thing. After an error there is only that, as f may not have ended.
func (r *receiver) do(f func() error) error {
	if r.err != nil {
		return r.err
	}
	r.todo <- f
	late := time.NewTimer(r.stall)
	defer late.Stop()
	select {
	case r.err = <-r.done:
	case <-r.ctx.Done():
		r.err = context.Cause(r.ctx)
	case <-r.quit:
		r.err = errClosed
	case <-late.C:
		r.err = fmt.Errorf("%w (%v)", ErrBackupStalled, r.stall)
	}
	return r.err
}

// clear does the last thing, after an error: when all before it has ended, which is not waited for if it was waited for already.
func (r *receiver) clear(f func() error) error {
	cleared := make(chan error, 1)
	r.todo <- func() error { cleared <- f(); return nil }
	if errors.Is(r.err, ErrBackupStalled) {
		return nil
	}
	select {
	case err := <-cleared:
		return err
	case <-time.After(r.stall):
		return fmt.Errorf("what was written could not be removed: %w (%v)", ErrBackupStalled, r.stall)
	}
}

// streamWriter is a stream as a receiver. What it was given is copied: a Write may outlive the caller.
type streamWriter struct {
	r   *receiver
	w   io.Writer
	buf []byte
}

// Write implements io.Writer.
func (s *streamWriter) Write(p []byte) (int, error) {
	if s.r.err != nil {
		return 0, s.r.err
	}
	s.buf = append(s.buf[:0], p...)
	if err := s.r.do(func() error { _, err := s.w.Write(s.buf); return err }); err != nil {
		return 0, err
	}
	return len(p), nil
}

// dirReceiver is a directory as a receiver: its disk may hang, as that of another machine does.
type dirReceiver struct {
	r    *receiver
	sink *snapshot.DirSink // nil until there is one; the goroutine's
	file snapshot.SinkFile // the present one; the goroutine's
}

// Create implements snapshot.Sink.
func (d *dirReceiver) Create(name string) (snapshot.SinkFile, error) {
	if err := d.r.do(func() (err error) { d.file, err = d.sink.Create(name); return err }); err != nil {
		return nil, err
	}
	return &receivedFile{streamWriter{r: d.r, w: d.file}, d}, nil
}

// Finish implements snapshot.Sink.
func (d *dirReceiver) Finish() error { return d.r.do(func() error { return d.sink.Finish() }) }

// abort removes what is there after an error.
func (d *dirReceiver) abort() error {
	return d.r.clear(func() error {
		if d.file != nil {
			_ = d.file.Close() // it goes
		}
		if d.sink == nil {
			return nil
		}
		return d.sink.Abort()
	})
}

type receivedFile struct {
	streamWriter
	d *dirReceiver
}

func (f *receivedFile) Sync() error { return f.r.do(func() error { return f.d.file.Sync() }) }

// Close leaves it to abort after an error.
func (f *receivedFile) Close() error {
	if f.r.err != nil {
		return nil
	}
	return f.r.do(func() error {
		err := f.d.file.Close()
		f.d.file = nil
		return err
	})
}

// BackupTo is Backup into a directory, which must be missing or empty. It leaves as much of the data's disk free as Config.DiskWatermark says. After an error
// what was written is removed, after ErrBackupStalled as soon as the directory's disk ends what it hangs in; a crash leaves a directory that is no backup, since its manifest comes last.
// A backup that is complete stays, though whoever stopped waiting for its last sync had an error: verify it, or remove it.
//
// When ctx ends, what the directory's disk is about is waited for, and no more is begun, so that nobody writes into the directory when BackupTo has returned. Only a disk that hangs is not
// waited for longer than Config.BackupStall: then the error is ErrBackupStalled too, and what the disk is about, and the removal of what was written, may come later.
func (n *Node) BackupTo(ctx context.Context, dir string, o BackupOptions) (*snapshot.Backup, error) {
	return n.backupTo(ctx, vfs.Default, dir, o)
}

func (n *Node) backupTo(ctx context.Context, fs vfs.FS, dir string, o BackupOptions) (*snapshot.Backup, error) {
	d := &dirReceiver{r: n.receiver(ctx)}
	defer close(d.r.todo)
	var b *snapshot.Backup
	err := d.r.do(func() (err error) { d.sink, err = n.dirSink(fs, dir); return err })
	if err != nil {
		err = fmt.Errorf("back up: %w", err)
	} else {
		b, err = n.backup(ctx, d, o)
	}
	if err != nil {
		return nil, errors.Join(err, d.abort())
	}
	return b, nil
}

// dirSink makes the directory of a backup.
func (n *Node) dirSink(fs vfs.FS, dir string) (*snapshot.DirSink, error) {
	if err := datadir.MakeDir(theDisk(), dir); err != nil {
		return nil, err
	}
	reserve := uint64(0)
	if n.cfg.Dir != "" && sameDisk(dir, n.cfg.Dir) {
		reserve = n.disk.watermark
	}
	return snapshot.NewDirSink(fs, dir, reserve)
}

func sameDisk(a, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Stat(a, &sa) == nil && unix.Stat(b, &sb) == nil && sa.Dev == sb.Dev
}

func (n *Node) backup(ctx context.Context, sink snapshot.Sink, o BackupOptions) (*snapshot.Backup, error) {
	shards := slices.Sorted(slices.Values(o.Shards))
	if len(shards) == 0 {
		for _, s := range n.cfg.Shards {
			shards = append(shards, s.ID)
		}
		slices.Sort(shards)
	}
	for _, id := range shards {
		if n.shards[id] == nil {
			return nil, fmt.Errorf("back up: %w", &Error{Kind: ErrNotProposed, Code: core.CodeNoShard, Message: fmt.Sprintf("node %d hosts no shard %d", n.cfg.Node, id)})
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-n.engine.quit:
			cancel(errClosed)
		case <-ctx.Done():
		}
	}()
	w, err := snapshot.NewBackupWriter(sink, snapshot.Backup{Cluster: n.cfg.Cluster, Node: uint64(n.cfg.Node), Library: libraryVersion()}, snapshot.BackupOptions{
		TableBytes: o.TableBytes, BytesPerSecond: o.BytesPerSecond, Progress: o.Progress,
	})
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Compact(shards) {
		if err := n.backupShard(ctx, w, id, o); err != nil {
			return nil, fmt.Errorf("back up shard %d: %w", id, err)
		}
	}
	return w.Finish()
}

func (n *Node) backupShard(ctx context.Context, w *snapshot.BackupWriter, id ShardID, o BackupOptions) error {
	if err := n.reached(ctx, id, max(1, o.AtLeast[id])); err != nil {
		return err
	}
	c, err := n.pin(ctx, id)
	for isCode(err, core.CodeNotReached) && n.reached(ctx, id, max(1, o.AtLeast[id])) == nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(n.cfg.tick() / 4):
		}
		c, err = n.pin(ctx, id)
	}
	if err != nil {
		return err
	}
	defer c.release()
	source := snapshot.BackupSource{Shard: uint64(id), Cut: c.cut, Entries: c.entries(o.History)}
	switch {
	case o.History:
		source.Cut = nil
		if first, last := c.journal(); c.cut != nil && (first != 1 || last != c.cut.Index()) {
			return fmt.Errorf("the journal has the entries %d to %d of %d: a history needs all of them, see Config.KeepJournal", first, last, c.cut.Index())
		}
	case c.cut != nil:
		if source.Info, err = core.SnapshotInfo(n.cfg.Cluster, c.cut.Meta()); err != nil {
			return err
		}
	}
	return w.Add(ctx, source)
}

func isCode(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// reached waits until a shard has applied up to index. Without anything applied there is nothing to back up, and a replica that has not
// heard of its shard yet does not know that there is more.
func (n *Node) reached(ctx context.Context, id ShardID, index Index) error {
	for {
		st, err := n.shards[id].StatusContext(ctx)
		switch {
		case err != nil:
			return err
		case st.Err != nil:
			return st.Err
		case st.Applied >= index:
			return nil
		}
		select {
		case <-ctx.Done():
			return &Error{Kind: ErrNotProposed, Code: core.CodeNotReached, Cause: context.Cause(ctx),
				Message: fmt.Sprintf("node %d has applied shard %d up to %d only, asked for was %d", n.cfg.Node, id, st.Applied, index)}
		case <-time.After(n.cfg.tick() / 4):
		}
	}
}

// pinned is a shard at one position of its log: its last flush, and what was committed since.
type pinned struct {
	cut  *state.Cut // nil: nothing was flushed yet
	tail []state.JournalEntry
	done func()
}

// pin takes hold of a shard at its applied index. It holds up the closing of the node until release.
func (n *Node) pin(ctx context.Context, id ShardID) (*pinned, error) {
	bg := &n.engine.bg
	var p *pinned
	var err error
	e := n.engine.lookOr(ctx, id, func(w *core.Worker) {
		p = &pinned{done: bg.done}
		bg.add() // on the worker's goroutine, for which the engine waits first
		p.cut, err = n.store.TryCut(uint64(id))
		switch {
		case errors.Is(err, state.ErrNotFlushed):
			err = nil
		case errors.Is(err, state.ErrBusy): // the worker must not wait for it: it may be a disk that hangs
			err = &Error{Kind: ErrNotProposed, Code: core.CodeNotReached, Message: "a replica of this node is being given another state", Cause: err}
		}
		if err == nil {
			p.tail, _, err = w.Committed(id, p.index())
		}
	}, func() { p.release() })
	if e != nil {
		return nil, e
	}
	if err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

func (p *pinned) index() Index {
	if p.cut == nil {
		return 0
	}
	return Index(p.cut.Index())
}

func (p *pinned) journal() (first, last uint64) {
	if p.cut == nil {
		return 0, 0
	}
	return p.cut.JournalBounds()
}

func (p *pinned) release() {
	if p.cut != nil {
		p.cut.Close()
	}
	p.done()
}

// entries yields what was committed since the flush, and the journal before it if wanted.
func (p *pinned) entries(history bool) iter.Seq2[snapshot.Entry, error] {
	return func(yield func(snapshot.Entry, error) bool) {
		if history && p.cut != nil {
			errStop := errors.New("enough")
			err := p.cut.Journal(1, p.cut.Index()+1, func(e state.JournalEntry) error {
				if !yield(e, nil) {
					return errStop
				}
				return nil
			})
			if errors.Is(err, errStop) || err != nil && !yield(snapshot.Entry{}, err) || err != nil {
				return
			}
		}
		for _, e := range p.tail {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// libraryVersion is that of this module, as it was built in.
func libraryVersion() string {
	const module = "github.com/decree-raft/decree"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == module {
			return m.Version
		}
	}
	return ""
}
