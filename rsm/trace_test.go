package rsm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
)

func tracing(in *testkit.Spans) option { return func(cfg *Config) { cfg.Tracer = in } }

// traceOf runs f within a new trace, and returns its spans when there are at least so many, and all have ended.
func traceOf(t *testing.T, in *testkit.Spans, least int, f func(ctx context.Context)) []testkit.Span {
	t.Helper()
	ctx, root := in.Tracer("").Start(within(t), "test")
	f(ctx)
	root.End()
	return in.Await(t, root.SpanContext().TraceID(), func(all []testkit.Span) bool { return len(all) >= least })
}

func wantTree(t *testing.T, spans []testkit.Span, tree string) {
	t.Helper()
	tree = strings.ReplaceAll(strings.TrimPrefix(tree, "\n"), "\t", "  ")
	if got := testkit.Tree(spans); got != tree {
		t.Fatalf("got\n%s\nwant\n%s", got, tree)
	}
}

// holding has everything that f submits taken in by one pass of the shard's worker.
func holding(t *testing.T, s *Shard, f func()) {
	t.Helper()
	held, release, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- s.node.engine.call(context.Background(), s.id, func(*core.Worker) { close(held); <-release })
	}()
	<-held
	f()
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Every way to call an embedded shard is under the span of the caller's context, with its stages.
func TestTracedCalls(t *testing.T) {
	in := &testkit.Spans{}
	c := startCluster(t, "", counters{}, patient10s, tracing(in))
	s := leaderOf(t, c, 1).Shard(1)
	spans := traceOf(t, in, 33, func(ctx context.Context) {
		_, err := s.Submit(ctx, []byte("a"))
		if err == nil {
			_, err = s.Do(ctx, Request{Commands: [][]byte{[]byte("a"), []byte("b")}})
		}
		var id SessionID
		if err == nil {
			id, err = s.OpenSession(ctx)
		}
		if err == nil {
			_, err = s.Traced(ctx).Go(Request{Commands: [][]byte{[]byte("fail")}, Session: id, Sequence: 1}).Wait(ctx)
			if !errors.Is(err, ErrRejected) {
				t.Errorf("got %v", err)
			}
			err = s.CloseSession(ctx, id)
		}
		if err == nil {
			_, err = s.Read(ctx, Linearizable, []byte("a"))
		}
		if err == nil {
			_, err = s.Traced(ctx).GoRead(Stale, 0, []byte("a")).Wait(ctx)
		}
		called := make(chan error, 1)
		then := func(_ Result, err error) { called <- err }
		for _, f := range []func() error{
			func() error { return s.Traced(ctx).GoFunc(Request{Commands: [][]byte{[]byte("a")}}, then) },
			func() error { return s.Traced(ctx).GoReadFunc(ReadIndex, 0, []byte("a"), then) },
		} {
			if err == nil {
				err = f()
			}
			if err == nil {
				err = <-called
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	wantTree(t, spans, `
test
	decree.node/submit: ok
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/submit: ok
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/open_session: ok
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/submit: rejected failed
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/close_session: ok
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/read: ok
		decree.node/wait
		decree.node/query
	decree.node/read: ok
		decree.node/wait
		decree.node/query
	decree.node/submit: ok
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/read: ok
		decree.node/wait
		decree.node/query
`)
	testkit.CheckTimes(t, spans)
	if s := spans[5]; s.Attrs["decree.commands"] != "2" || s.Kind != trace.SpanKindInternal {
		t.Errorf("%+v", s)
	}
	// A change of members is a call like another.
	voter := c.Nodes()[0].ID()
	wantTree(t, traceOf(t, in, 2, func(ctx context.Context) {
		if err := s.AddLearner(ctx, voter, "127.0.0.1:1"); err == nil {
			t.Error("it is a member already")
		}
	}), `
test
	decree.node/change_members: not_proposed change_refused !
`)
}

// Calls that share an entry have spans of their own, each of which says which entry it was and how many shared it; a retry has the entry of the first attempt.
func TestTracedBatch(t *testing.T) {
	in := &testkit.Spans{}
	c := startCluster(t, "", counters{}, patient10s, tracing(in))
	s := leaderOf(t, c, 1).Shard(1)
	id, err := s.OpenSession(within(t))
	if err != nil {
		t.Fatal(err)
	}
	numbered := Request{Commands: [][]byte{[]byte("a")}, Session: id, Sequence: 1}
	spans := traceOf(t, in, 15, func(ctx context.Context) {
		var calls []*Call
		holding(t, s, func() {
			calls = append(calls, s.Traced(ctx).Go(Request{Commands: [][]byte{[]byte("b")}}), s.Go(Request{Commands: [][]byte{[]byte("c")}}), // in a trace of its own
				s.Traced(ctx).Go(numbered), s.Traced(ctx).Go(numbered), s.Traced(ctx).GoRead(Linearizable, 0, []byte("b")))
		})
		for _, call := range calls {
			if _, err := call.Wait(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	if got := testkit.Tree(spans); strings.Count(got, "decree.node/submit: ok") != 3 || strings.Count(got, "node/decide") != 2 || strings.Count(got, "node/commit") != 3 ||
		strings.Count(got, "node/apply") != 3 || strings.Count(got, "node/wait") != 1 || strings.Count(got, "node/query") != 1 {
		t.Fatalf("got\n%s", got)
	}
	index, retries := "", 0
	for _, x := range spans[1:] {
		if x.Name == "decree.node/submit" {
			if x.Attrs["decree.decided_before"] == "true" {
				retries++
			}
			if x.Attrs["decree.batch_size"] != "4" { // the retry joined the first attempt, and takes no place of its own
				t.Errorf("%v", x.Attrs)
			}
		}
		if index == "" {
			index = x.Attrs["decree.index"]
		}
		if x.Attrs["decree.index"] != index || index == "" {
			t.Errorf("%s is at %q, others at %q", x.Name, x.Attrs["decree.index"], index)
		}
	}
	if retries != 1 {
		t.Errorf("%d are said to be retries", retries)
	}
	wantTree(t, traceOf(t, in, 4, func(ctx context.Context) { // answered from the session, when leadership is confirmed
		if _, err := s.Do(ctx, numbered); err != nil {
			t.Error(err)
		}
	}), `
test
	decree.node/submit: ok
		decree.node/commit
		decree.node/apply
`)
}

// A retry that joins an attempt whose entry is under way waits for that entry; an entry that is never committed is a stage that has failed.
func TestTracedWithoutQuorum(t *testing.T) {
	in := &testkit.Spans{}
	c := startCluster(t, "", counters{}, patient10s, tracing(in))
	leader := leaderOf(t, c, 1)
	s := leader.Shard(1)
	id, err := s.OpenSession(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var others []NodeID
	for _, n := range c.Nodes() {
		if n != leader {
			others = append(others, n.ID())
		}
	}
	await := func(what func(ShardStatus) bool) {
		t.Helper()
		for ctx := within(t); ; time.Sleep(time.Millisecond) {
			st, err := s.Status()
			if err != nil || ctx.Err() != nil {
				t.Fatal(err, ctx.Err())
			}
			if what(st) {
				return
			}
		}
	}
	for _, n := range others {
		c.Kill(n)
	}
	numbered := Request{Commands: [][]byte{[]byte("a")}, Session: id, Sequence: 1}
	unsampled := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}}))
	first := s.Traced(unsampled).Go(numbered) // whose entry nobody watches, and does not get through
	await(func(st ShardStatus) bool { return st.Inflight > 0 })
	wantTree(t, traceOf(t, in, 4, func(ctx context.Context) {
		joined := s.Traced(ctx).Go(numbered)
		await(func(st ShardStatus) bool { return st.Stats.Duplicates == 1 })
		if err := c.Restart(others[0]); err != nil {
			t.Fatal(err)
		}
		for _, call := range []*Call{first, joined} {
			if _, err := call.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}), `
test
	decree.node/submit: ok
		decree.node/commit
		decree.node/apply
`)
	c.Kill(others[0])
	wantTree(t, traceOf(t, in, 4, func(ctx context.Context) {
		lost := s.Traced(ctx).Go(Request{Commands: [][]byte{[]byte("b")}})
		await(func(st ShardStatus) bool { return st.Inflight > 0 })
		leader.Kill()
		if _, err := lost.Wait(ctx); !errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
	}), `
test
	decree.node/submit: unknown closed !
		decree.node/decide
		decree.node/commit !
`)
	if _, err := s.Traced(within(t)).Go(numbered).Wait(within(t)); !errors.Is(err, ErrNotProposed) {
		t.Errorf("got %v", err)
	}
}

// A call of which nobody wants spans costs no memory more than before there were any.
func TestNoTraceIsFree(t *testing.T) {
	s := &Shard{node: &Node{}}
	c, ctx := newCall(), context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		s.trace(ctx, c)
		if c.trace != nil || c.req.Observer != nil || s.Traced(ctx).shard != s {
			t.Fatal("traced")
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// BenchmarkTraced is what spans cost a call: without a tracer, with one that samples nothing, and with one that keeps everything.
func BenchmarkTraced(b *testing.B) {
	for _, v := range []struct {
		name string
		in   func() trace.TracerProvider
	}{{"off", func() trace.TracerProvider { return nil }}, {"unsampled", func() trace.TracerProvider { return &testkit.Spans{None: true} }}, {"sampled", func() trace.TracerProvider { return &testkit.Spans{} }}} {
		b.Run(v.name, func(b *testing.B) {
			c := startCluster(b, "", noop{}, patient10s, func(cfg *Config) { cfg.Tracer = v.in() })
			leader, err := c.Leader(within(b), 1)
			if err != nil {
				b.Fatal(err)
			}
			s := leader.Shard(1)
			window := make([]*Call, 256)
			ctx, r := context.Background(), Request{Commands: [][]byte{make([]byte, *benchBytes)}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p := &window[i%len(window)]
				if *p != nil {
					if _, err := (*p).Wait(ctx); err != nil {
						b.Fatal(err)
					}
				}
				*p = s.Go(r)
			}
		})
	}
}
