package proxy

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/rsm"
)

// Shard calls one shard through a proxy in this process, wherever its leader is: for servers that speak a protocol of their own to their
// clients. Its methods may be called from any goroutine.
//
// A call belongs to the span of its context, if that has one: see Config.Tracer.
//
// Calls end at their context's deadline at the latest, or after ten seconds without one. The error says whether it happened, as always.
type Shard struct {
	proxy *Proxy
	id    rsm.ShardID
}

// Shard returns the handle for a shard, whether there is one or not.
func (p *Proxy) Shard(id rsm.ShardID) *Shard { return &Shard{p, id} }

// shardPatience bounds a call whose context has no deadline.
const shardPatience = 10 * time.Second

// Do has a request decided. Without a session, an attempt whose outcome is unknown is not repeated.
func (s *Shard) Do(ctx context.Context, r rsm.Request) (rsm.Result, error) {
	// Copies: if ctx ends first, the caller has its memory back and the request goes on.
	commands := make([][]byte, len(r.Commands))
	for i, c := range r.Commands {
		commands[i] = bytes.Clone(c)
	}
	return s.call(ctx, &route.Call{Kind: route.Submit, Commands: commands, MakesRoom: r.MakesRoom,
		Session: r.Session, Sequence: r.Sequence, Acknowledged: r.Acknowledged})
}

// Read answers a query at the given level, rsm.AtToken excepted: see ReadAt.
func (s *Shard) Read(ctx context.Context, level rsm.Level, query []byte) ([]byte, error) {
	res, err := s.ReadAt(ctx, level, 0, query)
	return res.Answer, err
}

// ReadAt answers a query; at rsm.AtToken from a replica that has applied up to token.
func (s *Shard) ReadAt(ctx context.Context, level rsm.Level, token rsm.Index, query []byte) (rsm.Result, error) {
	return s.call(ctx, &route.Call{Kind: route.Read, Level: level, Token: token, Query: bytes.Clone(query)})
}

// OpenSession opens an exactly-once window on the shard.
func (s *Shard) OpenSession(ctx context.Context) (rsm.SessionID, error) {
	res, err := s.call(ctx, &route.Call{Kind: route.OpenSession})
	return res.Session, err
}

// CloseSession forgets a session and the outcomes it keeps. Closing what is closed is no error.
func (s *Shard) CloseSession(ctx context.Context, id rsm.SessionID) error {
	_, err := s.call(ctx, &route.Call{Kind: route.CloseSession, Session: id})
	return err
}

func (s *Shard) call(ctx context.Context, c *route.Call) (rsm.Result, error) {
	c.Shard, c.Trace = s.id, traced.Of(ctx)
	if s.proxy.tracer == nil {
		return s.run(ctx, c)
	}
	span := startSpan(s.proxy.tracer, ctx, c)
	res, err := s.run(ctx, c)
	if span != nil {
		traced.EndWithin(ctx, span, err)
	}
	return res, err
}

// run has a call answered, and sees to it that it is seen as one of a server's is: metrics that miss it keep quiet about its failure.
func (s *Shard) run(ctx context.Context, c *route.Call) (rsm.Result, error) {
	p := s.proxy
	began := monotonic()
	var res rsm.Result
	err := cmp.Or(route.Ended(ctx), wire.CheckCall(c))
	taken := err == nil
	if taken {
		res, err = s.ask(ctx, c)
	}
	took := time.Duration(monotonic() - began)
	p.meter.ended(c.Kind, c.Shard, took, err, taken)
	if err == nil && !debugs(p.log) {
		return res, nil
	}
	request := p.names.next()
	if debugs(p.log) {
		logCall(p.log, request, c, took, err)
	}
	if err != nil {
		err = named(err, request)
	}
	return res, err
}

func (s *Shard) ask(ctx context.Context, c *route.Call) (rsm.Result, error) {
	wait := shardPatience
	if d, has := ctx.Deadline(); has {
		wait = time.Until(d)
	}
	now := monotonic()
	c.Deadline = now + int64(min(wait, route.MaxPatience))
	done := make(chan struct{})
	c.Done = func(c *route.Call) {
		c.Result.Replies = slices.Clone(c.Result.Replies)
		close(done)
	}
	s.proxy.start(now, c)
	select {
	case <-done:
		return c.Result, c.Err
	case <-ctx.Done():
	}
	if ctx.Err() == context.DeadlineExceeded { // the router knows it too, and whether it may have happened
		select {
		case <-done:
			return c.Result, c.Err
		case <-time.After(grace):
		}
	}
	return rsm.Result{}, c.Abandoned("the caller stopped waiting", ctx.Err())
}
