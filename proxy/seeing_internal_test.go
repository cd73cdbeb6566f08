package proxy

import (
	"context"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/proxy/internal/admit"
)

// Every code of the library is one that metrics tell.
func TestCodesAreKnown(t *testing.T) {
	source, err := os.ReadFile("../internal/core/errors.go")
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`Code\w+ +Code = "(\w+)"`).FindAllSubmatch(source, -1)
	for _, m := range all {
		if !knownCodes[core.Code(m[1])] {
			t.Errorf("%s is counted as another", m[1])
		}
	}
	if len(all) != len(knownCodes) || len(all) < 30 {
		t.Errorf("%d codes, and %d are known", len(all), len(knownCodes))
	}
}

func TestParseTraceParent(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for s, valid := range map[string]bool{
		good: true, good[:53] + "00": true, "01" + good[2:] + "-more": true, "01" + good[2:]: true,
		"": false, good + "-more": false, "01" + good[2:] + "more": false, "ff" + good[2:]: false, good[:54]: false,
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": false, "00-00000000000000000000000000000000-b7ad6b7169203331-01": false,
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01": false, "00-0af7651916cd43dd8448eb211c80319x-b7ad6b7169203331-01": false,
	} {
		got := parseTraceParent(s)
		if (got != nil) != valid {
			t.Errorf("%q: %+v", s, got)
			continue
		}
		sc := trace.SpanContextFromContext(traced.Under(context.Background(), got))
		if sc.IsValid() != valid || valid && (!sc.IsRemote() || sc.IsSampled() != (s[54] == '1') || sc.TraceID().String() != s[3:35] || sc.SpanID().String() != s[36:52]) {
			t.Errorf("%q: %+v", s, sc)
		}
	}
}

// What is counted for each call, and what is not traced, costs no memory.
func TestCountingIsFree(t *testing.T) {
	m := &meter{}
	m.met(1)
	s := newService(nil, Limits{})
	s.meter = m
	if n := testing.AllocsPerRun(1000, func() {
		m.met(1) // again, as with each answer of a node
		m.ended(0, 1, 1000, nil, true)
		if s.debugs() {
			t.Fatal("debugging")
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// What lies below an error says why, and not what became of the call.
func TestOutcomeIsTheOutermost(t *testing.T) {
	for _, below := range []error{&core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed}, &core.Rejection{Code: "no"}} {
		err := &core.Error{Kind: core.ErrUnknown, Code: core.CodeUnreachable, Cause: below}
		if outcome, code := outcomeOf(err); outcome != traced.Unknown || code != string(core.CodeUnreachable) {
			t.Errorf("%v counts as %s, %s", err, outcome, code)
		}
		if loadOf(&route.Call{Err: err}) != admit.Ignored {
			t.Errorf("%v counts as load", err)
		}
	}
}

// A call that a leader had to the end of its time says that the leader is slow; one that waited for a leader says nothing.
func TestLoadOfWhatIsLate(t *testing.T) {
	late := &core.Error{Kind: core.ErrUnknown, Code: core.CodeCancelled}
	for want, c := range map[admit.Outcome]*route.Call{
		admit.Late: {Err: late, Held: true}, admit.Ignored: {Err: late}, admit.Dropped: {Err: &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded}, Held: true},
	} {
		if got := loadOf(c); got != want {
			t.Errorf("%v, held %v: %d, not %d", c.Err, c.Held, got, want)
		}
	}
	// Whatever it was told before.
	for _, code := range []core.Code{core.CodeNoLeader, core.CodeOverloaded} {
		was := &core.Error{Kind: core.ErrNotProposed, Code: code}
		if got := loadOf(&route.Call{Err: was, Late: true, Held: true}); got != admit.Late {
			t.Errorf("%s, held: %d", code, got)
		}
		if got := loadOf(&route.Call{Err: was, Late: true}); got != admit.Ignored {
			t.Errorf("%s: %d", code, got)
		}
	}
	if got := loadOf(&route.Call{Held: true}); got != admit.Answered {
		t.Error(got)
	}
}

// A node that refuses the proxy is tried again without end: it is a warning, once for each reason, and hides no other node's. What will help itself is none.
//
// Mutations with which it was seen to fail: each refusal is a warning; the reason alone makes two the same; every failure is a warning.
func TestRefusalsAreLoggedRarely(t *testing.T) {
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	p := &Proxy{log: logger, rarely: limitlog.New(logger)}
	forbidden := &core.Error{Kind: core.ErrNotProposed, Code: core.CodeForbidden}
	for range 5 {
		p.logDown("one:1", errForeign)
		p.logDown("one:1", forbidden)
		p.logDown("two:2", errForeign)
		p.logDown("two:2", &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable})
	}
	if strings.Count(log.String(), "\n") != 3 || strings.Count(log.String(), "level=WARN") != 3 || strings.Count(log.String(), "two:2") != 1 {
		t.Errorf("of 5 refusals for each of 3 reasons: %s", &log)
	}
}

// Shards for which an admission has no record of their own are told together, and not as the first of them; those of all servers that have one count together.
//
// Mutations with which it was seen to fail: the record that others share has the name of its first shard; a server that has not measured yet makes the base unknown.
func TestAdmissionOfManyShards(t *testing.T) {
	var a admissions
	for range 2 {
		c, err := admit.New(admit.Config{Shards: 1})
		if err != nil {
			t.Fatal(err)
		}
		a.add(c)
		for id := range uint64(3) {
			if _, err := c.Client("a").Admit(id+1, 1, false, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	shards, _ := a.figures()
	if len(shards) != 2 || shards["1"] == nil || shards["1"].atWork != 2 || shards[otherShards] == nil || shards[otherShards].atWork != 4 {
		t.Errorf("%+v", shards)
	}
	var s admitted
	for _, base := range []time.Duration{0, 3, 2, 0, 4} {
		s.add(&admit.ShardStat{Base: base})
	}
	if s.base != 2 {
		t.Errorf("the base is %v", s.base)
	}
}

// What finds no room with a router or at a node, and what nobody has a shard for, has no time either: it was taken, and nobody worked on it. What may have happened has.
//
// Mutations with which it was seen to fail: every call that was taken has a time; the kind of the error is not looked at.
func TestTimesAreOfWork(t *testing.T) {
	m := &meter{}
	for want, err := range []error{
		&core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded},
		nil,
		&core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded},
		&core.Error{Kind: core.ErrNotProposed, Code: core.CodeCancelled},
	} {
		m.ended(route.Read, 1, time.Millisecond, err, true)
		counts := m.took[route.Read].Counts()
		if n, _, _ := counts.Cumulative(); n != uint64(want) {
			t.Errorf("with %v there are %d times, want %d", err, n, want)
		}
	}
}

func BenchmarkCount(b *testing.B) {
	m := &meter{}
	m.met(1)
	for b.Loop() {
		m.ended(0, 1, 1000, nil, true)
	}
}

// A call of which nobody makes a span costs no memory more, with a tracer or without.
func TestNoTraceIsFree(t *testing.T) {
	s := newService(nil, Limits{})
	c, ctx := &route.Call{Kind: route.Submit, Shard: 1}, context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		c.Trace = parentOf(ctx)
		if s.tracer != nil || c.Trace != nil || traced.Of(ctx) != nil || traced.Under(ctx, nil) != ctx {
			t.Fatal("traced")
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
