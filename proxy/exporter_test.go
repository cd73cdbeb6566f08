package proxy_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// blocked is a TracerProvider whose processor blocks when a span ends.
type blocked struct {
	noop.TracerProvider
	until chan struct{}
}

type blockedTracer struct {
	noop.Tracer
	b *blocked
}

type blockedSpan struct {
	noop.Span
	b *blocked
}

func (b *blocked) Tracer(string, ...trace.TracerOption) trace.Tracer { return blockedTracer{b: b} }

func (t blockedTracer) Start(ctx context.Context, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	s := blockedSpan{b: t.b}
	return trace.ContextWithSpan(ctx, s), s
}

func (s blockedSpan) IsRecording() bool          { return true }
func (s blockedSpan) End(...trace.SpanEndOption) { <-s.b.until }

// Calls end although their spans do not, and hold few goroutines.
func TestBlockedExporter(t *testing.T) {
	c := startCalm(t)
	b := &blocked{until: make(chan struct{})}
	defer close(b.until)
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c), Tracer: b})
	traced, err := client.Dial([]string{s.Addr()}, client.Options{Tracer: b})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	soon(t, "a call of a client", func() {
		if _, err := traced.Shard(1).Submit(within(t), []byte("a")); err != nil {
			t.Error(err)
		}
		if _, err := traced.Shard(1).Read(within(t), rsm.Linearizable, []byte("a")); err != nil {
			t.Error(err)
		}
	})
	soon(t, "a call within the proxy", func() {
		if _, err := p.Shard(1).Do(within(t), rsm.Request{Commands: [][]byte{[]byte("a")}}); err != nil {
			t.Error(err)
		}
	})
	soon(t, "a unary call", func() {
		if _, err := decreev1.NewDecreeServiceClient(plain(t, s.Addr())).Submit(within(t), &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}}); err != nil {
			t.Error(err)
		}
	})
	before := runtime.NumGoroutine()
	soon(t, "many calls", func() {
		var all []*client.Pending
		for range 3000 {
			all = append(all, traced.Shard(1).Go(within(t), add("a")))
		}
		for _, p := range all {
			if _, err := p.Wait(within(t)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	if n := runtime.NumGoroutine() - before; n > 1024+200 {
		t.Errorf("%d goroutines wait for the processor", n)
	}
	// A call that nobody answers ends at its deadline.
	_, nobody := lonely(t)
	waits, err := client.Dial([]string{nobody.Addr()}, client.Options{Tracer: b, Patience: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(waits.Close)
	soon(t, "a call at its deadline", func() {
		if _, err := waits.Shard(1).Go(context.Background(), add("a")).Wait(context.Background()); err == nil {
			t.Error("it succeeds")
		}
	})
}

// The outcome of a unary call arrives before its deadline, whatever its span does.
func TestBlockedExporterAtTheDeadline(t *testing.T) {
	b := &blocked{until: make(chan struct{})}
	defer close(b.until)
	_, s := startProxy(t, proxy.Config{Nodes: []string{"127.0.0.1:1"}, Tracer: b})
	r := dialRaw(t, s.Addr())
	_ = r.SetDeadline(time.Now().Add(30 * time.Second))
	message := marshal(&decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}})
	took := time.Duration(0)
	for i := range uint32(20) { // a machine that is busy may be late
		began := time.Now()
		r.begin(2*i+1, decreev1.DecreeService_Submit_FullMethodName, "grpc-timeout", "400m")
		if err := r.WriteData(2*i+1, true, append(prefix(uint32(len(message))), message...)); err != nil {
			t.Fatal(err)
		}
		_, h := r.headers()
		if took = time.Since(began); took < 400*time.Millisecond && h["grpc-status"] != "" {
			return
		}
	}
	t.Errorf("of 400 ms the last call takes %v", took)
}
