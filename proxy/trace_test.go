package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// calm keeps leaders in office on a busy machine: an election would be in the trace.
func calm(cfg *rsm.Config) {
	cfg.HeartbeatInterval, cfg.ElectionTimeout = 100*time.Millisecond, 10*time.Second
}

// startCalm starts a cluster whose leaders stay, unless they hand over.
func startCalm(t testing.TB, options ...func(*rsm.Config)) *rsm.Cluster {
	t.Helper()
	c := startCluster(t, append(options, calm)...)
	for _, shard := range []rsm.ShardID{1, 2} {
		if _, err := c.Leader(within(t), shard); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// tracedCluster is nodes, a proxy and a client that all keep their spans in one place.
func tracedCluster(t *testing.T, in *testkit.Spans) (*rsm.Cluster, *proxy.Server, *client.Shard) {
	t.Helper()
	c := startCalm(t, func(cfg *rsm.Config) { cfg.Tracer = in })
	// The proxy asks who leads only when it has to: so a call finds out that a leader has changed.
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c), Tracer: in, Refresh: time.Hour})
	awaitReady(t, p)
	cl, err := client.Dial([]string{s.Addr()}, client.Options{Tracer: in})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return c, s, cl.Shard(1)
}

// under runs f within a new trace, and returns its spans when there are as many as expected, and all have ended.
func under(t *testing.T, in *testkit.Spans, least int, f func(ctx context.Context, root trace.SpanContext)) []testkit.Span {
	t.Helper()
	ctx, root := in.Tracer("").Start(within(t), "test")
	f(ctx, root.SpanContext())
	root.End()
	return in.Await(t, root.SpanContext().TraceID(), func(all []testkit.Span) bool { return len(all) >= least })
}

func want(t *testing.T, spans []testkit.Span, tree string) {
	t.Helper()
	tree = strings.ReplaceAll(strings.TrimPrefix(tree, "\n"), "\t", "  ")
	if got := testkit.Tree(spans); got != tree {
		t.Fatalf("got\n%s\nwant\n%s", got, tree)
	}
	testkit.CheckTimes(t, spans)
}

// find returns the spans of a name.
func find(spans []testkit.Span, name string) (found []testkit.Span) {
	for _, s := range spans {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

// A call is one trace from its caller through client, proxy and node, down to deciding, committing and applying.
func TestTraceEndToEnd(t *testing.T) {
	in := &testkit.Spans{}
	c, s, sh := tracedCluster(t, in)
	const submitted = `
test
	decree.client/submit: ok
		decree.proxy/submit: ok
			decree.node/submit: ok
				decree.node/decide
				decree.node/commit
				decree.node/apply
`
	submit := func(ctx context.Context, _ trace.SpanContext) {
		if _, err := sh.Submit(ctx, []byte("a")); err != nil {
			t.Error(err)
		}
	}
	t.Run("first command", func(t *testing.T) {
		want(t, under(t, in, 13, submit), `
test
	decree.client/submit: ok
		decree.client/open_session: ok
			decree.proxy/open_session: ok
				decree.node/open_session: ok
					decree.node/decide
					decree.node/commit
					decree.node/apply
		decree.proxy/submit: ok
			decree.node/submit: ok
				decree.node/decide
				decree.node/commit
				decree.node/apply
`)
	})
	t.Run("command", func(t *testing.T) {
		spans := under(t, in, 7, submit)
		want(t, spans, submitted)
		leader, err := c.Leader(within(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		st, err := leader.Shard(1).Status()
		if err != nil {
			t.Fatal(err)
		}
		client, proxy, node, commit := spans[1], spans[2], spans[3], spans[5]
		for _, a := range []struct {
			s         testkit.Span
			key, want string
		}{
			{client, "decree.shard", "1"}, {client, "decree.sequence", "2"}, {client, "decree.commands", "1"}, {proxy, "decree.shard", "1"},
			{node, "decree.shard", "1"}, {node, "decree.node", fmt.Sprint(leader.ID())}, {node, "decree.session", client.Attrs["decree.session"]}, {node, "decree.sequence", "2"},
			{commit, "decree.term", fmt.Sprint(st.Term)}, {commit, "decree.index", fmt.Sprint(st.Applied)}, {commit, "decree.batch_size", "1"}, {node, "decree.index", fmt.Sprint(st.Applied)},
		} {
			if got := a.s.Attrs[a.key]; got != a.want || got == "" {
				t.Errorf("%s of %s is %q, want %q", a.key, a.s.Name, got, a.want)
			}
		}
		if client.Kind != trace.SpanKindClient || proxy.Kind != trace.SpanKindServer || node.Kind != trace.SpanKindServer || commit.Kind != trace.SpanKindInternal {
			t.Errorf("kinds %v, %v, %v, %v", client.Kind, proxy.Kind, node.Kind, commit.Kind)
		}
		if want := []string{"sent " + leader.Addr()}; fmt.Sprint(proxy.Events) != fmt.Sprint(want) {
			t.Errorf("the proxy's events are %q, want %q", proxy.Events, want)
		}
		if !strings.Contains(proxy.Attrs["decree.request_id"], "/") || commit.Attrs["decree.entry_bytes"] == "0" {
			t.Errorf("%v, %v", proxy.Attrs, commit.Attrs)
		}
	})
	t.Run("unary command", func(t *testing.T) {
		unary := decreev1.NewDecreeServiceClient(plain(t, s.Addr()))
		want(t, under(t, in, 6, func(ctx context.Context, root trace.SpanContext) {
			ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", fmt.Sprintf("00-%s-%s-%s", root.TraceID(), root.SpanID(), root.TraceFlags()))
			if _, err := unary.Submit(ctx, &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("a")}}); err != nil {
				t.Error(err)
			}
		}), strings.ReplaceAll(strings.Replace(submitted, "\tdecree.client/submit: ok\n", "", 1), "\n\t\t", "\n\t"))
	})
	t.Run("reads", func(t *testing.T) {
		for _, level := range []rsm.Level{rsm.Linearizable, rsm.ReadIndex, rsm.AtToken, rsm.Stale} {
			spans := under(t, in, 6, func(ctx context.Context, _ trace.SpanContext) {
				if _, err := sh.Read(ctx, level, []byte("a")); err != nil {
					t.Error(err)
				}
			})
			want(t, spans, `
test
	decree.client/read: ok
		decree.proxy/read: ok
			decree.node/read: ok
				decree.node/wait
				decree.node/query
`)
			if node := spans[3]; node.Attrs["decree.level"] != level.String() || node.Attrs["decree.index"] == "" || node.Attrs["decree.term"] == "" {
				t.Errorf("%v: %v", level, node.Attrs)
			}
		}
	})
	t.Run("rejection", func(t *testing.T) {
		want(t, under(t, in, 7, func(ctx context.Context, _ trace.SpanContext) {
			if _, err := sh.Submit(ctx, []byte("reject")); !errors.Is(err, rsm.ErrRejected) {
				t.Error(err)
			}
		}), strings.ReplaceAll(submitted, ": ok", ": rejected as_told"))
	})
	t.Run("error", func(t *testing.T) {
		unary := decreev1.NewDecreeServiceClient(plain(t, s.Addr()))
		spans := under(t, in, 2, func(ctx context.Context, root trace.SpanContext) {
			ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", fmt.Sprintf("00-%s-%s-01", root.TraceID(), root.SpanID()), proxy.RequestIDKey, "mine")
			if _, err := unary.Read(ctx, &decreev1.ReadRequest{Shard: 9}); err == nil {
				t.Error("there is no such shard")
			}
		})
		want(t, spans, `
test
	decree.proxy/read: not_proposed no_shard !
`)
		if id := spans[1].Attrs["decree.request_id"]; id != "mine" {
			t.Errorf("the request is called %q", id)
		}
	})
	t.Run("retry", func(t *testing.T) {
		var leader *rsm.Node
		var spans, proxies, attempts []testkit.Span
		for try := 0; len(attempts) < 2 || len(proxies[0].Events) < 3 || proxies[0].Events[0] != "sent "+leader.Addr(); try++ {
			if try == 20 {
				t.Fatalf("no attempt has failed:\n%s", testkit.Tree(spans))
			}
			var err error
			if leader, err = c.Leader(within(t), 1); err != nil {
				t.Fatal(err)
			}
			if err := leader.Shard(1).TransferLeadership(within(t), leader.ID()%3+1); err != nil {
				t.Fatal(err)
			}
			// A proxy that has just reached its nodes asks once more who leads, and may know it before the call, or while the call is under way.
			spans = in.Await(t, under(t, in, 7, submit)[0].ID.TraceID(), func(all []testkit.Span) bool {
				return len(all) == 6+len(find(all, "decree.node/submit"))
			})
			proxies, attempts = find(spans, "decree.proxy/submit"), find(spans, "decree.node/submit")
			if len(proxies) != 1 {
				t.Fatalf("not one call:\n%s", testkit.Tree(spans))
			}
		}
		testkit.CheckTimes(t, spans)
		p, first, last := proxies[0], attempts[0], attempts[len(attempts)-1]
		if e := p.Events; len(e) < 3 || e[0] != "sent "+leader.Addr() || !strings.HasPrefix(e[1], "failed "+leader.Addr()) || !strings.HasPrefix(e[len(e)-1], "sent ") {
			t.Errorf("the events are %q", e)
		}
		if !first.Failed || first.Attrs["decree.outcome"] != "not_proposed" || first.Attrs["decree.node"] != fmt.Sprint(leader.ID()) {
			t.Errorf("the first attempt: %+v", first)
		}
		if last.Failed || last.Attrs["decree.outcome"] != "ok" || last.Attrs["decree.node"] == fmt.Sprint(leader.ID()) || last.Attrs["decree.sequence"] != first.Attrs["decree.sequence"] {
			t.Errorf("the last attempt: %+v", last)
		}
		for _, a := range attempts {
			if a.Parent.SpanID() != p.ID.SpanID() {
				t.Errorf("an attempt is not under its call:\n%s", testkit.Tree(spans))
			}
		}
		for _, stage := range []string{"decide", "commit", "apply"} {
			if found := find(spans, "decree.node/"+stage); len(found) != 1 || found[0].Parent.SpanID() != last.ID.SpanID() {
				t.Errorf("%s is not once, under the last attempt:\n%s", stage, testkit.Tree(spans))
			}
		}
	})
}

// Who has no tracer of its own passes on what it was told; what is not sampled is not sampled further down.
func TestTracePassesThrough(t *testing.T) {
	in, nothing := &testkit.Spans{}, &testkit.Spans{None: true}
	c := startCalm(t, func(cfg *rsm.Config) { cfg.Tracer = in })
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	awaitReady(t, p)
	sh := dial(t, s.Addr()).Shard(1)
	unary := decreev1.NewDecreeServiceClient(plain(t, s.Addr()))
	if _, err := sh.Submit(within(t), []byte("a")); err != nil { // has a session by then
		t.Fatal(err)
	}
	want(t, under(t, in, 14, func(ctx context.Context, root trace.SpanContext) {
		if _, err := sh.Submit(ctx, []byte("a")); err != nil {
			t.Error(err)
		}
		with := metadata.AppendToOutgoingContext(ctx, "traceparent", fmt.Sprintf("00-%s-%s-01", root.TraceID(), root.SpanID()))
		if _, err := unary.Read(with, &decreev1.ReadRequest{Shard: 1}); err != nil {
			t.Error(err)
		}
		if _, err := p.Shard(1).Read(ctx, rsm.Linearizable, nil); err != nil {
			t.Error(err)
		}
		leader, err := c.Leader(ctx, 1)
		if err == nil {
			_, err = leader.Shard(1).Read(ctx, rsm.Stale, nil)
		}
		if err != nil {
			t.Error(err)
		}
	}), `
test
	decree.node/submit: ok
		decree.node/decide
		decree.node/commit
		decree.node/apply
	decree.node/read: ok
		decree.node/wait
		decree.node/query
	decree.node/read: ok
		decree.node/wait
		decree.node/query
	decree.node/read: ok
		decree.node/wait
		decree.node/query
`)
	ctx, root := nothing.Tracer("").Start(within(t), "test")
	before := in.Dropped()
	if _, err := sh.Submit(ctx, []byte("a")); err != nil {
		t.Fatal(err)
	}
	if got := in.Dropped(); got != before+1 {
		t.Errorf("%d spans were asked for by a call that is not sampled, want the node's one", got-before)
	}
	if all := in.Await(t, root.SpanContext().TraceID(), func([]testkit.Span) bool { return true }); len(all) != 0 {
		t.Errorf("kept, and not sampled:\n%s", testkit.Tree(all))
	}
}

// An in-process handle of a proxy has a span, too.
func TestTraceOfShard(t *testing.T) {
	in := &testkit.Spans{}
	c := startCalm(t)
	p, _ := startProxy(t, proxy.Config{Node: c.Nodes()[0], Nodes: anyNode(c), Tracer: in})
	awaitReady(t, p)
	want(t, under(t, in, 3, func(ctx context.Context, _ trace.SpanContext) {
		if _, err := p.Shard(1).Do(ctx, rsm.Request{Commands: [][]byte{[]byte("a")}}); err != nil {
			t.Error(err)
		}
		if _, err := p.Shard(1).Read(ctx, 77, nil); err == nil {
			t.Error("there is no such level")
		}
	}), `
test
	decree.proxy/submit: ok
	decree.proxy/read: not_proposed bad_request !
`)
}
