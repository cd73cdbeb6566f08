package testkit

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Spans is a TracerProvider that keeps what it is told. It samples what has a sampled parent, or none.
type Spans struct {
	noop.TracerProvider
	// None samples nothing.
	None bool

	mu      sync.Mutex
	spans   []*Span
	dropped int
}

// Span is what is kept of a span.
type Span struct {
	noop.Span
	of *Spans

	Name         string
	Kind         trace.SpanKind
	ID           trace.SpanContext
	Parent       trace.SpanContext
	Attrs        map[string]string
	Events       []string // with their attributes behind them
	Failed       bool
	Began, Ended time.Time
}

type tracer struct {
	noop.Tracer
	s *Spans
}

// Tracer implements trace.TracerProvider.
func (s *Spans) Tracer(string, ...trace.TracerOption) trace.Tracer { return tracer{s: s} }

func (t tracer) Start(ctx context.Context, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent, cfg := trace.SpanContextFromContext(ctx), trace.NewSpanStartConfig(o...)
	id := trace.SpanContextConfig{TraceID: parent.TraceID(), TraceFlags: trace.FlagsSampled}
	_, _ = rand.Read(id.SpanID[:])
	if !parent.IsValid() {
		_, _ = rand.Read(id.TraceID[:])
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.s.None || parent.IsValid() && !parent.IsSampled() {
		t.s.dropped++
		id.TraceFlags = 0
		ctx = trace.ContextWithSpanContext(ctx, trace.NewSpanContext(id))
		return ctx, trace.SpanFromContext(ctx)
	}
	s := &Span{of: t.s, Name: name, Kind: cfg.SpanKind(), ID: trace.NewSpanContext(id), Parent: parent, Attrs: map[string]string{}, Began: cfg.Timestamp()}
	if s.Began.IsZero() {
		s.Began = time.Now()
	}
	s.set(cfg.Attributes())
	t.s.spans = append(t.s.spans, s)
	return trace.ContextWithSpan(ctx, s), s
}

func (s *Span) set(attrs []attribute.KeyValue) {
	for _, a := range attrs {
		s.Attrs[string(a.Key)] = a.Value.String()
	}
}

// SpanContext implements trace.Span, as do the following.
func (s *Span) SpanContext() trace.SpanContext { return s.ID }

// IsRecording says yes: the others are not of this type.
func (s *Span) IsRecording() bool { return true }

// SetAttributes keeps attributes.
func (s *Span) SetAttributes(attrs ...attribute.KeyValue) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.set(attrs)
}

// AddEvent keeps an event.
func (s *Span) AddEvent(name string, o ...trace.EventOption) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	cfg := trace.NewEventConfig(o...)
	for _, a := range cfg.Attributes() {
		name += " " + a.Value.String()
	}
	s.Events = append(s.Events, name)
}

// SetStatus keeps whether it is an error.
func (s *Span) SetStatus(c codes.Code, _ string) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.Failed = c == codes.Error
}

// End keeps when it was.
func (s *Span) End(o ...trace.SpanEndOption) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	cfg := trace.NewSpanEndConfig(o...)
	if s.Ended = cfg.Timestamp(); s.Ended.IsZero() {
		s.Ended = time.Now()
	}
}

// Dropped returns how many spans were asked for and not sampled.
func (s *Spans) Dropped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Await returns copies of all spans of a trace, by when they began, when all that are there have ended and enough says that these are all.
func (s *Spans) Await(t testing.TB, id trace.TraceID, enough func([]Span) bool) []Span {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		var all []Span
		ended := true
		s.mu.Lock()
		for _, x := range s.spans {
			if x.ID.TraceID() == id {
				c := *x
				c.Attrs, c.Events = maps.Clone(x.Attrs), slices.Clone(x.Events)
				all = append(all, c)
				ended = ended && !x.Ended.IsZero()
			}
		}
		s.mu.Unlock()
		slices.SortStableFunc(all, func(a, b Span) int { return a.Began.Compare(b.Began) })
		if ended && enough(all) {
			return all
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the trace is not complete (all ended: %v):\n%s", ended, Tree(all))
		}
	}
}

// Tree returns spans as text, each below and to the right of its parent, with their outcomes. An exclamation mark is an error's.
func Tree(spans []Span) string {
	var b strings.Builder
	known := map[trace.SpanID]bool{}
	for _, s := range spans {
		known[s.ID.SpanID()] = true
	}
	var below func(parent trace.SpanID, depth int)
	line := func(s Span, depth int) {
		fmt.Fprintf(&b, "%s%s", strings.Repeat("  ", depth), s.Name)
		if o := strings.TrimSpace(s.Attrs["decree.outcome"] + " " + s.Attrs["decree.code"]); o != "" {
			fmt.Fprintf(&b, ": %s", o)
		}
		if s.Failed {
			b.WriteString(" !")
		}
		b.WriteString("\n")
		below(s.ID.SpanID(), depth+1)
	}
	below = func(parent trace.SpanID, depth int) {
		for _, s := range spans {
			if s.Parent.SpanID() == parent {
				line(s, depth)
			}
		}
	}
	for _, s := range spans {
		if !known[s.Parent.SpanID()] {
			line(s, 0)
		}
	}
	return b.String()
}

// CheckTimes fails the test if a span is not within its parent's time, or if one does not begin after the one before it under the same parent has ended, where they
// are stages of one call.
func CheckTimes(t testing.TB, spans []Span) {
	t.Helper()
	byID := map[trace.SpanID]Span{}
	for _, s := range spans {
		byID[s.ID.SpanID()] = s
	}
	last := map[trace.SpanID]Span{}
	for _, s := range spans {
		p, known := byID[s.Parent.SpanID()]
		if s.Ended.Before(s.Began) || known && (s.Began.Before(p.Began) || s.Ended.After(p.Ended)) {
			t.Errorf("%s is not within the time of %s:\n%s", s.Name, cmp.Or(p.Name, "nobody"), Tree(spans))
		}
		if before, has := last[s.Parent.SpanID()]; has && known && s.Began.Before(before.Ended) {
			t.Errorf("%s begins before the end of %s:\n%s", s.Name, before.Name, Tree(spans))
		}
		last[s.Parent.SpanID()] = s
	}
}
