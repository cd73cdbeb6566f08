package proxy

import (
	"fmt"
	"go/constant"
	"go/token"
	"go/types"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/client"
)

// units of the page's numbers. A duration is in ns.
const (
	count = iota
	bytesOf
	duration
)

// written is a number as the page has it.
func written(n int64, unit int) string {
	switch {
	case unit == duration:
		d := time.Duration(n)
		for _, u := range []struct {
			d    time.Duration
			name string
		}{{time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
			if d%u.d == 0 {
				return fmt.Sprintf("%d %s", d/u.d, u.name)
			}
		}
	case unit == bytesOf:
		for i, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
			if size := int64(1) << (40 - 10*i); n >= size && n%size == 0 {
				return fmt.Sprintf("%d %s", n/size, u)
			}
		}
		if n > 1 {
			return fmt.Sprintf("%d bytes", n)
		}
	case n >= 10_000:
		s := strconv.FormatInt(n, 10)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	}
	return strconv.FormatInt(n, 10)
}

var units = strings.NewReplacer("time.Hour", "3600000000000", "time.Minute", "60000000000", "time.Second", "1000000000")

// evaluate finds a number in a source file: the expression after a pattern.
func evaluate(t *testing.T, file, pattern string) int64 {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(pattern).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no %s", file, pattern)
	}
	v, err := types.Eval(token.NewFileSet(), nil, token.NoPos, units.Replace(string(m[1])))
	if err != nil {
		t.Fatalf("%s, %s: %v", file, pattern, err)
	}
	n, ok := constant.Int64Val(constant.ToInt(v.Value))
	if !ok {
		t.Fatalf("%s, %s is %v", file, pattern, v.Value)
	}
	return n
}

// limitOf is what the page says of a limit. Where there is a try, the ends of the range are tried: it returns what is said of a value.
type limitOf struct {
	name            string
	unit            int
	is, least, most int64 // default, 0: the page has words; least and most may be 0: not looked at
	try             func(n int64) error
	word            string // that a refusal names it by
}

// docs/limits.md has every limit with its default and its range, as they are in the code.
//
// Mutations with which it was seen to fail: another default in the code, another range, a row less in the page, a row more.
func TestLimitsPage(t *testing.T) {
	fields := func(of func(c *core.Config) any, name string) func(int64) error {
		return func(n int64) error {
			c := core.Config{Node: 1, Limits: core.Limits{MaxEntryBytes: 32 << 20}}.WithDefaults()
			if name == "MaxEntryBytes" {
				c.Limits.MaxCommandBytes, c.Limits.BatchBytes = 1, 1
			}
			f := reflect.ValueOf(of(&c)).Elem().FieldByName(name)
			if f.CanUint() {
				f.SetUint(uint64(n))
			} else {
				f.SetInt(n)
			}
			return c.Validate()
		}
	}
	limits := func(name string) func(int64) error {
		return fields(func(c *core.Config) any { return &c.Limits }, name)
	}
	sessions := func(name string) func(int64) error {
		return fields(func(c *core.Config) any { return &c.Sessions }, name)
	}
	ofLimits := func(name string) func(int64) error {
		return func(n int64) error {
			l := Limits{}.withDefaults()
			reflect.ValueOf(&l).Elem().FieldByName(name).SetInt(n)
			if name == "MaxTimeout" {
				l.Timeout = min(l.Timeout, l.MaxTimeout)
			}
			return l.check()
		}
	}
	admission := func(name string) func(int64) error {
		return func(n int64) error {
			a := Admission{MinCalls: 2}
			reflect.ValueOf(&a).Elem().FieldByName(name).SetInt(n)
			_, err := a.controller()
			return err
		}
	}
	config := func(name string) func(int64) error {
		return func(n int64) error {
			cfg := Config{Nodes: []string{"127.0.0.1:1"}}
			reflect.ValueOf(&cfg).Elem().FieldByName(name).SetInt(n)
			p, err := New(cfg)
			if err == nil {
				p.Close()
			}
			return err
		}
	}
	call := func(c route.Call) error { c.Kind, c.Shard = route.Submit, 1; return wire.CheckCall(&c) }
	d := core.Config{}.WithDefaults()
	l, s, of := d.Limits, d.Sessions, Limits{}.withDefaults()
	here := func(file, field string) int64 {
		return evaluate(t, file, `cmp\.Or\((?:\w+\.)+`+field+`, ([^()]+)\)`)
	}
	fixed := func(file, name string) int64 { return evaluate(t, file, `(?m)^\s*(?:const )?`+name+`\s+= ([^/\n]+)`) }
	const node, session = "../rsm/config.go", "../internal/core/session.go"
	all := []limitOf{
		{name: "`Limits.MaxKeyBytes`", unit: bytesOf, is: int64(l.MaxKeyBytes), least: 1, most: 64 << 10, try: limits("MaxKeyBytes")},
		{name: "`Limits.MaxValueBytes`", unit: bytesOf, is: int64(l.MaxValueBytes), least: 1, most: 64 << 20, try: limits("MaxValueBytes")},
		{name: "`Limits.MaxEntryBytes`", unit: bytesOf, is: int64(l.MaxEntryBytes), most: 32 << 20, try: limits("MaxEntryBytes")},
		{name: "text of a panic", unit: bytesOf, is: fixed("../internal/core/decide.go", "maxPanicText")},
		{name: "`Limits.MaxCommandBytes`", unit: bytesOf, is: int64(l.MaxCommandBytes), least: 1, most: 32 << 20, try: limits("MaxCommandBytes")},
		{name: "`Limits.MaxRequestCommands`", is: int64(l.MaxRequestCommands), least: 1, most: 65535, try: limits("MaxRequestCommands")},
		{name: "bytes of a call over a connection", unit: bytesOf, is: wire.MaxCallBytes,
			try: func(n int64) error { return call(route.Call{Commands: [][]byte{make([]byte, n-64-24)}}) }},
		{name: "commands of a call over a connection", is: fixed("../internal/wire/calls.go", "maxCommands"),
			try: func(n int64) error { return call(route.Call{Commands: make([][]byte, n)}) }},
		{name: "bytes of an answer over a connection", unit: bytesOf, is: wire.MaxAnswerBytes},
		{name: "`proxy.Limits.FrameBytes`", unit: bytesOf, is: int64(of.FrameBytes), least: 9 << 20, most: 1 << 30, try: ofLimits("FrameBytes")},

		{name: "`Limits.MaxQueuedRequests`", is: int64(l.MaxQueuedRequests), least: 1, try: limits("MaxQueuedRequests"), word: "queues"},
		{name: "`Limits.MaxQueuedBytes`", unit: bytesOf, is: int64(l.MaxQueuedBytes)},
		{name: "reads that wait for a token"},
		{name: "`Limits.BatchBytes`", unit: bytesOf, is: int64(l.BatchBytes), least: 1},
		{name: "`Limits.PipelineDepth`", is: int64(l.PipelineDepth), least: 1, most: 1024, try: limits("PipelineDepth")},

		{name: "`SessionOptions.TTL`", unit: duration, is: int64(s.TTL), least: int64(time.Minute), try: sessions("TTL"), word: "TTL"},
		{name: "`SessionOptions.Window`", is: int64(s.Window), least: 1, most: 65536, try: sessions("Window"), word: "window"},
		{name: "numbers that a client gives out", is: fixed("../internal/session/window.go", "MaxUnacknowledged")},
		{name: "`SessionOptions.Max`", is: int64(s.Max), least: 1, try: sessions("Max"), word: "session limit"},
		{name: "memory of a session", unit: bytesOf, is: fixed(session, "maxSessionBytes")},
		{name: "memory of all sessions of a shard", unit: bytesOf, is: fixed(session, "maxSessionsBytes"), least: fixed(session, "idleSessionBytes")},

		{name: "`Limits.FlushBytes`", unit: bytesOf, is: l.FlushBytes, least: 64 << 10, most: 64 << 20, try: limits("FlushBytes")},
		{name: "`Limits.LogCacheBytes`", unit: bytesOf, is: l.LogCacheBytes},
		{name: "`Config.CacheBytes`", unit: bytesOf, is: here(node, "CacheBytes")},
		{name: "`Config.LogSegments`", is: here(node, "LogSegments"), least: evaluate(t, node, `c\.LogSegments >= (\d+)`)},
		{name: "`Config.DiskWatermark`", unit: bytesOf, is: here(node, "DiskWatermark")},
		{name: "`Config.JournalMaxBytes`", unit: bytesOf, is: evaluate(t, "../internal/core/config.go", `cmp\.Or\(c\.JournalMaxBytes, max\(([^,]+),`)},
		{name: "`Config.FsyncStall`", unit: duration, is: here(node, "FsyncStall")},
		{name: "`Config.BackupStall`", unit: duration, is: here(node, "BackupStall")},
		{name: "entries of one `Shard.Journal`", is: fixed("../rsm/journal.go", "maxJournalEntries")},
		{name: "files of a snapshot", is: fixed("../snapshot/manifest.go", "MaxFiles")},

		{name: "name of a cluster", unit: bytesOf, is: evaluate(t, node, `len\(c\.Cluster\) <= (\d+)`)},
		{name: "members of a shard", is: fixed("../internal/core/members.go", "maxMembers")},
		{name: "address of a node", unit: bytesOf, is: core.MaxAddressBytes},
		{name: "changes of members under way", is: 1},
		{name: "frame between nodes", unit: bytesOf, is: fixed("../internal/transport/config.go", "DefaultFrameBytes")},
		{name: "queue to a peer", unit: bytesOf, is: fixed("../internal/transport/config.go", "DefaultQueueBytes")},
		{name: "connections to a peer port", is: fixed("../internal/guard/guard.go", "DefaultMaxConns")},

		{name: "`ServerConfig.MaxConnections`", is: here("server.go", "MaxConnections"), least: 1, most: 1 << 24},
		{name: "`ServerConfig.MaxStreams`", is: here("server.go", "MaxStreams")},
		{name: "`proxy.Limits.StreamCalls`", is: int64(of.StreamCalls), least: 1, most: 1 << 24, try: ofLimits("StreamCalls")},
		{name: "`proxy.Limits.StreamBytes`", unit: bytesOf, is: of.StreamBytes, least: 4 << 10, most: 1 << 40, try: ofLimits("StreamBytes")},
		{name: "answers that a stream's client has not taken", unit: bytesOf, is: maxUnread, least: leastRefused, most: maxUntaken},
		{name: "calls on a stream to a node's own port", is: nodeStreamCalls},
		{name: "bytes of calls on a stream to a node's own port", unit: bytesOf, is: nodeStreamBytes},
		{name: "`proxy.Limits.Timeout`", unit: duration, is: int64(of.Timeout), least: int64(time.Millisecond), try: ofLimits("Timeout")},
		{name: "`proxy.Limits.MaxTimeout`", unit: duration, is: int64(of.MaxTimeout), least: int64(time.Millisecond), most: int64(7 * 24 * time.Hour), try: ofLimits("MaxTimeout")},
		{name: "`Admission.ClientCalls`", is: here("server.go", "ClientCalls"), least: 8, try: admission("ClientCalls"), word: "ClientCount"},
		{name: "`Admission.ClientBytes`", unit: bytesOf, is: here("server.go", "ClientBytes"), least: 4 << 10, try: admission("ClientBytes")},
		{name: "`Admission.ShardCalls`", is: here("server.go", "ShardCalls"), least: 12, try: admission("ShardCalls"), word: "ShardCount"},
		{name: "`Admission.ShardBytes`", unit: bytesOf, is: here("server.go", "ShardBytes"), least: 4 << 10, try: admission("ShardBytes")},
		{name: "`Admission.MinCalls`", is: here("server.go", "MinCalls"), least: 2, try: admission("MinCalls"), word: "MinLimit"},
		{name: "`proxy.Config.MaxWaiting`", is: here("../internal/route/route.go", "MaxWaiting"), least: 1, most: 1 << 24, try: config("MaxWaiting")},
		{name: "`proxy.Config.MaxWaitingBytes`", unit: bytesOf, is: here("../internal/route/route.go", "MaxWaitingBytes"), least: 4 << 10, most: 1 << 40, try: config("MaxWaitingBytes")},
		{name: "`client.Options.Patience`", unit: duration, is: int64(time.Minute), least: int64(time.Millisecond), most: int64(route.MaxPatience), try: func(n int64) error {
			c, err := client.Dial([]string{"127.0.0.1:1"}, client.Options{Patience: time.Duration(n)})
			if err == nil {
				c.Close()
			}
			return err
		}},

		{name: "connections to an admin port", is: fixed("../rsm/admin/admin.go", "maxConns"), least: fixed("../rsm/admin/admin.go", "maxConnsPerHost")},
		{name: "request to an admin port", unit: bytesOf, is: fixed("../rsm/admin/admin.go", "maxRequestBytes")},
		{name: "connections to a side port", is: fixed("../rsm/sideport/sideport.go", "maxConns"), least: fixed("../rsm/sideport/sideport.go", "maxConnsPerHost")},
		{name: "file of tokens", unit: bytesOf, is: fixed("access/tokens.go", "MaxTokenFileBytes")},
		{name: "tokens", is: fixed("access/tokens.go", "MaxTokens")},
	}

	page, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) >= 4 && !strings.HasPrefix(line, "| ---") && !strings.HasPrefix(line, "| limit |") {
			rows[strings.TrimPrefix(cells[0], "| ")] = cells
		}
	}
	for _, a := range all {
		row := rows[a.name]
		if row == nil {
			t.Errorf("%s has no row in the page", a.name)
			continue
		}
		delete(rows, a.name)
		if want := written(a.is, a.unit); row[1] != want && a.is != 0 {
			t.Errorf("%s is %s, and the page says %s", a.name, want, row[1])
		}
		for _, n := range []int64{a.least, a.most} {
			if n != 0 && !regexp.MustCompile(`(^|[^0-9,])`+regexp.QuoteMeta(written(n, a.unit))+`($|[^0-9,]|,[^0-9])`).MatchString(row[2]) {
				t.Errorf("%s has a range that ends at %s, and the page says %s", a.name, written(n, a.unit), row[2])
			}
		}
		if a.try == nil {
			continue
		}
		parts := strings.Split(strings.Trim(a.name, "`"), ".")
		if a.word == "" {
			a.word = parts[len(parts)-1]
		}
		least, most := a.least, a.most
		if row[2] == "fixed" {
			most, a.word = a.is, "at most"
			if a.unit == count {
				a.word = "more than"
			}
		}
		for n, refused := range map[int64]bool{least - 1: true, least: false, most: false, most + 1: true} {
			if (n == least || n == least-1) && least == 0 || (n == most || n == most+1) && most == 0 || n == 0 && least == 1 && strings.HasPrefix(a.name, "`proxy.Config") {
				continue // no such end; or 0 is the default
			}
			if err := a.try(n); (err != nil && strings.Contains(err.Error(), a.word)) != refused {
				t.Errorf("%s of %d: %v, should it be refused: %v", a.name, n, err, refused)
			}
		}
	}
	for name := range rows {
		t.Errorf("the page has a row of %s, which is not looked at", name)
	}
}
