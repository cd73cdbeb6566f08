package proxy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// figures returns every sample of a registry, as in name{label="value"}; a histogram's is the number of its observations.
func figures(t testing.TB, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			all[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return all
}

// page writes what docs/metrics.md has to say of a registry's metrics.
func page(families map[string]prometheusFamily) string {
	var b strings.Builder
	b.WriteString(`# Metrics

Written by a test (` + "`go test ./proxy -run TestMetricsPage -update`" + `) from what running nodes and proxies register. [Operations](operations.md#watching-it) says how to get at them, and
[grafana/decree.json](grafana/decree.json) is a dashboard over them. Histograms have the usual ` + "`_bucket`, `_sum` and `_count`" + `; their buckets double from 33 µs to 34 s.
Spans of single calls are another thing: see [traces](decisions/0014-traces.md).
`)
	for _, group := range []struct{ prefix, title string }{{"decree_proxy_", "Proxies"}, {"decree_node_", "Nodes: peers, log, state, disk"}, {"decree_shard_", "Replicas of shards"}} {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n", group.title)
		for _, name := range slices.Sorted(maps.Keys(families)) {
			if f := families[name]; strings.HasPrefix(name, group.prefix) {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, f.kind, strings.Join(f.labels, ", "), f.help)
			}
		}
	}
	return b.String()
}

type prometheusFamily struct {
	kind, help string
	labels     []string
}

// Every metric of nodes and proxies is documented with what it means, every one that is documented exists, and so does each that the dashboard or the operators' page asks for.
// One whose help calls it an alarm is on the dashboard, and among the alarms of the operators' page.
func TestMetricsPage(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := startCalm(t, func(cfg *rsm.Config) { cfg.Metrics = registry })
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c), Metrics: registry})
	awaitReady(t, p) // what waits for a leader is nothing that admission knows
	if _, err := dial(t, s.Addr()).Shard(1).Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	gathered, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	families := map[string]prometheusFamily{}
	for _, f := range gathered {
		out := prometheusFamily{kind: strings.ToLower(f.GetType().String()), help: f.GetHelp()}
		for _, l := range f.GetMetric()[0].GetLabel() {
			out.labels = append(out.labels, l.GetName())
		}
		if !strings.HasSuffix(out.help, ".") || len(out.help) < 10 {
			t.Errorf("%s has the help %q", f.GetName(), out.help)
		}
		if (out.kind == "counter") != strings.HasSuffix(f.GetName(), "_total") {
			t.Errorf("%s is a %s", f.GetName(), out.kind)
		}
		families[f.GetName()] = out
	}
	text := page(families)
	for name := range families {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("%s has no place in the page", name)
		}
	}
	const file = "../docs/metrics.md"
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if kept, err := os.ReadFile(file); err != nil || string(kept) != text {
		t.Errorf("docs/metrics.md does not say what the metrics are (%v): -update writes it", err)
	}
	dashboard, err := os.ReadFile("../docs/grafana/decree.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(dashboard, &d); err != nil || len(d.Panels) < 10 {
		t.Fatalf("%d panels, %v", len(d.Panels), err)
	}
	names, shown := regexp.MustCompile(`\bdecree_\w+`), map[string]bool{}
	for _, panel := range d.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("%q asks for nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			found := names.FindAllString(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("%q: %s asks for nothing", panel.Title, target.Expr)
			}
			for _, name := range found {
				f, is := families[name]
				if h, cut := strings.CutSuffix(name, "_bucket"); !is && cut {
					f, is = families[h]
					is = is && f.kind == "histogram"
				}
				if !is {
					t.Errorf("%q: there is no metric %s", panel.Title, name)
				}
				shown[name] = true
			}
		}
	}
	operations, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names.FindAllString(string(operations), -1) {
		if _, is := families[name]; !is {
			t.Errorf("docs/operations.md: there is no metric %s", name)
		}
	}
	_, alarms, _ := strings.Cut(string(operations), "\n| alarm | when |")
	alarms, _, _ = strings.Cut(alarms, "\n\n")
	count := 0
	for name, f := range families {
		if !regexp.MustCompile(`(?i)\balarm\b`).MatchString(f.help) {
			continue
		}
		count++
		if !slices.Contains(names.FindAllString(alarms, -1), name) {
			t.Errorf("%s is an alarm, and docs/operations.md does not have it among the alarms", name)
		}
		if !shown[name] {
			t.Errorf("%s is an alarm, and docs/grafana/decree.json does not show it", name)
		}
	}
	if count < 5 {
		t.Errorf("%d metrics call themselves alarms", count)
	}
}

func awaitReady(t testing.TB, p *proxy.Proxy) {
	t.Helper()
	for ctx := within(t); len(p.Ready()) > 0; time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("not ready: %v", p.Ready())
		}
	}
}

// Calls are counted by what became of them, and neither a machine's codes nor what clients make up become labels.
func TestCallsAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := startCalm(t)
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c), Metrics: registry})
	awaitReady(t, p)
	sh := dial(t, s.Addr()).Shard(1)
	for range 3 {
		if _, err := sh.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sh.Submit(within(t), []byte("reject")); !errors.Is(err, rsm.ErrRejected) {
		t.Fatal(err)
	}
	unary := decreev1.NewDecreeServiceClient(plain(t, s.Addr()))
	for _, shard := range []uint64{77, 78, 79} {
		if _, err := unary.Read(within(t), &decreev1.ReadRequest{Shard: shard}); err == nil {
			t.Fatal("there is no such shard")
		}
	}
	want := map[string]float64{
		`decree_proxy_calls_total{code="",kind="submit",outcome="ok",shard="1"}`:                    3,
		`decree_proxy_calls_total{code="",kind="submit",outcome="rejected",shard="1"}`:              1,
		`decree_proxy_calls_total{code="",kind="open_session",outcome="ok",shard="1"}`:              1,
		`decree_proxy_calls_total{code="no_shard",kind="read",outcome="not_proposed",shard="none"}`: 3,
		`decree_proxy_call_seconds{kind="submit"}`:                                                  4,
		`decree_proxy_connections{}`:                                                                2,
		`decree_proxy_streams{}`:                                                                    1,
		`decree_proxy_ready{}`:                                                                      1,
		`decree_proxy_leader_known{shard="1"}`:                                                      1,
	}
	all := figures(t, registry)
	for name, n := range want {
		if all[name] != n {
			t.Errorf("%s is %g, want %g", name, all[name], n)
		}
	}
	for name, v := range all {
		if strings.Contains(name, "as_told") || strings.Contains(name, `"77"`) {
			t.Errorf("%s is %g", name, v)
		}
	}
	if in, out := all["decree_proxy_received_bytes_total{}"], all["decree_proxy_sent_bytes_total{}"]; in < 100 || out < 100 {
		t.Errorf("%g bytes in, %g bytes out", in, out)
	}
}

// A call within the proxy's process is counted, logged and named as a server's calls are, also if it is refused before anybody is asked.
//
// Mutations with which it was seen to fail: such calls are not counted; they are not logged; their errors are not named; what is refused at once has a time.
func TestCallsWithinAreCounted(t *testing.T) {
	registry, log := prometheus.NewRegistry(), &lockedBuffer{}
	c := startCalm(t)
	p, err := proxy.New(proxy.Config{Nodes: anyNode(c), Metrics: registry, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	awaitReady(t, p)
	sh := p.Shard(1)
	if _, err := sh.Read(within(t), rsm.Linearizable, []byte("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := sh.Do(within(t), add("reject")); !errors.Is(err, rsm.ErrRejected) {
		t.Fatal(err)
	}
	numbered := add("a")
	numbered.Session, numbered.Sequence = 1<<40, 1
	_, expired := sh.Do(within(t), numbered)
	_, empty := sh.Do(within(t), rsm.Request{})
	for code, err := range map[rsm.Code]error{rsm.CodeSessionExpired: expired, rsm.CodeBadRequest: empty} {
		m := regexp.MustCompile(`\[request (\S+)\]$`).FindStringSubmatch(fmt.Sprint(err))
		if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: code}) || m == nil || !strings.Contains(log.String(), "request="+m[1]+" kind=submit shard=1") {
			t.Errorf("%v is to be %s: %s", err, code, log)
		}
	}
	all := figures(t, registry)
	for name, n := range map[string]float64{
		`decree_proxy_calls_total{code="",kind="read",outcome="ok",shard="1"}`:                            1,
		`decree_proxy_calls_total{code="",kind="submit",outcome="rejected",shard="1"}`:                    1,
		`decree_proxy_calls_total{code="session_expired",kind="submit",outcome="not_proposed",shard="1"}`: 1,
		`decree_proxy_calls_total{code="bad_request",kind="submit",outcome="not_proposed",shard="1"}`:     1,
		`decree_proxy_call_seconds{kind="submit"}`:                                                        2, // what is no request is not timed
		`decree_proxy_call_seconds{kind="read"}`:                                                          1,
	} {
		if all[name] != n {
			t.Errorf("%s is %g, want %g", name, all[name], n)
		}
	}
	if !strings.Contains(log.String(), "kind=read shard=1") {
		t.Errorf("the read is not logged: %s", log)
	}
}

func plain(t testing.TB, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A proxy is ready when it reaches the leaders, is not when they are gone for a while, and says so over gRPC as well.
func TestReady(t *testing.T) {
	c := startCluster(t)
	var nodes []string
	for _, n := range c.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	p, s := startProxy(t, proxy.Config{Nodes: nodes})
	awaitReady(t, p)
	h := healthv1.NewHealthClient(plain(t, s.Addr()))
	health := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for ctx := within(t); ; time.Sleep(5 * time.Millisecond) {
			r, err := h.Check(ctx, &healthv1.HealthCheckRequest{Service: decreev1.DecreeService_ServiceDesc.ServiceName})
			if err != nil {
				t.Fatal(err)
			}
			if r.GetStatus() == want {
				return
			}
		}
	}
	health(healthv1.HealthCheckResponse_SERVING)
	// One that leads is left, without a majority: it is reached, and leads no more.
	leader, err := c.Leader(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	var killed []rsm.NodeID
	for _, n := range c.Nodes() {
		if n.ID() != leader.ID() {
			killed = append(killed, n.ID())
		}
	}
	for _, id := range killed {
		c.Kill(id)
	}
	health(healthv1.HealthCheckResponse_NOT_SERVING)
	for ctx := within(t); len(p.Ready()) < 2 && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) { // one shard may be found out before the other
	}
	if m := p.Ready(); len(m) != 2 || !strings.Contains(m[0], "shard 1") || !strings.Contains(m[1], "shard 2") {
		t.Errorf("missing: %v", m)
	}
	for _, id := range killed {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	health(healthv1.HealthCheckResponse_SERVING)
	// One that knows nobody is not ready, and says how many it tries.
	lonely, ls := startProxy(t, proxy.Config{Nodes: []string{"127.0.0.1:1"}})
	if m := lonely.Ready(); len(m) != 1 || !strings.Contains(m[0], "no node has said yet") {
		t.Errorf("missing: %v", m)
	}
	ls.Close()
	if m := ls.Ready(); len(m) != 1 || !strings.Contains(m[0], "drains") {
		t.Errorf("missing: %v", m)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The name of a request is in the error, in what comes with it, and in the log.
func TestRequestID(t *testing.T) {
	c := startCalm(t)
	log := &lockedBuffer{}
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c), Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	awaitReady(t, p)
	unary := decreev1.NewDecreeServiceClient(plain(t, s.Addr()))
	ask := func(ids ...string) string {
		t.Helper()
		ctx := within(t)
		for _, id := range ids {
			ctx = metadata.AppendToOutgoingContext(ctx, proxy.RequestIDKey, id)
		}
		var trailer metadata.MD
		_, err := unary.Submit(ctx, &decreev1.SubmitRequest{Shard: 9, Commands: [][]byte{{1}}}, grpc.Trailer(&trailer))
		got := trailer.Get(proxy.RequestIDKey)
		if err == nil || len(got) != 1 || !strings.Contains(err.Error(), "[request "+got[0]+"]") || !strings.Contains(log.String(), "request="+got[0]+" kind=submit shard=9") {
			t.Fatalf("%v, %v: %s", err, got, log)
		}
		return got[0]
	}
	if got := ask("order-4711"); got != "order-4711" {
		t.Errorf("got %s", got)
	}
	first := ask()
	if second := ask(); first == second {
		t.Errorf("two calls are named %s", first)
	}
	for _, bad := range [][]string{{strings.Repeat("x", 129)}, {"a b"}, {"one", "two"}} {
		if got := ask(bad...); slices.Contains(bad, got) {
			t.Errorf("%s was taken for a name", got)
		}
	}
	stream, err := unary.Connect(within(t))
	if err == nil {
		err = stream.Send(&decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: 17, Call: &decreev1.Call_Read{Read: &decreev1.ReadRequest{Shard: 9}}}}})
	}
	var answer *decreev1.ConnectResponse
	for err == nil && len(answer.GetAnswers()) == 0 { // an empty one says that the stream lives
		answer, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`\[request (\S+/17)\]`).FindStringSubmatch(answer.GetAnswers()[0].GetError().GetMessage())
	if m == nil || !strings.Contains(log.String(), "request="+m[1]+" kind=read shard=9") {
		t.Errorf("%v: %s", answer, log)
	}
	if _, err := dial(t, s.Addr()).Shard(1).Submit(within(t), []byte("a")); err != nil || !strings.Contains(log.String(), "outcome=ok") {
		t.Errorf("%v: %s", err, log)
	}
}
