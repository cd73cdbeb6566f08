package proxy

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/decree-raft/decree/internal/route"
)

// traceParentKey is the metadata of W3C's trace context.
const traceParentKey = "traceparent"

const tracerName = "github.com/decree-raft/decree/proxy"

// parentOf returns ctx with the span that the caller says it is in, if it says so.
func parentOf(ctx context.Context) context.Context {
	if v := metadata.ValueFromIncomingContext(ctx, traceParentKey); len(v) == 1 {
		if sc := parseTraceParent(v[0]); sc.IsValid() {
			return trace.ContextWithRemoteSpanContext(ctx, sc)
		}
	}
	return ctx
}

// parseTraceParent reads 00-TRACE-SPAN-FLAGS, and what later versions may add behind it. What makes no sense is no span.
func parseTraceParent(s string) trace.SpanContext {
	const size = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(s) < size || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return trace.SpanContext{}
	}
	for _, c := range []byte(s[:size]) {
		if c >= 'A' && c <= 'F' { // hex would take them
			return trace.SpanContext{}
		}
	}
	var version, flags [1]byte
	var c trace.SpanContextConfig
	for _, f := range []struct {
		to   []byte
		from string
	}{{version[:], s[:2]}, {c.TraceID[:], s[3:35]}, {c.SpanID[:], s[36:52]}, {flags[:], s[53:55]}} {
		if _, err := hex.Decode(f.to, []byte(f.from)); err != nil {
			return trace.SpanContext{}
		}
	}
	if version[0] == 0xff || version[0] == 0 && len(s) != size || len(s) > size && s[size] != '-' {
		return trace.SpanContext{}
	}
	c.TraceFlags, c.Remote = trace.TraceFlags(flags[0])&trace.FlagsSampled, true
	return trace.NewSpanContext(c)
}

// begin starts the span of a unary call. What becomes of the call's attempts are its events.
func (s *service) begin(ctx context.Context, c *route.Call, request string) trace.Span {
	_, span := s.tracer.Start(parentOf(ctx), "decree.proxy/"+kinds[c.Kind], trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.Int64("decree.shard", int64(c.Shard)), attribute.String("decree.request_id", request), attribute.Int("decree.commands", len(c.Commands))))
	if span.IsRecording() {
		c.Watch = func(what string, to route.Target, err error) {
			var attrs []attribute.KeyValue
			if a, has := to.(interface{ Address() string }); has {
				attrs = append(attrs, attribute.String("decree.node_address", a.Address()))
			}
			if err != nil {
				attrs = append(attrs, attribute.String("decree.reason", err.Error()))
			}
			span.AddEvent(what, trace.WithAttributes(attrs...))
		}
	}
	return span
}

// endSpan gives a span its outcome. A rejection is an answer like another.
func endSpan(span trace.Span, err error) {
	outcome, code := outcomeOf(err)
	span.SetAttributes(attribute.String("decree.outcome", outcome))
	if err != nil && outcome != outcomeRejected {
		span.SetAttributes(attribute.String("decree.code", code))
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
