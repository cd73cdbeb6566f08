package rsm

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/traced"
)

const tracerName = "github.com/decree-raft/decree/rsm"

// Traced makes calls of a Shard under the span of a context, where the call itself takes none. Nothing else of the context counts: neither
// its deadline nor its end. Without Config.Tracer it makes no difference.
type Traced struct {
	shard *Shard
	ctx   context.Context
}

// Traced returns the shard's calls under the span of ctx.
func (s *Shard) Traced(ctx context.Context) Traced { return Traced{s, ctx} }

// Go is Shard.Go.
func (t Traced) Go(r Request) *Call { return t.shard.start(t.ctx, commandCall(r)) }

// GoRead is Shard.GoRead.
func (t Traced) GoRead(level Level, token Index, query []byte) *Call {
	return t.shard.start(t.ctx, readCall(level, token, query))
}

// GoFunc is Shard.GoFunc.
func (t Traced) GoFunc(r Request, then func(Result, error)) error {
	return t.shard.startFunc(t.ctx, commandCall(r), then)
}

// GoReadFunc is Shard.GoReadFunc.
func (t Traced) GoReadFunc(level Level, token Index, query []byte, then func(Result, error)) error {
	return t.shard.startFunc(t.ctx, readCall(level, token, query), then)
}

// OpenSessionFunc is Shard.OpenSessionFunc.
func (t Traced) OpenSessionFunc(then func(Result, error)) error {
	return t.shard.startFunc(t.ctx, openCall(), then)
}

// CloseSessionFunc is Shard.CloseSessionFunc.
func (t Traced) CloseSessionFunc(id SessionID, then func(Result, error)) error {
	return t.shard.startFunc(t.ctx, closeCall(id), then)
}

// callTrace is the span of a call, and when its steps were made, of which spans below it are made when it has ended: the core knows nothing of spans, and
// a worker has no time for them.
type callTrace struct {
	tracer trace.Tracer
	ctx    context.Context // of span
	span   trace.Span
	kind   core.Kind
	at     [core.Steps]time.Time
	place  core.Place // the latest known
}

var callNames = [...]string{core.KindCommand: "submit", core.KindOpenSession: "open_session", core.KindCloseSession: "close_session", core.KindRead: "read", core.KindChange: "change_members"}

// trace starts the span of a call, if the node's calls are traced and the provider keeps this one.
func (s *Shard) trace(ctx context.Context, c *Call) {
	if t := s.node.tracer; t != nil {
		s.startSpan(t, ctx, c)
	}
}

func (s *Shard) startSpan(t trace.Tracer, ctx context.Context, c *Call) {
	q := &c.req
	attrs := []attribute.KeyValue{traced.Number("decree.shard", s.id), traced.Number("decree.node", s.node.cfg.Node)}
	if q.Kind == core.KindCommand {
		attrs = append(attrs, attribute.Int("decree.commands", len(q.Commands)))
	}
	if q.Kind == core.KindRead {
		attrs = append(attrs, attribute.String("decree.level", q.Level.String()))
	}
	if q.Session != 0 {
		attrs = append(attrs, traced.Number("decree.session", q.Session))
	}
	if q.Sequence != 0 {
		attrs = append(attrs, traced.Number("decree.sequence", q.Sequence))
	}
	kind := trace.SpanKindInternal
	if trace.SpanContextFromContext(ctx).IsRemote() {
		kind = trace.SpanKindServer
	}
	ctx, span := t.Start(ctx, "decree.node/"+callNames[q.Kind], trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	if !span.IsRecording() {
		return
	}
	c.trace = &callTrace{tracer: t, ctx: ctx, span: span, kind: q.Kind}
	q.Observer = c.trace
}

// Observe implements core.Observer.
func (t *callTrace) Observe(s core.Step, at core.Place) {
	t.at[s] = time.Now()
	if at.Term != 0 {
		t.place = at
	}
}

// end makes the spans of a call that ended at some time, and ends its own. It takes as long as the provider does.
func (t *callTrace) end(err error, done time.Time) {
	if t.kind == core.KindRead {
		t.stage("wait", t.at[core.StepTaken], t.at[core.StepReached], done, err)
		t.stage("query", t.at[core.StepQuerying], done, done, nil)
	} else {
		t.stage("decide", t.at[core.StepDeciding], t.at[core.StepDecided], done, err)
		proposed := t.at[core.StepProposed]
		if proposed.IsZero() && !t.at[core.StepCommitted].IsZero() { // it joined another attempt of the same command, whose entry was under way
			proposed = t.at[core.StepTaken]
		}
		t.stage("commit", proposed, t.at[core.StepCommitted], done, err)
		t.stage("apply", t.at[core.StepCommitted], done, done, nil)
		if t.kind == core.KindCommand && t.at[core.StepDeciding].IsZero() && !t.at[core.StepCommitted].IsZero() {
			t.span.SetAttributes(attribute.Bool("decree.decided_before", true))
		}
	}
	t.span.SetAttributes(t.where()...)
	traced.End(t.span, err, trace.WithTimestamp(done))
}

// stage makes the span of a stage that began at from, if it did, and ended at to, or, if it did not, with the call, for the reason why.
func (t *callTrace) stage(name string, from, to, done time.Time, why error) {
	if from.IsZero() {
		return
	}
	_, span := t.tracer.Start(t.ctx, "decree.node/"+name, trace.WithSpanKind(trace.SpanKindInternal), trace.WithTimestamp(from), trace.WithAttributes(t.where()...))
	if to.IsZero() {
		to = done
		if why != nil {
			span.SetStatus(codes.Error, why.Error())
		}
	}
	span.End(trace.WithTimestamp(to))
}

// where says which entry it is about: many calls may share it.
func (t *callTrace) where() []attribute.KeyValue {
	var attrs []attribute.KeyValue
	if t.place.Term != 0 {
		attrs = append(attrs, traced.Number("decree.term", t.place.Term), traced.Number("decree.index", t.place.Index))
	}
	if t.place.Requests != 0 {
		attrs = append(attrs, attribute.Int("decree.batch_size", t.place.Requests), attribute.Int("decree.entry_bytes", t.place.Bytes))
	}
	return attrs
}
