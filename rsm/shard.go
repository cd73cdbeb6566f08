package rsm

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/internal/traced"
)

// Level says what a read promises.
//
//	type Level uint8
//
//	func (l Level) String() string // linearizable, read-index, token, stale
type Level = core.Level

// The levels of a read.
const (
	// Linearizable sees everything that was acknowledged before it, and every command that this leader took before it. No clock is trusted: the read
	// rides the next entry with the commands that are there, or has a quorum confirm the leader where none is. Leader only. The default.
	Linearizable = core.Linearizable
	// ReadIndex is linearizable without a log write; any replica can be asked.
	ReadIndex = core.ReadIndex
	// AtToken answers from any replica that has applied Request.Token: read your
	// writes, and monotonic if each answer's index becomes the next token.
	AtToken = core.AtToken
	// Stale answers at once from what this replica has applied. Result.Age says how old that may be.
	Stale = core.Stale
)

// SessionID, a uint64, names a client's exactly-once window on one shard.
type SessionID = core.SessionID

// Result is what a call yields. It is the caller's, but for callbacks, see Shard.GoFunc.
//
//	type Result struct {
//		Replies [][]byte      // one per command
//		Answer  []byte        // of a read
//		Session SessionID     // that was opened
//		Index   Index         // the position of the outcome, or the one that a read saw: the token for a read at AtToken that must see it
//		Age     time.Duration // how old a Stale answer may be, as far as this replica knows; math.MaxInt64 if it knows nothing
//	}
type Result = core.Result

// ShardStatus is a replica at a glance.
//
//	type ShardStatus struct {
//		Shard        ShardID
//		Role         string // leader, follower, candidate, pre-candidate, stopped
//		Term         Term
//		Leader       NodeID // 0: unknown
//		Voters       []NodeID
//		Learners     []NodeID
//		Members      Configuration // not to be changed
//		Version      uint64        // of the machine, active
//		MaxVersion   uint64        // that this program can run
//		JournalBytes int64         // about; what followers or history need
//		JournalShort bool          // it has lost, for want of room (Config.JournalMaxBytes), what a member lacks, which needs a snapshot
//		Applied      Index
//		Commit       Index
//		Last         Index  // of the log, durable
//		Flushed      Index  // what the state store has on disk
//		Sequence     uint64 // decided entries so far
//		Time         Timestamp
//		Hash         uint64 // of all state changes up to Applied; equal on all replicas
//		Sessions     int
//		Inflight     int   // entries proposed and not applied
//		Queued       int   // calls pending
//		Memory       int64 // bytes: what is not flushed, log and sessions
//		Quiet        bool  // it rests, for want of work
//		Err          *Error // why it serves nobody: it stopped, or it was removed
//		Damage       *Error // met in its state by the store, and not read by anybody: it goes on, since the shard could not without it
//		Stats        Stats
//	}
type ShardStatus = core.Status

// Configuration is who takes part in a shard, as of a position of its log. Shard.Members has it in a form for people.
//
//	type Configuration struct {
//		Index                                    Index             // of the entry that made it; 0: as the shard was made
//		Voters, Outgoing, Learners, LearnersNext []NodeID          // ascending; Outgoing and LearnersNext while a replacement is under way
//		Addresses                                map[NodeID]string // as far as a change has named them
//		Removed                                  []NodeID          // were members, and never will be again
//	}
//
//	func (c *Configuration) Has(n NodeID) bool // n is a member
//	func (c *Configuration) Joint() bool       // it is one in between
//	func (c *Configuration) Members() []NodeID // all of them, ascending
type Configuration = core.Configuration

// Stats are what a replica has counted since its node's start.
//
//	type Stats struct {
//		Entries            uint64 // applied
//		Commands           uint64 // decided here and committed
//		Rejections         uint64 // of those
//		LogReads           uint64 // answered by riding the log
//		OtherReads         uint64 // answered without that
//		Duplicates         uint64 // retries answered from a session
//		Voids              uint64 // entries that failed the check of term and sequence
//		Rollbacks          uint64 // times that speculative state was thrown away
//		MachinePanics      uint64 // contained in Decide, Query or the leader's Apply
//		Refused            uint64 // calls turned away by a limit
//		Flushes            uint64
//		Strange            uint64 // messages from peers that were not acceptable
//		Stranded           uint64 // times that a voter asked for what every voter had had: it has lost part of its log
//		JournalShort       uint64 // flushes that dropped entries which a member may lack, for want of room
//		Overtaken          uint64 // times that a snapshot had arrived at a member and the journal did not continue it any more
//		SnapshotsFetched   uint64 // begun
//		SnapshotsInstalled uint64
//	}
type Stats = core.Stats

// Request is a call in full; Shard.Submit and Shard.Read are the usual ones.
type Request struct {
	// Commands are decided together, each on the effects of the one before: all or nothing.
	Commands [][]byte
	// MakesRoom marks commands that free space, or finish what was begun: they are taken even when the disk is low, and by proxies
	// when others are refused as too many. Nobody checks that it is so.
	MakesRoom bool
	// Session, if not 0, makes the commands exactly-once under Sequence, which
	// counts from 1. Acknowledged says that the client has the outcomes up to it. A Client has numbers of its own, and takes none.
	Session                SessionID
	Sequence, Acknowledged uint64
}

// Shard is a node's replica of one shard. All its methods may be called at any time from any goroutine.
type Shard struct {
	node    *Node
	id      ShardID
	w       *worker
	state   *state.Shard          // the worker's; here to be closed
	reign   atomic.Pointer[reign] // nil: nobody has been heard of
	stopped atomic.Pointer[core.Error]
	repairs atomic.Int64 // that the node has begun by itself
}

// ID returns the shard's id.
func (s *Shard) ID() ShardID { return s.id }

// reign is who leads, or 0, and in which term.
type reign struct {
	leader NodeID
	term   Term
}

// Leader returns who this replica believes leads, or 0. A hint, no promise.
func (s *Shard) Leader() NodeID {
	if r := s.reign.Load(); r != nil {
		return r.leader
	}
	return 0
}

// ShardTopology is who leads a shard, 0 if nobody is known to, in which term, and who its members are.
type ShardTopology struct {
	Leader  NodeID
	Term    Term
	Members []NodeID
}

// Topology returns what this replica knows of that, which is a hint like Leader. It waits for nobody: a worker may be in a pass that does not return, while
// others lead. serves is false if the replica is out of service, or was removed.
func (s *Shard) Topology() (t ShardTopology, serves bool) {
	if r := s.reign.Load(); r != nil {
		t.Leader, t.Term = r.leader, r.term
	}
	c, self := s.node.topology.of(s.id), s.node.cfg.Node
	t.Members = c.Members()
	removed := len(c.Voters) > 0 && !c.Has(self) && t.Leader != self
	return t, s.stopped.Load() == nil && !removed
}

// A Call is a request under way.
type Call struct {
	req   core.Request
	done  chan struct{} // gets one token
	num   uint32        // of the calls that were made: which channel of a notice it waits on
	node  *Node
	copy  []byte // of the command or the query of who waits, for use again
	then  func(Result, error)
	trace *callTrace  // nil: nobody looks
	ended atomic.Bool // there is an outcome; who waits may not have been told
}

// keepCopy is the size above which the copy of a command or a query is not kept for the next.
const keepCopy = 16 << 10

var (
	calls     sync.Pool
	callsMade atomic.Uint32
)

// start hands c in. A call that was not taken is done at once, with the error.
func (s *Shard) start(ctx context.Context, c *Call) *Call {
	c.node = s.node
	c.req.Shard = s.id
	s.trace(ctx, c)
	if err := s.w.submit(&c.req); err != nil {
		c.req.Err = err
		c.finish()
	}
	return c
}

// newCall reuses a call whose outcome was taken, but not its answer: that is the caller's.
func newCall() *Call {
	if c, ok := calls.Get().(*Call); ok {
		return c
	}
	c := &Call{done: make(chan struct{}, 1), num: callsMade.Add(1)}
	c.req.Done = func(*core.Request) { c.finish() }
	return c
}

func (c *Call) finish() {
	c.ended.Store(true)
	if c.trace != nil {
		c.finishTraced()
		return
	}
	c.tell()
}

// finishTraced ends the call's spans on another goroutine, as this one must not wait for an exporter. Who waits for the call is told after that, and finds them ended;
// a callback is not put off, as it is to be on this one.
func (c *Call) finishTraced() {
	t, err, done := c.trace, c.req.Err, time.Now()
	c.trace = nil
	if c.then != nil {
		traced.Soon(func() { t.end(err, done) })
		c.tell()
		return
	}
	go func() {
		t.end(err, done)
		c.tell()
	}()
}

func (c *Call) tell() {
	if c.then == nil {
		c.done <- struct{}{}
		return
	}
	c.then(c.req.Result, c.req.Err)
	c.release()
}

func (c *Call) release() {
	if cap(c.copy) > keepCopy || c.req.Err != nil { // a rejection may have kept something of it
		c.copy = nil
	}
	done := c.req.Done
	c.req = core.Request{Done: done}
	c.node, c.then, c.trace = nil, nil, nil
	c.ended.Store(false)
	calls.Put(c)
}

// Wait returns the outcome. It must be called once. If ctx ends first the wait
// ends, with ErrUnknown, and not the command.
func (c *Call) Wait(ctx context.Context) (Result, error) {
	if err := c.wait(ctx); err != nil {
		return Result{}, err
	}
	res, err := c.req.Result, c.req.Err
	res.Replies = slices.Clone(res.Replies) // theirs is the request's own memory
	c.release()
	return res, err
}

func (c *Call) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return nil
	default:
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return c.abandoned(core.CodeCancelled, "the caller stopped waiting", ctx.Err())
	case <-c.node.engine.dead[c.num%uint32(len(notice{}))]:
	}
	if !c.ended.Load() {
		return c.abandoned(core.CodeClosed, "the node stopped before there was an answer", nil)
	}
	select { // there is an answer, which its spans may hold up
	case <-c.done:
		return nil
	case <-ctx.Done():
		return c.abandoned(core.CodeCancelled, "the caller stopped waiting", ctx.Err())
	}
}

// abandoned is the error of a call that may go on, but is not waited for.
func (c *Call) abandoned(code Code, message string, cause error) error {
	kind := ErrUnknown
	if c.req.Kind == core.KindRead {
		kind = ErrNotProposed
	}
	return &Error{Kind: kind, Code: code, Message: message, Cause: cause}
}

func commandCall(r Request) *Call {
	c := newCall()
	c.req.Commands, c.req.MakesRoom = r.Commands, r.MakesRoom
	c.req.Session, c.req.Sequence, c.req.Acknowledged = r.Session, r.Sequence, r.Acknowledged
	return c
}

func readCall(level Level, token Index, query []byte) *Call {
	c := newCall()
	c.req.Kind, c.req.Level, c.req.Token, c.req.Query = core.KindRead, level, token, query
	return c
}

func openCall() *Call {
	c := newCall()
	c.req.Kind = core.KindOpenSession
	return c
}

func closeCall(id SessionID) *Call {
	c := newCall()
	c.req.Kind, c.req.Session = core.KindCloseSession, id
	return c
}

// Go starts a request and does not wait: for callers that keep many in flight.
// The outcome is the Call's. Commands must not be changed until it is there. Shard.Traced has it under a span.
func (s *Shard) Go(r Request) *Call { return s.start(context.Background(), commandCall(r)) }

// GoFunc is Go for callers without a goroutine for each call: then gets the outcome, once. It is called on the goroutine that drives the shard, must
// not block, and may use the replies only until it returns. Of a node that stops while its disk, or a machine, does not return, it hears when that does. An error says that the call was not taken: then is not called.
func (s *Shard) GoFunc(r Request, then func(Result, error)) error {
	return s.startFunc(context.Background(), commandCall(r), then)
}

// GoReadFunc is GoRead with a callback: see GoFunc.
func (s *Shard) GoReadFunc(level Level, token Index, query []byte, then func(Result, error)) error {
	return s.startFunc(context.Background(), readCall(level, token, query), then)
}

// OpenSessionFunc is OpenSession with a callback: see GoFunc. The session is the result's.
func (s *Shard) OpenSessionFunc(then func(Result, error)) error {
	return s.startFunc(context.Background(), openCall(), then)
}

// CloseSessionFunc is CloseSession with a callback: see GoFunc.
func (s *Shard) CloseSessionFunc(id SessionID, then func(Result, error)) error {
	return s.startFunc(context.Background(), closeCall(id), then)
}

func (s *Shard) startFunc(ctx context.Context, c *Call, then func(Result, error)) error {
	c.node, c.req.Shard, c.then = s.node, s.id, then
	s.trace(ctx, c)
	err := s.w.submit(&c.req)
	if err != nil {
		if t := c.trace; t != nil {
			now := time.Now()
			traced.Soon(func() { t.end(err, now) })
		}
		c.release()
	}
	return err
}

// Do has a request decided and waits until its outcome is committed and applied
// here. Only the leader can; others answer ErrNotProposed with a hint.
//
// The error says whether it happened, see ErrRejected, ErrNotProposed, ErrUnknown and
// ErrBroken. Without a session an unknown outcome stays unknown: use a Client, or keep a session, for exactly-once.
func (s *Shard) Do(ctx context.Context, r Request) (Result, error) {
	// Copies: if ctx ends first, the caller has its memory back and the command goes on.
	commands := make([][]byte, len(r.Commands))
	for i, c := range r.Commands {
		commands[i] = bytes.Clone(c)
	}
	r.Commands = commands
	return s.start(ctx, commandCall(r)).Wait(ctx)
}

// Submit is Do with one command and no session.
func (s *Shard) Submit(ctx context.Context, command []byte) (reply []byte, err error) {
	c := newCall()
	c.copy = append(c.copy[:0], command...) // a copy: if ctx ends first, the caller has its memory back
	c.req.Commands = append(c.req.CommandSpace(), c.copy)
	if err := s.start(ctx, c).wait(ctx); err != nil {
		return nil, err
	}
	if err = c.req.Err; err == nil {
		reply = c.req.Result.Replies[0]
	}
	c.release()
	return reply, err
}

// Read answers a query at the given level, AtToken excepted: see ReadAt.
func (s *Shard) Read(ctx context.Context, level Level, query []byte) (answer []byte, err error) {
	res, err := s.ReadAt(ctx, level, 0, query)
	return res.Answer, err
}

// ReadAt answers a query at the given level. For AtToken the replica first applies
// up to token, the Index of an earlier result.
func (s *Shard) ReadAt(ctx context.Context, level Level, token Index, query []byte) (Result, error) {
	c := readCall(level, token, nil)
	c.copy = append(c.copy[:0], query...) // see Submit
	c.req.Query = c.copy
	return s.start(ctx, c).Wait(ctx)
}

// GoRead starts a read and does not wait. The query must not be changed until the answer is there.
func (s *Shard) GoRead(level Level, token Index, query []byte) *Call {
	return s.start(context.Background(), readCall(level, token, query))
}

// OpenSession opens an exactly-once window on the shard. Leader only.
func (s *Shard) OpenSession(ctx context.Context) (SessionID, error) {
	res, err := s.start(ctx, openCall()).Wait(ctx)
	return res.Session, err
}

// CloseSession forgets a session and the outcomes it keeps. Closing what is closed is no error.
func (s *Shard) CloseSession(ctx context.Context, id SessionID) error {
	_, err := s.start(ctx, closeCall(id)).Wait(ctx)
	return err
}

// Status returns the replica's status between two passes of the engine.
func (s *Shard) Status() (ShardStatus, error) { return s.StatusContext(context.Background()) }

// StatusContext is Status for who does not wait for ever, as a pass may not return.
func (s *Shard) StatusContext(ctx context.Context) (ShardStatus, error) {
	var st ShardStatus
	if err := s.node.engine.look(ctx, s.id, func(w *core.Worker) { st, _ = w.Status(s.id) }); err != nil {
		return ShardStatus{}, err // the worker may be writing to st
	}
	return st, nil
}

// Audit runs f on the state at the replica's applied index, and returns that index and the state's
// hash: two replicas with the same index must have the same hash. f may run long, and a node that closes waits for it as for a query; it must not keep the view.
func (s *Shard) Audit(f func(View) error) (at Index, hash uint64, err error) {
	var view struct {
		*state.Version
		at   Index
		hash uint64
		ok   bool
	}
	bg := &s.node.engine.bg
	release := func() {
		if view.ok {
			view.Close()
			bg.done()
		}
	}
	if err := s.node.engine.lookOr(context.Background(), s.id, func(w *core.Worker) {
		if view.Version, view.at, view.hash, view.ok = w.Version(s.id); view.ok {
			bg.add() // on the worker's goroutine, for which the engine waits first
		}
	}, release); err != nil {
		return 0, 0, err
	}
	if !view.ok {
		if e := s.stopped.Load(); e != nil {
			return 0, 0, e
		}
		return 0, 0, errClosed
	}
	defer release()
	return view.at, view.hash, f(view.Version)
}

// WaitReady returns when somebody leads the shard as far as this replica knows. If ctx ends first, the error is an *Error with CodeNoLeader over ctx's.
func (s *Shard) WaitReady(ctx context.Context) error {
	for s.Leader() == 0 {
		select {
		case <-ctx.Done():
			return &Error{Kind: ErrNotProposed, Code: core.CodeNoLeader, Message: "no leader was elected in time", Cause: ctx.Err()}
		case <-s.node.done:
			return errClosed
		case <-time.After(s.node.cfg.tick() / 4):
		}
	}
	return nil
}

// TransferLeadership hands leadership to another voter, and returns when this replica does not lead any more. Calls that come meanwhile wait. Leader only.
//
// ErrNotProposed: this replica goes on leading, or did not lead, or to is no other voter; with CodeTransfer it has not got to handing over within two
// election timeouts, as its disk is slow. ErrUnknown: the transfer has begun, and ctx ended (CodeCancelled) or the node stopped (CodeClosed) before it was over, or the other
// replica has not taken over in that time (CodeTransfer): it was told to, and still may.
func (s *Shard) TransferLeadership(ctx context.Context, to NodeID) error {
	var err error
	if e := s.node.engine.call(ctx, s.id, func(w *core.Worker) { err = w.Transfer(s.id, to) }); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	deadline := time.Now().Add(2 * s.node.cfg.ElectionTimeout)
	for s.Leader() == s.node.cfg.Node {
		if time.Now().After(deadline) {
			return s.cancelTransfer(ctx, to)
		}
		select {
		case <-ctx.Done():
			return &Error{Kind: ErrUnknown, Code: core.CodeCancelled, Message: "the transfer has begun, and may succeed; the caller stopped waiting", Cause: ctx.Err()}
		case <-s.node.done:
			return &Error{Kind: ErrUnknown, Code: core.CodeClosed, Message: "the transfer had begun when this node stopped"}
		case <-time.After(s.node.cfg.tick() / 8):
		}
	}
	return nil
}

// cancelTransfer ends a transfer that takes too long, and returns what became of it.
func (s *Shard) cancelTransfer(ctx context.Context, to NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.ElectionTimeout) // its worker may hang
	defer cancel()
	var taken bool
	err := s.node.engine.call(ctx, s.id, func(w *core.Worker) { taken = w.CancelTransfer(s.id, to) })
	switch e, _ := core.Verdict(err); {
	case e != nil:
		return &Error{Kind: ErrUnknown, Code: e.Code, Message: "the transfer has begun, and may succeed", Cause: err}
	case taken:
		return &Error{Kind: ErrNotProposed, Code: core.CodeTransfer, Message: "this replica did not get to handing over in time, and goes on leading"}
	case s.Leader() != s.node.cfg.Node:
		return nil
	}
	return &Error{Kind: ErrUnknown, Code: core.CodeTransfer, Message: "the other replica did not take over in time; it was told to, and still may"}
}

// handOver starts a transfer to the voter that was heard last. others: there may be somebody to hand leadership to, as far as the shard's worker says, and one that
// does not say may have. begun: a transfer may have begun.
func (s *Shard) handOver(ctx context.Context) (others, begun bool) {
	var best NodeID
	var latest int64
	st, err := s.StatusContext(ctx)
	if err != nil {
		return true, false
	}
	if len(st.Voters) <= 1 {
		return false, false
	}
	for _, v := range st.Voters {
		if p := s.node.engine.peers.get(v); v != s.node.cfg.Node && p != nil && p.heard.Load() >= latest {
			best, latest = v, p.heard.Load()
		}
	}
	if best == 0 {
		return true, false
	}
	if e := s.node.engine.call(ctx, s.id, func(w *core.Worker) { err = w.Transfer(s.id, best) }); e != nil {
		return true, errors.Is(e, ErrUnknown)
	}
	return true, err == nil
}
