package proxy

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
)

// traceParentKey is the metadata of W3C's trace context.
const traceParentKey = "traceparent"

const tracerName = "github.com/decree-raft/decree/proxy"

// parentOf returns the span that the caller of a unary call says it is in, nil if it says none.
func parentOf(ctx context.Context) *route.Trace {
	if v := metadata.ValueFromIncomingContext(ctx, traceParentKey); len(v) == 1 {
		return parseTraceParent(v[0])
	}
	return nil
}

// parseTraceParent reads 00-TRACE-SPAN-FLAGS, and what later versions may add behind it. What makes no sense is no span.
func parseTraceParent(s string) *route.Trace {
	const size = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(s) < size || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return nil
	}
	for _, c := range []byte(s[:size]) {
		if c >= 'A' && c <= 'F' { // hex would take them
			return nil
		}
	}
	var version, flags [1]byte
	var t route.Trace
	for _, f := range []struct {
		to   []byte
		from string
	}{{version[:], s[:2]}, {t.TraceID[:], s[3:35]}, {t.SpanID[:], s[36:52]}, {flags[:], s[53:55]}} {
		if _, err := hex.Decode(f.to, []byte(f.from)); err != nil {
			return nil
		}
	}
	if version[0] == 0xff || version[0] == 0 && len(s) != size || len(s) > size && s[size] != '-' {
		return nil
	}
	if t.TraceID == ([16]byte{}) || t.SpanID == ([8]byte{}) {
		return nil
	}
	t.Flags = flags[0]
	return &t
}

// begin starts the span of a call, under the one that its caller is in, and has nodes go on under it. What becomes of the call's attempts are its events.
// It is nil if nothing of it is kept.
func (s *service) begin(ctx context.Context, c *route.Call, request string) trace.Span {
	return startSpan(s.tracer, traced.Under(ctx, c.Trace), c, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("decree.request_id", request)))
}

func startSpan(t trace.Tracer, ctx context.Context, c *route.Call, options ...trace.SpanStartOption) trace.Span {
	ctx, span := t.Start(ctx, "decree.proxy/"+c.Kind.String(), append(options, trace.WithAttributes(
		traced.Number("decree.shard", c.Shard), attribute.Int("decree.commands", len(c.Commands))))...)
	c.Trace = traced.Of(ctx)
	if !span.IsRecording() {
		return nil
	}
	c.Watch = traced.Watch(span)
	return span
}
