// Package traced is what clients, proxies and nodes have in common about spans: how the one that a call belongs to is found in a context and put into one, and
// how a call's span ends. It knows OpenTelemetry's API, and nothing of its SDK.
package traced

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
)

// known are the flags that have a meaning: others must not be passed on.
const known = trace.FlagsSampled | trace.FlagsRandom

// Of returns the span of ctx as it travels, nil if there is none. For a context without a span that is one look and no allocation.
func Of(ctx context.Context) *route.Trace {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return nil
	}
	return &route.Trace{TraceID: sc.TraceID(), SpanID: sc.SpanID(), Flags: byte(sc.TraceFlags() & known)}
}

// Under returns ctx within the span that another process has named; ctx itself if it has named none.
func Under(ctx context.Context, t *route.Trace) context.Context {
	if t == nil {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: t.TraceID, SpanID: t.SpanID, TraceFlags: trace.TraceFlags(t.Flags) & known, Remote: true}))
}

// Outcomes of a call.
const (
	OK          = "ok"
	Rejected    = "rejected"
	NotProposed = "not_proposed"
	Unknown     = "unknown"
	Broken      = "broken"
)

// Outcome returns which of them an error stands for, with the code of the error, empty if it has none.
func Outcome(err error) (string, core.Code) {
	if err == nil {
		return OK, ""
	}
	switch e, no := core.Verdict(err); { // what lies below it says why, and not what became of the call
	case no != nil:
		return Rejected, no.Code
	case e == nil:
		return Unknown, ""
	case e.Kind == core.ErrNotProposed:
		return NotProposed, e.Code
	case e.Kind == core.ErrBroken:
		return Broken, e.Code
	default:
		return Unknown, e.Code
	}
}

// End ends the span of a call with its outcome. A rejection is an answer like another.
func End(span trace.Span, err error, options ...trace.SpanEndOption) {
	outcome, code := Outcome(err)
	span.SetAttributes(attribute.String("decree.outcome", outcome))
	if code != "" {
		span.SetAttributes(attribute.String("decree.code", string(code)))
	}
	if err != nil && outcome != Rejected {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End(options...)
}

// ending bounds the goroutines that end spans.
var ending = make(chan struct{}, 1024)

// Soon ends spans for who must not be held up: an exporter may be slow. If it is very slow, spans are lost: Soon reports whether end will be called.
func Soon(end func()) bool {
	select {
	case ending <- struct{}{}:
	default:
		return false
	}
	go func() {
		defer func() { <-ending }()
		end()
	}()
	return true
}

// Patience is how long the outcome of a call is kept back until its span has ended, so that who waits for the one finds the other.
const Patience = 100 * time.Millisecond

// EndWithin is End, of now. It does not wait for a slow exporter any longer than Patience, and not when ctx, that of the call, has ended.
func EndWithin(ctx context.Context, span trace.Span, err error) {
	now, ended := time.Now(), make(chan struct{})
	if !Soon(func() { End(span, err, trace.WithTimestamp(now)); close(ended) }) {
		return
	}
	t := time.NewTimer(Patience)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
	case <-ctx.Done():
	}
}

// EndSoon is End, of now, for who must not be held up.
func EndSoon(span trace.Span, err error) {
	now := time.Now()
	Soon(func() { End(span, err, trace.WithTimestamp(now)) })
}

// Watch returns what makes a router's steps with a call events of a span.
func Watch(span trace.Span) func(step string, to route.Target, err error) {
	return func(step string, to route.Target, err error) {
		var attrs []attribute.KeyValue
		if a, has := to.(interface{ Address() string }); has {
			attrs = append(attrs, attribute.String("decree.address", a.Address()))
		}
		if err != nil {
			attrs = append(attrs, attribute.String("decree.reason", err.Error()))
		}
		span.AddEvent(step, trace.WithAttributes(attrs...))
	}
}

// Number is an attribute of what is counted from 1, and so never reaches what does not fit.
func Number[N ~uint64](key string, n N) attribute.KeyValue {
	return attribute.Int64(key, int64(n))
}
