package proxy

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/histogram"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/proxy/internal/admit"
	"github.com/decree-raft/decree/rsm"
)

// kinds of call, as metrics name them.
var kinds = [...]string{route.Submit: route.Submit.String(), route.Read: route.Read.String(),
	route.OpenSession: route.OpenSession.String(), route.CloseSession: route.CloseSession.String()}

// knownCodes are the library's own: the only ones that become labels. A rejection's is the machine's, and does not.
var knownCodes = func() map[core.Code]bool {
	m := map[core.Code]bool{}
	for _, c := range []core.Code{core.CodeNotLeader, core.CodeNoLeader, core.CodeTransfer, core.CodeLeadershipLost, core.CodeOverwritten, core.CodeOverloaded, core.CodeDiskLow,
		core.CodeCommandTooLarge, core.CodeTooManyCommands, core.CodeAnswerTooLarge, core.CodeEntryTooLarge, core.CodeKeyTooLarge, core.CodeValueTooLarge, core.CodeMachinePanic, core.CodeMachineError,
		core.CodeChangePending, core.CodeChangeRefused, core.CodeNotCaughtUp, core.CodeRepair, core.CodeCompacted, core.CodeClosed, core.CodeCancelled,
		core.CodeNoShard, core.CodeUnreachable, core.CodeNotReached, core.CodeBadRequest, core.CodeUnauthenticated, core.CodeForbidden,
		core.CodeSessionExpired, core.CodeSequenceReused, core.CodeSequenceAcked, core.CodeSequenceTooHigh,
		core.CodeApplyPanic, core.CodeDivergence, core.CodeStorage, core.CodeCorruption, core.CodeUnsupported, core.CodeRemoved} {
		m[c] = true
	}
	return m
}()

// outcomeOf says how a call ended, in one of a bounded number of words and codes.
func outcomeOf(err error) (outcome, code string) {
	outcome, c := traced.Outcome(err)
	switch {
	case outcome == traced.OK, outcome == traced.Rejected:
	case knownCodes[c]:
		code = string(c)
	default:
		code = "other"
	}
	return outcome, code
}

// meter counts what a proxy's servers do. A nil meter counts nothing.
type meter struct {
	connections, streams       atomic.Int64
	allConnections, allStreams atomic.Uint64
	received, sent             atomic.Uint64 // bytes
	took                       [len(kinds)]histogram.Histogram
	shards                     atomic.Pointer[map[rsm.ShardID]*shardMeter] // replaced under mu
	noShard                    shardMeter                                  // of calls for shards that nobody knows
	mu                         sync.Mutex
}

// shardMeter counts the calls of a shard. Failures are rare, or slow anyway.
type shardMeter struct {
	ok, rejected [len(kinds)]atomic.Uint64
	mu           sync.Mutex
	failed       map[failure]uint64
}

type failure struct {
	kind          route.Kind
	outcome, code string
}

// met makes shards that exist ones that are counted for themselves: all at once, as that copies what there is.
func (m *meter) met(ids ...rsm.ShardID) {
	if !slices.ContainsFunc(ids, func(id rsm.ShardID) bool { return m.of(id) == &m.noShard }) {
		return // each time that a node says what it knows
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[rsm.ShardID]*shardMeter{}
	if old := m.shards.Load(); old != nil {
		maps.Copy(all, *old)
	}
	for _, id := range ids {
		if all[id] == nil {
			all[id] = &shardMeter{}
		}
	}
	m.shards.Store(&all)
}

func (m *meter) of(id rsm.ShardID) *shardMeter {
	if all := m.shards.Load(); all != nil {
		if s := (*all)[id]; s != nil {
			return s
		}
	}
	return &m.noShard
}

// turnedAway reports whether an error says that there was no room for the call, with a router or at a node, or that nobody has the shard.
func turnedAway(err error) bool {
	e, _ := core.Verdict(err)
	return e != nil && e.Kind == core.ErrNotProposed && (e.Code.Busy() || e.Code == core.CodeNoShard)
}

// ended counts a call. taken: it was not refused before anybody worked on it. Those that were have no time that counts: a refusal takes microseconds, and under
// overload it would be what half of the calls take.
func (m *meter) ended(kind route.Kind, shard rsm.ShardID, took time.Duration, err error, taken bool) {
	if m == nil || int(kind) >= len(kinds) {
		return
	}
	if taken && !turnedAway(err) {
		m.took[kind].Record(took)
	}
	s := m.of(shard)
	switch outcome, code := outcomeOf(err); outcome {
	case traced.OK:
		s.ok[kind].Add(1)
	case traced.Rejected:
		s.rejected[kind].Add(1)
	default:
		s.mu.Lock()
		if s.failed == nil {
			s.failed = map[failure]uint64{}
		}
		s.failed[failure{kind, outcome, code}]++
		s.mu.Unlock()
	}
}

func (m *meter) stream(n int64) {
	if m == nil {
		return
	}
	m.streams.Add(n)
	if n > 0 {
		m.allStreams.Add(1)
	}
}

// counted counts what goes through a listener's connections.
type counted struct {
	net.Listener
	m *meter
}

func (l counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.m.connections.Add(1)
	l.m.allConnections.Add(1)
	return &countedConn{Conn: c, m: l.m}, nil
}

type countedConn struct {
	net.Conn
	m    *meter
	once sync.Once
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.m.received.Add(uint64(n))
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.m.sent.Add(uint64(n))
	return n, err
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.m.connections.Add(-1) })
	return c.Conn.Close()
}

// collector gives a proxy's figures to Prometheus, when somebody asks.
type collector struct{ p atomic.Pointer[Proxy] } // nil once the proxy is closed

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("decree_proxy_"+name, help, labels, nil)
}

type proxyMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Proxy) float64
}

var proxyMetrics = []proxyMetric{
	{describe("ready", "1 if every shard that is known has a leader that is reached."), gauge, func(p *Proxy) float64 { return boolGauge(len(p.Ready()) == 0) }},
	{describe("connections", "Open connections of clients."), gauge, func(p *Proxy) float64 { return float64(p.meter.connections.Load()) }},
	{describe("connections_total", "Connections that were accepted."), counter, func(p *Proxy) float64 { return float64(p.meter.allConnections.Load()) }},
	{describe("streams", "Open streams of calls."), gauge, func(p *Proxy) float64 { return float64(p.meter.streams.Load()) }},
	{describe("streams_total", "Streams of calls that were opened."), counter, func(p *Proxy) float64 { return float64(p.meter.allStreams.Load()) }},
	{describe("received_bytes_total", "Bytes that clients have sent, with all that gRPC and TLS add."), counter, func(p *Proxy) float64 { return float64(p.meter.received.Load()) }},
	{describe("sent_bytes_total", "Bytes that were sent to clients, with all that gRPC and TLS add."), counter, func(p *Proxy) float64 { return float64(p.meter.sent.Load()) }},
	{describe("topology_age_seconds", "How long ago a node said last what shards there are and who leads them; since the start, if none has yet."), gauge,
		func(p *Proxy) float64 { return time.Duration(monotonic() - p.learned.Load()).Seconds() }},
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

type routerMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*route.Stats) float64
}

var routerMetrics = []routerMetric{
	{describe("calls_in_progress", "Calls that have come in and have no outcome yet.", "shard"), gauge, func(s *route.Stats) float64 { return float64(s.Calls) }},
	{describe("waiting_calls", "Calls in progress that wait for a leader.", "shard"), gauge, func(s *route.Stats) float64 { return float64(s.Waiting) }},
	{describe("waiting_bytes", "Bytes that the waiting calls hold.", "shard"), gauge, func(s *route.Stats) float64 { return float64(s.WaitingBytes) }},
	{describe("retries_total", "Times that a call was sent again.", "shard"), counter, func(s *route.Stats) float64 { return float64(s.Retries) }},
	{describe("refused_total", "Calls that were refused, as too many wait for a leader. Those for which admission had no room are counted by decree_proxy_admission_refused_total.", "shard"), counter, func(s *route.Stats) float64 { return float64(s.Refused) }},
	{describe("timeouts_total", "Calls that had no outcome at their deadline.", "shard"), counter, func(s *route.Stats) float64 { return float64(s.TimedOut) }},
}

var (
	callsDesc   = describe("calls_total", "Calls, by what became of them. A machine's rejection is an outcome, too; its code is not told.", "kind", "shard", "outcome", "code")
	tookDesc    = describe("call_seconds", "How long calls took, from when the proxy has read them until their outcome, with all retries. Those that were refused at once are not among them.", "kind")
	leaderDesc  = describe("leader_known", "1 if a node has said lately who leads the shard, and that one is reached.", "shard")
	changesDesc = describe("leader_changes_total", "Leaders and terms that were learned of.", "shard")
	linkDesc    = describe("link_up", "1 if the stream to a node is open.", "address")
)

type admissionMetric struct {
	desc  *prometheus.Desc
	value func(*admitted) float64
}

// Each server has an admission of its own.
var admissionMetrics = []admissionMetric{
	{describe("admission_limit", "How many calls may be at work on the shard, as its latency is now: the sum of what each of the proxy's ports allows that has had calls for it. It is lower for some 100 ms while the latency without a queue is measured.", "shard"),
		func(s *admitted) float64 { return float64(s.limit) }},
	{describe("admission_at_work", "Calls that were let in for the shard and have no outcome yet, of all of the proxy's ports, without those that wait for a leader.", "shard"),
		func(s *admitted) float64 { return float64(s.atWork) }},
	{describe("admission_base_seconds", "The shard's latency without a queue, that the limit goes by: the least that one of the proxy's ports has measured; 0 if none has yet.", "shard"),
		func(s *admitted) float64 { return s.base.Seconds() }},
}

var admissionRefusedDesc = describe("admission_refused_total", "Calls for which there was no room, by the bound that was reached, of all of the proxy's ports.", "reason")

func (a *admissions) collect(out chan<- prometheus.Metric) {
	shards, refused := a.figures()
	for label, s := range shards {
		for _, m := range admissionMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, gauge, m.value(s), label)
		}
	}
	for r, n := range refused {
		out <- prometheus.MustNewConstMetric(admissionRefusedDesc, counter, float64(n), admit.Reason(r).String())
	}
}

// Describe implements prometheus.Collector. Nothing is described beforehand, like in package rsm.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	p := c.p.Load()
	if p == nil {
		return
	}
	for _, m := range proxyMetrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(p))
	}
	p.mu.Lock()
	links, shards := maps.Clone(p.links), make(map[rsm.ShardID]shard, len(p.shards))
	for id, s := range p.shards {
		if s.term != 0 || len(s.nodes) > 0 { // some node knows it
			shards[id] = *s
		}
	}
	p.mu.Unlock()
	for address, l := range links {
		out <- prometheus.MustNewConstMetric(linkDesc, gauge, boolGauge(l.Connected()), address)
	}
	for id, s := range shards {
		label := strconv.FormatUint(uint64(id), 10)
		st := s.router.Stats()
		for _, m := range routerMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&st), label)
		}
		out <- prometheus.MustNewConstMetric(leaderDesc, gauge, boolGauge(p.led(&s, monotonic())), label)
		out <- prometheus.MustNewConstMetric(changesDesc, counter, float64(s.changes), label)
	}
	p.admissions.collect(out)
	p.meter.collect(out)
}

func (m *meter) collect(out chan<- prometheus.Metric) {
	for kind := range kinds {
		counts := m.took[kind].Counts()
		count, sum, upTo := counts.Cumulative()
		out <- prometheus.MustNewConstHistogram(tookDesc, count, sum, upTo, kinds[kind])
	}
	m.noShard.collect(out, "none")
	if all := m.shards.Load(); all != nil {
		for id, s := range *all {
			s.collect(out, strconv.FormatUint(uint64(id), 10))
		}
	}
}

func (s *shardMeter) collect(out chan<- prometheus.Metric, shard string) {
	for kind, name := range kinds {
		for outcome, n := range map[string]uint64{traced.OK: s.ok[kind].Load(), traced.Rejected: s.rejected[kind].Load()} {
			if n > 0 {
				out <- prometheus.MustNewConstMetric(callsDesc, counter, float64(n), name, shard, outcome, "")
			}
		}
	}
	s.mu.Lock()
	failed := maps.Clone(s.failed)
	s.mu.Unlock()
	for f, n := range failed {
		out <- prometheus.MustNewConstMetric(callsDesc, counter, float64(n), kinds[f.kind], shard, f.outcome, f.code)
	}
}
