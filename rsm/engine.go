package rsm

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/internal/transport"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// engine runs the core of a node: it owns the goroutines, the core owns the logic.
//
//	goroutine        how many          owns
//	worker.run       Config.Workers    the shards of the worker
//	engine.writeLog  one               the write-ahead log: one fsync for whatever the workers have handed in
//	clock.run        one               ticks, beats, the watchdog of the log
//	Node.watchDisk   one               the disk's watermark
//	runQueries       one per batch     a version of the state; more of them when a query runs long
//	runFlush         one per flush     tables being written
//	snapshots.go     one per cut, fetch or installation; one after a flush, for what was fetched in vain
//	transport's      see there
type engine struct {
	node      NodeID
	logger    *slog.Logger
	start     time.Time // of the monotonic clock
	tick      time.Duration
	workers   []*worker
	log       wal.Log
	peers     peerSet
	transport transport.Peer
	store     *state.Store
	snaps     *snapshot.Dir
	reads     recentReads
	vain      inVain
	sent      atomic.Uint64 // bytes of snapshots that peers have fetched
	cluster   string
	fs        vfs.FS                      // of snaps
	life      context.Context             // ends with the engine
	rate      int64                       // bytes of snapshots per second, 0: no bound
	fatal     func(*Error)                // the node must stop; may be called more than once
	changed   func(ShardID, NodeID, Term) // who leads a shard
	members   func(ShardID, core.Configuration)
	address   func(NodeID) string
	shard     func(ShardID) *Shard
	stopped   func(ShardID, *core.Error) // a replica went out of service

	logQueue chan struct{} // has one token while toWrite is not empty
	logMu    sync.Mutex
	toWrite  []logWrite
	spare    []logWrite
	writing  atomic.Int64 // monotonic ns since when an Append runs, 0 if none

	flushes chan struct{} // bounds flushes that run at once
	due     flushesUnderWay
	bg      tasks
	quit    chan struct{}
	dead    notice // given by shutdown: who waits for a worker need wait no longer
	once    sync.Once
	end     context.CancelFunc // of life
}

type logWrite struct {
	from  *worker
	write *core.Write
}

// maxFlushes at once: they compete with the log for the disk.
const maxFlushes = 2

func newEngine(node NodeID, logger *slog.Logger, log wal.Log, workers int) *engine {
	e := &engine{
		node: node, logger: logger, start: time.Now(), log: log,
		logQueue: make(chan struct{}, 1), flushes: make(chan struct{}, maxFlushes), quit: make(chan struct{}), dead: newNotice(),
	}
	e.life, e.end = context.WithCancel(context.Background())
	for range workers {
		e.workers = append(e.workers, &worker{e: e, heard: map[NodeID]int64{}, wake: make(chan struct{}, 1), done: make(chan struct{})})
	}
	return e
}

func (e *engine) mono() int64 { return int64(time.Since(e.start)) + int64(time.Hour) }

func (e *engine) now() core.Now { return core.Now{Mono: e.mono(), Wall: time.Now().UnixNano()} }

func (e *engine) workerOf(id ShardID) *worker { return e.workers[uint64(id)%uint64(len(e.workers))] }

func (e *engine) run() {
	e.bg.add()
	go e.writeLog()
	for _, w := range e.workers {
		go w.run()
	}
}

// stop ends the goroutines and every pending call. Writes that the log has not
// begun are dropped, as a crash would. It reports whether all has ended: a disk that does
// not answer, or a query that does not return, is waited for a while only.
func (e *engine) stop(reason *Error, patience time.Duration) bool {
	e.once.Do(func() { close(e.quit); e.end(); e.bg.end() })
	deadline := time.After(patience)
	all := true
	for _, w := range e.workers {
		select {
		case <-w.done:
			w.close(reason)
			continue
		default:
		}
		select {
		case <-w.done:
			w.close(reason)
		case <-deadline: // a pass that does not return: a disk, or a machine
			w.abandon(reason)
			all, deadline = false, closedTimer
			go func() { // should it return after all, what was inside ends too
				<-w.done
				w.core.Stop(reason)
			}()
		}
	}
	select {
	case <-e.bg.over():
		return all
	case <-deadline:
		return false
	}
}

// notice is one event, in several channels that are closed together. Each who waits for it looks at one of them: thousands that all wait on the same one contend for its lock.
type notice [32]chan struct{}

func newNotice() (n notice) {
	for i := range n {
		n[i] = make(chan struct{})
	}
	return n
}

func (n *notice) give() {
	for _, c := range n {
		close(c)
	}
}

// closedTimer is a deadline that has passed.
var closedTimer = func() <-chan time.Time { c := make(chan time.Time); close(c); return c }()

// writeLog appends whatever the workers have handed in since the last time, with one
// fsync: while the disk works, the next batch gathers.
func (e *engine) writeLog() {
	defer e.bg.done()
	var records []wal.Record
	for {
		select {
		case <-e.quit:
			return
		case <-e.logQueue:
		}
		e.logMu.Lock()
		batch := e.toWrite
		e.toWrite = e.spare[:0]
		e.logMu.Unlock()
		records = records[:0]
		for _, w := range batch {
			records = append(records, w.write.Records...)
		}
		e.writing.Store(e.mono())
		err := e.log.Append(records)
		e.writing.Store(0)
		if err != nil {
			e.fail(core.CodeStorage, err, "the write-ahead log could not be written")
			return
		}
		for i, w := range batch {
			w.from.post(func(in *core.Input) { in.Written = append(in.Written, w.write) })
			batch[i] = logWrite{}
		}
		clear(records)
		e.spare = batch
	}
}

// fail stops the node: its disk cannot be trusted any more [G10].
func (e *engine) fail(code Code, cause error, format string, args ...any) {
	e.fatal(&Error{Kind: ErrBroken, Code: code, Message: fmt.Sprintf(format, args...), Cause: cause})
}

// receive takes a frame from the transport.
func (e *engine) receive(from uint64, frame []byte) {
	p := e.peers.met(NodeID(from), e.mono())
	if p == nil {
		return
	}
	before, now := p.lastHeard(), e.mono()
	defer p.speaks(now) // last: who sees it finds what was received in the mailboxes
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inputs == nil {
		p.inputs = make([]core.Input, len(e.workers))
	}
	inputs := p.inputs
	err := core.DecodeFrame(NodeID(from), e.node, frame, core.Receiver{
		Message: func(m core.Message) {
			m.At = now
			in := &inputs[uint64(m.Shard)%uint64(len(inputs))]
			in.Messages = append(in.Messages, m)
		},
		Quiesce: func(q core.Quiesce) {
			in := &inputs[uint64(q.Shard)%uint64(len(inputs))]
			in.Quiesces = append(in.Quiesces, q)
		},
		Commit: func(n core.CommitNote) {
			n.At = now
			in := &inputs[uint64(n.Shard)%uint64(len(inputs))]
			in.Commits = append(in.Commits, n)
		},
		Note: func(n core.Note) {
			in := &inputs[uint64(n.Shard)%uint64(len(inputs))]
			in.Notes = append(in.Notes, n)
		}})
	if err != nil {
		e.logger.Warn("frame refused", "peer", from, "reason", err)
		e.postGap(core.Gap{Peer: NodeID(from), Heard: before})
	}
	for i := range inputs {
		got := &inputs[i]
		if err == nil && len(got.Messages)+len(got.Quiesces)+len(got.Commits)+len(got.Notes) > 0 {
			e.workers[i].postPeer(len(frame), got, core.Gap{Peer: NodeID(from), Heard: before})
		}
		*got = emptied(*got)
	}
}

// gap is told before the first frame is received that follows others of the peer which may be lost.
func (e *engine) gap(from uint64) {
	if p := e.peers.met(NodeID(from), e.mono()); p != nil {
		e.postGap(core.Gap{Peer: NodeID(from), Heard: p.lastHeard()})
	}
}

func (e *engine) postGap(g core.Gap) {
	for _, w := range e.workers {
		w.post(func(in *core.Input) { addGap(in, g) })
	}
}

// addGap adds a gap. Of several of one peer the first counts: nothing is certain after it.
func addGap(in *core.Input, g core.Gap) {
	if !slices.ContainsFunc(in.Gaps, func(o core.Gap) bool { return o.Peer == g.Peer }) {
		in.Gaps = append(in.Gaps, g)
	}
}

func (e *engine) unreachable(peer uint64) {
	for _, w := range e.workers {
		w.post(func(in *core.Input) { in.Unreachable = append(in.Unreachable, NodeID(peer)) })
	}
}

// What became of a question to a worker.
const (
	asked   = iota
	begun   // by the worker
	ended   // the same
	dropped // by the caller, who does not wait any more
)

// call runs f on the worker of a shard, between two passes, and waits for it. A pass may not return: whoever stops waiting, with ctx or as the node is given up, leaves, and f is not run any
// more: ErrNotProposed. If it has begun, ctx does not end the waiting; of those there is one for each worker. If the node is given up then, f may still run when call has returned, and what it
// does may take effect: ErrUnknown. After an error, nobody looks at what f writes to.
func (e *engine) call(ctx context.Context, id ShardID, f func(*core.Worker)) error {
	return e.callOr(ctx, id, f, func() {})
}

// look is call for an f that only reads. Of that nothing is in doubt, however far f came: every error is ErrNotProposed.
func (e *engine) look(ctx context.Context, id ShardID, f func(*core.Worker)) error {
	return e.lookOr(ctx, id, f, func() {})
}

// lookOr is to look what callOr is to call.
func (e *engine) lookOr(ctx context.Context, id ShardID, f func(*core.Worker), late func()) error {
	err := e.callOr(ctx, id, f, late)
	if err == errClosedWithin {
		return errClosed
	}
	return err
}

// callOr is call for an f that takes hold of something. The worker runs late after an f whose caller has left: nobody else lets go of it.
func (e *engine) callOr(ctx context.Context, id ShardID, f func(*core.Worker), late func()) error {
	if ctx.Err() != nil { // or the worker and the end of ctx would race for f
		return &Error{Kind: ErrNotProposed, Code: core.CodeCancelled, Message: fmt.Sprintf("the caller had stopped waiting before shard %d on node %d was asked", id, e.node), Cause: context.Cause(ctx)}
	}
	done := make(chan struct{})
	var state atomic.Int32
	w := e.workerOf(id)
	full := false
	if !w.post(func(in *core.Input) {
		if full = len(in.Calls) >= mailboxCalls; full {
			return
		}
		in.Calls = append(in.Calls, func(c *core.Worker) {
			if !state.CompareAndSwap(asked, begun) {
				return
			}
			f(c)
			if state.CompareAndSwap(begun, ended) {
				close(done)
			} else {
				late()
			}
		})
	}) {
		return errClosed
	}
	if full {
		return &Error{Kind: ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: e.tick,
			Message: fmt.Sprintf("%d questions wait for a worker of node %d, which is in a pass that has not returned", mailboxCalls, e.node)}
	}
	left := ctx.Done()
	for {
		select {
		case <-done:
			return nil
		case <-left:
			if state.CompareAndSwap(asked, dropped) {
				return &Error{Kind: ErrNotProposed, Code: core.CodeCancelled, Message: fmt.Sprintf("the worker of shard %d on node %d was busy until the caller stopped waiting", id, e.node), Cause: context.Cause(ctx)}
			}
			left = nil
			continue
		case <-w.done:
		case <-e.dead[0]:
		}
		break
	}
	switch state.Swap(dropped) {
	case ended: // in the worker's last pass
		return nil
	case begun:
		return errClosedWithin
	}
	return errClosed
}

var errClosed = &Error{Kind: ErrNotProposed, Code: core.CodeClosed, Message: "the node is closed"}

// errClosedWithin: the node ended while a worker did what it was asked to, which may have taken effect.
var errClosedWithin = &Error{Kind: ErrUnknown, Code: core.CodeClosed, Message: "the node was closed before its worker had done what it had begun"}

// A worker runs one core.Worker: it gathers inputs while a pass runs, and so makes batches without a timer.
type worker struct {
	e     *engine
	core  *core.Worker
	heard map[NodeID]int64 // see listen; of the worker's goroutine

	began   int64            // when the pass did
	commits core.CommitNotes // of it

	mu        sync.Mutex
	in        core.Input
	peerBytes int // of messages in the mailbox
	requests  int
	reqBytes  int
	closed    bool
	spare     core.Input

	wake chan struct{}
	done chan struct{}
}

// The mailbox is bounded by what one pass may take in; see core.Limits for what a shard may hold.
const (
	mailboxRequests  = 1 << 17
	mailboxBytes     = 256 << 20
	mailboxPeerBytes = 128 << 20
	mailboxCalls     = 1 << 14
)

// post adds to the next pass's input, and reports false when the worker is closed.
func (w *worker) post(add func(*core.Input)) bool {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return false
	}
	add(&w.in)
	w.mu.Unlock()
	w.signal()
	return true
}

// postPeer adds what a peer sent. Beyond the bound it is lost, as the network may lose it, and there is a gap.
func (w *worker) postPeer(size int, got *core.Input, gap core.Gap) {
	w.post(func(in *core.Input) {
		if w.peerBytes > mailboxPeerBytes {
			addGap(in, gap)
			return
		}
		w.peerBytes += size
		in.Messages = append(in.Messages, got.Messages...)
		in.Quiesces = append(in.Quiesces, got.Quiesces...)
		in.Commits = append(in.Commits, got.Commits...)
		in.Notes = append(in.Notes, got.Notes...)
	})
}

// submit hands in a request; the error says that it was not taken.
func (w *worker) submit(q *core.Request) error {
	size := len(q.Query)
	for _, c := range q.Commands {
		size += len(c)
	}
	w.mu.Lock()
	switch {
	case w.closed:
		w.mu.Unlock()
		return errClosed
	case w.requests >= mailboxRequests || w.reqBytes+size > mailboxBytes:
		w.mu.Unlock()
		return &Error{Kind: ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: w.e.tick,
			Message: fmt.Sprintf("%d calls wait for a worker of node %d", w.requests, w.e.node)}
	}
	w.requests++
	w.reqBytes += size
	first := len(w.in.Requests) == 0
	w.in.Requests = append(w.in.Requests, q)
	w.mu.Unlock()
	if first {
		w.signal()
	}
	return nil
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) run() {
	defer close(w.done)
	for {
		select {
		case <-w.e.quit:
			return
		case <-w.wake:
		}
		w.gather()
		w.listen()
		w.mu.Lock()
		in := w.in
		w.in = w.spare
		w.peerBytes, w.requests, w.reqBytes = 0, 0, 0
		w.mu.Unlock()
		now := w.e.now()
		w.began = now.Mono
		w.core.Pass(now, &in)
		w.tellCommits()
		w.e.transport.Flush()
		if w.core.More() {
			w.signal()
		}
		w.spare = emptied(in)
	}
}

// listen notes when the peers were heard, for the pass that takes in what they had said until then, gaps included. What they say during the pass is for the next one: the
// pass would believe that nothing had happened in between.
func (w *worker) listen() {
	if m := w.e.peers.all.Load(); m != nil {
		for id, p := range *m {
			w.heard[id] = p.lastHeard()
		}
	}
}

// gather lets callers that are about to hand in requests do so, where nothing else has come: hundreds of them that wait for their
// turn on a few processors would otherwise each wake the worker for a request or two. On a machine with time to spare it returns at once.
func (w *worker) gather() {
	w.mu.Lock()
	only := len(w.in.Requests) > 0 && w.in.Ticks == 0 && len(w.in.Messages)+len(w.in.Written)+len(w.in.Commits)+len(w.in.Calls) == 0
	w.mu.Unlock()
	if only {
		runtime.Gosched()
	}
}

// emptied returns the input's slices for use again, without what they held.
func emptied(in core.Input) core.Input {
	clear(in.Messages)
	clear(in.Requests)
	clear(in.Written)
	clear(in.Flushed)
	clear(in.Calls)
	clear(in.Notes)
	return core.Input{
		Messages: in.Messages[:0], Quiesces: in.Quiesces[:0], Commits: in.Commits[:0], Requests: in.Requests[:0], Written: in.Written[:0],
		Flushed: in.Flushed[:0], Unreachable: in.Unreachable[:0], Gaps: in.Gaps[:0], Pinned: in.Pinned[:0], Calls: in.Calls[:0], Notes: in.Notes[:0],
	}
}

// close ends what is pending, after run has returned.
func (w *worker) close(reason *Error) {
	w.abandon(reason)
	w.core.Stop(reason)
}

// abandon ends what waits for a worker, and takes nothing more. What is inside a pass that does not return stays there: who
// waits for it hears of the engine's end.
func (w *worker) abandon(reason *Error) {
	w.mu.Lock()
	w.closed = true
	in := w.in
	w.in = core.Input{}
	w.mu.Unlock()
	for _, q := range in.Requests {
		q.Err = reason
		q.Done(q)
	}
}

// The core's Env.

var _ core.Env = (*worker)(nil)

func (w *worker) Send(to NodeID, shard ShardID, m *raftpb.Message) {
	w.e.transport.Append(uint64(to), m.Size()+16, func(b []byte) []byte { return core.AppendMessage(b, shard, m) })
}

func (w *worker) SendQuiesce(to NodeID, q core.Quiesce) {
	w.e.transport.Append(uint64(to), 32, func(b []byte) []byte { return core.AppendQuiesce(b, q) })
}

// SendCommit keeps a note until the pass ends, see tellCommits.
func (w *worker) SendCommit(to NodeID, n core.CommitNote) { w.commits.Add(to, n) }

// tellCommits sends the notes of a pass.
func (w *worker) tellCommits() {
	if len(w.commits) == 0 {
		return
	}
	w.commits.Send(time.Duration(w.Spent()), func(to NodeID, n core.CommitNote) {
		w.e.transport.Append(uint64(to), 48, func(b []byte) []byte { return core.AppendCommit(b, n) })
	})
}

func (w *worker) Write(wr *core.Write) {
	e := w.e
	e.logMu.Lock()
	e.toWrite = append(e.toWrite, logWrite{from: w, write: wr})
	e.logMu.Unlock()
	select {
	case e.logQueue <- struct{}{}:
	default:
	}
}

func (w *worker) Query(b *core.QueryBatch) {
	w.e.bg.add()
	go w.e.runQueries(b)
}

// longQuery is when the queries behind one that runs long are given another goroutine.
const longQuery = 2 * time.Millisecond

// queriesPerTimer share one timer: short queries should not pay for one each.
const queriesPerTimer = 64

func (e *engine) runQueries(b *core.QueryBatch) {
	defer e.bg.done()
	for more := true; more; {
		e.bg.add() // for the helper
		helper := time.AfterFunc(longQuery, func() { e.runQueries(b) })
		for i := 0; i < queriesPerTimer && more; i++ {
			more = b.RunOne()
		}
		if helper.Stop() {
			e.bg.done()
		}
	}
}

func (w *worker) Flush(f *core.FlushDone) {
	w.e.bg.add()
	w.e.due.begin(f, w.e.mono())
	go w.e.runFlush(w, f)
}

func (e *engine) runFlush(w *worker, f *core.FlushDone) {
	defer e.bg.done()
	select {
	case e.flushes <- struct{}{}:
	case <-e.quit:
		e.due.end(f)
		return
	}
	f.Err = f.Job.Run()
	<-e.flushes
	e.due.end(f)
	if f.Err != nil && !state.IsDamage(f.Err) {
		e.fail(core.CodeStorage, f.Err, "the state of shard %d could not be flushed", f.Shard)
	}
	w.post(func(in *core.Input) { in.Flushed = append(in.Flushed, f) })
}

func (w *worker) Flushed(shard ShardID, index Index) {
	w.e.log.Flushed(uint64(shard), uint64(index))
	w.e.removePartials(shard, index)
}

func (w *worker) LastHeard(p NodeID) int64 { return w.heard[p] }

func (w *worker) Spent() int64 { return w.e.mono() - w.began }

func (w *worker) SendNote(to NodeID, n core.Note) {
	w.e.transport.Append(uint64(to), len(n.Data)+64, func(b []byte) []byte { return core.AppendNote(b, n) })
}

func (w *worker) Members(shard ShardID, c core.Configuration) { w.e.members(shard, c) }

func (w *worker) Address(n NodeID) string { return w.e.address(n) }

func (w *worker) Changed(shard ShardID, leader NodeID, term Term) { w.e.changed(shard, leader, term) }

func (w *worker) Stopped(shard ShardID, err *Error) { w.e.stopped(shard, err) }
