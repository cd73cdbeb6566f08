package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/session"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/rsm"
)

// Shard calls one shard within one session, which is opened when it is needed. Its methods may be called from any goroutine.
//
// The error of a call says whether it happened: errors.Is with rsm.ErrRejected, rsm.ErrNotProposed, rsm.ErrUnknown or rsm.ErrBroken.
type Shard struct {
	client *Client
	id     rsm.ShardID
	stay   atomic.Pointer[stay] // replaced under client.mu
}

// stay is what a Shard has in one cluster. When another is reached the Shard has another: what belongs to the former, wherever it is held up, gets there never.
type stay struct {
	shard  *Shard
	router *route.Router // closed when the stay is over
	window session.Window
	token  atomic.Uint64
}

// over reports whether another cluster is reached by now.
func (st *stay) over() bool { return st.shard.stay.Load() != st }

// Pending is a request under way.
type Pending struct {
	shard    *Shard
	ctx      context.Context
	span     trace.Span // nil: there is none, or nobody looks
	stay     *stay      // to which number belongs
	number   session.Number
	first    route.Call
	call     *route.Call
	done     done
	deadline int64
	low      error // the refusal for which it was put off, and has no number now
	replies  [][]byte
	index    rsm.Index
	err      error
}

// Submit has a command decided, exactly once, and returns its reply. It waits until ctx ends, or for Options.Patience if ctx has no deadline: through changes of
// leader and of proxies, and while commands are refused because a disk is low (the code disk_low) or there are too many (overloaded), as long as these say.
// It does not wait for what would be refused again, such as a command that is too large.
//
// When the time is over, or 20 ms before that if nobody is being asked then, the error has the code of the last refusal, and its RetryAfter. It is rsm.ErrUnknown only if some attempt may have
// happened, and else rsm.ErrNotProposed.
func (s *Shard) Submit(ctx context.Context, command []byte) ([]byte, error) {
	replies, err := s.SubmitAll(ctx, command)
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}

// SubmitAll has commands decided together: all or nothing, exactly once. See Submit.
func (s *Shard) SubmitAll(ctx context.Context, commands ...[]byte) ([][]byte, error) {
	res, err := s.Do(ctx, rsm.Request{Commands: commands})
	return res.Replies, err
}

// Do has a request decided, exactly once: SubmitAll for commands that make room (rsm.Request.MakesRoom), or for who wants to know the Index.
// The session and the number are the handle's. See Submit.
func (s *Shard) Do(ctx context.Context, r rsm.Request) (rsm.Result, error) {
	// Copies: if ctx ends first, the caller has its memory back and the request goes on.
	own := make([][]byte, len(r.Commands))
	for i, c := range r.Commands {
		own[i] = bytes.Clone(c)
	}
	r.Commands = own
	p := s.Go(ctx, r)
	replies, err := p.Wait(ctx)
	if err != nil {
		return rsm.Result{}, err
	}
	return rsm.Result{Replies: replies, Index: p.index}, nil
}

// Go starts a request and does not wait for its outcome, but until there is room for it in the session: 4096 may be under way, 256 of
// them only if they make room (rsm.Request.MakesRoom). It ends
// at ctx's deadline at the latest, or after Options.Patience if there is none. The commands must not be changed until the outcome is there.
// The session and the number are the handle's.
func (s *Shard) Go(ctx context.Context, r rsm.Request) *Pending {
	now := monotonic()
	p := &Pending{shard: s, ctx: ctx, deadline: s.deadline(ctx, now)}
	p.call = &p.first
	p.first = route.Call{Kind: route.Submit, Shard: s.id, Commands: r.Commands, MakesRoom: r.MakesRoom, Deadline: p.deadline, Notice: route.NoticeOf(p.deadline - now), Done: finish, Mark: mark, Owner: p}
	p.ctx, p.span = s.trace(ctx, p.call)
	if r.Session != 0 || r.Sequence != 0 || r.Acknowledged != 0 {
		p.end(session.ErrNumbered)
		return p
	}
	if err := cmp.Or(route.Ended(ctx), wire.CheckCall(p.call)); err != nil {
		p.end(err)
		return p
	}
	p.begin(now)
	return p
}

func (s *Shard) deadline(ctx context.Context, now int64) int64 {
	wait := s.client.options.Patience
	if d, has := ctx.Deadline(); has {
		wait = time.Until(d)
	}
	return now + int64(min(wait, route.MaxPatience))
}

// begin sends the request under a new number.
func (p *Pending) begin(now int64) {
	st := p.shard.stay.Load()
	claim := session.Claim{MakesRoom: p.call.MakesRoom, Back: p.low != nil && p.stay == st}
	if p.low != nil && !claim.Back {
		p.stay.window.Leave() // it goes to another cluster
	}
	n, ok := st.window.TryBegin(claim)
	if !ok {
		ctx := p.ctx
		if _, has := ctx.Deadline(); !has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(p.deadline-now))
			defer cancel()
		}
		var err error
		n, err = st.window.Begin(ctx, claim)
		for err != nil && st.over() && ctx.Err() == nil {
			if claim.Back {
				st.window.Leave()
			}
			st, claim.Back = p.shard.stay.Load(), false
			n, err = st.window.Begin(ctx, claim)
		}
		if err != nil {
			if claim.Back {
				st.window.Leave()
			}
			if p.low != nil && ctx.Err() != nil {
				err = core.Late(false, p.low, ctx.Err())
			}
			p.end(err)
			return
		}
		now = monotonic()
	}
	p.stay, p.number, p.low = st, n, nil
	if p.span != nil {
		p.span.SetAttributes(traced.Number("decree.session", n.Session), traced.Number("decree.sequence", n.Sequence))
	}
	p.call.Session, p.call.Sequence = n.Session, n.Sequence
	st.router.Submit(now, p.call)
}

// finish gets the outcome of a call of a Pending. The router calls it, and must not be called.
func finish(c *route.Call) { c.Owner.(*Pending).finish(c) }

// mark is what each attempt acknowledges: outcomes that have come meanwhile make room in the session.
func mark(c *route.Call) uint64 {
	p := c.Owner.(*Pending)
	return p.stay.window.Acknowledged(p.number)
}

func (p *Pending) finish(c *route.Call) {
	err := c.Err
	wait, refused := later(err, p.deadline)
	switch {
	case err == nil:
		p.replies, p.index = c.Result.Replies, c.Result.Index
		p.stay.saw(p.index)
	case errors.Is(err, errSessionExpired):
		// It certainly did not happen: a router that was in doubt says so. Once more, in a new session, and where the stay is over, in the next.
		p.stay.window.Forget(p.number.Session)
		p.call = c.Again()
		go p.begin(monotonic())
		return
	case refused && session.PutsOff(err): // no attempt is in doubt: the router would not say so
		p.stay.window.PutOff(p.number)
		p.call, p.low = c.Again(), err
		time.AfterFunc(wait, func() { p.begin(monotonic()) })
		return
	case refused:
		p.call = c.Again()
		time.AfterFunc(wait, func() { p.stay.router.Submit(monotonic(), p.call) })
		return
	}
	p.stay.window.Finish(p.number)
	p.end(err)
}

var errSessionExpired = &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeSessionExpired}

func (p *Pending) end(err error) {
	p.err = err
	end(p.span, err, &p.done, p.deadline)
}

// end closes d, after the call's span has ended: not here, where nothing may block, as an exporter may. One that takes long holds up nobody for long, and
// none beyond its deadline.
func end(span trace.Span, err error, d *done, deadline int64) {
	if span == nil {
		d.close()
		return
	}
	now := time.Now()
	t := time.AfterFunc(min(traced.Patience, time.Duration(deadline-monotonic())), d.close)
	if !traced.Soon(func() {
		traced.End(span, err, trace.WithTimestamp(now))
		t.Stop()
		d.close()
	}) { // the span is lost
		d.close()
	}
}

// trace starts the span of a call, if calls are traced, and notes which one the call belongs to. The span is nil if nothing of it is kept.
func (s *Shard) trace(ctx context.Context, c *route.Call) (context.Context, trace.Span) {
	var span trace.Span
	if t := s.client.tracer; t != nil {
		ctx, span = t.Start(ctx, "decree.client/"+c.Kind.String(), trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(traced.Number("decree.shard", c.Shard), attribute.Int("decree.commands", len(c.Commands))))
		if span.IsRecording() {
			c.Watch = traced.Watch(span)
		} else {
			span = nil
		}
	}
	c.Trace = traced.Of(ctx)
	return ctx, span
}

// Done is closed when the outcome is there.
func (p *Pending) Done() <-chan struct{} { return p.done.channel() }

// Wait returns the outcome: a reply for each command. If ctx ends first the wait ends, with rsm.ErrUnknown, and not the request.
func (p *Pending) Wait(ctx context.Context) ([][]byte, error) {
	if p.done.wait(ctx, p.deadline) {
		return p.replies, p.err
	}
	return nil, &rsm.Error{Kind: rsm.ErrUnknown, Code: core.CodeCancelled, Message: "the caller stopped waiting", Cause: ctx.Err()}
}

// Index returns the log index of the outcome, 0 if there is none: a read at this token sees it. It is to be called after Done.
func (p *Pending) Index() rsm.Index { return p.index }

// Read answers a query. At rsm.AtToken it sees everything that this handle has been told.
func (s *Shard) Read(ctx context.Context, level rsm.Level, query []byte) ([]byte, error) {
	res, err := s.ask(ctx, route.Call{Kind: route.Read, Level: level, Query: bytes.Clone(query)}, true).Wait(ctx)
	return res.Answer, err
}

// ReadAt answers a query; at rsm.AtToken from a replica that has applied up to token.
func (s *Shard) ReadAt(ctx context.Context, level rsm.Level, token rsm.Index, query []byte) (rsm.Result, error) {
	// A copy: if ctx ends first, the caller has its memory back and the query goes on.
	return s.ask(ctx, route.Call{Kind: route.Read, Level: level, Token: token, Query: bytes.Clone(query)}, false).Wait(ctx)
}

// GoRead starts a read and does not wait for its answer. The query must not be changed until that is there.
func (s *Shard) GoRead(ctx context.Context, level rsm.Level, query []byte) *PendingRead {
	return s.ask(ctx, route.Call{Kind: route.Read, Level: level, Query: query}, true)
}

// Token returns the latest index that this handle was told: give it to another handle, and its reads at rsm.AtToken see at least that.
func (s *Shard) Token() rsm.Index { return rsm.Index(s.stay.Load().token.Load()) }

// SetToken has later reads at rsm.AtToken see at least what is applied at an index.
func (s *Shard) SetToken(at rsm.Index) { s.stay.Load().saw(at) }

func (st *stay) saw(index rsm.Index) {
	for {
		old := st.token.Load()
		if uint64(index) <= old || st.token.CompareAndSwap(old, uint64(index)) {
			return
		}
	}
}

// Close gives the session back; without it, it expires. The handle can be used again, with a new session.
func (s *Shard) Close(ctx context.Context) error {
	st := s.stay.Load()
	id := st.window.Take()
	if id == 0 {
		return nil
	}
	_, err := st.call(ctx, route.Call{Kind: route.CloseSession, Session: id})
	if err != nil && st.over() {
		return nil // the cluster that is reached now does not know it, and in the other it expires
	}
	return err
}

func (st *stay) open(ctx context.Context) (rsm.SessionID, error) {
	res, err := st.call(ctx, route.Call{Kind: route.OpenSession})
	return res.Session, err
}

// call runs a call that may be asked twice, in this stay only.
func (st *stay) call(ctx context.Context, c route.Call) (rsm.Result, error) {
	return st.ask(ctx, c, false).Wait(ctx)
}

// PendingRead is a read under way.
type PendingRead struct {
	stay *stay
	own  bool // the token is the handle's
	call route.Call
	span trace.Span // nil: there is none, or nobody looks
	done done
	res  rsm.Result
	err  error
}

// ask begins a call. Own: its token is what the handle has been told.
func (s *Shard) ask(ctx context.Context, c route.Call, own bool) *PendingRead {
	return s.stay.Load().ask(ctx, c, own)
}

func (st *stay) ask(ctx context.Context, c route.Call, own bool) *PendingRead {
	s, now := st.shard, monotonic()
	p := &PendingRead{stay: st, own: own, call: c}
	if own {
		p.call.Token = rsm.Index(st.token.Load())
	}
	p.call.Shard, p.call.Deadline, p.call.Done, p.call.Owner = s.id, s.deadline(ctx, now), finishRead, p
	p.call.Notice = route.NoticeOf(p.call.Deadline - now)
	_, p.span = s.trace(ctx, &p.call)
	if err := cmp.Or(route.Ended(ctx), wire.CheckCall(&p.call)); err != nil {
		p.err = err
		end(p.span, err, &p.done, p.call.Deadline)
		return p
	}
	st.router.Submit(now, &p.call)
	return p
}

// finishRead gets the outcome of a call of a PendingRead. The router calls it, and must not be called.
func finishRead(c *route.Call) { c.Owner.(*PendingRead).finish(c) }

// finish asks again if the call was refused for a while, and if it is a read and another cluster is to be asked.
func (p *PendingRead) finish(c *route.Call) {
	if wait, ok := later(c.Err, c.Deadline); ok {
		again := c.Again()
		time.AfterFunc(wait, func() { p.stay.router.Submit(monotonic(), again) })
		return
	}
	if c.Err != nil && c.Kind == route.Read && p.stay.over() {
		again := c.Again()
		p.stay = p.stay.shard.stay.Load()
		if p.own {
			again.Token = rsm.Index(p.stay.token.Load())
		}
		go p.stay.router.Submit(monotonic(), again)
		return
	}
	p.res, p.err = c.Result, c.Err
	if p.err == nil {
		p.stay.saw(p.res.Index)
	}
	end(p.span, p.err, &p.done, c.Deadline)
}

// later reports whether what was refused is to be asked for again before its deadline, and when.
func later(err error, deadline int64) (time.Duration, bool) {
	e, _ := core.Verdict(err)
	if e == nil {
		return 0, false
	}
	refused := e.Kind == rsm.ErrNotProposed && e.RetryAfter > 0 && e.Code.Busy()
	return e.RetryAfter, refused && monotonic()+int64(e.RetryAfter) < deadline
}

// Done is closed when the answer is there.
func (p *PendingRead) Done() <-chan struct{} { return p.done.channel() }

// Wait returns the answer, or an error when ctx ends.
func (p *PendingRead) Wait(ctx context.Context) (rsm.Result, error) {
	if p.done.wait(ctx, p.call.Deadline) {
		return p.res, p.err
	}
	return rsm.Result{}, p.call.Abandoned("the caller stopped waiting", ctx.Err())
}
